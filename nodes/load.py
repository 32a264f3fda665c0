"""Load adapter: what LoraLoader does, after looking whether the adapter fits, and with a word on what it did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from torch import Tensor

from ..trainer.adapters.loading import HostFile, for_host
from ..trainer.adapters.recognize import what_is
from ..trainer.errors import UserError
from . import adapter, blocks, dense, host
from .blocks import parse as parse_blocks
from .node import In, Node, Out, Result, never_same

ERROR, WARN, COMFYUI = "error", "warn", "as ComfyUI"


@dataclass(frozen=True)
class Loaded:
    model: Any
    clip: Any
    triggers: str
    info: str


@dataclass(frozen=True)
class Match:
    """An adapter file beside a model: what can be patched, and what cannot."""

    tensors: dict[str, Tensor]
    fits: list[str]
    """Modules that a weight of the model takes."""
    unknown: list[str]
    """Modules that the model has no weight for."""
    shaped: list[str]
    """Modules whose weight has another shape, in words."""
    asleep: list[str]
    """Text-encoder modules, when no CLIP is connected; denoiser modules when no MODEL is."""
    notes: list[str]
    lost: list[str] = field(default_factory=list)
    """Modules that are damaged, or of a method that nothing here can patch."""
    problems: list[str] = field(default_factory=list)
    """What else of the file is not applied, in words."""

    @property
    def total(self) -> int:
        return len(self.fits) + len(self.unknown) + len(self.shaped) + len(self.lost)


@dataclass(frozen=True)
class Prepared:
    """An adapter file made ready for a model: what ComfyUI patches with, and where."""

    file: adapter.AdapterFile
    tensors: dict[str, Tensor]
    targets: Mapping[str, tuple[Any, Any]]
    match: Match
    problem: str


def prepare(model: Any, clip: Any, path: Path, check: str) -> Prepared:
    """Read and compare. UserError, with ``check`` at error, when the adapter does not fit whole."""
    file = adapter.read(path)
    targets, biased = _targets(model, clip)
    shapes = {name: shape for name, (_, shape) in targets.items()}
    found = HostFile(file.tensors) if check == COMFYUI else for_host(file.tensors, file.metadata, set(targets))
    match = compare(found.tensors, shapes, model is not None, clip is not None, found.notes)
    if check != COMFYUI:
        match.lost.extend(found.lost)
        match.problems.extend([*found.problems, *_without_bias(match, biased)])
        _unpatched(match, targets)
    problem = _problem(file, match, shapes)
    if problem and check == ERROR:
        raise UserError(f"{path.name}: {problem}; choose another adapter or model, or set check to '{WARN}'")
    if problem:
        host.warn(f"{path.name}: {problem}")
    converted = file.tensors if check == COMFYUI else _only(match.tensors, set(match.fits))
    return Prepared(file, converted, targets, match, problem)


def apply(
    model: Any, clip: Any, path: Path, strength_model: float, strength_clip: float, words: str, check: str
) -> Loaded:
    """The patched model and CLIP. UserError as ``prepare``."""
    ready = prepare(model, clip, path, check)
    file, match, problem = ready.file, ready.match, ready.problem
    new_model, new_clip, used = _patch(model, clip, ready.tensors, ready.targets, strength_model, strength_clip, words)
    for patcher in (new_model, getattr(new_clip, "patcher", None)):
        if patcher is not None and file.metadata and hasattr(patcher, "set_attachments"):
            patcher.set_attachments("lora_metadata", file.metadata)
    lines = [f"matched {len(match.fits)} of {match.total}", *([f"problem: {problem}"] if problem else [])]
    if match.asleep:
        lines.append(f"not used: {len(match.asleep)} modules of a part that is not connected")
    lines += [f"note: {note}" for note in [*match.notes, *dense.remark(file.metadata, strength_model)]]
    lines.append(f"blocks: {used}")
    words_of = adapter.triggers(file.metadata)
    about, *rest = adapter.about(file)
    return Loaded(
        new_model, new_clip, words_of, "\n".join([about, *lines, f"trigger words: {words_of or 'none given'}", *rest])
    )


# ------------------------------------------------------------------------------------------------------- fit and names


def compare(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...] | None], has_model: bool, has_clip: bool,
    notes: list[str] | None = None,
) -> Match:  # fmt: skip
    """Sort the file's modules by what ``shapes`` (name in the file -> weight shape, None: unknown) has for them."""
    match = Match(dict(tensors), [], [], [], [], list(notes or []))
    for name, parts in adapter.by_module(tensors).items():
        if name in shapes:
            theirs, ours = shapes[name], adapter.weight_shape(parts)
            if theirs and ours and (theirs[0], prod(theirs[1:])) != (ours[0], prod(ours[1:])):
                match.shaped.append(
                    f"{name} is for {ours[0]}x{prod(ours[1:])}, the weight is {theirs[0]}x{prod(theirs[1:])}"
                )
            else:
                match.fits.append(name)
        elif not (has_clip if adapter.is_text_encoder(name) else has_model):
            match.asleep.append(name)
        else:
            match.unknown.append(name)
    return match


