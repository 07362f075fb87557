# SPDX-License-Identifier: Apache-2.0
"""Libraries that not every machine has, imported when something of them is first used."""

from __future__ import annotations

from functools import cache
from importlib import import_module
import os
from types import ModuleType
from typing import Any

from trt_segmentation.errors import missing_library
from trt_segmentation.system import files


class Library:
    """
    An optional module that looks like the imported one.

    So a file names it at its top, type checkers see its types, and the package still imports on
    a machine without it:

        if TYPE_CHECKING:
            import onnx
        else:
            onnx = Library('onnx', 'Reading a network', 'cpu')
    """

    def __init__(self, name: str, purpose: str, extra: str, modules: tuple[str, ...] = ()):
        """
        Import nothing yet.

        :param name, purpose, extra: as `missing_library` takes them
        :param modules: modules inside it that it does not import by itself
        """
        self._name, self._purpose, self._extra, self._modules = name, purpose, extra, modules

    def __getattr__(self, attribute: str) -> Any:
        """Return something of the module; raises InputError with what to install without it."""
        try:
            module = import_module(self._name)
            for inner in self._modules:
                import_module(f'{self._name}.{inner}')
        except ImportError:
            raise missing_library(self._name, self._purpose, self._extra) from None
        return getattr(module, attribute)


@cache
def import_matplotlib() -> ModuleType:
    """
    Import matplotlib, which would leave a list of the machine's fonts in the home directory.

    It takes a tenth of a second to make; where MPLCONFIGDIR is set it is kept there.

    :raises ImportError: if it is not installed
    :raises InputError: if no temporary file can be written
    """
    variable = 'MPLCONFIGDIR'
    if variable in os.environ:
        return import_module('matplotlib')
    with files.temporary_directory() as directory:
        os.environ[variable] = directory
        try:
            import_module('matplotlib.font_manager')
        finally:
            del os.environ[variable]
    return import_module('matplotlib')
