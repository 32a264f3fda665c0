"""What stays on a GPU in each phase of a run: arithmetic over what a symbolic run found."""

from __future__ import annotations

import short_runs as runs

from pixelkiln.trainer.estimate.memory import KINDS, Estimate, phases
from pixelkiln.trainer.training.remedies import STEP

SIZES = {"denoiser": 4000, "vae": 300, "te1": 200, "te2": 1300, "te3": 9000}


def measured(decodes: bool = False, trains_text: bool = False) -> Estimate:
    found = Estimate({name: dict.fromkeys(KINDS, size) for name, size in SIZES.items()}, {"full": []}, adapter=10)
    found.phases = {name: {} for name in ("captions", "pictures", STEP, "validation", "previews")}
    found.trained = [("unet", [2, 2], "float32", 1)]
    found.trains_text, found.decodes = trains_text, decodes
    return found


def held(tmp_path, flags=None, change: bool = False, device: str = "cuda", **found) -> dict[str, dict[str, int]]:
    config = runs.config(tmp_path, {"sample.prompts": ["a cat"], **(flags or {})})
    return {one.name: one.parts for one in phases(config, measured(**found), device, change)}


def test_captions_are_encoded_by_one_encoder_at_a_time_before_the_rest_comes(tmp_path):
    parts = held(tmp_path)["encoding captions"]
    assert parts["text encoders"] == 9000 and parts["weights"] == parts["autoencoder"] == parts["adapter"] == 0
    assert held(tmp_path, {"model.t5_on_cpu": True})["encoding captions"]["text encoders"] == 1300


def test_encoders_that_are_needed_in_each_step_are_there_together(tmp_path):
    for found in (held(tmp_path, change=True), held(tmp_path, trains_text=True), held(tmp_path, device="cpu")):
        assert found["encoding captions"]["text encoders"] == found[STEP]["text encoders"] == 10500
        assert found["encoding captions"]["weights"] == 4000


def test_the_autoencoder_is_there_only_while_something_needs_it(tmp_path):
    found = {name: parts["autoencoder"] for name, parts in held(tmp_path).items()}
    assert [name for name, size in found.items() if size] == ["encoding pictures", "previews"]
    assert held(tmp_path, decodes=True)[STEP]["autoencoder"] == 300
    assert held(tmp_path, {"data.cache_latents": "off"})[STEP]["autoencoder"] == 300
