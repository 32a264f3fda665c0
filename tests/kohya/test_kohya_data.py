"""Kohya's data sets and the GUI's files: what they say, as sets of ours, and what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_data import folder as pictures

from pixelkiln.extension.recipe import read_import
from pixelkiln.trainer import config as c
from pixelkiln.trainer.kohya.dataset import KEYS
from pixelkiln.trainer.kohya.entrance import imported, load, take
from pixelkiln.trainer.kohya.gui import LYCORIS_ARGS, OTHERS, RENAMED, STRANGERS
from pixelkiln.trainer.kohya.names import arguments


def text(path: Path, content: str) -> Path:
    path.write_text(content, "utf-8")
    return path


def read(root: Path, dataset: str | dict | None = None, *words: str, **values: Any):
    """(data options, notes) of a dataset_config and further arguments."""
    flags = ["--pretrained_model_name_or_path=m.safetensors", "--model.family=sd15", *words]
    if isinstance(dataset, dict):
        flags += ["--dataset_config", str(text(root / "data.json", json.dumps(dataset)))]
    elif dataset:
        flags += ["--dataset_config", str(text(root / "data.toml", dataset))]
    flags += [f"--{name}={value}" if value is not True else f"--{name}" for name, value in values.items()]
    config, notes = load(take(flags)[0])
    return config, notes


def problems(root: Path, dataset: str | dict | None = None, *words: str, **values: Any) -> list[str]:
    with pytest.raises(c.ConfigError) as caught:
        read(root, dataset, *words, **values)
    return str(caught.value).splitlines()


WHOLE = """
[general]
shuffle_caption = true
keep_tokens = 1
caption_extension = ".txt"
enable_bucket = true
resolution = 512

[[datasets]]
batch_size = 2
[[datasets.subsets]]
image_dir = "a"
num_repeats = 10
class_tokens = "sks girl"
[[datasets.subsets]]
image_dir = "reg"
is_reg = true
keep_tokens = 0

