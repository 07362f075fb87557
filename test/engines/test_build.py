# SPDX-License-Identifier: Apache-2.0
"""Building, proving, storing and finding engines; what a changed byte does."""

from dataclasses import replace
import json
import multiprocessing
import os
import re
import shutil
import stat
import subprocess
import sys
import time

import cv2
import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
import pytest
from support.bundles import small_bundle, SMALL_LIMITS
from support.networks import Builder, fcn, infer_all, write_bundle
import yaml

from trt_segmentation.bundles import golden
from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.bundles.cache import Cache
from trt_segmentation.engines import choose_backend
from trt_segmentation.engines.acceptance import _below, self_test
from trt_segmentation.engines.build import build, Refused
from trt_segmentation.engines.onnxruntime import vehicle_emulation
from trt_segmentation.engines.opening import open_segmenter
from trt_segmentation.engines.record import CLASS_AGREEMENT, Failure
from trt_segmentation.engines.store import default_path, Store
from trt_segmentation.engines.summary import deciding, refusal
from trt_segmentation.engines.tensorrt.backend import network
from trt_segmentation.errors import CheckFailed, EngineMissing, InputError
from trt_segmentation.system import files


@pytest.fixture
def bundle(tmp_path):
    return small_bundle(tmp_path)


@pytest.fixture
def store(tmp_path):
    return tmp_path / 'store'


def edit(path, **acceptance):
    """Change the acceptance of a bundle as a user would: by hand, then seal."""
    document = yaml.safe_load((path / 'model.yaml').read_text())
    document['acceptance'].update(acceptance)
    (path / 'model.yaml').write_text(yaml.safe_dump(document))
    files.write_sums(path)


def built(bundle, store, **options):
    return build(Bundle.open(bundle), backend='onnxruntime', store=store, **options)


def reopened(bundle, store, precision='int8'):
    """Return the record of the engine that is opened where none may be built."""
    with open_segmenter(bundle, backend='onnxruntime', precision=precision, store=store,
                        build_missing=False) as segmenter:
        return segmenter.record


def test_build_proves_stores_and_finds_again(bundle, store):
    first = built(bundle, store)
    assert not first.reused and built(bundle, store).reused
    record = json.loads((store / first.key / 'record.json').read_text())
    plan = (store / first.key / 'plan').read_bytes()
    assert record['plan_sha256'] == files.sha256_bytes(plan)
    assert first.key == files.sha256_json(record['inputs'])
    assert record['inputs']['model'] == files.sha256_file(bundle / 'model.onnx')
    assert 0.5 <= record['acceptance']['agreement'] <= 1
    assert stat.S_IMODE(store.stat().st_mode) == 0o700


def test_segmenter_gives_the_masks_of_the_record(bundle, store):
    with open_segmenter(bundle, backend='onnxruntime', store=store) as segmenter:
        assert self_test(segmenter, golden.contents(bundle / 'golden')) == ''
        image = next(golden.read(bundle / 'golden'))[1]
        masks = segmenter.segment(image, ('classes', 'color', 'confidence'))
        palette = segmenter.spec.labels.palette_bgr
        assert (masks.color == palette[masks.classes]).all()
        assert list(masks.stage_ms) == ['preprocess', 'inference', 'postprocess']
        assert segmenter.segment(image, ('classes',)).color is None
        with pytest.raises(InputError, match="want: found 'depth'"):
            segmenter.segment(image, ('depth',))


def test_fp32_segmenter_is_the_network_by_its_formula(bundle, store):
    with open_segmenter(bundle, backend='onnxruntime', precision='fp32', store=store) as segmenter:
        image = next(golden.read(bundle / 'golden'))[1]
        found = segmenter.segment(image).classes
    spec = Bundle.open(bundle).spec
    tensor = ((image.astype(np.float32) - np.float32(spec.input.mean))
              .transpose(2, 0, 1)[None]).astype(np.float32)
    logits = infer_all(fcn(), tensor)['logits'][0]
    full = np.stack([cv2.resize(plane, (64, 32)) for plane in logits])
    top = np.sort(full, axis=0)
    clear = top[-1] - top[-2] > 1e-4
    assert clear.mean() > 0.99
    assert (found == full.argmax(0))[clear].all()


def test_golden_masks_are_what_the_float_engine_gives(bundle, store):
    with open_segmenter(bundle, backend='onnxruntime', precision='fp32', store=store) as segmenter:
        for _, image, mask in golden.read(bundle / 'golden'):
            assert (segmenter.segment(image).classes == mask).all()


