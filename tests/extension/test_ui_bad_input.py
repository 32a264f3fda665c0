"""What a person does wrong, or a disk, on the page: one clear line each, and nothing is lost."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the interface's own extra is not installed")

import gradio as gr

from pixelkiln.extension import check, draft, duels, pictures, progress, queue, recipe, train, votes, words
from pixelkiln.extension.page import Context, kindly
from pixelkiln.extension.store import write
from pixelkiln.trainer.config import PRESETS
from pixelkiln.trainer.runs import control


@pytest.fixture
def screen(context: Context) -> pictures.Pictures:
    with gr.Blocks():
        return pictures.Pictures(context)


def answer(call: Callable[[], Any]) -> str:
    """The one line that the page shows."""
    with pytest.raises(gr.Error) as caught:
        call()
    assert "\n" not in caught.value.message
    return caught.value.message


def test_a_folder_that_cannot_be_used_leaves_the_recipe_alone(
    screen: pictures.Pictures, context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft.change(context.home, {"data.path": "/mine"})
    assert "is not there; check the path" in answer(lambda: screen.choose(str(tmp_path / "nothing")))
    (tmp_path / "a.png").write_bytes(b"x")
    assert "is a file; give its folder" in answer(lambda: screen.choose(str(tmp_path / "a.png")))
    assert "no folder is given" in answer(lambda: screen.choose("  "))

    def closed(self: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", closed)  # root may read all
    assert "cannot be read (Permission denied); check its permissions" in answer(lambda: screen.choose(str(tmp_path)))
    assert draft.get(draft.values(draft.read(context.home)), "data.path") == "/mine"


def test_a_pasted_folder_is_found_whatever_its_name_and_the_quotes_around_it(
    screen: pictures.Pictures, context: Context, tmp_path: Path
) -> None:
    with gr.Blocks():
        form = recipe.Recipe(context)
    for name in ("plain", "two 'quoted' \"words\"", "'", "Bilder äöü", "a#b?c%20d", "n" * 200):
        folder = tmp_path / name
        folder.mkdir()
        for around in ("{}", '"{}"', "'{}'", ' "{}" '):
            screen.choose(around.format(folder))
            assert context.recipe()["data"]["path"] == str(folder)
    form.edit("model.path", f'"{folder}"', {})
    assert context.recipe()["model"]["path"] == str(folder)


def test_an_empty_folder_and_a_folder_of_texts_say_so(screen: pictures.Pictures, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    assert "There are no pictures in this folder" in screen.choose(str(tmp_path / "mine"))[2]
    (tmp_path / "mine" / "notes.txt").write_text("a")
    assert "There are no pictures in this folder" in screen.choose(str(tmp_path / "mine"))[2]
    Image.new("RGB", (64, 64)).save(tmp_path / "mine" / "one.png")
    assert "ignored: 1 other file (notes.txt)" in screen.choose(str(tmp_path / "mine"))[2]


def test_a_picture_of_30000_pixels_is_shown_as_such_and_the_page_stays_quick(
    screen: pictures.Pictures, context: Context, tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    Image.new("1", (30_000, 30_000)).save(folder / "huge.png")
    shown = screen.choose(str(folder))
    at = {name: shown[screen.outputs.index(getattr(screen, name))] for name in ("grid", "filter")}
    assert "very large" in at["grid"] and ("1 very large", "very large") in at["filter"]["choices"]
    opened = screen.open("huge.png", "", "all", "", "", "", "")
    assert "30000 × 30000" in opened[screen.card.outputs.index(screen.card.picture)]


def test_a_preset_with_a_typo_and_a_model_of_another_family_are_told_at_their_places(context: Context) -> None:
    text = 'config_version = 1\npreset = "dmeo"\n'
    found = next(one for one in draft.problems(text, context.home.draft) if one.where == "preset")
    assert "demo" in found.what and found.remedy == ("Use 'demo'", "preset", "demo")
    text = f'config_version = 1\npreset = "demo"\n[model]\npath = "{(PRESETS / "base").as_posix()}"\nfamily = "sdxl"\n'
    problems, answer = check.ask(context, text)
    assert not answer and len(problems) == 1, (problems, answer)
    assert "sd15" in problems[0].what and "\n" not in problems[0].what


def test_a_full_disk_loses_nothing(context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, path, pairs = context.home, tmp_path / "votes.jsonl", tmp_path / "pairs"
    for number in range(2):
        Image.new("RGB", (64, 64), (number, 0, 0)).save(tmp_path / f"{number}.png")
    duel = duels.Duel("a cat", tmp_path / "0.png", tmp_path / "1.png")
    votes.record(path, votes.Vote("base", "x", "left", 0, mark="a"))
    draft.change(home, {"adapter.rank": 8})
    queue.add(home, "one", "")
    before = {one: one.read_bytes() for one in (path, home.draft, home.queue)}

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", full)
        for act in (
            lambda: votes.record(path, votes.Vote("base", "x", "right", 0, mark="b")),
            lambda: draft.change(home, {"adapter.rank": 9}),
            lambda: queue.add(home, "two", ""),
            lambda: duels.decide(pairs, duel, "left"),
        ):
            assert "no space left on device" in answer(kindly(act)).lower()
        assert {one: one.read_bytes() for one in before} == before
    votes.record(path, votes.Vote("base", "x", "right", 0, mark="b"))
    duels.decide(pairs, duel, "right")
    assert [one.mark for one in votes.read(path)] == ["a", "b"]


def test_a_defect_is_shown_with_the_lines_to_report_and_a_full_disk_is_none(context: Context) -> None:
    home = context.home
    run = home.runs / "one"
    write(run / "log.txt", "\n".join(["Traceback:", "  <odd>", f"error: {control.DEFECT}"]))

    def answer(**status: Any) -> str:
        write(run / "status.json", json.dumps({"v": 1, "state": "failed", "step": 1, "total": 9, **status}))
        return train.standing(control.list_runs(home.runs)[0], progress.History())

    ours = answer(exit_code=control.INTERNAL_ERROR, message="IndexError: 4")
    assert "IndexError: 4" in ours and words.DEFECT in ours and "  &lt;odd&gt;" in ours
    assert words.DEFECT in answer(message=control.DEFECT)  # it ended before it could say more
    full = answer(exit_code=control.INTERNAL_ERROR, message="OSError: [Errno 28] No space left on device")
    assert words.DEFECT not in full and "The disk is full" in full
    assert words.DEFECT not in answer(exit_code=control.USER_ERROR, message="data: no pictures")


def test_a_programming_mistake_is_a_traceback_in_the_log_and_a_general_line_on_the_page(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def wrong() -> None:
        int("secret of the code")

    assert answer(kindly(wrong)) == words.INTERNAL_ERROR
    assert "ValueError: invalid literal for int() with base 10: 'secret of the code'" in capsys.readouterr().err


@pytest.mark.parametrize("data", [b"\xff\xfe\x00", b"= no TOML"])
def test_a_file_that_is_no_configuration_is_one_line(screen: pictures.Pictures, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "sets.toml").write_bytes(data)
    assert "sets.toml" in answer(lambda: screen.choose(str(tmp_path / "sets.toml")))
    assert "no path" in answer(lambda: screen.choose("/a\0b"))


def test_a_spike_of_the_loss_is_in_the_runs_log(context: Context) -> None:
    run = context.home.runs / "one"
    write(run / "events.jsonl", '{"kind": "spike", "step": 40, "loss": 0.9, "usual": 0.0125}\n')
    history = progress.History()
    history.read(run)
    assert "step 40: the loss is 0.9, usually 0.0125" in train._log(history, "the log")
