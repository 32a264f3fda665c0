"""What Compare, Prefer and Train show: tables of pictures, votes, pairs while they are drawn, and a run's measures."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the interface's own extra is not installed")

import gradio as gr

from pixelkiln.extension import (
    compare,
    draft,
    draws,
    duels,
    prefer,
    progress,
    runs,
    studies,
    tables,
    train,
    votes,
    words,
)
from pixelkiln.extension.page import Context, about, in_place
from pixelkiln.extension.security import Folders
from pixelkiln.extension.store import Home, write
from pixelkiln.trainer.data import pairs_file
from pixelkiln.trainer.errors import UserError
from pixelkiln.trainer.runs import control

STEPS = (0, 10, 20)


@pytest.fixture
def run(context: Context) -> Path:
    """A run of 20 steps with previews of two prompts at each of three steps, and files at the last two."""
    folder = context.home.runs / "one"
    write(folder / "status.json", json.dumps({"v": 1, "state": "done", "step": 20, "total": 20}))
    write(folder / "config.toml", '[run]\nname = "one"\nbatch = 2\n[sample]\nprompts = ["a cat", "a dog"]\n')
    write(folder / "one.safetensors", b"x")
    write(folder / "checkpoints" / "one-step00000010.safetensors", b"x")
    events = [{"v": 1, "kind": "step", "step": step, "loss": 0.1, "seconds": 2.0} for step in range(1, 21)]
    for step in STEPS:
        for row, prompt in enumerate(("a cat", "a dog")):
            path = folder / "samples" / f"step{step:08d}_{row:02}.png"
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (32, 32), (step, 100 * row, 0)).save(path)
            events.append({"v": 1, "kind": "sample", "step": step, "path": str(path), "prompt": prompt, "seed": 42})
    write(folder / "events.jsonl", "".join(json.dumps(one) + "\n" for one in events))
    return folder


def built(screen: Any, context: Context) -> Any:
    with gr.Blocks():
        return screen(context)


def test_a_run_is_compared_by_its_own_previews_and_any_two_lie_side_by_side(context: Context, run: Path) -> None:
    screen = built(compare.Compare, context)
    shown = dict(zip(map(id, screen.outputs), screen.show(None, "")))
    assert shown[id(screen.of)]["value"] == "previews" and not shown[id(screen.of)]["visible"]
    assert shown[id(screen.grid)].count("<img") == 6 and "a dog" in shown[id(screen.grid)]
    one, other = shown[id(screen.slider)]
    assert (one.getpixel((0, 0)), other.getpixel((0, 0))) == (
        (0, 0, 0),
        (20, 0, 0),
    )  # the first prompt, before and after
    table = tables.of_run(run)
    assert table and [one.name for one in table.columns] == ["before", "step 10", "step 20"]
    files = [one.adapter and Path(one.adapter).name for one in table.columns]
    assert files == [None, "one-step00000010.safetensors", "one.safetensors"]
    picked, now = shown[id(screen.picked)], []
    for cell in ((table.columns[1].id, 1), (table.columns[2].id, 1)):
        now = screen.pick("one", None, picked, SimpleNamespace(cell=f"{cell[0]} {cell[1]}"))
        picked = now[-1]
    assert [image.getpixel((0, 0)) for image in now[1]] == [(10, 100, 0), (20, 100, 0)]
    for wrong in ("", "nothing 0", f"{table.columns[0].id} 9", f"{table.columns[0].id} x"):
        assert screen.pick("one", None, picked, SimpleNamespace(cell=wrong))[-1] == picked


def test_a_strength_shows_the_nearest_that_is_drawn(context: Context, run: Path) -> None:
    file = str(run / "one.safetensors")
    candidates = [draws.Candidate("base", None)] + [draws.Candidate(f"x {s}", file, s) for s in (0.5, 1.0, 1.25)]
    sheet = draws.sheet(run, ["a cat"], candidates)
    draws.remember(run, sheet)
    for number, one in enumerate(candidates):
        path = sheet.folder / one.id / draws.PICTURE.format(0)
        path.parent.mkdir(parents=True)
        Image.new("RGB", (32, 32), (number, 0, 0)).save(path)
    screen = built(compare.Compare, context)
    shown = dict(zip(map(id, screen.outputs), screen.show("one", "")))
    assert shown[id(screen.of)]["value"] == "drawn" and shown[id(screen.of)]["visible"]
    assert shown[id(screen.strength)]["visible"] and shown[id(screen.strength)]["maximum"] == 2
    for strength, number in ((0.6, 1), (0.1, 0), (1.9, 3)):
        now = screen.set_strength("one", "drawn", shown[id(screen.picked)], strength)
        assert now[1][1].getpixel((0, 0))[0] == number
    assert screen.turn("one", "previews")[3]["visible"] is False


def test_the_vote_says_who_wins_and_takes_it_where_it_is_used(
    context: Context, run: Path, tmp_path: Path
) -> None:  # fmt: skip
    table = tables.of_run(run)
    assert table
    before, middle, last = (one.id for one in table.columns)
    screen = built(compare.Compare, context)
    for number in range(12):
        votes.record(compare.votes_of(run), votes.Vote(before, last, "right" if number < 9 else "left", number % 2))
    votes.record(compare.votes_of(run), votes.Vote("another", last, "left", 0))  # of pictures that are gone
    *_, line, button = screen.end_vote("one", None)
    assert "step 20 wins 9:3 (could be chance; vote more)" in line and button["visible"]
    (tmp_path / "host" / "models" / "loras").mkdir(parents=True)
    screen.remember_host(str(tmp_path / "host"))
    used, _, line = screen.use_winner("one", None, str(tmp_path / "host"))
    given = tmp_path / "host" / "models" / "loras" / "one.safetensors"
    assert given.exists() and used["value"].endswith("one.safetensors")
    assert 'role="status"' in line and str(given) in line
    for _ in range(20):
        votes.record(compare.votes_of(run), votes.Vote(middle, last, "left", 1))
    assert "step 10 wins 20:0 (unlikely to be chance)" in screen.end_vote("one", None)[3]
    (run / "checkpoints" / "one-step00000010.safetensors").unlink()
    *_, line, button = screen.end_vote("one", None)
    assert words.NOT_SAVED in line and not button["visible"]


@pytest.mark.parametrize(("wins", "losses", "columns", "sure"), [(6, 0, 2, True), (6, 0, 3, False), (8, 0, 3, True)])
def test_the_best_of_many_needs_more_votes(wins: int, losses: int, columns: int, sure: bool) -> None:
    names = [tables.Column(name, name) for name in "abc"[:columns]]
    given = [votes.Vote("a", "b", "left", 0)] * wins + [votes.Vote("a", "b", "right", 0)] * losses
    given += [votes.Vote("b", "c", "tie", 0)] * (columns > 2)
    found = tables.result(tables.Table(("x",), tuple(names), {}), given)
    assert found.winner == names[0] and (words.LIKELY in found.sentence) == sure
    assert tables.result(tables.Table(("x",), tuple(names), {}), given[:0]).winner is None


def test_pairs_are_judged_while_others_are_drawn(
    context: Context, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    started: list[draws.Sheet] = []
    monkeypatch.setattr(draws, "start", lambda run_dir, sheet: started.append(sheet))
    monkeypatch.setattr(draws, "under_way", lambda runs: [one.folder for one in started])
    screen = built(prefer.Prefer, context)
    line, clock, source, halt = screen.draw("", "one", "", 5)
    (sheet,) = started
    assert "0 of 10" in line and clock.active and source == "generate" and halt["visible"]
    assert [text.split(" --d ")[0] for text in sheet.prompts] == ["a cat"] * 2 + ["a dog"] * 2 + ["a cat"] * 2 + [
        "a dog"
    ] * 2 + ["a cat"] * 2
    assert len({text.split(" --d ")[1] for text in sheet.prompts}) == 10
    write(sheet.folder / "cells.json", "[{}]")
    write(sheet.folder / "config.toml", f"[sample]\nprompts = {json.dumps(sheet.prompts)}\n")
    where, acts = ("generate", "one", "", "dpo"), []
    laid = screen.watch("", [], *where, acts)
    assert laid[-4]["visible"] is False and laid[-3].active and laid[-1]["visible"]
    for number in range(3):
        drawn(sheet, number)
    laid = screen.watch("", [], *where, acts)
    assert "3 of 10" in laid[0] and len(laid[5]) == 1 and laid[-4]["visible"]  # a third waits for its partner
    again = screen.watch("", laid[5], *where, acts)
    assert again[1] == gr.skip() == again[5]  # what lies there stays
    for number in (3, 4, 5):
        drawn(sheet, number)
    after = screen.choose("left", "", laid[5], *where, acts, laid[2], laid[3])
    assert len(after[5]) == 2 and len(duels.pairs(context.home.data / "pairs" / "one")) == 1
    for won in ("tie", "right"):
        after = screen.choose(won, "", after[5], *where, acts, after[2], after[3])
    assert after[5] == [] and after[-1]["visible"], "what was decided last could not be undone"
    assert len(screen.choose("undo", "", [], *where, acts, "", "")[5]) == 1
    started.clear()
    assert screen.watch("", after[5], *where, acts)[-3].active is False


def drawn(sheet: draws.Sheet, number: int) -> None:
    """As the trainer writes it, with its prompt in the file."""
    from PIL import PngImagePlugin

    prompt, _, seed = sheet.prompts[number].partition(" --d ")
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", f"{prompt}\nSteps: 4, Seed: {seed}, Size: 32x32")
    path = sheet.folder / sheet.candidates[0].id / draws.PICTURE.format(number)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 32), (number, 0, 0)).save(path, pnginfo=info)


def test_training_on_pairs_needs_enough_and_says_its_time(context: Context, run: Path, tmp_path: Path) -> None:
    screen = built(prefer.Prefer, context)
    kept = duels.claim_place(context.home, run)
    paths = [tmp_path / f"{number}.png" for number in range(2 * words.LEAST)]
    for number, path in enumerate(paths):
        Image.new("RGB", (32, 32), (number, 1, 1)).save(path)
    for number in range(words.LEAST):
        line, button = screen._counts(kept, "one", "dpo")
        assert button["interactive"] is False and "from 8 on you can train" in line
        pairs_file.add_pair(kept, "a cat", paths[2 * number], paths[2 * number + 1], source="ui")
    line, button = screen._counts(kept, "one", "dpo")
    assert button["interactive"] and button["value"] == "Train on 8 pairs (about 27 min)"  # 300 x 4 rows x 4/3 x 1 s
    assert screen._counts(kept, "one", "kto")[1]["interactive"] is False
    draft.change(context.home, {"run.name": "mine"})
    screen.fill("", "one", "dpo")
    assert draft.get(context.recipe(), "run.name") == "one-dpo"
    earlier = (context.home.own / "draft-before-0001.toml").read_text(encoding="utf-8")
    assert 'name = "mine"' in earlier
    with pytest.raises(gr.Error, match="there are none"):
        screen.fill("", "one", "kto")


def test_nothing_is_said_to_be_decided_where_nothing_was_to_be(context: Context, run: Path, tmp_path: Path) -> None:
    """A folder without pictures, or without two of one prompt, is told as such, and not as one that is done with."""
    screen, outputs = built(prefer.Prefer, context), tmp_path / "outputs"
    outputs.mkdir()
    sheet = draws.Sheet(outputs, ("a cat --d 1", "a cat --d 2"), (draws.Candidate("one", "x"),))
    for count, line in ((0, words.NOTHING_TO_RATE), (1, words.NOTHING_TO_RATE), (2, "")):
        if count:
            drawn(sheet, count - 1)
        for name in ("one", None):
            laid = screen.from_folder("", str(outputs), name, "dpo", [])
            assert line in laid[0] and words.ALL_RATED not in laid[0] and len(laid[5]) == (count == 2)
    laid = screen.choose("left", "", laid[5], "folder", "one", str(outputs), "dpo", [], laid[2], laid[3])
    assert words.ALL_RATED in screen.from_folder("", str(outputs), "one", "dpo", [])[0]


def test_each_run_keeps_its_own_pairs_under_another_name_too(context: Context, run: Path, tmp_path: Path) -> None:
    """Choices for one character are not trained on with those for another."""
    home, screen = context.home, built(prefer.Prefer, context)
    write(home.runs / "two" / "config.toml", "")
    write(home.runs / "two" / "two.safetensors", b"x")
    for number in range(2):
        Image.new("RGB", (32, 32), (number, 1, 1)).save(tmp_path / f"{number}.png")
    mine = duels.claim_place(home, run)
    pairs_file.add_pair(mine, "a cat", tmp_path / "0.png", tmp_path / "1.png", source="ui")

    def counted(name: str, folder: str = "") -> str:
        shown = screen.show("generate", name, folder, "", 50, "dpo", [])
        return shown[screen.outputs.index(screen.counted)]

    assert "1 of about 50" in counted("one") and "0 of about 50" in counted("two")
    assert "1 of about 50" in counted("two", str(mine))  # as typed
    runs.rename(home, home.runs / "one", "three")
    assert "1 of about 50" in counted("three") and "0 of about 50" in counted("two")
    screen._remember(f'"{tmp_path / "mine"}"', "two")
    assert duels.place(home, home.runs / "two") == tmp_path / "mine" and "1 of about 50" in counted("three")


def test_what_is_typed_to_prefer_is_never_written_by_the_screen(context: Context, run: Path) -> None:
    screen = built(prefer.Prefer, context)
    shown = dict(zip(map(id, screen.outputs), screen.show("generate", None, "", "", 50, "dpo", [])))
    for field in (screen.prompts, screen.kept, screen.outside):
        assert "value" not in shown[id(field)]
    assert shown[id(screen.prompts)]["placeholder"] == "a cat\na dog"
    assert "value" not in screen.show("generate", "one", "", "", 50, "dpo", [])[0]
    ids = {id(one) for one in screen.outputs}
    assert not ids & {id(one) for one in (screen.many, screen.kind)}


def test_a_runs_measures_stand_beside_prior_and_floor(context: Context, run: Path) -> None:
    rows = [
        {"v": 1, "kind": "validation", "step": step, "loss": 0.5, "measures": {
            "absrel": absrel, "edge_f1": 0.0, "prior_absrel": 0.179, "prior_edge_f1": 0.0, "floor_absrel": 0.037,
            "floor_edge_f1": 0.785}}
        for step, absrel in ((10, 0.15), (20, 0.109))
    ]  # fmt: skip
    with (run / "events.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    screen = built(train.Train, context)
    shown = dict(zip(map(id, screen.outputs), screen.show(None, None, 0.9, False, {})))
    assert shown[id(screen.what)]["value"] == "absrel"
    assert ("AbsRel, held out", "absrel") in shown[id(screen.what)]["choices"]
    frame = shown[id(screen.plot)]
    assert set(frame["line"]) == {"held out", "prior", "floor"} and set(frame["step"]) == {10, 20}
    assert "0.109 (prior 0.179, floor 0.037)" in shown[id(screen.numbers)]
    history = progress.history(run)
    points = progress.curve(history, "edge_f1", 0.9, True)  # of 0 there is no logarithm
    assert points == [(step, pytest.approx(-0.1051, abs=1e-3), "floor") for step in (10, 20)]
    assert progress.names(history)[:3] == ["absrel", "edge_f1", "loss"]


@pytest.mark.parametrize(
    ("message", "step", "line", "part"),
    [
        ("loading", 0, "loading the model", 0), ("pictures: 14 of 25", 0, "reading pictures 14/25", 56),
        ("previews: 1 of 6", 0, "drawing previews 1/6", 17),
        ("previews: 3 of 6", 5, "drawing previews 3/6 · step 5 of 10", 50),
        ("training", 0, "training", 0), ("loss 0.1", 5, "training · step 5 of 10", 50),
    ],
)  # fmt: skip
def test_a_run_says_in_words_what_it_does(message: str, step: int, line: str, part: int) -> None:
    status = control.Status("running", step=step, total=10, message=message, live=True)
    doing = train._doing(status, "")
    html = train.standing(control.Run("one", Path("/one"), status), progress.History(), None, doing)
    assert f">{line}<" in html and f'aria-valuenow="{part}"' in html


@pytest.mark.parametrize(("state", "t"), [("waiting", 0.0), ("queued", 5.0), ("running", 5.0), ("done", 5.0)])
def test_only_what_has_ended_has_an_end(state: Any, t: float) -> None:
    live = state in ("queued", "running")
    html = train.numbers(control.Status(state, t=t, live=live), progress.History())
    assert (words.ENDED in html) == (state == "done")


def test_the_line_on_top_says_what_a_run_does_before_its_first_step(
    context: Context, run: Path, monkeypatch: Any
) -> None:
    for step, message, line in ((0, "pictures: 3 of 9", "one: reading pictures 3/9"), (4, "", "one: 4 / 20")):
        status = control.Status("running", step=step, total=20, message=message, live=True)
        monkeypatch.setattr(control, "list_runs", lambda _, status=status: [control.Run("one", run, status)])
        assert line in train.headline(context)


def test_a_chart_is_shown_once_there_is_something_to_draw(context: Context, run: Path) -> None:
    screen = built(train.Train, context)
    view: list[Any] = ["one", None, 0.9, False, {}, None, None]
    at = screen.outputs.index(screen.measured)
    assert screen.show(*view)[at]["visible"]
    run.rename(run.with_name("two"))
    write(run / "config.toml", "")  # another run under the name, which has not begun
    assert not screen.show(*view)[at]["visible"]
    history = (run.with_name("two") / "events.jsonl").read_text(encoding="utf-8").replace('"loss": 0.1', '"loss": 0.2')
    write(run / "events.jsonl", history)  # as long as that of the run before
    assert screen.show(*view)[at]["visible"]
    assert {one["loss"] for one in progress.history(run).steps.values()} == {0.2}


def test_pictures_of_a_copied_run_tell_no_time(run: Path) -> None:
    for each, seconds in ((0, None), (3, 3)):
        for number, path in enumerate(sorted((run / "samples").glob("*.png"))):
            os.utime(path, (1000 + each * number, 1000 + each * number))
        assert draws.seconds_each(run) == seconds


def test_an_estimated_time_is_a_round_one() -> None:
    assert [about(x) for x in (2, 43, 95, 3590, 5000)] == ["5 s", "45 s", "2 min", "1 h 0 min", "1 h 23 min"]


def test_an_empty_chart_has_numbers_for_its_axes() -> None:
    assert {str(kind) for name, kind in train._plotted([]).dtypes.items() if name != "line"} == {"float64"}


def test_a_chart_knows_its_lines_before_the_first_step() -> None:
    """A plot draws only the lines that it was begun with, so one begun too early stayed empty until a reload."""
    frame = train._frame(progress.History(), "loss", 0.9, False)
    assert list(frame["line"]) == ["measured", "smoothed", "held out"] and frame["value"].isna().all()


@pytest.mark.parametrize("there", [False, True])
def test_a_screens_answer_fits_its_parts_and_no_field_is_none(
    context: Context, run: Path, there: bool, tmp_path: Path
) -> None:  # fmt: skip
    """A field without text gives None to what reads it, and a button pressed beside it an error that is ours."""
    if not there:
        home = Home(tmp_path / "none")
        home.make()
        context = Context(home, context.addresses, Folders())
    views = {compare: (None, "", None, [], None, "", "", None), prefer: ("generate", None, "", "", 50, "dpo", []),
             train: (None, None, 0.9, False, {}, None, None)}  # fmt: skip
    for screen, view in views.items():
        with gr.Blocks() as blocks:
            made = screen.build(context)
        assert len(made.show(*view)) == len(made.outputs) and len(view) == len(made.inputs)
        none = [one.elem_id for one in blocks.blocks.values() if isinstance(one, gr.Textbox) and one.value is None]
        assert not none


# ------------------------------------------------------------------------------------------------------------ studies

STUDY = 'name = "s"\n'
ANSWER = {
    "name": "s", "cells": 4, "arms": [{"name": "plain", "changes": "as it is"}, {"name": "<b>", "changes": "rank = 4"}],
    "seeds": 2, "held_out": 1, "prompts": 3, "notes": ["one file"], "seconds": [40.0, 400.0], "pace": "remembered",
}  # fmt: skip


@pytest.fixture
def asked(context: Context, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What the trainer was asked and started with."""
    known: list[list[str]] = []

    def ask(arguments: list[str], **more: Any) -> dict[str, Any]:
        known.append(arguments)
        return {**ANSWER, "folder": str(context.home.runs / "studies" / "s")}

    monkeypatch.setattr(control, "ask", ask)
    monkeypatch.setattr(draws, "begin", lambda folder, arguments: known.append(arguments))
    return known


