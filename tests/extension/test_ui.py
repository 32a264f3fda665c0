"""The interface without a browser: recipe, captions, queue, votes, pairs, addresses, and who is let in."""

from __future__ import annotations

import json
import random
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

pytest.importorskip("gradio", reason="the interface's own extra is not installed")

from pixelkiln.extension import (
    captions,
    compare,
    draft,
    draws,
    duels,
    fields,
    hosts,
    images,
    language,
    metadata,
    prefer,
    progress,
    queue,
    recipe,
    security,
    votes,
    words,
)
from pixelkiln.extension.app import page as build_page
from pixelkiln.extension.page import Context, alert, in_place, options_in, problem_list, success
from pixelkiln.extension.store import Home, write
from pixelkiln.trainer import config
from pixelkiln.trainer.data import pairs_file
from pixelkiln.trainer.errors import UserError
from pixelkiln.trainer.runs import control
from pixelkiln.trainer.runs.process import start_detached

ROWS = fields.rows()
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "runs")
    made.make()
    return made


def picture(path: Path, size: tuple[int, int] = (64, 64), colour: Any = "red", **texts: str) -> Path:
    info = PngImagePlugin.PngInfo()
    for key, value in texts.items():
        info.add_text(key, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, pnginfo=info)
    return path


# ------------------------------------------------------------------------------------------------------------ recipe


def test_recipe_keeps_comments_and_holds_only_what_differs(home: Home) -> None:
    draft.replace(home, "# mine\nconfig_version = 1\n[adapter]\nrank = 8 # small\n")
    text = draft.change(home, {"adapter.alpha": 4.0, "loss.pixel": {}})
    assert "# mine" in text and "# small" in text and "[loss.pixel]" in text
    text = draft.change(home, {"adapter.alpha": None, "adapter.rank": None, "loss.pixel": None})
    assert draft.flat(draft.values_of(text)) == {"config_version": 1}


def test_recipe_over_a_preset_is_the_difference(home: Home) -> None:
    draft.change(home, {"preset": "demo"})
    rank = draft.get(draft.values(draft.read(home)), "adapter.rank")
    text = draft.change(home, {"adapter.rank": rank + 1, "run.name": "mine"})
    assert ("adapter.rank", rank, rank + 1) in draft.difference(text)
    text = draft.change(home, {"adapter.rank": rank})  # back to the preset's value: nothing is left of it
    assert draft.get(draft.values_of(text), "adapter.rank") is None
    draft.choose_preset(home, None)
    assert draft.values_of(draft.read(home)) == {**draft.values_of(draft.START), "run": {"name": "mine"}}


def test_a_recipe_from_a_run_changes_what_differs_from_the_defaults(home: Home) -> None:
    """A run's config.toml has every option; the list beside the form has those that somebody chose."""
    draft.change(home, {"preset": "demo", "adapter.rank": 5})
    whole = draft.snapshot(draft.read(home), home.draft, "mine", home.runs, security.Folders())
    changed = {key: new for key, _, new in draft.difference(whole)}
    chosen = {"adapter.rank", "run.name", "run.steps", "model.path", "data.path", "sample.prompts"}
    assert chosen <= set(changed) and changed["adapter.rank"] == 5
    usual = {"model.family", "model.max_tokens", "adapter.kind", "adapter.dropout", "sample.pictures", "optimizer.kind"}
    assert not usual & set(changed) and len(changed) < len(draft.flat(draft.values_of(whole))) / 3
    draft.change(home, {"adapter.dropout": 0.0, "preset": None})
    draft.change(home, {"preset": "demo"})
    assert "adapter.dropout" not in {key for key, *_ in draft.difference(draft.read(home))}
    draft.change(home, {"objective": {"kind": "dpo"}})
    assert ("objective.kind", None, "dpo") in draft.difference(draft.read(home))


def test_two_windows_change_different_keys_and_lose_none(home: Home) -> None:
    shown = draft.mark(draft.read(home))
    draft.change(home, {"run.batch": 2})
    draft.change(home, {"adapter.rank": 3})
    now = draft.flat(draft.values_of(draft.read(home)))
    assert (now["run.batch"], now["adapter.rank"]) == (2, 3)
    with pytest.raises(ValueError, match="another window"):
        draft.replace(home, "config_version = 1\n", shown)


@pytest.fixture
def form(home: Home) -> recipe.Recipe:
    import gradio as gr

    with gr.Blocks():
        return recipe.Recipe(Context(home, security.Addresses.of(home), security.Folders()))


def test_a_field_writes_only_what_was_entered_and_never_over_another_window(form: recipe.Recipe, home: Home) -> None:
    def steps() -> Any:
        return draft.get(draft.values(draft.read(home)), "run.steps")

    draft.change(home, {"run.steps": 100})
    shown = form.show()[form.outputs.index(form.shown)]
    assert shown["run.steps"] == 100
    draft.change(home, {"run.steps": 2000})  # in another window
    form.edit("run.steps", 100, shown)  # the field is only left
    assert steps() == 2000
    now = form.edit("run.steps", 150, shown)
    field = now[form.outputs.index(form.made["run.steps"])]
    assert "another window has set it to 2000 meanwhile" in field["info"] and "150" in field["info"]
    assert "run.steps" in now[0] and "problem" in field["elem_classes"]
    assert steps() == 2000 and now[form.outputs.index(form.made["run.steps"])]["value"] == 2000  # both windows show it
    assert "value" not in now[form.outputs.index(form.made["run.batch"])]
    form.edit("run.steps", 150, now[form.outputs.index(form.shown)])
    assert steps() == 150, "to enter it again is enough"
    shown = form.show()[form.outputs.index(form.shown)]
    for entered in (150, 160):  # one after the other: what this field wrote is no other window's
        form.edit("run.steps", entered, shown)
        assert steps() == entered
    draft.change(home, {"adapter.alpha": 0.123456789})
    shown = form.show()[form.outputs.index(form.shown)]
    form.edit("adapter.alpha", shown["adapter.alpha"], shown)  # shown with fewer digits
    assert draft.get(draft.values(draft.read(home)), "adapter.alpha") == 0.123456789


