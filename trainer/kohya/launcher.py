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
OTHERS = (
    (r"(sdxl_)?train_textual_inversion\w*", "an embedding"),
    (r"train_db|fine_tune|(sdxl|sd3)_train", "the whole model"),
    (r"((sdxl|sd3|flux)_)?train_control_?net\w*", "a ControlNet"),
    (r"(flux|lumina|hunyuan|anima|hv|wan|fpack|qwen|zimage|chroma|hidream|kandinsky|ltx)\w*_train\w*",
     "a model of another family"),
    (r"((sdxl|flux)_)?train_leco\w*", "a LECO"),
)  # fmt: skip
"""Other scripts of sd-scripts and its siblings -> what they train."""
LAUNCHER = re.compile(
    r"(?:.*[/\\])?(?:accelerate(?:-launch)?|torchrun|deepspeed|i?pythonw?[\d.]*|py|uv|poetry|conda|pipenv)(?:\.exe)?",
    re.I,
)
"""A launcher by any path. More may stand before the script: a terminal's prompt, the shell's words, variables."""
CONTINUATIONS = ("\\", "^", "`")
ENDS = ("&&", "&", "||", "|", ";", ">", ">>", "2>", "2>&1", "#")
"""Words after which a shell's line goes on with something else, or with a comment."""
DASHES = re.compile(r"(?:-?[\u2010-\u2015\u2212]{1,2}|-)(?=([A-Za-z_][\w.]*)(=|$))")
"""One hyphen, or what word processors and web pages make of two, before the name of an argument."""
QUOTES = "\u201c\u201d\u201e\u201f\u00ab\u00bb\u2018\u2019"


def begins_line(words: Sequence[str]) -> bool:
    """Whether these words are a pasted line: they name a training script, or begin with a launcher."""
    return _script_at(words) is not None


def _script_at(words: Sequence[str]) -> int | None:
    """Where a pasted line names its script; its length where a launcher begins one that names none; None elsewhere."""
    names = [_script(word, before) for before, word in zip(["", *words], words)]
    known = next((i for i, name in enumerate(names) if name in SCRIPTS or _other(name)), None)
    if known is not None:
        return known
    first = next((word for word in words if not re.fullmatch(r"\w+=.*", word)), "")
    if not LAUNCHER.fullmatch(first):
        return None
    return next((i for i, name in enumerate(names) if name), len(words))


def _script(word: str, before: str) -> str:
    """The name of the Python script, or module, that a word names; empty for another word."""
    word = word.lower()
    if before in ("-m", "--module") and word in SCRIPTS:
        return word
    return re.split(r"[/\\]", word)[-1][:-3] if word.endswith(".py") and not word.startswith("--") else ""


def _other(script: str) -> str:
    """What another script trains; empty for one that is not known."""
    return next((what for pattern, what in OTHERS if re.fullmatch(pattern, script)), "")


def launched(words: Sequence[str]) -> tuple[list[str], Values]:
    """A line that was pasted whole: the words after the script's name, and notes on those before it and behind them.

    Line continuations (a lone backslash, ^ or backtick), which another shell passes on, are left out.

    :raises UserError: the script trains something else.
    """
    from .names import near
    from .read import Values

    found = Values()
    kept = one_line(words, found)
    at = _script_at(kept)
    if at is None:
        return kept, found
    if at == len(kept):
        raise UserError(f"{kept[0]}: no script of sd-scripts follows; begin with the arguments of train_network.py")
    before, script = kept[:at], _script(kept[at], kept[at - 1] if at else "")
    if what := _other(script):
        raise UserError(f"{script}.py: it trains {what}, which is not here; train_network.py's arguments train a LoRA")
    if script not in SCRIPTS:
        near_by = near(script, SCRIPTS) or f"there is {', '.join(f'{one}.py' for one in SCRIPTS)}"
        raise UserError(f"{script}.py: it is no script that is done here; {near_by}")
    _refuse_quotes(kept)
    found.family = SCRIPTS[script]
    if before:
        found.notes.append(f"{' '.join(before)}: the launcher is not needed; its words are passed over")
    if _several(before):
        found.notes.append("several GPUs are used by `torchrun -m trainer train ...`")
    return _without_end(kept[at + 1 :], found), found


def one_line(words: Sequence[str], found: Values) -> list[str]:
    """The words of one line in straight characters: without marks of continuation, with hyphens for dashes."""
    kept = [word for word in words if word.strip() not in CONTINUATIONS and (not word or word.strip())]
    following = [*kept, "--"][1:]
    kept = [re.sub(r"[\^`]\s*$|\\?\n\s*$", "", word) if after.startswith("--") else word
            for word, after in zip(kept, following, strict=True)]  # fmt: skip
    if len(kept) != len(words):
        found.notes.append("line continuations are left out")
    plain = [_straight(word) for word in kept]
    if plain != kept:
        found.notes.append("dashes before the names of arguments are read as --")
    return plain


def _straight(word: str) -> str:
    """A flag with the two hyphens that it should have; another word as it is."""
    from .read import known

    match = DASHES.match(word)
    return f"--{word[match.end() :]}" if match and (match[1] in known() or "." in match[1]) else word


def _refuse_quotes(words: Sequence[str]) -> None:
    for word in words:
        if (word.partition("=")[2] if word.startswith("--") else word).startswith(tuple(QUOTES)):
            raise UserError(f'{word}: these are the quotes of a text program; write straight ones, "..."')


def _without_end(words: list[str], found: Values) -> list[str]:
    """The arguments without what a shell would do behind them: ``> log.txt``, ``&& next``, ``# comment``."""
    from .read import known

    for at, word in enumerate(words):
        name = words[at - 1][2:] if at and words[at - 1].startswith("--") else ""
        is_value = name and "=" not in name and name in known() and known()[name].type != "flag"
        if word in ENDS and not is_value:
            found.notes.append(f"{' '.join(words[at:])}: this is for a shell; it is passed over")
            return words[:at]
    return words


def _several(launcher: Sequence[str]) -> bool:
    """Whether a launcher's words ask for several GPUs."""
    line = " ".join(launcher).replace("=", " ")
    counts = re.findall(r"--(?:num_processes|num_machines|num_gpus|nproc_per_node|nproc-per-node|nnodes) (\d+)", line)
    return "--multi_gpu" in line or any(int(one) > 1 for one in counts)