def test_an_engine_that_disagrees_is_refused_and_not_stored(bundle, store):
    edit(bundle, min_agreement=1.0)
    with pytest.raises(CheckFailed, match='agreement .* is below min_agreement 1.0'):
        built(bundle, store)
    assert [path.name for path in store.iterdir()] == ['.lock']


def test_too_little_int8_is_refused_with_the_layers_that_stayed_in_float(bundle, store):
    edit(bundle, min_int8_share=0.9)
    with pytest.raises(CheckFailed, match=r'convolution work is in INT8.*up3_node \(transposed'):
        built(bundle, store)


def test_changed_acceptance_proves_anew_without_building(bundle, store):
    first = built(bundle, store)
    edit(bundle, min_agreement=0.4)
    with pytest.raises(InputError, match='no proven int8 engine'):
        reopened(bundle, store)
    lines = []
    second = built(bundle, store, report=lines.append)
    assert second.key == first.key and second.record.built == first.record.built
    assert lines[0] == 'proving the int8 engine of onnxruntime that is in the store'


def test_without_golden_frames_only_on_request(bundle, store):
    shutil.rmtree(bundle / 'golden')
    files.write_sums(bundle)
    with pytest.raises(CheckFailed, match='no golden frames'):
        built(bundle, store)
    assert built(bundle, store, allow_unproven=True).record.acceptance.agreement is None


def test_who_has_not_calibrated_is_sent_to_calibrate_and_not_for_golden_frames(bundle, store):
    shutil.rmtree(bundle / 'golden')
    for name in ('calibration.cache', 'calibration.json', 'SHA256SUMS'):
        (bundle / name).unlink()
    with pytest.raises(InputError, match='no calibration cache; run: trt-segmentation calibrate'):
        built(bundle, store)


def test_a_changed_byte_of_a_plan_is_never_run(bundle, store):
    key = built(bundle, store).key
    plan = store / key / 'plan'
    data = bytearray(plan.read_bytes())
    data[len(data) // 2] ^= 1
    plan.write_bytes(data)
    with pytest.raises(EngineMissing, match='its bytes are not those of its record'):
        reopened(bundle, store)
    lines = []
    assert not built(bundle, store, report=lines.append).reused
    assert 'its bytes are not those of its record' in lines[0]
    plan.write_bytes(data)
    open_segmenter(bundle, backend='onnxruntime', store=store).close()  # builds it anew
    reopened(bundle, store)


@pytest.mark.parametrize('damage', [
    lambda record: '{"key":',
    lambda record: '[' * 100_000,
    lambda record: '[]',
    lambda record: json.dumps({**record, 'schema': 1}),
    lambda record: json.dumps({key: value for key, value in record.items() if key != 'built'}),
    lambda record: json.dumps({**record, 'acceptance': None}),
    lambda record: json.dumps({**record, 'acceptance': {**record['acceptance'], 'frames': [1]}}),
    lambda record: json.dumps({**record, 'inputs': {}}),
    lambda record: json.dumps({**record, 'layers': [{'name': 'conv'}]}),
])
def test_a_damaged_record_is_built_anew(bundle, store, damage):
    key = built(bundle, store).key
    path = store / key / 'record.json'
    record = json.loads(path.read_text())
    path.write_text(damage(record))
    assert Store(store).record(key) is None
    assert not built(bundle, store, prune=True).reused
    assert json.loads(path.read_text())['plan_sha256'] == record['plan_sha256']


@pytest.mark.parametrize('name', ['model.onnx', 'model.yaml', 'calibration.cache',
                                  'calibration.json', 'golden/000.png', 'golden/000.mask.png'])
def test_a_changed_byte_of_a_bundle_is_refused(bundle, name):
    path = bundle / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=f'{name.split("/")[-1]}: sha256 is'):
        Bundle.open(bundle)


def test_a_cache_of_another_network_is_refused_even_when_sealed(bundle, store):
    write_bundle(bundle, fcn(seed=1), acceptance=SMALL_LIMITS)
    files.write_sums(bundle)
    with pytest.raises(InputError, match=r'calibration.json.*model'):
        built(bundle, store)


def test_a_cache_of_another_preprocessing_is_refused(bundle, store):
    write_bundle(bundle, fcn(), acceptance=SMALL_LIMITS, input={'mean': [0, 0, 0]})
    files.write_sums(bundle)
    with pytest.raises(InputError, match=r'calibration.json.*preprocessing'):
        built(bundle, store)


