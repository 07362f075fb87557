# SPDX-License-Identifier: Apache-2.0
"""From a bundle to a segmenter: what is proven is what was read, and whatever fails is closed."""

from dataclasses import replace
import itertools
import json
import random
import re
import shlex
import shutil
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from support.bundles import small_bundle
import yaml

from trt_segmentation import open_segmenter
from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.cli import main, next_step
from trt_segmentation.engines import build as building
from trt_segmentation.engines import BuildOptions, Dla, opening, summary
from trt_segmentation.engines.build import build, plan_inputs, Refused
from trt_segmentation.engines.onnxruntime import OnnxRuntime, OnnxRuntimeEngine
from trt_segmentation.engines.opening import open_named, VEHICLE
from trt_segmentation.engines.record import AGREEMENT, Failure, Vehicle
from trt_segmentation.engines.store import Store
from trt_segmentation.engines.tensorrt import backend as tensorrt
from trt_segmentation.errors import command_line, EngineMissing, InputError, SegmentationError
from trt_segmentation.segmenters import cpu
from trt_segmentation.segmenters.cpu import CpuSegmenter
from trt_segmentation.system import files


@pytest.fixture
def bundle(tmp_path):
    return small_bundle(tmp_path)


@pytest.fixture
def store(tmp_path):
    return tmp_path / 'store'


def use(monkeypatch, backend):
    for module in (building, opening):
        monkeypatch.setattr(module, 'choose_backend', lambda name, dla=None: backend)


def edit(path, **acceptance):
    document = yaml.safe_load((path / 'model.yaml').read_text())
    document['acceptance'].update(acceptance)
    (path / 'model.yaml').write_text(yaml.safe_dump(document))
    files.write_sums(path)


def test_what_is_built_and_proven_is_what_was_read_at_the_start(bundle, store, monkeypatch):
    """Somebody puts another network and other golden masks into the bundle meanwhile."""
    class Backend(OnnxRuntime):
        def build(self, fixed, precision, options):
            for mask in (bundle / 'golden').glob('*.mask.png'):
                cv2.imwrite(str(mask), np.full((32, 64), 3, np.uint8))
            shutil.copy(bundle / 'calibration.cache', bundle / 'model.onnx')
            return super().build(fixed, precision, options)

    use(monkeypatch, Backend())
    opened = Bundle.open(bundle)
    inputs = plan_inputs(opened, OnnxRuntime(), 'int8')
    sums = {name: files.sha256_file(path) for name, path in (
        ('model', bundle / 'model.onnx'), ('cache', bundle / 'calibration.cache'))}
    built = build(opened, store=store)
    assert built.record.inputs == inputs
    assert {'model': inputs.model, 'cache': inputs.cache} == sums
    assert built.record.acceptance.agreement > 0.5  # with the masks that were there
    assert built.record.bundle == str(bundle.resolve())
    files.write_sums(bundle)
    with pytest.raises(SegmentationError):
        open_segmenter(bundle, store=store, build_missing=False)


def test_a_bundle_that_does_not_fit_its_sums_when_it_is_copied_is_refused(bundle, store):
    opened = Bundle.open(bundle)
    (bundle / 'calibration.json').write_text('{}')
    with pytest.raises(InputError) as refused:
        build(opened, backend='onnxruntime', store=store)
    assert str(refused.value).startswith(f'{bundle}/calibration.json: ')
    assert [path.name for path in store.iterdir()] == ['.lock']


def test_a_bundle_that_cannot_be_written_is_built_from(bundle, store):
    for path in (bundle, *bundle.rglob('*')):
        path.chmod(path.stat().st_mode & ~0o222)
    try:
        assert build(Bundle.open(bundle), backend='onnxruntime', store=store).record.key
        assert not list(store.glob('.bundle.*'))
    finally:
        for path in (bundle, *bundle.rglob('*')):
            path.chmod(path.stat().st_mode | 0o200)


def test_the_choice_of_the_fastest_stays(bundle, store, monkeypatch):
    options = {'backend': 'onnxruntime', 'precision': 'auto', 'store': store}
    with pytest.raises(EngineMissing, match='--precision auto'):
        open_segmenter(bundle, build_missing=False, **options)
    first = build(Bundle.open(bundle), **options)
    monkeypatch.setattr(building._Builder, '_times', None)  # nothing is timed any more
    with open_segmenter(bundle, build_missing=False, **options) as segmenter:
        assert segmenter.record.key == first.key
    lines = []
    again = build(Bundle.open(bundle), report=lines.append, **options)
    assert again.reused and again.key == first.key
    assert lines == [f'taking {first.record.precision}, which was the fastest when this was built '
                     '(--force measures again)']


