"""What the page says is so: recipes are replaced with a way back, verdicts say what was checked, and runs that wait."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the interface's own extra is not installed")

import gradio as gr

from pixelkiln.extension import (
    captions,
    check,
    compare,
    draft,
    duels,
    findings,
    models,
    pictures,
    prefer,
    queue,
    recipe,
    runs,
    tokens,
    train,
    words,
)  # fmt: skip
from pixelkiln.extension.page import Context, in_place, newest, plain_message
from pixelkiln.extension.security import Folders
from pixelkiln.extension.store import Home, write
from pixelkiln.trainer.data import pairs_file
from pixelkiln.trainer.families import words as trainer_words
from pixelkiln.trainer.runs import control


def built(screen: Any, context: Context) -> Any:
    with gr.Blocks():
        return screen(context)


def folder(path: Path, *texts: str) -> Path:
    path.mkdir()
    for number, text in enumerate(texts):
        Image.new("RGB", (64, 64), (number, 0, len(path.name))).save(path / f"{number}.png")
        captions.save(path / f"{number}.png", text)
    return path


# ------------------------------------------------------------------------------------------------ nothing typed is lost


READY = {
    "steps": 5, "epochs": 1.0, "data": None, "model": {},
    "fit": {"gb": 1.0, "of_gb": 9.0, "fits": True, "card": "x", "at": "s", "parts": {}, "remedies": [],
            "seconds_per_step": 12.0},
}  # fmt: skip
"""What the trainer's check answers to a recipe that fits."""


def test_leaving_the_preset_field_changes_nothing(context: Context) -> None:
    form = built(recipe.Recipe, context)
    draft.change(context.home, {"preset": "demo", "run.steps": 77, "adapter.rank": 3})
    before = draft.read(context.home)
    form.choose_preset("demo")
    assert draft.read(context.home) == before


def test_text_that_is_being_written_in_the_box_stays_while_a_field_changes(context: Context) -> None:
    form = built(recipe.Recipe, context)
    shown = form.show()
    text, mark = (shown[form.outputs.index(one)] for one in (form.toml, form.based_on))
    now = form.edit("run.batch", 3, shown[form.outputs.index(form.shown)], text + "# mine", mark)
    assert now[form.outputs.index(form.toml)] == gr.skip() == now[form.outputs.index(form.based_on)]
    now = form.edit("run.batch", 4, shown[form.outputs.index(form.shown)], text, mark)
    assert "batch = 4" in now[form.outputs.index(form.toml)]


def test_what_is_typed_to_compare_stays_when_the_screen_is_left(context: Context) -> None:
    run = context.home.runs / "one"
    write(run / "status.json", json.dumps({"v": 1, "state": "done", "step": 1, "total": 1}))
    write(run / "one.safetensors", b"")
    screen = built(compare.Compare, context)
    first = screen.show(None, "")
    again = screen.show("one", "one")
    which, prompts, used = (screen.outputs.index(one) for one in (screen.which, screen.prompts, screen.used))
    assert first[screen.outputs.index(screen.shown)] == "one" and "value" in first[which]
    assert "value" not in again[which] and "value" not in again[used]
    assert all("value" not in one for one in (first[prompts], again[prompts]))


def test_coming_back_leaves_the_folders_field_to_the_browser(context: Context, tmp_path: Path) -> None:
    screen = built(pictures.Pictures, context)
    shown = screen.choose(str(folder(tmp_path / "a", "a cat")))
    opened = shown[screen.outputs.index(screen.folder_shown)]
    assert opened == shown[screen.outputs.index(screen.folder_now)] == str(tmp_path / "a")
    again = screen.again("", words.ALL, "", "")
    assert "value" not in again[0] and again[screen.outputs.index(screen.folder_shown)] == gr.skip()
    assert again[screen.outputs.index(screen.folder_now)] == opened


# ----------------------------------------------------------------------------------------------------- trigger, prompts