def test_a_field_of_the_search_says_what_is_wrong_and_takes_nothing_from_another_window(
    form: recipe.Recipe, home: Home
) -> None:
    key = "save.keep_last"
    shown = {key: fields.show(ROWS[key][0], None)}
    for entered, wrong in ((-1, True), (3, False), (2.5, True), (4, False)):
        *now, field, mark = form.edit_found(key, shown, entered, "", "")
        assert mark == draft.mark(draft.read(home))  # after which it is checked
        assert ("problem" in field["elem_classes"]) == wrong and "value" not in field
        assert "value" not in now[form.outputs.index(form.shown)]  # the form's own fields keep what they have shown
    draft.change(home, {key: 7})  # in another window
    *now, field, _ = form.edit_found(key, shown, 5, "", "")
    assert "another window has set it to 7" in now[0] and field["value"] == shown[key] == 7
    form.edit_found(key, shown, 5, "", "")
    assert draft.get(draft.values(draft.read(home)), key) == 5


def test_no_option_has_two_fields(form: recipe.Recipe, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two, one would show what the other has changed since."""
    made: list[str] = []
    monkeypatch.setattr(recipe.fields, "make", lambda row, *_, **__: made.append(fields.key_of(row)))
    monkeypatch.setattr(recipe, "_when_taken", lambda *_: ())
    lines: list[str] = []
    monkeypatch.setattr(recipe.gr, "HTML", lambda text, **_: lines.append(text))
    form._found("rank", "", "", True)
    assert "adapter.rank" not in made and "adapter.conv_rank" in made
    assert words.FOUND_ABOVE in lines[0] and 'data-option="adapter.rank"' in lines[0]
    made.clear()
    form._found("pixel.weight", "", "", True)
    assert "loss.pixel.weight" in made  # which has no field in the form while the loss is off
    draft.change(home, {"loss.pixel": {}})
    made.clear()
    form._found("pixel.weight", "", "", True)
    assert "loss.pixel.weight" not in made and 'data-option="loss.pixel.weight"' in lines[-1]
    for preset, there in (("demo", True), ("demo_dpo", False)):  # the choice of objectives is for preferences
        draft.change(home, {"preset": preset})
        made.clear()
        form._found("objective.kind", "", "", True)
        form._found("preset", "", "", True)
        assert ("objective.kind" in made) == there and "preset" not in made
    lines.clear()
    form._found("", "", "", True)
    assert not any(words.FOUND_ABOVE in line for line in lines) and not set(made) & {"run.name", "run.steps"}


def test_what_is_no_number_stays_as_it_was_entered(form: recipe.Recipe, home: Home) -> None:
    draft.change(home, {"preset": "demo"})
    shown = form.show()[form.outputs.index(form.shown)]
    for key, entered, right in (("adapter.rank", 3.5, 4), ("optimizer.learning_rate", "nan", "1e-4")):
        now = form.edit(key, entered, shown)
        assert key in now[0] and "problem" in now[form.outputs.index(form.made[key])]["elem_classes"]
        assert draft.get(draft.values(draft.read(home)), key) == entered
        assert "problems" not in form.edit(key, right, shown)[0]  # and it is no other window's, so it can be corrected
    assert form.made["adapter.rank"].preprocess(3.5) == 3.5
    form.edit("optimizer.learning_rate", "1,5e-4", shown)
    (found,) = draft.problems(draft.read(home), home.draft)
    assert found.remedy == ("Use '1.5e-4'", "optimizer.learning_rate", 1.5e-4)


@pytest.mark.parametrize(("preset", "key", "first", "second", "holds"), [
    (None, "run.name", "mine", "yours", "last"), ("demo", "run.name", "mine", "yours", "demo"),
    ("demo", "run.steps", 40, 50, 150), (None, "run.steps", 40, 50, None), ("demo", "adapter.rank", 4, 5, 16),
    ("demo", "sample.prompts", "a cat", "a dog", "food"), (None, "adapter.alpha", "4", "8", ""),
])  # fmt: skip
def test_a_field_that_was_emptied_can_be_filled_again(
    form: recipe.Recipe, home: Home, preset: str | None, key: str, first: Any, second: Any, holds: Any
) -> None:
    """No other window has set what holds while the field is empty: preset or default, which the field says."""
    draft.change(home, {"preset": preset, key: fields.read(form.by_key[key][0], first)})
    shown = form.show()[form.outputs.index(form.shown)]
    for entered in ("", second, "  ", first):
        now = form.edit(key, entered, shown)[form.outputs.index(form.made[key])]
        holding = draft.get(draft.values(draft.read(home)), key)
        if str(entered).strip():
            assert fields.read(form.by_key[key][0], entered) == holding, "it was refused"
        else:
            assert "value" not in now and str(holds or "default") in now["placeholder"]


def test_no_error_of_a_dropped_file_names_where_the_upload_lies(form: recipe.Recipe, tmp_path: Path) -> None:
    import gradio as gr

    for name, data in (
        ("a.toml", b"\xff"),
        ("b.toml", b"= ="),
        ("c.json", b"[]"),
        ("d.toml", b"[[datasets]]\nx = 1\n"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(gr.Error) as caught:
            form.read_file(str(tmp_path / name))
        assert name in caught.value.message and str(tmp_path) not in caught.value.message


def test_the_recipe_before_is_kept_whatever_takes_its_place(form: recipe.Recipe, home: Home, tmp_path: Path) -> None:
    def kept() -> list[str]:
        return [path.read_text(encoding="utf-8") for path in sorted(home.own.glob("draft-before-*.toml"))]

    mine = draft.change(home, {"adapter.rank": 48, "run.name": "mine"})
    for name in [
        name for _, name in recipe.bundled_presets()
    ] * 2:  # looked at, one after another: each copy has a reason
        form.choose_preset(name)
    assert kept() == [mine]
    theirs = draft.change(home, {"adapter.rank": 7})
    imported = tmp_path / "new.toml"
    imported.write_text("config_version = 1\n[run]\nname = 'new'\n", encoding="utf-8")
    for _ in range(2):
        form.take_import(form.read_file(str(imported))[2])
    assert kept() == [mine, theirs] and "new" in draft.read(home)
    assert str(home.own) in str(draft.start_over(home, mine))
    for number in range(2 * draft.COPIES):
        draft.replace(home, f"{mine}# {number}\n")
        draft.start_over(home, mine)
    assert len(kept()) == draft.COPIES and f"# {2 * draft.COPIES - 1}\n" in kept()[-1]


def test_a_preset_over_what_it_keeps_replaces_nothing(home: Home) -> None:
    """Whatever the order in which name, pictures, prompts and model were written, no line says that something went."""
    keys = {"run.name": "mine", "data.path": "d", "data.trigger": "sks", "sample.prompts": ["a"], "model.path": "m"}
    for order in (list(keys), list(reversed(keys))):
        draft.write(home.draft, draft.START)
        draft.change(home, {"preset": "demo"})
        for key in order:
            draft.change(home, {key: keys[key]})
        assert draft.choose_preset(home, "sd15-character-8gb") is None and draft.replaced(home) is None
        assert keys.items() <= draft.flat(draft.values_of(draft.read(home))).items()
    draft.change(home, {"adapter.rank": 3})  # this goes
    assert draft.choose_preset(home, "demo") is not None and draft.replaced(home) == "demo"


def test_a_preset_keeps_what_learns_from_pairs(home: Home, tmp_path: Path) -> None:
    rows = {"kind": "loha", "rank": 48, "init_from": "/x.safetensors"}
    draft.change(home, {"objective": {"kind": "dpo"}, "adapter": rows, "data.pairs": str(tmp_path), "run.steps": 300})
    names = [name for _, name in recipe.bundled_presets() if name]
    for name in names:
        copy = draft.choose_preset(home, name)
        now = draft.values(draft.read(home))
        assert draft.get(now, "objective.kind") == "dpo" and draft.get(now, "data.pairs") == str(tmp_path)
        assert {key: draft.get(now, f"adapter.{key}") for key in rows} == rows, name
        assert (copy is not None) == (name == names[0])  # the steps of 300 went with the first
    draft.change(home, {"data.pairs": None})
    draft.choose_preset(home, None)
    assert draft.get(draft.values(draft.read(home)), "objective") is None


@pytest.mark.parametrize(
    ("text", "where", "after"),
    [
        ("[adapter]\nrnak = 8\n", "adapter.rnak", {"adapter.rank": 8}),
        ('[adapter]\nkind = "lora"\nrank = "x"\n', "adapter.rank", {"adapter.kind": "lora"}),
        ("[run]\nsteps = 3\nepochs = 2\n", "run", {"run.steps": 3}),
        ('preset = "dmeo"\n', "preset", {"preset": "demo"}),
    ],
)
def test_a_mistake_stands_beside_its_field_and_its_remedy_mends_it(
    home: Home, text: str, where: str, after: dict[str, Any]
) -> None:
    whole = f'config_version = 1\n{text}[model]\npath = "m"\n[data]\npath = "d"\n'
    draft.replace(home, whole)
    found = next(one for one in draft.problems(whole, home.draft) if one.where == where)
    assert found.remedy is not None, found
    changed = draft.flat(draft.values_of(draft.apply_remedy(home, found.remedy)))
    assert {**changed, **after} == changed
    assert not [one for one in draft.problems(draft.read(home), home.draft) if one.where == where]


@pytest.mark.parametrize("spoken", language.PATHS)
def test_a_problem_names_its_option_as_the_field_does(spoken: str) -> None:
    """And leads to it; the key stands beside the label, for who writes TOML."""
    with language.speaking(spoken):
        for key in ROWS:
            name = fields.label(ROWS[key][0])
            name = {"objective.kind": words.OBJECTIVE, "data.path": words.FOLDER, "data.trigger": words.TRIGGER}.get(
                key, name
            )
            shown = problem_list([draft.Problem(key, "x")])
            assert f'data-option="{key}">{escape(name)}</button> <code>{key}</code> x' in shown
        assert fields.title("adapter.alpha") == "Alpha"
        assert fields.title("sample.every") == ("Alle (Schritte)" if spoken == "de" else "Every (steps)")
        assert fields.title("loss.pixel") == words.PIXEL
        named = options_in("nothing is held out; set data.validation_split, or 'save.every' <0.")
        assert "set <button" in named and ">Held out</button> <code>data.validation_split</code>, or" in named
        assert named.endswith("</code>&#x27; &lt;0.")
    for same in ("see /data.path/x", "data.paths", "--data.path=3", "run.steps.toml", "C:\\run.name"):
        assert options_in(same) == same


@pytest.mark.parametrize(
    ("text", "where", "shown", "at"),
    [
        ("[optimizer]\nbetas = [0.9, 2]", "optimizer.betas.1", "Betas", "optimizer.betas"),
        ("[noise]\nmin_timestep = 9\nmax_timestep = 3", "noise.min_timestep", "Lowest timestep", "noise.min_timestep"),
        ("[[data.sets]]\npath = 'x'\nrepeats = -1", "data.sets.0.repeats", "Repeats", ""),
        ("[adapter]\nrnk = 1", "adapter.rnk", "", ""),
    ],
)
def test_a_problem_within_an_option_stands_at_its_field(home: Home, text: str, where: str, shown: str, at: str) -> None:
    own = f'config_version = 1\n[model]\npath = "m"\n{text}'
    one = next(one for one in draft.problems(own, home.draft) if one.where == where)
    assert not one.what.startswith("min_timestep")
    assert (fields.title(where), fields.option_at(where)) == (shown, at)
    assert recipe._wrong([one, draft.Problem(where, "second")]) == {at or where: one.what}
    assert (f'data-option="{at}"' in problem_list([one])) == bool(at)


def test_an_error_that_is_thrown_names_options_by_their_labels() -> None:
    def refuse() -> None:
        raise UserError("model.path: /x is outside; choose another")

    assert "Base model (model.path): /x is outside" in in_place(refuse, [None])()


def test_snapshot_is_whole_and_independent(home: Home) -> None:
    draft.change(home, {"preset": "demo", "adapter.rank": 5})
    text = draft.snapshot(draft.read(home), home.draft, "mine", home.runs, security.Folders())
    path = home.own / "s.toml"
    write(path, text)
    loaded = config.load(path)
    assert (loaded.run.name, loaded.run.out, loaded.adapter.rank) == ("mine", str(home.runs), 5)
    assert loaded.preset is None and Path(str(loaded.data.path)).is_absolute()


@pytest.mark.parametrize("key", sorted(ROWS))
def test_every_option_survives_its_field(key: str) -> None:
    for row in ROWS[key]:
        shown = fields.show(row, None)
        again = fields.read(row, shown)
        default = None if row["default"] in (None, "", [], {}) else row["default"]
        assert again == default or (isinstance(default, float) and abs(again - default) <= 1e-5 * abs(default)), row


def test_options_are_found_by_kohyas_name_and_by_words() -> None:
    names = [fields.key_of(row) for row in fields.search(ROWS, "network_dim", None, "sft")]
    assert names[0] == "adapter.rank"
    assert "noise.noise_offset" in [fields.key_of(row) for row in fields.search(ROWS, "noise offset", None, "sft")]
    assert not any(row.get("kind") == "dpo" for row in fields.search(ROWS, "beta", None, "sft"))
    assert [fields.key_of(row) for row in fields.search(ROWS, " run.steps ", "memory", "sft")] == ["run.steps"]
    assert fields.label({"label": "Rank", "kohya": "network_dim", "name": "rank", "table": "adapter"}) == "Rank"
    assert "(kohya: network_dim)" in fields.dress(ROWS["adapter.rank"][0], None)["info"]
    for asked, found in (("vram", "memory."), ("lr", "optimizer.learning_rate"), ("mirror", "data.")):
        assert any(fields.key_of(row).startswith(found) for row in fields.search(ROWS, asked, None, "sft")), asked
    with language.speaking("de"):  # by its help in German, and by synonyms where that is English
        for asked, found in (
            ("überanstrengt", ""),
            ("gesicht", "adapter.rank"),
            ("speicher", "memory."),
            ("vorschau", "sample."),
        ):
            names = [fields.key_of(row) for row in fields.search(ROWS, asked, None, "sft")]
            assert any(one.startswith(found) for one in names) == bool(found), asked
    assert all(fields.search(ROWS, asked, None, "sft") for asked in fields.SYNONYMS)


# ---------------------------------------------------------------------------------------------------------- captions


def test_captions_are_saved_replaced_and_taken_back(tmp_path: Path) -> None:
    for number in range(3):
        captions.save(picture(tmp_path / f"{number}.png", colour=(number, 0, 0)), f"cat, {'red' if number else 'blue'}")
    (tmp_path / "x.txt.bak").write_text("no")
    listing = captions.scan(tmp_path)
    assert (len(listing.pictures), listing.others) == (3, ("x.txt.bak",))
    assert captions.counts(captions.read_all(listing).values())[0] == ("cat", 3)
    old = captions.replace_in_all(listing, "red", "green", whole_tags=True)
    assert old["2.png"] == ("cat, red", "cat, green") and sorted(old) == ["1.png", "2.png"]
    assert captions.read(tmp_path / "1.png") == "cat, green"
    assert captions.replace_in_all(listing, "gree", "x", whole_tags=True) == {}
    captions.save(tmp_path / "2.png", "cat, green, on a sofa")  # by hand, since: it stays
    assert captions.restore(tmp_path, old) == 1
    assert captions.read(tmp_path / "1.png") == "cat, red"
    assert captions.read(tmp_path / "2.png") == "cat, green, on a sofa"


def test_bad_pictures_are_told_and_nothing_breaks(tmp_path: Path) -> None:
    picture(tmp_path / "good.png", (512, 512))
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:60])
    (tmp_path / "same.png").write_bytes((tmp_path / "good.png").read_bytes())
    header = bytearray((tmp_path / "good.png").read_bytes())
    header[16:24] = (30000).to_bytes(4, "big") * 2  # says 30,000 x 30,000
    header[29:33] = zlib.crc32(bytes(header[12:29])).to_bytes(4, "big")
    (tmp_path / "huge.png").write_bytes(header)
    wrong, later = captions.trouble(captions.scan(tmp_path), 512)
    assert wrong["text.png"][-1] == words.UNREADABLE
    assert wrong["same.png"][-1] == "same as good.png"
    assert later == 0 and captions.trouble(captions.scan(tmp_path), 512, seconds=-1)[1] == 5
    assert wrong["huge.png"][1] == "very large" and wrong["cut.png"]
    assert images.thumbnail(tmp_path / "huge.png", 64, tmp_path / "t") is None
    assert images.thumbnail(tmp_path / "text.png", 64, tmp_path / "t") is None
    small = images.thumbnail(tmp_path / "good.png", 64, tmp_path / "t")
    assert small is not None and Image.open(small).size == (64, 64)


def test_uploads_are_checked_and_keep_to_the_folder(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "up"
    picture(outside / "..evil name;.png")
    (outside / "..evil name;.txt").write_text("a cat")
    (outside / "fake.png").write_text("<script>")
    done, written, refused = captions.import_pictures(inside, sorted(outside.iterdir()))
    assert done == 1 == written and len(refused) == 1 and refused[0].startswith("fake.png")
    assert sorted(p.suffix for p in inside.iterdir()) == [".png", ".txt"]
    assert {p.parent for p in inside.iterdir()} == {inside}


def test_uploads_share_no_name_with_what_is_there(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "up"
    Image.new("RGB", (64, 64), "blue").save(picture(inside / "001.png").with_suffix(".jpg"))
    (inside / "001.png").unlink()
    captions.save(inside / "001.jpg", "by hand")
    dropped = [picture(outside / "001.png", colour="green"), outside / "001.txt"]
    dropped[1].write_text("of the new one", encoding="utf-8")
    for _ in range(2):  # dropped again, it is the same picture
        assert captions.import_pictures(inside, dropped) == (1, 1, [])
    assert captions.read_all(captions.scan(inside)) == {"001.jpg": "by hand", "001-2.png": "of the new one"}
    captions.save(inside / "001-2.png", "edited")
    assert "another caption, which stays" in captions.import_pictures(inside, dropped)[2][0]
    assert captions.read(inside / "001-2.png") == "edited"


def test_captions_may_be_dropped_after_their_pictures(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "up"
    for name in ("new", "old"):
        picture(inside / f"{name}.png", colour=(len(inside.name), 0, len(name)))
    captions.save(inside / "old.png", "by hand")
    outside.mkdir()
    for name in ("new", "old", "none"):
        (outside / f"{name}.txt").write_text(f"{name} words", encoding="utf-8")
    (outside / "odd.txt").write_bytes(b"\xff\xfe\x00")
    done, written, refused = captions.import_pictures(inside, sorted(outside.iterdir()))
    assert (done, written, len(refused)) == (0, 1, 3)
    assert captions.read_all(captions.scan(inside)) == {"new.png": "new words", "old.png": "by hand"}
    assert refused[0].startswith("none.txt: there is no picture of this name") and "not UTF-8" in refused[1]
    assert refused[2].startswith("old.txt: its picture has another caption")


def test_a_caption_that_cannot_be_written_keeps_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = picture(tmp_path / "a.png")
    captions.save(one, "old")

    def full(self: Path, target: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(ValueError, match="no space left"):
        captions.save(one, "new")
    assert captions.read(one) == "old" and len(list(tmp_path.iterdir())) == 2


# ------------------------------------------------------------------------------------------------------------- queue


@dataclass
class Started:
    """What the queue asked to be started."""

    runs: list[str]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    """Trainings that exist as run folders only: the queue's view of them, without a process."""
    seen = Started([])

    class Process:
        def poll(self) -> int | None:
            return None

    def start(path: str, folder: str, *, resume: bool = False) -> Any:
        if "broken" in folder:
            raise UserError("trainer: it is not set up")
        seen.runs.append(Path(folder).name)
        Path(folder).mkdir(parents=True, exist_ok=True)
        _status(Path(folder), "running")
        return type("Job", (), {"process": Process()})()

    monkeypatch.setattr(control, "start", start)
    return seen


def _status(folder: Path, state: str) -> None:
    from pixelkiln.trainer.runs.events import write_status

    write_status(folder, state, step=1, total=2)  # pyright: ignore[reportArgumentType]


def test_queue_starts_one_after_another_and_goes_on_after_a_failure(home: Home, started: Started) -> None:
    for name in ("one", "broken", "two", "three"):
        queue.add(home, name, "config_version = 1\n")
    queue.turn(home)
    queue.turn(home)
    assert started.runs == ["one"]  # the second waits while the first trains
    _status(home.runs / "one", "failed")
    queue.turn(home)
    queue.turn(home)
    assert started.runs == ["one", "two"]
    states = {one.run: one.state for one in queue.read(home).jobs}
    assert states == {"one": "failed", "broken": "failed", "two": "running", "three": "waiting"}
    assert "not set up" in next(one.message for one in queue.read(home).jobs if one.run == "broken")
    queue.pause(home, True)
    _status(home.runs / "two", "done")
    queue.turn(home)
    assert started.runs == ["one", "two"]
    queue.pause(home, False)
    queue.turn(home)
    assert started.runs[-1] == "three"


def test_queue_is_reordered_and_names_stay_apart(home: Home, started: Started) -> None:
    ids = [queue.add(home, name, "").id for name in ("a", "b", "c")]
    queue.move(home, ids[2], -1)
    queue.move(home, ids[0], -1)  # the first stays the first
    queue.remove(home, ids[1])
    assert [one.run for one in queue.read(home).jobs] == ["a", "c"]
    assert queue.free_name(home, "a") == "a-2" and queue.free_name(home, "d") == "d"
    (home.runs / "d-7").mkdir()
    assert queue.free_name(home, "d-7") == "d-2"
    for bad in ("../x", "a/b", "con", ""):
        with pytest.raises(ValueError):
            queue.add(home, bad, "")
    copies = {Path(one.config).name for one in queue.read(home).jobs}
    assert len(copies) == 2 and all((home.own / "queued" / name).is_file() for name in copies)


@pytest.fixture
def drawing(home: Home, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A run whose pictures are drawn by a process that takes its time."""
    write(home.runs / "one" / "config.toml", "config_version = 1\n")
    begin, command = draws.start_detached, [sys.executable, "-c", "import time; time.sleep(600)"]
    monkeypatch.setattr(draws, "start_detached", lambda _, log, **more: begin(command, log, **more))
    monkeypatch.setenv("PIXELKILN_PYTHON", sys.executable)
    yield home.runs / "one"
    for folder in draws.under_way(home.runs):
        control.kill(folder)


def test_drawing_is_one_process_that_any_page_finds_and_ends(home: Home, drawing: Path) -> None:
    sheet, other = (draws.sheet(drawing, [text], [draws.Candidate("base", None)]) for text in ("a cat", "a dog"))
    with pytest.raises(ValueError, match="nothing is being drawn"):
        draws.stop(home.runs)
    draws.start(drawing, sheet)
    mark = (sheet.folder / draws.MARK).read_bytes()
    draws.start(drawing, sheet)  # again, or by a page after a restart: what is known of it is on the disk
    assert draws.busy(sheet) and (sheet.folder / draws.MARK).read_bytes() == mark
    with pytest.raises(ValueError, match="other pictures are being drawn"):
        draws.start(drawing, other)
    assert draws.under_way(home.runs) == [sheet.folder] and not draws.busy(other)
    draws.stop(home.runs)
    assert (
        not draws.busy(sheet)
        and draws.ended(sheet.folder) == (words.STOPPED, "quiet")
        and not draws.under_way(home.runs)
    )


def test_the_card_is_one_for_drawing_and_training(home: Home, drawing: Path, started: Started) -> None:
    sheet = draws.sheet(drawing, ["a cat"], [draws.Candidate("base", None)])
    draws.start(drawing, sheet)
    queue.add(home, "two", "")
    queue.turn(home)
    assert started.runs == []  # it waits for the pictures
    draws.stop(home.runs)
    queue.turn(home)
    assert started.runs == ["two"]
    with pytest.raises(ValueError, match="run 'two' trains on this machine's GPU; pause it"):
        draws.start(drawing, sheet)


def test_why_drawing_ended_is_told_after_a_restart_too(drawing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sheet = draws.sheet(drawing, ["a cat"], [draws.Candidate("base", None)])
    begin, command = start_detached, [sys.executable, "-c", "print('error: model.path: there is none'); exit(2)"]
    monkeypatch.setattr(draws, "start_detached", lambda _, log, **more: begin(command, log, **more))
    draws.start(drawing, sheet)
    assert control.wait(sheet.folder, 20) and draws.ended(sheet.folder) == ("model.path: there is none", "bad")


def test_another_adapter_in_the_place_of_one_is_drawn_anew(home: Home) -> None:
    file = home.runs / "one" / "one.safetensors"
    write(file, b"old")
    sheet = draws.sheet(file.parent, ["a cat"], [draws.Candidate("one", str(file))])
    picture(sheet.folder / sheet.candidates[0].id / draws.PICTURE.format(0))
    assert sheet.done() == 1
    write(file, b"new one")
    assert sheet.done() == 0


def test_queue_survives_a_torn_file(home: Home) -> None:
    home.queue.write_text('{"jobs": [{"id": 1', encoding="utf-8")
    assert queue.read(home).jobs == ()
    queue.add(home, "a", "")
    assert json.loads(home.queue.read_text(encoding="utf-8"))["jobs"][0]["run"] == "a"


def test_many_writers_lose_no_job(home: Home) -> None:
    import threading

    threads = [threading.Thread(target=queue.add, args=(home, f"r{n}", "")) for n in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert sorted(one.run for one in queue.read(home).jobs) == [f"r{n}" for n in range(8)]


# ---------------------------------------------------------------------------------------------------------- progress


def test_history_reads_on_and_a_resumed_run_replaces_its_steps(tmp_path: Path) -> None:
    steps = [{"kind": "step", "step": n, "loss": 1 / n, "lr": 1e-4} for n in range(1, 11)]
    lines = [{"kind": "start", "step": 0}, *steps]
    path = tmp_path / "events.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in lines), encoding="utf-8")
    history = progress.History()
    assert history.read(tmp_path) and not history.read(tmp_path)
    with path.open("a") as file:
        file.write('{"kind": "start", "step": 5}\n{"kind": "step", "step": 6, "loss": 7.0}\n{"kind": "st')
    history.read(tmp_path)
    assert sorted(history.steps) == [1, 2, 3, 4, 5, 6]
    raw = [row for row in progress.curve(history, "loss", 0.5, log=False) if row[2] == "measured"]
    assert raw[-1] == (6, 7.0, "measured") and len(raw) == 6
    assert progress.curve(history, "loss", 0, log=True)[0] == (1, 0.0, "measured")


def test_smoothing_is_an_unbiased_exponential_mean() -> None:
    history = progress.History(steps={n: {"loss": float(v)} for n, v in ((1, 2), (2, 4), (3, 8))})
    smoothed = [value for _, value, line in progress.curve(history, "loss", 0.5, log=False) if line == "smoothed"]
    assert smoothed == pytest.approx([2.0, (1 * 2 + 2 * 4) / 3, (2 + 8 + 32) / 7])


def test_long_curves_are_thinned_and_keep_their_ends() -> None:
    history = progress.History(steps={n: {"loss": float(n)} for n in range(1, 5001)})
    points = progress.curve(history, "loss", 0, log=False)
    measured = [step for step, _, line in points if line == "measured"]
    assert len(measured) <= progress.POINTS + 1 and (measured[0], measured[-1]) == (1, 5000)
    empty = [(step, line) for step, value, line in points if value != value]
    assert empty == [(1, "smoothed"), (1, "held out")], "every line is there from the first step on"
    assert progress.columns(list(range(20)), 5) == [0, 5, 10, 14, 19]


# ----------------------------------------------------------------------------------------------------- votes and pairs


@pytest.mark.parametrize(("wins", "losses", "p"), [(0, 0, 1.0), (5, 5, 1.0), (8, 2, 0.109375), (10, 0, 0.001953125)])
def test_sign_test(wins: int, losses: int, p: float) -> None:
    assert votes.sign_test(wins, losses) == pytest.approx(p) == votes.sign_test(losses, wins)


def test_votes_are_blind_even_and_can_be_taken_back(tmp_path: Path) -> None:
    path, drawn = tmp_path / "votes.jsonl", {name: {0: Path(), 1: Path()} for name in ("base", "x", "y")}
    rng, sides = random.Random(0), []
    for _ in range(12):
        chosen = votes.choose(drawn, votes.read(path), rng)
        assert chosen is not None
        one, other, prompt = chosen
        sides.append(one)
        votes.record(path, votes.Vote(one, other, "left" if one != "base" else "right", prompt))
    assert len(set(sides)) == 3  # nobody keeps a side
    seen = [(frozenset((v.left, v.right)), v.prompt) for v in votes.read(path)]
    assert all(seen.count(key) == 2 for key in seen)  # every comparison as often as every other
    row = next(row for row in votes.tally(votes.read(path)) if "base" in (row.one, row.other))
    assert (row.wins, row.losses, row.ties) == ((0, 4, 0) if row.one == "base" else (4, 0, 0))
    assert votes.undo(path) and len(votes.read(path)) == 11


def test_an_answer_is_never_followed_by_the_same_two_pictures() -> None:
    """Two checkpoints and two prompts: after a whole round a free choice would repeat the last showing half the time,
    which looks as if the key were lost."""
    drawn, rng, given, last = {name: {0: Path(), 1: Path()} for name in ("base", "x")}, random.Random(0), [], None
    for _ in range(200):
        chosen = votes.choose(drawn, given, rng, last)
        assert chosen is not None and (last is None or chosen[2] != last[2])
        given, last = [*given, votes.Vote(*chosen[:2], "left", chosen[2])], chosen
    assert votes.choose({name: {0: Path()} for name in ("base", "x")}, given, rng, last)  # unless there is no other


@pytest.fixture
def compared(home: Home) -> tuple[compare.Compare, Path]:
    """The screen, over a run whose pictures for two candidates and two prompts are drawn; and the file of votes."""
    import gradio as gr

    run = home.runs / "one"
    write(run / "status.json", json.dumps({"v": 1, "state": "done", "step": 1, "total": 1}))
    write(run / "one.safetensors", b"")
    candidates = [draws.Candidate("base", None), draws.Candidate("one", str(run / "one.safetensors"))]
    sheet = draws.sheet(run, ["a cat", "a dog"], candidates)
    draws.remember(run, sheet)
    for number, one in enumerate(candidates):
        for row in range(2):
            picture(sheet.folder / one.id / draws.PICTURE.format(row), colour=(number, row, 0))
    with gr.Blocks():
        screen = compare.Compare(Context(home, security.Addresses.of(home), security.Folders()))
    return screen, compare.votes_of(run)


def test_every_vote_counts_once_for_what_was_seen(compared: tuple[compare.Compare, Path]) -> None:
    screen, path = compared
    asked, left, right = screen.start_vote("one", None)[3:]
    for number in range(1, 13):
        after = screen.vote("left", "one", None, left)
        assert len(votes.read(path)) == number
        again = screen.vote("left", "one", None, left)  # the key twice, before the next pictures came
        assert after == again and len(votes.read(path)) == number
        assert after[1:] != [left, right] and f"{min(number, 2)} of 2 compared" in after[0]
        asked, left, right = after
    assert asked
    assert screen.vote("skip", "one", None, left)[1] != left and len(votes.read(path)) == 12
    last = votes.read(path)[-1]
    back = screen.vote("undo", "one", None, left)
    assert len(votes.read(path)) == 11
    assert f'data-showing="{last.left} {last.right} {last.prompt} ' in back[1]  # what was taken back is asked again
    for made_up in ("", 'data-showing="base ../x 0 0123456789abcdef"', 'data-showing="base base 0 0123456789abcdef"'):
        assert screen.vote("left", "one", None, made_up)[1] and len(votes.read(path)) == 11


def test_a_choice_is_for_what_was_seen_even_after_a_restart(home: Home, tmp_path: Path) -> None:
    import gradio as gr

    outputs, kept = tmp_path / "out", str(tmp_path / "pairs")
    for seed in range(8):
        written = f"a cat\nSteps: 20, Seed: {seed}, Size: 64x64"
        picture(outputs / f"{seed}.png", colour=(seed, 0, 0), parameters=written)
    with gr.Blocks():
        screen = prefer.Prefer(Context(home, security.Addresses.of(home), security.Folders()))
    _, _, left, right, _, rest, *_ = screen.from_folder(kept, str(outputs), None, "dpo", [])
    where = ("folder", "", str(outputs), "dpo", [])
    shown = screen.choose("left", kept, rest, *where, left, right)
    assert len(duels.pairs(Path(kept))) == 1
    twice = screen.choose("left", kept, shown[5], *where, left, right)  # the key twice: the second is for none
    assert twice[2:4] == shown[2:4] and len(duels.pairs(Path(kept))) == 1
    restarted = screen.choose("right", kept, [], *where, *shown[2:4])  # the server has forgotten; the page has not
    assert len(duels.pairs(Path(kept))) == 2 and len(restarted[5]) == 2
    assert Path(duels.pairs(Path(kept))[1].chosen).stem == duels.stored_name(shown[5][0].right)


def test_duels_from_outputs_and_undo(tmp_path: Path) -> None:
    outputs, kept = tmp_path / "out", tmp_path / "pairs"
    text = "a cat <lora:x:1>\nNegative prompt: ugly\nSteps: 20, Seed: {}, Size: 64x64"
    for seed in (1, 2, 3):
        picture(outputs / f"{seed}.png", colour=(seed, 0, 0), parameters=text.format(seed))
    graph = {
        "3": {"inputs": {"seed": 9, "positive": ["6", 0], "negative": ["7", 0]}},
        "6": {"inputs": {"text": ["8", 0], "clip": ["4", 1]}},
        "7": {"inputs": {"text": "bad"}},
        "8": {"inputs": {"string": "a dog"}},
    }
    for number in range(2):
        picture(outputs / "sub" / f"c{number}.png", colour=(0, number, 9), prompt=json.dumps(graph))
    picture(outputs / "silent.png")
    groups = duels.grouped(outputs)
    assert {prompt: len(found) for prompt, found in groups.items()} == {"a cat": 3, "a dog": 2}
    assert metadata.comfyui(json.dumps(graph)) == metadata.Made("a dog", 9)
    found = duels.duels(groups, set())
    assert len(found) == 3
    duels.decide(kept, found[0], "right")
    act = duels.decide(kept, found[1], "tie")
    assert act and duels.decide(kept, found[1], "left") is None  # another window was quicker
    rows = duels.pairs(kept)
    assert Path(rows[0].chosen).stem == duels.stored_name(found[0].right) and rows[0].seed == found[0].right_seed
    assert rows[1].tie and not rows[0].tie
    assert duels.duels(groups, duels.decided(kept)) == found[2:]
    assert duels.undo(act) and not duels.undo(act) and duels.duels(groups, duels.decided(kept)) == found[1:]
    duels.rate(kept, found[0], "left", liked=True)
    assert duels.ratings(kept)[0].liked


def table(home: Home) -> prefer.Prefer:
    import gradio as gr

    with gr.Blocks():
        return prefer.Prefer(Context(home, security.Addresses.of(home), security.Folders()))


def test_undo_takes_back_only_what_this_page_has_written(home: Home, tmp_path: Path) -> None:
    kept, screen, acts = tmp_path / "pairs", table(home), []
    paths = [picture(tmp_path / f"{number}.png", colour=(number, 0, 0)) for number in range(4)]
    pairs_file.add_pair(kept, "a dog", paths[0], paths[1], source="comfyui")

    def press(key: str, *rest: duels.Duel) -> str:
        seen = [f'"{screen.address.url(path, 1024)}"' for one in rest for path in (one.left, one.right)]
        return screen.choose(key, str(kept), list(rest), "generate", "", "", "dpo", acts, *(seen or ("", "")))[0]

    assert words.NOTHING_TO_UNDO in press("undo") and len(duels.pairs(kept)) == 1
    press("left", duels.Duel("a cat", paths[2], paths[3]))
    pairs_file.add_pair(kept, "a house", paths[0], paths[2], source="comfyui")  # meanwhile, elsewhere
    assert "Taken back: the choice for &#x27;a cat&#x27;" in press("undo")
    assert [one.prompt for one in duels.pairs(kept)] == ["a dog", "a house"]
    assert words.NOTHING_TO_UNDO in press("undo") and len(duels.pairs(kept)) == 2


def test_a_second_thumb_replaces_the_first_and_undo_brings_that_back(home: Home, tmp_path: Path) -> None:
    kept, screen, acts = tmp_path / "pairs", table(home), []
    one, other = (picture(tmp_path / f"{name}.png", colour=name) for name in ("red", "blue"))
    duel = duels.Duel("a cat", one, other)
    pairs_file.add_pair(kept, "a dog", one, other, source="comfyui")
    for liked in (True, False, False):
        screen.thumb("left", liked, str(kept), [duel], acts, None)
    screen.thumb("right", True, str(kept), [duel], acts, None)
    assert [row.liked for row in duels.ratings(kept)] == [False, True]
    seen = []
    for _ in range(5):
        shown = screen.choose("undo", str(kept), [duel], "generate", "", "", "dpo", acts, "", "")[0]
        seen.append(("thumb" in shown, [row.liked for row in duels.ratings(kept)]))
    assert seen == [(True, [False]), (True, [False]), (True, [True]), (True, []), (False, [])]
    assert len(duels.pairs(kept)) == 1


def test_an_adapter_is_given_to_a_host_without_replacing_another(home: Home, tmp_path: Path) -> None:
    root = tmp_path / "ComfyUI"
    (root / "models" / "loras").mkdir(parents=True)
    hosts.add(home, root)
    host = next(one for one in hosts.find(home) if one.root == root)
    adapter = tmp_path / "a.safetensors"
    adapter.write_bytes(b"one")
    assert hosts.give(adapter, host).name == "a.safetensors" == hosts.give(adapter, host).name
    adapter.write_bytes(b"two")
    assert hosts.give(adapter, host).name == "a-2.safetensors"
    assert (root / "models" / "loras" / "a.safetensors").read_bytes() == b"one"


# --------------------------------------------------------------------------------------------------------- the host tab


def test_host_tab_registers_with_an_old_host_and_imports_nothing_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    import runpy
    import types

    tabs: list[Any] = []
    callbacks = types.ModuleType("modules.script_callbacks")
    callbacks.on_ui_tabs = tabs.append  # type: ignore[attr-defined]
    modules = types.ModuleType("modules")
    modules.script_callbacks = callbacks  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "modules", modules)
    monkeypatch.setitem(sys.modules, "modules.script_callbacks", callbacks)
    before = set(sys.modules)
    runpy.run_path(str(Path(__file__).resolve().parents[2] / "scripts" / "pixelkiln_tab.py"))
    assert len(tabs) == 1
    assert not [name for name in set(sys.modules) - before if name.startswith(("pixelkiln", "torch", "trainer"))]
    [(blocks, title, element)] = tabs[0]()
    assert (title, element) == ("Pixelkiln", "pixelkiln_tab") and blocks is not None
    processes = tabs[0].__globals__["_processes"]()
    assert processes.start_detached([sys.executable, "-c", ""], None, cwd=".", env=processes.environment()).wait() == 0


def test_time_is_not_wasted() -> None:
    begun = time.perf_counter()
    for _ in range(20):
        fields.search(ROWS, "rate", None, "sft")
    assert time.perf_counter() - begun < 2


def test_a_choice_that_has_just_left_its_list_reaches_what_receives_it():
    """Of a list as gradio makes it anew for a session, when an answer changes its choices."""
    import gradio as gr

    from pixelkiln.extension.page import changing

    for kind in (gr.Dropdown, gr.Radio):
        made = changing(kind(["a"], elem_id=f"changing-{kind.__name__}", render=False))
        assert kind(**{**made.constructor_args, "choices": ["b"]}).preprocess("a") == "a"
        with pytest.raises(gr.Error, match="not in the list"):
            kind(["b"], render=False).preprocess("a")


def test_what_an_action_did_or_why_not_stands_beside_it(context: Context) -> None:
    """Toasts are left for what has no place: docs/ui.md says for what."""
    shown = build_page(context)
    loose = {name for name in map(_toasting, shown.fns.values()) if name}
    gone = {
        "Compare.pick", "Compare.turn", "Compare.set_strength", "Compare.vote", "Compare.end_vote", "Studies.lay",
        "Studies.vote", "Train.picture", "Train.show", "Prefer.judge_by", "Prefer.of_run", "Prefer.show",
        "Prefer.watch", "Pictures.again", "Recipe.show", "build.<locals>.show", "Check.apply", "Check.fix",
    }  # fmt: skip
    assert loose == gone | {"Train.use_recipe", "Prefer.fill"}  # and on the way to another screen
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "extension").glob("*.py")]
    assert not [text for text in sources if "gr.Info(" in text or "gr.Warning(" in text]


def test_nothing_that_is_done_with_a_run_can_be_pressed_before_the_page_shows_one(context: Context) -> None:
    """Before a screen's first answer no list has a value: a click then would be for no run at all."""
    import gradio as gr

    shown = build_page(context)
    lists = {"run", "compare-run", "prefer-run", "study", "map-run"}
    buttons: set[str] = set()
    for event in shown.fns.values():
        taken = {one.elem_id for one in event.inputs} & lists
        for number, _ in event.targets if taken else ():
            pressed: Any = shown.blocks.get(number)
            if not isinstance(pressed, gr.Button):
                continue
            buttons.add(pressed.elem_id)
            over = [pressed, *_around(pressed)]
            assert not all(one.visible for one in over) or not pressed.interactive, pressed.elem_id
            if "run" in taken:  # and what it means then is the run that is shown
                seen = event.inputs[event.inputs.index(_of(shown, "run")) + 1]
                assert isinstance(seen, gr.State) and seen.value == {}
    assert {
        "pause",
        "kill",
        "train-again",
        "finished-copy",
        "rename-run",
        "delete-run",
        "draw",
        "vote-blind",
    } <= buttons
    assert {"generate", "load-pairs", "prefer-left", "train-on-these", "stop-study", "predict"} <= buttons


def _around(one: Any) -> Iterator[Any]:
    while (one := getattr(one, "parent", None)) is not None:
        yield one


def _of(shown: Any, elem_id: str) -> Any:
    return next(one for one in shown.blocks.values() if one.elem_id == elem_id)


def _toasting(event: Any) -> str:
    """The name of an event's function whose mistakes become toasts: made by ``kindly`` alone."""
    function = getattr(event.fn, "func", event.fn)
    made = getattr(function, "__code__", None)
    return function.__qualname__ if made and (made.co_name, Path(made.co_filename).name) == ("inner", "page.py") else ""


def test_an_answer_in_its_place_may_come_bit_by_bit() -> None:
    import gradio as gr

    def steps(last: int) -> Iterator[str]:
        yield "one"
        if last > 1:
            raise UserError("steps: two are too many; ask for one")

    line, many = in_place(steps, [None]), in_place(steps, [None, None], at=0)
    assert list(line(1)) == ["one"] and list(many(1)) == [["one", ""]]
    assert list(line(2)) == ["one", alert("steps: two are too many; ask for one")]
    assert list(many(2))[1] == [alert("steps: two are too many; ask for one"), gr.skip()]
    assert in_place(lambda: None, [None])() == "" and in_place(lambda: success("a < b"), [None])() == success("a < b")
    assert "a &lt; b" in success("a < b") and 'role="status"' in success("")


def test_progress_is_shown_at_few_places(context: Context) -> None:
    """gradio's page writes the status of each of them at every message of every event."""
    places: set[int] = set()
    for event in build_page(context).fns.values():
        found = event.outputs if event.show_progress_on is None else event.show_progress_on
        assert len(found) <= 5, event.fn
        places |= {one._id for one in found}
    assert len(places) < 40
