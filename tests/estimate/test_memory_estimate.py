"""The estimate against measurement: what a symbolic step holds, and what a real one holds."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import short_runs as runs
import torch
from estimate_checks import DPO, FULL, MIDCROP, SIDE, WINDOW, compare, estimated_peak, wanted

from pixelkiln.trainer.cli import main
from pixelkiln.trainer.commands.check import card_for, check
from pixelkiln.trainer.config import loads, parse
from pixelkiln.trainer.estimate import gpus, memory, report
from pixelkiln.trainer.estimate.fake_model import Shape
from pixelkiln.trainer.estimate.fake_tensors import size_of
from pixelkiln.trainer.families.load import identify
from pixelkiln.trainer.runs import user_cache
from pixelkiln.trainer.training import step_time
from pixelkiln.trainer.training.build import build_session, scan


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("estimate")


@pytest.mark.parametrize("name", ["sd15", "sdxl", "sd3-medium"])
def test_saved_activations_and_peak_of_a_step(home, name):
    saved, peak, inputs, found = compare(wanted(home, name, {}))
    assert found.kept == pytest.approx(saved + inputs, rel=0.1)
    assert estimated_peak(found) == pytest.approx(peak, rel=0.1)


SMALLER = {
    "sd15 checkpointed, full decode": ("sd15", {"memory.gradient_checkpointing": True, **FULL}, "data.path"),
    "sd3 checkpointed, window": ("sd3-medium", {"memory.gradient_checkpointing": True, **WINDOW}, "data.path"),
    "sdxl pairs one by one": ("sdxl", {**DPO}, "data.pairs"),
}
MORE = {
    f"{name} {plan} {checkpointed}": (name, {"memory.gradient_checkpointing": checkpointed, **flags}, "data.path")
    for name in ("sd15", "sdxl", "sd3-medium", "sd3.5-medium")
    for plan, flags in (("no decode", {}), ("full", FULL), ("window", WINDOW), ("midcrop", MIDCROP))
    for checkpointed in (False, True)
}


@pytest.mark.slow
@pytest.mark.parametrize("case", SMALLER)
def test_peak_of_a_step_by_plan(home, case):
    name, flags, data = SMALLER[case]
    _, peak, _, found = compare(wanted(home, name, flags, data))
    assert estimated_peak(found) == pytest.approx(peak, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [{}, {"memory.gradient_checkpointing": True, "loss.dense.weight": 1.0},
                                   {"memory.grad_cache": True, "loss.dense.weight": 1.0},
                                   {"dense.detail": 0.0, "dense.task_switch": "timestep"}])  # fmt: skip
def test_peak_of_a_dense_step(home, flags):
    """Two rows a sample, their targets, the task switch, and the decoder of [loss.dense]."""
    pictures, folder = runs.pictures(home / "pictures"), home / "depth"
    folder.mkdir(exist_ok=True)
    for path in pictures.glob("*.png"):
        np.save(folder / f"{path.stem}.npy", np.linspace(1, 2, 64 * 64, dtype=np.float32).reshape(64, 64))
    base = {"dense.task": "depth", "data.targets": str(folder)}
    saved, peak, inputs, found = compare(wanted(home, "sd15", {**base, **flags}))
    if not flags:
        assert found.kept == pytest.approx(saved + inputs, rel=0.1)
    assert estimated_peak(found) == pytest.approx(peak, rel=0.1)


@pytest.mark.nightly
@pytest.mark.parametrize("case", MORE)
def test_peak_of_a_step_by_every_plan(home, case):
    name, flags, data = MORE[case]
    _, peak, _, found = compare(wanted(home, name, flags, data))
    assert estimated_peak(found) == pytest.approx(peak, rel=0.1)


@pytest.mark.parametrize("kind", ["AdamW", "AdamW8bit", "Lion8bit", "Prodigy", "Adafactor", "AdamWScheduleFree"])
def test_state_of_the_optimizer(home, kind):
    """A step of the configured optimizer on all of the adapter keeps what one parameter of each shape foretells.

    Prodigy keeps no copy of what begins at zero, as the up matrices do; 8-bit ones share a code book.
    """
    config = wanted(home, "sd15", {"optimizer.kind": kind, "adapter.rank": 64})
    p = build_session(config, lambda line: None)
    for parameter in p.optimization.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    p.optimization.optimizer.step()
    held = [
        v
        for s in p.optimization.optimizer.state.values()
        for v in s.values()
        if isinstance(v, torch.Tensor) and v.numel() > 1
    ]
    estimated = memory.optimizer_bytes(config, memory._trained(p))
    shared = {id(v) for v in held if list(v.shape) == [256] and v.dtype == torch.float32}  # bitsandbytes' code books
    actual = size_of(v for v in held if id(v) not in shared)
    assert actual <= estimated <= 1.25 * actual if shared or kind == "Prodigy" else estimated == actual


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd15", pytest.param("sdxl", marks=pytest.mark.nightly)])
def test_a_preset_without_model_or_data_has_its_gigabytes(family):
    """Of the family's public form: weights in bf16 as published, SD1.5's 860 and SDXL's 2567 million numbers."""
    config = parse({"model": {"path": "", "family": family}, "memory": {"gradient_checkpointing": True},
                    "data": {"resolution": 64}, "loss": {"pixel": {"mode": "mixed"}}})  # fmt: skip
    answer = check(config, gpus.named("RTX 3060 12GB"))
    assert answer["data"] is None and answer["fit"]["fits"] and answer["fit"]["precision"] == "bfloat16"
    numbers = {"sd15": 859_520_964, "sdxl": 2_567_463_684}[family]
    assert answer["fit"]["parts"]["weights"] == pytest.approx(numbers * 2 / 2**30, rel=1e-3)


