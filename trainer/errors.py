"""The one exception for people: its message is a line that somebody who does not know the code can act on."""

from __future__ import annotations


class UserError(ValueError):
    """Something that a person can put right: an option, a file, a folder, a device.

    The message reads *where: what is wrong; what would be right*. Command line, page and nodes show it as one line and
    the command line exits with code 2. Every other exception is a programming mistake: a traceback and exit code 1.
    It is a ``ValueError`` so that pydantic gives it the option's place when a validator raises it.
    """