def test_a_store_that_others_can_write_to_is_refused(tmp_path):
    path = tmp_path / 'open'
    path.mkdir()
    path.chmod(0o777)
    with pytest.raises(InputError, match='others can write to it.*chmod 700'):
        Store(path)


def test_a_store_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(InputError, match='cannot be made'):
        Store(tmp_path / 'file' / 'store')


def test_default_store_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.delenv('TRT_SEGMENTATION_STORE', raising=False)
    assert default_path() == tmp_path / 'trt_segmentation'
    monkeypatch.setenv('TRT_SEGMENTATION_STORE', '/other')
    assert str(default_path()) == '/other'


def test_a_store_of_another_user_is_refused(tmp_path, monkeypatch):
    path = tmp_path / 'store'
    path.mkdir(mode=0o700)
    mine = path.stat().st_uid
    monkeypatch.setattr(os, 'geteuid', lambda: mine + 1)
    if mine:  # root's store is trusted: root can change anything anyway
        with pytest.raises(InputError, match=f'belongs to another user .uid {mine}.'):
            Store(path, writable=False)
    else:
        Store(path, writable=False)
        os.chown(path, 12345, -1)
        with pytest.raises(InputError, match='belongs to another user .uid 12345.'):
            Store(path)


def test_a_store_that_cannot_be_written_can_be_opened(bundle, store, monkeypatch):
    key = built(bundle, store).key
    before = sorted(store.rglob('*'))
    # Root may write anywhere, so permissions alone would not show it.
    monkeypatch.setattr(os, 'access', lambda path, mode: False)
    assert reopened(bundle, store).key == key
    assert sorted(store.rglob('*')) == before
    with pytest.raises(InputError, match='not writable'):
        built(bundle, store)


def test_a_store_that_is_not_there_is_not_made_by_opening(bundle, store):
    with pytest.raises(EngineMissing, match='no proven int8 engine'):
        reopened(bundle, store)
    assert not store.exists()


def test_opens_at_once_on_an_empty_store_wait_for_one_build(bundle, store):
    program = ("import sys; from trt_segmentation import open_segmenter; "
               "s = open_segmenter(sys.argv[1], backend='onnxruntime', store=sys.argv[2]); "
               "print(s.record.key, s.record.built, s.record.build_seconds)")
    found = [subprocess.Popen([sys.executable, '-c', program, bundle, store], text=True,
                              stdout=subprocess.PIPE) for _ in range(4)]
    outputs = {process.communicate()[0] for process in found}
    assert len(outputs) == 1 and outputs != {''}, outputs
    assert all(process.returncode == 0 for process in found)


def test_a_builder_says_that_it_waits_for_another(bundle, store):
    holding = multiprocessing.get_context('spawn').Process(target=hold, args=(store,))
    holding.start()
    while not (store / 'held').exists():
        assert holding.is_alive()
    lines = []

    def report(line):
        lines.append(line)
        (store / 'held').unlink(missing_ok=True)  # the other one may go on

    assert not built(bundle, store, report=report).reused
    assert re.fullmatch(r'waiting for another process that builds into store '
                        rf'{re.escape(str(store))}: \d+ s', lines[0])
    holding.join()


def hold(store):
    with Store(store).lock(print):
        (store / 'held').touch()
        while (store / 'held').exists():
            time.sleep(0.01)


def test_what_a_killed_builder_left_goes_with_the_next_build(bundle, store):
    built(bundle, store)
    left = store / '.0123.0123456789ab'
    left.mkdir()
    (left / 'plan').write_bytes(b'half')
    built(bundle, store)
    assert not left.exists()


def test_auto_takes_the_faster_and_says_so(bundle, store):
    lines = []
    result = built(bundle, store, precision='auto', report=lines.append)
    chosen = result.record.precision
    assert chosen in ('int8', 'fp32') and lines[-1].endswith(f'taking {chosen}')


@pytest.mark.parametrize(('int8_ms', 'chosen'), [(9.0, 'int8'), (10.1, 'int8'), (10.3, 'fp32')])
def test_noise_does_not_choose_float(bundle, store, monkeypatch, int8_ms, chosen):
    monkeypatch.setattr('trt_segmentation.engines.build.by_turns', lambda calls: [int8_ms, 10.0])
    lines = []
    assert built(bundle, store, precision='auto').record.precision == chosen
    built(bundle, store, force=True, report=lines.append)
    assert any('INT8 is slower' in line for line in lines) == (chosen == 'fp32')