def test_a_study_is_started_as_it_was_planned(context: Context, asked: list[list[str]], tmp_path: Path) -> None:
    screen = built(studies.Studies, context)
    assert words.NO_STUDIES in screen.show(None)[1]
    file = tmp_path / "s.toml"
    file.write_text(STUDY, encoding="utf-8")
    line, button, plan = screen.look_at_plan(None, str(file), "", str(tmp_path), "", "8h")
    for part in (
        "2 recipes x 2 seeds = 4 cells",
        "1 picture held out",
        "3 prompts",
        "&lt;b&gt;",
        "40 s to 7 min",
        "one file",
    ):
        assert part in line
    assert button["visible"] and not (context.home.runs / "studies").exists()
    screen.begin_study(plan)
    wanted = ["study", str(file), "-o", str(context.home.runs / "studies"), f"--data.path={tmp_path}", "--budget", "8h"]
    assert asked == [[*wanted, "--plan"], wanted]
    look = in_place(screen.look_at_plan, [screen.planned, screen.start, screen.asked], at=0)
    for given, line in (("", "choose a ready one"), ("/no.toml", "no file")):
        error, *rest = look(None, given, "", "", "", "")
        assert line in error and 'role="alert"' in error and rest == [gr.skip()] * 2
    for nothing in ({}, {"fields": [None, "/no.toml", "", "", "", ""]}):
        with pytest.raises(gr.Error, match="look at its plan first"):
            screen.begin_study(nothing)