[[datasets]]
resolution = [768, 512]
min_bucket_reso = 128
batch_size = 2
flip_aug = true
[[datasets.subsets]]
image_dir = "a"
num_repeats = 2
flip_aug = false
[[datasets.subsets]]
image_dir = "b"
token_warmup_step = 0.5
caption_dropout_rate = 0
"""


def test_a_value_is_looked_for_in_subset_dataset_general_arguments_default(tmp_path):
    config, _ = read(tmp_path, WHOLE, max_bucket_reso=2048, keep_tokens_separator="|||", caption_dropout_rate=0.1)
    a, reg, again, b = config.data.sets
    assert [Path(one.path).name for one in config.data.sets] == ["a", "reg", "a", "b"]
    assert [one.repeats for one in config.data.sets] == [10, 1, 2, 1]
    assert [one.keep_tokens for one in config.data.sets] == [1, 0, 1, 1]
    assert [one.resolution for one in config.data.sets] == [512, 512, [768, 512], [768, 512]]
    assert [one.bucket_min for one in config.data.sets] == [256, 256, 128, 128]
    assert [one.flip for one in config.data.sets] == [False, False, False, True]
    assert [one.caption_dropout for one in config.data.sets] == [0.1, 0.1, 0.1, 0]
    assert {(one.bucket_max, one.shuffle, one.caption_extension, one.buckets, one.keep_tokens_separator)
            for one in config.data.sets} == {(2048, True, ".txt", True, "|||")}  # fmt: skip
    assert (a.caption, again.caption, reg.is_reg, b.is_reg, b.token_warmup_steps) == (
        "sks girl",
        None,
        True,
        False,
        0.5,
    )


def test_json_says_the_same_as_toml(tmp_path):
    assert read(tmp_path, c.loads(WHOLE))[0] == read(tmp_path, WHOLE)[0]


def test_paths_are_relative_to_the_current_folder_as_in_sd_scripts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    config, _ = read(tmp_path / "there", '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "x"\n')
    assert Path(config.data.sets[0].path) == tmp_path / "x"


def test_fine_tuning_and_masks(tmp_path):
    fine = '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "x"\nmetadata_file = "m.json"\nalpha_mask = true\n'
    one = read(tmp_path, fine)[0].data.sets[0]
    assert (Path(one.metadata).name, Path(one.path).name, one.alpha_mask) == ("m.json", "x", True)
    masks = '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "x"\nconditioning_data_dir = "masks"\n'
    assert Path(read(tmp_path, masks, masked_loss=True)[0].data.sets[0].masks).name == "masks"
    assert "set masked_loss = true" in problems(tmp_path, masks)[0]
    config, _ = read(tmp_path, None, in_json="m.jsonl", train_data_dir="x", dataset_repeats=3)
    one = config.data.sets[0]
    assert (Path(one.metadata).name, Path(one.path).name, one.repeats) == ("m.jsonl", "x", 3)


SUBSET = '[[datasets]]\n{dataset}\n[[datasets.subsets]]\nimage_dir = "x"\n{subset}\n'


@pytest.mark.parametrize(
    ("general", "dataset", "subset", "reported"),
    [
        ("num_repeat = 2", "", "", "line 2: general.num_repeat: there is no such key; did you mean num_repeats?"),
        ("", "", "resolution = 512", "datasets.subsets[0].resolution: it may not stand here; put it into [general] or"),
        ("alpha_mask = true", "", "", "general.alpha_mask: it may not stand here; put it into a subset"),
        ("", "is_reg = true", "", "datasets.is_reg: it may not stand here; put it into a subset"),
        ("", 'batch_size = "2"', "", "datasets.batch_size: '2' does not fit; write a whole number"),
        ("", "", "shuffle_caption = 1", "shuffle_caption: 1 does not fit; write true or false"),
        ("", 'resolution = "512"', "", "'512' does not fit; write a number or [width, height]"),
        ("", "resolution = [1, 2, 3]", "", "[1, 2, 3] does not fit; write a number or [width, height]"),
        ("", "", "face_crop_aug_range = 2", "2 does not fit; write [smallest, largest]"),
        ("", "", "keep_tokens = true", "True does not fit; write a whole number"),
        ("", "", 'metadata_file = "m.json"\nclass_tokens = "a"', "metadata_file brings the captions; leave it out"),
        ("", "", "custom_attributes = 1", "1 does not fit; write a table"),
        ("", "", 'resize_interpolation = "best"', "'best' does not fit; it should be 'auto', 'area'"),
        ("enable_bucket = true\nresolution = 1536", "", "", "max_bucket_reso: 1024 is less than the resolution's"),
        ("enable_bucket = true\nbucket_reso_steps = 32", "", "", "32 is no multiple of 64, which sd15 needs; set 64"),
    ],
)  # fmt: skip
def test_every_mistake_in_a_data_set_is_told_with_its_place(general, dataset, subset, reported, tmp_path):
    whole = f"[general]\n{general}\n" + SUBSET.format(dataset=dataset, subset=subset)
    found = problems(tmp_path, whole)
    assert len(found) == 1
    assert reported in found[0]


@pytest.mark.parametrize(
    ("whole", "reported"),
    [
        ("[general]\nkeep_tokens = 1\n", "datasets: there is none; write [[datasets]]"),
        ("[[datasets]]\nresolution = 512\n", "subsets: there is none; write [[datasets.subsets]] with image_dir"),
        ("[[datasets]]\n[[datasets.subsets]]\nnum_repeats = 1\n", "image_dir: it is needed; give the folder"),
        ("[dataset]\nx = 1\n[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'x'\n", "did you mean datasets?"),
        ("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'x'\n[[datasets.subsets]]\nmetadata_file = 'm'\n",
         "are mixed; put them into two [[datasets]]"),
        ("[[datasets]]\nvalidation_split = 0.1\n[[datasets.subsets]]\nimage_dir = 'x'\n[[datasets]]\n"
         "[[datasets.subsets]]\nimage_dir = 'y'\n", "validation_split: the datasets have [0.1, 0]; give all"),
        ("[datasets\n", "this is not TOML"),
    ],
)  # fmt: skip
def test_a_data_set_of_the_wrong_form_is_told(whole, reported, tmp_path):
    assert reported in "\n".join(problems(tmp_path, whole))


def test_all_mistakes_of_both_files_at_once(tmp_path):
    whole = SUBSET.format(dataset="batchsize = 2", subset="repeats = 3\nflip_aug = 'no'")
    found = problems(tmp_path, whole, learning_rte=1, network_dim="x")
    assert len(found) == 5
    assert [line.partition(": ")[0] for line in found[:2]] == ["--learning_rte", "--network_dim"]


def test_each_dataset_keeps_its_batch_size(tmp_path):
    config, _ = read(tmp_path, WHOLE.replace("batch_size = 2\nflip", "flip"), train_batch_size=4)
    assert (config.run.batch, [one.batch for one in config.data.sets]) == (4, [2, 2, None, None])


def test_preserved_outputs_and_strict_numbers(tmp_path):
    whole = SUBSET.format(dataset="", subset="custom_attributes = { diff_output_preservation = true, mine = 1 }")
    config, notes = read(tmp_path, whole, kohya_strict=True)
    assert (config.data.sets[0].preserve, config.run.kohya_strict, config.data.transparent) == (True, True, "keep")
    assert "custom_attributes.mine: nothing reads it; it is left out" in notes


def test_validation_is_one_for_all(tmp_path):
    whole = SUBSET.format(dataset="validation_split = 0\nvalidation_seed = 7", subset="")
    config, _ = read(tmp_path, "[general]\nvalidation_split = 0.2\n" + whole)
    assert (config.data.validation_split, config.data.validation_seed, config.validation.seed) == (0, 7, 7)
    assert read(tmp_path, SUBSET.format(dataset="batch_size = 3", subset=""))[0].run.batch == 3


# ------------------------------------------------------------------------------------------------------------ folders


def test_folders_named_like_10_cat(tmp_path):
    for name in ("img/10_Sks cat", "img/2_a_b", "img/notes", "img/0_none", "img/.x", "reg/1_cat"):
        pictures(tmp_path / name, 1)
    config, notes = read(
        tmp_path, train_data_dir=tmp_path / "img", reg_data_dir=tmp_path / "reg", prior_loss_weight=0.5
    )
    found = [(Path(one.path).name, one.repeats, one.caption, one.is_reg) for one in config.data.sets]
    assert found == [("10_Sks cat", 10, "Sks cat", False), ("2_a_b", 2, "a_b", False), ("1_cat", 1, "cat", True)]
    assert "train_data_dir: notes is left out; name it like 10_notes to use it" in notes


def test_a_folder_of_pictures_in_the_wrong_place_says_how_to_name_it(tmp_path):
    pictures(tmp_path / "mine", 3)
    reported = problems(tmp_path, train_data_dir=tmp_path / "mine")
    assert reported[0].endswith("it holds 3 pictures itself: move them into mine/10_mine")
    assert "there is no folder" in problems(tmp_path, train_data_dir=tmp_path / "none")[0]


# ------------------------------------------------------------------------------------------------------------ the GUI


GUI = {
    "LoRA_type": "Standard", "optimizer": "AdamW8bit", "max_resolution": "1024,1024", "lr_warmup": 10, "sdxl": True,
    "lr_scheduler": "cosine", "xformers": "sdpa", "learning_rate": 0.0003, "unet_lr": 0.0003, "text_encoder_lr": 0,
    "network_dim": 32, "network_alpha": 16, "noise_offset": 0.05, "noise_offset_type": "Original", "epoch": 4,
    "multires_noise_iterations": 6, "max_train_steps": 0, "max_train_epochs": 0, "min_snr_gamma": 5, "seed": "42",
    "caption_extension": ".txt", "max_grad_norm": 0, "mixed_precision": "bf16", "sdxl_no_half_vae": True,
    "optimizer_args": '"weight_decay=0.1" "betas=0.9,0.99"', "sample_prompts": "a cat --w 512\n# no\na dog",
    "additional_parameters": "--network_dropout=0.1 --debiased_estimation_loss", "lr_scheduler_num_cycles": "",
    "conv_dim": 8, "factor": -1, "num_processes": 1, "enable_bucket": True, "max_bucket_reso": 2048,
}  # fmt: skip


def gui(root: Path, *words: str, **values: Any):
    path = text(root / "gui.json", json.dumps({**GUI, **values}, indent=2))
    source, notes = imported(take(["--config_file", str(path), *words])[0])
    made = c.merge({"model": {"path": "m"}, "data": {"path": "x"}}, c.loads(source))
    return c.parse(made), notes, source


def test_a_file_of_the_gui(tmp_path):
    got, notes, source = gui(tmp_path)
    assert (got.adapter.rank, got.adapter.alpha, got.adapter.conv_rank, got.adapter.dropout) == (32, 16.0, None, 0.1)
    assert (got.adapter.text_encoders, got.adapter.denoiser) == (False, True)
    assert (got.optimizer.kind, got.optimizer.learning_rate, got.optimizer.denoiser_lr) == ("AdamW8bit", 3e-4, 3e-4)
    assert got.optimizer.args == {"weight_decay": 0.1, "betas": [0.9, 0.99]}
    assert (got.schedule.kind, got.schedule.warmup, got.schedule.cycles) == ("cosine", 0.1, 4)
    assert (got.noise.noise_offset, got.noise.multires_iterations) == (0.05, 0)
    assert (got.run.epochs, got.run.steps, got.run.seed, got.run.precision) == (4, None, 42, "bf16")
    assert (got.objective.min_snr_gamma, got.objective.debiased_estimation_loss) == (5.0, True)
    assert got.sample.prompts == ["a cat --w 512", "a dog"]
    assert got.memory.attention == "sdpa"
    assert got.model.vae_precision == "fp32" and not any("no_half_vae" in note for note in notes)
    assert got.optimizer.max_grad_norm == 1.0
    assert any("for 0 add --max_grad_norm=0" in note for note in notes)
    assert "learning_rate = 0.0003 # learning_rate = 0.0003" in source


def test_flags_go_on_top_of_the_guis_file(tmp_path):
    got = gui(tmp_path, "--network_dim", "8", "--max_grad_norm=0", "--adapter.alpha=2")[0]
    assert (got.adapter.rank, got.adapter.alpha, got.optimizer.max_grad_norm) == (8, 2.0, 0.0)


def test_the_guis_kinds_of_network(tmp_path):
    def adapter(kind: str, **more: Any):
        return gui(tmp_path, LoRA_type=kind, additional_parameters="", **more)[0].adapter

    assert adapter("Kohya LoCon").conv_rank == 8
    assert adapter("LyCORIS/LoHa").kind == "loha"
    assert adapter("LyCORIS/LoCon", dora_wd=True).kind == "dora"
    lokr = adapter("LyCORIS/LoKr", network_dim=100000, network_alpha=1, conv_dim=100000, factor=6)
    assert (lokr.kind, lokr.rank, lokr.alpha, lokr.conv_rank, lokr.factor) == ("lokr", 4096, 4096.0, 4096, 6)
    assert adapter("Kohya LoKr").kind == "lokr"
    for kind, reported in (("LyCORIS/iA3", "algo=ia3 is not here"), ("LoRA-FA", "networks.lora_fa is not here"),
                       ("Kohya LoKrr", "did you mean Kohya LoKr?")):  # fmt: skip
        with pytest.raises(c.ConfigError, match=reported):
            adapter(kind)


def test_the_guis_arithmetic_of_steps(tmp_path):
    pictures(tmp_path / "img" / "10_cat", 3)
    pictures(tmp_path / "img" / "2_dog", 1)
    got, notes, _ = gui(tmp_path, train_data_dir=str(tmp_path / "img"), train_batch_size=3, reg_data_dir="")
    assert got.run.steps == 43  # ceil((30 + 2) / 3 * 4)
    assert any(note.startswith("43 steps, as the GUI computes them: 32 pictures") for note in notes)
    assert [one.repeats for one in got.data.sets] == [10, 2]


def test_a_file_of_another_machine_imports_without_its_folders(tmp_path):
    paths = {"pretrained_model_name_or_path": "D:/sd/xl.safetensors", "output_dir": "D:/out"}
    got, notes, _ = gui(tmp_path, train_data_dir="D:/sets/cat", **paths)
    assert (got.model.path, got.run.out) == ("D:/sd/xl.safetensors", "D:/out")
    assert "train_data_dir: D:/sets/cat is not on this machine; name its folders in [[data.sets]]" in notes


@pytest.mark.parametrize(
    ("content", "reported"),
    [
        ('{"LoRA_type": "Flux1", "flux1_checkbox": true}', "it trains FLUX, which is not here"),
        ('{"a": 1,\n}', "this is not JSON: .* line 2"),
        ("[]", "it holds no settings"),
        ('{"datasets": []}', "give it as --dataset_config"),
        ('{"LoRA_type": "", "network_dmi": 4}', "network_dmi: the GUI has no such setting; did you mean network_dim?"),
        ('{"LoRA_type": "Standard", "network_dim": "many"}', "'many' is no number"),
    ],
)
def test_a_wrong_file_of_the_gui_is_told(content, reported, tmp_path):
    path = text(tmp_path / "gui.json", content)
    with pytest.raises(ValueError, match=reported):
        imported(take(["--config_file", str(path)])[0])


@pytest.mark.nightly
def test_the_page_takes_a_file_of_the_gui(tmp_path):
    assert "rank = 32 # network_dim = 32" in read_import(text(tmp_path / "gui.json", json.dumps(GUI)))
    with pytest.raises(ValueError, match="algo=ia3 is not here"):
        read_import(text(tmp_path / "bad.json", json.dumps({**GUI, "LoRA_type": "LyCORIS/iA3"})))


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.sampled_from(["", "x", "10%", "a=1"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from([*KEYS]), inner, max_size=2),
    max_leaves=4,
)  # fmt: skip
SETTINGS = sorted({*arguments(), *RENAMED, *OTHERS, *LYCORIS_ARGS} - {"dataset_config"} - set(STRANGERS))


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.sampled_from(SETTINGS), ANYTHING, max_size=8),
       st.dictionaries(st.sampled_from([*KEYS, "subsets"]), ANYTHING, max_size=4))  # fmt: skip
def test_whatever_a_file_holds_is_read_or_told(tmp_path_factory, saved, dataset):
    root = tmp_path_factory.mktemp("any")
    gui = text(root / "gui.json", json.dumps(saved))
    whole = text(root / "data.json", json.dumps({"general": dataset, "datasets": [dataset]}))
    for words in (["--config_file", str(gui)], ["--train_batch_size=1", "--dataset_config", str(whole)]):
        try:
            imported(take(words)[0])
        except ValueError as error:
            assert str(error)
