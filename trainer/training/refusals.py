"""What makes no sense in a run of this system, each in one line, before anything is read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..data.options import SetOptions
from ..errors import UserError
from ..registry import Options

if TYPE_CHECKING:
    from ..config import Config


def refuse(config: Config) -> None:
    """UserError for the first option that the run's system has no use for and that would mislead."""
    found = _without_dense(config) if config.dense is None else _with_dense(config)
    if (line := next(found, None)) is not None:
        raise UserError(line)


def _set(table: Options) -> list[str]:
    """The options of a table that are not as they are by themselves."""
    fields = type(table).model_fields
    return [name for name in fields if getattr(table, name) != fields[name].get_default(call_default_factory=True)]


def _without_dense(config: Config) -> Iterator[str]:
    for where, one in config.data.named_sets():
        for name in ("targets", "unit", "valid"):
            if getattr(one, name) is not None:
                yield f"{where}.{name}: it is for runs that predict maps; add [dense], or leave it out"
    if config.sample.pictures:
        yield "sample.pictures: they are for runs with [dense]; give sample.prompts"
    if "dense" in config.terms():
        yield "loss.dense: it compares maps of a run with [dense]; add that table, or leave this one out"


def _with_dense(config: Config) -> Iterator[str]:
    assert config.dense is not None
    yield from _data(config)
    yield from _losses(config)
    for name in _set(config.noise):
        yield f"noise.{name}: a run with [dense] has no noise, and one noise level; leave it out"
    for name in ("prompts", "file"):
        if getattr(config.sample, name):
            yield f"sample.{name}: a run with [dense] draws no prompts; name pictures in sample.pictures"
    if config.adapter.text_encoders or not config.adapter.denoiser:
        name = "text_encoders" if config.adapter.text_encoders else "denoiser"
        yield f"adapter.{name}: a run with [dense] trains the U-Net alone, as its prompt is empty; leave it out"
    if config.dense.task_switch == "embedding" and config.adapter.kind != "lora":
        yield (
            f"dense.task_switch: embedding is saved as a rank of a LoRA, and adapter.kind is {config.adapter.kind}; "
            'set it to "timestep"'
        )
    for name, usual in (("clip_skip", None), ("max_tokens", 75)):
        if getattr(config.model, name) != usual:
            yield f"model.{name}: hosts encode the empty prompt of a run with [dense] as usual; leave it out"
    if config.dense.task != "depth":
        for name in ("space", "quantiles"):
            if name in config.dense.model_fields_set:
                yield f"dense.{name}: it is for depth, and dense.task is {config.dense.task}; leave it out"


def _data(config: Config) -> Iterator[str]:
    assert config.dense is not None
    for name in ("pairs", "ratings"):
        if getattr(config.data, name):
            yield f"data.{name}: a run with [dense] learns from pictures with maps; give data.path and data.targets"
    if config.data.sd_scripts_cache:
        yield "data.sd_scripts_cache: a run with [dense] encodes pictures and maps alike; leave it out"
    for where, one in config.data.named_sets():
        for name, why in _UNFIT.items():
            if getattr(one, name) not in (None, False):
                yield f"{where}.{name}: {why}; leave it out"
        yield from _depth_alone(where, one, config.dense.task)


_UNFIT = {
    "face_crop": "it enlarges pictures at random, which changes how far away things are",
    "is_reg": "a run with [dense] has no prompt to regularise",
    "preserve": "a run with [dense] teaches the model another output; [dense] detail keeps outlines",
}


def _depth_alone(where: str, one: SetOptions, task: str) -> Iterator[str]:
    for name in ("unit", "valid") if task != "depth" else ():
        if getattr(one, name) is not None:
            yield f"{where}.{name}: it is for depth, and dense.task is {task}; leave it out"


def _losses(config: Config) -> Iterator[str]:
    assert config.dense is not None
    if config.dense.detail and all(options.decodes for options, _ in config.terms().values()):
        yield "dense.detail: it reconstructs pictures in latents, and no latent loss has a weight; set dense.detail = 0"
    for name, (options, objective) in config.terms().items():
        if options.decodes and name != "dense":
            yield f"loss.{name}: it is made for noisy pictures; in a run with [dense], use [loss.dense] on decoded maps"
        for gate, usual in (("min_level", 0), ("max_level", 1)):
            if getattr(options, gate) != usual:
                yield f"loss.{name}.{gate}: a run with [dense] has one noise level; leave it out"
        if objective.kind != "sft":
            yield f"objective.kind: {objective.kind} learns from votes, a run with [dense] from maps; leave it out"
        if objective.weighed_by:
            yield f"objective.{objective.weighed_by[0]}: a run with [dense] has one noise level; leave it out"
