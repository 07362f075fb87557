# SPDX-License-Identifier: Apache-2.0
"""How large a picture may be, and what is said of one that is none."""

from __future__ import annotations

MAX_SIDE = 16384
MAX_PIXELS = 1 << 26
"""Pictures that are larger are not looked at: a small compressed one can claim any size."""


class MalformedImage(Exception):
    """Report what cannot be an image; `cause` is one of `CAUSES`."""

    def __init__(self, cause: str, text: str):
        """Take the cause, by which it is counted, and a sentence for the log."""
        super().__init__(text)
        self.cause = cause


CAUSES = ('zero_size', 'absurd_size', 'odd_size', 'unknown_encoding', 'short_step', 'short_data',
          'unreadable', 'undecodable', 'damaged', 'wrong_format')
"""Why a message is no image."""


def check_size(height: int, width: int) -> None:
    """Raise MalformedImage unless there are pixels, and not too many."""
    if height <= 0 or width <= 0:
        raise MalformedImage('zero_size', f'the size is {width}x{height}')
    if max(height, width) > MAX_SIDE or height * width > MAX_PIXELS:
        raise MalformedImage('absurd_size', f'the size is {width}x{height}; at most {MAX_SIDE} to '
                             f'a side and {MAX_PIXELS} pixels are taken')


def damaged(text: str) -> MalformedImage:
    """Return the error for a picture that was whole once."""
    return MalformedImage('damaged', text)
