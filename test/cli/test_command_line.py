# SPDX-License-Identifier: Apache-2.0
"""What the command line says and returns whatever it is given, and wherever it prints to."""

import os
from pathlib import Path
import re
import select
import shlex
import signal
import subprocess
import sys

import pytest
from support.calibration import pictures, run, write_pictures
from support.networks import fcn, write_bundle

from trt_segmentation.cli import main

ROOT = Path(__file__).parents[2]
RUN = [sys.executable, '-m', 'trt_segmentation']


@pytest.fixture
def bundle(tmp_path):
    return write_bundle(tmp_path / 'bundle', fcn())


@pytest.mark.parametrize('words, unbuffered', [
    (['BUNDLE', '--format', 'json'], ''), (['BUNDLE'], ''), (['BUNDLE'], '1'), (['--help'], '')])
def test_a_full_output_is_said_in_one_line(bundle, words, unbuffered, monkeypatch):
    monkeypatch.setenv('PYTHONUNBUFFERED', unbuffered)
    words = ['inspect', *(str(bundle) if word == 'BUNDLE' else word for word in words)]
    with open('/dev/full', 'w') as full:
        done = subprocess.run([*RUN, *words], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.stderr == ('trt-segmentation inspect: standard output cannot be written: '
                           'No space left on device\n')
    assert done.returncode == 2


def test_a_closed_output_is_an_error_in_one_line(bundle):
    done = subprocess.run(['sh', '-c', '"$@" >&-', 'sh', *RUN, 'inspect', str(bundle)],
                          stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    line, = done.stderr.splitlines()
    assert line.startswith('trt-segmentation inspect: standard output is closed')


@pytest.mark.parametrize('words, code', [
    (['inspect', 'gone'], 2), (['inspect', 'BUNDLE'], 0),
    (['preview', 'BUNDLE', '--images', 'IMAGES', '--output', 'SHEET.png'], 0)])
def test_standard_error_that_is_closed_does_not_change_the_exit_code(bundle, words, code,
                                                                     tmp_path):
    write_pictures(tmp_path / 'IMAGES', 2)
    paths = {'BUNDLE': bundle, **{name: tmp_path / name for name in ('IMAGES', 'SHEET.png')}}
    done = subprocess.run(
        ['sh', '-c', '"$@" 2>&-', 'sh', *RUN, *(str(paths.get(word, word)) for word in words)],
        stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    assert done.returncode == code
    assert bool(done.stdout) == (code == 0)


def test_paths_that_are_not_utf_8_are_escaped_in_what_is_written(bundle, tmp_path, capsys):
    def command(*words):
        return main([*map(str, words)])
    place = tmp_path / os.fsdecode(b'n\xff')
    place.mkdir()
    images = ['--images', write_pictures(tmp_path / 'images', 5).rename(place / 'images')]
    assert command('calibrate', bundle, *images, '--count', 4, '--golden', 1) == 0
    assert command('evaluate', bundle, *images, '--output', place / 'evaluation') == 0
    assert command('preview', bundle, *images, '--output', place / 'sheet.png') == 0
    assert f'{tmp_path}/n\\xff/evaluation/evaluation.html' in capsys.readouterr().out
    for path in [*bundle.glob('calibration.*'), *(place / 'evaluation').iterdir()]:
        if path.suffix in ('.html', '.json'):
            assert '\\udcff' not in path.read_text()
    bundle.rename(place / 'bundle')
    assert command('golden', place / 'bundle', *images) == 2
    assert (f'{tmp_path}/n\\xff/bundle/model.onnx: ONNX Runtime takes no path with bytes that are '
            'not UTF-8; ') in capsys.readouterr().err


@pytest.mark.parametrize('unbuffered', ['', '1'])
@pytest.mark.parametrize('left', ['stdout', 'stderr'])
@pytest.mark.parametrize('error, code', [('CheckFailed', 1), ('InputError', 2)])
def test_a_reader_that_has_left_does_not_change_the_exit_code(error, code, left, unbuffered):
    """As `replay ... | head -1`, whoever of the two ends first."""
    work = (f"import sys; print('x' * 99999); print('y', file=sys.stderr, flush=True); "
            f"from trt_segmentation import errors; raise errors.{error}('z')")
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, 'w') as nobody:
        done = subprocess.run(
            command(work), text=True, timeout=60, stdin=subprocess.DEVNULL,
            **{'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, left: nobody},
            env={**environment(), 'PYTHONUNBUFFERED': unbuffered})
    assert done.returncode == code
    if left == 'stdout':
        assert done.stderr == 'y\ntrt-segmentation seal: z\n'
    else:
        assert len(done.stdout) == 100000


@pytest.mark.parametrize('left, unbuffered, end', [
    ('stderr', '', r'\n'), ('stderr', '1', r'\n'), ('stderr', '1', ''), ('stdout', '1', '')])
def test_a_line_is_read_when_it_is_written(left, unbuffered, end):
    """And what is no line, unbuffered; a node shows the last line of a build that goes on."""
    work = f"import sys; print('at once', end='{end}', file=sys.{left}); sys.stdin.read()"
    with subprocess.Popen(
            command(work), text=True, stdin=subprocess.PIPE, **{left: subprocess.PIPE},
            env={**environment(), 'PYTHONUNBUFFERED': unbuffered}) as running:
        try:
            assert select.select([getattr(running, left)], [], [], 60)[0]
            assert os.read(getattr(running, left).fileno(), 99).rstrip() == b'at once'
            assert running.poll() is None
        finally:
            running.stdin.close()


@pytest.mark.parametrize('line, usage, message', [
    ('calibrate rb --images val --cout 3', 'trt-segmentation calibrate ',
     'no option --cout; did you mean --count?'),
    ('calibrate rb --imges val', 'trt-segmentation calibrate ',
     'no option --imges; did you mean --images?'),
    ('calibrate rb --imges=val', 'trt-segmentation calibrate ',
     'no option --imges; did you mean --images?'),
    ('calibrate rb --images val -count 3', 'trt-segmentation calibrate ',
     'unrecognized arguments: -count 3; did you mean --count?'),
    ('seal a b', 'trt-segmentation seal ', 'unrecognized arguments: b'),
    ('seal a --xyzzy', 'trt-segmentation seal ', 'no option --xyzzy'),
    ('demo --frames 3', 'trt-segmentation demo ', 'no option --frames'),
    ('calibarte rb', 'trt-segmentation [-h]',
     "no command 'calibarte' (there are adopt, benchmark, "),
    ('calibarte rb', 'trt-segmentation [-h]', 'seal); did you mean calibrate?'),
    ('--verison', 'trt-segmentation [-h]', 'no option --verison; did you mean --version?'),
    ('xyzzy', 'trt-segmentation [-h]', "no command 'xyzzy' (there are adopt, "),
    ('help bild', 'trt-segmentation [-h]', 'seal); did you mean build?'),
    ('export b --output o --for tensorrt10', 'trt-segmentation export ',
     "argument --for: found 'tensorrt10', expected one of tensorrt-8, tensorrt-10, "),
    ('export b --output o --for tensorrt10', 'trt-segmentation export ',
     'openvino; did you mean tensorrt-10?'),
    ('calibrate b --images i --method mes', 'trt-segmentation calibrate ', 'did you mean mse?'),
    ('build b --backend TensorRT-RTX', 'trt-segmentation build ', 'did you mean tensorrt_rtx?'),
    ('build b --backend onnx', 'trt-segmentation build ', 'did you mean onnxruntime?'),
    ('build b --precision xyzzy', 'trt-segmentation build ',
     "found 'xyzzy', expected one of int8, fp16, fp32, auto"),
    ('inspect b --format jsno', 'trt-segmentation inspect ', 'did you mean json?'),
])
def test_a_misspelt_word_gets_the_usage_of_its_command_and_the_nearest(line, usage, message,
                                                                       capsys):
    with pytest.raises(SystemExit) as ended:
        main(line.split())
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert error.startswith(f'usage: {usage}')
    assert message in error.splitlines()[-1]
    if 'no option' in message:
        assert error.rstrip().endswith(message)  # and no question where none is near


@pytest.mark.parametrize('line, usage', [
    ('help', 'usage: trt-segmentation [-h]'), ('help --help', 'usage: trt-segmentation [-h]'),
    ('help build', 'usage: trt-segmentation build '),
])
def test_help_is_a_word_too(line, usage, capsys):
    with pytest.raises(SystemExit) as ended:
        main(line.split())
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(usage)


@pytest.mark.parametrize('line, message', [
    ('evaluate BUNDLE --scenes 1 --engines int-8', 'did you mean int8?'),
    ('evaluate BUNDLE --scenes 1 --engines onnxruntme:int8', 'did you mean onnxruntime?'),
    ('demo --backend onnxruntme', 'did you mean onnxruntime?'),
    ('init NETWORK new --labels Cityscape', 'did you mean cityscapes?'),
    ('init NETWORK new --output logit', 'did you mean logits?'),
])
def test_a_misspelt_name_that_the_parser_does_not_know_gets_the_nearest(line, message, bundle,
                                                                        tmp_path, monkeypatch,
                                                                        capsys):
    monkeypatch.chdir(tmp_path)
    names = {'BUNDLE': bundle, 'NETWORK': next(bundle.glob('*.onnx'))}
    assert main([str(names.get(word, word)) for word in line.split()]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize('line, near', [
    ('inspect bundel', 'bundle'), ('calibrate bundle --images here/picturs', 'here/pictures'),
    ('replay bundle --bag here/pictrues --output new', 'here/pictures'),
    ('init bundle/modle.onnx new', 'bundle/model.onnx'),
    ('init bundle/model.onnx new --labels here/pictres', 'here/pictures')])
def test_a_misspelt_path_gets_the_nearest_beside_it(line, near, bundle, tmp_path, monkeypatch,
                                                    capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'here' / 'pictures').mkdir(parents=True)
    assert main(line.split()) == 2
    assert f'; did you mean {near}?' in capsys.readouterr().err
    (tmp_path / near).rename('far')  # nothing is near any more
    assert main(line.split()) == 2
    assert 'did you mean' not in capsys.readouterr().err


def test_without_a_command_the_help_is_shown(capsys):
    assert main([]) == 2
    output = capsys.readouterr()
    assert output.out == '' and output.err.startswith('usage: trt-segmentation [-h]')
    assert 'Make a bundle from a network' in output.err


@pytest.mark.parametrize('name', ['command', 'node'])
def test_ctrl_c_while_modules_are_imported_gives_no_traceback(name, tmp_path):
    (tmp_path / 'argparse.py').write_text(
        'import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n')
    done = subprocess.run(
        [sys.executable, '-c', f'from trt_segmentation.start import {name}; {name}()'],
        env={**os.environ, 'PYTHONPATH': f'{tmp_path}:{ROOT}',
             '_ROS_WHEELS_BOOTSTRAP_COMPLETE': '1'},
        stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, '')


def test_nothing_is_imported_before_ctrl_c_is_taken():
    code = (f'import sys; sys.path.insert(0, {str(ROOT)!r}); before = {{*sys.modules}}; '
            'import trt_segmentation.start; print(*sorted({*sys.modules} - before))')
    done = subprocess.run([sys.executable, '-I', '-S', '-c', code], stdout=subprocess.PIPE,
                          text=True, check=True)
    assert {*done.stdout.split()} - {'_signal'} == {'trt_segmentation', 'trt_segmentation.start'}


def interrupted(work: str, path: Path | None = None) -> tuple[int, str]:
    """Run Python as the work of a command; return the command's exit code and standard error."""
    done = subprocess.run(command(work), text=True, timeout=60, stderr=subprocess.PIPE,
                          env=environment(path))
    return done.returncode, done.stderr


def command(work: str) -> list[str]:
    """Return what runs Python as the work of a command."""
    code = ('import os, signal, threading; from trt_segmentation import start; from '
            f'trt_segmentation.cli import seal\ndef main(args):\n    {work}\n    return 0\n'
            'seal.main = main; raise SystemExit(start.command())')
    return [sys.executable, '-c', code, 'seal', 'x']


def environment(path: Path | None = None) -> dict[str, str]:
    """Return the environment of a command, which looks for modules at a path first."""
    return {**os.environ, 'PYTHONPATH': os.pathsep.join([str(path or ROOT), *sys.path])}


SENTENCE = (130, 'trt-segmentation seal: interrupted\n')
SEND = 'os.kill(os.getpid(), signal.SIGINT)'
WAIT = 'threading.Event().wait(50)'


def test_ctrl_c_later_is_a_sentence():
    assert interrupted(f'{SEND}; {WAIT}') == SENTENCE


def test_sigterm_is_the_same_sentence_with_its_own_code():
    send = SEND.replace('SIGINT', 'SIGTERM')
    assert interrupted(f'{send}; {WAIT}') == (143, SENTENCE[1])
    put_off = f"type('Freed', (), {{'__del__': lambda self: {send} or [*range(99)]}})(); {WAIT}"
    assert interrupted(put_off) == (143, SENTENCE[1])


def test_ctrl_c_while_a_library_is_imported_is_not_its_absence(tmp_path):
    """As one in C does it, which makes of KeyboardInterrupt what Python makes of a failure."""
    (tmp_path / 'onnxruntime.py').write_text(
        f'import os, signal\ntry:\n    {SEND}\n    list(range(99))\n'
        'except KeyboardInterrupt:\n    raise ImportError("initialization failed")\n')
    work = ('from trt_segmentation.networks.session import import_onnxruntime; '
            f'import_onnxruntime(); {WAIT}')
    assert interrupted(work, tmp_path) == SENTENCE


def test_ctrl_c_pressed_again_and_again_while_a_library_is_imported_comes_once(tmp_path):
    """A second one would end what the first one has begun to tidy up."""
    (tmp_path / 'slow.py').write_text(
        f'import os, signal, time\nfor _ in range(5):\n    {SEND}\n    time.sleep(0.003)\n')
    work = f"""import _thread, time
    try:
        import slow; {WAIT}
    finally:
        while _thread._count():  # all that were put off have come
            time.sleep(0.001)
        os.write(2, b'tidy, ')"""
    assert interrupted(work, tmp_path) == (130, f'tidy, {SENTENCE[1]}')


def test_ctrl_c_in_a_destructor_is_not_lost():
    """Python prints what a destructor raises, and goes on."""
    work = f"type('Freed', (), {{'__del__': lambda self: {SEND} or [*range(99)]}})(); {WAIT}"
    assert interrupted(work) == SENTENCE


def test_ctrl_c_while_the_last_output_is_written_is_a_sentence():
    work = ("import io, sys; sent = []; sys.stdout = type('Out', (io.StringIO,), {'flush': lambda "
            f'self: sent or (sent.append(1), {SEND}, [*range(99)])}})()')
    assert interrupted(work) == SENTENCE


def test_what_else_a_destructor_raises_is_shown():
    code, said = interrupted("type('Freed', (), {'__del__': lambda self: 1 / 0})()")
    assert code == 0 and 'ZeroDivisionError' in said


def test_ctrl_c_while_python_ends_gives_no_traceback():
    code, said = interrupted(f'import atexit; atexit.register(lambda: {SEND} or [*range(99)])')
    assert (code, said) == (-signal.SIGINT, '')


def test_options_may_be_shortened_and_what_follows_two_dashes_is_a_path(tmp_path, capsys):
    assert main(['calibrate', str(tmp_path / 'none'), '--image', 'val']) == 2
    assert 'no such bundle directory' in capsys.readouterr().err
    assert main(['seal', '--', '--bundle']) == 2
    assert '--bundle: ' in capsys.readouterr().err


@pytest.fixture
def spaced(tmp_path, monkeypatch):
    """Return the relative path of a bundle that a shell would take for several words."""
    monkeypatch.chdir(tmp_path)
    run(write_bundle(tmp_path / "my bundle's $HOME", fcn()), pictures(4))
    return "my bundle's $HOME"


def commands_in(text):
    """Return the words of each command that a text tells to run, as a shell takes them."""
    return [shlex.split(part)[1:] for part in re.findall(r'trt-segmentation (?!\w+:).+', text)]


@pytest.mark.parametrize('words, damage', [
    (['build'], 'SHA256SUMS'), (['inspect'], 'model.yaml'), (['build'], 'golden'),
    (['seal'], 'model.yaml')])
def test_the_commands_that_are_told_run_whatever_is_in_a_path(spaced, words, damage, capsys):
    path = Path(spaced, damage)
    if damage == 'SHA256SUMS':
        path.unlink()
    elif damage == 'model.yaml':
        path.write_text(path.read_text() + 'input: {mean: [1, 2, 3]}\n')
    main([*words, spaced])
    output = capsys.readouterr()
    told = commands_in(output.out + output.err)
    assert told and all(spaced in command for command in told)


def test_the_next_step_of_a_preview_has_the_paths_that_it_was_given(spaced, capsys):
    write_pictures(Path('Bilder Straße'), 2)
    assert main(['preview', spaced, '--images', 'Bilder Straße', '--output', 'x.png']) == 0
    assert commands_in(capsys.readouterr().out) == [
        ['golden', spaced, '--images', 'OTHER']]  # these may be what it was calibrated with
    Path(spaced, 'calibration.cache').unlink()
    Path(spaced, 'SHA256SUMS').unlink()
    assert main(['preview', spaced, '--images', 'Bilder Straße', '--output', 'x.png']) == 0
    assert commands_in(capsys.readouterr().out) == [
        ['calibrate', spaced, '--images', 'Bilder Straße']]


@pytest.mark.parametrize(('line', 'message'), [
    ('calibrate b --images i --count 1e2', "argument --count: found '1e2', expected an integer: "
     'write 100'),
    ('calibrate b --images i --count 5.5', "argument --count: found '5.5', expected an integer"),
    ('calibrate b --images i --count five', "argument --count: found 'five', expected an integer, "
     'as 5'),
    ('calibrate b --images i --spacing 0,5', "argument --spacing: found '0,5', expected a number, "
     'as 0.5'),
    ('calibrate b --images i --spacing=-1', 'argument --spacing: found -1, expected 0 or more'),
    ('calibrate b --images i --percentile nan', "argument --percentile: found 'nan', expected a "
     'number, as 0.5'),
    ('calibrate b --images i --seed 99999999999999999999', 'argument --seed: found '
     '99999999999999999999, expected an integer of 32 bits'),
    ('replay b --bag c --output o --min-agreement 99', 'argument --min-agreement: found 99, '
     'expected a share 0..1: write 0.99'),
    ('replay b --bag c --output o --min-agreement 99%', 'argument --min-agreement: found 99%, '
     'expected a share 0..1: write 0.99')])
def test_what_to_write_for_a_number_is_said(line, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(line.split())
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(f': error: {message}')


@pytest.mark.parametrize(('environ', 'shown'), [
    ({'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0', 'LC_ALL': 'C'}, r'\xdc \u20ac'),
    ({'PYTHONIOENCODING': 'ascii'}, r'\xdc \u20ac'), ({'PYTHONUTF8': '1'}, 'Ü €')])
def test_a_name_is_escaped_in_one_way_whatever_the_language_is(environ, shown, tmp_path):
    run = subprocess.run(
        [sys.executable, '-m', 'trt_segmentation', 'calibrate', 'Ü €', '--images', 'Ü €'],
        cwd=tmp_path, env={**os.environ, **environ}, capture_output=True, check=False)
    assert f': {shown}: no such bundle directory' in run.stderr.decode()
    run = subprocess.run(
        [sys.executable, '-m', 'trt_segmentation', 'seal', b'\xff'],
        cwd=tmp_path, env={**os.environ, **environ}, capture_output=True, check=False)
    assert r': \xff: no such bundle directory' in run.stderr.decode()
