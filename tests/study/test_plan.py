"""A study's file becomes cells, or one clear line about what is wrong."""

from __future__ import annotations

import json

import pytest
import short_runs as runs

from pixelkiln.trainer.config import PRESETS
from pixelkiln.trainer.errors import UserError
from pixelkiln.trainer.study import options, plan

TEXT = """
name = "s"
seeds = 2
[options.model]
path = "sd15"
[options.data]
path = "pictures"
resolution = 64
[options.run]
steps = 4
device = "cpu"
[[arms]]
name = "plain"
[[arms]]
name = "rank 2"
options = {{ "adapter.rank" = 2 }}
{more}
"""


@pytest.fixture
def make(tmp_path):
    """Writes a study beside a tiny model and eight pictures, and plans it."""
    runs.pictures(tmp_path / "pictures")
    runs.model(tmp_path / "sd15")

    def made(more: str = "", text: str = TEXT, first: str = ""):
        path = tmp_path / "study.toml"
        path.write_text(first + text.format(more=more), "utf-8")
        return plan.make(*options.read(path))

    return made


def test_arms_are_interleaved_over_seeds_and_paths_are_relative_to_the_file(make, tmp_path):
    found = make()
    assert [(arm.name, seed) for arm, seed in found.cells] == [
        ("plain", 0), ("rank 2", 0), ("plain", 1), ("rank 2", 1),
    ]  # fmt: skip
    assert found.folder == tmp_path / "studies" / "s"
    assert len(found.held) == len(found.prompts) == 2
    one, other = (found.run_config(arm, 1) for arm in found.arms)
    assert (one.run.seed, other.run.seed, other.adapter.rank) == (1, 1, 2)
    assert one.run.name != other.run.name and one.run.out == other.run.out
    assert one.data == other.data and one.data.validation_split == 0.2 and one.model.path == str(tmp_path / "sd15")


def test_a_null_study_shifts_training_seeds_and_nothing_else(make):
    found = make('[[arms]]\nname = "again"\nseed_offset = 100')
    config = found.run_config(found.arms[2], 1)
    assert config.run.seed == 101 and found.arms[2].changes == "training seeds + 100"


def test_equal_time_adds_or_replaces_arms(make):
    both = make(first='equal = "both"\n')
    assert [arm.name for arm in both.arms] == ["plain", "rank 2", "rank 2, equal time"]
    only = make(first='equal = "time"\n')
    assert [(arm.name, arm.equal_time) for arm in only.arms] == [("plain", False), ("rank 2", True)]
    assert only.run_config(only.arms[1], 0, 7).run.steps == 7


def test_steps_replace_epochs(make):
    found = make('[[arms]]\nname = "epochs"\noptions = { "run.epochs" = 3 }', TEXT.replace("steps = 4", ""))
    assert found.run_config(found.arms[2], 0).run.epochs == 3
    run = found.run_config(found.arms[2], 0, 9).run
    assert (run.steps, run.epochs) == (9, None)


def test_names_become_folders_that_differ(make):
    assert plan.folder_name("plain") == "plain"
    assert plan.folder_name("a + b").startswith("a-b-") and plan.folder_name("a + b") != plan.folder_name("a / b")


ARM = '[[arms]]\nname = "x"\n'


