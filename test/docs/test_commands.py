# SPDX-License-Identifier: Apache-2.0
"""The documentation's commands: each is run here, in its page's order, or says why it is not."""

from __future__ import annotations

from glob import glob
from pathlib import Path
import re
import shlex
import shutil

import numpy as np
import onnx
import pytest
from support.bundles import foreign_network, save
import yaml

from trt_segmentation import cli
from trt_segmentation.bundles.create import create
from trt_segmentation.bundles.labels import CITYSCAPES, Label, LabelSet, parse_labels
from trt_segmentation.calibration import calibrate
from trt_segmentation.recordings import bags
from trt_segmentation.ros import command

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / 'README.md', *sorted(ROOT.glob('docs/*.md')), ROOT / 'training/README.md',
         ROOT / 'CONTRIBUTING.md']
VERBS = sorted(path.stem for path in (ROOT / 'trt_segmentation/cli').glob('[a-z]*.py'))

# What is not run, by how it begins, and why. What these say is nevertheless looked at below.
NOT_RUN = {
    'make ': 'its target is looked up in the Makefile, and .ci/run runs them',
    'ros2 launch ': 'its arguments are looked up; test/ros/test_ros_launch.py starts launch files',
    'ros2 run trt_segmentation ': 'test/colcon/run starts both executables in a workspace',
    'ros2 security ': 'the Fast DDS of the wheels is built without security',
    'segmentation_node ': 'its arguments are parsed; test/ros/test_ros_command.py runs it',
    'python -m trt_segmentation.demo.player ': 'test/demo/test_demo.py plays over DDS',
    'sudo ': 'it changes the machine',
    'mkdir -p ~': "it makes a workspace in the reader's home",
    'cd ~': "it goes to the reader's home",
    'touch ': 'it belongs to that workspace',
    'source ': 'test/colcon/run and test/install/run source what they make',
    '. .venv': 'make setup and test/install/run make environments',
    'export ': 'it changes the shell',
    'rosdep ': 'it needs a ROS distribution',
    'colcon ': 'test/colcon/run builds a workspace',
    'python3 -m venv ': 'make setup and test/install/run make environments',
    'pip install ': 'it downloads; make setup and test/install/run install',
    'git clone ': 'it downloads',
    'omz_downloader ': 'it downloads',
    'cp ESPNet/': 'it copies what was downloaded',
    'python pictures.py': 'it cuts videos that were downloaded',
    'python training/from_openvino.py ': 'it needs OpenVINO: make test-openvino',
    'trtexec ': 'it is a program of TensorRT',
    'test/vehicle/run': 'it downloads TensorRT-RTX: make test-vehicle',
    'PYTHONPATH=test:. python3 -m pytest ': 'it needs a GPU',
    'python3 -m pytest test/ros/test_ros_node.py test/vehicle/gpu_node.py': 'it needs a GPU',
    'trt-segmentation build my_bundle --backend tensorrt': 'it needs a GPU',
    'trt-segmentation init deploy.prototxt ': 'test/networks/test_caffe.py has such networks',
    'trt-segmentation init saved_model/ ': 'it needs TensorFlow: make test-tensorflow',
    'trt-segmentation init frozen_inference_graph.pb ': 'it needs TensorFlow, as above',
    'trt-segmentation replay my_bundle --dask ': 'it needs a cluster: make test-fleet has one',
    'trt-segmentation evaluate my_bundle --dask ': 'it needs a cluster, as above',
    'srun ': 'it needs Slurm',
    'kubectl ': 'it needs Kubernetes',
    'trt-segmentation init net.pt': 'it needs PyTorch: make test-pytorch',
}
# Python of the pages that is not run, by what is in it, and why.
NOT_RUN_PYTHON = {'import torch': 'it needs PyTorch and what was downloaded',
                  "'CarND-LaneLines-P1'": 'it cuts videos that were downloaded',
                  'dask_jobqueue': 'it needs Slurm', 'dask_kubernetes': 'it needs Kubernetes'}

# Numbers that are made smaller, because the commands matter here and not what comes of them.
SMALLER = {'--count 500': '--count 6', '--scenes 500': '--scenes 1', '--count 33': '--count 6',
           '--count 29': '--count 6', '--golden 8': '--golden 2', '--golden 4': '--golden 2'}
