# SPDX-License-Identifier: Apache-2.0
"""Another process that cleans up after killed ones, at the worst moment."""

from __future__ import annotations

from pathlib import Path

import pytest

from trt_segmentation.system import files


def cleaned_up_before_it_is_held(monkeypatch: pytest.MonkeyPatch, place: Path) -> list[Path]:
    """
    Let what was left in a place be removed when the first directory there is about to be held.

    Return the list of all that is to be held, which grows.
    """
    hold, seen = files._hold, []

    def cleaned_up_before(directory):
        seen.append(directory)
        if len(seen) == 1:
            with monkeypatch.context() as other:
                other.setattr(files, '_hold', hold)
                files.remove_temporary(place)
        return hold(directory)

    monkeypatch.setattr(files, '_hold', cleaned_up_before)
    return seen
