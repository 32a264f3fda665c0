"""Studies of dense runs: maps of held-out pictures against the true ones."""

from __future__ import annotations

import json

import pytest
import short_runs as runs

from pixelkiln.trainer.dense.header import DenseHeader
from pixelkiln.trainer.dense.scenes import write_scenes
from pixelkiln.trainer.errors import UserError
from pixelkiln.trainer.study import maps, options, plan, queue
from pixelkiln.trainer.study.values import Value, from_csv

TEXT = """
name = "maps"
seeds = 2
held_out = 0.4
{first}
[options]
"model.path" = "sd15"
"data.path" = "pictures"
"data.targets" = "depth"
"data.resolution" = 64
"run.steps" = 3
"run.device" = "cpu"
"loss.mse.weight" = 1.0
"dense.task" = "depth"
[[arms]]
name = "with detail"
[[arms]]
name = "without"
options = {{ "dense.detail" = 0.0 }}
{more}
"""
ARM = '[[arms]]\nname = "x"\n'


@pytest.fixture
def make(tmp_path):
    runs.pictures(tmp_path / "pictures", 6)
    runs.depths(tmp_path)
    runs.model(tmp_path / "sd15")

    def made(more: str = "", first: str = ""):
        path = tmp_path / "study.toml"
        path.write_text(TEXT.format(more=more, first=first), "utf-8")
        return plan.make(*options.read(path))

    return made


def test_a_study_of_dense_runs_has_held_out_maps_and_no_prompts(make):
    found = make()
    assert len(found.held) == 2 and found.prompts == () and len(found.cells) == 4
    assert [arm.config.dense.detail for arm in found.arms] == [1.0, 0.0]
    assert set(queue.Queue(found, print).parts(untrained_cell(found))) == {"maps"}


def untrained_cell(found):
    cell = queue.Cell(found, found.arms[0], 0)
    object.__setattr__(cell, "content", lambda: "x")
    return cell


@pytest.mark.parametrize(("more", "first", "line"), [
    ("", 'prompts = ["a", "b"]', "prompts: a study of dense runs compares maps of held-out pictures; leave this out"),
    ("[measures]\nlevels = 4", "", "measures: a study of dense runs compares maps"),
    (ARM + "untrained = true", "", "arms: 'x': the base model predicts no maps"),
    (ARM + 'options = { "dense.task" = "image" }', "", "arms: 'x': its [dense] task is not the base's"),
    (ARM + 'adapter = "plain.safetensors"', "", "arms: 'x': plain.safetensors predicts no maps, unlike the base"),
    (ARM + 'adapter = "normals.safetensors"', "", "arms: 'x': normals.safetensors predicts normals, unlike the base"),
])  # fmt: skip
def test_a_mistake_is_one_clear_line(make, tmp_path, more, first, line):
    import torch
    from safetensors.torch import save_file

    tensors = {"lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": torch.zeros(2, 2)}
    save_file(tensors, tmp_path / "plain.safetensors")
    save_file(tensors, tmp_path / "normals.safetensors", DenseHeader("normal", resolution=(64, 64)).metadata())
    with pytest.raises(UserError) as error:
        make(more, first)
    assert line in str(error.value) and len(str(error.value).split("\n")) == 1


def test_prior_and_floor_are_a_note_and_no_measures():
    values = [Value(f"{kind}absrel", "a", 0, str(i), number + i) for i in range(2)
              for kind, number in (("", 1.0), ("prior ", 2.0), ("floor ", 3.0))]  # fmt: skip
    assert "absrel prior 2.5, floor 3.5" in (maps.note(values, "a") or "") and maps.note(values, "b") is None
    names = [value.measure for value in values]
    assert [one.name for one in queue.measure.catalogue(names)] == ["absrel"]


BUNDLED = """
name = "dense"
preset = "demo_dense"
seeds = 2
held_out = 0.3
[options]
"data.path" = "pictures"
"data.targets" = "depth"
"run.steps" = 12
"run.batch" = 2
"run.device" = "cpu"
"adapter.rank" = 8
"adapter.conv_rank" = 8
"schedule.warmup" = 2
[[arms]]
name = "latent"
[[arms]]
name = "hardly trained"
options = { "optimizer.learning_rate" = 1e-7 }
"""


@pytest.mark.slow
def test_two_arms_and_two_seeds_on_the_bundled_base(tmp_path, monkeypatch):
    """What a study measures of an arm is what its run's own validation measures, and a second start does nothing."""
    write_scenes(tmp_path, 10)
    (tmp_path / "study.toml").write_text(BUNDLED, "utf-8")
    made = plan.make(*options.read(tmp_path / "study.toml"))
    assert queue.run(made, print) == 0
    values = from_csv((made.folder / "values.csv").read_text("utf-8"))
    own = [v for v in values if v.measure in ("absrel", "delta1")]
    assert len(own) == 2 * 2 * 2 * len(made.held) and len(made.held) == 3
    found = json.loads((made.folder / "summary.json").read_text("utf-8"))
    assert found["data"] == "maps" and {row["measure"] for row in found["rows"]} == {"absrel", "delta1", "edge_f1"}
    text = (made.folder / "report.md").read_text("utf-8")
    assert "3 held-out pictures, their maps" in text and "(prior)" in text and "absrel prior" in text
    assert not (made.folder / "vote.html").exists() and len(list((made.folder / "truth").glob("*.png"))) == 3
    page = (made.folder / "report.html").read_text("utf-8")
    assert page.count("data:image/jpeg") == 3 * 3 and "<th>truth</th>" in page
    monkeypatch.setattr(queue, "train", None)
    monkeypatch.setattr(queue.maps, "measured", None)
    assert queue.run(made, print) == 0