def test_a_choice_that_was_made_by_other_limits_is_made_again(bundle, store):
    options = {'backend': 'onnxruntime', 'precision': 'auto', 'store': store}
    build(Bundle.open(bundle), **options)
    edit(bundle, min_agreement=0.4)
    with pytest.raises(EngineMissing):
        open_segmenter(bundle, build_missing=False, **options)
    assert not build(Bundle.open(bundle), **options).reused


def test_a_host_judges_the_vehicle_s_arithmetic_too(bundle, store):
    record = build(Bundle.open(bundle), backend='onnxruntime', store=store).record
    found = record.acceptance.vehicle
    with open_named(Bundle.open(bundle), VEHICLE) as segmenter:
        same = total = 0
        for path in sorted((bundle / 'golden').glob('*.mask.png')):
            mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            image = cv2.imread(str(path.with_name(path.name.replace('.mask', ''))))
            same += int((segmenter.segment(image).classes == mask).sum())
            total += mask.size
    assert found.agreement == same / total and found.failures == ()
    alike = replace(record.acceptance, agreement=found.agreement)
    assert len(summary.vehicle(replace(record, acceptance=alike))) == 2
    worse = replace(record.acceptance, agreement=found.agreement - .05)
    lines = summary.vehicle(replace(record, acceptance=worse))
    assert (f'this CPU differs from the float network on {1 - worse.agreement:.2%} of the pixels, '
            f"the vehicle's arithmetic on {1 - found.agreement:.2%}") in lines[2]
    assert build(Bundle.open(bundle), backend='onnxruntime', precision='fp32',
                 store=store).record.acceptance.vehicle is None


def test_a_cpu_that_is_refused_says_what_the_vehicle_would_get(bundle, store, monkeypatch):
    infer = OnnxRuntimeEngine.infer

    def bad(self, tensor):
        outputs = infer(self, tensor)
        fused = len(outputs) and getattr(self, 'is_plan', False)
        return {name: -value for name, value in outputs.items()} if fused else outputs

    def load(self, plan, precision):
        engine = OnnxRuntimeEngine(plan, precision)
        engine.is_plan = precision == 'int8'
        return engine

    monkeypatch.setattr(OnnxRuntimeEngine, 'infer', bad)
    monkeypatch.setattr(OnnxRuntime, 'load', load)
    with pytest.raises(Refused, match="the vehicle's arithmetic gives agreement .* and would be "
                                      'accepted'):
        build(Bundle.open(bundle), backend='onnxruntime', store=store)


def test_the_node_that_is_advised_runs_the_engine_that_was_built(bundle, tmp_path, capsys):
    store = str(tmp_path / 'my store')
    assert main(['build', str(bundle), '--store', store, '--precision', 'fp32', '--max-batch',
                 '2']) == 0
    program, *words = shlex.split(
        re.search('here: (.*); on a vehicle', capsys.readouterr().out)[1])
    assert program == 'segmentation_node'
    ours, ros = words[:words.index('--ros-args')], words[words.index('--ros-args') + 1:]
    assert ours == [str(bundle), '--camera', 'TOPIC', '--store', store]
    assert ros == ['-p', 'precision:=fp32', '-p', 'max_batch:=2']