# Exit codes beside 0, where the command asks something to which a machine or a network may say no.
MAY_FAIL = {'doctor': (0, 1), 'inspect CACHE --against OTHER': (1,),
            '--max-class-iou-loss': (0, 1)}

SIZE = (64, 96)
COLORS = {label.train_id: label.color[::-1] for label in CITYSCAPES.labels}


def blocks(page, *languages):
    """Return the fenced blocks of a page in one of some languages."""
    return [body for language, body in
            re.findall(r'^```(\w*)\n(.*?)^```', page.read_text(), flags=re.S | re.M)
            if language in languages]


def lines(page):
    """Return the command lines of a page's shell blocks, without comments; chains apart."""
    whole = '\n'.join(blocks(page, 'bash', 'sh', 'console')).replace('\\\n', ' ')
    found = []
    for line in whole.splitlines():
        line = re.sub(r'(^|\s+)#.*', '', line).strip()
        found += [part for part in re.split(r'\s+&&\s+', line) if part]
    return found


def reason(line):
    """Return why a command line is not run, or ''."""
    found = [why for start, why in NOT_RUN.items() if line.startswith(start)]
    assert len(found) <= 1, f'{line}: several reasons'
    return found[0] if found else ''


ALL_LINES = [(page, line) for page in PAGES for line in lines(page)]


def test_each_command_is_run_or_says_why_not():
    assert len(ALL_LINES) > 80
    for page, line in ALL_LINES:
        assert line.startswith('trt-segmentation ') or reason(line), f'{page.name}: {line}'


def test_no_reason_is_left_over():
    assert not [start for start in NOT_RUN
                if not any(line.startswith(start) for _, line in ALL_LINES)]


def test_each_command_parses():
    for _, line in ALL_LINES:
        if line.startswith('trt-segmentation '):
            parse(line)


def parse(line):
    words = shlex.split(line)[1:]
    return cli._parser(words[:1]).parse_args(words)


def options_of(verb):
    """Return the options of a command, with their dashes."""
    return cli._parser([verb])._subparsers._group_actions[0].choices[verb]._option_string_actions


# -- what inline code names -------------------------------------------------------------------

INLINE = [(page, code) for page in PAGES
          for code in re.findall(r'`([^`\n]+)`', re.sub(r'```.*?```', '', page.read_text(),
                                                        flags=re.S))]


def test_inline_commands_have_the_options_that_are_named():
    seen = 0
    for page, code in INLINE:
        words = code.removeprefix('trt-segmentation ').split()
        if words[0] not in VERBS or not any(word.startswith('--') for word in words):
            continue
        seen += 1
        options = options_of(words[0])
        for option in re.findall(r'(?<!\S)\[?(--[a-z0-9-]+)', code):
            assert option in options, f'{page.name}: {code}'
    assert seen > 10


def test_options_of_any_command_are_there():
    known = {option for verb in VERBS for option in options_of(verb)}
    known |= set(command._parser()._option_string_actions)
    source = text_of(('benchmarks', '*.py'), ('training', '*.py'), ('test/vehicle', '*.py'))
    others = {'--ros-args', '--params-file', '--shm-size', '--ipc', '--symlink-install',
              '--show-args', '--list-gpus', '--clock', '--onnx', '--int8', '--fp16', '--calib',
              '--shapes', '--nthreads', '--resources'}
    assert not [(page.name, code) for page, code in INLINE
                for option in re.findall(r'(?<!\S)\[?(--[a-z0-9-]+)', code)
                if option not in known | others and f"'{option}'" not in source]


def test_targets_of_make_scripts_and_launch_arguments_are_there():
    targets = re.findall(r'^([a-z-]+):', (ROOT / 'Makefile').read_text(), flags=re.M)
    shared = (ROOT / 'trt_segmentation/ros/launching.py').read_text()
    for page, code in [*ALL_LINES, *INLINE]:
        for target in re.findall(r'^make ([a-z-]+)$', code):
            assert target in targets, f'{page.name}: {code}'
        for script in re.findall(r'(?:^|\s)((?:benchmarks|training|test)/[\w/.-]+)', code):
            assert (ROOT / script).exists(), f'{page.name}: {code}'
        if match := re.match(r'ros2 launch trt_segmentation (\S+)', code):
            source = (ROOT / 'launch' / match[1]).read_text() + shared
            for argument in re.findall(r'(?<=\s)(\w+):=', code):
                assert f"DeclareLaunchArgument('{argument}'" in source, f'{page.name}: {code}'
        if re.match(r'segmentation_node \w+ -', code):
            command._parser().parse_args(command.split(shlex.split(code)[1:])[0])


