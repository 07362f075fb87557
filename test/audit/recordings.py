# SPDX-License-Identifier: Apache-2.0
"""
Damage recordings and pictures at random, and read them.

    python test/audit/recordings.py [--trials 500] [--seed 0]

Bits are flipped, parts cut, zeroed, exchanged and doubled, lengths made absurd, channels and
encodings swapped. A failure is: an error that is not the package's own; a trial that needs more
than 256 MiB beyond what whole ones need, or 30 seconds of CPU time; a message that was never
written out of a file with checksums; other pixels out of a PNG than went in. Prints a table; exit
code 1 if there is any failure.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
import io
from pathlib import Path
import resource
import signal
import sys
import tempfile
import traceback

import cv2
import mcap.writer
import numpy as np
from PIL import Image as Pillow
from rosbags import rosbag1
from rosbags.typesys import get_typestore, Stores
import zstandard

from trt_segmentation.errors import InputError
from trt_segmentation.recordings import bags, decoder
from trt_segmentation.recordings.image_messages import ENCODINGS, to_image
from trt_segmentation.recordings.limits import MalformedImage

ALLOWED = 256 << 20
SECONDS = 30
START, STEP = 1_700_000_000_000_000_000, 50_000_000
COUNT = 6  # frames of a recording
FORMATS = ('jpeg', 'png', 'rgb8; jpeg compressed bgr8', 'bayer_rggb8; png compressed ', '16UC1; ',
           'bgr8; png compressed rgb8', 'mono8; png compressed ', '', 'h264', '\0\xff;;')


def picture(number: int) -> np.ndarray:
    """Return a BGR picture that no other number has."""
    small = np.random.default_rng(number).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    return cv2.resize(small, (96, 64), interpolation=cv2.INTER_CUBIC)


PNGS = [bytes(cv2.imencode('.png', picture(i))[1]) for i in range(COUNT)]
JPEGS = [bytes(cv2.imencode('.jpg', picture(i))[1]) for i in range(COUNT)]


def messages() -> list[tuple[str, int, object]]:
    """Return (topic, time, message) of a drive: raw, JPEG and PNG."""
    found: list[tuple[str, int, object]] = []
    for i in range(COUNT):
        time_ns = START + i * STEP
        found += [('/raw', time_ns, bags.image_message(picture(i), 'bgr8', time_ns, 'a')),
                  ('/jpeg/compressed', time_ns,
                   bags.compressed_image_message(JPEGS[i], 'jpeg', time_ns, 'b')),
                  ('/png/compressed', time_ns,
                   bags.compressed_image_message(PNGS[i], 'png', time_ns, 'c'))]
    return found


def recordings(directory: Path) -> dict[str, Path]:
    """Write a recording of each kind; return its file with the messages, by kind."""
    found = {}
    for kind, options in (('mcap', {}), ('mcap, zstd', {'compress': True}),
                          ('sqlite', {'storage': 'sqlite3'}),
                          ('sqlite, zstd', {'storage': 'sqlite3', 'compress': True})):
        path = directory / kind.replace(', ', '_')
        with bags.Writer(path, **options) as writer:
            for topic, time_ns, message in messages():
                writer.write(topic, message, time_ns)
        found[kind] = next(file for file in path.iterdir() if file.suffix != '.yaml')
    for name in ('mcap', 'sqlite'):
        packed = found[name].with_name(found[name].name + '.zstd')
        packed = directory / packed.name
        packed.write_bytes(zstandard.compress(found[name].read_bytes()))
        found[f'{name}, packed'] = packed
    store = get_typestore(Stores.ROS2_HUMBLE)
    found['mcap, checksums'] = directory / 'checksums.mcap'
    with open(found['mcap, checksums'], 'wb') as stream:
        writer = mcap.writer.Writer(stream, chunk_size=30_000)
        writer.start('ros2', 'audit')
        channels: dict[str, int] = {}
        for topic, time_ns, message in messages():
            if topic not in channels:
                kind = message.__msgtype__
                schema = writer.register_schema(kind, 'ros2msg', store.generate_msgdef(
                    kind, ros_version=2)[0].encode())
                channels[topic] = writer.register_channel(topic, 'cdr', schema)
            writer.add_message(channels[topic], time_ns, bytes(store.serialize_cdr(
                message, message.__msgtype__)), time_ns)
        writer.finish()
    ros1 = get_typestore(Stores.ROS1_NOETIC)
    found['ROS 1'] = directory / 'drive.bag'
    bag = rosbag1.Writer(found['ROS 1'])
    bag.set_compression(rosbag1.Writer.CompressionFormat.LZ4)
    with bag:
        connection = bag.add_connection('/raw', bags.IMAGE, typestore=ros1)
        for i in range(COUNT):
            image = bags.image_message(picture(i), 'bgr8', START + i * STEP, 'a')
            header = ros1.types['std_msgs/msg/Header'](i, image.header.stamp, 'a')
            bag.write(connection, START + i * STEP, ros1.serialize_ros1(ros1.types[bags.IMAGE](
                header, image.height, image.width, 'bgr8', 0, image.step, image.data),
                bags.IMAGE))
    return found


def pictures() -> dict[str, bytes]:
    """Return a picture file of each kind."""
    image = Pillow.fromarray(picture(0)[..., ::-1])
    found = {}
    for kind, format_, options in (
            ('JPEG', 'JPEG', {}), ('JPEG, progressive', 'JPEG', {'progressive': True}),
            ('JPEG, restarts', 'JPEG', {'restart_marker_rows': 1}), ('PNG', 'PNG', {}),
            ('BMP', 'BMP', {}), ('PPM', 'PPM', {}), ('TIFF', 'TIFF', {}),
            ('TIFF, LZW', 'TIFF', {'compression': 'tiff_lzw'}), ('WebP', 'WEBP', {})):
        file = io.BytesIO()
        image.save(file, format_, **options)
        found[kind] = file.getvalue()
    return found


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Return data with one kind of damage."""
    out = bytearray(data)
    size = len(out)
    at = int(rng.integers(0, max(size, 1)))
    # Much of what decides lies at the beginning and at the end.
    if rng.random() < 0.4:
        at = min(at, int(rng.integers(0, min(size, 400)))) if rng.random() < 0.5 else max(
            at, size - 1 - int(rng.integers(0, min(size, 400))))
    length = int(rng.integers(1, max(2, min(size, 3000))))
    kind = int(rng.integers(0, 8))
    if kind == 0:
        for _ in range(int(rng.integers(1, 9))):
            out[int(rng.integers(0, size))] ^= 1 << int(rng.integers(0, 8))
    elif kind == 1:
        out[at] ^= 1 << int(rng.integers(0, 8))
    elif kind == 2:
        del out[at:]
    elif kind == 3:
        out[at:at + length] = bytes(len(out[at:at + length]))
    elif kind == 4:
        del out[at:at + length]
    elif kind == 5:
        out[at:at] = out[at:at + length]
    elif kind == 6:  # an absurd length, of either byte order
        number = int(rng.choice([2 ** 31 - 1, 2 ** 32 - 1, 2 ** 31, 2 ** 30, 300_000_000]))
        value = number.to_bytes(int(rng.choice([4, 8])), str(rng.choice(['little', 'big'])))
        out[at:at + len(value)] = value[:len(out[at:at + len(value)])]
    else:
        other = int(rng.integers(0, size))
        out[at:at + length], out[other:other + length] = (
            out[other:other + length], out[at:at + length])
    return bytes(out)


