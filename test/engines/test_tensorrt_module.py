# SPDX-License-Identifier: Apache-2.0
"""A machine without TensorRT, or with a broken one, says what is wrong and what to do."""

import sys

import pytest

from trt_segmentation.engines import choose_backend
from trt_segmentation.engines.tensorrt.module import import_tensorrt, Log
from trt_segmentation.errors import InputError

NAMES = ('tensorrt', 'tensorrt_bindings', 'tensorrt_rtx', 'tensorrt_rtx_bindings')


@pytest.fixture(autouse=True)
def installed(tmp_path, monkeypatch):
    """Return a function that installs a module of a source text; nothing else is found."""
    for name in NAMES:
        monkeypatch.setitem(sys.modules, name, None)

    def install(name, source):
        monkeypatch.delitem(sys.modules, name)
        (tmp_path / f'{name}.py').write_text(source)
        monkeypatch.setattr(sys, 'path', [str(tmp_path), *sys.path])
    return install


@pytest.mark.parametrize('name, hint', [('tensorrt', 'apt install python3-libnvinfer'),
                                        ('tensorrt_rtx', 'pip install tensorrt-rtx')])
def test_what_is_not_installed_is_named_with_how_to_get_it(name, hint):
    with pytest.raises(InputError, match=f"'{name}' is not installed.*{hint}"):
        import_tensorrt(name)
    with pytest.raises(InputError, match=f'backend {name} cannot be used here: .*{hint}'):
        choose_backend(name)


def test_the_bindings_alone_are_enough(installed):
    installed('tensorrt_bindings', 'class Builder: pass\n__version__ = "10.3.0"')
    assert import_tensorrt('tensorrt').__version__ == '10.3.0'


def test_a_library_that_cannot_be_loaded_is_named(installed):
    installed('tensorrt', 'raise ImportError("libnvinfer.so.10: cannot open shared object file")')
    with pytest.raises(InputError, match=r'cannot be loaded: libnvinfer.so.10'):
        import_tensorrt('tensorrt')


def test_a_module_that_it_needs_is_named(installed):
    installed('tensorrt', 'import tensorrt_surely_missing')
    with pytest.raises(InputError, match="it needs 'tensorrt_surely_missing'"):
        import_tensorrt('tensorrt')


def test_a_folder_of_that_name_is_not_taken_for_it(tmp_path, monkeypatch):
    (tmp_path / 'tensorrt').mkdir()
    monkeypatch.delitem(sys.modules, 'tensorrt')
    monkeypatch.setattr(sys, 'path', [str(tmp_path), *sys.path])
    with pytest.raises(InputError, match='is not installed'):
        import_tensorrt('tensorrt')


def test_the_log_keeps_the_newest_errors_and_each_warning_once():
    log = Log()
    for i in range(5):
        log.add('ERROR', f'error {i}')
        log.add('WARNING', 'the same')
        log.add('VERBOSE', 'calibration of nothing')
    assert log.reason() == 'error 2 | error 3 | error 4'
    assert list(log.warnings) == ['the same'] and not log.evidence
    assert Log().reason() == 'the library logged no error'
