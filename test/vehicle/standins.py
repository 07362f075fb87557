# SPDX-License-Identifier: Apache-2.0
"""
Objects that stand in for TensorRT's, which only a real library can make.

Enums and the classes to derive from (ILogger, IInt8EntropyCalibrator2, IProgressMonitor) are the
bindings' own. Builder, network, parser and so on are made by the library, so over a stub there
are none; a stand-in answers for them, but only to names that the real class has, with as many
arguments as the real method takes and enum members of the real type. So the package's code runs
to its end on each version, and touches nothing that this version lacks.
"""

from __future__ import annotations

import enum
import re


class Standin:
    """Answers for an object of a class of the bindings, with `answers` by name."""

    def __init__(self, module, kind, **answers):
        members = self.__dict__
        members['_module'], members['_class'] = module, getattr(module, kind)
        members['_answers'], members['calls'], members['values'] = answers, [], {}

    def __getattr__(self, name):
        real = self._real(name)
        if isinstance(real, property):
            return self.values.get(name, self._answers.get(name))

        def method(*arguments):
            self._check(name, real.__doc__, arguments)
            self.calls.append((name, *arguments))
            answer = self._answers.get(name, True)
            return answer(*arguments) if callable(answer) else answer
        return method

    def __setattr__(self, name, value):
        real = self._real(name)
        assert isinstance(real, property) and real.fset, f'{self._class}.{name} cannot be set'
        kind = re.search(r'-> ([\w.]+)', real.fget.__doc__ or '')
        if isinstance(value, enum.Enum) or _is_pybind_enum(value):
            assert kind is None or kind[1].split('.')[-1] == type(value).__name__
        self.values[name] = value

    def _real(self, name):
        """Return the member of the real class; a dunder that Python looks for is no use of it."""
        if name.startswith('__'):
            raise AttributeError(name)
        assert hasattr(self._class, name), f'{self._class.__name__} has no {name}'
        return getattr(self._class, name)

    def _check(self, name, doc, arguments):
        """Compare arguments with the signatures that pybind11 writes into the docstring."""
        signatures = re.findall(rf'^(?:\d+\. )?{name}\(self: [^,)]+(?:, )?(.*)\) ->', doc,
                                re.MULTILINE)
        assert signatures, f'no signature of {name} in {doc!r}'
        assert any(_fits(signature, arguments) for signature in signatures), (
            f'{name}{arguments} does not fit {signatures}')


def _fits(signature: str, arguments: tuple) -> bool:
    """Tell whether arguments fit the parameters of one overload."""
    parameters = re.findall(r'(\w+): ([\w.\[\], |]+?)(\s*=\s*[^,]+)?(?=, \w+: |$)', signature)
    required = [p for p in parameters if not p[2]]
    if not len(required) <= len(arguments) <= len(parameters):
        return False
    return all(not _is_pybind_enum(value) or kind.split('.')[-1] == type(value).__name__
               for value, (_, kind, _) in zip(arguments, parameters))


def _is_pybind_enum(value) -> bool:
    """Tell whether a value is a member of one of the bindings' enums."""
    return hasattr(type(value), '__members__')


class Module:
    """The bindings with stand-ins for what the library makes; all else is the real thing."""

    def __init__(self, module, **replaced):
        self._module, self._replaced = module, replaced

    def __getattr__(self, name):
        return self._replaced[name] if name in self._replaced else getattr(self._module, name)