@pytest.mark.parametrize(("more", "first", "line"), [
    (ARM + 'options = { "run.seed" = 3 }', "", "arms: 'x': run.seed is set by the study (seed_offset shifts it)"),
    (ARM + 'options = { "data.validation_split" = 0.5 }', "", "arms: 'x': data.validation_split is set by the study"),
    (ARM + 'options = { "adapter.rnk" = 3 }', "", "arms: 'x': adapter.rnk: there is no such option; did you mean"),
    (ARM + 'adapter = "no.safetensors"', "", "arms: 'x': there is no adapter "),
    (ARM + 'adapter = "a.safetensors"\nseed_offset = 1', "", "exclude each other; keep one"),
    (ARM + 'adapters = ["a.safetensors"]', "", "arms: 'x' has 1 files for 2 seeds; give one each"),
    (ARM.replace("x", "plain"), "", "arms: two are called 'plain'"),
    (ARM.replace("x", "///"), "", "holds no letter or digit"),
    (ARM + "trains = 3", "", "arms.2.trains: there is no such entry"),
    (ARM + 'options = { "model.clip_skip" = 2 }', "", "arms: 'x': model.clip_skip differs from the base's"),
    (ARM + 'options = { "data.path" = "others" }', "", "arms: 'x': with its [data] other pictures are held out"),
    ("", "held_out = 0.01\n", "held_out: 0.01 of 8 pictures holds out 1; give at least 0.31"),
    ("", 'prompts = ["A green  CAT 1", "a dog"]\n', "prompts: 'A green  CAT 1' is the caption of a training picture"),
    ("", 'prompts = ["a dog"]\n', "prompts: there are fewer than 2"),
    ("", 'prompts = ["a dog", "a dog"]\n', "prompts: 'a dog' is there twice"),
    ("", 'prompts = ["a dog", "A  Dog "]\n', "prompts: 'A  Dog ' is there twice"),
    ("", 'prompts = ["a dog", " "]\n', "prompts: one is empty"),
    ('[measures]\nneutral = ["x", "X"]', "", "measures.neutral: 'X' is there twice"),
    (ARM.replace("x", "PLAIN"), "", "arms: two are called 'PLAIN'"),
    (ARM.replace("x", "x "), "", "arms.2.name: 'x ' has spaces around it or a line break"),
    (ARM.replace("x", "rank 2, equal time"), 'equal = "both"\n', "arms: 'rank 2, equal time' is what the study calls"),
    (ARM + 'adapter = "pictures/p00.png"', "", "arms: 'x': "),
    ("", "held_out = 1\n", "held_out: '1' does not fit; it should be less than 1"),
    ("", "seed = 3\n", "seed: there is no such entry; did you mean 'seeds'?"),
    ("[measures]\nlevels = 5", "", "measures: pixel_levels: 4 does not divide levels = 5"),
    ('[measures]\nfeatures = ["pictures"]', "", "measures.features: "),
    ("[measures]\ncaptions = 1", "", "one caption cannot be told from others"),
])  # fmt: skip
def test_a_mistake_is_one_clear_line(make, tmp_path, more, first, line):
    runs.pictures(tmp_path / "others", seed=5, count=6)
    for path in (tmp_path / "others").glob("p0*"):
        path.rename(path.with_name(f"q{path.name}"))
    with pytest.raises(UserError) as error:
        make(more, first=first)
    assert line in str(error.value) and len(str(error.value).split("\n")) == 1


@pytest.mark.parametrize("seeds", ["0", "-3", "true", '"3"', "1000000000", "[]", "[1, 1]", "[-1]", "[true]", "[1e99]"])
def test_seeds_that_are_none(make, seeds):
    with pytest.raises(UserError, match=r"^seeds: .* does not fit; give how many \(1 to 1000\), or a list of [^\n]*$"):
        make(text=TEXT.replace("seeds = 2", f"seeds = {seeds}"))


def test_what_a_person_should_know_before_the_start(make, tmp_path):
    """Two arms that are one recipe, and files that may have seen the held-out pictures."""
    import torch
    from safetensors.torch import save_file

    save_file(
        {"lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": torch.zeros(2, 2)}, tmp_path / "a.safetensors"
    )
    more = ARM + 'options = { "run.steps" = 4 }\n' + ARM.replace("x", "y") + 'adapter = "a.safetensors"'
    more += '\n[measures]\nneutral = ["A green  CAT 1"]'
    notes = make(more).notes
    assert "'x' and 'plain' are one recipe under two names" in notes
    assert "measures.neutral: 'A green  CAT 1' is the caption of a training picture, where a change is wanted" in notes
    assert any(note.startswith("'y' was trained elsewhere: on held-out pictures it is too good if") for note in notes)


def test_an_arm_of_another_family_is_named(make, tmp_path):
    runs.model(tmp_path / "sdxl", "sdxl")
    with pytest.raises(
        UserError, match=r"^arms: 'x': its model is Stable Diffusion XL.*all arms need one model family"
    ):
        make(ARM + 'options = { "model.path" = "sdxl" }')


def test_an_adapter_of_another_family_is_named(make, tmp_path):
    import torch
    from safetensors.torch import save_file

    names = [f"lora_unet_input_blocks_{n}_1_transformer_blocks_1_attn2_to_k" for n in (4, 5, 7, 8)]
    tensors = {f"{name}.lora_down.weight": torch.zeros(2, 2048) for name in names}
    tensors |= {f"{name}.lora_up.weight": torch.zeros(640, 2) for name in names}
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"^arms: 'x': a\.safetensors is for sdxl, the base model is sd15"):
        make(ARM + 'adapter = "a.safetensors"')