def test_a_plan_says_what_fits_into_the_time() -> None:
    for fit, line in (([1, 3], "In 8h: 1 to 3 of 2 seeds."), ([2, 2], "In 8h: 2 of 2 seeds."), (None, "")):
        answer = {**ANSWER, "seeds_in_budget": fit}
        assert line in studies._planned(answer, "8h") and "In 8h" not in studies._planned(answer)


def test_an_answer_for_fields_that_were_changed_meanwhile_is_not_shown(
    context: Context, asked: list[list[str]], tmp_path: Path
) -> None:
    screen = built(studies.Studies, context)
    file = write(tmp_path / "s.toml", STUDY) or tmp_path / "s.toml"
    for given, visible in ((str(file), True), ("/no.toml", False)):
        fields = [None, given, "", "", "", ""]
        line, start, found = screen.plan_or_why(*fields)
        assert ("no file" in line) != visible == (start != gr.skip())
        assert studies._still_asked(found, *fields) == [gr.skip()] * 2
        assert studies._still_asked(found, *fields[:5], "8h") == ["", gr.update(visible=False)]


@pytest.fixture
def maps(tmp_path: Path) -> tuple[Path, Path]:
    """A folder of twenty pictures, and one of the depth of each but one, in millimetres."""
    folders = tmp_path / "pictures", tmp_path / "depth"
    for folder in folders:
        folder.mkdir()
    for number in range(20):
        Image.new("RGB", (32, 32), (number, 9, 9)).save(folders[0] / f"s{number}.png")
        if number:
            Image.fromarray(np.full((32, 32), 900 + number, np.uint16)).save(folders[1] / f"s{number}.png")
    return folders


