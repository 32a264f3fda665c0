"""The command line, in the same process: answers, exit codes, and one clear line for every mistake."""

from __future__ import annotations

import errno
import json
import os
import pickle
import signal
from pathlib import Path

import numpy as np
import pytest
import short_runs as runs
import torch
from PIL import Image
from safetensors.torch import save_file

from pixelkiln.trainer.adapters.files import data_hash
from pixelkiln.trainer.cli import main
from pixelkiln.trainer.data import scan
from pixelkiln.trainer.data.shelf import Shelf
from pixelkiln.trainer.runs import control, files
from pixelkiln.trainer.training import signals
from pixelkiln.trainer.training.previews import Previews


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("home")
    runs.pictures(root / "pictures")
    runs.pairs(root / "pairs")
    runs.model(root / "sd15")
    return root


def flags(home: Path, **more: object) -> list[str]:
    values = {
        "model.path": home / "sd15",
        "data.path": home / "pictures",
        "data.resolution": 64,
        "run.out": home / "runs",
        "run.steps": 2,
        "run.batch": 2,
        "run.device": "cpu",
        "adapter.rank": 2,
    }
    values |= {name.replace("__", "."): value for name, value in more.items()}
    return [f"--{name}={value}" for name, value in values.items() if value != ""]


def start(home: Path, *words: str) -> list[str]:
    config = home / "empty.toml"
    config.write_text("config_version = 1\n", "utf-8")
    return [words[0], str(config), *words[1:]]


