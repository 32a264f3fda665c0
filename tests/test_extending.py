"""A loss, an objective, their options and an optimizer from a module outside the tree."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import fork_server
import pytest
import short_runs as runs

HERE = Path(__file__).resolve().parent
OUTSIDE = '''
"""What somebody else's package would hold."""
from typing import ClassVar, Literal

import torch

from pixelkiln.trainer.diffusion.types import ObjectiveOutput
from pixelkiln.trainer.losses.options import TermOptions
from pixelkiln.trainer.losses.term import mean, residual
from pixelkiln.trainer.objectives.common import pair_metrics, weighted
from pixelkiln.trainer.objectives.options import Data, ObjectiveOptions
from pixelkiln.trainer.registry import losses, objectives, option


class LogCoshOptions(TermOptions):
    sharpness: float = option(1.0, kohya="log_cosh_sharpness", label="Sharpness", gt=0)
    """Errors well above its inverse count linearly."""


@losses.register("log_cosh", LogCoshOptions)
def log_cosh(options, parts):
    return lambda step: mean((options.sharpness * residual(step, parts.in_x0)).cosh().log(), step.batch.mask)


class HingeOptions(ObjectiveOptions):
    title: ClassVar[str] = "Pairs (hinge): a margin, then nothing more"
    data: ClassVar[tuple[Data, ...]] = ("pairs",)

    kind: Literal["hinge"] = "hinge"
    """Preference pairs up to a margin."""
    gap: float = option(0.5, label="Gap", ge=0)
    """The loser's error has to be larger by this much."""


class Hinge:
    needs_reference = False
    valued = ("winner",)

    def __init__(self, options):
        self.options, self.state = options, {}

    def __call__(self, errors, reference, step) -> ObjectiveOutput:
        w, l = step.batch.rows.pairs()
        inside = errors[l] - errors[w]
        return weighted((self.options.gap - inside).clamp(min=0), step, pair_metrics(inside, errors[w], errors[l]))

    def update(self, sums, count):
        pass


@objectives.register("hinge", HingeOptions)
def hinge(options, parts):
    return Hinge(options)


class Sign(torch.optim.Optimizer):
    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                p -= group["lr"] * p.grad.sign()
'''
FLAGS = {"loss.log_cosh.sharpness": 2.0, "objective.kind": "hinge", "optimizer.kind": "outside.Sign"}


@pytest.mark.slow
def test_parts_from_outside_the_tree_train_and_are_in_flags_form_and_documents(tmp_path):
    """In a process of its own: what is registered there stays there."""
    (tmp_path / "outside.py").write_text(OUTSIDE, "utf-8")
    code = f"import conftest, outside, test_extending; test_extending.within({str(tmp_path)!r})"
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), str(tmp_path)]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def within(folder: str) -> None:
    root = Path(folder)
    config = runs.config(root, FLAGS | {"run.steps": 3}, data="data.pairs")
    ((name, (options, objective)),) = config.terms().items()
    assert (name, options.sharpness, objective.kind, config.notes()) == ("log_cosh", 2.0, "hinge", [])
    _trains(config)
    _documents()
    _flags(root, config)
    _form()


def _trains(config) -> None:
    losses = [loss for loss, _ in runs.trajectory(config)]
    terms = [event["terms"] for event in runs.events(config) if event["kind"] == "step"]
    assert len(losses) == 3 and len(set(losses)) == 3 and all(0 < loss < 1 for loss in losses)
    assert {key.partition("/")[0] for row in terms for key in row} == {"log_cosh"} and "log_cosh/margin" in terms[0]
    whole = runs.config(Path(config.run.out).parent, FLAGS | {"run.steps": 5, "run.name": "w"}, data="data.pairs")
    longer = config.changed({"run.steps": 5})
    assert runs.trajectory(longer, resume=True) == runs.trajectory(whole)


def _documents() -> None:
    from pixelkiln.trainer.commands.options import reference_markdown

    lines = reference_markdown().splitlines()
    at = lines.index("## [loss.log_cosh]")
    row = "- **`sharpness`** [log_cosh_sharpness] — number, > 0, default `1.0`. Errors well above its inverse"
    assert f"{row} count linearly." in lines[at:]
    at = lines.index("## [objective (kind = hinge)]")
    assert lines[at + 2] == '- **`kind`** — "hinge", default `"hinge"`. Preference pairs up to a margin.'


def _flags(root: Path, config) -> None:
    code, out, err = _check(config, "--json", "--loss.log_cosh.sharpness=3", "--objective.gap", "0.25")
    assert code == 0, err
    answer = json.loads(out)
    wanted = {**config.terms()["log_cosh"][0].model_dump(), "sharpness": 3.0}
    assert answer["terms"] == {"log_cosh": {"loss": wanted, "objective": "hinge"}} and answer["fit"]["gb"] > 0
    code, _, err = _check(config, "--loss.log_cosh.sharpness=0")
    assert code == 2 and "loss.log_cosh.sharpness: 0 does not fit; it should be greater than 0" in err
    code, _, err = _check(config, "--loss.log_cosh.sharpnes=1")
    assert code == 2 and "did you mean 'sharpness'?" in err
    code, _, err = _check(runs.config(root, FLAGS | {"run.name": "pictures"}))
    assert code == 2 and "it needs pairs, but [data] gives pictures" in err


def _check(config, *words: str) -> tuple[int, str, str]:
    from pixelkiln.trainer.cli import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        return main(["check", str(fork_server.file_of(config)), *words]), out.getvalue(), err.getvalue()


def _form() -> None:
    from pixelkiln.extension import fields

    (row,) = fields.rows()["loss.log_cosh.sharpness"]
    assert fields.label(row) == "Sharpness" and fields.make(row, 2.0).value == "2"
    assert fields.objectives()["hinge"] == "Pairs (hinge): a margin, then nothing more"
    assert fields.usual_data("hinge") == "data.pairs"
    assert [fields.key_of(one) for one in fields.search(fields.rows(), "gap", None, "hinge")] == ["objective.gap"]
