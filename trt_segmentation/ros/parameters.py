# SPDX-License-Identifier: Apache-2.0
"""The node's parameters: declared, checked, and described for the documentation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
import os
import re
from types import SimpleNamespace
from typing import Any

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSPolicyKind
from rclpy.qos_overriding_options import QoSOverridingOptions

from trt_segmentation.engines import BACKENDS, MAX_BATCH, PRECISIONS
from trt_segmentation.errors import InputError, nearest
from trt_segmentation.recordings.limits import MAX_PIXELS

AT_ANY_TIME = 'at any time'
UNCONFIGURED = 'while unconfigured'
AT_START = 'at start'
"""When a parameter can be set."""


@dataclass(frozen=True)
class Declaration:
    """
    A parameter; its type is the one of its default.

    range: smallest and largest value of a number
    choices: the values that a text can have
    settable: AT_ANY_TIME, UNCONFIGURED or AT_START
    """

    name: str
    default: Any
    description: str
    settable: str = UNCONFIGURED
    range: tuple[float, float] | None = None
    choices: tuple[str, ...] = ()

    def descriptor(self) -> ParameterDescriptor:
        """Return the descriptor that ROS tools show."""
        descriptor = ParameterDescriptor(
            name=self.name, description=self.description,
            additional_constraints=f'one of {", ".join(self.choices)}' if self.choices
            else 'set at start only' if self.settable == AT_START else '')
        if self.range and isinstance(self.default, float):
            descriptor.floating_point_range = [
                FloatingPointRange(from_value=self.range[0], to_value=self.range[1])]
        elif self.range:
            descriptor.integer_range = [
                IntegerRange(from_value=self.range[0], to_value=self.range[1], step=1)]
        return descriptor


RAW, COMPRESSED = 'raw', 'compressed'
AUTO, RELIABLE, BEST_EFFORT = 'auto', 'reliable', 'best_effort'
RELIABILITIES = (AUTO, RELIABLE, BEST_EFFORT)
SOURCE, NETWORK = 'source', 'network'
CPU = 'cpu'
FALLBACKS = ('fp16', 'fp32', CPU)

PARAMETERS = (
    Declaration('bundle', '', 'The bundle directory: network, contract and calibration.'),
    Declaration('backend', 'auto', 'What runs the engine; auto takes the best there is.',
                choices=('auto', *BACKENDS)),
    Declaration('precision', 'int8', 'The precision of the engine; auto takes INT8 unless FP32 '
                'is faster here.', choices=(*PRECISIONS, 'auto')),
    Declaration('gpu', '', 'Which GPU, by index or UUID, as nvidia-smi --list-gpus shows them; '
                'empty for the first that CUDA shows. A process keeps the one that it began '
                'with.'),
    Declaration('dla_core', -1, 'Run on this deep learning accelerator of a Jetson or DRIVE; -1 '
                'for the GPU.', range=(-1, 7)),
    Declaration('gpu_fallback', False, 'Let layers that the DLA cannot run use the GPU.'),
    Declaration('store', '', 'Where built engines live; empty for $TRT_SEGMENTATION_STORE, else '
                "the user's cache directory."),
    Declaration('build_missing', True, 'Build the engine, in a child process, if the store has '
                'none; else the node stays unconfigured and says which command to run.',
                AT_ANY_TIME),
    Declaration('autostart', True, 'Configure and activate without being asked to.', AT_START),
    Declaration('cameras', [''], 'Namespaces of the cameras, which share the engine: each has '
                'CAMERA/image as input and ~/CAMERA/class_mask as output. Empty for one camera '
                'with image and ~/class_mask.'),
    Declaration('max_batch', 1, 'Take the engine that was built for so many images at once '
                '(build --max-batch): of cameras that wait together, as many go through the '
                'network as the build found to be worth it.', range=(1, MAX_BATCH)),
    Declaration('transport', RAW, 'Whether to subscribe to sensor_msgs/Image, or to '
                'sensor_msgs/CompressedImage (JPEG or PNG) at image/compressed.',
                choices=(RAW, COMPRESSED)),
    Declaration('gpu_jpeg', False, 'Decode JPEG images on the GPU, where nvJPEG is installed: '
                'less work for the CPU, but pixels differ by rounding, and more damage is '
                'overlooked.'),
    Declaration('reliability', AUTO, 'Of the image subscription; auto is reliable if every '
                'publisher is, and follows them.', choices=RELIABILITIES),
    Declaration('lazy', False, 'Subscribe to a camera only while somebody subscribes to its '
                'masks.', AT_ANY_TIME),
    Declaration('mask_size', SOURCE, "Masks have the image's size, or the image's size at the "
                "scale of the network's input; ~/camera_info fits either.", AT_ANY_TIME,
                choices=(SOURCE, NETWORK)),
    Declaration('max_image_pixels', 1 << 24, 'A larger image is dropped; a small compressed one '
                'can claim any size.', AT_ANY_TIME, (1, MAX_PIXELS)),
    Declaration('max_frame_age_ms', 200, 'A frame older than this is dropped, before inference '
                'and again before publishing.', AT_ANY_TIME, (1, 10_000)),
    Declaration('mask_deadline_ms', 0, 'The deadline that mask topics offer (QoS), with '
                'liveliness of the longer of it and 1 s; 0 for neither. A subscriber may ask for '
                'as much or less.', range=(0, 60_000)),
    Declaration('masks_on_gpu', False, 'Publish class and color masks from the memory of the GPU, '
                'where engine and ROS 2 can: for subscribers that take CUDA buffers; for any '
                'other the middleware copies them.', AT_ANY_TIME),
    Declaration('strict_stamps', False, 'Drop frames whose stamp is from another clock (more '
                'than 10 s old or 0.5 s ahead); else their age is counted from their arrival. '
                "True in the vehicle's parameter files, which the launch files and "
                '`segmentation_node BUNDLE` take.', AT_ANY_TIME),
    Declaration('max_allowed_processing_time_ms', 100, 'Diagnostics warn if the last frame took '
                'longer.', AT_ANY_TIME, (1, 60_000)),
    Declaration('max_acceptable_consecutive_delay_ms', 1000, 'Diagnostics show an error if '
                'frames have taken longer than allowed for this time.', AT_ANY_TIME,
                (1, 600_000)),
    Declaration('warn_input_gap_ms', 500, 'Diagnostics warn if no image came for this time.',
                AT_ANY_TIME, (1, 600_000)),
    Declaration('error_input_gap_ms', 2000, 'Diagnostics show an error if no image came for '
                'this time.', AT_ANY_TIME, (1, 600_000)),
    Declaration('warn_dropped_share', 0.2, 'Diagnostics warn if this share of the last '
                "second's frames was dropped.", AT_ANY_TIME, (0.0, 1.0)),
    Declaration('error_dropped_share', 0.9, 'Diagnostics show an error if this share of the '
                "last second's frames was dropped.", AT_ANY_TIME, (0.0, 1.0)),
    Declaration('warn_frozen_frames', 30, 'Diagnostics warn if this many images in a row were '
                'equal to the one before.', AT_ANY_TIME, (1, 100_000)),
    Declaration('warn_low_margin_share', 0.5, 'Diagnostics warn if this share of a mask has a '
                'confidence below a tenth.', AT_ANY_TIME, (0.0, 1.0)),
    Declaration('warn_class_drift', 0.5, 'Diagnostics warn if the shares of classes in the last '
                '25 s differ by this total variation from those in the last 500 s.',
                AT_ANY_TIME, (0.0, 1.0)),
    Declaration('shadow_period_s', 10.0, 'How often a served frame is segmented again by the '
                'float network, to know how the masks agree with it on the road; 0 for never.',
                AT_ANY_TIME, (0.0, 3600.0)),
    Declaration('shadow_max_share', 0.05, 'The share of the time that this may take; 0 for never.',
                AT_ANY_TIME, (0.0, 0.5)),
    Declaration('shadow_backend', '', "What runs the float network; empty for the engine's own "
                'backend.', choices=('', *BACKENDS)),
    Declaration('warn_live_agreement', 0.95, 'Diagnostics warn if the median of the last six '
                'such checks is below this share of the pixels.', AT_ANY_TIME, (0.0, 1.0)),
    Declaration('fallback', [''], 'Engines that take the place of one that is not in the store, '
                'fails its acceptance or its self-test, or whose live agreement is below '
                'warn_live_agreement, in this order: fp16 and fp32 of the same backend, cpu for '
                'FP32 by ONNX Runtime. Empty for none: then there are no masks.'),
    Declaration('capture_directory', '', 'Where frames are kept that the check found to be worth '
                'calibrating with; empty for nowhere. docs/closed-loop.md says what is stored.'),
    Declaration('capture_agreement', 0.95, 'A checked frame that agrees on less of its pixels is '
                'kept.', AT_ANY_TIME, (0.0, 1.0)),
    Declaration('capture_max_mb', 1000, 'What all kept frames may take; the oldest ones go.',
                range=(1, 1_000_000)),
    Declaration('capture_min_free_mb', 1000, 'Nothing is kept that would leave less of the disk '
                'free.', range=(0, 10_000_000)),
    Declaration('max_recoveries_per_minute', 3, 'How often the engine is opened again after a '
                'fault, or built again after its build was killed.', AT_ANY_TIME, (0, 60)),
    Declaration('engine_timeout_ms', 10_000, 'If the engine does not return within this time, '
                'the process ends with code 1, to be started again.', AT_ANY_TIME,
                (100, 600_000)),
    Declaration('open_timeout_ms', 120_000, 'If bundle and engine are not opened within this '
                'time, the process ends with code 1, to be started again.', AT_ANY_TIME,
                (1000, 3_600_000)),
)

_BY_NAME = {declaration.name: declaration for declaration in PARAMETERS}

TYPES: dict[str, type] = {'use_sim_time': bool} | {
    declaration.name: type(declaration.default) for declaration in PARAMETERS}
"""The type of each parameter, by name."""


# One or more names joined by slashes, as ROS has them.
_MAX_NAME = 100  # ROS takes 247 for a whole topic name
_NAMESPACE = re.compile(r'[A-Za-z_][A-Za-z0-9_]*(/[A-Za-z_][A-Za-z0-9_]*)*')


def declare(node: Node, is_unconfigured: Callable[[], bool]) -> SimpleNamespace:
    """
    Declare all parameters on a node and return their values, which follow later changes.

    :param is_unconfigured: tells whether the parameters that need that may change now
    :raises InputError: if a parameter was given a value that it cannot have, or no bundle to a
        node that configures by itself
    """
    values = SimpleNamespace()
    for declaration in PARAMETERS:
        try:
            value = node.declare_parameter(declaration.name, declaration.default,
                                           declaration.descriptor()).value
        except (InvalidParameterTypeException, InvalidParameterValueException) as error:
            raise InputError(f'parameter {declaration.name}: {error}') from None
        if value is None:
            raise InputError(f'parameter {declaration.name}: it has no value, or is an empty '
                             'list, which has no type: leave it out')
        if reason := _objection(declaration, value):
            raise InputError(f'parameter {reason}')
        setattr(values, declaration.name, value)
    if values.autostart and not values.bundle:  # with autostart: false it can be set later
        raise InputError('no bundle is named: give its directory as the first argument, or as the '
                         'parameter bundle (-p bundle:=DIR)')

    def on_set(parameters: Iterable[Parameter]) -> SetParametersResult:
        for parameter in parameters:
            # The age of a frame is counted by this clock: it must not change under frames.
            if (parameter.name == 'use_sim_time' and not is_unconfigured()
                    and parameter.value != node.get_parameter('use_sim_time').value):
                return SetParametersResult(successful=False, reason='use_sim_time changes the '
                                           'clock: deactivate the node and clean it up first')
        ours = [parameter for parameter in parameters if parameter.name in _BY_NAME]
        for parameter in ours:
            declaration = _BY_NAME[parameter.name]
            if parameter.value == getattr(values, parameter.name):
                continue  # as when the node's own dump is loaded
            reason = _objection(declaration, parameter.value)
            if declaration.settable == AT_START:
                reason = f'{parameter.name} takes effect when the node starts'
            elif declaration.settable == UNCONFIGURED and not is_unconfigured():
                reason = (f'{parameter.name} takes effect when the node configures: deactivate '
                          'it and clean it up first')
            if reason:
                return SetParametersResult(successful=False, reason=reason)
        for parameter in ours:
            setattr(values, parameter.name, parameter.value)
        return SetParametersResult(successful=True)

    node.add_on_set_parameters_callback(on_set)
    _name_unknown(node)
    return values


def path(name: str, value: str) -> str:
    """
    Return a parameter that is a path, with `~` expanded.

    :raises InputError: if it has a substitution of a launch file
    """
    if '$(' in value:
        raise InputError(f'parameter {name}: found {value!r}; substitutions are made by a launch '
                         'file only: write the path out')
    return os.path.expanduser(value)


def qos_overrides(node: Node, topic: str, entity: str) -> QoSOverridingOptions | None:
    """
    Return what lets ROS's own parameters change the QoS of a topic; None if none was given.

    They are `qos_overrides.TOPIC.ENTITY.reliability` and `.durability`; history and depth stay, as
    only the newest message counts.

    :param topic: absolute
    :param entity: 'subscription' or 'publisher'
    """
    prefix = f'qos_overrides.{topic}.{entity}.'
    if not any(name.startswith(prefix) for name in getattr(node, '_parameter_overrides', ())):
        return None  # a declared parameter would hold the QoS that it had at first
    return QoSOverridingOptions((QoSPolicyKind.RELIABILITY, QoSPolicyKind.DURABILITY))


def _name_unknown(node: Node) -> None:
    """Warn of what was given for this node and is no parameter of it."""
    for name in getattr(node, '_parameter_overrides', ()):
        if not node.has_parameter(name) and not name.startswith('qos_overrides.'):
            node.get_logger().warning(
                f'parameter {name}: there is none of this name, so it does nothing'
                + nearest(name, _BY_NAME))


def camera_names(values: SimpleNamespace) -> list[str]:
    """Return the cameras' namespaces; [''] is one camera without a namespace."""
    # An empty list has no type in a YAML file, so a list of one empty text stands for it.
    return [name for name in values.cameras if name] or ['']