def test_prompts_are_drawn_with_the_trigger_word_and_belong_to_their_folder(context: Context, tmp_path: Path) -> None:
    home, screen = context.home, built(pictures.Pictures, context)
    screen.choose(str(folder(tmp_path / "alice", "a girl", "a girl, park")))
    screen.set_trigger("sks", "")
    values = draft.values(draft.read(home))
    assert draft.get(values, "run.name") == "alice"
    assert draft.get(values, "sample.prompts") == ["[trigger], a girl", "[trigger], a girl, park"]
    whole = draft.values_of(
        draft.snapshot(draft.read(home) + '[model]\npath = "m"\n', home.draft, "x", home.runs, Folders())
    )
    assert whole["sample"]["prompts"] == ["sks, a girl", "sks, a girl, park"]
    screen.choose(str(folder(tmp_path / "castle", "a castle")))
    values = draft.values(draft.read(home))
    assert draft.get(values, "sample.prompts") == ["a castle"] and draft.get(values, "data.trigger") is None
    screen.choose(str(tmp_path / "alice"))
    values = draft.values(draft.read(home))
    assert draft.get(values, "data.trigger") == "sks" and draft.get(values, "run.name") == "alice"
    screen.set_trigger("", "sks")
    assert draft.get(draft.values(draft.read(home)), "sample.prompts") == ["a girl", "a girl, park"]


def test_a_prompt_without_the_trigger_word_is_found_and_fixed(context: Context) -> None:
    values = {"data": {"trigger": "sks"}, "sample": {"prompts": ["sks, a cat", "a dog", "[trigger] hat", "task"]}}
    (found,) = findings.of_recipe(values)
    assert "2 of 4 preview prompts lack the trigger word 'sks'" in found.text and found.remedy
    assert found.remedy[2] == ["sks, a cat", "[trigger], a dog", "[trigger] hat", "[trigger], task"]
    assert draft.fill_trigger(["[trigger], a cat", "a [trigger] hat"], "") == ["a cat", "a hat"]
    form = built(recipe.Recipe, context)
    draft.change(context.home, {"data.trigger": "sks"})
    assert "drawn as: sks, a cat" in form.filled("[trigger], a cat") and "lack" in form.filled("a cat")


# ---------------------------------------------------------------------------------------------------------- what is so


def test_tokens_are_counted_as_the_trainer_counts_them() -> None:
    tokenizer = trainer_words.clip()
    for text in ("a red cat, ink", "it's I'll Ärger 東京 🦊 naïve_x 2024 ((b:1.2))", "", "masterpiece " * 40):
        assert tokens.count(text) == len(tokenizer(text, add_special_tokens=False, verbose=False).input_ids), text


def test_conditions_that_make_a_run_pointless_are_found(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer: dict[str, Any] = {
        "epochs": 300.0, "steps": 600, "data": {"steps_per_epoch": 2}, "resolution": 512,
        "model": {"family": "sd15", "title": "SD", "resolution": 128},
        "fit": {"parts": {"adapter": 1.0, "optimizer": 2.0}},
    }  # fmt: skip
    many, *_ = (one for one in findings.of_answer({}, answer, tmp_path) if "300 epochs" in one.text)
    assert many.remedy and many.remedy[2] == {"run.steps": 80, "run.epochs": None}
    monkeypatch.setattr(findings.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 14 * 2**20})())
    short, *_ = (one for one in findings.of_answer({}, answer, tmp_path) if one.stops)
    assert "0.01 GB are free" in short.text  # 1 file and 3 states: 1 + 3 * 3 GB
    assert findings.disk({}, answer) == pytest.approx(1 + 9 + findings.SPARE_GB)
    for number in range(2):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
    pairs_file.add_pair(tmp_path / "pairs", "a", tmp_path / "0.png", tmp_path / "1.png")
    assert "1 pair:" in findings.of_pairs({"data": {"pairs": str(tmp_path / "pairs")}})[0].text
    text = 'config_version = 1\n[model]\npath = "/not/there.safetensors"\n[data]\npath = "/"\n'
    assert [one.where for one in draft.problems(text, context.home.draft)] == ["model.path"]
    assert not draft.missing_files({"model": {"path": "owner/name"}}, context.home.draft)


