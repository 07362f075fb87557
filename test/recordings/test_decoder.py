# SPDX-License-Identifier: Apache-2.0
"""Pictures against Pillow and OpenCV's encoders: whole ones are decoded, damaged ones refused."""

import io
import struct
from types import SimpleNamespace
from zlib import compress, crc32

import cv2
import numpy as np
from PIL import Image as Pillow
import pytest

from trt_segmentation.recordings import decoder, jpeg, pictures
from trt_segmentation.recordings.image_messages import check, to_image
from trt_segmentation.recordings.layouts import as_bgr
from trt_segmentation.recordings.limits import CAUSES, MalformedImage, MAX_PIXELS

PICTURE, OTHER = (cv2.resize(np.random.default_rng(seed).integers(
    0, 256, (12, 20, 3), dtype=np.uint8), (160, 96), interpolation=cv2.INTER_CUBIC)
    for seed in (0, 1))  # BGR


TIFF_COMPRESSIONS = ('raw', 'tiff_lzw', 'tiff_adobe_deflate', 'tiff_deflate', 'packbits')


def encoded(picture=PICTURE, format_='JPEG', mode=None, **options):
    """Return a picture as Pillow encodes it."""
    image = Pillow.fromarray(picture[..., ::-1] if picture.ndim == 3 else picture)
    file = io.BytesIO()
    (image.convert(mode) if mode else image).save(file, format_, **options)
    return file.getvalue()


@pytest.fixture(params=['reports warnings', 'OpenCV only'])
def strict(request, monkeypatch):
    """Decode JPEG by either library; tell whether it reports what it warns of."""
    if request.param == 'OpenCV only':
        monkeypatch.setattr(decoder, '_simplejpeg', lambda: None)
        return False
    pytest.importorskip('simplejpeg')
    return True


def refused(data):
    with pytest.raises(MalformedImage) as caught:
        decoder.decode(data)
    assert caught.value.cause in CAUSES
    assert '\n' not in str(caught.value) and len(str(caught.value)) < 200
    return caught.value.cause


# ---- whole pictures


@pytest.mark.parametrize('options', [
    {}, {'progressive': True}, {'optimize': True}, {'subsampling': 0}, {'subsampling': 1},
    {'subsampling': 2}, {'restart_marker_blocks': 1}, {'restart_marker_blocks': 7},
    {'restart_marker_rows': 1}, {'progressive': True, 'restart_marker_rows': 2},
    {'mode': 'CMYK'}, {'mode': 'L'}, {'mode': 'L', 'progressive': True}, {'comment': b'x' * 999}])
@pytest.mark.parametrize('size', [(96, 160), (1, 1), (17, 33)])
def test_whole_jpegs_are_decoded(strict, options, size):
    data = encoded(np.ascontiguousarray(PICTURE[:size[0], :size[1]]), **options)
    expected = np.asarray(Pillow.open(io.BytesIO(data)).convert('RGB'))[..., ::-1]
    found = decoder.decode(data)
    assert decoder.size(data) == size and found.shape == (*size, 3)
    # Decoders may differ in the last bits of the inverse DCT and of chroma's interpolation.
    limit = 3 if options.get('mode') == 'CMYK' else 1.5
    assert np.abs(found.astype(int) - expected).mean() < limit