def test_what_is_known_is_not_asked_again(home, monkeypatch):
    config = wanted(home, "sd15", {})
    first = check(config, card_for(config, None, None))["fit"]
    monkeypatch.setattr(report, "estimate", None)
    other = config.model_copy(update={"optimizer": config.optimizer.model_copy(update={"learning_rate": 1e-5})})
    assert check(other, card_for(config, None, None))["fit"]["parts"] == first["parts"]


@pytest.mark.slow
def test_remedies_are_applied_until_it_fits(home, capsys):
    """From what one configuration takes and what its smallest form takes, a size between that only remedies reach."""
    flags = {**FULL, "run.batch": 4, "loss.pixel.decode_batch": 4, "data.resolution": 256}
    config = wanted(home, "sd15", flags)
    found = identify(config.model)
    asked = report.Estimator(config, found, scan(config)[1], gpus.with_memory("0.56", "cpu"))
    whole = asked(config)
    small = asked(config.changed({"loss.pixel.decode_batch": 1, "memory.gradient_checkpointing": True}))
    assert small.gb < whole.gb
    asked.gpu = replace(asked.gpu, free=(small.gb + whole.gb) / 2)
    answer = report.answer(asked, config, 6)
    assert not answer["fits"] and answer["remedies"][-1]["fits"]
    assert all(one["exact"] for one in answer["remedies"])
    changed = report.apply(config, answer, lambda line: None)
    assert asked(changed).fits
    assert changed.run.batch * changed.run.accumulation == 4


def test_too_little_for_anything_is_said(home):
    config = wanted(home, "sd15", {})
    answer = check(config, gpus.with_memory("0.1"))["fit"]
    assert not answer["fits"]
    with pytest.raises(ValueError, match=r"--fit: it needs 0\.\d\d GB at least, and a GPU with 0.1 GB free has 0.10"):
        report.apply(config, answer, lambda line: None)


@pytest.mark.slow
def test_every_run_teaches_the_next_check(home):
    config = wanted(home, "sd15", {"run.steps": step_time.LEAST, "run.name": "paced"})
    before = check(config, card_for(config, None, None))["fit"]
    assert (before["seconds_per_step"] is None and "not measured" in before["pace"]) or "scaled" in before["pace"]
    assert runs.train(config) == 0
    after = check(config, card_for(config, None, None))["fit"]
    assert after["pace"] == "measured here in 19 steps of a run like this" and after["seconds_per_step"] > 0
    short = wanted(home, "sd15", {"run.steps": 2, "run.name": "paced"})
    assert runs.train(short) == 0, "two steps of the same configuration"
    assert check(config, card_for(config, None, None))["fit"]["seconds_per_step"] == after["seconds_per_step"]
    larger = wanted(home, "sd15", {"run.steps": 4, "run.batch": 4})
    scaled = check(larger, card_for(larger, None, None))["fit"]
    assert "scaled from" in scaled["pace"]


def test_pace_is_scaled_by_operations(home, monkeypatch, tmp_path):
    monkeypatch.setenv("PIXELKILN_CACHE", str(tmp_path))
    assert step_time.expect("b", "card", "bfloat16", 200.0) is None
    step_time.expect("a", "card", "bfloat16", 100.0)
    step_time.record("a", "card", "bfloat16", [9.0, *[1.0] * 19])
    step_time.record("c", "another card", "bfloat16", [5.0] * 20)
    assert (found := step_time.expect("b", "card", "bfloat16", 200.0)) and found.seconds == 2.0
    assert (found := step_time.expect("a", "card", "bfloat16", 100.0)) and found.seconds == 1.0