def _without_bias(match: Match, biased: set[str]) -> list[str]:
    """Take out the differences of biases that the model has no bias for, and name them."""
    odd = []
    for name in match.fits:
        for part in ("diff_b", "b_norm"):
            key = f"{name}.{part}"
            if key in match.tensors and name not in biased:
                odd.append(name)
                del match.tensors[key]
    return [f"{len(odd)} differences of biases have no bias in this model to be added to, as {odd[0]}"] if odd else []


def _unpatched(match: Match, targets: Mapping[str, tuple[Any, Any]]) -> None:
    """Take out of ``match.fits`` what ComfyUI makes no patch of."""
    import comfy.lora

    mine = {name: targets[name][0] for name in match.fits}
    made = set(comfy.lora.load_lora(_converted_by_comfyui(_only(match.tensors, set(mine))), mine))
    lost = [name for name, target in mine.items() if not made & {target, _bias_of(target)}]
    if lost:
        match.fits[:] = [name for name in match.fits if name not in set(lost)]
        match.lost.extend(lost)
        match.problems.append(f"ComfyUI makes no patch of {len(lost)} modules, as {lost[0]}")


def _bias_of(target: Any) -> str:
    """ComfyUI's name of the bias beside a weight; '' where there is none to be patched, as for a part of a weight."""
    return f"{target.removesuffix('.weight')}.bias" if isinstance(target, str) else ""


def _problem(file: adapter.AdapterFile, match: Match, shapes: Mapping[str, tuple[int, ...] | None]) -> str:
    """What is wrong, in words; '' when all is well."""
    sizes = {key: tuple(value.shape) for key, value in file.tensors.items()}
    mine = adapter.model_of({name: adapter.weight_shape(p) for name, p in adapter.by_module(file.tensors).items()})
    theirs = adapter.model_of(shapes)
    what = what_is(sizes)
    if mine and theirs and mine != theirs and (match.shaped or match.unknown):
        return f"this adapter is for {mine}, the model is {theirs}"
    if not match.fits and not match.asleep and (not match.total or what.startswith(NO_ADAPTER)):
        return f"it is {what}" if match.total else "it holds no adapter"
    if not match.fits and match.total:
        reasons = "".join(f"; {line}" for line in (*match.shaped[:1], *match.problems))
        model = f" ({theirs})" if theirs else ""
        return f"it is {what}: none of its {match.total} modules fits this model{model}{reasons}"
    problems = []
    if match.shaped:
        problems.append(f"{len(match.shaped)} of its {match.total} modules have another shape, as {match.shaped[0]}")
    if match.unknown:
        problems.append(
            f"{len(match.unknown)} of its {match.total} modules have no place in this model, as {match.unknown[0]}"
        )
    return "; ".join([*problems, *match.problems])


NO_ADAPTER = ("a whole", "the weights", "a VAE", "a text encoder", "an embedding", "a Control", "an IP-", "a motion",
              "no adapter")  # fmt: skip