def test_names_of_parameters_keys_and_functions_are_there():
    """Parameters of the node and of launch files, keys of diagnostics, names of Python."""
    source = text_of(('trt_segmentation', '**/*.py'), ('launch', '*.py'), ('config', '*'),
                     ('benchmarks', '*.py'), ('training', '*.py'))
    others = {  # of ONNX Runtime, of ROS's own files and encodings
        'trt_int8_calibration_table_name', 'trt_int8_use_native_calibration_table',
        'data_protection_kind', 'bayer_rggb8'}
    for page, code in INLINE:
        if re.fullmatch(r'[a-z]+(_[a-z0-9]+)+(:=?.*)?', code):
            name = code.partition(':')[0]
            stem = re.sub(r'^(dropped|malformed)_|_(p50|p95|p99|time_ms)$', '', name)
            found = name in others or name in source or stem in source
            assert found, f'{page.name}: {code}'


def text_of(*patterns):
    """Return the text of all files of some folders."""
    return '\n'.join(path.read_text() for folder, pattern in patterns
                     for path in (ROOT / folder).glob(pattern) if path.is_file())


# -- running them -----------------------------------------------------------------------------

@pytest.fixture(scope='session')
def world(tmp_path_factory):
    """Return a directory that has what the pages speak of; small, and made once."""
    world = tmp_path_factory.mktemp('docs')
    for name, number, rate in (('drives', 10, 0), ('drives/monday', 3, 10), ('night_drive', 9, 20),
                               ('val/images', 2, 30), ('val', 2, 30), ('cal', 14, 40)):
        for i in range(number):
            save(world / name / f'test_video_{i:03d}.jpg', scene(rate + i)[0])
    for i in range(2):
        for name in ('val/masks', 'val_masks', 'val_masks/images', 'val_masks/masks'):
            save(world / name / f'test_video_{i:03d}.png', scene(30 + i)[1])
    for split, number in (('train', 12), ('val', 2)):
        for i in range(number):
            image, truth = scene({'train': 100, 'val': 200}[split] + i)
            stem = f'{split}/town/town_{i:06d}_000019'
            save(world / f'cityscapes/leftImg8bit/{stem}_leftImg8bit.png', image)
            save(world / f'cityscapes/gtFine/{stem}_gtFine_labelTrainIds.png', truth)
    for name, topic in (('drive', '/camera/image_raw'), ('drive.mcap', '/front/image_raw')):
        with bags.Writer(world / name) as writer:
            for i in range(14):
                writer.write_image(topic, scene(300 + i)[0], 'bgr8', (i + 1) * 3 * 10**9, 'c')
    for i in range(2):
        with bags.Writer(world / f'fleet/{i}') as writer:
            writer.write_image('/camera/image_raw', scene(600 + i)[0], 'bgr8', 10**9, 'c')
    (world / 'capture').mkdir()
    for i in range(2):
        with bags.Writer(world / f'part_{i}') as writer:
            for k in range(7):
                writer.write_image('/camera/image_raw', scene(500 + 10 * i + k)[0], 'bgr8',
                                   (10 * i + k + 1) * 10**9, 'c')
        file, = (world / f'part_{i}').glob('*.mcap')
        file.rename(world / f'capture/{i}.mcap')
    background = Label('background', 255, (0, 0, 0), 'void')
    network(world / 'fcn.onnx', CITYSCAPES, (71.60, 82.10, 72.31), (1, 1, 1))
    network(world / 'espnet.onnx', LabelSet((*CITYSCAPES.labels, background)),
            (72.39, 82.91, 73.16), tuple(1 / x / 255 for x in (45.32, 46.15, 44.91)))
    network(world / 'road.onnx', parse_labels(yaml.safe_load(page_s_labels()), 'road.yaml'),
            (0, 0, 0), (1, 1, 1))
    for name, text in (('road.yaml', page_s_labels()), ('labels.yaml', yaml.safe_dump(
            [*CITYSCAPES.to_dict(), *LabelSet((background,)).to_dict()]))):
        (world / name).write_text(text)
    create(world / 'fcn.onnx', world / 'BUNDLE', labels='cityscapes', color='bgr',
           mean=(71.60, 82.10, 72.31), scale=(1, 1, 1))
    calibrate(world / 'BUNDLE', world / 'drives', count=6, golden=4, report=False)
    shutil.copytree(world / 'BUNDLE', world / 'my_bundle')
    for name in ('model.onnx', 'pidnet_s.onnx'):
        shutil.copy(world / 'fcn.onnx', world / name)
    cache = (world / 'BUNDLE/calibration.cache').read_text()
    (world / 'CACHE').write_text(cache)
    (world / 'OTHER').write_text(re.sub(r': \w{8}$', ': 3f800000', cache, count=1, flags=re.M))
    for when in ('before', 'after'):
        assert cli.main(['benchmark', str(world / 'BUNDLE'), '--engines', 'fp32', '--frames', '20',
                         '--warmup', '1', '--output', str(world / when),
                         '--store', str(world / 'store')]) == 0
    return world