READY_STUDIES = [name for _, name in studies._ready()]


def test_each_ready_study_asks_for_what_it_learns_from(context: Context) -> None:
    screen = built(studies.Studies, context)
    for name in READY_STUDIES:
        model, pictures, targets = screen.ask_for(name, "")
        own = name.startswith("demo")
        assert model["placeholder"] == (words.STUDYS_OWN if own else words.STUDYS_NONE), name
        assert pictures["label"] == ("Folder of pairs" if "preference" in name else words.STUDY_PICTURES), name
        assert (pictures["placeholder"] == words.STUDYS_NONE) == (not own or "dense" in name), name
        assert targets["visible"] == ("dense" in name or "depth" in name), name
    assert {"demo-dense", "sd15-depth", "sd15-preference", "sdxl-preference"} <= set(READY_STUDIES)
    assert screen.ask_for(None, "/no/study.toml")[2]["visible"] is False


def test_folders_of_a_study_are_checked_and_passed_on(
    context: Context, asked: list[list[str]], tmp_path: Path, maps: tuple[Path, Path]
) -> None:
    screen, (pictures, depth) = built(studies.Studies, context), map(str, maps)
    for given, line in (
        (("demo-dense", "", "", "", depth, ""), "Folder of pictures: the study names none"),
        (("demo-dense", "", "", pictures, "", ""), "Target folder: the study names none"),
        (("demo-dense", "", "", "/no", depth, ""), "Folder of pictures: /no is not there"),
        (("demo-dense", "", "", pictures, "/no", ""), "Target folder: /no is not there"),
        (("demo-dense", "", "", pictures, str(maps[0] / "s1.png"), ""), "Target folder: .* is a file"),
        (("demo-dense", "", "", pictures, str(tmp_path), ""), "holds no map of any picture"),
        (("demo-dense", "", "/no/model", pictures, depth, ""), "Base model: /no/model is not there"),
        (("demo-dense", "", "", pictures, depth, "soon"), "time: 'soon' is none"),
        (("demo-dense", "", "", pictures, depth, "0h"), "time: '0h' is none"),
        (("sd15-depth", "", "", pictures, depth, ""), "Base model: the study names none"),
        (("sd15-preference", "", str(tmp_path), "", depth, ""), "Folder of pairs: the study names none"),
    ):
        with pytest.raises(UserError, match=line):
            screen.look_at_plan(*given)
    odd = tmp_path / "odd.toml"
    odd.write_text('name = "s"\npreset = "demo"\noptions = { data = 3 }\n', encoding="utf-8")
    assert not asked
    assert (
        screen.look_at_plan(None, str(odd), "", "", "", "")[1]["visible"] and asked.pop()
    )  # the trainer says what is wrong
    screen.look_at_plan("demo-dense", "", "", f" '{pictures}' ", depth, "")
    screen.look_at_plan("demo-pixel", "", "", "", "/no", "1h 30m")  # the field of maps is not shown
    screen.look_at_plan("sd15-preference", "", "some/model", pictures, "", "")
    out = ["-o", str(context.home.runs / "studies")]
    assert [one[2:-1] for one in asked] == [
        [*out, f"--data.path={pictures}", f"--data.targets={depth}"],
        [*out, "--budget", "1h 30m"],
        [*out, "--model.path=some/model", f"--data.pairs={pictures}"],
    ]


