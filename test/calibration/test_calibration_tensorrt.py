# SPDX-License-Identifier: Apache-2.0
"""TensorRT's own calibrators, driven by hand as the binding drives them."""

import struct
from types import SimpleNamespace

import numpy as np
import pytest

from trt_segmentation.calibration.tensorrt import calibrate, make_calibrator, Stream
from trt_segmentation.engines.tensorrt.module import Log
from trt_segmentation.errors import InputError

CACHE = b'TRT-101300-EntropyCalibration2\nimage: 3c010a14\n'


class Memory:
    """Device memory that remembers."""

    def __init__(self):
        self.blocks = {}
        self.freed = []
        self.written = []

    def allocate(self, nbytes):
        address = 0x7000 + len(self.blocks) * 0x1000
        self.blocks[address] = nbytes
        return address

    def write(self, address, values):
        assert values.nbytes <= self.blocks[address] and values.flags.c_contiguous
        self.written.append(values.copy())

    def free(self, address):
        self.freed.append(address)


class Base:
    """A calibrator class as pybind11 makes it: its __init__ must be called."""

    def __init__(self):
        self.is_initialized = True


def tensors(number):
    return [np.full((1, 3, 2, 4), i, np.float32) for i in range(number)]


def through_the_binding(calibrator, names=('image',)):
    """Call a calibrator as TensorRT's binding does: pointers copied, exceptions swallowed."""
    assert calibrator.is_initialized
    assert calibrator.get_batch_size() >= 1
    try:
        assert calibrator.read_calibration_cache() is None
        pointers = []
        while True:
            found = calibrator.get_batch(list(names))
            if not found:
                break
            # memcpy of one pointer a name, whatever the list's length.
            pointers.append(struct.unpack(f'{len(names)}Q', struct.pack('Q' * len(found), *found)))
    except Exception as error:
        print(f'[ERROR] Exception caught in get_batch(): {error}')
    memory = bytearray(CACHE)
    calibrator.write_calibration_cache(memoryview(memory))
    memory[:] = bytes(len(memory))  # the library's buffer does not outlive the call
    return pointers


@pytest.fixture
def trt():
    return SimpleNamespace(IInt8EntropyCalibrator2=Base, IInt8MinMaxCalibrator=Base)


@pytest.mark.parametrize('method', ['entropy', 'minmax'])
def test_gives_every_image_once(trt, method):
    memory = Memory()
    stream = Stream('image', iter(tensors(6)), 2, memory)
    pointers = through_the_binding(make_calibrator(trt, method, stream, 2))
    assert len(pointers) == 3 and set(pointers) == {(0x7000,)}
    np.testing.assert_array_equal(np.concatenate(memory.written), np.concatenate(tensors(6)))
    assert stream.result(Log()).to_bytes() == CACHE
    stream.close()
    assert memory.freed == [0x7000] and len(memory.blocks) == 1


@pytest.mark.parametrize('error', [ValueError('broken image'), KeyboardInterrupt()])
def test_what_the_images_raise_comes_out_after_the_build(trt, error):
    def images():
        yield from tensors(1)
        raise error

    stream = Stream('image', images(), 1, Memory())
    calibrator = make_calibrator(trt, 'entropy', stream, 1)
    assert len(through_the_binding(calibrator)) == 1
    assert stream.cache == CACHE  # TensorRT wrote one all the same
    with pytest.raises(type(error)):
        stream.result(Log())
    assert calibrator.get_batch(['image']) is None


def test_part_of_a_batch_is_no_batch(trt):
    stream = Stream('image', iter(tensors(5)), 2, Memory())
    through_the_binding(make_calibrator(trt, 'entropy', stream, 2))
    with pytest.raises(InputError, match='the last batch has 1 of 2'):
        stream.result(Log())


def test_other_inputs_than_the_image(trt):
    stream = Stream('image', iter(tensors(2)), 1, Memory())
    assert make_calibrator(trt, 'entropy', stream, 1).get_batch(['image', 'speed']) is None
    with pytest.raises(InputError, match='asks for the inputs image, speed'):
        stream.result(Log())


def test_images_that_were_not_asked_for(trt):
    stream = Stream('image', iter(tensors(3)), 1, Memory())
    stream.get_batch(['image'])
    stream.write_cache(CACHE)
    with pytest.raises(InputError, match='the first 1 batches only'):
        stream.result(Log())


def test_no_cache_was_written(trt):
    stream = Stream('image', iter(tensors(1)), 1, Memory())
    with pytest.raises(InputError, match='did not calibrate: the library logged no error'):
        stream.result(Log())


class Library:
    """As much of a TensorRT as a calibration touches; its build calls the calibrator."""

    __version__ = '10.3.0'

    class ILogger:
        def __init__(self):
            """Do nothing."""

    IInt8EntropyCalibrator2 = IInt8MinMaxCalibrator = Base
    NetworkDefinitionCreationFlag = SimpleNamespace(__members__={'EXPLICIT_BATCH': 0})
    BuilderFlag = SimpleNamespace(INT8='INT8')

    def __init__(self, parses=True):
        self.parses = parses
        self.config = SimpleNamespace(set_flag=lambda flag: None, builder_optimization_level=3)
        self.error = SimpleNamespace(desc=lambda: 'no such operator')

    def Builder(self, logger):  # noqa: N802
        return SimpleNamespace(
            create_network=lambda mask: f'network {mask}',
            create_builder_config=lambda: self.config,
            build_serialized_network=lambda network, config: through_the_binding(
                config.int8_calibrator))

    def OnnxParser(self, network, logger):  # noqa: N802
        return SimpleNamespace(parse=lambda model: self.parses, num_errors=1,
                               get_error=lambda i: self.error)


def test_whole_calibration():
    memory = Memory()
    stream = Stream('image', iter(tensors(4)), 2, memory)
    assert calibrate(Library(), b'model', 'entropy', stream, 2).to_bytes() == CACHE
    assert stream.batches == 2 and memory.freed


def test_network_that_tensorrt_cannot_read():
    with pytest.raises(InputError, match='cannot read the network: no such operator'):
        calibrate(Library(parses=False), b'', 'minmax', Stream('x', [], 1, Memory()), 1)


def test_tensorrt_without_calibrators():
    with pytest.raises(InputError, match='TensorRT 11.4.0 has no calibrators'):
        calibrate(SimpleNamespace(__version__='11.4.0'), b'', 'entropy',
                  Stream('x', [], 1, Memory()), 1)
