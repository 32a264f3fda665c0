"""``pairs check``: everything that is odd about a folder of pairs or ratings, before hours are spent on it."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import UserError
from ..runs.files import is_file
from . import pictures
from .pairs_file import IMAGES, PAIRS, RATINGS, Pair, Rating, contradictions, read
from .pictures import EXTENSIONS, Unreadable

KINDS = {
    "line": ("error", "lines that are no rows"),
    "missing": ("error", "pictures that are not there"),
    "unreadable": ("error", "pictures that cannot be read"),
    "empty prompt": ("error", "rows without a prompt"),
    "same picture": ("error", "pairs of a picture with itself"),
    "contradiction": ("error", "pairs that contradict each other (A over B, B over A)"),
    "one-sided": ("error", "ratings that are all alike"),
    "repeated": ("note", "rows that say the same as an earlier one"),
    "near-identical": ("note", "pairs whose pictures look almost the same"),
    "copies": ("note", "files with the same content as another one"),
    "tie": ("note", "ties, which are not trained on"),
    "shapes": ("note", "pairs of different shapes: the rejected picture is fitted to the chosen one's bucket"),
    "long": ("note", "prompts of more than about 75 tokens, which most text encoders cut"),
    "script": ("note", "prompts that are not in Latin script, which CLIP's tokenizer hardly knows"),
    "unused": ("note", "pictures that no row names"),
}


@dataclass
class Checked:
    """What a folder holds, and what is odd about it."""

    pairs: int = 0
    ratings: int = 0
    prompts: int = 0
    findings: dict[str, list[str]] = field(default_factory=dict)
    """Kind (see ``KINDS``) -> one text for each case, lines first."""

    def add(self, kind: str, texts: Iterable[str]) -> None:
        found = list(texts)
        if found:
            self.findings.setdefault(kind, []).extend(found)

    @property
    def sound(self) -> bool:
        """Whether one can train on it."""
        return not any(KINDS[kind][0] == "error" for kind in self.findings)

    def lines(self) -> list[str]:
        """One line for each kind, the worst first."""
        lines = []
        for kind, (grade, what) in KINDS.items():
            if found := self.findings.get(kind):
                lines.append(f"{grade}: {what}: {len(found)} ({'; '.join([*found[:3], *['...'] * (len(found) > 3)])})")
        return lines

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "sound": self.sound}


@dataclass(frozen=True)
class Look:
    """A picture as it matters here."""

    sha: str
    size: tuple[int, int]
    small: np.ndarray
    """[32, 32] grey, 0..255."""

    def resembles(self, other: Look) -> bool:
        """Almost the same: equal gradients of brightness on an 8x8 grid, but for two, and 2 % apart at most."""
        mine, its = (one.small.reshape(8, 4, 8, 4).mean((1, 3)) for one in (self, other))
        flips = sum(int(((np.diff(mine, axis=i) > 0) != (np.diff(its, axis=i) > 0)).sum()) for i in (0, 1))
        return flips <= 2 and float(np.abs(self.small - other.small).mean()) < 0.02 * 255


def check_pairs(folder: Path | str) -> Checked:
    """Look at ``pairs.jsonl`` and ``ratings.jsonl`` of a folder and at every picture in it.

    :raises UserError: neither file is there.
    """
    folder = Path(folder)
    if not any((folder / name).is_file() for name in (PAIRS, RATINGS)):
        raise UserError(f"{folder.as_posix()}: there is no {PAIRS} and no {RATINGS}; give the folder that holds one")
    result = Checked()
    pairs = _read(result, folder / PAIRS, Pair)
    ratings = _read(result, folder / RATINGS, Rating)
    result.pairs, result.ratings = len(pairs), len(ratings)
    named = [(n, name) for n, row in pairs for name in (row.chosen, row.rejected, row.mask) if name]
    named += [(n, row.image) for n, row in ratings]
    looks = _looks(result, folder, named)
    _prompts(result, [(n, row.prompt) for n, row in [*pairs, *ratings]])
    _pairs(result, pairs, looks)
    if len(ratings) > 0 and len({row.liked for _, row in ratings}) == 1:
        result.add("one-sided", [f"all {len(ratings)} are {'liked' if ratings[0][1].liked else 'disliked'}"])
    _repeated(result, [(n, (row.prompt, row.image)) for n, row in ratings], looks)
    copies = Counter(look.sha for look in looks.values())
    result.add("copies", (name for name, look in looks.items() if copies[look.sha] > 1))
    images = folder / IMAGES
    here = [f"{IMAGES}/{path.name}" for path in images.iterdir()] if images.is_dir() else []
    used = {name for _, name in named}
    result.add("unused", sorted(name for name in here if name not in used and name.lower().endswith(EXTENSIONS)))
    return result


def _read(result: Checked, path: Path, kind: type) -> list[tuple[int, Any]]:
    if not path.is_file():
        return []
    rows, problems = read(path, kind)
    result.add("line", problems)
    return rows


def _looks(result: Checked, folder: Path, named: list[tuple[int, str]]) -> dict[str, Look]:
    """Each picture that can be read."""
    looks: dict[str, Look] = {}
    for number, name in {name: (number, name) for number, name in reversed(named)}.values():
        path = folder / name
        if not is_file(path):
            result.add("missing", [f"line {number}: {name}"])
            continue
        try:
            data = path.read_bytes()
            image, _ = pictures.pixels(data)
        except (Unreadable, OSError) as error:
            result.add("unreadable", [f"line {number}: {name} ({error})"])
            continue
        small = Image.fromarray(image).convert("L").resize((32, 32), Image.Resampling.BOX)
        sha = hashlib.sha256(data).hexdigest()
        looks[name] = Look(sha, (image.shape[1], image.shape[0]), np.asarray(small, np.float32))
    return looks


def _prompts(result: Checked, prompts: list[tuple[int, str]]) -> None:
    result.prompts = len({prompt for _, prompt in prompts})

    def lines(kind: str, test: Callable[[str], bool]) -> None:
        result.add(kind, (f"line {number}: '{prompt[:40]}'" for number, prompt in prompts if test(prompt)))

    lines("empty prompt", lambda prompt: not prompt.strip())
    lines("long", lambda prompt: len(re.findall(r"[^\W\d_]+|\d|[^\w\s]", prompt)) > 75)
    lines("script", _foreign)


def _foreign(prompt: str) -> bool:
    """Whether more than a third of the letters are not Latin."""
    letters = [char for char in prompt if char.isalpha()]
    other = sum(not unicodedata.name(char, "").startswith(("LATIN", "FULLWIDTH LATIN")) for char in letters)
    return other * 3 > len(letters) > 0


def _pairs(result: Checked, pairs: list[tuple[int, Pair]], looks: dict[str, Look]) -> None:
    result.add("tie", (f"line {number}" for number, row in pairs if row.tie))
    seen = [(n, row, looks[row.chosen], looks[row.rejected]) for n, row in pairs
            if row.chosen in looks and row.rejected in looks]  # fmt: skip
    result.add("same picture", (f"line {n}" for n, _, a, b in seen if a.sha == b.sha))
    close = [(n, row) for n, row, a, b in seen if a.sha != b.sha and a.resembles(b)]
    result.add("near-identical", (f"line {n}" for n, row in close if not row.mask and not row.tie))
    shapes = (
        f"line {n}: {a.size[0]}x{a.size[1]} and {b.size[0]}x{b.size[1]}" for n, _, a, b in seen if a.size != b.size
    )
    result.add("shapes", shapes)
    decided = [(n, row, a, b) for n, row, a, b in seen if not row.tie and a.sha != b.sha]
    circles = contradictions([(row.prompt, a.sha, b.sha) for _, row, a, b in decided])
    result.add("contradiction", (f"line {decided[i][0]}" for i in circles))
    _repeated(result, [(n, (row.prompt, row.chosen, row.rejected)) for n, row, _, _ in seen], looks)


def _repeated(result: Checked, rows: list[tuple[int, tuple[str, ...]]], looks: dict[str, Look]) -> None:
    first: dict[tuple[str, ...], int] = {}
    for number, (prompt, *names) in rows:
        key = (prompt, *(looks[name].sha if name in looks else name for name in names))
        if first.setdefault(key, number) != number:
            result.add("repeated", [f"line {number} = line {first[key]}"])