@pytest.mark.slow
def test_a_ready_study_of_maps_is_planned_on_own_pictures(context: Context, maps: tuple[Path, Path]) -> None:
    """By the trainer: nineteen pictures of twenty have a map, then one of them is a picture in colours."""
    look = built(studies.Studies, context).look_at_plan
    line, start, asked = look("demo-dense", "", "", *map(str, maps), "")
    assert "9 recipes x 5 seeds = 45 cells; 2 pictures held out, their maps are measured" in line
    assert "Detail preserver <code>dense.detail</code> = 1.0" in line and start["visible"] and asked["cells"] == 45
    assert "pictures without a target, left out: 1 (s0.png)" in line
    Image.new("RGB", (32, 32), (9, 200, 9)).save(maps[1] / "s0.png")
    with pytest.raises(UserError, match=r"s0\.png: a picture in colours"):
        look("demo-dense", "", "", *map(str, maps), "")


def test_a_study_of_maps_has_no_prompts(
    context: Context, monkeypatch: pytest.MonkeyPatch, maps: tuple[Path, Path]
) -> None:
    answer = {**ANSWER, "prompts": 0, "folder": str(context.home.runs / "studies" / "s")}
    monkeypatch.setattr(control, "ask", lambda *_, **__: answer)
    line, *_ = built(studies.Studies, context).look_at_plan("demo-dense", "", "", *map(str, maps), "")
    assert "1 picture held out, their maps are measured" in line and "prompt" not in line


