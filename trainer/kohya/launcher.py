"""A command line that was pasted whole, with ``accelerate launch ... train_network.py`` before its arguments."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import UserError

if TYPE_CHECKING:
    from .read import Values

SCRIPTS = {"train_network": None, "sdxl_train_network": "sdxl", "sd3_train_network": "sd3-medium"}
"""The scripts that are done here -> the family that they say the model is of."""
WHOLE = {"train_db", "fine_tune", "sdxl_train", "sd3_train", "train_textual_inversion", "sdxl_train_textual_inversion"}
LAUNCHER = re.compile(
    r"(?:.*[/\\])?(?:accelerate|torchrun|python[\d.]*|py|uv|poetry|conda|pipenv)(?:\.exe)?|\w+=.*", re.I
)
"""What a pasted line may begin with: a launcher by any path, or a variable of the environment."""
CONTINUATIONS = ("\\", "^", "`", "\\\n", "&&", ";")


def is_launcher(word: str) -> bool:
    return bool(LAUNCHER.fullmatch(word)) and not word.startswith("--")


def launched(words: Sequence[str]) -> tuple[list[str], Values]:
    """A line that was pasted whole: the words after the script's name, and notes on those before it.

    Line continuations (a lone backslash, ^ or backtick), which another shell passes on, are left out.

    :raises UserError: the script trains something else.
    """
    from .names import near
    from .read import Values

    found = Values()
    kept = [word for word in words if word.strip() not in CONTINUATIONS]
    following = [*kept, "--"][1:]
    kept = [re.sub(r"[\^`]\s*$|\\?\n\s*$", "", word) if after.startswith("--") else word
            for word, after in zip(kept, following, strict=True)]  # fmt: skip
    if len(kept) != len(words):
        found.notes.append("line continuations are left out")
    at = next((i for i, word in enumerate(kept) if word.lower().endswith(".py")), None)
    if at is None:
        if kept and is_launcher(kept[0]) and "=" not in kept[0]:
            raise UserError(f"{kept[0]}: no script of sd-scripts follows; begin with the arguments of train_network.py")
        return kept, found
    before, script = kept[:at], re.split(r"[/\\]", kept[at])[-1][:-3].lower()
    if before and not is_launcher(before[0]):
        return kept, found
    if script in WHOLE:
        what = "an embedding" if "inversion" in script else "the whole model"
        raise UserError(f"{script}.py: it trains {what}, which is not here; train_network.py's arguments train a LoRA")
    if script not in SCRIPTS:
        near_by = near(script, SCRIPTS) or f"there is {', '.join(f'{one}.py' for one in SCRIPTS)}"
        raise UserError(f"{script}.py: it is no script that is done here; {near_by}")
    found.family = SCRIPTS[script]
    if before:
        found.notes.append(f"{' '.join(before)}: the launcher is not needed; its words are passed over")
    if any(word.startswith(("--num_processes", "--multi_gpu", "--num_machines")) for word in before):
        found.notes.append("several GPUs are used by `torchrun -m trainer train ...`")
    return kept[at + 1 :], found
