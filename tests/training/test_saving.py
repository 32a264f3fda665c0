"""What is kept of a run: files of steps and epochs, states, previews and validation by epochs, and what files say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import short_runs
from PIL import Image

from pixelkiln.trainer.adapters.files import read_header
from pixelkiln.trainer.config import load
from pixelkiln.trainer.runs import control
from pixelkiln.trainer.runs.folder import RunFolder
from pixelkiln.trainer.training.loop import train

# 8 pictures in batches of 4: an epoch is 2 steps, and 6 steps are 3 epochs.


def saved(config) -> tuple[list[str], list[str]]:
    """Names of adapter files and of states."""
    folder = Path(config.run.out) / config.run.name
    return tuple(sorted(p.stem for p in (folder / name).iterdir()) for name in ("checkpoints", "state"))  # type: ignore


@pytest.mark.slow
@pytest.mark.parametrize(
    "options, files, states",
    [
        ({"save.every_epochs": 1}, ["t-000001", "t-000002"], ["step00000006"]),  # the last epoch's is the final file
        ({"save.every_epochs": 1, "save.every": 2, "save.keep_last_epochs": 1},
         ["t-000002", "t-step00000002", "t-step00000004"], ["step00000006"]),
        ({"save.every_epochs": 1, "save.every": 2, "save.keep_last": 1},
         ["t-000001", "t-000002", "t-step00000004"], ["step00000006"]),
        ({"save.times": 3}, ["t-000001", "t-000002"], ["step00000006"]),
        ({"save.times": 2}, ["t-000001", "t-000002"], ["step00000006"]),  # 3 // 2 epochs
        ({"save.times": 1}, [], ["step00000006"]),
        ({"save.every": 1, "save.keep_last_steps": 2}, ["t-step00000003", "t-step00000004", "t-step00000005"],
         ["step00000006"]),
        ({"save.every": 2, "save.state_with_files": True, "save.keep_states": 0},
         ["t-step00000002", "t-step00000004"], ["step00000002", "step00000004", "step00000006"]),
        ({"save.state_every": 1, "save.keep_states": 0, "save.keep_states_steps": 3}, [],
         [f"step0000000{i}" for i in (3, 4, 5, 6)]),
    ],
)  # fmt: skip
def test_what_is_kept(tmp_path, options, files, states) -> None:
    config = short_runs.config(tmp_path, options)
    assert train(config) == 0
    assert saved(config) == (files, states)


@pytest.mark.slow
def test_files_of_steps_and_epochs_are_listed_in_the_order_of_time(tmp_path) -> None:
    config = short_runs.config(tmp_path, {"save.every_epochs": 1, "save.every": 3})
    assert train(config) == 0
    names = [one.path.stem for one in control.checkpoints(Path(config.run.out) / "t")]
    assert names == ["t-000001", "t-step00000003", "t-000002", "t"]


@pytest.mark.slow
def test_previews_and_validation_by_epochs(tmp_path) -> None:
    flags = {
        "sample.prompts": ["a cat"], "sample.steps": 1, "sample.every_epochs": 2, "sample.at_start": False,
        "validation.every_epochs": 1, "data.validation_split": 0.25, "run.steps": 5,
    }  # fmt: skip
    config = short_runs.config(tmp_path, flags)
    assert train(config) == 0
    at = {
        kind: [e["step"] for e in short_runs.events(config) if e["kind"] == kind] for kind in ("sample", "validation")
    }
    assert at == {"sample": [4, 5], "validation": [2, 4, 5]}  # 6 pictures in batches of 4: an epoch is 2 steps


@pytest.mark.slow
def test_a_file_says_what_was_asked_and_used(tmp_path) -> None:
    Image.new("RGB", (4, 4), "red").save(tmp_path / "thumb.png")
    flags = {
        "save.thumbnail": str(tmp_path / "thumb.png"), "save.usage_hint": "say ink", "save.merged_from": "x",
        "save.preprocessor": "none", "save.is_negative_embedding": "false", "noise.max_timestep": 900,
        "loss.huber.c": 0.2, "loss.huber.schedule": "constant", "run.steps": 1, "data.keep_tokens": 2,
    }  # fmt: skip
    config = short_runs.config(tmp_path, flags)
    assert train(config) == 0
    reported, _ = read_header(Path(config.run.out) / "t" / "t.safetensors")
    spec = {k.removeprefix("modelspec."): v for k, v in reported.items() if k.startswith("modelspec.")}
    assert spec["resolution"] == "64x64" and spec["timestep_range"] == "0,900"
    assert spec["thumbnail"].startswith("data:image/png;base64,iVBOR")
    assert (spec["usage_hint"], spec["merged_from"], spec["preprocessor"]) == ("say ink", "x", "none")
    shown = {
        name: reported[f"ss_{name}"] for name in ("loss_type", "huber_c", "huber_schedule", "keep_tokens", "resolution")
    }
    assert shown == {"loss_type": "huber", "huber_c": "0.2", "huber_schedule": "constant", "keep_tokens": "2",
                    "resolution": "(64, 64)"}  # fmt: skip
    assert json.loads(reported["ss_dataset_dirs"]) == {"pictures": {"n_repeats": 1, "img_count": 8}}
    assert reported["ss_reg_dataset_dirs"] == "{}"


@pytest.mark.slow
def test_the_least_metadata(tmp_path) -> None:
    config = short_runs.config(tmp_path, {"save.minimal": True, "run.steps": 1})
    assert train(config) == 0
    reported, _ = read_header(Path(config.run.out) / "t" / "t.safetensors")
    kept = {name for name in reported if not name.startswith(("modelspec.", "sshs_"))}
    assert kept == {"ss_v2", "ss_base_model_version", "ss_network_module", "ss_network_dim", "ss_network_alpha"}


@pytest.mark.parametrize("name, shown", [("x.gif", "no JPEG, PNG or WebP"), ("x.png", "cannot be read")])
def test_a_wrong_thumbnail_is_told_before_the_run(tmp_path, name, shown) -> None:
    config = short_runs.config(tmp_path, {"save.thumbnail": str(tmp_path / name)})
    with pytest.raises(ValueError, match=f"save.thumbnail: .*{shown}"):
        train(config)
    assert not any(e["kind"] == "step" for e in short_runs.events(config))


@pytest.mark.slow
def test_a_new_run_under_a_name_sets_aside_what_lies_there(tmp_path) -> None:
    flags = {"sample.prompts": ["a cat"], "sample.steps": 1, "save.every": 1, "sample.at_start": False}
    config = short_runs.config(tmp_path, {**flags, "run.steps": 3})
    assert train(config) == 0
    folder = RunFolder(Path(config.run.out) / "t")
    folder.before_after.touch()
    assert train(short_runs.config(tmp_path, {**flags, "run.steps": 2, "save.keep_last": 1})) == 0
    found = {path.relative_to(folder.path).as_posix() for path in folder.path.rglob("*.*")}
    assert {name for name in found if name.endswith(("png", "safetensors"))} == {
        "t.safetensors", "state/step00000002.safetensors", "checkpoints/t-step00000001.safetensors",
        "samples/grid.png", "samples/step00000002_00.png", "earlier/before_after.png",
        "earlier/checkpoints/t-step00000001.safetensors", "earlier/checkpoints/t-step00000002.safetensors",
        "earlier/samples/grid.png", "earlier/samples/step00000003_00.png",
        "earlier/state/step00000003.safetensors",
    }  # fmt: skip
    shown = f"states, checkpoints and pictures of the earlier run are now in {folder.path / 'earlier'}"
    assert (folder.path / "log.txt").read_text("utf-8").splitlines().count(shown) == 1


def test_what_was_set_aside_stays(tmp_path) -> None:
    folder = RunFolder(tmp_path / "t")
    folder.make()
    for name, place in (("a", "earlier"), ("b", "earlier-2"), (None, None)):
        if name:
            (folder.samples / name).touch()
        assert folder.set_aside() == (place and folder.path / place)
        assert not list(folder.samples.iterdir())
    (folder.path / "pairs.json").touch()  # another run under this name takes none of the pairs
    (folder.path / "candidates" / "1").mkdir(parents=True)
    assert folder.set_aside() == folder.path / "earlier-3"
    found = sorted(path.relative_to(folder.path).as_posix() for path in folder.path.glob("earlier*/*"))
    assert found == [
        "earlier-2/samples", "earlier-3/candidates", "earlier-3/pairs.json", "earlier/samples",
    ]  # fmt: skip
    assert [path.name for path in folder.path.glob("earlier*/samples/*")] in (["a", "b"], ["b", "a"])


@pytest.mark.slow
def test_a_start_that_fails_leaves_the_earlier_run_alone(tmp_path, monkeypatch) -> None:
    config = short_runs.config(tmp_path)
    assert train(config) == 0

    def full(*_, **__) -> None:
        raise ValueError("data.cache_dir: it cannot be written")

    with monkeypatch.context() as patch:
        patch.setattr("pixelkiln.trainer.training.session.Session.prepare", full)
        with pytest.raises(ValueError, match=r"cannot be written"):
            train(config)
    assert any("Starting over; use --resume to continue" in str(e) for e in short_runs.events(config))
    longer = short_runs.config(tmp_path, {"run.steps": 7})
    assert train(longer, resume=True) == 0 and short_runs.events(longer)[-1]["step"] == 7


@pytest.mark.slow
def test_a_run_goes_on_by_its_own_configuration(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert train(short_runs.config(tmp_path, {"run.out": "runs"})) == 0
    assert train(load(tmp_path / "runs" / "t" / "config.toml", {"run.steps": 7}), resume=True) == 0


@pytest.mark.parametrize(("flag", "value", "was"), [("alpha", 2.0, 4), ("rank", 8, 4), ("kind", "dora", "lora")])
def test_a_state_of_another_adapter_is_refused(tmp_path, flag, value, was) -> None:
    assert train(short_runs.config(tmp_path)) == 0
    with pytest.raises(ValueError, match=rf"--resume: adapter\.{flag}: the state has {was}, the configuration {value}"):
        train(short_runs.config(tmp_path, {f"adapter.{flag}": value, "run.steps": 7}), resume=True)


@pytest.mark.slow
def test_an_alpha_that_is_the_rank_may_be_written_out(tmp_path) -> None:
    assert train(short_runs.config(tmp_path)) == 0
    assert train(short_runs.config(tmp_path, {"adapter.alpha": 4.0, "run.steps": 7}), resume=True) == 0


def test_an_adapter_is_no_state(tmp_path) -> None:
    config = short_runs.config(tmp_path)
    assert train(config) == 0
    file = tmp_path / "runs" / "t" / "t.safetensors"
    with pytest.raises(ValueError, match=r"run\.resume_from: .* is no whole state; for an adapter file"):
        train(short_runs.config(tmp_path, {"run.resume_from": str(file), "run.name": "other"}))


@pytest.mark.slow
def test_a_run_goes_on_from_the_state_of_another(tmp_path) -> None:
    whole = short_runs.trajectory(short_runs.config(tmp_path, {"run.name": "whole"}))
    half = short_runs.config(tmp_path, {"run.name": "half", "run.steps": 3})
    assert train(half) == 0
    folder = Path(half.run.out) / "half"
    for i, place in enumerate((folder, folder / "state" / "step00000003.safetensors")):
        rest = short_runs.config(tmp_path, {"run.name": f"rest{i}", "run.resume_from": str(place)})
        assert [loss for loss, _ in short_runs.trajectory(rest)] == pytest.approx([loss for loss, _ in whole[3:]])
    wrong = short_runs.config(tmp_path, {"run.name": "wrong", "run.resume_from": str(tmp_path)})
    with pytest.raises(ValueError, match="no state to resume from"):
        train(wrong)


def test_tensorboards_curves_have_kohyas_names_and_place(tmp_path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    flags = {
        "run.log_dir": str(tmp_path / "logs"), "run.log_prefix": "ink-", "adapter.text_encoders": True,
        "optimizer.text_encoder_lr": 1e-4, "data.validation_split": 0.25, "validation.every": 2,
    }  # fmt: skip
    config = short_runs.config(tmp_path, flags)
    losses = [loss for loss, _ in short_runs.trajectory(config)]
    (folder,) = (tmp_path / "logs").glob("ink-*/network_train")
    curves = EventAccumulator(str(folder))
    curves.Reload()
    names = set(curves.Tags()["scalars"])
    assert names >= {"loss/current", "loss/average", "lr/unet", "lr/textencoder", "loss/validation/step_average"}
    assert [one.value for one in curves.Scalars("loss/current")] == pytest.approx(losses, rel=1e-6)
    average = [one.value for one in curves.Scalars("loss/average")]
    assert average[3] == pytest.approx((losses[2] + losses[3]) / 2)  # over an epoch, which is 2 steps
    assert [one.value for one in curves.Scalars("lr/textencoder")] == pytest.approx([1e-4] * 6)


def test_several_pools_are_told_one_by_one(tmp_path) -> None:
    short_runs.pictures(tmp_path / "big", 3, (128, 128), seed=1)
    sets = [
        {"path": str(short_runs.pictures(tmp_path / "pictures")), "pool": "small", "shuffle": True},
        {"path": str(tmp_path / "big"), "pool": "big", "batch": 1, "resolution": 128, "repeats": 2},
    ]
    config = short_runs.config(tmp_path, {"run.steps": 1, "data.sets": sets})
    config = config.model_copy(update={"data": config.data.model_copy(update={"path": None})})
    assert train(config) == 0
    reported = json.loads(read_header(Path(config.run.out) / "t" / "t.safetensors")[0]["ss_datasets"])
    assert [(d["batch_size_per_device"], d["num_train_images"], d["resolution"]) for d in reported] == [
        (4, 8, [64, 64]), (1, 6, [128, 128])
    ]  # fmt: skip
    assert [d["bucket_info"]["buckets"] for d in reported] == [
        {"0": {"resolution": [64, 64], "count": 8}}, {"0": {"resolution": [128, 128], "count": 6}}
    ]  # fmt: skip
    assert [d["subsets"][0]["shuffle_caption"] for d in reported] == [True, False]
    assert reported[0]["tag_frequency"]["pictures"]["a red cat 0"] == 1