"""What ``what_is`` calls files that are no adapters begins with one of these."""


# -------------------------------------------------------------------------------------------------------- with ComfyUI


def _targets(model: Any, clip: Any) -> tuple[dict[str, tuple[Any, tuple[int, ...] | None]], set[str]]:
    """Name in a file -> (ComfyUI's patch target, the shape of that weight or of its slice); and the names of modules
    that have a bias."""
    import comfy.lora

    found: dict[str, tuple[Any, tuple[int, ...] | None]] = {}
    biased: set[str] = set()
    sides = []
    if model is not None:
        sides.append((model.model, comfy.lora.model_lora_keys_unet(model.model, {})))
    if clip is not None:
        sides.append((clip.cond_stage_model, comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {})))
    for network, names in sides:
        weights = network.state_dict()
        for name, target in names.items():
            key, *cut = target if isinstance(target, tuple) else (target,)
            weight = weights.get(key)
            shape = tuple(weight.shape) if weight is not None and weight.is_floating_point() else None
            if shape and cut and cut[0]:
                axis, _, length = cut[0]
                shape = (*shape[:axis], length, *shape[axis + 1 :])
            found[name] = (target, shape)
            if _bias_of(target) in weights:
                biased.add(name)
    return found, biased


def _only(tensors: Mapping[str, Tensor], modules: set[str]) -> dict[str, Tensor]:
    """The tensors of these modules, as they are spelled."""
    return {key: value for name, parts in adapter.by_module(tensors).items() if name in modules
            for key, value in _full_names(name, parts, tensors)}  # fmt: skip


