"""What an import writes: never over something, and never what cannot be read."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import tomllib
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelkiln.trainer.cli import main
from pixelkiln.trainer.config import load, loads
from pixelkiln.trainer.errors import UserError
from pixelkiln.trainer.kohya.entrance import imported, take, written
from pixelkiln.trainer.kohya.made import Made

TOML = 'pretrained_model_name_or_path = "base"\nnetwork_dim = 8\ntrain_data_dir = "img"\n'
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@settings(max_examples=300, deadline=None)
@given(TEXT, TEXT, TEXT, st.lists(TEXT, max_size=3), st.dictionaries(TEXT, TEXT, max_size=2))
def test_what_is_written_is_read_back_whatever_the_texts_hold(path, comment, note, prompts, args):
    made = Made(
        options={"model.path": path, "sample.prompts": prompts, "optimizer.args": args, "data.caption": note,
                 "data.sets": [{"path": path, "caption": comment}]},
        comments={"model.path": comment, "data.caption": note},
    )  # fmt: skip
    text = written(made, note, [comment, note])
    for read in (loads, tomllib.loads):
        found = read(text)
        assert found["model"]["path"] == path
        assert found["sample"]["prompts"] == prompts
        assert found["optimizer"]["args"] == args
        assert found["data"]["sets"] == [{"path": path, "caption": comment}]


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=12))
def test_an_import_of_any_text_is_a_file_or_one_line(tmp_path_factory, text):
    """Lone surrogates too, which JSON can spell and no file can hold."""
    folder = tmp_path_factory.mktemp("any")
    saved = {"LoRA_type": "Standard", "pretrained_model_name_or_path": "m", "network_dim": 4, "optimizer": "AdamW",
             "learning_rate": 1e-4, "train_data_dir": f"D:/{text}", "output_name": text, "training_comment": text,
             "sample_prompts": f"a {text}\n{text}"}  # fmt: skip
    (folder / "saved.json").write_text(json.dumps(saved), "utf-8")
    try:
        toml, notes = imported(take([])[0], folder / "saved.json")
    except UserError as error:
        assert "\n" not in str(error).strip() or len(text) > 0
        return
    tomllib.loads(toml)
    assert not any("\n" in note for note in notes)


def test_windows_paths_in_double_quotes_are_noticed(tmp_path, capsys):
    """A tab and a line break in a path: the file is TOML all the same, and the note says what to write."""
    source, target = tmp_path / "their.toml", tmp_path / "mine.toml"
    source.write_text('pretrained_model_name_or_path = "base"\ntrain_data_dir = "D:\\train\\new"\n', "utf-8")
    assert main(["import-kohya", str(source), "-o", str(target)]) == 0
    tomllib.loads(target.read_text("utf-8"))
    shown = capsys.readouterr().out
    assert "single quotes" in shown and "\t" not in shown
    assert len(shown.splitlines()) == len(
        [line for line in shown.splitlines() if line.startswith(("note:", str(target)))]
    )


def adapters(folder: Path) -> list[Path]:
    return [folder / "a.safetensors", folder / "b.safetensors"]


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_no_command_replaces_what_it_reads(tmp_path, monkeypatch, capsys, force):
    """Whatever name the file is given by: another spelling, a link, the dataset_config that a file names."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "img" / "1_cat").mkdir(parents=True)
    Path("mine.toml").write_text('[model]\npath = ""\nfamily = "sd15"\n[data]\npath = "img/1_cat"\n', "utf-8")
    Path("their.toml").write_text(TOML, "utf-8")
    Path("link.toml").symlink_to("their.toml")
    Path("data.toml").write_text('[[datasets]]\n[[datasets.subsets]]\nimage_dir = "img/1_cat"\n', "utf-8")
    Path("both.toml").write_text('pretrained_model_name_or_path = "base"\ndataset_config = "data.toml"\n', "utf-8")
    for name in ("a", "b"):
        Path(f"{name}.safetensors").write_bytes(b"not read before this is found")
    (tmp_path / "pairs").mkdir()
    Path("pairs/pairs.jsonl").write_text("", "utf-8")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for words in (
        ["import-kohya", "their.toml", "-o", "their.toml"],
        ["import-kohya", "their.toml", "-o", "img/../their.toml"],
        ["import-kohya", "their.toml", "-o", "link.toml"],
        ["import-kohya", "link.toml", "-o", "their.toml"],
        ["import-kohya", "--config_file", "their.toml", "-o", "their.toml"],
        ["import-kohya", "both.toml", "-o", "data.toml"],
        ["check", "mine.toml", "--fit", "-o", "mine.toml"],
        ["convert", "a.safetensors", "a.safetensors"],
        ["merge", "a.safetensors", "b.safetensors", "a.safetensors"],
        ["pairs", "export", "pairs", "pairs/pairs.jsonl"],
    ):
        assert main([*words, *force]) == 2, words
        message = capsys.readouterr().err
        assert "is what is read here" in message and message.count("\n") == 1, (words, message)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_another_file_is_replaced_with_force_only(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("their.toml").write_text(TOML, "utf-8")
    Path("old.toml").write_text("precious", "utf-8")
    assert main(["import-kohya", "their.toml", "-o", "old.toml"]) == 2
    assert "--force" in capsys.readouterr().err
    assert Path("old.toml").read_text("utf-8") == "precious"
    assert main(["import-kohya", "their.toml", "-o", "old.toml", "--force"]) == 0
    assert load("old.toml").adapter.rank == 8


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_a_folder_or_a_device_is_never_replaced_by_a_file(tmp_path, monkeypatch, capsys, force):
    monkeypatch.chdir(tmp_path)
    Path("their.toml").write_text(TOML, "utf-8")
    Path("folder.safetensors").mkdir()
    os.mkfifo("pipe.safetensors")
    Path("a.safetensors").write_bytes(b"not read before this is found")
    for target, kind in (("folder.safetensors", "a folder"), ("pipe.safetensors", "a device")):
        for words in (["import-kohya", "their.toml", "-o", target], ["convert", "a.safetensors", target],
                      ["merge", target, "a.safetensors"]):  # fmt: skip
            assert main([*words, *force]) == 2
            assert f"it is {kind}; give the name of a file" in capsys.readouterr().err
    Path("file").write_text("precious", "utf-8")
    assert main(["convert", "a.safetensors", "file", "--to", "peft", *force]) == 2
    assert "it is a file; give the name of a folder" in capsys.readouterr().err
