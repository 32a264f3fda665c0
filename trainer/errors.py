"""The one exception for people: its message is a line that somebody who does not know the code can act on."""

from __future__ import annotations

import unicodedata


def escaped(text: str) -> str:
    r"""Text for one line: control characters and what no file can hold as ``\n``, ``\x08``, ``\ud800``."""
    bad = ("Cc", "Cs", "Zl", "Zp")
    return "".join(repr(one)[1:-1] if unicodedata.category(one) in bad else one for one in text)


class UserError(ValueError):
    """Something that a person can put right: an option, a file, a folder, a device.

    The message reads *where: what is wrong; what would be right*. Command line, page and nodes show it as one line and
    the command line exits with code 2. Every other exception is a programming mistake: a traceback and exit code 1.
    It is a ``ValueError`` so that pydantic gives it the option's place when a validator raises it.
    """
