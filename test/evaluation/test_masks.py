# SPDX-License-Identifier: Apache-2.0
"""True masks of every kind of PNG, and what their numbers mean; PIL is the independent reader."""

from io import BytesIO

import cv2
import numpy as np
from PIL import Image
import pytest

from trt_segmentation.bundles.labels import (
    CITYSCAPES,
    CITYSCAPES_ID_TO_TRAIN_ID,
    IGNORE,
    Label,
    LabelSet,
)
from trt_segmentation.errors import InputError
from trt_segmentation.evaluation import masks

TWO = LabelSet((Label('background', 0, (0, 0, 0), 'a'), Label('object', 1, (255, 0, 0), 'b')))
IDS = np.random.default_rng(0).integers(0, 4, (13, 21)).astype(np.uint8)


def png(picture, **options):
    data = BytesIO()
    picture.save(data, 'png', **options)
    return data.getvalue()


def palette(ids, bits=None):
    indexed = Image.new('P', ids.shape[::-1])
    indexed.putdata(ids.ravel().tolist())
    indexed.putpalette([value for i in range(256) for value in (i * 37 % 256, i * 91 % 256, 7)])
    return png(indexed, **({'bits': bits} if bits else {}))


@pytest.mark.parametrize(('data', 'ids'), [
    (png(Image.fromarray(IDS)), IDS),
    (palette(IDS), IDS), (palette(IDS, 2), IDS), (palette(IDS, 4), IDS),
    (palette(IDS % 2, 1), IDS % 2),
    (png(Image.fromarray(IDS % 2 == 1)), IDS % 2),  # gray of one bit
    (png(Image.fromarray(np.dstack([IDS] * 3))), IDS),
    (png(Image.fromarray(np.dstack([IDS] * 3 + [np.full_like(IDS, 255)]))), IDS),
], ids=['gray', 'palette', 'palette 2 bits', 'palette 4 bits', 'palette 1 bit', 'gray 1 bit',
        'gray as RGB', 'gray as RGBA'])
def test_every_kind_of_png_gives_its_numbers(tmp_path, data, ids):
    (tmp_path / 'mask.png').write_bytes(data)
    found = masks.read(tmp_path / 'mask.png', masks.reading_of('train', CITYSCAPES))
    np.testing.assert_array_equal(found, ids)


def test_a_palette_mask_with_transparency_and_text_gives_its_numbers(tmp_path):
    from PIL.PngImagePlugin import PngInfo
    indexed = Image.new('P', IDS.shape[::-1])
    indexed.putdata(IDS.ravel().tolist())
    indexed.putpalette(list(range(256)) * 3)
    text = PngInfo()
    text.add_text('Author', 'somebody')
    (tmp_path / 'mask.png').write_bytes(png(indexed, transparency=0, pnginfo=text))
    found = masks.read(tmp_path / 'mask.png', masks.reading_of('train', CITYSCAPES))
    np.testing.assert_array_equal(found, IDS)


@pytest.mark.parametrize(('pixels', 'said'), [
    (np.zeros((4, 5), np.uint16), 'uint16'),
    (np.arange(60, dtype=np.uint8).reshape(4, 5, 3), 'in color'),
    (np.full((4, 5), 77, np.uint8), 'found id 77'),
    (np.full((4, 5), 26, np.uint8), '--label-ids cityscapes'),
])
def test_what_is_no_mask_is_refused(tmp_path, pixels, said):
    cv2.imwrite(str(tmp_path / 'mask.png'), pixels)
    with pytest.raises(InputError, match=said):
        masks.read(tmp_path / 'mask.png', masks.reading_of('train', CITYSCAPES))


@pytest.mark.parametrize('part', [0.4, 0.7, 0.95])
@pytest.mark.parametrize('how', ['cut short', 'one byte changed'])
def test_damage_is_refused_whatever_a_decoder_makes_of_it(tmp_path, part, how):
    """Some versions of OpenCV give the rest of such a mask as class 0."""
    noise = np.random.default_rng(1).integers(0, 19, (60, 80)).astype(np.uint8)
    data = bytearray(png(Image.fromarray(noise)))
    at = int(part * len(data))
    if how == 'cut short':
        del data[at:]
    else:
        data[at] ^= 0x10
    (tmp_path / 'mask.png').write_bytes(data)
    with pytest.raises(InputError, match='not a readable PNG'):
        masks.read(tmp_path / 'mask.png', masks.reading_of('train', CITYSCAPES))


@pytest.mark.parametrize('data', [b'', b'\x89PNG\r\n\x1a\n', b'GIF89a', palette(IDS)[:60],
                                  palette(IDS)[:30]])
def test_garbage_is_refused(tmp_path, data):
    (tmp_path / 'mask.png').write_bytes(data)
    with pytest.raises(InputError, match='not a readable PNG|expected'):
        masks.read(tmp_path / 'mask.png', masks.reading_of('train', CITYSCAPES))


@pytest.mark.parametrize('ids', ['cityscapes', 'cityscapes-train'])
def test_cityscapes_ids_are_found_by_name(ids):
    labels = LabelSet((Label('nothing', 0, (0, 0, 0), 'void'),
                       *(Label(label.name.replace(' ', '-').title(), 30 - label.train_id,
                               label.color, label.category) for label in CITYSCAPES.labels)))
    table = masks.reading_of(ids, labels).table
    for label_id, train_id in enumerate(CITYSCAPES_ID_TO_TRAIN_ID):
        pixel = label_id if ids == 'cityscapes' else train_id
        expected = IGNORE if train_id == IGNORE else 30 - train_id
        assert table[pixel] == expected


def test_cityscapes_ids_need_all_its_classes():
    labels = LabelSet(CITYSCAPES.labels[:17])
    with pytest.raises(InputError, match='no class named motorcycle, bicycle'):
        masks.reading_of('cityscapes', labels)


def test_binary_masks_need_two_classes():
    table = masks.reading_of('binary', TWO).table
    assert table[0] == 0 and set(table[1:].tolist()) == {1}
    with pytest.raises(InputError, match='expected two'):
        masks.reading_of('binary', CITYSCAPES)


@pytest.mark.parametrize(('counts', 'problem', 'note'), [
    ({0: 5, 1: 5}, '', ''),
    ({0: 5, 1: 5, 255: 10}, '', '50.0% of the pixels are 255'),
    ({0: 5, 255: 5}, '--label-ids binary', ''),
    ({255: 5}, 'nothing to measure', ''),
    ({0: 5}, '', 'never in the true masks: object'),
    ({}, '', ''),
])
def test_masks_are_judged_as_a_whole(counts, problem, note):
    found, notes = masks.problems(counts, TWO)
    assert problem in found and bool(problem) == bool(found)
    assert note in ' '.join(notes) and bool(note) == bool(notes)


def test_two_of_nineteen_classes_with_ignored_pixels_are_no_error():
    found, notes = masks.problems({0: 5, 13: 5, 255: 1}, CITYSCAPES)
    assert found == '' and len(notes) == 2
    assert '--label-ids' not in masks.problems({0: 5, 255: 1}, CITYSCAPES)[0]