class Audit:
    """Trials and failures, by kind."""

    def __init__(self) -> None:
        self.trials: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.sentences: list[str] = []

    @contextmanager
    def trial(self, kind: str) -> Iterator[None]:
        """Count a trial, and what it raises that is not the package's own."""
        self.trials[kind] += 1
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            yield
        except (InputError, MalformedImage) as error:
            self.refused[kind] += 1
            if '\n' in str(error):
                self.fail(kind, f'more than one line: {error}')
        except Exception:
            self.fail(kind, traceback.format_exc(limit=-6))
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)

    def fail(self, kind: str, sentence: str) -> None:
        """Note a failure."""
        self.failures[kind] += 1
        self.sentences.append(f'{kind}: {sentence}')

    def recording(self, kind: str, path: Path, written: set[bytes] | None) -> None:
        """Read a damaged recording; `written` holds what may come out of it."""
        with self.trial(kind):
            reader = bags.Reader(path)
            reader.choose_cameras(list(reader.topics))
            for recorded in reader:
                message = recorded.message
                if written is not None and bytes(message.data) not in written:
                    self.fail(kind, 'a message that was never written')
                try:
                    image, _ = to_image(message)
                except MalformedImage:
                    continue
                data = bytes(message.data)
                if data[:4] == b'\x89PNG' and not any(
                        np.array_equal(image, picture(i)) for i in range(COUNT)):
                    self.fail(kind, 'a damaged PNG gave a picture')
            reader.close()

    def picture(self, kind: str, data: bytes) -> None:
        """Decode a damaged picture."""
        with self.trial(kind):
            size = decoder.size(data)
            image = decoder.decode(data)
            if image.shape != (*size, 3) or image.dtype != np.uint8:
                self.fail(kind, f'{image.dtype} {image.shape} of a picture that claims {size}')
            if kind == 'PNG' and not np.array_equal(image, picture(0)):
                self.fail(kind, 'a damaged PNG gave another picture')

    def message(self, rng: np.random.Generator) -> None:
        """Convert a message whose fields contradict each other."""
        kind = 'messages'
        with self.trial(kind):
            number = int(rng.integers(0, COUNT))
            if rng.random() < 0.5:
                data = (PNGS if rng.random() < 0.5 else JPEGS)[number]
                if rng.random() < 0.5:
                    data = damaged(data, rng)
                to_image(bags.compressed_image_message(data, str(rng.choice(FORMATS)), 0, ''))
                return
            message = bags.image_message(picture(number), 'bgr8', 0, '')
            message.encoding = str(rng.choice([*ENCODINGS, '16UC1', '32FC1', 'nv24', '?']))
            for field in ('height', 'width', 'step', 'is_bigendian'):
                if rng.random() < 0.3:
                    setattr(message, field, int(rng.choice([0, 1, 63, 65, 97, 4097, 2 ** 32 - 1])))
            if rng.random() < 0.3:
                message.data = message.data[:int(rng.integers(0, message.data.size))]
            to_image(message)


