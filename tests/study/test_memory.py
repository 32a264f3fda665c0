"""memory.plan = "auto" in a study: one choice for all arms of what changes the results."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import short_runs as runs

from pixelkiln.trainer.config import PLANNED_ONCE
from pixelkiln.trainer.estimate.gpus import Gpu
from pixelkiln.trainer.estimate.plan import left_open, smallest
from pixelkiln.trainer.study import memory, options, plan

TEXT = """
name = "s"
seeds = 1
held_out = 0.4
options = { model.path = "sd15", data.path = "pictures", data.resolution = 64, run.steps = 3, run.device = "cpu", adapter.rank = 2, memory.plan = "auto" }
[[arms]]
name = "plain"
[[arms]]
name = "8 bits"
options = { "memory.base_weights" = "int8" }
[[arms]]
name = "pixel"
options = { "loss.pixel.mode" = "mixed" }
[[arms]]
name = "base"
untrained = true
"""  # noqa: E501


def quiet(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("study")
    runs.pictures(root / "pictures", 6)
    runs.model(root / "sd15")
    (root / "s.toml").write_text(TEXT, "utf-8")
    return plan.make(*options.read(root / "s.toml"))


def test_of_two_choices_the_smaller_counts():
    many = [{"memory.base_weights": "full", "optimizer.kind": "AdamW", "loss.pixel.decode": "full"},
            {"memory.base_weights": "int8", "optimizer.kind": "AdamW8bit"},
            {"memory.base_weights": "nf4", "optimizer.kind": "AdamW", "loss.pixel.decode": "midcrop",
             "loss.pixel.window": 256}, {"loss.pixel.window": 128}]  # fmt: skip
    assert smallest(many) == smallest(many[::-1]) == {
        "memory.base_weights": "nf4", "optimizer.kind": "AdamW8bit", "loss.pixel.decode": "midcrop",
        "loss.pixel.window": 128,
    }  # fmt: skip


def test_every_arm_gets_what_the_neediest_gets_and_keeps_it(made, monkeypatch):
    needs = {"plain": {"optimizer.kind": "AdamW"}, "8 bits": {}, "pixel": {"optimizer.kind": "AdamW8bit",
             "memory.base_weights": "nf4", "loss.pixel.decode": "midcrop", "loss.pixel.window": 128}}  # fmt: skip
    asked = iter(needs.values())
    monkeypatch.setattr(memory, "_choose", lambda *_: SimpleNamespace(once=next(asked), lines=["x"]))
    assert memory.shared(made, quiet, choose=False).arms == made.arms, "a report chooses nothing"
    study = memory.shared(made, quiet)
    configs = {arm.name: arm.config for arm in study.arms}
    assert {one.optimizer.kind for name, one in configs.items() if name != "base"} == {"AdamW8bit"}
    assert (configs["plain"].memory.base_weights, configs["8 bits"].memory.base_weights) == ("nf4", "int8")
    assert configs["pixel"].terms()["pixel"][0].decode == "midcrop" and "pixel" not in configs["plain"].terms()
    assert memory.shared(made, quiet).arms == study.arms == memory.shared(made, quiet, choose=False).arms
    assert left_open(configs["plain"], {"optimizer.kind": "AdamW"}) == {}


@pytest.mark.slow
def test_a_run_of_a_study_chooses_the_rest_for_itself(made, monkeypatch):
    monkeypatch.setattr(memory.gpus, "here", lambda wanted: Gpu("RTX 3060", 100.0, 100.0, "cuda", True))
    (made.folder / "memory.json").unlink(missing_ok=True)
    study = memory.shared(made, quiet)
    assert all(arm.config.is_set(name) for arm in study.arms[:3] for name in PLANNED_ONCE)
    config = study.run_config(study.arms[0], 0)
    before = memory.planned(config, made.found, quiet)
    assert before.memory.plan == "auto" and not before.memory.gradient_checkpointing
    assert not before.is_set("memory.gradient_checkpointing") and before.optimizer.kind == "AdamW"