def test_captions_that_all_pictures_share_are_no_prompts(make, tmp_path):
    for path in (tmp_path / "pictures").glob("*.txt"):
        path.write_text("a cat", "utf-8")
    with pytest.raises(UserError, match=r"^prompts: the held-out pictures have no two captions that no training"):
        make()


def test_one_picture_cannot_be_divided(make, tmp_path):
    for path in sorted((tmp_path / "pictures").glob("*"))[2:]:
        path.unlink()
    with pytest.raises(UserError, match=r"^held_out: "):
        make()


def test_a_file_that_is_no_study(tmp_path):
    (tmp_path / "a.toml").write_text("name = 'x'\n[[arms]]\nname = 'a'\n[[arms]]\nname = 'b'\n", "utf-8")
    with pytest.raises(UserError, match="it has no base configuration"):
        options.read(tmp_path / "a.toml")
    with pytest.raises(UserError, match="cannot be read"):
        options.read(tmp_path / "none.toml")
    (tmp_path / "a.toml").write_text("name = \n", "utf-8")
    with pytest.raises(UserError, match="this is not TOML"):
        options.read(tmp_path / "a.toml")


def test_only_numbers_switches_and_known_names_are_told():
    found = plan.tellable({"adapter": {"rank": 4}, "objective.kind": "simpo", "objective": {"pixel": {"kind": "dpo"}},
                           "data.path": "/home/me/secret", "sample.prompts": ["me"], "optimizer.kind": "AdamW",
                           "loss.pixel.weight": "auto", "loss.pixel.mode": "x0", "save.author": "me"})  # fmt: skip
    assert "secret" not in json.dumps(found) and "me" not in json.dumps(list(found.values())).replace("mode", "")
    assert found["adapter.rank"] == 4 and found["objective.kind"] == "simpo" and found["objective.pixel.kind"] == "dpo"
    assert found["loss.pixel.mode"] == "x0" and found["data.path"] == "(not told)"


# ---------------------------------------------------------------------------------------------------- ready studies