def _full_names(module: str, parts: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    spelt = (
        (f"{module}.{part}" if part else module, f"{module}_lora.{part}", tensor) for part, tensor in parts.items()
    )
    return [(name if name in tensors else old, tensor) for name, old, tensor in spelt]


def _patch(
    model: Any, clip: Any, tensors: dict[str, Tensor], targets: Mapping[str, tuple[Any, Any]], strength_model: float,
    strength_clip: float, words: str,
) -> tuple[Any, Any, str]:  # fmt: skip
    """Patch as ``comfy.sd.load_lora_for_models`` does, each block with its own factor."""
    import comfy.lora

    tensors = _converted_by_comfyui(tensors)
    patches = comfy.lora.load_lora(tensors, {name: target for name, (target, _) in targets.items()})
    block = {target: _block(target) for target in patches}
    factors = blocks.strengths(words, block.values(), (_block(target) for target, _ in targets.values()))
    new_model, new_clip = model and model.clone(), clip and clip.clone()
    for factor in sorted(set(factors.values()) - {0.0}):
        group = {target: patch for target, patch in patches.items() if factors[block[target]] == factor}
        if new_model is not None:
            new_model.add_patches(group, strength_model * factor)
        if new_clip is not None:
            new_clip.add_patches(group, strength_clip * factor)
    return new_model, new_clip, blocks.listed(factors) if not words.strip() else _told(factors)


def _block(target: Any) -> str:
    return blocks.block_of(target[0] if isinstance(target, tuple) else target)


def _converted_by_comfyui(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    try:
        from comfy.lora_convert import convert_lora
    except ImportError:  # ComfyUI before 2024-09
        return tensors
    return convert_lora(tensors)


def _told(factors: Mapping[str, float]) -> str:
    by_factor: dict[float, list[str]] = {}
    for block, factor in factors.items():
        by_factor.setdefault(factor, []).append(block)
    return ", ".join(f"{blocks.listed(some)} at {factor:g}" for factor, some in sorted(by_factor.items(), reverse=True))


# --------------------------------------------------------------------------------------------------------------- nodes

CHECK = In(
    "check", "COMBO",
    "When the adapter does not fit the model whole: stop with an error, apply what fits and say so, or hand the file "
    "to ComfyUI unread.",
    default=ERROR, options=(ERROR, WARN, COMFYUI), advanced=True,
)  # fmt: skip
BLOCKS = In(
    "blocks", "STRING",
    "Strength per block, multiplied with the strengths above: in=1 mid=0.5 out.3-5=0 te=0, or a vector of numbers as "
    "LoRA Block Weight has them. Later words win; empty is 1 everywhere.",
    default="", optional=True,
)  # fmt: skip
PATH = In("path", "STRING", "An adapter file from another node, such as Newest of a run; it comes before the list.",
          optional=True, socket=True)  # fmt: skip
MODEL_OUT = Out("MODEL", "MODEL", "The model with the adapter.")
CLIP_OUT = Out("CLIP", "CLIP", "The text encoders with the adapter.")
TRIGGERS_OUT = Out("trigger_words", "STRING", "What the file says, else its most frequent training tags.")
INFO_OUT = Out("info", "STRING", "How much of it was applied, and the file's own metadata.")


def strength(name: str, of: str) -> In:
    return In(name, "FLOAT", f"How strongly the adapter changes {of}; may be negative.", default=1.0, low=-100.0,
              high=100.0, step=0.01)  # fmt: skip


def _load(
    model: Any, adapter: str, strength_model: float, check: str = ERROR, blocks: str = "", path: str | None = None,
    clip: Any = None, strength_clip: float = 0.0,
) -> Loaded:  # fmt: skip
    file = host.adapter_path(adapter, path)
    if file is None:
        return Loaded(model, clip, "", "no adapter is chosen: model and CLIP are unchanged")
    if strength_model == 0 and strength_clip == 0:
        return Loaded(model, clip, "", f"{file.name}: both strengths are 0: model and CLIP are unchanged")
    return apply(model, clip, file, strength_model, strength_clip, blocks or "", check)


def _run(**inputs: Any) -> Result:
    done = _load(**inputs)
    return Result((done.model, done.clip, done.triggers, done.info), host.text(done.info))


def _run_model_only(**inputs: Any) -> Result:
    done = _load(**inputs)
    return Result((done.model, done.triggers, done.info), host.text(done.info))


def fingerprint(adapter: str | None = None, **others: Any) -> str:
    """Of the file in the list; of what ``path`` brings, its own node tells."""
    if adapter is None:
        return never_same()
    try:
        return host.stamp(host.adapter_path(adapter))
    except UserError as error:
        return str(error)


def check_blocks(blocks: str | None = None) -> None:
    parse_blocks(blocks or "")


_CHOOSE = In("adapter", "COMBO", "A file from the loras folders.", options=host.adapters)

LOAD = Node(
    id="PixelkilnLoadAdapter",
    name="Load adapter (Pixelkiln)",
    about="Puts a LoRA, DoRA, LoHa or LoKr into model and CLIP like Load LoRA, but looks first whether it fits, reads "
    "diffusers and PEFT files too, and tells what was applied. A file replaced under its name is read again.",
    run=_run,
    inputs=(
        In("model", "MODEL", "The model to change."), In("clip", "CLIP", "The text encoders to change."), _CHOOSE,
        strength("strength_model", "the model"), strength("strength_clip", "the text encoders"), CHECK, BLOCKS, PATH,
    ),
    outputs=(MODEL_OUT, CLIP_OUT, TRIGGERS_OUT, INFO_OUT),
    aliases=("lora", "load lora", "lora loader", "peft", "lycoris"),
    fingerprint=fingerprint,
    check=check_blocks,
)  # fmt: skip
LOAD_MODEL_ONLY = Node(
    id="PixelkilnLoadAdapterModelOnly",
    name="Load adapter, model only (Pixelkiln)",
    about="Load adapter without text encoders; what the file has for them is counted and left out.",
    run=_run_model_only,
    inputs=(
        In("model", "MODEL", "The model to change."),
        _CHOOSE,
        strength("strength_model", "the model"),
        CHECK,
        BLOCKS,
        PATH,
    ),
    outputs=(MODEL_OUT, TRIGGERS_OUT, INFO_OUT),
    aliases=("lora", "load lora model only"),
    fingerprint=fingerprint,
    check=check_blocks,
)
NODES = (LOAD, LOAD_MODEL_ONLY)
