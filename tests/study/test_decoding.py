"""Runs of a study decode alike: by the plan that an arm's first run settled, and one surrogate for all."""

from __future__ import annotations

import pytest
import short_runs as runs
import torch

from pixelkiln.trainer.config import load
from pixelkiln.trainer.losses import surrogate as metric
from pixelkiln.trainer.runs.control import DONE
from pixelkiln.trainer.runs.folder import RunFolder
from pixelkiln.trainer.study import decoding, options, plan, queue
from pixelkiln.trainer.training import surrogates

TEXT = """
name = "s"
seeds = 2
held_out = 0.4
[options.model]
path = "sd15"
[options.data]
path = "pictures"
resolution = 64
[options.run]
steps = 2
device = "cpu"
[options.adapter]
rank = 2
[options.loss.pixel]
weight = 1.0
decode = "corrected"
[[arms]]
name = "plain"
[[arms]]
name = "more"
options = { "optimizer.learning_rate" = 0.05 }
[[arms]]
name = "clean"
options = { "loss.pixel.mode" = "x0" }
[measures]
levels = 1
pixel_levels = 0
captions = 0
"""


def given(tmp_path, **pixel):
    """A configuration whose pixel term is as given."""
    (tmp_path / "sd15").mkdir(exist_ok=True)
    return load(flags={"model.path": str(tmp_path / "sd15"), "data.path": str(tmp_path),
                       **{f"loss.pixel.{name}": value for name, value in pixel.items()}})  # fmt: skip


def begun(tmp_path, name: str, config, surrogate: bool = True) -> RunFolder:
    folder = RunFolder(tmp_path / name)
    folder.path.mkdir()
    folder.config.write_text(config.to_toml(), "utf-8")
    if surrogate:
        folder.surrogate.write_bytes(b"")
    return folder


def pixel(config):
    return config.loss.terms()["pixel"]


def test_a_further_seed_takes_the_plan_the_share_and_the_surrogate_of_the_first(tmp_path):
    auto = given(tmp_path, decode="auto")
    first = begun(tmp_path, "a-seed0", given(tmp_path, decode="corrected", corrected_share=0.125))
    made = pixel(decoding.as_begun(auto, [first], [(auto, first)]))
    assert (made.decode, made.corrected_share, made.surrogate) == ("corrected", 0.125, str(first.surrogate))
    sized = begun(tmp_path, "b-seed0", given(tmp_path, decode="by_size"), surrogate=False)
    assert pixel(decoding.as_begun(auto, [sized], [(auto, first)])).model_dump() == {
        **pixel(auto).model_dump(), "decode": "by_size",
    }  # fmt: skip


def test_another_arm_takes_the_surrogate_of_the_same_model_precision_and_mode_alone(tmp_path):
    auto = given(tmp_path, decode="auto")
    first = begun(tmp_path, "a-seed0", auto)
    assert pixel(decoding.as_begun(auto, [], [(auto, first)])).surrogate == str(first.surrogate)
    assert pixel(decoding.as_begun(auto, [], [(auto, first)])).decode == "auto", "each arm settles its own plan"
    others = (
        given(tmp_path, decode="auto", mode="x0"), auto.changed({"run.precision": "fp32"}),
        auto.changed({"model.vae_precision": "fp32"}), load(flags={"model.path": str(tmp_path)}),
    )  # fmt: skip
    for other in others:
        assert decoding.as_begun(auto, [], [(other, first)]) == auto


def test_what_a_configuration_sets_and_what_decodes_otherwise_is_left_alone(tmp_path):
    auto = given(tmp_path, decode="auto")
    first = begun(tmp_path, "a-seed0", given(tmp_path, decode="corrected", corrected_share=0.125))
    full = given(tmp_path, decode="full")
    assert decoding.as_begun(full, [first], [(full, first)]) == full
    own = given(tmp_path, decode="corrected", corrected_share=0.3, surrogate=str(tmp_path / "mine.safetensors"))
    assert decoding.as_begun(own, [first], [(auto, first)]) == own


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Surrogates that take no time, pictures and a model, and a cache of the test's own."""
    for name, value in (("EXAMPLES", 8), ("CROP", 8), ("FEWEST", 8)):
        monkeypatch.setattr(surrogates, name, value)
    for name, value in (("STEPS", 5), ("WIDTH", 8), ("LOWEST", -1.0)):
        monkeypatch.setattr(metric, name, value)
    monkeypatch.setenv("PIXELKILN_CACHE", str(tmp_path / "cache"))
    runs.pictures(tmp_path / "pictures", 6)
    runs.model(tmp_path / "sd15")


@pytest.mark.slow
def test_all_runs_of_a_study_use_the_surrogate_of_the_first_whatever_the_cache_holds(tmp_path, monkeypatch, small):
    (tmp_path / "s.toml").write_text(TEXT, "utf-8")
    train = queue.train

    def spoiled(config, resume=False):
        """After a run the cache has another surrogate of the same autoencoder."""
        code = train(config, resume=resume)
        for path in (tmp_path / "cache" / "surrogates").glob("*.safetensors"):
            other = metric.load(path)
            with torch.no_grad():
                other.pixels.weight *= 2
            metric.save(path, other)
        return code

    monkeypatch.setattr(queue, "train", spoiled)
    study = plan.make(*options.read(tmp_path / "s.toml"))
    assert queue.run(study, lambda line: None) == DONE
    digests = {path.parent.name: metric.load(path).digest for path in study.folder.glob("runs/*/surrogate.safetensors")}
    assert len(digests) == 6
    assert len({digests[f"{arm}-seed{seed}"] for arm in ("plain", "more") for seed in range(2)}) == 1
    assert len({digests[f"clean-seed{seed}"] for seed in range(2)}) == 1 and len(set(digests.values())) == 2


@pytest.mark.slow
def test_an_arm_is_timed_by_the_plan_that_its_whole_run_settles_and_its_runs_keep_it(tmp_path, monkeypatch, small):
    """A run of as few steps as are timed would make no surrogate."""
    monkeypatch.setattr(queue, "TIMED", 2)
    monkeypatch.setattr(surrogates.Settler, "_may_pay", lambda self, *_: self.session.total > 4)
    monkeypatch.setattr(surrogates.Settler, "_pays", lambda *_: True)
    arms = '[[arms]]\nname = "latent"\noptions = { "loss.pixel.weight" = 0.0 }\n[[arms]]\nname = "pixel"\n[measures]'
    text = TEXT[: TEXT.index("[[arms]]")] + arms + TEXT[TEXT.index("[measures]") + len("[measures]") :]
    text = text.replace("steps = 2", "steps = 8").replace('"corrected"', '"auto"').replace("seeds = 2", "seeds = 1")
    (tmp_path / "s.toml").write_text(text.replace("held_out", 'equal = "time"\nheld_out'), "utf-8")
    study = plan.make(*options.read(tmp_path / "s.toml"))
    assert queue.run(study, lambda line: None) == DONE
    plans = {path.parent.name: pixel(load(path)).decode for path in study.folder.glob("runs/pixel*/config.toml")}
    assert set(plans.values()) == {"corrected"} and len(plans) == 2, plans