def test_int8_that_is_slower_is_said_with_both_figures(bundle, store, monkeypatch):
    monkeypatch.setattr('trt_segmentation.engines.build.by_turns', lambda calls: [12.0, 9.876])
    lines = []
    built(bundle, store, report=lines.append)
    assert lines[-1].startswith('warning: int8 takes 12.00 ms and fp32 9.88 ms here')


@pytest.mark.parametrize('version, old', [
    ('1.17.3', True), ('1.22.0', True), ('1.23.0', False), ('1.32.0', False), ('2.0', False)])
def test_an_old_library_is_blamed_and_not_the_network(bundle, store, version, old):
    edit(bundle, min_int8_share=0.9)
    with pytest.raises(Refused, match='or build with --allow-float') as refused:
        built(bundle, store)
    record = refused.value.record
    identity = {**record.inputs.identity, 'version': version}
    said = refusal(replace(record, inputs=replace(record.inputs, identity=identity)))
    assert (f'ONNX Runtime {version} is old' in said) is old
    assert ('lower acceptance.min_int8_share' in said) is not old


def test_nobody_is_told_to_do_what_was_done(bundle, store):
    edit(bundle, min_agreement=1.0)
    lines = []
    built(bundle, store, precision='auto', report=lines.append)
    refused, = (line for line in lines if line.startswith('warning: '))
    assert refused.endswith('; calibrate with --tune')
    with pytest.raises(Refused, match='with --tune, or build with --precision auto') as found:
        built(bundle, store)
    record = found.value.record
    assert '--tune' not in refusal(record, tuned=True)
    assert '--precision' in refusal(record, tuned=True)
    assert refusal(record, tuned=True, auto=True).endswith(
        ('would be accepted', 'would be refused too', '1.0'))


@pytest.mark.parametrize('value, limit, said', [
    (0.5, 0.9, '0.5000'), (0.99989, 0.9999, '0.99989'),
    (0.99986, 0.9999, '0.99986'), (float('nan'), 0.9, 'nan')])
def test_what_is_below_a_limit_is_shown_below_it(value, limit, said):
    sentence = _below('agreement', value, 'min_agreement', limit)
    shown = sentence.removeprefix('agreement ').partition(' ')[0]
    assert sentence == f'agreement {shown} is below min_agreement {limit}'
    assert not float(shown) >= limit and shown == said


def test_a_refusal_says_a_cause_once(bundle, store):
    edit(bundle, min_agreement=1.0)
    with pytest.raises(Refused) as found:
        built(bundle, store)
    assert "vehicle's arithmetic" in str(found.value)
    edit(bundle, min_agreement=0.0, min_class_agreement=0.0, min_int8_share=1.0)
    with pytest.raises(Refused) as found:
        built(bundle, store)
    assert 'would be refused too;' in str(found.value)  # for the same, which is said once
    assert str(found.value).count('below min_int8_share') == 1


def test_a_refusal_names_the_worst_classes_and_the_report_all_of_them(bundle, store):
    edit(bundle, min_agreement=1.0)
    with pytest.raises(Refused) as found:
        built(bundle, store)
    record = found.value.record
    shares = {f'class {i}': i / 10 for i in range(10)}
    acceptance = replace(record.acceptance, classes=shares, vehicle=None, failures=tuple(
        Failure(CLASS_AGREEMENT, f'{name} is low', name) for name in shares))
    record = replace(record, acceptance=acceptance)
    said, report = refusal(record), deciding(record)
    for i in range(10):
        assert (f'class {i} is low' in said) == (i < 3)
    assert report[:10] == [f'because    class {i} is low' for i in range(10)]
    assert 'and 7 more classes below it' in said


@pytest.mark.parametrize('rest', [1, 100])
def test_what_a_network_sees_is_looked_at_before_it_is_tuned(bundle, store, rest):
    edit(bundle, min_agreement=1.0)
    with pytest.raises(Refused) as refused:
        built(bundle, store)
    record = refused.value.record
    said = refusal(replace(record, acceptance=replace(
        record.acceptance, pixels={'road': 999, 'sky': rest, 'car': 0})))
    assert ('trt-segmentation preview' in said) is (rest == 1)
    assert ('calibrate with --tune' in said) is (rest == 100)