_TYPES = {bool: 'bool', int: 'integer', float: 'double', str: 'string', list: 'string array'}


def markdown_table() -> str:
    """Return the table of parameters for the documentation."""
    lines = ['| parameter | type | default | values | set | description |',
             '|---|---|---|---|---|---|']
    for declaration in PARAMETERS:
        default = declaration.default
        shown = f'`{str(default).lower() if isinstance(default, bool) else default}`'
        if default in ('', ['']):
            shown = 'empty'
        if declaration.choices:
            values = ', '.join(f'`{choice}`' if choice else 'empty'
                               for choice in declaration.choices)
        elif declaration.range:
            values = f'{declaration.range[0]} .. {declaration.range[1]}'
        else:
            values = ''
        lines.append(f'| `{declaration.name}` | {_TYPES[type(default)]} | {shown} | {values} | '
                     f'{declaration.settable} | {declaration.description} |')
    return '\n'.join(lines) + '\n'


def _objection(declaration: Declaration, value: Any) -> str:
    """Return why a value cannot be taken, or ''."""
    if declaration.choices and value not in declaration.choices:
        return (f'{declaration.name}: found {value!r}, expected one of '
                f'{", ".join(declaration.choices)}' + nearest(str(value), declaration.choices))
    if declaration.name == 'fallback':
        return _fallback_problem(value)
    return cameras_problem(value) if declaration.name == 'cameras' else ''


def _fallback_problem(value: list[str]) -> str:
    """Return why a list of fallbacks cannot be taken, or ''."""
    names = [name for name in value if name]
    if unknown := [name for name in names if name not in FALLBACKS]:
        return f'fallback: found {unknown[0]!r}, expected some of {", ".join(FALLBACKS)}'
    return f'fallback: found {value!r}, expected each once' if len(set(names)) < len(names) else ''


def cameras_problem(value: list[str]) -> str:
    """Return why a list of cameras cannot be taken, or ''."""
    names = [name for name in value if name]
    if len(set(names)) != len(names):
        return f'cameras: found {value!r}, expected each camera once'
    if bad := [name for name in names if not _NAMESPACE.fullmatch(name)]:
        return (f'cameras: found {bad[0]!r}, expected a relative namespace of letters, '
                'digits, _ and /')
    if too_long := [name for name in names if len(name) > _MAX_NAME]:
        return (f'cameras: found a name of {len(too_long[0])} characters, expected at most '
                f'{_MAX_NAME}')
    return ''


if __name__ == '__main__':
    print(markdown_table(), end='')
