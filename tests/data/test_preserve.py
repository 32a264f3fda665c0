"""Sets that hold the network to what it says without the adapter."""

from __future__ import annotations

import pytest
from short_runs import config, events, pictures, trajectory


@pytest.mark.parametrize("name", ["sd15", "sd3-medium"])
@pytest.mark.parametrize("flags", [{}, {"memory.grad_cache": True}, {"loss.pixel.mode": "anchored"}], ids=str)
def test_what_is_preserved_teaches_nothing_while_nothing_has_changed(tmp_path, name, flags):
    """A fresh adapter does nothing, so the output is what it is held to: the error is 0, but for rounding."""
    pictures(tmp_path / "keep")
    sets = {"data.sets": [{"path": str(tmp_path / "keep"), "preserve": True}], "data.resolution": 64}
    run = config(tmp_path, {"run.steps": 2, "optimizer.kind": "SGD", **flags, **sets}, name)
    run = run.model_copy(update={"data": run.data.model_copy(update={"path": None})})
    assert all(loss < 1e-12 and norm < 1e-6 for loss, norm in trajectory(run))


@pytest.mark.slow
def test_beside_other_pictures_it_is_learned_and_measured(tmp_path):
    pictures(tmp_path / "keep", seed=5)
    keep = [{"path": str(tmp_path / "keep"), "preserve": True}]
    both = config(tmp_path, {"data.sets": keep, "run.name": "both", "optimizer.learning_rate": 1e-2})
    losses = [loss for loss, _ in trajectory(both)]
    plain = config(tmp_path, {"run.name": "plain", "optimizer.learning_rate": 1e-2})
    assert 0 < losses[0] < trajectory(plain)[0][0]  # some rows of the first batch count 0
    assert all("mse/error" in e["terms"] for e in events(both) if e["kind"] == "step")