def test_a_page_that_is_open_to_others_starts_ready_studies_alone(context: Context, asked: Any, tmp_path: Path) -> None:
    shared = Context(context.home, context.addresses, Folders((context.home.runs,)))
    screen = built(studies.Studies, shared)
    (tmp_path / "s.toml").write_text(STUDY, encoding="utf-8")
    with pytest.raises(UserError, match="open to other machines"):
        screen.look_at_plan(None, str(tmp_path / "s.toml"), "", "", "", "")
    with pytest.raises(UserError, match="outside the folders"):
        screen.look_at_plan("demo-pixel", "", "/etc/passwd", "", "", "")
    with pytest.raises(UserError, match="choose a ready one"):
        screen.look_at_plan("../../etc/x", "", "", "", "", "")
    assert not asked and screen.look_at_plan("demo-pixel", "", "", "", "", "")[1]["visible"]


def study_of(context: Context, log: str, done: int, **more: Any) -> Path:
    folder = context.home.runs / "studies" / "s"
    for number in range(done):
        write(folder / "cells" / f"arm-seed{number}" / "cell.json", json.dumps({"v": 1, "wall": 10.0}))
    write(folder / studies.ASKED, json.dumps({"v": 1, "arguments": ["study", "s.toml"], **({"cells": 4} | more)}))
    write(folder / "log.txt", log)
    return folder