STUDIES = sorted((PRESETS / "studies").glob("*.toml"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_ready_study_says_what_it_asks_and_can_be_planned(path, tmp_path):
    lines = path.read_text("utf-8").splitlines()
    assert lines[0].endswith("?") or ":" in lines[0] or lines[1].startswith("# ")
    assert any(line.startswith("# Time: ") and "@" not in line for line in lines[:5])
    flags = {}
    family = path.stem.partition("-")[0]
    if family != "demo":
        pairs = path.stem.endswith("preference")
        data = runs.pairs(tmp_path / "pairs", 12) if pairs else runs.pictures(tmp_path / "pictures")
        flags = {"model.path": str(runs.model(tmp_path / family, family)), "data.resolution": 64, "run.device": "cpu",
                 ("data.pairs" if pairs else "data.path"): str(data)}  # fmt: skip
        flags |= {"data.validation_split": 0.0} if not pairs else {}
    if path.stem in ("demo-detail", "demo-time", "demo-long", "demo-weight", "demo-dense"):
        flags = {"data.path": str(runs.pictures(tmp_path / "pictures", 20))}
    if path.stem.endswith(("depth", "dense")):
        flags |= {
            "data.path": str(runs.pictures(tmp_path / "pictures", 20)),
            "data.targets": str(runs.depths(tmp_path)),
        }
        flags |= {"data.unit": 1.0, "data.resolution": 64}
    made = plan.make(*options.read(path, flags, tmp_path))
    assert len(made.arms) >= 3 and len(made.seeds) >= 5 and made.options.name == path.stem
    assert made.folder == tmp_path / path.stem
    assert not made.notes, "two arms are one recipe, or neutral prompts are trained on"
    terms = {arm.name: set(arm.config.terms()) for arm in made.arms}
    if "pixel" in path.stem or "detail" in path.stem:
        mixed = next(name for name in terms if name.endswith("mixed"))
        assert terms["latent only"] == {"mse"} and "pixel" in terms[mixed]
        assert family == "demo" or f"{mixed}, equal time" in terms


def test_flags_lie_over_the_file_and_the_folder_can_be_named(make, tmp_path, monkeypatch):
    make()
    monkeypatch.chdir(tmp_path)
    given, config = options.read(tmp_path / "study.toml", {"run.steps": 9, "data.path": "pictures"}, tmp_path / "there")
    assert config.run.steps == 9 and config.data.path == str(tmp_path / "pictures")
    assert plan.make(given, config).folder == tmp_path / "there" / "s"


def test_the_command_finds_ready_studies_and_plans_without_loading(tmp_path, monkeypatch, capsys):
    from pixelkiln.trainer import cli
    from pixelkiln.trainer.study import hours

    monkeypatch.setattr(hours, "left", lambda *_: hours.Hours(60, 3600, "guessed"))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["study", "demo-pixel", "--plan", "--run.steps=7"]) == 0
    printed = capsys.readouterr().out
    assert "9 arms x 10 seeds = 90 cells" in printed and str(tmp_path / "studies" / "demo-pixel") in printed
    assert printed.endswith("time: 1 min 0 s to 1 h 0 min (guessed)\n")
    assert not tree(tmp_path)
    assert cli.main(["study", "demo-pixl", "--plan"]) == 2
    assert "study: there is no 'demo-pixl'; did you mean 'demo-pixel'?" in capsys.readouterr().err
    assert cli.main(["study", "demo-pixel", "--plan", "--budget=8"]) == 2
    (tmp_path / "demo-pixel").mkdir()  # a folder of that name is no study
    monkeypatch.setattr(hours, "left", lambda *_: hours.Hours(60, 3600, "guessed", (1800.0, 3600.0)))
    assert cli.main(["study", "demo-pixel", "--plan", "--budget=3h"]) == 0
    assert capsys.readouterr().out.endswith("budget: 3 to 6 of 10 seeds fit into 3 h 0 min\n")
    assert cli.main(["study", "demo-pixel", "--plan", "--json", "--budget=3h"]) == 0
    assert json.loads(capsys.readouterr().out)["seeds_in_budget"] == [3, 6]
    assert cli.main(["study", "demo-pixel", "--report"]) == 2
    assert "so there is nothing to report" in capsys.readouterr().err and not (tmp_path / "studies").exists()


def tree(folder):
    """Every file and folder below."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.slow
def test_a_plan_writes_nothing_and_estimates_each_kind_of_step_once(make, tmp_path, monkeypatch, capsys):
    """Arms that differ in a rate and in a weight alone."""
    from pixelkiln.trainer import cli
    from pixelkiln.trainer.estimate.gpus import Gpu
    from pixelkiln.trainer.study import hours

    changes = '"optimizer.learning_rate" = 0.5, "loss.mse.weight" = 0.5'
    make(text=TEXT.replace('"adapter.rank" = 2', changes))
    monkeypatch.setattr(hours.gpus, "here", lambda wanted: Gpu("RTX 3060", 100.0, 100.0, "cuda", True))
    monkeypatch.setenv("PIXELKILN_CACHE", str(tmp_path.with_name("cache of estimates")))
    before = tree(tmp_path)
    assert cli.main(["study", str(tmp_path / "study.toml"), "--plan"]) == 0
    assert tree(tmp_path) == before
    printed = capsys.readouterr()
    assert "2 arms x 2 seeds = 4 cells" in printed.out and "time: " in printed.out
    assert [line.partition(": ")[0] for line in printed.err.splitlines() if "estimating" in line] == ["plain"]


def test_what_is_left_takes_as_long_as_the_cells_that_are_done(make, monkeypatch):
    from pixelkiln.trainer.estimate import report
    from pixelkiln.trainer.study import hours, queue

    study = make()

    def answer(estimator, config, steps):
        return {"seconds_per_step_range": [0.5, 1.0], "seconds_beside": [2, 4], "pace": "not measured"}

    monkeypatch.setattr(report, "answer", answer)
    found = hours.left(study, print)  # two arms of two seeds, four steps each
    assert (
        found
        and (found.least, found.most) == (16, 32)
        and found.line == "time: 16 s to 32 s (training alone; not measured)"
    )
    timed = hours.left(make(first='equal = "time"\n'), print)  # the second is as long as the first
    assert timed and (timed.least, timed.most) == (16, 32)
    monkeypatch.setattr(report, "answer", lambda *_: {"seconds_per_step_range": None})
    assert hours.left(study, print) is None
    for (arm, seed), wall in zip(study.cells[:3], (10, 30, 20)):
        folder = queue.Cell(study, arm, seed).folder
        folder.mkdir(parents=True)
        (folder / "cell.json").write_text(json.dumps({"v": 1, "wall": wall}), "utf-8")
    found = hours.left(study, print)
    assert found and found.least == found.most == 30 and "by the cells that are done" in found.line