def test_auto_takes_what_is_accepted_if_int8_is_not(bundle, store):
    edit(bundle, min_int8_share=0.9)
    lines = []
    result = built(bundle, store, precision='auto', report=lines.append)
    assert result.record.precision == 'fp32'
    refused, = (line for line in lines if line.startswith('warning: '))
    assert 'below min_int8_share' in refused and '--allow-float' in refused
    edit(bundle, min_agreement=1.0)
    with open_segmenter(bundle, backend='onnxruntime', precision='auto', store=store) as segmenter:
        assert segmenter.record.precision == 'fp32'


def test_a_network_that_cannot_run_is_not_stored_without_golden_frames_either(tmp_path, store):
    b = Builder(('h', 'w'))
    x = b.conv('image', 'half', 3, 8, strides=[2, 2])
    x = b.conv(x, 'quarter', 8, 8, strides=[2, 2])
    up = b.transposed(x, 'up', 8, 8)  # 16 rows, and the skip has 15
    b.node('Add', [up, 'half'], 'logits')
    model = b.model('logits', shape=['N', 8, 'h', 'w'])
    labels = [{'name': f'c{i}', 'train_id': i, 'color': [i, i, i]} for i in range(8)]
    path = write_bundle(tmp_path / 'bundle', model, labels=labels, input={'size': [30, 60]})
    with pytest.raises(InputError, match="cannot run on input 'image' of shape 1x3x30x60"):
        built(path, store, precision='fp32', allow_unproven=True)
    assert not [file for file in store.iterdir() if file.name != '.lock']


def test_unknown_precision_and_backend_are_named(bundle, store):
    with pytest.raises(InputError, match='fp16.*expected int8 or fp32'):
        built(bundle, store, precision='fp16')
    with pytest.raises(InputError, match="backend: found 'cuda'"):
        choose_backend('cuda')


def test_auto_never_leaves_a_gpu_unused_in_silence(monkeypatch):
    from trt_segmentation import engines
    monkeypatch.setattr(engines, 'nvidia_device', lambda: '/dev/nvidia0')
    if choose_unavailable('tensorrt') and choose_unavailable('tensorrt_rtx'):
        with pytest.raises(InputError, match='/dev/nvidia0.*--backend onnxruntime'):
            choose_backend('auto')
    assert choose_backend('onnxruntime').name == 'onnxruntime'


def test_a_gpu_that_is_hidden_from_cuda_is_none(monkeypatch):
    from trt_segmentation import engines
    monkeypatch.setattr(engines.Path, 'exists', lambda path: str(path) == '/dev/nvidia0')
    for hidden in ('', '-1'):
        monkeypatch.setenv('CUDA_VISIBLE_DEVICES', hidden)
        assert engines.nvidia_device() == ''
    for shown in ('0', 'GPU-8f3c2d10'):
        monkeypatch.setenv('CUDA_VISIBLE_DEVICES', shown)
        assert engines.nvidia_device() == '/dev/nvidia0'
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES')
    assert engines.nvidia_device() == '/dev/nvidia0'


def choose_unavailable(name):
    try:
        choose_backend(name)
    except InputError:
        return True
    return False


def test_vehicle_emulation_quantizes_as_tensorrt_does(bundle):
    """The graph that TensorRT gets, computed by ONNX's own reference implementation."""
    opened = Bundle.open(bundle)
    tensor = np.random.default_rng(3).normal(0, 50, (2, 3, 32, 64)).astype(np.float32)
    data, layers = network(opened, 'int8', 'explicit', strongly_typed=False)
    model = onnx.load_from_string(data)
    model.opset_import[0].version = 19  # the same operators; the reference begins with it
    reference = ReferenceEvaluator(model)
    expected = np.concatenate([reference.run(['logits'], {'image': image[None]})[0]
                               for image in tensor])
    engine, quantized = vehicle_emulation(opened)
    found = engine.infer(tensor)['logits']
    assert quantized.layers == layers and quantized.int8_share > 0.5
    # Sums in another order may round to the next code now and then.
    assert np.abs(found - expected).mean() < 1e-3 * np.abs(expected).mean()


def test_cache_bytes_decide_the_key(bundle, store):
    first = built(bundle, store).key
    cache = Cache.read(bundle / 'calibration.cache')
    scales = {name: scale * 1.01 for name, scale in cache.scales.items()}
    changed = Cache(cache.version, cache.algorithm, scales).to_bytes()
    manifest = json.loads((bundle / 'calibration.json').read_text())
    manifest['cache']['sha256'] = files.sha256_bytes(changed)
    (bundle / 'calibration.cache').write_bytes(changed)
    (bundle / 'calibration.json').write_text(json.dumps(manifest))
    files.write_sums(bundle)
    assert built(bundle, store).key != first