def test_what_was_built_here_is_not_named_next_again(bundle, store, monkeypatch, capsys):
    monkeypatch.setenv('TRT_SEGMENTATION_STORE', str(store))
    node = shlex.join(['segmentation_node', str(bundle), '--camera', 'TOPIC'])
    build_it = command_line('build', bundle)
    there = '; on a vehicle: copy the bundle there, and build it'
    build(Bundle.open(bundle), precision='fp32')  # which a node must be asked for
    assert next_step(str(bundle)) == build_it
    build(Bundle.open(bundle))
    assert main(['inspect', str(bundle)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f'next       here: {node}{there}'
    other = str(store.with_name('other'))
    assert next_step(str(bundle), store=other) == command_line('build', bundle, '--store', other)
    store.chmod(0o777)  # `build` says what is wrong
    assert next_step(str(bundle)) == build_it
    store.chmod(0o700)
    edit(bundle, min_agreement=1.0)
    assert next_step(str(bundle)) == build_it
    build(Bundle.open(bundle), precision='auto')  # which takes float then
    assert next_step(str(bundle)) == (
        f'here: {node} --ros-args -p precision:=auto{there} with --precision auto')


def test_an_engine_that_a_vehicle_would_refuse_is_not_sent_there(bundle, store, monkeypatch,
                                                                 capsys):
    refused = Vehicle(0.5, {}, 1.0, failures=(Failure(AGREEMENT, 'agreement 0.5 is below 0.9'),))
    monkeypatch.setattr(building._Builder, '_vehicle', lambda *_: refused)
    assert main(['build', str(bundle), '--store', str(store)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        'next       here: '
        + shlex.join(['segmentation_node', str(bundle), '--camera', 'TOPIC', '--store',
                      str(store)])
        + '; for a vehicle: '
        + command_line('calibrate', bundle, '--images', 'DIRECTORY', '--tune'))


def test_a_copy_with_other_limits_that_is_refused_leaves_the_engine_as_it_is(bundle, store):
    build(Bundle.open(bundle), store=store)
    copy = bundle.with_name('copy')
    shutil.copytree(bundle, copy)
    edit(copy, min_agreement=1.0)
    with pytest.raises(Refused):
        build(Bundle.open(copy), store=store)
    with pytest.raises(EngineMissing):
        open_segmenter(copy, store=store, build_missing=False)
    open_segmenter(bundle, store=store, build_missing=False).close()


def test_what_is_kept_to_save_time_is_no_engine(bundle, store, capsys):
    record = build(Bundle.open(bundle), precision='auto', store=store).record
    kept, = (path.parent for path in store.glob('*/record.json')
             if path.parent.name not in (record.key, plan_inputs(
                 Bundle.open(bundle), OnnxRuntime(), 'int8').key)
             and 'schema' not in json.loads(path.read_text()))
    assert main(['inspect', str(kept)]) == 2
    assert f'{kept}: no engine, but what an earlier build keeps' in capsys.readouterr().err


def test_the_command_says_its_verdict_first(bundle, store, capsys):
    arguments = ['build', str(bundle), '--backend', 'onnxruntime', '--store', str(store)]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith('ACCEPTED   int8 for onnxruntime')
    assert any(line.startswith("vehicle    TensorRT's arithmetic, computed here") and
               'would be accepted' in line for line in lines)
    shown = next(i for i, line in enumerate(lines) if line.startswith('layers that are not'))
    assert all(line.startswith(('type', 'float')) for line in lines[shown + 1:-2])
    frames = len([*(bundle / 'golden').glob('*.mask.png')])
    assert f'proof      {frames} golden frames to judge by: 8 or more prove more' in lines
    assert lines[-2].startswith('key        ')
    assert lines[-1].startswith(f'next       here: segmentation_node {bundle} --camera TOPIC '
                                f'--backend onnxruntime --store {store};')
    assert main([*arguments, '--verbose']) == 0
    verbose = capsys.readouterr().out.splitlines()
    assert verbose[0].startswith('ACCEPTED') and len(verbose) > len(lines)
    assert verbose[-2].endswith('(from the store)')
    edit(bundle, min_agreement=1.0)
    assert main(arguments) == 1
    output = capsys.readouterr()
    first, why, *rest = output.out.splitlines()
    assert first.startswith('REFUSED    int8 for onnxruntime')
    assert why.startswith('because    agreement ') and why.endswith('is below min_agreement 1.0')
    assert {'judged', 'vehicle', 'next'} <= {line.split(' ')[0] for line in rest}
    assert 'is not accepted: agreement' in output.err.splitlines()[-1]
    assert 'is below min_agreement 1.0' in output.err.splitlines()[-1]
    assert main([*arguments, '--format', 'json']) == 1
    output = capsys.readouterr()
    acceptance = json.loads(output.out)['acceptance']
    assert [failure['kind'] for failure in acceptance['failures']] == ['agreement']
    assert 0.5 < acceptance['agreement'] < 1 and acceptance['int8_share'] > 0.5
    assert 'is below min_agreement 1.0' in output.err.splitlines()[-1]


def test_every_engine_is_closed_whatever_fails(bundle, store, monkeypatch):
    opened, closed, steps = [], [], itertools.count()
    fail_at = [-1]
    rng = random.Random(3)

    def step():
        if next(steps) == fail_at[0]:
            raise rng.choice([InputError('injected'), RuntimeError('injected'), MemoryError(),
                              KeyboardInterrupt()])

    class Counted(OnnxRuntimeEngine):
        def __init__(self, *arguments, **options):
            step()
            super().__init__(*arguments, **options)
            opened.append(id(self))

        def infer(self, tensor):
            step()
            return super().infer(tensor)

        def close(self):
            if self._session is not None:
                closed.append(id(self))
            super().close()

    class Backend(OnnxRuntime):
        def load(self, plan, precision):
            return Counted(plan, precision)

    class Preprocessor(cpu.Preprocessor):
        def __init__(self, spec):
            step()
            super().__init__(spec)

    def keep(self, *arguments):
        step()
        return publish(self, *arguments)

    publish = Store.publish
    monkeypatch.setattr(Store, 'publish', keep)
    monkeypatch.setattr(cpu, 'Preprocessor', Preprocessor)
    use(monkeypatch, Backend())
    failures = 0
    for trial in range(200):
        building_now = trial % 10 == 0
        fail_at[0] = next(steps) + 1 + rng.randrange(40 if building_now else 3)
        precision = rng.choice(['int8', 'fp32', 'auto'])
        try:
            if not building_now:
                with open_segmenter(bundle, precision=precision, store=store) as segmenter:
                    segmenter.segment(np.zeros((32, 64, 3), np.uint8))
            else:
                build(Bundle.open(bundle), precision=precision, store=store, force=True)
        except (InputError, RuntimeError, MemoryError, KeyboardInterrupt):
            failures += 1
        assert sorted(opened) == sorted(closed)
        opened.clear(), closed.clear()
        assert [path.name for path in store.glob('.*')] == ['.lock']
    assert failures > 150


def test_a_segmenter_that_cannot_be_made_closes_its_engine(bundle, monkeypatch):
    engine = OnnxRuntimeEngine((bundle / 'model.onnx').read_bytes())

    def fail(spec):
        raise MemoryError

    monkeypatch.setattr(cpu, 'Postprocessor', fail)
    with pytest.raises(MemoryError):
        CpuSegmenter(Bundle.open(bundle).spec, engine)
    assert engine._session is None


def test_a_closed_segmenter_says_so(bundle, store):
    segmenter = open_segmenter(bundle, backend='onnxruntime', precision='fp32', store=store)
    segmenter.close()
    segmenter.close()
    with pytest.raises(InputError, match='this segmenter is closed'):
        segmenter.segment(np.zeros((32, 64, 3), np.uint8))


@pytest.mark.parametrize('mib', [0, -5])
def test_memory_that_is_none_is_refused(bundle, store, mib):
    with pytest.raises(InputError, match=f'workspace: found {mib} MiB, expected 1 or more'):
        build(Bundle.open(bundle), backend='onnxruntime', store=store, workspace_mib=mib)


@pytest.mark.parametrize('flags, message', [
    (['--dla-core', '0', '--backend', 'onnxruntime'], 'found onnxruntime, expected tensorrt'),
    (['--dla-core', '-1'], 'dla core: found -1, expected 0 or more'),
    (['--gpu-fallback'], '--gpu-fallback goes with --dla-core'),
])
def test_a_dla_that_cannot_be_meant_is_one_line(bundle, store, capsys, flags, message):
    assert main(['build', str(bundle), '--store', str(store), *flags]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not store.exists()


def test_an_accelerator_is_part_of_what_a_plan_depends_on(monkeypatch):
    module = SimpleNamespace(__version__='10.3')
    monkeypatch.setattr(tensorrt.TensorRt, '_module', lambda self: module)
    monkeypatch.setattr(tensorrt.device, 'identity', lambda: {'gpu': 'Orin'})
    gpu = tensorrt.TensorRt().identity()
    assert gpu == {'version': '10.3', 'gpu': 'Orin'}
    assert tensorrt.TensorRt(Dla(1)).identity() == {**gpu, 'dla_core': 1, 'gpu_fallback': False}
    with pytest.raises(InputError, match='a DLA computes in INT8 or FP16, found fp32'):
        tensorrt.TensorRt(Dla(0)).build(None, 'fp32', BuildOptions())