def refused(home: Path, capsys, command: str = "check", **more: object) -> str:
    """Exit 2 and one line; the line."""
    assert main([*start(home, command), *flags(home, **more)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    shown = [line for line in lines if line.startswith("error: ")]
    assert len(shown) == 1 and "Traceback" not in "".join(lines)
    return shown[0]


def test_check_answers_without_loading_a_model(home, capsys):
    assert main([*start(home, "check"), *flags(home), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["v"], answer["steps"], answer["data"]["items"], answer["model"]["family"]) == (1, 2, 8, "sd15")


def test_candidates_go_on_after_an_interrupt_and_are_never_mixed(home, tmp_path, monkeypatch, capsys):
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out"
    prompts.write_text("a cat\na dog\n", "utf-8")
    words = [*start(home, "pairs"), *flags(home), "--sample.steps=1", "--prompts", str(prompts), "-o", str(out)]
    words[1:1] = ["generate"]
    whole = Previews.picture

    def interrupted(previews, prompt):
        if prompt.text == "a dog":
            raise KeyboardInterrupt
        return whole(previews, prompt)

    def listed() -> list[dict]:
        return [json.loads(line) for line in (out / "candidates.jsonl").read_text("utf-8").splitlines()]

    monkeypatch.setattr(Previews, "picture", interrupted)
    assert main(words) == 130
    assert [row["image"] for row in listed()] == ["0000_0.png", "0000_1.png"]
    first = (out / "0000_0.png").stat().st_mtime_ns
    monkeypatch.undo()
    assert main(words) == 0
    assert (out / "0000_0.png").stat().st_mtime_ns == first
    assert [row["prompt"] for row in listed()] == ["a cat", "a cat", "a dog", "a dog"]
    assert len({row["seed"] for row in listed()}) == 4
    prompts.write_text("a bird\na dog\n", "utf-8")
    capsys.readouterr()
    assert main(words) == 2
    assert "0000_0.png: it has another prompt, seed or adapter; give another folder" in capsys.readouterr().err
    assert len(listed()) == 4


def test_pairs_alone_says_what_there_is(capsys):
    for words in (["pairs"], ["pairs", "--help"]):
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == 0
        assert "pairs-import" in capsys.readouterr().out


@pytest.mark.parametrize("words", [
    ["convert", "a.safetensors", "b.safetensors", "--rank=0"], ["merge", "b.safetensors", "a.safetensors", "--rank=-1"],
    ["keys", "--family=sd15", "--rank=0"], ["keys", "--family=sd3-medium", "--conv-rank=4"],
])  # fmt: skip
def test_ranks_that_are_none(words, capsys):
    assert main(words) == 2
    name, value = words[-1].split("=")
    shown = capsys.readouterr().err
    assert (f"error: {name}: {value} is no rank; give 1 or more" in shown) == (value != "4")
    assert shown.startswith(f"error: {name}: ") and shown.count("\n") == 1


def an_adapter(path: Path) -> Path:
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    shapes = {"lora_down.weight": (2, 768), "lora_up.weight": (1280, 2), "alpha": ()}
    save_file({f"{name}.{tensor}": torch.ones(shape) for tensor, shape in shapes.items()}, path)
    return path


def mistake(capsys, *words: object) -> str:
    """Exit 2 and one line; the line."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and shown.count("\n") == 1
    return shown


def test_converting_and_merging_replace_nothing_unasked(tmp_path, capsys):
    a, b = (an_adapter(tmp_path / f"{name}.safetensors") for name in "ab")
    before = a.read_bytes()
    (tmp_path / "peft").mkdir()
    assert "it is there already" in mistake(capsys, "merge", a, b)
    assert "it is there already" in mistake(capsys, "convert", b, a)
    assert "it is there already" in mistake(capsys, "convert", b, tmp_path / "peft", "--to=peft")
    for words in (["merge", tmp_path / "c", a, b], ["convert", a, tmp_path / "c.pt", "--to=diffusers"]):
        assert "written as .safetensors" in mistake(capsys, *words)
    assert a.read_bytes() == before
    other = an_adapter(tmp_path / "c.safetensors")
    assert main(["merge", str(other), str(a), str(b), "--force"]) == 0
    assert main(["convert", str(a), str(b), "--force"]) == 0
    assert other.read_bytes() != a.read_bytes() == before
    assert "cannot be written" in mistake(capsys, "convert", a, b / "peft", "--to=peft")


@pytest.mark.parametrize("weight", ["nan", "inf", "-inf", "much"])
def test_weights_that_are_none(weight, tmp_path, capsys):
    a = an_adapter(tmp_path / "a.safetensors")
    shown = mistake(capsys, "merge", tmp_path / "b.safetensors", f"{a}={weight}")
    assert f"'{weight}' is no weight; write FILE=0.5" in shown


def test_outputs_that_cannot_be_made(home, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way", "utf-8")
    (tmp_path / "prompts.txt").write_text("a cat\n", "utf-8")
    taken = ["-o", str(tmp_path / "file")]
    drawn = [*flags(home), "--sample.steps=1", *taken]
    generate = [*start(home, "pairs-generate"), *drawn, "--prompts", str(tmp_path / "prompts.txt")]
    train = [*start(home, "train"), *flags(home, run__log_dir=tmp_path / "file", run__name="nowhere")]
    draw = [*start(home, "sample"), *drawn, '--sample.prompts=["a cat"]']
    for words in (generate, draw, train, ["pairs-import", str(home / "pairs"), *taken]):
        capsys.readouterr()
        assert main(words) == 2
        shown = capsys.readouterr().err
        assert "cannot be written (Not a directory)" in shown or "cannot be written (File exists)" in shown, shown
        assert "Traceback" not in shown
    assert "-n: 0 is no number of pictures; give 1 or more" in mistake(capsys, *generate, "-n", "0")


def test_candidates_of_a_prompt_with_a_seed_differ(home, tmp_path):
    (tmp_path / "prompts.txt").write_text("# animals\na cat --d 7\n\na dog\n", "utf-8")
    words = [*start(home, "pairs-generate"), *flags(home), "--sample.steps=1", "--prompts"]
    assert main([*words, str(tmp_path / "prompts.txt"), "-o", str(tmp_path / "out")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "candidates.jsonl").read_text("utf-8").splitlines()]
    assert [row["prompt"] for row in rows] == ["a cat", "a cat", "a dog", "a dog"]
    assert [row["seed"] for row in rows] == [7, 8, 44, 45]


def test_each_adapter_has_its_own_folder_of_pictures(home, tmp_path, capsys, monkeypatch):
    more = {"run.name": "own", "run.out": tmp_path, "run.steps": 1, "sample.prompts": '["a cat"]', "sample.steps": 1}
    words = [*flags(home), *(f"--{name}={value}" for name, value in more.items())]
    assert main([*start(home, "train"), *words]) == 0
    file = tmp_path / "own" / "own.safetensors"
    monkeypatch.chdir(tmp_path)
    for given, folder in (([], "samples/own"), (["-o", "here"], "here")):
        assert main([*start(home, "sample"), *words, "--adapter", str(file), *given]) == 0
        assert (tmp_path / folder / "step00000000_00.png").exists()


def test_inspecting_a_whole_model_takes_a_screen_not_a_book(tmp_path, capsys):
    save_file({f"model.{i}.weight": torch.zeros(1) for i in range(2000)}, tmp_path / "model.safetensors")
    assert main(["inspect", str(tmp_path / "model.safetensors")]) == 0
    shown = capsys.readouterr().out
    assert "and 1990 more" in shown and len(shown) < 2000


def test_train_sample_and_inspect(home, tmp_path, capsys):
    more = {"run.name": "whole", "sample.prompts": '["a red cat"]', "sample.steps": 2, "run.out": tmp_path}
    words = [f"--{name}={value}" for name, value in more.items()]
    assert main([*start(home, "train"), *flags(home), *words]) == 0
    folder = tmp_path / "whole"
    status = json.loads((folder / "status.json").read_text("utf-8"))
    assert (status["state"], status["exit_code"], status["step"]) == ("done", 0, 2)
    kinds = [json.loads(line)["kind"] for line in (folder / "events.jsonl").read_text("utf-8").splitlines()]
    assert [k for k in kinds if k != "warning"] == ["start", "sample", "step", "step", "checkpoint", "sample", "end"]
    assert (folder / "before_after.png").exists() and (folder / "samples" / "grid.png").exists()
    assert list((folder / "tensorboard").iterdir())
    capsys.readouterr()
    assert main(["inspect", str(folder / "whole.safetensors"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["kind"] == "lora"
    drawn = [
        *start(home, "sample"),
        *flags(home),
        *words,
        "--adapter",
        str(folder / "whole.safetensors"),
        "-o",
        str(tmp_path / "s"),
    ]
    capsys.readouterr()
    assert main([*drawn, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["pictures"]) == 1
    again, during = (
        np.asarray(Image.open(path), dtype=int)
        for path in (tmp_path / "s" / "step00000000_00.png", folder / "samples" / "step00000002_00.png")
    )
    assert np.abs(again - during).max() <= 2  # the file holds the adapter in fp16


@pytest.mark.parametrize(
    ("more", "shown"),
    [
        ({"adapter__rnk": 4}, "adapter.rnk: there is no such option; did you mean 'rank'?"),
        (
            {"objective__kind": "simpo", "objective__reference_draws": 2},
            "objective.reference_draws: this kind has no such option, only dpo, ipo, kto",
        ),
        ({"adapter__rank": "four"}, "adapter.rank: 'four' does not fit"),
        ({"data__path": "/nowhere/at/all"}, "/nowhere/at/all"),
        ({"model__path": "/nowhere/m.safetensors"}, "/nowhere/m.safetensors"),
        ({"objective__kind": "dpo"}, "it needs pairs, but [data] gives pictures"),
        ({"model__family": "sdxl"}, "model.family: sdxl, but"),
        ({"validation__every": 5}, "nothing is held out"),
        ({"loss__mse__weight": 0.0}, "every term has weight 0"),
    ],
)
def test_a_mistake_is_one_line(home, capsys, more, shown):
    assert shown in refused(home, capsys, **more)


def test_an_unknown_argument_is_one_line(home, capsys):
    assert main([*start(home, "train"), "--rank=4"]) == 2
    assert "options are flags such as --adapter.rank=16" in capsys.readouterr().err


def test_an_empty_folder(home, tmp_path, capsys):
    assert str(tmp_path) in refused(home, capsys, data__path=tmp_path)


def test_a_truncated_picture_is_named_and_skipped_and_too_many_stop(home, tmp_path, capsys):
    folder = runs.pictures(tmp_path / "p", 4)
    Image.new("RGB", (64, 64)).save(folder / "cut.jpg")
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:300])
    assert main([*start(home, "check"), *flags(home, data__path=folder)]) == 0
    assert "cut.jpg" in capsys.readouterr().out
    assert "cut.jpg" in refused(home, capsys, data__path=folder, data__max_unreadable=0)


def test_a_caption_in_another_encoding_names_its_file(home, tmp_path, capsys):
    folder = runs.pictures(tmp_path / "p", 3)
    (folder / "p01.txt").write_bytes("grün".encode("latin-1"))
    assert "the one of p01.png" in refused(home, capsys, data__path=folder)


def test_a_checkpoint_that_is_none(home, tmp_path, capsys):
    (tmp_path / "m.safetensors").write_bytes(b"no model at all, only words")
    assert "m.safetensors" in refused(home, capsys, model__path=tmp_path / "m.safetensors")


class Code:
    def __reduce__(self):
        return (print, ("executed",))


def test_a_pickle_that_holds_code_is_refused_and_never_run(home, tmp_path, capsys):
    torch.save({"state_dict": {"w": torch.zeros(1)}, "bad": Code()}, tmp_path / "m.ckpt")
    (tmp_path / "raw.ckpt").write_bytes(pickle.dumps(Code()))
    for name in ("m.ckpt", "raw.ckpt"):
        shown = refused(home, capsys, model__path=tmp_path / name)
        assert name in shown
        assert "will likely succeed" not in shown  # torch's advice to load it all the same
    assert "executed" not in capsys.readouterr().out


def test_a_folder_that_cannot_be_written(home, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way", "utf-8")
    assert "cannot be written" in refused(home, capsys, "train", run__out=tmp_path / "file")


def test_check_refuses_the_folders_that_train_refuses(home, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way", "utf-8")
    for option in ("run.out", "run.log_dir", "data.cache_dir"):
        below = tmp_path / "file" / "below"
        assert f"{option}: {below}" in refused(home, capsys, **{option.replace(".", "__"): below})
    assert main([*start(home, "check"), *flags(home, run__out=tmp_path / "new", data__cache_dir=tmp_path / "c")]) == 0
    assert not (tmp_path / "new" / "last").exists()


@pytest.mark.parametrize(
    "more",
    [
        {"adapter__init_from": "/nowhere/a.safetensors"},
        {"model__base_adapters": '["/nowhere/a.safetensors"]'},
        {"save__thumbnail": "/nowhere/t.png"},
        {"run__resume_from": "/nowhere/run"},
        {"schedule__args": "{foo=1}"},
    ],
)
def test_check_says_what_train_says(home, tmp_path, capsys, more):
    shown = [refused(home, capsys, command, run__out=tmp_path, **more) for command in ("check", "train")]
    assert shown[0] == shown[1] and ("/nowhere" in shown[0] or "schedule" in shown[0])


PHASES = {"files": (scan, "place"), "captions": (Shelf, "words"), "pictures": (Shelf, "make"),
          "previews": (Previews, "picture")}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES)
def test_ctrl_c_before_the_first_step(home, tmp_path, capfd, monkeypatch, phase):
    """It is acknowledged and heeded in every phase, and what was encoded is not encoded again."""
    owner, name = PHASES[phase]
    whole, calls = getattr(owner, name), []

    def pressed(*args, **more):
        calls.append(args)
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return whole(*args, **more)

    words = [*start(home, "train"), *flags(home, run__out=tmp_path, run__name="early", sample__at_start="true")]
    words.append('--sample.prompts=["a cat", "a dog"]')
    words.append("--sample.steps=1")
    monkeypatch.setattr(owner, name, pressed)
    assert main(words) == 130
    err, now = capfd.readouterr().err, control.status(tmp_path / "early")
    assert f"\n{signals.STOPPING}\n" in err and signals.EARLY in err and "Traceback" not in err
    assert (now.state, now.exit_code, now.step, now.message) == ("stopped", 130, 0, signals.EARLY)
    first = len(calls)
    assert first < 3 and not (tmp_path / "early" / "early.safetensors").exists()
    assert main(words) == 0
    if phase == "pictures":
        assert len(calls) == 8


def test_a_second_ctrl_c_ends_at_once_and_says_so(capfd, monkeypatch):
    monkeypatch.setattr(signals, "SAME_PRESS", -1.0)
    with pytest.raises(KeyboardInterrupt), signals.stop_signals() as asked:
        os.kill(os.getpid(), signal.SIGINT)
        assert asked.wait(5)
        os.kill(os.getpid(), signal.SIGINT)
        asked.wait(0)
    assert [line for line in capfd.readouterr().err.splitlines() if line] == [signals.STOPPING, signals.AT_ONCE]


@pytest.mark.slow
def test_a_full_disk_while_saving_leaves_the_old_file(home, tmp_path, capsys, monkeypatch):
    words = flags(home, run__out=tmp_path, run__name="full")
    assert main([*start(home, "train"), *words]) == 0
    file = tmp_path / "full" / "full.safetensors"
    before, replace = file.read_bytes(), files._replace

    def full(aside: Path, path: Path) -> None:
        if path == file:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(aside, path)

    monkeypatch.setattr(files, "_replace", full)
    capsys.readouterr()
    assert main([*start(home, "train"), *words]) == 2
    assert "full.safetensors: it cannot be written" in capsys.readouterr().err
    assert file.read_bytes() == before
    assert json.loads((tmp_path / "full" / "status.json").read_text("utf-8"))["state"] == "failed"


def test_resuming_with_nothing_left_says_so_and_keeps_what_there_is(home, tmp_path, capsys):
    assert main([*start(home, "train"), *flags(home, run__out=tmp_path, run__steps=2)]) == 0
    adapter = tmp_path / "last" / "last.safetensors"
    before = data_hash(adapter)
    capsys.readouterr()
    assert main([*start(home, "train"), "--resume", *flags(home, run__out=tmp_path, run__steps=2)]) == 0
    assert "nothing is left to do: the run has 2 steps; raise run.steps to train on" in "".join(capsys.readouterr())
    assert data_hash(adapter) == before
    assert main(["inspect", str(adapter)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.strip().startswith("adapter.rank = ") for line in lines), "a configuration is a line per option"
    assert "run.steps = 2" in map(str.strip, lines) and not any(line.startswith("config ") for line in lines)


def test_resume_without_a_state(home, tmp_path, capsys):
    assert main([*start(home, "train", "--resume"), *flags(home, run__out=tmp_path)]) == 2
    assert "no state to resume from" in capsys.readouterr().err


def test_presets_and_options_answer_programs(capsys):
    assert main(["presets", "--json"]) == 0
    assert "demo" in [p["name"] for p in json.loads(capsys.readouterr().out)["presets"]]
    assert main(["options", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["options"]) > 100


@pytest.mark.parametrize(
    ("words", "others", "flags"),
    [
        (['--sample.prompts=["a cat --d 1"]'], [], {"sample.prompts": ["a cat --d 1"]}),
        (["--run.name=two words", "my.toml"], ["my.toml"], {"run.name": "two words"}),
        (["--adapter.rank", "16"], [], {"adapter.rank": 16}),
        (["my.toml", "--adapter.rank", "16", "--json"], ["my.toml", "--json"], {"adapter.rank": 16}),
        (["--noise.logit_mean", "-0.5"], [], {"noise.logit_mean": -0.5}),
        (["--model.path=a=b\nc"], [], {"model.path": "a=b\nc"}),
        (["--data.caption="], [], {"data.caption": ""}),
        (["--config_file", "a.toml", "--preset=x"], ["--config_file", "a.toml", "--preset=x"], {}),
    ],
)
def test_flags_of_options_are_not_taken_for_files(words, others, flags):
    from pixelkiln.trainer.cli import dotted, split_flags

    rest, found = split_flags(words)
    assert (rest, dotted(found, allowed=True)) == (others, flags)