def test_no_raw_notes_of_the_trainer_are_shown() -> None:
    notes = [{"kind": "no caption", "pictures": ["a.png"]}]
    assert "{" not in check.details({"data": {"items": 1, "kind": "pictures", "notes": notes}, "steps": 1})


def test_no_message_names_a_flag() -> None:
    assert "--" not in plain_message("it is there; resume it with --resume, or choose another --run.name NAME")
    shown = [value for name, value in vars(words).items() if name.isupper() and isinstance(value, str)]
    assert len(shown) > 100 and not [one for one in shown if "--" in one]


def test_a_start_acts_only_on_a_check_of_this_very_recipe(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def ask(context: Context, text: str, started: Any) -> tuple[list[Any], dict[str, Any]]:
        asked.append(text)
        return [], READY

    monkeypatch.setattr(check, "ask", ask)
    monkeypatch.setattr(queue, "ensure", lambda _: None)
    panel = built(check.Check, context)
    draft.change(context.home, {"preset": "demo"})
    *_, seen = panel.run({})
    assert "Ready: about 1 min 0 s" in seen[0] and len(asked) == 1
    *_, seen = panel.run({})
    assert len(asked) == 1, "an answer that holds is not asked for again"
    draft.change(context.home, {"data.trigger": "sks"})  # another window; the prompts lack it
    start_state: dict[str, Any] = {}
    *_, seen = panel.begin(start_state)
    assert len(asked) == 2 and seen[-1] == "" and seen[1]["value"] == words.START_ANYWAY
    assert "lack the trigger word" in seen[0] and not queue.read(context.home).jobs
    draft.change(context.home, {"data.trigger": None})
    *_, seen = panel.begin({"accepted": start_state["accepted"]})
    assert Path(seen[-1]).name == "demo" and [one.run for one in queue.read(context.home).jobs] == ["demo"]
    draft.change(context.home, {"model.path": "/not/there"})
    *_, seen = panel.begin(start_state)
    assert seen[-1] == "" and "is not there" in seen[0] and seen[1]["interactive"] is False


def test_start_says_that_it_waits_for_the_check_until_it_starts_or_is_refused(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(context: Context, text: str, started: Any) -> tuple[list[Any], dict[str, Any]]:
        if "rank = 9" in text:
            draft.change(context.home, {"adapter.rank": 10})  # an editor, while the check runs
            time.sleep(0.5)
        assert "rank = 8" not in text
        return [], READY

    monkeypatch.setattr(check, "ask", ask)
    monkeypatch.setattr(queue, "ensure", lambda _: None)
    with gr.Blocks() as blocks:
        panel = check.Check(context)
    [afterwards] = [one for one in blocks.fns.values() if one.trigger_only_on_failure]
    assert afterwards.fn
    assert blocks.fns[afterwards.trigger_after].name == "begin" and afterwards.outputs == panel.outputs
    start_state: dict[str, Any] = {}
    draft.change(context.home, {"preset": "demo", "data.trigger": "sks"})  # the prompts lack it: worth a question
    waits = {"value": words.STARTS_AFTER, "interactive": False, "__type__": "update"}
    first, second, last = panel.begin(start_state), panel.settle(start_state), None
    seen = next(first)
    assert seen[1] == waits and all(one == gr.skip() for one in [seen[0], *seen[2:]]), "at once, and nothing else"
    assert next(second)[1] == waits, "what is answered to another event meanwhile does not take it back"
    assert panel.verdict(start_state)[1] == waits and panel.verdict({})[1]["value"] == words.START, (
        "another page has its own"
    )
    seen = next(first)
    assert seen[1] == waits and words.CHECKING in seen[0]
    *_, last = first
    assert last[1] == {**waits, "value": words.START_ANYWAY, "interactive": True} and last[-1] == ""
    *_, last = panel.settle(start_state)
    assert last[1]["value"] == words.START_ANYWAY, "nor the question"
    *_, last = panel.begin(start_state)
    assert last[1]["value"] == words.START and Path(last[-1]).name == "demo"
    for rank, error in ((9, gr.Error), (8, AssertionError)):  # changed meanwhile, and a defect
        draft.change(context.home, {"adapter.rank": rank})
        with pytest.raises(error):
            list(panel.begin(start_state))
        _, start, again, cancel, *_ = afterwards.fn(start_state)
        assert start["value"] == words.START and start["interactive"] and not start_state["waits"]
        assert again["visible"] and not cancel["visible"]


def test_a_recipe_that_changes_during_its_check_is_checked_as_it_then_is(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(context: Context, text: str, started: Any) -> tuple[list[Any], dict[str, Any]]:
        if "rank = 9" not in text:
            draft.change(context.home, {"adapter.rank": 9})  # an editor, while the check runs
            time.sleep(0.5)
        write(context.home.runs / "other" / "status.json", '{"v": 1, "state": "done"}')  # a run ends meanwhile
        return [], READY

    monkeypatch.setattr(check, "ask", ask)
    panel = built(check.Check, context)
    draft.change(context.home, {"preset": "demo"})
    *_, seen = panel.run({})
    assert "Ready" in seen[0] and "rank = 9" in draft.read(context.home)


# ------------------------------------------------------------------------------------------------ replaced, and back


def test_a_text_that_is_behind_the_recipe_is_kept_and_can_be_applied(context: Context) -> None:
    form = built(recipe.Recipe, context)
    shown, with_error = form.show(), [*form.outputs, form.not_taken]
    apply = in_place(form.apply_text, with_error)
    text, mark = (shown[form.outputs.index(one)] for one in (form.toml, form.based_on))
    draft.change(context.home, {"run.batch": 3})
    now = apply(text + "# mine\n", mark)
    assert "apply it again" in now[-1] and now[form.outputs.index(form.toml)] == gr.skip()
    assert now[form.outputs.index(form.made["run.batch"])]["value"] == 3 and "mine" not in draft.read(context.home)
    now = apply(text + "# mine\n", now[form.outputs.index(form.based_on)])
    assert now[-1] == "" and draft.read(context.home) == text + "# mine\n"


def test_an_import_is_asked_about_and_a_strange_file_refused(context: Context, tmp_path: Path) -> None:
    form = built(recipe.Recipe, context)
    mine = draft.change(context.home, {"adapter.rank": 48})
    (tmp_path / "odd.json").write_text('{"a": 1, "b": {"c": 2}}', encoding="utf-8")
    with pytest.raises(gr.Error, match=r"odd\.json: no option in it is known"):
        form.read_file(str(tmp_path / "odd.json"))
    (tmp_path / "new.toml").write_text("config_version = 1\n[adapter]\nrank = 2\nodd = 1\n", encoding="utf-8")
    shown, line, found = form.read_file(str(tmp_path / "new.toml"))
    assert "new.toml: 1 option read, 1 unknown: adapter.odd" in line and shown["visible"]
    assert draft.read(context.home) == mine, "nothing is replaced before somebody says so"
    form.take_import(found)
    assert draft.replaced(context.home) == "new.toml" and "rank = 2" in draft.read(context.home)
    now = form.undo_replaced()
    assert draft.read(context.home) == mine and now[form.outputs.index(form.undo)]["visible"] is False
    (label, path), *_ = recipe._earlier(context.home)
    assert "no name, preset none, the defaults" in label
    form.restore_earlier(path)
    assert "rank = 2" in draft.read(context.home)


def test_a_preset_of_ones_own_and_the_recipe_of_a_run(context: Context) -> None:
    form, screen = built(recipe.Recipe, context), built(train.Train, context)
    draft.change(context.home, {"preset": "demo", "adapter.rank": 7, "run.name": "mine", "data.path": "/x"})
    form.save_preset("quick one")
    (path,) = recipe.own_presets(context.home).glob("*.toml")
    kept = draft.values_of(path.read_text(encoding="utf-8"))
    assert kept["adapter"]["rank"] == 7 and "path" not in kept.get("data", {}) and "name" not in kept["run"]
    form.choose_preset(str(path))
    assert draft.get(context.recipe(), "adapter.rank") == 7
    write(context.home.runs / "one" / "config.toml", 'config_version = 1\n[run]\nname = "one"\nsteps = 9\n')
    screen.use_recipe("one")
    assert draft.values_of(draft.read(context.home))["run"] == {"name": "one-2", "steps": 9}


def test_three_choices_find_the_preset() -> None:
    names = [name for _, name in recipe.bundled_presets()]
    assert models.choose_preset(names, "sdxl", "style", 24) == "sdxl-style-24gb"
    assert models.choose_preset(names, "sdxl", "style", 11.6) == "sdxl-style-12gb"
    assert models.choose_preset(names, "sdxl", "style", 8) == "sdxl-style-12gb"  # the smallest there is
    assert models.choose_preset(names, "flux", "style", 24) is None


def test_depth_is_a_choice_like_others_and_asks_for_targets(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "SMALLEST", 0)
    form = built(recipe.Recipe, context)
    where = form.outputs.index

    def seen(updates: list[Any], part: Any) -> Any:
        return updates[where(part)]["visible"]

    draft.change(context.home, {"model.path": str(models.BUNDLED), "preset": "demo"})
    assert form.show()[where(form.goal)]["value"] == "style", "the demo's pictures are of a style"
    shown = form.choose_goal("style", 8)
    assert not seen(shown, form.made["data.targets"]) and seen(shown, form.made["sample.prompts"])
    assert seen(shown, form.pixel)
    shown = form.choose_goal("depth", 8)
    assert draft.get(context.recipe(), "preset") == "demo_dense" and shown[where(form.goal)]["value"] == "depth"
    assert seen(shown, form.made["data.targets"]) and not seen(shown, form.made["sample.prompts"])
    assert not seen(shown, form.pixel)
    draft.change(context.home, {"model.path": str(tmp_path / "xl.safetensors"), "data.targets": str(tmp_path / "none")})
    header = json.dumps(
        {"conditioner.embedders.1.model.ln_final.bias": {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]}}
    ).encode()
    (tmp_path / "xl.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"00")
    form.choose_goal("normal", 16)
    assert draft.get(context.recipe(), "preset") == "sdxl-normal-16gb"
    problems = draft.problems(draft.read(context.home), context.home.draft, context.folders)
    assert [one.where for one in problems] == ["data.targets"]
    (tmp_path / "none").mkdir()
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "pictures" / "a.png")
    values = context.recipe()
    assert not findings.of_pictures(values, [tmp_path / "pictures"], 64, 1.0)  # captions are nobody's business here


def test_a_models_family_is_read_from_its_file(tmp_path: Path) -> None:
    for family, name in (
        ("sdxl", "conditioner.embedders.1.model.ln_final.bias"), ("sd3", "model.diffusion_model.joint_blocks.0.x"),
        ("sd15", "cond_stage_model.transformer.x"), ("", "something.else"),
    ):  # fmt: skip
        header = json.dumps({name: {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]}}).encode()
        (tmp_path / "m.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"00")
        assert models.family_of(str(tmp_path / "m.safetensors"), len(name)) == family
    assert models.look(models.BUNDLED) is not None
    assert models.look(tmp_path / "m.safetensors") is None, "too small for a base model"


# --------------------------------------------------------------------------------------------------------------- runs


def test_a_run_that_waits_says_so_and_shows_no_other_runs_results(context: Context) -> None:
    old = context.home.runs / "old"
    write(old / "status.json", json.dumps({"v": 1, "state": "done", "step": 5, "total": 5, "t": time.time()}))
    queue.pause(context.home, True)
    for name in ("a", "b"):
        queue.add(context.home, name, "")
    screen = built(train.Train, context)
    shown = dict(zip(map(id, screen.outputs), screen.show("b", "loss", 0.9, False, {})))
    line = shown[id(screen.state)]
    assert "b waits: number 2 in the queue; the queue is paused" in line and "old" not in line
    assert shown[id(screen.resume_queue)]["visible"] and not shown[id(screen.pause)]["visible"]
    assert shown[id(screen.run)]["value"] == "b" and ("b · waiting", "b") in shown[id(screen.run)]["choices"]
    write(old / "config.toml", "")
    queue.add_resume(context.home, old)
    shown = dict(zip(map(id, screen.outputs), screen.show("old", "loss", 0.9, False, {})))
    assert "old waits: number 1" in shown[id(screen.state)]
    assert shown[id(screen.at)]["value"] == 0, "a slider below its least value would end every look at the runs"


def test_a_finished_run_shows_its_file(context: Context) -> None:
    run = context.home.runs / "one"
    write(run / "status.json", json.dumps({"v": 1, "state": "done", "step": 5, "total": 5}))
    write(run / "one.safetensors", b"x" * 2_000_000)
    screen = built(train.Train, context)
    shown = dict(zip(map(id, screen.outputs), screen.show("one", "loss", 0.9, False, {})))
    line = shown[id(screen.result)]
    assert "one.safetensors" in line and "2.0 MB" in line and "/file/" in line and shown[id(screen.finished)]["visible"]
    places = shown[id(screen.where)]
    assert places["visible"] == shown[id(screen.give)]["visible"] == bool(places["choices"]), "an empty field"
    assert shown[id(screen.elsewhere)]["visible"] != places["visible"]
    signature, name = line.split("/file/")[1].split('"')[0].split("/")
    assert context.addresses.path(signature, -1, name) == run / "one.safetensors"
    assert context.addresses.path(signature, 0, name) is None


def test_runs_are_renamed_with_their_files_and_thrown_away_into_a_bin(context: Context) -> None:
    home, run = context.home, context.home.runs / "one"
    write(run / "config.toml", 'config_version = 1\n[run]\nname = "one"\n')
    for name in ("one.safetensors", "checkpoints/one-step00000005.safetensors"):
        write(run / name, b"x")
    write(run / "status.json", json.dumps({"v": 1, "state": "done", "step": 5, "total": 5}))
    new = runs.rename(home, run, "two")
    names = {one.path.name for one in control.checkpoints(new)}
    assert names == {"two-step00000005.safetensors", "two.safetensors"}
    assert 'name = "two"' in (new / "config.toml").read_text(encoding="utf-8")
    write(home.runs / "three" / "config.toml", "")
    with pytest.raises(ValueError, match="there is a 'three' already"):
        runs.rename(home, new, "three")
    queue.add_resume(home, new)
    with pytest.raises(ValueError, match="it waits in the queue"):
        runs.to_bin(home, new)
    queue.remove(home, queue.read(home).jobs[0].id)
    assert (runs.to_bin(home, new) / "two.safetensors").is_file() and not new.exists()


def test_a_click_while_a_screen_is_made_is_not_overwritten_by_the_older_screen(context: Context):
    """The page's first answer, made while "Use the demo pictures" was pressed, hid the pictures that came before it."""
    screen = built(pictures.Pictures, context)
    clicked = []

    def show() -> Any:
        made = screen.show()
        if not clicked:
            clicked.append(screen.choose_demo())
        return made

    summary = newest(context, show)()[2]
    assert summary == clicked[0][2] and words.NO_FOLDER not in summary


def test_a_click_before_the_list_has_its_value_is_for_the_run_that_the_page_shows(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        write(context.home.runs / name / "config.toml", f'config_version = 1\n[run]\nname = "{name}"\nsteps = 9\n')
        write(context.home.runs / name / "status.json", json.dumps({"v": 1, "state": "stopped", "step": 5, "total": 9}))
    screen = built(train.Train, context)
    asked: list[Any] = []
    for name in ("request", "kill"):
        monkeypatch.setattr(control, name, lambda *given: asked.append((given[0].name, *given[1:])))
    for chosen in (None, "two"):  # the list's value comes first
        screen.ask(chosen, {"run": "one"}, what_for="stop")
        screen.end(chosen, {"run": "one"})
    assert asked == [("one", "stop"), ("one",), ("two", "stop"), ("two",)]
    screen.use_recipe(None, {"run": "two"})
    assert draft.get(context.recipe(), "run.name") == "two-2"
    assert "one is now three" in screen.rename_run(None, {"run": "one"}, "three")[2]
    monkeypatch.setattr(queue, "ensure", lambda _: None)
    screen.resume_run(None, {"run": "three"})
    assert [one.run for one in queue.read(context.home).of("waiting")] == ["three"]
    screen.delete_run(None, {"run": "two"})
    assert not (context.home.runs / "two").exists()
    shown = dict(zip(map(id, screen.outputs), screen.show(None, "loss", 0.9, False, {"run": "three"})))
    assert shown[id(screen.run)]["value"] == "three"
    for seen in ({}, {"run": None}, None):
        with pytest.raises(gr.Error, match=words.NO_RUN_CHOSEN):
            screen.end(None, seen)
    assert train._confirm("?").startswith("(...given)") and train._confirm("?").endswith("return given; }")


def test_pairs_stay_a_runs_own_when_it_is_renamed_or_thrown_away(context: Context, tmp_path: Path) -> None:
    """Also where another run gets the name that is free then; recipes name a folder that never moves."""
    home = context.home

    def made(name: str) -> Path:
        write(home.runs / name / f"{name}.safetensors", b"x")
        write(home.runs / name / "status.json", json.dumps({"v": 1, "state": "done", "step": 5, "total": 5}))
        for seed in range(2):
            Image.new("RGB", (64, 64), (seed, len(control.list_runs(home.runs)), 0)).save(tmp_path / f"{seed}.png")
        return home.runs / name

    def judge(name: str, folder: str = "") -> Path:
        duel = duels.Duel("a cat", tmp_path / "0.png", tmp_path / "1.png")
        screen.choose("left", folder, [duel], "folder", name, str(tmp_path), "dpo", [], *screen._top([duel], "", name,
                      "dpo", [])[2:4])  # fmt: skip
        return screen._pairs_folder("", name)

    screen, before = built(prefer.Prefer, context), home.data / "pairs"
    first = made("cat")
    assert screen._folder("", "cat") == before / "cat" and not before.exists(), "to look takes no place"
    assert judge("cat") == before / "cat" and len(duels.pairs(before / "cat")) == 1
    second = runs.rename(home, first, "tom")
    assert screen._folder("", "tom") == before / "cat", "a renamed run keeps its own"
    made("cat")
    assert judge("cat") == before / "cat-2", "another run of the name takes none of them"
    assert [len(duels.pairs(before / one)) for one in ("cat", "cat-2")] == [1, 1]
    line = built(train.Train, context).delete_run("tom", {})[1]
    assert not second.exists() and str(before / "cat") in line, "it says where they stay"
    made("tom")
    assert judge("tom") == before / "tom" and len(duels.pairs(before / "cat")) == 1
    assert judge("tom", str(tmp_path / "mine")) == tmp_path / "mine" != screen._folder("", "cat")
    assert screen._folder("", None) == before, "without a run"
    moved = Home(tmp_path / "elsewhere")
    home.runs.rename(moved.runs)
    assert duels.place(moved, moved.runs / "cat") == moved.data / "pairs" / "cat-2", "the whole folder may move"


def test_no_run_is_made_by_a_choice_for_one_that_is_gone(context: Context, tmp_path: Path) -> None:
    screen = built(prefer.Prefer, context)
    for folder in ("", str(tmp_path / "mine")):
        for name in ("gone", "../out"):
            with pytest.raises(ValueError, match=f"there is no '{name}'"):
                screen._pairs_folder(folder, name)
            assert not (context.home.runs / name).exists()
    assert not (context.home.data / "pairs").exists(), "nor is it written to those of no run"
