"""An adapter whose strength changes over the steps of a sampler, with ComfyUI's own hooks and keyframes."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

from ..trainer.errors import UserError
from . import host, load
from .node import In, Node, Out, Result

LINEAR, STEPS = "linear", "in steps"
FINENESS = 0.02
"""Between two keyframes of a line."""


def points(text: str) -> list[tuple[float, float]]:
    """``0: 0, 0.3: 1`` as (part of the sampling, strength), in rising order. UserError for anything else."""
    found = []
    for part in filter(None, (one.strip() for one in re.split(r"[,;\n]", text))):
        match = re.fullmatch(r"(\d*\.?\d+)\s*(%?)\s*[:=]\s*([-+]?\d*\.?\d+)", part)
        at = float(match[1]) / (100 if match[2] else 1) if match else -1.0
        if match is None or not 0 <= at <= 1:
            raise UserError(f"schedule: '{part}' is not understood; write for example 0: 0, 0.3: 1, 80%: 0.5")
        found.append((at, float(match[3])))
    if not found or any(b[0] <= a[0] for a, b in pairwise(found)):
        raise UserError(f"schedule: '{text}' needs points in rising order; write for example 0: 0, 0.3: 1, 80%: 0.5")
    return found


def keyframes(text: str, between: str) -> list[tuple[float, float]]:
    """The points as keyframes, the first of which begins at 0; lines between them in small steps."""
    given = points(text)
    found = [] if given[0][0] == 0 else [(0.0, given[0][1])]
    for (start, low), (end, high) in pairwise(given):
        count = max(1, round((end - start) / FINENESS)) if between == LINEAR and low != high else 1
        found += [(start + (end - start) * i / count, low + (high - low) * i / count) for i in range(count)]
    return [*found, given[-1]]


def _schedule(
    model: Any, positive: Any, negative: Any, adapter: str, schedule: str, between: str, check: str,
    path: str | None = None,
) -> Result:  # fmt: skip
    import comfy.hooks

    file = host.adapter_path(adapter, path)
    frames = keyframes(schedule, between)
    if file is None:
        return Result((positive, negative), host.text("no adapter is chosen: the prompts are unchanged"))
    ready = load.prepare(model, None, file, check)
    hooks = comfy.hooks.create_hook_lora(lora=ready.tensors, strength_model=1.0, strength_clip=0.0)
    group = comfy.hooks.HookKeyframeGroup()
    for number, (at, strength) in enumerate(frames):
        group.add(comfy.hooks.HookKeyframe(strength=strength, start_percent=at, guarantee_steps=int(number == 0)))
    hooks.set_keyframes_on_hooks(hook_kf=group)
    changed = (comfy.hooks.set_hooks_for_conditioning(one, hooks) for one in (positive, negative))
    line = f"{file.name}: {len(ready.match.fits)} of {ready.match.total} modules, {len(frames)} keyframes"
    return Result(tuple(changed), host.text([line, *([f"problem: {ready.problem}"] if ready.problem else [])]))


def _check(schedule: str | None = None) -> None:
    if schedule is not None:
        points(schedule)


SCHEDULE = Node(
    id="PixelkilnAdapterSchedule",
    name="Adapter over steps (Pixelkiln)",
    about="An adapter whose strength changes while a picture is drawn: points of the sampling and strengths at "
    "them. The text encoders stay as they are. Each change of strength patches the model again, so lines take longer "
    "than steps.",
    run=_schedule,
    inputs=(
        In("model", "MODEL", "The model that will draw; the adapter is compared with it."),
        In("positive", "CONDITIONING", "The prompt."),
        In("negative", "CONDITIONING", "The negative prompt."),
        In("adapter", "COMBO", "A file from the loras folders.", options=host.adapters),
        In("schedule", "STRING", "Points of the sampling and strengths: 0: 0, 0.3: 1, 80%: 0.5.",
           default="0: 0, 0.5: 1", multiline=True),
        In("between", "COMBO", "From point to point in a line, or each strength until the next point.", default=LINEAR,
           options=(LINEAR, STEPS)),
        load.CHECK,
        load.PATH,
    ),
    outputs=(
        Out("positive", "CONDITIONING", "The prompt, for the sampler."),
        Out("negative", "CONDITIONING", "The negative prompt, for the sampler."),
    ),
    aliases=("lora schedule", "hook keyframes", "lora strength over time", "prompt scheduling"),
    fingerprint=load.fingerprint,
    check=_check,
)  # fmt: skip
NODES = (SCHEDULE,)
