"""Strengths per block in words, ``in=1 mid=0.5 out.3-5=0 te=0``, or as a vector, ``1,0,0,1,...``. Knows nothing of
ComfyUI.

A block is named after where its weight lies in the network that ComfyUI loaded: ``in.0``-``in.11``, ``mid``, ``out.0``-
``out.11`` of a U-Net, ``joint.0``-``joint.23`` of SD3, ``double.N`` and ``single.N`` of others, ``clip_l.N``,
``clip_g.N``, ``t5xxl.N`` of the text encoders, and ``base`` for what lies in none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ..trainer.errors import UserError

PRESETS = {
    "everything": "",
    "U-Net only (no text encoder)": "te=0",
    "text encoder only": "all=0 te=1",
    "layout (in, mid)": "out=0",
    "details (out)": "in=0 mid=0",
    "SDXL style (out.1)": "all=0 out.1=1",
    "SDXL content (out.0)": "all=0 out.0=1",
    "soft ends (half in.0-2, out.9-11)": "in.0-2=0.5 out.9-11=0.5",
}
"""SDXL style and content: Frenkel et al. 2024, Implicit Style-Content Separation using B-LoRA."""

_RULE = re.compile(
    r"(?P<name>[A-Za-z][A-Za-z0-9_]*)(?:\.(?P<low>\d+)(?:-(?P<high>\d+))?)?(?P<soft>\?)?=(?P<value>[^=\s]+)"
)


@dataclass(frozen=True)
class Rule:
    name: str
    low: int | None
    high: int | None
    value: float
    soft: bool = False
    """Passed over in a network without such a block."""

    def covers(self, block: str) -> bool:
        name, _, number = block.partition(".")
        groups = {"all", name} | ({"te"} if _is_text(block) else set())
        if self.name not in groups:
            return False
        return self.low is None or (number != "" and self.low <= int(number) <= (self.high or self.low))

    def __str__(self) -> str:
        if self.low is None:
            return self.name
        return f"{self.name}.{self.low}" + (f"-{self.high}" if self.high not in (None, self.low) else "")


_IN, _OUT = [f"in.{i}" for i in range(12)], [f"out.{i}" for i in range(12)]
VECTORS = {
    12: ("SDXL LoRA", ["in.4", "in.5", "in.7", "in.8", "mid", *_OUT[:6]]),
    17: ("SD1.5 LoRA", [*(f"in.{i}" for i in (1, 2, 4, 5, 7, 8)), "mid", *_OUT[3:]]),
    20: ("SDXL LyCORIS", [*_IN[:9], "mid", *_OUT[:9]]),
    26: ("SD1.5 LyCORIS", [*_IN, "mid", *_OUT]),
}
"""Length of a vector -> what it is for and its blocks after the first number, which is the text encoders'. The layouts
of LoRA Block Weight."""
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)"
_VECTOR = re.compile(rf"(?:^|(?<=[\s;]))(?:[^\s:=,;]+:)?({_NUMBER}(?:\s*,\s*{_NUMBER})+)(?=$|[\s;])")


def _words(match: re.Match[str]) -> str:
    """A vector of numbers as rules; blocks that its layout does not name are 0."""
    numbers = re.split(r"\s*,\s*", match[1])
    if len(numbers) not in VECTORS:
        known = ", ".join(f"{n} ({name})" for n, (name, _) in VECTORS.items())
        raise UserError(f"blocks: {len(numbers)} numbers are no block vector; there are vectors of {known}")
    first, *rest = numbers
    named = zip(VECTORS[len(numbers)][1], rest, strict=True)
    return " ".join([f" all=0 te={first} base?={first}", *(f"{block}={value}" for block, value in named), ""])


def parse(text: str) -> list[Rule]:
    """The rules in their order; later ones win. A vector such as ``1,0,0,1,...`` stands for a rule for each block.

    UserError for a word that is no rule.
    """
    rules = []
    for word in re.split(r"[\s,;]+", re.sub(r"\s*=\s*", "=", _VECTOR.sub(_words, text.strip()))):
        if not word:
            continue
        match = _RULE.fullmatch(word)
        value = _number(match["value"]) if match else None
        if match is None or value is None:
            raise UserError(f"blocks: '{word}' is not understood; write for example in=1 mid=0.5 out.3-5=0 te=0")
        low, high = (int(match[key]) if match[key] else None for key in ("low", "high"))
        if low is not None and high is not None and high < low:
            raise UserError(f"blocks: '{word}' runs backwards; write {match['name']}.{high}-{low}={match['value']}")
        soft = bool(match["soft"])
        rules.append(Rule(match["name"].lower(), low, high if high is not None else low, value, soft))
    return rules


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)", text) and abs(float(text)) <= 100 else None


def strengths(text: str, blocks: Iterable[str], network: Iterable[str]) -> dict[str, float]:
    """Block -> factor for ``blocks``; 1 where no rule speaks. UserError: a rule fits no block of ``network``."""
    rules, names, known = parse(text), list(dict.fromkeys(blocks)), list(dict.fromkeys(network))
    for rule in rules:
        if rule.name not in ("all", "te") and not rule.soft and not any(rule.covers(block) for block in known):
            raise UserError(f"blocks: this network has no '{rule}'; it has: all te {listed(known)}")
    factors = dict.fromkeys(names, 1.0)
    for rule in rules:
        factors |= {block: rule.value for block in names if rule.covers(block)}
    return factors


def listed(blocks: Iterable[str]) -> str:
    """``in.1-11 mid out.0-11``."""
    numbers: dict[str, list[int]] = {}
    for block in blocks:
        name, _, number = block.partition(".")
        numbers.setdefault(name, []).extend([int(number)] if number else [])
    found_words = []
    for name, found in numbers.items():
        at = sorted(set(found))
        runs: list[list[int]] = []
        for n in at:
            if runs and n == runs[-1][1] + 1:
                runs[-1][1] = n
            else:
                runs.append([n, n])
        found_words += [f"{name}.{a}" if a == b else f"{name}.{a}-{b}" for a, b in runs] or [name]
    return " ".join(found_words)


def _is_text(block: str) -> bool:
    return re.match(r"(clip|t5|te|llm|text)", block) is not None


_UNET = {"input_blocks": "in", "output_blocks": "out"}


def block_of(key: str) -> str:
    """The block of a weight by its name in ComfyUI's model."""
    text = re.match(r"(\w+)\.(?:transformer|logit_scale|text_projection)\b(.*)", key)
    if text and not key.startswith("diffusion_model."):
        layer = re.search(r"\.(?:layers|block|resblocks)\.(\d+)\.", text[2])
        return f"{text[1]}.{layer[1]}" if layer else text[1]
    inner = key.removeprefix("diffusion_model.")
    match = re.match(r"(input_blocks|output_blocks)\.(\d+)\.", inner)
    if match:
        return f"{_UNET[match[1]]}.{match[2]}"
    if inner.startswith("middle_block."):
        return "mid"
    match = re.match(r"(?:\w+?\.)?(\w+?)(?:_blocks|_layers|_transformer_blocks)?\.(\d+)\.", inner)
    if match and (match[0].count("_blocks.") or match[0].count("layers.") or match[1] in ("blocks", "layers")):
        return f"{'block' if match[1] in ('blocks', 'layers') else match[1]}.{match[2]}"
    return "base"
