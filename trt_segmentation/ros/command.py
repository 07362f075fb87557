# SPDX-License-Identifier: Apache-2.0
"""
The command `segmentation_node`: arguments for a person, and what ROS gives to a node.

Imports rclpy only when the node starts, so that its help and its errors need none.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from itertools import pairwise
import json
import os
import sys

from trt_segmentation import __version__
from trt_segmentation.errors import InputError, install
from trt_segmentation.ros.topics import image_topic, TOPIC
from trt_segmentation.system import environment, files, scripts
from trt_segmentation.system.arguments import Parser

PROGRAM = 'segmentation_node'
ROS = ('source a ROS 2 distribution (source /opt/ros/DISTRIBUTION/setup.bash), or without one: '
       f'{install("ros")}; what is missing: trt-segmentation doctor')
"""What to do about a module of ROS that cannot be imported."""
_EPILOG = """\
Everything after --ros-args is ROS's own: -p NAME:=VALUE sets a parameter, -r FROM:=TO another
name of a topic, --params-file a file of parameters. docs/node.md has them all.

examples:
  segmentation_node my_bundle --camera /camera/image_raw
  segmentation_node my_bundle --camera /camera/image_raw/compressed
  segmentation_node my_bundle --camera /camera/image_raw --ros-args -p max_frame_age_ms:=100
  ros2 run trt_segmentation segmentation_node my_bundle --camera /camera/image_raw
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM; return the exit code."""
    try:
        own, ros = split(sys.argv[1:] if argv is None else argv)
        for before, rule in pairwise(['', *own]):
            if ':=' in rule:
                given = f'{before} {rule}' if before.startswith('-') else rule
                raise InputError(f'{given}: ROS takes it after --ros-args only, as in: '
                                 f'{PROGRAM} BUNDLE --ros-args {given}')
        args = _parser().parse_args(own)
        if args.bundle is not None and not os.path.exists(os.path.expanduser(args.bundle)):
            # A launch file's, which is a parameter, may be on a disk that is mounted later.
            near = files.nearest_path(os.path.expanduser(args.bundle))
            raise InputError(f'{args.bundle}: no such bundle directory{near}; to wait for one, '
                             'name it as the parameter: --ros-args -p bundle:=DIR')
        # What a launch file sets; Fast DDS reads it when the node joins. What is set stays.
        os.environ.update(environment.completed(os.environ))
        environment.keep_memory()
        return _run([PROGRAM, *ros_arguments(args), *ros])
    except InputError as error:
        print(f'{PROGRAM}: {error}', file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:  # a signal before the node has taken them over: it ends as after
        return 0


def split(arguments: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return the arguments outside of `--ros-args ... --`, and the others."""
    own: list[str] = []
    ros: list[str] = []
    inside = False
    for argument in arguments:
        inside = argument == '--ros-args' or (inside and argument != '--')
        if inside or (ros and argument == '--' and ros[-1] != '--'):
            ros.append(argument)
        else:
            own.append(argument)
    return own, ros


def ros_arguments(args: argparse.Namespace) -> list[str]:
    """Return what ROS shall make of the arguments: parameters and names of topics."""
    words: list[str] = []
    if args.bundle is not None:  # as the launch file for one camera has it
        words += ['--params-file', str(environment.config_path('one_camera.yaml'))]
    for name in ('bundle', 'store', 'backend'):
        if (value := getattr(args, name)) is not None:
            # As JSON, since ROS reads a value as YAML.
            words += ['-p', f'{name}:={json.dumps(value, ensure_ascii=False)}']
    if args.camera is not None:
        image, parameters = image_topic(args.camera)
        for name, value in parameters.items():
            words += ['-p', f'{name}:={value}']
        beside = image.rpartition('/')
        for name, topic in (('image', image),
                            ('camera_info', ''.join([*beside[:2], 'camera_info']))):
            words += ['-r', f'{name}:={topic}']
    return ['--ros-args', *words, '--'] if words else []


def _run(argv: list[str]) -> int:
    """Import the node and run it."""
    try:
        import rclpy  # noqa: F401  # the first that is missed where there is no ROS

        from trt_segmentation.ros.node import main as run
    except ImportError as error:
        raise InputError(scripts.unimportable(error, ROS)) from None
    return run(argv)


def topic(text: str) -> str:
    """Return a topic's name; for argparse."""
    if not TOPIC.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f'found {text!r}, expected the name of a topic, as /camera/image_raw')
    return text


def _parser() -> argparse.ArgumentParser:
    """Return the parser of what is outside `--ros-args`."""
    parser = Parser(
        prog=PROGRAM, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
        description='Turn the images of a camera into class and color masks, on time or not at '
                    'all; ends with Ctrl-C.')
    parser.add_argument('bundle', nargs='?', metavar='BUNDLE', help='the bundle directory')
    parser.add_argument('--camera', metavar='TOPIC', type=topic,
                        help='the topic of its images, as /camera/image_raw, or compressed ones, '
                             'as /camera/image_raw/compressed; camera_info is taken from beside '
                             'it (default: image and camera_info)')
    parser.add_argument('--store', metavar='DIR',
                        help='where built engines live (default: $TRT_SEGMENTATION_STORE, else '
                             "the user's cache directory)")
    parser.add_argument('--backend', metavar='NAME',
                        help='what runs the engine: auto, tensorrt, tensorrt_rtx or onnxruntime '
                             '(default: the best there is)')
    parser.add_argument('--version', action='version', version=f'%(prog)s {__version__}')
    return parser


if __name__ == '__main__':
    sys.exit(main())
