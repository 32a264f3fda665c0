"""How runs end: without an effect, with an adapter of the text encoders alone, by a programming mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image
from short_runs import config, events, trajectory

from pixelkiln.trainer.adapters.verify import VerifyResult
from pixelkiln.trainer.cli import main
from pixelkiln.trainer.diffusion import sampling
from pixelkiln.trainer.families.family import Family
from pixelkiln.trainer.losses import mse
from pixelkiln.trainer.training import loop

UNCHANGED = "the adapter has not changed"


def warnings(done) -> list[str]:
    return [e["message"] for e in events(done) if e["kind"] == "warning"]


def masks(folder: Path, value: int) -> Path:
    folder.mkdir()
    for i in range(8):
        Image.new("L", (64, 64), value).save(folder / f"p{i:02d}.png")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("value", "warned"), [(0, True), (255, False)])
def test_a_run_whose_adapter_did_not_change_ends_with_a_warning(tmp_path, value, warned):
    done = config(tmp_path, {"run.steps": 2, "data.masks": str(masks(tmp_path / "masks", value))})
    losses = [loss for loss, _ in trajectory(done)]
    assert (losses == [0.0, 0.0]) is warned
    assert any(UNCHANGED in line for line in warnings(done)) is warned


@pytest.mark.parametrize(
    "blocks",
    [
        {"adapter.down_lr": [0.0] * 12, "adapter.mid_lr": [0.0], "adapter.up_lr": [0.0] * 12},
        {"adapter.block_ranks": [0] * 25},
        {"adapter.denoiser": False},
    ],
    ids=["block weights of 0", "block ranks of 0", "denoiser off"],
)
def test_text_encoders_train_alone_where_all_blocks_are_left_out(tmp_path, blocks):
    done = config(tmp_path, {"run.steps": 2, "adapter.text_encoders": True, **blocks})
    trajectory(done)
    saved = safetensors.torch.load_file(tmp_path / "runs" / "t" / "t.safetensors")
    assert saved and all(name.startswith("lora_te_") for name in saved)
    assert not warnings(done)


@pytest.mark.slow
def test_the_state_is_saved_before_the_file_is_verified_and_a_difference_is_a_warning(tmp_path, monkeypatch):
    done, seen = config(tmp_path, {"run.steps": 2}), []

    def verify(path, adapter, effect):
        seen.append((tmp_path / "runs" / "t" / "state" / "step00000002.safetensors").exists())
        return VerifyResult([], [f"{path}: a module has another effect"])

    monkeypatch.setattr(loop, "verify", verify)
    trajectory(done)
    assert seen == [True]
    assert any("another effect" in line for line in warnings(done))


@pytest.mark.parametrize("what", ["latents", "pixels", "crash", "disk", "grid"])
def test_a_preview_that_fails_costs_a_preview(tmp_path, monkeypatch, what):
    def crash(*_, **__):
        raise (OSError("no space left") if what == "disk" else IndexError("index 21 is out of bounds"))

    nan = torch.full((1, 4, 8, 8), torch.nan)
    match what:
        case "latents":
            monkeypatch.setattr(sampling, "draw", lambda *_: nan)
        case "pixels":
            monkeypatch.setattr(Family, "decode", lambda *_: nan[:, :3])
        case "crash":
            monkeypatch.setattr(sampling, "draw", crash)
        case "disk":
            monkeypatch.setattr(sampling, "save_picture", crash)
        case "grid":
            monkeypatch.setattr(sampling, "grid", crash)
    done = config(tmp_path, {"run.steps": 2, "sample.prompts": ["a cat"], "sample.steps": 2})
    assert len(trajectory(done)) == 2
    assert (tmp_path / "runs" / "t" / "t.safetensors").exists()
    message = {"latents": "the model's latents are non-finite", "pixels": "the autoencoder's pixels are non-finite",
               "disk": "OSError: no space left"}.get(what, "IndexError: index 21")  # fmt: skip
    lost = "no grid of the previews" if what == "grid" else "no preview of 'a cat'"
    reported = [line for line in warnings(done) if message in line]
    assert [line.partition(" (")[0] for line in reported] == [f"step 0: {lost}", f"step 2: {lost}"]
    assert sum(e["kind"] == "sample" for e in events(done)) == (2 if what == "grid" else 0)


@pytest.mark.slow
def test_a_programming_mistake_is_a_traceback_and_exit_code_1(tmp_path, monkeypatch, capsys):
    def mistaken(step):
        first, second = [1, 2, 3]  # a ValueError of Python's own
        return torch.tensor([float(first + second)])

    monkeypatch.setattr(mse, "mean", lambda *_: mistaken(None))
    done = config(tmp_path, {"run.steps": 2})
    file = tmp_path / "t.toml"
    file.write_text(done.to_toml(), "utf-8")
    assert main(["train", str(file)]) == 1
    shown = capsys.readouterr().err
    log = (tmp_path / "runs" / "t" / "log.txt").read_text("utf-8")
    for text in (shown, log):
        assert "Traceback (most recent call last)" in text and "too many values to unpack" in text
    assert events(done)[-1]["exit_code"] == 1


def test_an_error_of_a_person_is_one_line_in_the_log_too(tmp_path, capsys):
    done = config(tmp_path, {"run.steps": 2, "adapter.init_from": str(tmp_path / "none.safetensors")})
    file = tmp_path / "t.toml"
    file.write_text(done.to_toml(), "utf-8")
    assert main(["train", str(file)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert line in (tmp_path / "runs" / "t" / "log.txt").read_text("utf-8").splitlines()


@pytest.mark.parametrize("mistake", [TypeError, KeyError, AssertionError, MemoryError, ValueError])
def test_whatever_ends_a_run_its_steps_are_saved(tmp_path, monkeypatch, mistake):
    done, step = config(tmp_path, {"run.steps": 6}), loop.Loop.step

    def fails(self):
        if self.steps_done == 3:
            raise mistake("in the fourth step")
        return step(self)

    monkeypatch.setattr(loop.Loop, "step", fails)
    with pytest.raises(mistake):
        loop.train(done)
    monkeypatch.undo()
    assert (tmp_path / "runs" / "t" / "state" / "step00000003.safetensors").exists()
    assert len(trajectory(done, resume=True)) == 6