def run(trials: int, seed: int) -> Audit:
    """Return what came of so many damaged recordings, pictures and messages each."""
    audit, rng = Audit(), np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        whole = recordings(directory)
        sound = {bytes(message.data) for _, _, message in messages()}
        for path in [*whole.values(), directory / 'sqlite', directory / 'mcap']:
            for recorded in bags.Reader(path):
                to_image(recorded.message)
        files = pictures()
        for data in files.values():
            decoder.decode(data)
        peak = _memory()
        resource.setrlimit(resource.RLIMIT_DATA, (_mapped() + ALLOWED, resource.RLIM_INFINITY))
        kinds, picture_kinds = list(whole), list(files)
        for i in range(trials):
            kind = kinds[i % len(kinds)]
            path = directory / f'damaged{"".join(whole[kind].suffixes)}'
            path.write_bytes(damaged(whole[kind].read_bytes(), rng))
            audit.recording(kind, path, sound if 'checksums' in kind else None)
            path.unlink()
            if i % 5 == 0:
                audit_metadata(audit, directory, whole, rng)
            kind = picture_kinds[i % len(picture_kinds)]
            data = damaged(files[kind], rng)
            if data != files[kind]:
                audit.picture(kind, data)
            audit.message(rng)
        grown = _memory() - peak
        if grown > ALLOWED:
            audit.fail('memory', f'{grown >> 20} MiB more than whole ones')
    return audit


def audit_metadata(audit: Audit, directory: Path, whole: dict[str, Path],
                   rng: np.random.Generator) -> None:
    """Read a recording whose metadata.yaml is damaged."""
    path = whole['mcap'].parent / 'metadata.yaml'
    text = path.read_bytes()
    try:
        path.write_bytes(damaged(text, rng))
        audit.recording('metadata', whole['mcap'].parent, None)
    finally:
        path.write_bytes(text)


def _memory() -> int:
    """Return the most memory that this process has had, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _mapped() -> int:
    """Return what RLIMIT_DATA counts of this process, bytes."""
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith('VmData:'):
            return int(line.split()[1]) << 10
    raise RuntimeError('no VmData')


def main() -> int:
    """Run the trials, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument('--trials', type=int, default=500, metavar='N',
                        help='damaged recordings, pictures and messages each (default: 500)')
    parser.add_argument('--seed', type=int, default=0, metavar='N')
    args = parser.parse_args()
    cv2.setNumThreads(1)  # each thread's memory would count
    audit = run(args.trials, args.seed)
    print(f'{"kind":<20} {"trials":>7} {"refused":>8} {"failures":>9}')
    for kind, count in sorted(audit.trials.items()):
        print(f'{kind:<20} {count:>7} {audit.refused[kind]:>8} {audit.failures[kind]:>9}')
    for sentence in audit.sentences[:20]:
        print(sentence)
    print(f'{sum(audit.trials.values())} trials, {sum(audit.failures.values())} failures')
    return 1 if audit.failures else 0


if __name__ == '__main__':
    sys.exit(main())
