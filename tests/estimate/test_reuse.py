"""What estimates keep, and that what their keys leave out changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pixelkiln.trainer.config import load
from pixelkiln.trainer.estimate import memory, reuse
from pixelkiln.trainer.optimizers.build import build
from pixelkiln.trainer.optimizers.names import NAMED
from pixelkiln.trainer.optimizers.options import USES, OptimizerOptions, ScheduleOptions
from pixelkiln.trainer.optimizers.schedules import build_schedule

MORE: dict[str, dict[str, Any]] = {
    "cosine_with_min_lr": {"min_lr_ratio": 0.1},
    "warmup_stable_decay": {"decay": 5},
    "piecewise_constant": {"args": {"step_rules": "1:5,0.1:8,0.01"}},
}
TOTAL = 20


def optimizer(**options: Any) -> str | None:
    return reuse.optimizer(OptimizerOptions(**options))


def test_a_value_is_computed_once_for_each_key_and_always_without_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PIXELKILN_CACHE", str(tmp_path))
    made = iter(range(9))
    assert [reuse.once("numbers", key, lambda: next(made)) for key in ("a", "b", "a", None, None, "b")] == [
        0, 1, 0, 2, 3, 1
    ]  # fmt: skip


def test_what_raises_is_not_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIXELKILN_CACHE", str(tmp_path))
    with pytest.raises(ZeroDivisionError):
        reuse.once("numbers", "a", lambda: 1 // 0)
    assert reuse.once("numbers", "a", lambda: 1) == 1


def test_an_optimizers_key_is_of_all_but_how_large_its_rates_are() -> None:
    plain = optimizer()
    assert plain and plain == optimizer(learning_rate=1.0) != optimizer(learning_rate=0)
    assert optimizer(denoiser_lr=1e-3) == optimizer(denoiser_lr=1e-4) != optimizer(denoiser_lr=0)
    assert optimizer(text_encoder_lr=[1e-3, 1]) == optimizer(text_encoder_lr=[1, 1]) != optimizer(text_encoder_lr=[1])
    others = [{"kind": "SGDNesterov"}, {"weight_decay": 0.1}, {"betas": [0.9, 0.9]}, {"args": {"eps": 1e-6}}]
    assert len({plain, *(optimizer(**other) for other in others)}) == 1 + len(others)
    assert optimizer(kind="Prodigy", learning_rate=1) != optimizer(kind="Prodigy", learning_rate=2)


def test_a_class_from_elsewhere_or_of_a_package_that_is_missing_has_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    assert optimizer(kind="some.module.Optimizer") is None
    assert reuse.schedule(ScheduleOptions(kind="some.module.Schedule"), OptimizerOptions(), TOTAL) is None
    monkeypatch.setattr(reuse, "version", lambda package: "" if package == "bitsandbytes" else "1")
    assert optimizer(kind="AdamW8bit") is None and optimizer(kind="AdamW")


@pytest.mark.parametrize("kind", sorted(USES.keys() - {"adafactor"}))
def test_schedules_of_one_key_are_one_schedule(kind: str) -> None:
    options = ScheduleOptions(kind=kind, **MORE.get(kind, {}))
    rates = OptimizerOptions(learning_rate=1e-3), OptimizerOptions(learning_rate=3e-5)
    keys = {reuse.schedule(options, rate, TOTAL) for rate in rates}
    made = []
    for rate in rates:
        groups = [{"name": "denoiser", "params": [torch.nn.Parameter(torch.zeros(1))]}]
        factor = build_schedule(options, TOTAL, build(rate, groups)[0])[0].factor
        made.append([factor(step) for step in range(TOTAL)])
    assert len(keys) == (1 if made[0] == made[1] else 2)
    assert reuse.schedule(options, rates[0], TOTAL) != reuse.schedule(options, rates[0], TOTAL + 1)


@pytest.mark.parametrize("kind", [name for name in NAMED if reuse.optimizer(OptimizerOptions(kind=name))])
def test_rates_do_not_change_an_optimizers_memory(kind: str) -> None:
    """What the key leaves out."""
    trained = [("denoiser", [8, 16], "float32", 3), ("te", [4, 4], "float32", 2)]
    config = load(preset="demo", flags={"optimizer.kind": kind, "optimizer.learning_rate": 1.0})
    other = config.changed({"optimizer.learning_rate": 0.01})
    assert memory.optimizer_bytes(config, trained) == memory.optimizer_bytes(other, trained)


def test_the_state_is_measured_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIXELKILN_CACHE", str(tmp_path))
    config = load(preset="demo")
    modules = {"denoiser": {"full": 1}, "vae": {"full": 1}}
    measured = memory.Estimate(modules, {"full": []}, trained=[("denoiser", [8, 16], "float32", 3)])
    measured.phases = {name: {} for name in ("captions", "pictures", memory.STEP)}
    first = memory.phases(config, measured, "cpu")
    monkeypatch.setattr(memory, "optimizer_bytes", lambda *_: pytest.fail("it is kept"))
    assert memory.phases(config.changed({"optimizer.learning_rate": 0.5}), measured, "cpu") == first
    assert first[2].parts["optimizer"] == 2 * 4 * 8 * 16 * 3
