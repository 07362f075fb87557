# SPDX-License-Identifier: Apache-2.0
"""A cache leaves its bundle only with a manifest that fits it, the network and the spec."""

import hashlib
import json

import pytest
from support.networks import fcn, write_bundle
import yaml

from trt_segmentation.bundles import form, manifest
from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.bundles.cache import Cache
from trt_segmentation.bundles.manifest import cache_of
from trt_segmentation.errors import InputError


@pytest.fixture
def bundle(tmp_path):
    """Return a bundle with a cache and its manifest, unsealed."""
    path = write_bundle(tmp_path / 'bundle', fcn())
    bundle = Bundle.open(path)
    cache = Cache.from_amax({'image': 1.0})
    cache.write(bundle.cache_path)
    bundle.manifest_path.write_text(form.to_json(manifest.new(bundle, cache, method='mse')))
    return Bundle.open(path, verify=False)


def edit(bundle, change):
    """Change the manifest's document in place."""
    document = json.loads(bundle.manifest_path.read_text())
    change(document)
    bundle.manifest_path.write_text(json.dumps(document))


def reopened(bundle):
    return Bundle.open(bundle.path, verify=False)


def test_names_the_hashes_of_the_files(bundle):
    document = manifest.verify(bundle)[1]
    for found, file in ((document.model, 'model.onnx'), (document.cache, 'calibration.cache')):
        assert found.sha256 == hashlib.sha256(
            (bundle.path / file).read_bytes()).hexdigest()
    assert document.method == 'mse' and document.adopted is None
    assert {'python', 'numpy', 'onnx', 'onnxruntime'} <= set(document.versions)


def test_bundle_gives_the_cache_out(bundle):
    assert list(cache_of(bundle).scales) == ['image']


def test_another_cache(bundle):
    Cache.from_amax({'image': 2.0}).write(bundle.cache_path)
    with pytest.raises(InputError, match=r'calibration\.cache: sha256 is'):
        cache_of(reopened(bundle))


def test_another_network(bundle):
    write_bundle(bundle.path, fcn(seed=1))
    with pytest.raises(InputError, match='made for a network with sha256'):
        cache_of(reopened(bundle))


@pytest.mark.parametrize('change', [
    {'mean': [1, 2, 3]}, {'scale': [2, 2, 2]}, {'color': 'rgb'}, {'fit': 'crop'},
    {'interpolation': 'area'},
])
def test_another_preprocessing(bundle, change):
    write_bundle(bundle.path, fcn(), input=change)
    with pytest.raises(InputError, match='another preprocessing'):
        cache_of(reopened(bundle))


def test_other_ranges(bundle):
    write_bundle(bundle.path, fcn(), calibration={'ranges': {'logits': 8}})
    with pytest.raises(InputError, match=r'other calibration\.ranges'):
        cache_of(reopened(bundle))


def test_labels_may_change(bundle):
    spec = yaml.safe_load((bundle.path / 'model.yaml').read_text())
    spec['acceptance'] = {'min_agreement': 0.5}
    (bundle.path / 'model.yaml').write_text(yaml.safe_dump(spec))
    assert cache_of(reopened(bundle))


def test_missing_manifest(bundle):
    bundle.manifest_path.unlink()
    with pytest.raises(InputError, match='No such file'):
        cache_of(bundle)


@pytest.mark.parametrize('text, message', [
    ('', 'not valid JSON'), ('{"schema": 1', 'not valid JSON'), ('[]', 'schema: found None'),
    ('{"schema": 2}', 'schema: found 2'), ('{"schema": 1}', 'key tool is missing'),
    ('{"schema": 1, "tool": "", "date": "", "model": {"file": "", "sha256": 5}}',
     'calibration.json: model.sha256: expected a text, found 5'),
    ('{"schema": 1, "tools": ""}', "unknown key 'tools'"),
])
def test_manifest_that_is_none(bundle, text, message):
    bundle.manifest_path.write_text(text)
    with pytest.raises(InputError, match=message):
        cache_of(bundle)


def test_manifest_that_lacks_what_may_be_left_out(bundle):
    # 0.1.0 died of a missing `adopted`.
    edit(bundle, lambda document: [document.pop(key) for key in list(document)
                                   if key not in ('schema', 'tool', 'date', 'model', 'ranges',
                                                  'preprocessing', 'cache')])
    assert manifest.verify(bundle)[1].adopted is None


def test_manifest_of_a_tampered_hash(bundle):
    edit(bundle, lambda document: document['preprocessing'].update(sha256='0' * 64))
    with pytest.raises(InputError, match='another preprocessing'):
        cache_of(bundle)