@pytest.mark.parametrize(
    ("log", "cells", "more", "state"),
    [
        ("plain, seed 0: cell 1 of 4\n", 0, {}, "stopped"),
        ("plain, seed 1: cell 3 of 4, about 12 s left\n", 2, {}, "stopped"),
        ("plain, seed 1: cell 3 of 4\nerror: disk: full; make room\n", 2, {}, "failed"),
        ("plain, seed 1: cell 3 of 4\nerror: ended\n", 2, {"stopped": True}, "stopped"),
        ("x: cell 4 of 4\nreport: there\n", 4, {}, "done"),
        ("x: cell 1 of 80\nbudget: 1 h of 1 h are used; 1 seeds are done\n", 2, {"cells": None}, "done"),
        ("", 0, {}, "stopped"),
    ],
)
def test_a_study_says_how_it_stands(context: Context, log: str, cells: int, more: dict[str, Any], state: str) -> None:
    folder = study_of(context, log, cells, **more)
    one = studies.look(folder)
    assert (one.state, one.done) == (state, cells)
    shown = built(studies.Studies, context).show(None)
    assert shown[0]["value"] == "s" and shown[3]["visible"] == (state in ("stopped", "failed"))
    assert words.number(cells, words.CELLS) in shown[1] and ("make room" in shown[1]) == (state == "failed")