def without(data, marker):
    """Return JPEG data without the segments of a marker, before the scan."""
    out, at = bytearray(data[:2]), 2
    while data[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(data[at + 2:at + 4], 'big')
        out += b'' if data[at + 1] == marker else data[at:end]
        at = end
    return bytes(out) + data[at:]


@pytest.mark.parametrize('change', [
    lambda data: data + b'a trailer',
    lambda data: data + data,  # as multi-picture files have it
    lambda data: data[:-2] + b'\xff\xff\xff\xd9',  # fill bytes (B.1.1.2)
    lambda data: without(data, 0xC4),  # as cameras' motion JPEG: the standard's tables are meant
    lambda data: data[:2] + b'\xff\xe1' + (len(data) + 2).to_bytes(2, 'big') + data + data[2:],
])
def test_what_cameras_add_and_leave_out_is_no_damage(strict, change):
    data = bytes(cv2.imencode('.jpg', PICTURE)[1])
    np.testing.assert_array_equal(decoder.decode(change(data)), decoder.decode(data))


@pytest.mark.parametrize(('format_', 'mode', 'options'), [
    ('PNG', None, {}), ('PNG', 'L', {}), ('PNG', 'P', {}), ('PNG', '1', {}), ('PNG', 'RGBA', {}),
    ('BMP', None, {}), ('BMP', 'L', {}), ('PPM', None, {}), ('PPM', 'L', {}),
    *(('TIFF', mode, {'compression': compression, 'strip_size': strip_size})
      for mode in (None, 'L', 'P', '1', 'CMYK') for compression in TIFF_COMPRESSIONS
      for strip_size in (1, 4000, 1 << 20)),
    ('WEBP', None, {'lossless': True}), ('WEBP', 'RGBA', {'lossless': True})])
def test_lossless_formats_are_what_pillow_reads(format_, mode, options):
    data = encoded(format_=format_, mode=mode, **options)
    expected = np.asarray(Pillow.open(io.BytesIO(data)).convert('RGB'))[..., ::-1]
    np.testing.assert_array_equal(decoder.decode(data), expected)
    assert decoder.size(data) == (96, 160)
    assert decoder.size(np.frombuffer(data, np.uint8)) == (96, 160)


@pytest.mark.parametrize('kind', [2, 3, 5, 6])
@pytest.mark.parametrize('white', [1, 127, 255, 1023, 4095, 65535])
def test_what_is_white_in_a_portable_anymap_stays_white_or_is_refused(kind, white):
    """Decoders take the values as they stand, so that 12 bits in 16 would be nearly black."""
    values = [white] * 24 * (3 if kind in (3, 6) else 1)
    data = f'P{kind} # of a camera\n6 4\n{white}\n'.encode()
    data += (' '.join(map(str, values)).encode() + b'\n' if kind < 5 else
             struct.pack(f'>{len(values)}{"H" if white > 255 else "B"}', *values))
    if white in (255, 65535):
        assert (decoder.decode(data) == 255).all()
    else:
        with pytest.raises(MalformedImage, match=f'largest value is {white}; expected 255 or'):
            decoder.decode(data)


def chunk(name, data, length=None):
    size = len(data) if length is None else length
    return size.to_bytes(4, 'big') + name + data + crc32(name + data).to_bytes(4, 'big')


def png(width, height, *chunks, kind=(8, 2), interlace=0):
    header = struct.pack('>IIBBBBB', width, height, *kind, 0, 0, interlace)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + b''.join(chunks) + chunk(b'IEND', b'')


def png_of(samples, kind, rows=b'', interlace=0):
    """Return a PNG file of samples (height, width, channels), or of other rows, by RFC 2083."""
    parts = [samples] if not interlace else [
        samples[y::down, x::right] for y, x, down, right in (
            (0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2),
            (1, 0, 2, 1))]
    rows = rows or b''.join(b'\0' + row.tobytes() for part in parts if part.size for row in part)
    return png(samples.shape[1], samples.shape[0], chunk(b'IDAT', compress(rows)),
               kind=(8 * samples.dtype.itemsize, kind), interlace=interlace)


@pytest.mark.parametrize('interlace', [0, 1])
@pytest.mark.parametrize('deep', [False, True])
@pytest.mark.parametrize(('kind', 'channels', 'alpha'), [
    (0, 1, False), (2, 3, False), (4, 1, True), (6, 3, True)])
def test_every_kind_of_png_is_decoded(kind, channels, alpha, deep, interlace):
    pixels = PICTURE[:45, :67]
    samples = pixels[..., 2::-1] if channels == 3 else pixels[..., :1]
    if alpha:
        samples = np.concatenate([samples, samples[..., :1] // 2], axis=2)
    if deep:
        samples = samples.astype('>u2') * 257
    expected = pixels if channels == 3 else np.repeat(pixels[..., :1], 3, axis=2)
    found = decoder.decode(png_of(samples, kind, interlace=interlace))
    np.testing.assert_array_equal(found, expected)


def test_an_animated_png_is_its_first_picture():
    first, second = (Pillow.fromarray(p[..., ::-1]) for p in (PICTURE, OTHER))
    for options in ({}, {'default_image': True}):
        file = io.BytesIO()
        first.save(file, 'PNG', save_all=True, append_images=[second], **options)
        np.testing.assert_array_equal(decoder.decode(file.getvalue()), PICTURE)


@pytest.mark.parametrize('rows', [
    b'\0' * (160 * 3 + 1) * 95, b'\x09' * (160 * 3 + 1) * 96])  # one row missing; no such filter
def test_a_png_whose_rows_are_wrong_is_refused_though_its_checksums_are_right(rows):
    assert refused(png_of(PICTURE, 2, rows)) == 'undecodable'


@pytest.mark.parametrize(('change', 'words'), [
    ({1: 0xC9}, 'process C9'), ({1: 0xC3}, 'process C3'), ({4: 12}, '12 bits'),
    ({5: 0, 6: 0}, '160x0')])  # arithmetic coding, lossless, 12 bits, a height that comes later
def test_kinds_of_jpeg_that_not_every_decoder_takes_are_refused_in_words(change, words):
    data = bytearray(encoded())
    start = data.index(b'\xff\xc0')
    for at, value in change.items():
        data[start + at] = value
    with pytest.raises(MalformedImage, match=words):
        decoder.decode(bytes(data))


def test_sixteen_bits_are_scaled_and_kept_where_the_picture_is_wanted_as_it_is():
    deep = PICTURE.astype(np.uint16) * 200
    data = bytes(cv2.imencode('.png', deep)[1])
    np.testing.assert_array_equal(decoder.decode_unchanged(data), deep)
    np.testing.assert_array_equal(decoder.decode(data), np.rint(deep * (255 / 65535)))


def test_an_orientation_is_ignored_for_files_and_messages_alike_and_said_once(caplog):
    exif = Pillow.Exif()
    exif[0x0112] = 6
    data = encoded(exif=exif)
    assert decoder.orientation(data) == 6 and decoder.orientation(encoded()) == 1
    pictures._say_orientation.cache_clear()
    message = SimpleNamespace(format='jpeg', data=data)
    for _ in range(3):
        np.testing.assert_array_equal(pictures.decode(data), to_image(message)[0])
    np.testing.assert_array_equal(pictures.decode(data), pictures.decode(encoded()))
    assert len([record for record in caplog.records if 'orientation' in record.message]) == 1


@pytest.mark.parametrize('exif', [b'', b'II*', b'II*\0\x08\0\0\0', b'MM\0*\xff\xff\xff\xff',
                                  b'MM\0*\0\0\0\x08\0\x09\x01\x12\0\x03'])
def test_what_is_cut_within_its_exif_part_counts_as_upright(exif):
    plain = encoded()
    data = (plain[:2] + b'\xff\xe1' + (8 + len(exif)).to_bytes(2, 'big') + b'Exif\0\0' + exif
            + plain[2:])
    assert decoder.orientation(data) == 1
    np.testing.assert_array_equal(decoder.decode(data), decoder.decode(plain))


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('big', [False, True])
def test_an_orientation_in_a_tiff_is_ignored_too(orientation, big):
    data = encoded(format_='TIFF', tiffinfo={0x0112: orientation})
    if big:  # the same with the other order of bytes, written out: one strip of pixels
        height, width = PICTURE.shape[:2]
        entries = [(256, 3, 1, width << 16), (257, 3, 1, height << 16), (258, 3, 1, 8 << 16),
                   (259, 3, 1, 1 << 16), (262, 3, 1, 1 << 16), (273, 4, 1, 134),
                   (274, 3, 1, orientation << 16), (277, 3, 1, 1 << 16),
                   (278, 3, 1, height << 16), (279, 4, 1, height * width)]
        data = (b'MM\0*' + struct.pack('>IH', 8, len(entries))
                + b''.join(struct.pack('>HHII', *entry) for entry in entries) + bytes(4))
        assert len(data) == 134
        data += PICTURE[..., 0].tobytes()
    assert decoder.orientation(data) == orientation
    expected = PICTURE if not big else np.repeat(PICTURE[..., :1], 3, 2)
    np.testing.assert_array_equal(decoder.decode(data), expected)
    assert decoder.size(data) == PICTURE.shape[:2]


@pytest.mark.parametrize('compression', TIFF_COMPRESSIONS)
def test_the_alpha_of_a_tiff_is_dropped_and_changes_no_color(compression):
    for mode, colors in (('RGBA', PICTURE), ('LA', np.repeat(PICTURE[..., :1], 3, 2))):
        image = Pillow.fromarray(colors[..., ::-1]).convert(mode)
        image.putalpha(Pillow.fromarray(OTHER[..., 0]))
        file = io.BytesIO()
        image.save(file, 'TIFF', compression=compression)
        expected = np.asarray(image.convert('RGB'))[..., ::-1]
        np.testing.assert_array_equal(decoder.decode(file.getvalue()), expected)


@pytest.mark.parametrize('picture', [
    PICTURE, np.zeros((700, 900, 3), np.uint8),
    np.random.default_rng(2).integers(0, 256, (300, 400, 3), dtype=np.uint8)],
    ids=['picture', 'flat', 'noise'])  # codes of each width, that stand for few bytes and many
@pytest.mark.parametrize('predictor', [1, 2])
@pytest.mark.parametrize('bits', [8, 16])
def test_what_opencv_writes_as_lzw_is_whole(picture, predictor, bits):
    picture = picture.astype(f'uint{bits}') * (1 if bits == 8 else 257)
    data = bytes(cv2.imencode('.tiff', picture, [
        cv2.IMWRITE_TIFF_COMPRESSION, 5, 317, predictor])[1])
    np.testing.assert_array_equal(decoder.decode_unchanged(data), picture)


# ---- damage


@pytest.mark.parametrize('compression', TIFF_COMPRESSIONS)
@pytest.mark.parametrize('mode', [None, 'P'])
def test_what_libtiff_reports_of_a_damaged_tiff_is_refused_and_the_rest_is_what_it_reads(
        compression, mode):
    """Pillow raises where libtiff reports an error; OpenCV returns a picture."""
    data = encoded(format_='TIFF', mode=mode, compression=compression, strip_size=4000)
    rng = np.random.default_rng(0)
    accepted = reported = 0
    for trial in range(150):
        changed = bytearray(data)
        at = int(rng.integers(8, len(data)))
        end = min(at + (1, 20, 50)[trial % 3], len(data))
        changed[at:end] = rng.bytes(end - at) if trial % 2 else bytes(end - at)
        try:
            expected = np.asarray(Pillow.open(io.BytesIO(changed)).convert('RGB'))[..., ::-1]
        except Exception:
            reported += 1
            assert refused(bytes(changed)) in ('damaged', 'undecodable', 'zero_size',
                                               'absurd_size')
            continue
        try:
            found = decoder.decode(bytes(changed))
        except MalformedImage:
            continue
        accepted += 1
        np.testing.assert_array_equal(found, expected)
    assert reported or compression == 'raw'
    assert accepted or 'deflate' in compression


@pytest.mark.parametrize('compression', ['tiff_adobe_deflate', 'tiff_deflate'])
def test_every_bit_of_a_deflated_strip_is_guarded(compression):
    data = bytearray(encoded(PICTURE[:8, :8].copy(), 'TIFF', compression=compression))
    with Pillow.open(io.BytesIO(data)) as image:
        (start,), (length,) = image.tag_v2[273], image.tag_v2[279]
    for at in range(start, start + length):
        for bit in range(8):
            data[at] ^= 1 << bit
            assert refused(bytes(data)) == 'damaged'
            data[at] ^= 1 << bit
    decoder.decode(bytes(data))


@pytest.mark.parametrize(('mode', 'options', 'words'), [
    (None, {'compression': 'jpeg'}, 'compression 7'), ('LAB', {}, 'colors of kind 8'),
    ('YCbCr', {}, 'colors of kind 6'), ('F', {}, 'sample format 3'),
    (None, {'tiffinfo': {284: 2}}, 'planes 2'), (None, {'tiffinfo': {274: 16}}, 'tiles')])
def test_kinds_of_tiff_that_cannot_be_checked_are_refused_in_words(mode, options, words):
    source = Pillow.fromarray(PICTURE[..., ::-1])
    image = source.convert('L').convert('F') if mode == 'F' else source.convert(mode or 'RGB')
    file = io.BytesIO()
    image.save(file, 'TIFF', **options)
    data = file.getvalue()
    if words == 'tiles':  # Pillow writes none, so an entry becomes their width
        entry = struct.Struct('<HHII')
        data = data.replace(entry.pack(274, 3, 1, 16), entry.pack(322, 3, 1, 16))
    with pytest.raises(MalformedImage, match=f'a TIFF with .*{words}') as caught:
        decoder.decode(data)
    assert caught.value.cause == 'undecodable'


def scan_of(data):
    """Return where a JPEG's compressed data begins."""
    at = data.rfind(b'\xff\xda')
    return at + 2 + int.from_bytes(data[at + 2:at + 4], 'big')


@pytest.mark.parametrize('format_', ['JPEG', 'PNG', 'BMP', 'PPM', 'WEBP', 'TIFF'])
@pytest.mark.parametrize('progressive', [False, True])
def test_a_picture_cut_anywhere_is_refused(strict, format_, progressive):
    data = encoded(format_=format_, progressive=progressive)
    for length in [*range(0, 40), *np.linspace(40, len(data) - 3, 60).astype(int)]:
        assert refused(data[:length]) in ('damaged', 'undecodable', 'zero_size', 'absurd_size')


@pytest.mark.parametrize('options', [{}, {'progressive': True}, {'restart_marker_rows': 1}])
def test_an_end_marker_after_the_cut_does_not_hide_it(options):
    pytest.importorskip('simplejpeg')
    data = encoded(**options)
    for length in np.linspace(scan_of(data), len(data) - 6, 80).astype(int):
        refused(data[:length] + b'\xff\xd9')


@pytest.mark.parametrize('damage', [
    lambda a, b, middle: a[:middle] + b[middle:],  # two buffers
    lambda a, b, middle: a[:middle] + bytes(400) + a[middle + 400:],  # a block of zeros
    lambda a, b, middle: a[:middle] + a[middle + 400:],  # a lost packet
    lambda a, b, middle: a[:middle] + b + a[middle:],  # a picture within the picture
], ids=['mixed', 'zeroed', 'lost', 'within'])
def test_a_decoders_warning_is_a_refusal(damage):
    pytest.importorskip('simplejpeg')
    a, b = (encoded(cv2.resize(picture, (480, 288)), quality=95) for picture in (PICTURE, OTHER))
    found = []
    for middle in np.linspace(scan_of(a) + 20, min(len(a), len(b)) - 500, 20).astype(int):
        try:
            decoder.decode(damage(a, b, middle))
        except MalformedImage as error:
            found.append(error.cause)
    # Codes fall into step again sometimes, with as many blocks as there must be.
    assert set(found) == {'damaged'} and len(found) >= 16


def test_restart_intervals_lost_or_out_of_order_are_refused(strict):
    data = encoded(restart_marker_rows=1)
    marks = [at for at in range(scan_of(data), len(data) - 1)
             if data[at] == 0xFF and 0xD0 <= data[at + 1] <= 0xD7]
    assert len(marks) == 5  # six rows of units of 16 pixels
    lost = data[:marks[1]] + data[marks[2]:]
    swapped = (data[:marks[1]] + data[marks[2]:marks[3]] + data[marks[1]:marks[2]]
               + data[marks[3]:])
    for damaged in (lost, swapped, data[:marks[2]] + data[-2:]):
        assert refused(damaged) == 'damaged'


def test_a_progressive_picture_without_its_last_scans_is_refused(strict):
    data = encoded(progressive=True)
    at = data.rfind(b'\xff\xda')
    assert refused(data[:at] + b'\xff\xd9') == 'damaged'


def test_every_bit_of_a_png_is_guarded():
    data = bytearray(encoded(PICTURE[:8, :8].copy(), 'PNG'))
    for at in range(len(data)):
        for bit in range(8):
            data[at] ^= 1 << bit
            with pytest.raises(MalformedImage):
                decoder.decode(data)
            data[at] ^= 1 << bit
    decoder.decode(data)


# ---- what would take too much memory or time is not begun


@pytest.fixture
def no_decoding(monkeypatch):
    """Fail if a decoder is called at all."""
    def fail(*_):
        raise AssertionError('decoded')
    monkeypatch.setattr(decoder, '_opencv', fail)
    monkeypatch.setattr(decoder, '_jpeg', fail)


@pytest.mark.parametrize(('data', 'cause'), [
    (png(4, 4, chunk(b'IDAT', b'x' * 9, 0xFFFFFFFF)), 'damaged'),
    (png(4, 4, chunk(b'fcTL', b'x' * 9, 0x7FFFFFFF)), 'damaged'),
    (png(6000, 6000, chunk(b'IDAT', b'x' * 99)), 'damaged'),  # deflate cannot hold so many
    # A core would take seconds for as many bytes: 8, 6 and 3 of each pixel.
    (png(4097, 4097, chunk(b'IDAT', bytes(1 << 18)), kind=(16, 6)), 'absurd_size'),
    (png(4800, 4800, chunk(b'IDAT', bytes(1 << 18)), kind=(16, 2)), 'absurd_size'),
    (png(8192, 8192, chunk(b'IDAT', bytes(1 << 18))), 'absurd_size'),
    (png(16384, 16384, chunk(b'IDAT', b'x' * 99)), 'absurd_size'),
    (png(0, 4, chunk(b'IDAT', b'x')), 'zero_size'),
    (png(4, 4), 'damaged'),
    (png(4, 4, chunk(b'ABCD', b'')), 'undecodable'),
])
def test_a_png_that_claims_what_it_has_not_is_not_unpacked(no_decoding, data, cause):
    assert refused(data) == cause


def tiff_of(compression, strips, width=8, rows=1, height=None):
    """Return a gray TIFF file of strips: (place from the first one on, length, data)."""
    head = 8 + 2 + 12 * 9 + 4
    height = height or len(strips) * rows
    first = head + 8 * len(strips)

    def entry(tag, *values):
        at = {273: head, 279: head + 4 * len(strips)}.get(tag, 0) if len(values) > 1 else values[0]
        return struct.pack('<HHII', tag, 4, len(values), at)

    offsets, counts = [first + at for at, _, _ in strips], [length for _, length, _ in strips]
    entries = [entry(256, width), entry(257, height), struct.pack('<HHII', 258, 3, 1, 8),
               entry(259, compression), entry(262, 1), entry(273, *offsets), entry(277, 1),
               entry(278, rows), entry(279, *counts)]
    return (b'II*\0' + struct.pack('<IH', 8, len(entries)) + b''.join(entries) + bytes(4)
            + (struct.pack(f'<{2 * len(strips)}I', *offsets, *counts) if len(strips) > 1
               else bytes(8))
            + b''.join(data for _, _, data in strips))


def test_a_tiff_whose_strips_overlap_or_clear_their_table_for_ever_is_refused_at_once(no_decoding):
    runs = b'\x80' * 1_000_000 + b'\xf9\0'  # which stand for nothing, and eight zeros
    assert refused(tiff_of(32773, [(0, len(runs), runs)] + [(0, len(runs), b'')] * 4000)
                   ) == 'damaged'
    ones = np.unpackbits(np.frombuffer((256).to_bytes(2, 'big'), np.uint8))[-9:]  # a clearing
    clears = np.packbits(np.tile(ones, 200_000)).tobytes()
    assert refused(tiff_of(5, [(0, len(clears), clears)])) == 'damaged'
    zeros = compress(bytes(8 << 20))
    assert refused(tiff_of(8, [(0, len(zeros), zeros)])) == 'damaged'  # more than its row
    assert refused(tiff_of(8, [(0, len(zeros), zeros)], 16384, 4097)) == 'absurd_size'


def test_a_tiff_of_these_strips_is_read():
    row = compress(bytes(range(8)))
    data = tiff_of(8, [(0, len(row), row), (len(row), len(row), row)])
    assert decoder.decode(data)[..., 0].tolist() == [[*range(8)]] * 2


def many_scans(count):
    """Return a progressive JPEG in which a scan is repeated."""
    data = encoded(progressive=True)
    at = data.rfind(b'\xff\xda')
    return data[:at] + data[at:-2] * count + b'\xff\xd9'


def claiming(data, height, width):
    """Return JPEG data with another size in its start of frame."""
    at = max(data.find(b'\xff\xc0'), data.find(b'\xff\xc2'))
    return data[:at + 5] + height.to_bytes(2, 'big') + width.to_bytes(2, 'big') + data[at + 9:]


def test_a_jpeg_of_many_scans_or_of_too_few_bytes_is_not_unpacked(no_decoding):
    assert refused(many_scans(700)) == 'absurd_size'
    assert refused(claiming(encoded(), 8000, 8000)) == 'damaged'
    assert refused(claiming(encoded(progressive=True), 8000, 8000)) == 'damaged'
    assert refused(claiming(encoded(), 16384, 16384)) == 'absurd_size'
    assert refused(claiming(encoded(), 0, 160)) == 'zero_size'


def test_ten_scans_of_the_largest_picture_are_allowed():
    assert 10 * MAX_PIXELS <= jpeg._MAX_SCANNED


def test_what_other_chunks_of_a_png_say_does_not_reach_the_decoder():
    plain = encoded(format_='PNG')
    at = plain.find(b'IDAT') - 4
    animated = plain[:at] + chunk(b'acTL', (1 << 31).to_bytes(4, 'big') * 2) + chunk(
        b'iCCP', b'x\0\0' + b'y' * 50) + chunk(b'eXIf', b'II*\0' + bytes(9)) + plain[at:]
    np.testing.assert_array_equal(decoder.decode(animated), decoder.decode(plain))


@pytest.mark.parametrize(('format_', 'options'), [
    ('BMP', {}), ('TIFF', {}), ('WEBP', {}), ('WEBP', {'lossless': True}), ('PPM', {})])
def test_other_formats_that_claim_an_absurd_size_are_not_unpacked(no_decoding, format_, options):
    data = encoded(format_=format_, **options)
    small = b'\xa0\0\0\0', b'\x60\0\0\0'  # 160 and 96
    if format_ == 'PPM':
        data = data.replace(b'160 96', b'999999 999999')
    elif format_ == 'TIFF':
        data = data.replace(b'\x04\0\x01\0\0\0\xa0\0\0\0', b'\x04\0\x01\0\0\0\0\0\1\0').replace(
            b'\x03\0\x01\0\0\0\xa0\0\0\0', b'\x03\0\x01\0\0\0\xff\xff\0\0')
    elif format_ == 'BMP':
        data = data.replace(small[0] + small[1], b'\0\0\1\0' * 2)
    else:
        at = 21 if options else 26
        value = b'\xff\xff\xff\x0f' if options else b'\xff\x3f\xff\x3f'
        data = data[:at] + value + data[at + 4:]
    assert refused(data) in ('absurd_size', 'damaged')


# ---- what a compressed message's format says


def compressed(picture, format_, codec='.png'):
    return SimpleNamespace(format=format_, data=bytes(cv2.imencode(codec, picture)[1]))


RGB = np.ascontiguousarray(PICTURE[..., ::-1])
GRAY = PICTURE[..., 0]


@pytest.mark.parametrize(('format_', 'stored', 'color'), [
    # As image_transport's subscriber reads them: the target tells the order of what was encoded.
    ('bgr8; png compressed bgr8', PICTURE, 'bgr'), ('rgb8; png compressed bgr8', PICTURE, 'bgr'),
    ('rgba8; png compressed bgr8', PICTURE, 'bgr'),
    ('rgb16; png compressed bgr16', PICTURE, 'bgr'),
    ('rgb8; png compressed rgb8', RGB, 'rgb'), ('bgr8; png compressed rgb8', RGB, 'rgb'),
    ('rgb8; png compressed ', RGB, 'rgb'), ('png', PICTURE, 'bgr'), ('', PICTURE, 'bgr'),
    ('PNG', PICTURE, 'bgr'), ('bayer_rggb8; png compressed bgr8', PICTURE, 'bgr'),
    ('yuv422_yuy2; png compressed bgr8', PICTURE, 'bgr'),
    ('something of a camera', PICTURE, 'bgr'),
])
def test_the_order_of_channels_is_the_formats(format_, stored, color):
    image, found = to_image(compressed(stored, format_))
    assert found == color
    np.testing.assert_array_equal(as_bgr(image, color), PICTURE)


@pytest.mark.parametrize('pattern', ['rggb', 'bggr', 'gbrg', 'grbg'])
@pytest.mark.parametrize('bits', [8, 16])
def test_a_compressed_mosaic_is_what_the_raw_one_is(pattern, bits):
    mosaic = GRAY.astype(f'uint{bits}') * (1 if bits == 8 else 257)
    raw = SimpleNamespace(height=96, width=160, encoding=f'bayer_{pattern}{bits}', is_bigendian=0,
                          step=160 * bits // 8, data=mosaic.tobytes())
    image, color = to_image(compressed(mosaic, f'bayer_{pattern}{bits}; png compressed '))
    expected, expected_color = to_image(raw)
    assert color == expected_color
    np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize('format_', ['mono8; png compressed ', 'png', '8UC1; png compressed '])
def test_gray_pictures_are_gray(format_):
    np.testing.assert_array_equal(to_image(compressed(GRAY, format_))[0], np.dstack([GRAY] * 3))


@pytest.mark.parametrize(('msg', 'cause', 'words'), [
    (compressed(PICTURE, 'jpeg'), 'wrong_format', "'jpeg', but the data is png"),
    (compressed(PICTURE, 'bgr8; png compressed bgr8', '.jpg'), 'wrong_format', 'is jpeg'),
    *((compressed(PICTURE, format_, '.jpg'), 'wrong_format', 'but the data is jpeg')
      for format_ in ('tiff', 'H264', 'bgr8; tiff compressed bgr8', 'rgb8; webp compressed ')),
    (compressed(GRAY, 'rgb8; png compressed bgr8'), 'wrong_format', 'which is gray'),
    (compressed(GRAY, 'bayer_rggb12; png compressed '), 'wrong_format', 'which is gray'),
    (compressed(PICTURE, 'mono8; png compressed '), 'wrong_format', 'which is in color'),
    (compressed(PICTURE, 'bayer_rggb8; png compressed '), 'wrong_format', 'which is in color'),
    (compressed(GRAY, '16UC1; png compressed '), 'unknown_encoding', 'depth'),
    (compressed(GRAY, '16UC1; compressedDepth png'), 'unknown_encoding', 'depth'),
    (SimpleNamespace(format='bgr8; zstd', data=b'\x28\xb5\x2f\xfdxxxx'), 'undecodable',
     'zstd, not JPEG or PNG; decode it with: ros2 run image_transport republish'),
    (SimpleNamespace(format='h264', data=b'\0\0\0\1\x67abcdefgh'), 'undecodable', 'H.264'),
    (SimpleNamespace(format='x' * 999, data=b''), 'undecodable', 'neither JPEG nor PNG'),
])
def test_what_contradicts_is_dropped_with_its_reason(msg, cause, words):
    with pytest.raises(MalformedImage, match=words) as caught:
        to_image(msg)
    assert caught.value.cause == cause and len(str(caught.value)) < 200
    if cause != 'wrong_format' or 'data is' in words:  # what shows without decoding
        with pytest.raises(MalformedImage):
            check(msg)


# ---- another decoder


PLAIN = encoded(quality=95)
SCAN = PLAIN.index(b'\xff\xda')


@pytest.mark.parametrize(('format_', 'data', 'order'), [
    ('jpeg', PLAIN, 'bgr'), ('', PLAIN, 'bgr'), ('bgr8; jpeg compressed bgr8', PLAIN, 'bgr'),
    ('rgb8; jpeg compressed rgb8', PLAIN, 'rgb'), ('jpeg', encoded(GRAY), 'bgr'),
    ('mono8; jpeg compressed ', encoded(GRAY), 'bgr'),
    ('jpeg', encoded(restart_marker_rows=1), 'bgr'),
    # Left to ours, as they are of no kind that is taken, or as their channels are a mosaic's.
    ('jpeg', encoded(progressive=True), None), ('jpeg', encoded(mode='CMYK'), None),
    ('png', encoded(format_='PNG'), None), ('bayer_rggb8; jpeg compressed ', encoded(GRAY), None),
    # Refused in any case.
    ('mono8; jpeg compressed ', PLAIN, None), ('bgr8; jpeg compressed bgr8', encoded(GRAY), None),
    ('jpeg', PLAIN[:-2], None), ('jpeg', PLAIN[:SCAN], None), ('jpeg', PLAIN[:40], None),
    ('jpeg', PLAIN[:SCAN + 14] + b'\xff\xd9', None), ('png', PLAIN, None),
])
@pytest.mark.parametrize('takes', [True, False])
def test_another_decoder_gets_whole_jpegs_of_cameras_and_changes_no_verdict(format_, data, order,
                                                                            takes):
    asked, there = [], object()

    def decode_jpeg(given, layout):
        asked.append((given.tobytes(), layout))
        return there if takes else None

    def verdict(*arguments):
        try:
            return to_image(SimpleNamespace(format=format_, data=data), (), *arguments)
        except MalformedImage as error:
            return error.cause, str(error)

    image, said = verdict(decode_jpeg)
    assert asked == ([(data, order)] if order else [])
    if order and takes:
        assert image is there and said == order
    else:
        expected, expected_said = verdict()
        np.testing.assert_array_equal(image, expected)
        assert said == expected_said
