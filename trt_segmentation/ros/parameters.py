# SPDX-License-Identifier: Apache-2.0
"""The node's parameters: declared, checked, and described for the documentation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.node import Node
from rclpy.parameter import Parameter

from trt_segmentation.engines import BACKENDS, PRECISIONS

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
            name=self.name, description=self.description, read_only=self.settable == AT_START,
            additional_constraints=f'one of {", ".join(self.choices)}' if self.choices else '')
        if self.range and isinstance(self.default, float):
            descriptor.floating_point_range = [
                FloatingPointRange(from_value=self.range[0], to_value=self.range[1])]
        elif self.range:
            descriptor.integer_range = [
                IntegerRange(from_value=self.range[0], to_value=self.range[1], step=1)]
        return descriptor


PARAMETERS = (
    Declaration('bundle', '', 'The bundle directory: network, contract and calibration.'),
    Declaration('backend', 'auto', 'What runs the engine; auto takes the best there is.',
                choices=('auto', *BACKENDS)),
    Declaration('precision', 'int8', 'The precision of the engine; auto takes the fastest built.',
                choices=(*PRECISIONS, 'auto')),
    Declaration('store', '', 'Where built engines live; empty for $TRT_SEGMENTATION_STORE, else '
                "the user's cache directory."),
    Declaration('build_missing', True, 'Build the engine if the store has none; else the node '
                'stays unconfigured and says which command to run.'),
    Declaration('autostart', True, 'Configure and activate without being asked to.', AT_START),
    Declaration('max_frame_age_ms', 200, 'A frame older than this is dropped, before inference '
                'and again before publishing.', AT_ANY_TIME, (1, 10000)),
    Declaration('strict_stamps', False, 'Drop frames whose stamp is from another clock; else '
                'their age is counted from their arrival.', AT_ANY_TIME),
)

_BY_NAME = {declaration.name: declaration for declaration in PARAMETERS}


def declare(node: Node, is_unconfigured: Callable[[], bool]) -> SimpleNamespace:
    """
    Declare all parameters on a node and return their values, which follow later changes.

    :param is_unconfigured: tells whether the parameters that need that may change now
    """
    values = SimpleNamespace()
    for declaration in PARAMETERS:
        parameter = node.declare_parameter(declaration.name, declaration.default,
                                           declaration.descriptor())
        if reason := _objection(declaration, parameter.value):
            raise ValueError(reason)
        setattr(values, declaration.name, parameter.value)

    def on_set(parameters: Iterable[Parameter]) -> SetParametersResult:
        ours = [parameter for parameter in parameters if parameter.name in _BY_NAME]
        for parameter in ours:
            declaration = _BY_NAME[parameter.name]
            reason = _objection(declaration, parameter.value)
            if declaration.settable == UNCONFIGURED and not is_unconfigured():
                reason = (f'{parameter.name} takes effect when the node configures: deactivate '
                          'and clean it up first')
            if reason:
                return SetParametersResult(successful=False, reason=reason)
        for parameter in ours:
            setattr(values, parameter.name, parameter.value)
        return SetParametersResult(successful=True)

    node.add_on_set_parameters_callback(on_set)
    return values


def _objection(declaration: Declaration, value: Any) -> str:
    """Return why a value cannot be taken, or ''."""
    if declaration.choices and value not in declaration.choices:
        return (f'{declaration.name}: found {value!r}, expected one of '
                f'{", ".join(declaration.choices)}')
    return ''
