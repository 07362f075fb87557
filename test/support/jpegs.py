# SPDX-License-Identifier: Apache-2.0
"""JPEG pictures whose planes are known, and a decoder to planes of its own (ISO/IEC 10918-1)."""

import struct

import cv2
import numpy as np

from trt_segmentation.recordings.jpeg import PLAIN

# Figure A.6: where a coefficient of the zigzag lies, and section A.3.3's cosines.
ZIGZAG = sorted(range(64), key=lambda k: (
    k // 8 + k % 8, (k // 8 if (k // 8 + k % 8) % 2 else k % 8)))
_DCT = np.array([[np.cos((2 * x + 1) * u * np.pi / 16) / (2 if u else np.sqrt(8))
                  for u in range(8)] for x in range(8)])


def with_planes(planes, sampling, quality=90):
    """
    Return a JPEG picture in three scans, and its planes as libjpeg decodes each by itself.

    A scan of one component is the same as that of a gray picture of that component.
    """
    parts, decoded = [], []
    for plane in planes:
        data = cv2.imencode('.jpg', plane, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
        parts.append(segments(data))
        decoded.append(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED))
    columns, rows = PLAIN[sampling]
    result = [b'\xff\xd8']
    for code, body in parts[0]:
        if code in (0xDB, 0xC4):
            result.append(_segment(code, body))
        elif code == 0xC0:
            frame = body[:5] + bytes([3, 1, columns << 4 | rows, 0, 2, 0x11, 0, 3, 0x11, 0])
            result.append(_segment(code, frame))
    for i, part in enumerate(parts):
        coded, = (body for code, body in part if code == 'coded')
        result += [_segment(0xDA, bytes([1, i + 1, 0, 0, 63, 0])), coded]
    return b''.join([*result, b'\xff\xd9']), decoded


def segments(data):
    """Return the (code, body) of a picture's segments; that of a scan's data is 'coded'."""
    found, at = [], 2
    while data[at + 1] != 0xD9:
        code, (length,) = data[at + 1], struct.unpack_from('>H', data, at + 2)
        found.append((code, data[at + 4:at + 2 + length]))
        at += 2 + length
        if code == 0xDA:
            end = at
            while data[end] != 0xFF or data[end + 1] == 0 or 0xD0 <= data[end + 1] <= 0xD7:
                end += 1
            found.append(('coded', data[at:end]))
            at = end
    return found


def decode_planes(data):
    """Return the planes of a baseline picture in one scan, by floating-point cosines."""
    quantization, codes, interval = {}, {}, 0
    for code, body in segments(data):
        if code == 0xDB:
            for i in range(0, len(body), 65):
                quantization[body[i]] = np.frombuffer(body, np.uint8, 64, i + 1)
        elif code == 0xC4:
            _huffman(body, codes)
        elif code == 0xDD:
            interval, = struct.unpack('>H', body)
        elif code == 0xC0:
            height, width, count = struct.unpack_from('>HHB', body, 1)
            components = {body[i]: (body[i + 1] >> 4, body[i + 1] & 15, body[i + 2])
                          for i in range(6, 6 + 3 * count, 3)}
        elif code == 0xDA:
            tables = dict(zip(body[1:1 + 2 * body[0]:2], body[2:2 + 2 * body[0]:2]))
        elif code == 'coded':
            coded = body
    if len(components) == 1:
        components = {key: (1, 1, value[2]) for key, value in components.items()}
    widest = max(h for h, _, _ in components.values())
    highest = max(v for _, v, _ in components.values())
    across, down = -(-width // (8 * widest)), -(-height // (8 * highest))
    planes = {key: np.zeros((down * v * 8, across * h * 8), np.uint8)
              for key, (h, v, _) in components.items()}
    parts = _restarts(coded)
    for unit in range(across * down):
        if unit % interval == 0 if interval else unit == 0:
            bits, last = _bits(next(parts)), dict.fromkeys(components, 0)
        for key, (h, v, table) in components.items():
            for j in range(h * v):
                block = _block(bits, codes[tables[key] >> 4], codes[16 | tables[key] & 15])
                block[0] += last[key]
                last[key] = block[0]
                square = np.zeros(64)
                square[ZIGZAG] = np.array(block) * quantization[table]
                pixels = np.rint(_DCT @ square.reshape(8, 8) @ _DCT.T + 128)
                y = 8 * (unit // across * v + j // h)
                x = 8 * (unit % across * h + j % h)
                planes[key][y:y + 8, x:x + 8] = np.clip(pixels, 0, 255)
    return [planes[key][:-(-height * v // highest), :-(-width * h // widest)]
            for key, (h, v, _) in components.items()]


def _segment(code, body):
    return struct.pack('>BBH', 0xFF, code, len(body) + 2) + body


def _huffman(body, codes):
    """Read tables (annex C): {(length, code): value}, by class and number."""
    at = 0
    while at < len(body):
        counts, start, code = body[at + 1:at + 17], at + 17, 0
        table = codes[body[at]] = {}
        for length, count in enumerate(counts, 1):
            for value in body[start:start + count]:
                table[length, code] = value
                code += 1
            start += count
            code <<= 1
        at = start


def _restarts(coded):
    """Yield what is between restart markers, without stuffed bytes."""
    part, i = bytearray(), 0
    while i < len(coded):
        part.append(coded[i])
        if coded[i] == 0xFF:
            if coded[i + 1]:
                yield bytes(part[:-1])
                part = bytearray()
            i += 1
        i += 1
    yield bytes(part)


def _bits(data):
    for byte in data:
        for i in range(7, -1, -1):
            yield byte >> i & 1
    while True:
        yield 1


def _value(bits, table):
    length = code = 0
    while (length, code) not in table:
        length, code = length + 1, code << 1 | next(bits)
        if length > 16:
            raise ValueError('no such code')
    return table[length, code]


def _number(bits, size):
    """Section F.2.2.1."""
    value = 0
    for _ in range(size):
        value = value << 1 | next(bits)
    return value if not size or value >> (size - 1) else value - (1 << size) + 1


def _block(bits, first, others):
    block = [0] * 64
    block[0] = _number(bits, _value(bits, first))
    k = 1
    while k < 64:
        value = _value(bits, others)
        if value == 0:
            break
        k += value >> 4
        if value & 15:
            if k > 63:
                raise ValueError('too many coefficients')
            block[k] = _number(bits, value & 15)
        k += 1
    return block
