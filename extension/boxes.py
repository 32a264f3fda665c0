"""Captions in boxes on the page: a box writes over what it showed, never over what somebody else has written since."""

from __future__ import annotations

import hashlib
import secrets
import threading
from pathlib import Path

from ..trainer.errors import UserError
from ..trainer.runs.events import read_object
from . import captions, words
from .page import Context, short
from .store import write_json


class Boxes:
    """What each box showed, as it says itself, and what this page has written from it."""

    def __init__(self, context: Context):
        self.addresses, self.refused = context.addresses, context.home.own / "captions-refused.json"
        self._written: dict[str, str] = {}
        self._refused: dict[str, str] = {}
        self._one_at_a_time = threading.Lock()

    def token(self, picture: Path, caption: str | None) -> str:
        """What a box carries unseen: its picture's address, a mark of this showing, and what it shows."""
        return f"{self.addresses.url(picture)} {secrets.token_hex(8)} {_digest(caption or '')}"

    def save(self, text: str, token: str, leaving: bool = True) -> None:
        """Save what stands in a box, if somebody has typed there. UserError: the caption was changed elsewhere since
        it was shown; raised once for each text, and only when the box is left."""
        address, mark, shown = (*token.split(" "), "", "")[:3]
        picture = self._picture(address)
        if picture is None:
            return
        with self._one_at_a_time:
            before, typed, now = self._written.get(mark, shown), _digest(text), captions.current(picture)
            if typed == before:
                return
            if _digest(now) in (before, typed):
                captions.save(picture, text)
                self._written[mark] = typed
            elif leaving and self._refused.get(mark) != typed:
                self._refused[mark] = typed
                self._refuse(picture, text, now)

    def holds(self, text: str, token: str) -> bool:
        """Whether the caption of the box's picture says this."""
        picture = self._picture(token.split(" ")[0])
        return picture is not None and captions.line(text) == captions.line(captions.current(picture))

    def _refuse(self, picture: Path, text: str, now: str) -> None:
        both = {"typed here": text, "written elsewhere": now}
        write_json(self.refused, {**read_object(self.refused), str(picture): both})
        raise UserError(words.CAPTION_KEPT.format(picture.name, short(now), short(text), self.refused))

    def _picture(self, address: str) -> Path | None:
        """The picture that the page showed above the box."""
        if not address:
            return None
        _, _, signature, side, name = address.split("?")[0].split("/")
        path = self.addresses.path(signature, int(side), name)
        return path if path is not None and path.is_file() else None


def _digest(text: str) -> str:
    return hashlib.sha256(captions.line(text).encode()).hexdigest()[:16]