def test_few_steps_teach_nothing_unless_they_were_asked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("PIXELKILN_CACHE", str(tmp_path))

    def known() -> float | None:
        found = step_time.expect("a", "card", "bfloat16", 100.0)
        return found and found.seconds

    step_time.record("a", "card", "bfloat16", [1.0] * 19)
    assert known() is None
    step_time.record("a", "card", "bfloat16", [9.0, 2.0, 2.0], least=3)
    assert known() == 2.0
    step_time.record("a", "card", "bfloat16", [3.0] * 20)
    step_time.record("a", "card", "bfloat16", [9.0, 2.0, 2.0], least=3)
    assert known() == 3.0
    step_time.record("a", "card", "bfloat16", [4.0] * 20)
    assert known() == 4.0


def test_what_is_remembered_survives_damage(monkeypatch, tmp_path):
    monkeypatch.setenv("PIXELKILN_CACHE", str(tmp_path))
    (tmp_path / "x.json").write_text("{torn", "utf-8")
    assert user_cache.known("x") == {}
    for i in range(5):
        user_cache.remember("x", str(i), i, most=3)
    assert list(user_cache.known("x")) == ["2", "3", "4"]


@pytest.mark.parametrize(
    ("text", "total", "bf16"),
    [("RTX 3060 12GB", 12, True), ("rtx 4070 ti super", 16, True), ("GTX 1660", 6, False), ("RTX 2080 Ti", 11, False),
     ("NVIDIA GeForce RTX 4090", 24, True), ("Some Gpu 7.5 GiB", 7.5, True)],
)  # fmt: skip
def test_cards_by_name(text, total, bf16):
    card = gpus.named(text)
    assert (card.total, card.bf16, card.free) == (total, bf16, total - gpus.DESKTOP)


def test_a_card_that_nobody_knows():
    with pytest.raises(ValueError, match=r"--card: the memory of a .Voodoo 2. is not known here; write it behind"):
        gpus.named("Voodoo 2")
    with pytest.raises(ValueError, match="--memory: 'much' is no size; write --memory 8GB"):
        gpus.with_memory("much")


@pytest.mark.slow
def test_commands(home, tmp_path, capsys):
    config = wanted(home, "sd15", {})
    flags = [f"--model.path={config.model.path}", f"--data.path={config.data.path}", "--data.resolution=64"]
    assert main(["check", *flags, "--memory=6GB", "--fit"]) == 0
    assert parse(loads(capsys.readouterr().out)).data.resolution == 64
    assert main(["check", *flags, "--card=RTX 3060", "--json", "--fit", "-o", str(tmp_path / "small.toml")]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["v"] == 1 and answer["fit"]["of_gb"] == 11.4 and (tmp_path / "small.toml").exists()
    assert main(["check", *flags, "--card=RTX 3060", "--memory=6GB"]) == 2
    assert "--card and --memory are both given" in capsys.readouterr().err
    assert main(["check", "--data.resolution=64"]) == 2
    assert "model.family: neither a model nor its family is given" in capsys.readouterr().err
    assert main(["check", *flags, "--run.precision=fp32", "--calibrate"]) == 0
    assert "measured here in 2 steps" in capsys.readouterr().out


def test_two_rows_take_more_than_one_and_less_than_twice(home):
    config = wanted(home, "sdxl", {})
    one, two = (
        estimated_peak(memory.estimate(
            config, identify(config.model), Shape(SIDE, SIDE, ("plain",), rows), torch.float32, "cpu"
        ))
        for rows in (1, 2)
    )  # fmt: skip
    assert one < two < 2 * one


def test_text_encoders_leave_before_pictures_are_encoded(tmp_path, monkeypatch):
    """On a GPU the caches are filled with one kind of encoder at a time; here the same moves go nowhere."""
    p = build_session(wanted(tmp_path, "sdxl", {}), lambda line: None)
    moves: list[str] = []

    def noted(module, name: str, method: str) -> None:
        own = getattr(module, method)
        monkeypatch.setattr(module, method, lambda *args: moves.append(f"{name}.{method}") or own(*args))

    for name, encoder in p.model.family.text_encoders.items():
        noted(encoder, name, "to")
    noted(p.model.family.vae, "vae", "encode")
    p.prepare()
    p.offload_encoders()
    assert moves[:3] == ["te1.to", "te2.to", "vae.encode"]