def test_a_study_of_the_command_line_is_read_and_not_steered(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = tmp_path / "elsewhere"
    write(there / "mine" / "cells" / "a-seed0" / "cell.json", '{"v": 1, "wall": 3}')
    screen = built(studies.Studies, context)
    shown = screen.show(None, "", str(there))
    assert (
        shown[0]["value"] == "mine" and "command line · 1 cell done" in shown[1] and words.STUDY_ELSEWHERE in shown[1]
    )
    assert not shown[2]["visible"] and not shown[3]["visible"]
    write(there / "mine" / ".lock", "")
    for held, line in ((False, "command line"), (True, "at work")):
        monkeypatch.setattr(studies, "process_lock", lambda path, held=held: contextlib.nullcontext(not held))
        shown = screen.show("mine", "", str(there))
        assert f">{line}" in shown[1] and not shown[2]["visible"]
    told = screen.show(None, "", str(tmp_path / "nowhere"))
    assert "is not there" in told[1] and told[0] == gr.skip()


def test_a_study_is_at_work_while_its_process_is(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = study_of(context, "plain, seed 1: cell 3 of 4, about 12 s left\n", 2)
    me = {"v": 1, "job": "x", **control.identity(os.getpid()), "log": 0}
    write(folder / draws.MARK, json.dumps(me))
    run = folder / "runs" / "plain-seed1"
    write(run / "status.json", json.dumps({**me, "state": "running", "step": 5, "total": 10, "t": 1}))
    screen = built(studies.Studies, context)
    line = screen.show("s")[1]
    assert "at work · cell 3 of 4 · plain, seed 1 · step 5 of 10 · 12 s left" in line and 'aria-valuenow="62"' in line
    clock, seen, refused = screen.show("s")[-3:]
    assert clock.active and screen.show("s", seen)[-1] == refused == gr.skip()
    assert screen.show("s", seen.replace("live", "stopped"))[-1] == ""  # why it was refused then holds no more
    assert draws.under_way(context.home.runs) == [folder]
    assert draws.drawing(context.home.runs) == []  # Stop of step 4 and 5 leaves it alone
    with pytest.raises(ValueError, match="a study is at work"):
        draws.need_gpu(context.home.runs)
    screen.end_study("s")
    assert (run / "control" / "stop").exists()  # the cell saves first
    (run / "status.json").unlink()
    ended: list[Path] = []
    monkeypatch.setattr(control, "kill", ended.append)
    screen.end_study("s")
    assert ended == [folder]


def test_a_studys_votes_are_those_that_its_report_reads(context: Context) -> None:
    from pixelkiln.trainer.study import vote_page
    from pixelkiln.trainer.study import votes as study_votes

    folder = study_of(context, "", 4)
    asked_for = [
        vote_page.Duel("plain@0", "rank@0", prompt, "</script> a cat", ("a.png", "b.png")) for prompt in (0, 1)
    ]
    write(folder / "vote.html", vote_page.page("s", asked_for))
    screen = built(studies.Studies, context)
    laid = screen.lay("s")[1:]
    assert "0 of 2 compared" in laid[0] and "&lt;/script&gt; a cat" in laid[0]
    first = studies.duels(folder)[0]
    after = screen.vote("left", "s", laid[1])
    assert screen.vote("left", "s", laid[1])[0] == after[0] and "1 of 2" in after[0]
    found = study_votes.values(folder / study_votes.FILE, ["plain", "rank"], [0], 2)
    assert [(one.arm, one.value) for one in found] == [
        ("rank", 1.0 if first.left == "rank@0" else -1.0),
        ("plain", 0.0),
    ]
    assert screen.show("s")[5]["visible"]
    screen.vote("right", "s", after[1])
    assert words.STUDY_VOTED in screen.lay("s")[1]
    assert "1 of 2" in screen.vote("undo", "s", "")[0]


@pytest.mark.slow
def test_a_report_is_shown_as_a_page_that_can_do_nothing(context: Context) -> None:
    from starlette.testclient import TestClient

    from pixelkiln.extension.app import application

    folder = study_of(context, "", 4)
    write(folder / "report.html", "<p>the report</p>")
    (url,) = {built(studies.Studies, context).show("s")[6].split('src="')[1].split('"')[0]}
    with TestClient(application(context, None), base_url="http://127.0.0.1") as client:
        answer = client.get(url)
        assert answer.text == "<p>the report</p>" and answer.headers["content-type"].startswith("text/html")
        rules = " ".join(answer.headers.get_list("content-security-policy"))
        assert "sandbox" in rules and "default-src 'none'" in rules and "frame-ancestors 'self'" in rules
        picture = context.addresses.url(folder / "report.html").split("?")[0]
        assert client.get(picture.replace("/picture/", "/report/").replace("/0/", "/")).status_code == 404