def page_s_labels():
    """Return the YAML of road.yaml, as the page has it."""
    text, = blocks(ROOT / 'docs/real-network.md', 'yaml')
    return text


def scene(seed):
    """
    Draw a scene of few large regions in Cityscapes' colors: BGR image, and its train ids.

    No class has a color between those of road, building and bicycle, so that a network that tells
    classes by colors says no fourth one at their borders, in INT8 on any machine.
    """
    random = np.random.default_rng(seed)
    truth = np.zeros(SIZE, np.uint8)
    truth[:SIZE[0] // 2] = 2
    for _ in range(6):
        row, column = (random.integers(0, (side - 8) // 8) * 8 for side in SIZE)
        truth[row:row + 16, column:column + 16] = random.choice((0, 2, 18))
    image = np.array([COLORS[i] for i in range(19)], np.uint8)[truth]
    noise = random.integers(-6, 7, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8), truth


def network(path, labels, mean, scale):
    """Write a network that tells classes by their colors, BGR in."""
    onnx.save(foreign_network(labels, mean, scale, bgr=True, size=SIZE), path)


@pytest.mark.parametrize('page', [page for page in PAGES if any(
    line.startswith('trt-seg') and not reason(line) for line in lines(page))],
    ids=lambda page: page.stem)
def test_the_commands_of_a_page_run_one_after_the_other(page, world, tmp_path, monkeypatch,
                                                        capsys):
    monkeypatch.chdir(shutil.copytree(world, tmp_path / 'here'))
    monkeypatch.setenv('TRT_SEGMENTATION_STORE', str(tmp_path / 'store'))
    for line in lines(page):
        if reason(line):
            continue
        name = line.removeprefix('trt-segmentation ')
        for long, short in SMALLER.items():
            line = line.replace(long, short)
        line = line.replace('/data/cityscapes', 'cityscapes')
        made = re.search(r'init \S+ (\S+)', line)
        if made:
            shutil.rmtree(made[1], ignore_errors=True)
        words = [found for word in shlex.split(line)[1:]  # as a shell does it
                 for found in (sorted(glob(word)) if '*' in word else [word])]
        code = cli.main(words)
        output = capsys.readouterr()
        expected = next((MAY_FAIL[part] for part in MAY_FAIL if part in name), (0,))
        assert code in expected, f'{line}\n{output.out}{output.err}'


PYTHON = [(page, code) for page in PAGES for code in blocks(page, 'python')]


@pytest.mark.parametrize('page, code', PYTHON, ids=[f'{page.stem}-{i}' for i, (page, _) in
                                                    enumerate(PYTHON)])
def test_python_of_a_page_runs(page, code, world, tmp_path, monkeypatch):
    if any(part in code for part in NOT_RUN_PYTHON):
        compile(code, page.name, 'exec')
        return
    monkeypatch.chdir(shutil.copytree(world, tmp_path / 'here'))
    monkeypatch.setenv('TRT_SEGMENTATION_STORE', str(tmp_path / 'store'))
    if "Writer('drive')" in code:
        shutil.rmtree('drive')
    frames = [scene(400 + i)[0] for i in range(16)]
    exec(compile(re.sub(r'count=\d{3}', 'count=6', code), page.name, 'exec'), {
        '__name__': '__main__', 'image': frames[0], 'frames': frames,
        'my_frames': lambda: ((f'{i}', *scene(i)) for i in range(2))})
