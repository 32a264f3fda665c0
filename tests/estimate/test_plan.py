"""memory.plan = "auto": what it chooses, what it leaves alone, and what a run keeps of it."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from typing import get_args

import pytest
import short_runs as runs

from pixelkiln.trainer.cli import main
from pixelkiln.trainer.commands.check import planned
from pixelkiln.trainer.config import PLANNED_ANEW, PLANNED_ONCE, load, loads, parse
from pixelkiln.trainer.estimate import plan as planning
from pixelkiln.trainer.estimate import report
from pixelkiln.trainer.estimate.gpus import Gpu
from pixelkiln.trainer.families.load import identify
from pixelkiln.trainer.losses.options import PixelOptions
from pixelkiln.trainer.training.build import scan
from pixelkiln.trainer.training.loop import train

pytestmark = pytest.mark.slow
AUTO = {"memory.plan": "auto", "run.precision": "auto", "data.resolution": 512, "run.batch": 4, "adapter.rank": 32}
HERE = "pixelkiln.trainer.commands.check.gpus.here"
SHARE = "memory.checkpointing_fraction"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    root = tmp_path_factory.mktemp("plans")
    runs.pictures(root / "pictures", size=(512, 512))
    return root


def made(home, **more):
    return runs.config(home, {**AUTO, **more})


def asking(config, free: float = 100.0) -> report.Estimator:
    return report.Estimator(config, identify(config.model), scan(config)[1], Gpu("RTX 3060", free, free, "cuda", True))


def gb(config, share: float, optimizer: str = "AdamW") -> float:
    options = {"memory.gradient_checkpointing": share > 0, SHARE: share or 1.0, "optimizer.kind": optimizer}
    return asking(config)(config.changed(options)).gb


def choose(config, free: float, kept=None) -> planning.Plan:
    return planning.choose(config, asking(config, free), kept or {})


def room_for(needed: float) -> float:
    return needed / (1 - planning.MARGIN) + 1e-6


def test_with_room_nothing_is_recomputed_and_the_optimizer_is_plain(home):
    config = made(home)
    plan = choose(config, 100.0)
    assert not plan.config.memory.gradient_checkpointing and plan.config.optimizer.kind == "AdamW"
    assert (plan.config.memory.base_weights, plan.config.memory.text_weights) == ("full", "full")
    assert plan.missed is None and "nothing faster" in plan.lines[1]


def test_it_is_the_fastest_that_fits_with_the_margin(home):
    """Between what the whole and what nothing recomputed take; its neighbour, faster, does not fit any more."""
    config = made(home)
    whole, least = gb(config, 0.0), gb(config, 1.0, "AdamW8bit")
    assert least < gb(config, 0.5) < whole
    plan = choose(config, room_for((whole + gb(config, 0.5)) / 2))
    assert plan.chosen.fits and plan.chosen.fit.gb <= plan.chosen.room
    assert 0 < plan.chosen.share <= 0.5
    assert plan.missed and not plan.missed.fits and plan.missed.seconds < plan.chosen.seconds
    assert "as fast) takes" in plan.lines[1] and plan.as_json()["next"]["gb"] == round(plan.missed.fit.gb, 2)
    exact = choose(config, room_for(whole))
    assert exact.chosen.share == 0 and exact.config.optimizer.kind == "AdamW"
    without = choose(config, whole)
    assert without.choices != exact.choices, "the margin is left"


def test_less_room_never_makes_a_run_faster(home):
    config = made(home)
    whole, least = gb(config, 0.0), gb(config, 1.0, "AdamW8bit")
    rooms = [whole, *(least + part * (whole - least) for part in (0.75, 0.5, 0.25)), least]
    seconds = [choose(config, room_for(one)).chosen.seconds for one in rooms]
    assert seconds == sorted(seconds) and seconds[0] < seconds[-1]


def test_weights_are_quantized_only_where_nothing_exact_fits(home):
    config = made(home)
    least = gb(config, 1.0, "AdamW8bit")
    assert choose(config, room_for(least)).config.memory.base_weights == "full"
    plan = choose(config, room_for(least * 0.97))
    own = plan.config.memory
    assert own.base_weights != "full" or own.cpu_offload_checkpointing
    nothing = choose(config, 0.2)
    assert not nothing.chosen.fits and "does NOT fit" in nothing.lines[0] and nothing.missed is None


def test_pairs_go_one_by_one_before_weights_are_quantized(home):
    config = runs.config(home, {**AUTO, "objective.kind": "dpo", "data.resolution": 256}, data="data.pairs")
    plan = choose(config, room_for(gb(config, 1.0, "AdamW8bit") - 0.001))
    assert plan.config.memory.grad_cache and plan.config.memory.base_weights == "full"


RECOMPUTED = {"memory.gradient_checkpointing": True}
BY_HAND = [
    RECOMPUTED, {"memory.gradient_checkpointing": False}, {**RECOMPUTED, SHARE: 0.3}, {"memory.base_weights": "int8"},
    {"optimizer.kind": "SGDNesterov"}, {"memory.text_weights": "nf4"}, {"memory.blocks_on_gpu": 2},
    {**RECOMPUTED, "memory.cpu_offload_checkpointing": True},
]  # fmt: skip


@pytest.mark.parametrize("set_by_hand", BY_HAND)
@pytest.mark.parametrize("free", [0.2, 100.0])
def test_what_is_set_stays(home, set_by_hand, free):
    plan = choose(made(home, **set_by_hand), free)
    for name, value in set_by_hand.items():
        assert plan.config.value(name) == value
        assert name not in plan.choices and plan.config.is_set(name)
    assert f"set by hand: {sorted(set_by_hand)[0]}" in plan.lines[-1] or len(set_by_hand) > 1


@pytest.mark.parametrize(
    "more", [{}, {**RECOMPUTED, "memory.base_weights": "int8"}, {**RECOMPUTED, SHARE: 0.3}], ids=["", "int8", "a share"]
)
def test_compiled_blocks_are_planned_as_they_can_be(home, more):
    """Compiled blocks are never streamed, nor with quantized weights where not all of them are recomputed."""
    plan = choose(made(home, **more, **{"memory.compile": "denoiser"}), 0.2)
    own = plan.config.memory
    assert (own.compile, own.blocks_on_gpu, plan.chosen.fits) == ("denoiser", "all", False)
    assert (own.base_weights == "full") == (SHARE in more)


def test_the_decode_plan_is_written_out(home):
    choices = get_args(PixelOptions.model_fields["decode"].annotation)
    by_size = {"loss.pixel.decode": "by_size" if "by_size" in choices else "auto"}
    config = made(home, **by_size)
    roomy = choose(config, 100.0)
    assert roomy.once["loss.pixel.decode"] == "full" == roomy.config.terms()["pixel"][0].decode
    large = choose(made(home, **by_size, **{"data.resolution": 1024, "run.batch": 1}), 100.0)
    assert large.once["loss.pixel.decode"] == "midcrop" and large.once["loss.pixel.window"] == 256
    by_hand = choose(made(home, **{"loss.pixel.decode": "window"}), 100.0)
    assert "loss.pixel.decode" not in by_hand.once
    kept = choose(config, 100.0, {"loss.pixel.decode": "midcrop", "loss.pixel.window": 64})
    assert kept.config.terms()["pixel"][0].decode == "midcrop" and kept.config.terms()["pixel"][0].window == 64


def test_an_estimate_that_the_search_made_is_not_made_again(home, monkeypatch):
    config = made(home, **{"loss.pixel.mode": "mixed"})
    asked = asking(config)
    plan = planning.choose(config, asked, {})
    monkeypatch.setattr(report, "estimate", None)
    assert asked(plan.config).gb == plan.chosen.fit.gb
    assert planning.choose(config, asked, {}).choices == plan.choices


def test_a_plan_is_written_so_that_the_next_start_may_choose_anew(home):
    config = made(home)
    plan = choose(config, room_for(gb(config, 1.0)))
    assert plan.config.memory.gradient_checkpointing
    text = plan.config.to_toml()
    tables = loads(text)
    for name in PLANNED_ANEW:
        table, key = name.split(".")
        assert key not in tables[table]
    for name in PLANNED_ONCE:
        table, key = name.split(".")
        assert tables[table][key] == plan.config.value(name)
    assert "# memory.plan chose memory.gradient_checkpointing = true" in text
    again = parse(tables)
    assert again.optimizer == plan.config.optimizer and not again.memory.gradient_checkpointing
    assert plan.config.changed({"run.seed": 3}).memory == plan.config.memory, "a change keeps what is planned"


def test_before_a_plan_nothing_of_it_is_written(home):
    """The page writes whole configurations before they run."""
    tables = loads(made(home).to_toml())
    assert "kind" not in tables["optimizer"] and "base_weights" not in tables["memory"]
    assert loads(made(home, **{"memory.plan": "manual"}).to_toml())["optimizer"]["kind"] == "AdamW"


def test_a_run_is_planned_and_a_continued_one_keeps_what_changes_it(home, monkeypatch):
    """Chosen on a full GPU: an 8-bit optimizer. Continued on an empty one: that stays, checkpointing goes."""
    config = made(home, **{"run.name": "kept", "run.steps": 2, "run.precision": "fp32"})
    least = gb(config, 1.0, "AdamW8bit")
    here = Gpu("RTX 3060", least, least, "cuda", True)
    monkeypatch.setattr(
        "pixelkiln.trainer.commands.check.gpus.here", lambda wanted: replace(here, free=room_for(least))
    )
    runs.stop_after(monkeypatch, 1)
    assert train(config, planner=planned) == 130
    folder = home / "runs" / "kept"
    tables = loads((folder / "config.toml").read_text("utf-8"))
    assert tables["memory"]["plan"] == "auto" and tables["optimizer"]["kind"] == "AdamW8bit"
    log = (folder / "log.txt").read_text("utf-8") if (folder / "log.txt").exists() else ""
    events = runs.events(config)
    assert any("memory plan: gradient checkpointing" in str(e) for e in events) or "memory plan" in log
    monkeypatch.undo()
    monkeypatch.setattr(HERE, lambda wanted: replace(here, free=100.0))
    for start in (config, load(folder / "config.toml")):
        made_again, _ = planned(start, True, None, lambda line: None)
        assert made_again.optimizer.kind == "AdamW8bit" and not made_again.memory.gradient_checkpointing
    assert train(config, resume=True, planner=planned) == 0
    new, _ = planned(config, False, None, lambda line: None)
    assert new.optimizer.kind == "AdamW"


def test_check_shows_the_plan(home, capsys):
    config = made(home)
    (home / "c.toml").write_text(config.to_toml(only_set=True), "utf-8")
    command = partial(main, ["check", str(home / "c.toml"), "--card=RTX 3060"])
    assert command() == 0
    shown = capsys.readouterr().out
    assert "plan      no gradient checkpointing, AdamW, base weights full" in shown and " to " in shown
    assert main(["check", str(home / "c.toml"), "--card=RTX 3060", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)["fit"]["plan"]
    assert plan["fits"] and plan["choices"]["optimizer.kind"] == "AdamW" and plan["margin"] == planning.MARGIN


def test_a_configuration_of_version_2_keeps_what_its_preset_set(tmp_path):
    (tmp_path / "old.toml").write_text('config_version = 2\npreset = "sdxl-character-8gb"\n[model]\npath = "m"\n')
    old = load(tmp_path / "old.toml")
    assert (old.memory.plan, old.memory.base_weights, old.optimizer.kind) == ("manual", "nf4", "AdamW8bit")
    assert old.memory.gradient_checkpointing
    (tmp_path / "new.toml").write_text('config_version = 3\npreset = "sdxl-character-8gb"\n[model]\npath = "m"\n')
    new = load(tmp_path / "new.toml")
    assert new.memory.plan == "auto" and not any(new.is_set(name) for name in (*PLANNED_ANEW, *PLANNED_ONCE))
    (tmp_path / "mine.toml").write_text("config_version = 2\n[model]\npath = 'm'\n")
    assert load(tmp_path / "mine.toml").memory.plan == "manual", "no plan, no change"
    old = (1.0, 1.0)
    for name, ratios in {"sd15-detail-8gb": (*old, 0.1, 0.1), "sdxl-detail-16gb": (*old, 0.1, 0.1),
                         "demo": (*old, 1.0, 0.1), "demo_dpo": (*old, 1.0, 0.1)}.items():  # fmt: skip
        weights = []
        for version in (1, 2, 3, 4):
            (tmp_path / "v.toml").write_text(f"config_version = {version}\npreset = '{name}'\n[model]\npath = 'm'\n")
            weights.append(load(tmp_path / "v.toml").terms()["pixel"][0].auto_ratio)
        assert weights == list(ratios), name
