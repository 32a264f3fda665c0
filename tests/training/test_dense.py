"""Dense runs: what is trained, what is saved, and that hosts' own code makes the same maps of it."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import short_runs as runs
import torch
from PIL import Image

from pixelkiln.trainer.adapters import convert
from pixelkiln.trainer.commands.check import check
from pixelkiln.trainer.config import Config, parse
from pixelkiln.trainer.data.progress import silent
from pixelkiln.trainer.dense import maps
from pixelkiln.trainer.dense.header import TIMESTEP
from pixelkiln.trainer.dense.options import DenseOptions
from pixelkiln.trainer.errors import UserError
from pixelkiln.trainer.estimate import gpus
from pixelkiln.trainer.training import checkpoint
from pixelkiln.trainer.training.build import build_model, build_session, scan
from pixelkiln.trainer.training.dense import DensePrediction, Predictor, predict_latents
from pixelkiln.trainer.training.loop import train
from pixelkiln.trainer.training.session import Session

FP32 = {"run.precision": "fp32", "save.precision": "fp32", "optimizer.learning_rate": 3e-3, "run.steps": 5}


def config(root: Path, flags: Mapping[str, Any] | None = None, name: str = "sd15", holes: float = 0.0) -> Config:
    runs.pictures(root / "pictures")
    base = {"dense.task": "depth", "data.targets": str(runs.depths(root, holes))}
    return runs.config(root, {**base, **(flags or {})}, name)


def trained(config: Config) -> Session:
    """Train, and give the session with what was trained, as --resume would have it."""
    assert train(config) == 0
    session = build_session(config, lambda line: None)
    session.load_state(*checkpoint.load_state(Path(config.run.out) / config.run.name / "state"))
    session.dataset.prepare(silent)
    return session


def final(config: Config) -> Path:
    return Path(config.run.out) / config.run.name / f"{config.run.name}.safetensors"


def of_trainer(session: Session) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(picture latents, empty prompt, predicted map latents) of the first batch's maps."""
    system, batch = session.model.system, session.dataset.batch(0)
    assert isinstance(system, DensePrediction) and batch.conditioning is not None
    latents = batch.latents[: len(batch) // 2]
    return latents, batch.conditioning.hidden[:1], predict_latents(session.model, system, latents, batch.conditioning)


def test_file_is_a_lora_that_diffusers_reads_with_the_switch_in_it(tmp_path: Path) -> None:
    """Fold equals the switch's network, through diffusers' own pipeline, to 1e-5 in float32."""
    import diffusers

    c = config(tmp_path, {**FP32, "model.path": str(runs.model(tmp_path / "sd15"))})
    session = trained(c)
    latents, prompt, mine = of_trainer(session)
    switch = session.model.system.modules["switch"]
    assert float(switch(torch.tensor([False])).detach().abs().max()) > 1e-3, "the switch has not learned"
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(c.model.path, safety_checker=None)
    with torch.no_grad():
        bare = pipe.unet(latents, TIMESTEP, encoder_hidden_states=prompt.expand(len(latents), -1, -1)).sample
    pipe.load_lora_weights(str(final(c)))
    with torch.no_grad():
        theirs = pipe.unet(latents, TIMESTEP, encoder_hidden_states=prompt.expand(len(latents), -1, -1)).sample
    assert float((theirs - mine).norm() / (mine - bare).norm()) < 1e-5
    log = (Path(c.run.out) / c.run.name / "log.txt").read_text("utf-8")
    assert "diffusers loads it with the trained effect" in log and "warning" not in log


@pytest.mark.parametrize("precision, most", [("fp32", 1e-5), ("fp16", 1e-3), ("bf16", 8e-3)])
def test_predictor_with_the_file_equals_the_run(tmp_path: Path, precision: str, most: float) -> None:
    """Files of 16 bits are off by their rounding: the bounds are those that the documentation states."""
    c = config(tmp_path, {**FP32, "save.precision": precision})
    session = trained(c)
    pictures = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mine = Predictor(session.model)(pictures)
    plain = c.changed({"data.targets": None}).model_copy(update={"dense": None})
    model, _ = build_model(plain, lambda line: None, str(final(c)))
    theirs = Predictor(model, DenseOptions())(pictures)
    with model.adapter.off():
        bare = Predictor(model, DenseOptions())(pictures)
    assert float((theirs - mine).norm() / (mine - bare).norm()) < most
    assert maps.decode(theirs, "depth").shape == (2, 64, 64)


def test_header_says_how_to_run_it(tmp_path: Path) -> None:
    c = config(tmp_path, {**FP32, "run.steps": 1, "save.minimal": True})
    assert train(c) == 0
    with safetensors.safe_open(final(c), "pt") as file:
        header, names = file.metadata(), set(file.keys())
    assert json.loads(header["pixelkiln.dense"]) == {
        "task": "depth", "space": "disparity", "quantiles": [0.02, 0.98], "timestep": 999, "prediction": "sample",
        "prompt": "", "tokens": 77, "resolution": [64, 64], "task_switch": "embedding",
    }  # fmt: skip
    ends = ("lora_down.weight", "lora_up.weight", "alpha")
    assert all(name.startswith("lora_unet_") and name.endswith(ends) for name in names)
    for layer in ("conv_in", "conv_out", "time_embedding_linear_1", "time_embedding_linear_2"):
        assert f"lora_unet_{layer}.alpha" in names, layer


@pytest.mark.slow
def test_previews_and_measures_of_held_out_pictures(tmp_path: Path) -> None:
    """Picture, prediction and truth side by side; scores beside prior and floor, and the floor is below the prior."""
    flags = {**FP32, "run.steps": 2, "data.validation_split": 0.25, "loss.dense.weight": 0.5}
    c = config(tmp_path, flags)
    assert train(c) == 0
    found = runs.events(c)
    samples = [event for event in found if event["kind"] == "sample"]
    assert len(samples) == 2 * 2, "two held-out pictures, before and after"
    with Image.open(samples[0]["path"]) as picture:
        assert picture.size == (3 * 64 + 2 * 4, 64)
        truth = np.asarray(picture)[:, 2 * 68 :]
    assert len(np.unique(truth.reshape(-1, 3), axis=0)) > 3, "the truth is a map"
    assert (Path(c.run.out) / c.run.name / "before_after.png").exists()
    measures = next(event for event in found if event["kind"] == "validation")["measures"]
    scores = ("absrel", "delta1", "edge_f1")
    assert set(measures) == {f"{of}{name}" for of in ("", "prior_", "floor_") for name in scores}
    assert all(measures[name] >= 0 for name in measures)


def test_named_pictures_are_shown_with_their_truth_where_there_is_one(tmp_path: Path) -> None:
    runs.pictures(tmp_path / "pictures")
    Image.new("RGB", (96, 64), "red").save(tmp_path / "alone.png")
    named = [str(tmp_path / "pictures" / "p01.png"), str(tmp_path / "alone.png")]
    c = config(tmp_path, {**FP32, "run.steps": 1, "sample.pictures": named, "sample.at_start": False})
    assert train(c) == 0
    widths = [Image.open(event["path"]).width for event in runs.events(c) if event["kind"] == "sample"]
    assert widths[0] == 3 * 64 + 8 and widths[1] % 2 == 0 and widths[1] != widths[0]


REFUSED = {
    "objective.kind": ({"objective.kind": "dpo"}, r"objective\.kind"),
    "min-SNR": ({"objective.min_snr_gamma": 5.0}, r"objective\.min_snr_gamma"),
    "pixel": ({"loss.pixel.mode": "mixed"}, r"loss\.pixel: .*\[loss\.dense\]"),
    "lpl": ({"loss.lpl.weight": 1.0}, r"loss\.lpl"),
    "gate": ({"loss.mse.max_level": 0.5}, r"loss\.mse\.max_level"),
    "noise": ({"noise.noise_offset": 0.1}, r"noise\.noise_offset"),
    "timesteps": ({"noise.min_timestep": 100}, r"noise\.min_timestep"),
    "text encoder": ({"adapter.text_encoders": True}, r"adapter\.text_encoders"),
    "kind": ({"adapter.kind": "loha"}, r"dense\.task_switch: .*timestep"),
    "targets": ({"adapter.targets": ["attn2"]}, r"dense\.task_switch: .*time_embedding\.linear_2.*timestep"),
    "prompts": ({"sample.prompts": ["a cat"]}, r"sample\.prompts: .*sample\.pictures"),
    "preserve": ({"data.sets": [{"path": "PICTURES", "preserve": True}], "data.path": None}, r"sets\[0\]\.preserve"),
    "face crop": ({"data.face_crop": [1.0, 2.0], "data.buckets": False, "data.cache_latents": "off"}, "data.face_crop"),
    "clip_skip": ({"model.clip_skip": 2}, r"model\.clip_skip"),
    "detail": ({"loss.mse.weight": 0, "loss.dense.weight": 1.0}, r"dense\.detail: .*set dense\.detail = 0"),
    "space": ({"dense.task": "normal", "dense.space": "log"}, r"dense\.space"),
    "unit": ({"dense.task": "image", "data.unit": 0.1}, r"data\.unit"),
    "no targets": ({"data.targets": None}, r"data\.targets: .*set targets"),
    "no folder": ({"data.targets": "/nowhere"}, r"data\.targets: there is no folder"),
    "quantiles": ({"dense.quantiles": [0.9, 0.1]}, r"dense\.quantiles"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_sense_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    flags, line = REFUSED[name]
    text = repr(flags).replace("PICTURES", str(tmp_path / "pictures"))
    with pytest.raises(UserError, match=line) as found:
        build_session(config(tmp_path, ast.literal_eval(text)), lambda line: None)
    assert "\n" not in str(found.value)


def test_flows_are_refused_before_their_weights_are_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^dense: Stable Diffusion 3.* is a flow"):
        build_session(config(tmp_path, name="sd3-medium"), lambda line: None)


@pytest.mark.parametrize("flags", [{"data.targets": "x"}, {"sample.pictures": ["x"]}, {"loss.dense.weight": 1.0}])
def test_what_only_dense_runs_have_is_refused_elsewhere(tmp_path: Path, flags: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"\[dense\]"):
        scan(runs.config(tmp_path, flags))


# ------------------------------------------------------------------------------------------------- equal in every way


def adapter_of(config: Config) -> dict[str, torch.Tensor]:
    assert train(config) == 0
    return safetensors.torch.load_file(final(config))


EXACT = {
    "save.precision": "fp32", "run.steps": 4, "loss.dense.weight": 0.5, "data.flip": True, "sample.at_start": False,
    "optimizer.kind": "SGD", "optimizer.learning_rate": 0.1,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("switch", ["embedding", "timestep"])
def test_batch_and_accumulation_and_one_by_one_train_the_same(tmp_path: Path, switch: str) -> None:
    """The doubled batch split in four, and row by row: the same sums, in float64, also with holes in the maps."""
    flags = {**EXACT, "dense.task_switch": switch, "run.batch": 4, "adapter.dropout": 0.2}
    whole = adapter_of(config(tmp_path, flags, holes=0.2))
    ways: list[dict[str, Any]] = [
        {"run.batch": 1, "run.accumulation": 4}, {"memory.grad_cache": True}, {"memory.gradient_checkpointing": True},
    ]  # fmt: skip
    for way in ways:
        other = adapter_of(config(tmp_path, {**flags, **way, "run.name": "other"}, holes=0.2))
        assert other.keys() == whole.keys()
        for name, value in whole.items():
            torch.testing.assert_close(other[name], value, rtol=1e-5, atol=1e-7, msg=f"{way}: {name}")


@pytest.mark.slow
def test_resume_continues_bit_for_bit(tmp_path: Path) -> None:
    """The switch and its optimizer's state come back unfolded; the average too."""
    flags = {"run.steps": 6, "save.precision": "fp32", "save.ema": 0.9, "loss.dense.weight": "auto", "data.flip": True}
    whole = adapter_of(config(tmp_path, flags))
    average = safetensors.torch.load_file(checkpoint.averaged(final(config(tmp_path, flags))))
    short = config(tmp_path, {**flags, "run.steps": 3, "run.name": "two"})
    assert train(short) == 0
    rest = config(tmp_path, {**flags, "run.name": "two"})
    assert train(rest, resume=True) == 0
    after = safetensors.torch.load_file(final(rest))
    assert all(torch.equal(after[name], value) for name, value in whole.items())
    again = safetensors.torch.load_file(checkpoint.averaged(final(rest)))
    assert all(torch.equal(again[name], value) for name, value in average.items())
    assert any(not torch.equal(average[name], value) for name, value in whole.items())


# ------------------------------------------------------------------------------------------------------- the batch


def test_a_batch_holds_maps_and_pictures(tmp_path: Path) -> None:
    """Two rows a sample: the first has the map's latents as target and its valid cells, the second its own latents."""
    c = config(tmp_path, {"dense.detail": 0.5, "data.flip": False, "data.validation_split": 0}, holes=0.3)
    session = build_session(c, lambda line: None)
    session.dataset.prepare(silent)
    batch = session.dataset.batch(0)
    assert batch.rows.role == ["plain"] * 4 + ["reconstruction"] * 4
    assert batch.rows.group.tolist() == [0, 1, 2, 3] * 2 and batch.rows.weight.tolist() == [1.0] * 4 + [0.5] * 4
    assert batch.captions == [""] * 8, "captions beside the pictures have no say"
    assert batch.target is not None and batch.mask is not None and batch.maps is not None
    assert torch.equal(batch.latents[:4], batch.latents[4:]) and torch.equal(batch.target[4:], batch.latents[4:])
    assert (batch.mask[4:] == 1).all()
    cells = maps.cell_validity(batch.maps.valid[:4], 8)
    assert torch.equal(batch.mask[:4] > 0, cells) and not cells.all()
    torch.testing.assert_close(batch.mask.mean((1, 2, 3)), torch.ones(8))
    draw = session.model.system.draw(batch, 0, 0)
    assert (draw.level == TIMESTEP).all() and not draw.noise.any()


def test_latent_loss_is_the_mean_over_valid_cells(tmp_path: Path) -> None:
    """With block-shaped holes, as by hand; what lies in them changes nothing."""
    from pixelkiln.trainer.training.step import compute_errors, forward

    session = build_session(config(tmp_path, {"dense.detail": 0.0}, holes=0.3), lambda line: None)
    session.dataset.prepare(silent)
    batch = session.dataset.batch(0)
    made = forward(session.model, batch, session.model.system.draw(batch, 0, 0))
    found = compute_errors(session.terms.terms, made)["mse"]
    assert batch.maps is not None and batch.target is not None
    for row in range(len(batch)):
        valid = maps.cell_validity(batch.maps.valid[row, 0], 8)
        by_hand = (made.out[row] - batch.target[row]).square()[:, valid].mean()
        torch.testing.assert_close(found[row], by_hand, rtol=1e-5, atol=0)


def test_sparse_maps_are_left_to_the_loss_on_pixels(tmp_path: Path) -> None:
    """Below 5 % of whole cells the latent loss is 0, and the log says so; [loss.dense] learns from them."""
    runs.pictures(tmp_path / "pictures")
    folder = runs.depths(tmp_path)
    for path in folder.glob("*.npy"):
        depth = np.load(path)
        depth[np.random.default_rng(0).random(depth.shape) < 0.9] = 0
        np.save(path, depth)
    flags = {"dense.task": "depth", "data.targets": str(folder), "dense.detail": 0.0, "loss.dense.weight": "auto"}
    c = runs.config(tmp_path, {**flags, "run.steps": 3})
    (foreseen,) = (line for line in check(c, gpus.with_memory("8GB"))["warnings"] if "hardly a latent cell" in line)
    assert train(c) == 0
    steps = [event for event in runs.events(c) if event["kind"] == "step"]
    assert all(step["terms"]["mse/error"] == 0 and step["terms"]["dense/error"] > 0 for step in steps)
    assert all(step["grad_norm"] > 0 for step in steps[1:]), "the automatic weight needs one step"
    warnings = [event["message"] for event in runs.events(c) if event["kind"] == "warning"]
    assert foreseen in warnings


BAD: dict[str, tuple[np.ndarray, str]] = {
    "shape": (np.full((64, 48), 2.0), r"its shape, 48x64, is not that of its picture, 64x64; crop both"),
    "8 bits": (np.full((64, 64), 200, np.uint8), r"depth of 8 bits is 256 steps at most; give the 16-bit PNG"),
    "all invalid": (np.zeros((64, 64)), r"no pixel is valid; all are 0, NaN, infinite"),
    "colours": (
        np.arange(64 * 64 * 3.0).reshape(64, 64, 3),
        r"a picture in colours \[64, 64, 3\]; depth",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_target_ends_the_run_with_one_line(tmp_path: Path, name: str) -> None:
    values, line = BAD[name]
    session = build_session(config(tmp_path), lambda text: None)
    np.save(tmp_path / "depth" / "p03.npy", values)
    for look in (session.dataset.look_at_targets, session.dataset.prepare):  # of a check, and of the run
        with pytest.raises(UserError, match=line) as found:
            look(silent)
        assert "\n" not in str(found.value) and "p03.npy: " in str(found.value)


def test_a_check_counts_whole_cells_as_the_run_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where masks hide them too; a file is read once."""
    c = config(tmp_path, {"data.masks": str(tmp_path / "masks")})
    (tmp_path / "masks").mkdir()
    for i in range(8):
        mask = np.zeros((64, 64), np.uint8)
        mask[: max(1, 8 * i), :32] = 255  # 4 i of 64 cells; 5 % of them are 3.2
        Image.fromarray(mask).save(tmp_path / "masks" / f"p{i:02d}.png")
    of_check, of_run = (build_session(c, lambda text: None).dataset for _ in range(2))
    reads, read = [], of_check.shelf._read_target
    monkeypatch.setattr(of_check.shelf, "_read_target", lambda *given: reads.append(given[0].name) or read(*given))
    of_check.look_at_targets(silent)
    of_check.look_at_targets(silent)
    of_run.prepare(silent)
    assert len(reads) == 8
    assert of_check.scan.notes.names("sparse target") == of_run.scan.notes.names("sparse target") == ["p00.png"]


def test_pictures_without_a_target_are_left_out_and_named(tmp_path: Path) -> None:
    c = config(tmp_path)
    (tmp_path / "depth" / "p03.npy").unlink()
    session = build_session(c, lambda text: None)
    assert len(session.dataset.items) == 7
    (note,) = (line for line in session.dataset.scan.notes.lines() if "without a target" in line)
    assert "p03.png" in note and "give each one of equal name, or remove them" in note


def test_a_mirrored_picture_has_a_mirrored_map(tmp_path: Path) -> None:
    """And the x of normals is negated; cached apart from the unmirrored one."""
    runs.pictures(tmp_path / "pictures")
    folder, rng = tmp_path / "normal", np.random.default_rng(0)
    folder.mkdir()
    for path in (tmp_path / "pictures").glob("*.png"):
        normals = rng.normal(size=(64, 64, 3)) + np.array([0, 0, 2])
        np.save(folder / f"{path.stem}.npy", (normals / np.linalg.norm(normals, axis=2, keepdims=True)).astype("f4"))
    flags = {"dense.task": "normal", "data.targets": str(folder), "data.flip": True, "run.batch": 8}
    session = build_session(runs.config(tmp_path, flags), lambda line: None)
    session.dataset.prepare(silent)
    seen: dict[str, list[torch.Tensor]] = {}
    for step in range(12):
        batch = session.dataset.batch(step)
        assert batch.maps is not None
        for key, truth in zip(batch.keys[:8], batch.maps.truth[:8], strict=True):
            seen.setdefault(key.partition("@")[0], []).append(truth)
    mirror = torch.tensor([-1.0, 1.0, 1.0])[:, None, None]
    for found in seen.values():
        first, other = found[0], next(one for one in found if not torch.equal(one, found[0]))
        torch.testing.assert_close(other, first.flip(2) * mirror)


# ------------------------------------------------------------------------------------------------ tasks and families


@pytest.mark.slow
@pytest.mark.parametrize("task, kind, scores", [("normal", "npy", {"degrees", "within_11"}),
                                                ("image", "png", {"difference"})])  # fmt: skip
def test_normals_and_images_train_and_are_measured(tmp_path: Path, task: str, kind: str, scores: set[str]) -> None:
    runs.pictures(tmp_path / "pictures")
    folder = tmp_path / task
    folder.mkdir()
    for path in (tmp_path / "pictures").glob("*.png"):
        colours = np.asarray(Image.open(path).convert("RGB"), np.float32)
        if kind == "npy":
            normals = colours / 127.5 - 0.99
            np.save(folder / f"{path.stem}.npy", normals / np.linalg.norm(normals, axis=2, keepdims=True))
        else:
            Image.fromarray(255 - colours.astype(np.uint8)).save(folder / path.name)
    flags = {
        "dense.task": task,
        "data.targets": str(folder),
        "data.validation_split": 0.25,
        "loss.dense.weight": "auto",
    }
    c = runs.config(tmp_path, {**FP32, **flags, "run.steps": 12})
    assert train(c) == 0
    found = runs.events(c)
    losses = [event["terms"]["mse/map"] for event in found if event["kind"] == "step"]
    assert sum(losses[-3:]) < sum(losses[:3])
    measures = next(event for event in found if event["kind"] == "validation")["measures"]
    assert set(measures) == {f"{of}{name}" for of in ("", "prior_", "floor_") for name in scores}
    assert json.loads(safetensors.safe_open(final(c), "pt").metadata()["pixelkiln.dense"])["task"] == task


@pytest.mark.slow
def test_sdxl_gets_the_size_of_the_picture(tmp_path: Path) -> None:
    """Uncropped, as hosts give it where nothing is given; the file is read by diffusers with the switch in it."""
    import diffusers

    c = config(tmp_path, FP32, name="sdxl")
    session = trained(c)
    batch = session.dataset.batch(0)
    latents, prompt, mine = of_trainer(session)
    assert batch.conditioning is not None and batch.conditioning.pooled is not None
    size = torch.tensor([[64.0, 64, 0, 0, 64, 64]] * len(latents))
    added = {"text_embeds": batch.conditioning.pooled[: len(latents)], "time_ids": size}
    given = {"encoder_hidden_states": prompt.expand(len(latents), -1, -1), "added_cond_kwargs": added}
    pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(c.model.path)
    with torch.no_grad():
        bare = pipe.unet(latents, TIMESTEP, **given).sample
        pipe.load_lora_weights(str(final(c)))
        theirs = pipe.unet(latents, TIMESTEP, **given).sample
    assert float((theirs - mine).norm() / (mine - bare).norm()) < 1e-5


def test_without_detail_preserver_a_sample_is_one_row(tmp_path: Path) -> None:
    c = config(tmp_path, {**FP32, "dense.detail": 0.0, "dense.task_switch": "timestep", "adapter.kind": "lokr"})
    assert train(c) == 0
    session = build_session(c, lambda line: None)
    session.dataset.prepare(silent)
    assert session.dataset.batch(0).rows.role == ["plain"] * 4 and not session.model.system.modules


# ------------------------------------------------------------------------------------------------- states and memory


@pytest.mark.parametrize("change, line", [
    ({"dense.task_switch": "timestep"}, r"--resume: dense\.task_switch: the state has embedding"),
    ({"dense.space": "log"}, r"--resume: dense\.space: the state has disparity"),
    ({"dense": None, "data.targets": None}, r"--resume: the state is of a run with \[dense\]"),
])  # fmt: skip
def test_a_state_of_another_task_is_refused(tmp_path: Path, change: dict[str, Any], line: str) -> None:
    c = config(tmp_path, {**FP32, "run.steps": 1})
    assert train(c) == 0
    state = checkpoint.load_state(Path(c.run.out) / c.run.name / "state")
    raw = c.model_dump(exclude_none=True, exclude_unset=True)
    other = c.changed({k: v for k, v in change.items() if k != "dense"}) if "dense" not in change else None
    if other is None:
        del raw["dense"], raw["data"]["targets"]
        other = parse(raw)
    session = build_session(other, lambda text: None)
    with pytest.raises(UserError, match=line):
        session.load_state(*state)


MEMORY: list[dict[str, Any]] = [
    {"memory.base_weights": "int8"}, {"memory.base_weights": "nf4"}, {"memory.blocks_on_gpu": 1},
    {"memory.gradient_checkpointing": True, "memory.cpu_offload_checkpointing": True}, {"memory.channels_last": True},
    {"memory.text_weights": "int8"}, {"data.cache_latents": "off", "data.cache_text": "off"},
    {"data.cache_latents": "memory"}, {"save.ema": 0.5}, {"adapter.dropout": 0.1, "adapter.rank_dropout": 0.1},
    {"optimizer.kind": "AdamWScheduleFree"}, {"adapter.scale_weight_norms": 1.0}, {"adapter.loraplus": 4.0},
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("flags", MEMORY, ids=lambda flags: " ".join(flags))
def test_every_memory_option_trains_and_its_file_is_proven(tmp_path: Path, flags: dict[str, Any]) -> None:
    """The file, with the switch folded into it, is read back with the trained effect, and nothing warns."""
    c = config(tmp_path, {**FP32, "run.steps": 2, "loss.dense.weight": 0.5, "data.validation_split": 0.25, **flags})
    assert train(c) == 0
    assert [event["message"] for event in runs.events(c) if event["kind"] == "warning"] == []
    assert "each has the trained effect" in (Path(c.run.out) / c.run.name / "log.txt").read_text("utf-8")


def test_what_resizes_or_merges_such_a_file_says_that_it_is_exact_alone(tmp_path: Path) -> None:
    """The folded task is one rank of many: cutting ranks or adding another file may take it away."""
    c = config(tmp_path, {**FP32, "run.steps": 1})
    assert train(c) == 0
    assert not any(
        "exact alone" in line for line in convert.convert(final(c), tmp_path / "same.safetensors", family="sd15")
    )
    smaller = convert.convert(final(c), tmp_path / "smaller.safetensors", rank=2, family="sd15")
    both = convert.merge([(final(c), 1.0), (final(c), 0.5)], tmp_path / "both.safetensors", family="sd15")
    assert any("exact alone and at strength 1" in line for line in smaller)
    assert sum("exact alone and at strength 1" in line for line in both) >= 1
