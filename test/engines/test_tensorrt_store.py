# SPDX-License-Identifier: Apache-2.0
"""What building adds to the store: timing caches, the last good plan, quantization."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from support.bundles import small_bundle

from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.engines import build as building
from trt_segmentation.engines import opening, Plan
from trt_segmentation.engines.onnxruntime import OnnxRuntime
from trt_segmentation.engines.store import Store
from trt_segmentation.engines.summary import deciding, describe
from trt_segmentation.errors import CheckFailed, EngineMissing, InputError
from trt_segmentation.networks.layers import Layer
from trt_segmentation.system import files


@dataclass
class Backend(OnnxRuntime):
    """ONNX Runtime that has what TensorRT has: a version to change, and a timing cache."""

    instant = False
    version: str = '1'
    int8: bool = True
    given: list = field(default_factory=list)

    def identity(self) -> Mapping[str, Any]:
        return {'version': self.version, 'gpu': 'a'}

    def build(self, bundle, precision, options):
        self.given.append(options)
        explicit = type(options)(report=options.report)
        plan = super().build(bundle, precision, explicit)
        layers = plan.layers if self.int8 else tuple(
            Layer(layer.name, layer.op, layer.macs, 'fp16', 'the engine runs it in fp16')
            for layer in plan.layers)
        # As two builds of TensorRT, these differ in bytes.
        return Plan(plan.data + b'', layers, ('warning: w',),
                    options.timing_cache + b'x' + self.version.encode())


@pytest.fixture(scope='module')
def path(tmp_path_factory):
    return small_bundle(tmp_path_factory.mktemp('bundle'))


@pytest.fixture
def backend(monkeypatch):
    backend = Backend()
    for module in (building, opening):
        monkeypatch.setattr(module, 'choose_backend', lambda name, dla=None: backend)
    return backend


def build(path, store, **options):
    return building.build(Bundle.open(path), store=store, **options)


def reopened(bundle, store):
    with opening.open_segmenter(bundle, store=store, build_missing=False) as segmenter:
        return segmenter.record


def test_the_timing_cache_is_kept_for_this_machine_and_recorded(path, backend, tmp_path):
    first = build(path, tmp_path / 'store')
    build(path, tmp_path / 'store', force=True)
    build(path, tmp_path / 'store', precision='fp32')
    assert [options.timing_cache for options in backend.given] == [b'', b'x1', b'x1x1']
    assert first.record.timing_cache_sha256 == files.sha256_bytes(b'x1')
    backend.version = '2'  # another version's timings are of no use
    build(path, tmp_path / 'store')
    assert backend.given[-1].timing_cache == b''


def test_a_changed_timing_cache_is_not_used(path, backend, tmp_path):
    build(path, tmp_path / 'store')
    cache, = (file for file in (tmp_path / 'store').glob('*/plan') if file.read_bytes() == b'x1')
    cache.write_bytes(b'x2')
    build(path, tmp_path / 'store', force=True)
    assert backend.given[-1].timing_cache == b''


def test_the_plan_built_last_is_the_one_that_is_opened(path, backend, tmp_path, monkeypatch):
    times = iter(f'2026-01-01T00:00:0{i}+00:00' for i in range(9))

    class Clock(building.datetime):
        @classmethod
        def now(cls, zone):
            return cls.fromisoformat(next(times))

    monkeypatch.setattr(building, 'datetime', Clock)
    store = tmp_path / 'store'
    keys = {quantization: build(path, store, quantization=quantization).key
            for quantization in ('explicit', 'implicit')}
    assert len(set(keys.values())) == 2
    assert [options.quantization for options in backend.given] == ['explicit', 'implicit']
    bundle = Bundle.open(path)
    assert reopened(bundle, store).key == keys['implicit']
    build(path, store, quantization='explicit', force=True)
    assert reopened(bundle, store).key == keys['explicit']


def test_prune_keeps_the_new_plan_and_the_last_good_one(path, backend, tmp_path):
    store, keys = tmp_path / 'store', []
    for version in '1234':
        backend.version = version
        keys.append(build(path, store).key)
    other = build(path, store, precision='fp32').key
    lines = []
    backend.version = '5'
    keys.append(build(path, store, prune=True, report=lines.append).key)
    left = [key for key in keys if Store(store).record(key)]
    assert keys[-1] in left and len(left) == 2
    assert Store(store).record(other)  # another precision's is not replaced
    assert sum('removed the older plan' in line for line in lines) == 3


def test_a_build_that_fails_leaves_the_last_good_plan(path, backend, tmp_path):
    store = tmp_path / 'store'
    good = build(path, store)
    plan = Store(store).plan(good.key)
    backend.int8 = False
    with pytest.raises(building.Refused, match='below min_int8_share') as refused:
        build(path, store, force=True)
    assert Store(store).plan(good.key) == plan
    lines = deciding(refused.value.record)
    assert any(line.startswith('fp16') and 'the engine runs it in fp16' in line
               for line in lines), lines


def test_float_that_was_allowed_once_is_not_taken_by_a_build_that_does_not_allow_it(
        path, backend, tmp_path):
    store, bundle = tmp_path / 'store', Bundle.open(path)
    backend.int8 = False
    waived = build(path, store, allow_float=True)
    failure, = waived.record.acceptance.waived
    text = failure.text
    assert failure.kind == 'int8_share'
    assert text.startswith('0.0% of the convolution work is in INT8')
    assert f'WAIVED     {text}, accepted with --allow-float' in describe(waived.record)
    assert build(path, store, allow_float=True).reused
    assert reopened(bundle, store).acceptance.waived == (failure,)  # which the node warns of
    with pytest.raises(CheckFailed, match='below min_int8_share'):
        build(path, store)
    with pytest.raises(EngineMissing):  # from then on it is not opened either
        reopened(bundle, store)
    assert len(backend.given) == 1  # it was judged again, not built again
    build(path, store, allow_float=True)
    reopened(bundle, store)


def test_an_interrupted_build_leaves_nothing(path, backend, tmp_path, monkeypatch):
    def interrupted(bundle, precision, options):
        raise KeyboardInterrupt

    monkeypatch.setattr(backend, 'build', interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(path, tmp_path / 'store')
    assert [file.name for file in (tmp_path / 'store').iterdir()] == ['.lock']


def test_the_record_says_it_all_in_lines(path, backend, tmp_path):
    built = build(path, tmp_path / 'store')
    text = '\n'.join(describe(built.record))
    for part in (built.key, 'int8 for onnxruntime (version 1, gpu a), explicit quantization',
                 'agreement', 'score2_node', 'transposed convolutions stay in float',
                 'warning: w'):
        assert part in text


def test_the_cpu_has_no_implicit_quantization(path, tmp_path):
    with pytest.raises(InputError, match='onnxruntime backend has no implicit'):
        building.build(Bundle.open(path), backend='onnxruntime', quantization='implicit',
                       store=tmp_path / 'store')
