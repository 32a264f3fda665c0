"""What step 1 tells of a picture before training: the part that is kept, and tags from a tagger on this machine."""

from __future__ import annotations

import json
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageCms, ImageFile

pytest.importorskip("gradio", reason="the interface's own extra is not installed")

from pixelkiln.extension import (
    captioner,
    captions,
    crops,
    draft,
    edits,
    findings,
    grid,
    language,
    pictures,
    tagger,
    targets,
    words,
)
from pixelkiln.extension.page import Context, in_place
from pixelkiln.extension.security import Addresses, Folders
from pixelkiln.extension.store import Home
from pixelkiln.trainer.data import captions as trainer_captions

VIEW = ("", words.ALL, "", "")
"""The first folder, all of its pictures, none open."""


def test_the_frame_is_what_training_keeps() -> None:
    """1024 x 512 to 512 x 512 without buckets: resized to 1024 x 512, the middle half of the width is kept. In a square
    the picture fills the middle half of the height."""
    rules = crops.rules({"data": {"path": "a", "resolution": 512, "buckets": False}}, "a")
    assert rules is not None
    assert crops.kept((1024, 512), rules) == ((512, 512), (0.25, 0.0, 0.5, 1.0))
    assert 'left:25.00%;top:25.00%;width:50.00%;height:50.00%"' in crops.drawn((1024, 512), (0.25, 0.0, 0.5, 1.0))
    assert crops.drawn((512, 512), (0, 0, 1, 1)) == ""


def test_a_frame_takes_the_options_of_its_set_and_is_silent_where_the_recipe_is() -> None:
    recipe = {"data": {"resolution": 512, "sets": [{"path": "a"}, {"path": "b", "resolution": 256}]}}
    sizes = [crops.kept((800, 400), rules) for name in "ab" if (rules := crops.rules(recipe, name))]
    assert [one and one[0] for one in sizes] == [(704, 320), (320, 192)]
    for wrong in ({}, {"data": 3}, {"data": {"resolution": 7}}, {"data": {"resolution": 512, "random_crop": True}}):
        assert crops.rules(wrong, "a") is None


def test_a_file_of_data_sets_opens_as_a_folder_does(tmp_path: Path) -> None:
    import gradio as gr

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (64, 64)).save(tmp_path / name / "one.png")
    file = tmp_path / "sets.toml"
    sets = '[[data.sets]]\npath = "a"\nrepeats = 3\n[[data.sets]]\npath = "b"\n'
    file.write_text(f"config_version = 1\n[data]\nresolution = 64\n{sets}", encoding="utf-8")
    home = Home(tmp_path / "runs")
    home.make()
    home.draft.write_text("[adapter]\nrank = 7\n", encoding="utf-8")
    with gr.Blocks():
        screen = pictures.Pictures(Context(home, Addresses.of(home), Folders()))
    shown = screen.choose(f'"{file}"')
    assert shown[1]["choices"] == [("a", str(tmp_path / "a")), ("b", str(tmp_path / "b"))]
    values = draft.values(draft.read(home))
    assert draft.get(values, "adapter.rank") == 7 and draft.get(values, "data.sets")[0]["repeats"] == 3
    file.write_text("config_version = 1\n", encoding="utf-8")
    with pytest.raises(gr.Error, match="it names no pictures"):
        screen.choose(str(file))
    assert draft.values(draft.read(home)) == values


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """A tagger whose tags are the means of the channels: it sees colours, in the order that WD14 wants (BGR)."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    seen = helper.make_tensor_value_info("picture", TensorProto.FLOAT, [1, 8, 8, 3])
    sure = helper.make_tensor_value_info("sure", TensorProto.FLOAT, [1, 3])
    whole = helper.make_tensor("whole", TensorProto.FLOAT, [], [255.0])
    nodes = [
        helper.make_node("Div", ["picture", "whole"], ["part"]),
        helper.make_node("ReduceMean", ["part"], ["sure"], axes=[1, 2], keepdims=0),
    ]
    graph = helper.make_graph(nodes, "colours", [seen], [sure], [whole])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    folder = tmp_path / "tagger"
    folder.mkdir()
    onnx.save(model, folder / "model.onnx")
    rows = "tag_id,name,category,count\n1,blue,0,9\n2,green_hill,0,9\n3,red,4,9\n"
    (folder / "selected_tags.csv").write_text(rows, encoding="utf-8")
    return folder


def test_a_tagger_writes_captions_only_where_there_are_none(
    colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gradio as gr

    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, colour in (("red", (255, 0, 0)), ("field", (0, 200, 60)), ("mine", (0, 0, 255))):
        Image.new("RGB", (40, 20), colour).save(folder / f"{name}.png")  # padded with white: half of it
    (folder / "mine.txt").write_text("my words", encoding="utf-8")
    (folder / "broken.png").write_bytes(b"none")
    home = Home(tmp_path / "runs")
    home.make()
    home.draft.write_text(f'[data]\npath = "{folder.as_posix()}"\n', encoding="utf-8")
    monkeypatch.setattr(tagger, "FOLDER", colours)
    monkeypatch.setattr(tagger.load, "__defaults__", (colours,))
    with gr.Blocks():
        screen = pictures.Pictures(Context(home, Addresses.of(home), Folders()))
    *_, last = screen.tag_all("", str(folder), 0.6)
    assert "Written: 2 captions" in last and "broken.png: it cannot be read" in last
    texts = captions.read_all(captions.scan(folder))
    # Red: (1 + 1) / 2 = 1 for red, 1/2 for the others. Field: (200 / 255 + 1) / 2 = 0.89 for green, 0.62 for blue.
    assert texts == {"red.png": "red", "field.png": "green hill, blue", "mine.png": "my words", "broken.png": None}


def test_a_caption_that_came_while_the_tagger_worked_stays(
    screen: pictures.Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "pictures"

    class Slow:
        def tags(self, path: Path, at_least: float) -> str:
            captions.save(folder / "1.png", "typed meanwhile")
            return "solo"

    monkeypatch.setattr(screen, "_tagger", lambda chosen: (captions.scan(folder), Slow()))
    for name in ("0", "1", "2"):
        (folder / f"{name}.txt").unlink()
    *_, last = screen.tag_all("", str(folder), 0.5)
    texts = captions.read_all(captions.scan(folder))
    assert texts == {"0.png": "solo", "1.png": "typed meanwhile", "2.png": "solo"}
    assert "Written: 2 captions. Left out: 1 picture that had one by then" in last


def a_captioner(folder: Path) -> None:
    """A BLIP of random weights with a vocabulary of eight words."""
    import torch
    from transformers import (
        BertTokenizer,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
    )

    folder.mkdir()
    words_ = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "a", "red", "cat", "house"]
    (folder / "vocab.txt").write_text("\n".join(words_), encoding="utf-8")
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    text = {**small, "vocab_size": len(words_), "encoder_hidden_size": 16, "bos_token_id": 5, "sep_token_id": 3,
            "pad_token_id": 0, "eos_token_id": 3}  # fmt: skip
    torch.manual_seed(0)
    made = BlipConfig(text_config=text, vision_config={**small, "image_size": 32, "patch_size": 16}, projection_dim=16)
    BlipForConditionalGeneration(made).save_pretrained(folder)
    shape = BlipImageProcessor(size={"height": 32, "width": 32})
    BlipProcessor(shape, BertTokenizer(vocab=str(folder / "vocab.txt"), bos_token="[DEC]")).save_pretrained(folder)


def test_a_captioner_describes_pictures_that_have_no_caption(
    screen: pictures.Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "captioner"
    a_captioner(folder)
    monkeypatch.setattr(captioner, "FOLDER", folder)
    (tmp_path / "pictures" / "1.txt").unlink()
    mine = captions.read_all(captions.scan(tmp_path / "pictures"))
    assert mine.pop("1.png") is None
    *_, last = screen.describe_all("", str(tmp_path / "pictures"))
    assert "Written: 1 caption" in last
    texts = captions.read_all(captions.scan(tmp_path / "pictures"))
    written = texts.pop("1.png")
    assert texts == mine
    assert written and set(written.split()) <= {"a", "red", "cat", "house"}


@pytest.mark.parametrize(
    ("content", "line"),
    [('{"model_type": "llama"}', "'llama' is no captioner that is known; take one of blip, blip-2, git, florence2"),
     ("no json", "'' is no captioner"), ('{"model_type": "blip"}', "it cannot be read")],
)  # fmt: skip
def test_a_folder_that_is_no_captioner_is_named_in_one_line(content: str, line: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=line):
        captioner.load(tmp_path)


@pytest.fixture
def screen(tmp_path: Path) -> pictures.Pictures:
    """The screen over three pictures with captions."""
    import gradio as gr

    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (64, 64), (number, 0, 0)).save(folder / f"{number}.png")
        captions.save(folder / f"{number}.png", f"caption {number}")
    home = Home(tmp_path / "runs")
    home.make()
    with gr.Blocks():
        made = pictures.Pictures(Context(home, Addresses.of(home), Folders()))
    made.choose(str(folder))
    return made


def shown(screen: pictures.Pictures) -> tuple[list[str], list[str]]:
    """What new tabs show, each with one of the three pictures open: the box's text and what it carries."""
    card = screen.card
    opened = [screen.open(f"{number}.png", *VIEW, "", "") for number in range(3)]
    texts = [one[card.outputs.index(card.box)]["value"] for one in opened]
    return texts, [one[card.outputs.index(card.token)] for one in opened]


def test_an_old_tab_writes_over_no_newer_caption(screen: pictures.Pictures, tmp_path: Path) -> None:
    import gradio as gr

    folder = tmp_path / "pictures"
    texts, tokens = shown(screen)
    newer = "a long caption, written elsewhere"
    captions.save(folder / "0.png", newer)
    captions.save(folder / "1.png", newer)
    screen.save(texts[0], tokens[0])  # the box is only left
    texts[1], texts[2] = "typed here", "typed here too"
    screen.save(texts[1], tokens[1], leaving=False)  # while somebody types nothing is said yet
    screen.step(1, *VIEW[:3], "2.png", texts[2], tokens[2])  # who opens another loses nothing
    with pytest.raises(gr.Error, match=r"1\.png: its caption was changed elsewhere.*written elsewhere.*typed here"):
        screen.step(1, *VIEW[:3], "1.png", texts[1], tokens[1])
    found = captions.read_all(captions.scan(folder))
    assert found == {"0.png": newer, "1.png": newer, "2.png": "typed here too"}
    both = json.loads(screen.saved.refused.read_text(encoding="utf-8"))[str(folder / "1.png")]
    assert both == {"typed here": "typed here", "written elsewhere": newer}
    screen.step(1, *VIEW[:3], "1.png", texts[1], tokens[1])  # it was said once: the next is opened
    assert captions.read(folder / "1.png") == newer
    texts, tokens = shown(screen)
    screen.save("typed again", tokens[1])
    assert captions.read(folder / "1.png") == "typed again"


def test_what_is_typed_in_a_box_is_saved_letter_by_letter(screen: pictures.Pictures, tmp_path: Path) -> None:
    picture, (_, tokens) = tmp_path / "pictures" / "0.png", shown(screen)
    for text in ("a", "ab", "a", "caption 0", "", "ab"):  # all from one showing, also back to what it was
        screen.save(text, tokens[0], leaving=False)
        assert captions.read(picture) == text
    picture.with_suffix(".txt").write_text("two\r\nlines", encoding="utf-8")
    _, tokens = shown(screen)
    screen.save("two\nlines", tokens[0])  # as a browser gives them back
    assert picture.with_suffix(".txt").read_bytes() == b"two\r\nlines"


def test_an_old_tab_sets_back_no_trigger(screen: pictures.Pictures) -> None:
    import gradio as gr

    def trigger() -> Any:
        return draft.get(draft.values(draft.read(screen.home)), "data.trigger")

    before = screen.show()[screen.outputs.index(screen.trigger_shown)]
    _, before, _ = screen.set_trigger("sks", before)
    draft.change(screen.home, {"data.trigger": "ohwx"})  # in another tab
    assert screen.set_trigger("sks", before) == [gr.skip()] * 3, "the field was only left"
    field, before, line = screen.set_trigger("zwx", before)
    assert field == before == "ohwx", "both windows show it"
    assert words.TRIGGER in line and "another window has set it to &#x27;ohwx&#x27;" in line and trigger() == "ohwx"
    assert screen.set_trigger(field, before)[2] == gr.skip(), "the line stays when the field is left"
    assert screen.set_trigger("zwx", before)[1:] == ["zwx", ""] and trigger() == "zwx", "to enter it again is enough"


def test_undo_leaves_what_was_edited_since(screen: pictures.Pictures, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    screen.replace_all("", "caption", "picture", False, *VIEW, "", "")
    captions.save(folder / "0.png", "picture 0, soft light")
    line = screen.undo_replace(*VIEW, "", "")[-1]
    texts = captions.read_all(captions.scan(folder))
    assert texts == {"0.png": "picture 0, soft light", "1.png": "caption 1", "2.png": "caption 2"}
    assert "As before: 2 captions. Changed since, and left so: 1." in line


def test_the_demo_pressed_twice_keeps_the_recipe_before(screen: pictures.Pictures) -> None:
    mine = draft.change(screen.home, {"adapter.rank": 48, "run.name": "mine"})
    screen.choose_demo()
    screen.choose_demo()
    (copy,) = screen.home.own.glob("draft-before-*.toml")
    assert copy.read_text(encoding="utf-8") == mine and 'preset = "demo"' in draft.read(screen.home)


def test_a_tagger_that_is_not_there_or_is_none_is_told_in_one_line(colours: Path, tmp_path: Path) -> None:
    assert tagger.there(colours) and not tagger.there(tmp_path)
    with pytest.raises(ValueError, match=r"selected_tags\.csv: it has no name"):
        tagger.load(tmp_path)
    (colours / "selected_tags.csv").write_text("tag_id,name,category,count\n1,blue,0,9\n", encoding="utf-8")
    with pytest.raises(ValueError, match="3 tags, and 1 in"):
        tagger.load(colours)
    (colours / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ValueError, match="it is no tagger"):
        tagger.load(colours)


# ---------------------------------------------------------------------------------------------------- many pictures


def view_of(screen: pictures.Pictures) -> grid.View:
    return screen.seen(screen.context.recipe(), Path(screen.context.recipe()["data"]["path"]))


def test_tags_of_chosen_pictures_are_put_first_or_last_or_taken_out_and_back(
    screen: pictures.Pictures, tmp_path: Path
) -> None:
    folder = tmp_path / "pictures"
    captions.save(folder / "1.png", "a cat, ink")
    (folder / "2.txt").write_bytes("café".encode("latin-1"))  # stays as it is
    (folder / "0.txt").unlink()
    screen.change_tags("first", "0.png/1.png/2.png/../3.png", "sks, ink", *VIEW, "", "")
    texts = captions.read_all(captions.scan(folder))
    assert texts == {"0.png": "sks, ink", "1.png": "sks, ink, a cat", "2.png": None}
    screen.change_tags("last", "1.png", "sks", *VIEW, "", "")
    assert captions.read(folder / "1.png") == "ink, a cat, sks"
    screen.undo_replace(*VIEW, "", "")
    assert captions.read(folder / "1.png") == "sks, ink, a cat"
    screen.change_tags("remove", "1.png", "ink", *VIEW, "", "")
    assert captions.read(folder / "1.png") == "sks, a cat"
    screen.replace_all("1.png", "sks", "ohwx", True, *VIEW, "", "")
    assert captions.read_all(captions.scan(folder)) == {"0.png": "sks, ink", "1.png": "ohwx, a cat", "2.png": None}


def test_left_out_pictures_go_where_no_training_looks_and_come_back(screen: pictures.Pictures, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    before = captions.read_all(captions.scan(folder))
    screen.move(edits.leave_out, "0.png/2.png", *VIEW, "", "")
    assert captions.scan(folder).pictures == ("1.png",)
    view = view_of(screen)
    assert view.kinds() == {words.SMALL: 1, words.LEFT_OUT: 2} and view.kept(words.LEFT_OUT, "") == ["0.png", "2.png"]
    assert view.texts["0.png"] == "caption 0"
    Image.new("RGB", (64, 64)).save(folder / "2.png")  # another of this name came meanwhile
    with pytest.raises(ValueError, match=r"2\.png: there is another picture of this name"):
        edits.take_back(folder, ["0.png", "2.png"])
    (folder / "2.png").unlink()
    screen.move(edits.take_back, "0.png/2.png", *VIEW, "", "")
    assert captions.read_all(captions.scan(folder)) == before


@pytest.mark.parametrize(
    ("file", "data", "kind", "text"),
    [
        ("0.txt", "ein Bär".encode(), None, "ein Bär"),
        ("0.txt", b"\xef\xbb\xbf" + "ein Bär".encode(), None, "ein Bär"),
        ("0.txt", "ein Bär".encode("utf-16"), None, "ein Bär"),
        ("0.txt", "ein Bär".encode("latin-1"), words.CAPTION_UNREADABLE, None),
        ("0.txt", b" \n", words.NO_CAPTION, ""),
        ("0.caption", b"a cat", None, "a cat"),
        ("0.cap", b"a cat", None, "a cat"),
        ("0.tags", b"a cat", None, "a cat"),
        ("0.md", b"a cat", words.NO_CAPTION, None),
    ],
)
def test_a_caption_is_what_the_trainer_reads(
    screen: pictures.Pictures, context: Context, tmp_path: Path, file: str, data: bytes, kind: str | None, text: str
) -> None:
    folder = tmp_path / "pictures"
    (folder / "0.txt").unlink()
    (folder / file).write_bytes(data)
    view = view_of(screen)
    marks = [one for one in view.wrong["0.png"] if one != words.SMALL]
    assert view.texts["0.png"] == text and marks == ([kind] if kind else [])
    assert (kind is None) == (file not in view.listing.others and bool(text))
    found = {one.text.partition(": ")[2] for one in findings.of_pictures(context.recipe(), [folder], 64, 9.0)}
    assert found == ({kind} if kind else set())
    opened = screen.open("0.png", *VIEW, "", "")
    told = opened[screen.card.outputs.index(screen.card.wrong)]
    assert (f"{file} is no UTF-8 text" in told) == (kind == words.CAPTION_UNREADABLE)
    context.change({"data.caption": "sks"})  # for pictures without a file alone
    found = {one.text.partition(": ")[2] for one in findings.of_pictures(context.recipe(), [folder], 64, 9.0)}
    assert found == ({kind} if kind and file != "0.md" else set())
    captions.save(folder / "0.png", "a bear")
    where = folder / ("0.txt" if file == "0.md" else file)
    assert trainer_captions.read(where.read_bytes()) == captions.read(folder / "0.png") == "a bear"
    assert captions.ENDINGS == trainer_captions.EXTENSIONS
    edits.leave_out(folder, ["0.png"])
    assert captions.read(folder / edits.LEFT_OUT / "0.png") == "a bear"


@pytest.mark.parametrize("spoken", language.PATHS)
def test_left_out_pictures_are_marked_as_such_in_each_language(
    screen: pictures.Pictures, tmp_path: Path, spoken: str
) -> None:
    edits.leave_out(tmp_path / "pictures", ["0.png", "2.png"])
    with language.speaking(spoken):
        for shown, names in ((words.ALL, ["1.png"]), (words.LEFT_OUT, ["0.png", "2.png"])):
            drawn = screen.show(None, shown)[screen.outputs.index(screen.grid)]
            assert [name for name in ("0.png", "1.png", "2.png") if f'data-name="{name}"' in drawn] == names
            assert ('class="pictures aside"' in drawn) == (shown == words.LEFT_OUT)
        view = view_of(screen)
        src = re.findall(r'src="([^"]+)"', grid.drawn(view, words.LEFT_OUT, "", screen.address, None))
        assert src == [screen.address.url(tmp_path / "pictures" / edits.LEFT_OUT / n, grid.SIDE) for n in view.left_out]


@pytest.mark.parametrize("replaced_by", ["folder", "demo", "pairs", "preset"])
def test_what_belongs_to_a_folder_comes_back_with_it_whatever_came_between(
    screen: pictures.Pictures, context: Context, tmp_path: Path, replaced_by: str
) -> None:
    mine = {"run.name": "mine", "data.trigger": "sks", "sample.prompts": ["[trigger], at night"]}
    first, other = tmp_path / "pictures", tmp_path / "other"
    other.mkdir()
    Image.new("RGB", (64, 64)).save(other / "0.png")
    screen.choose(str(first))
    context.change({**mine, "model.path": "m"})
    if replaced_by == "folder":
        screen.choose(str(other))
    elif replaced_by == "demo":
        screen.choose_demo()
    elif replaced_by == "pairs":
        text = draft.changed(draft.START, {"data.pairs": "/p", "run.name": "one-dpo", "sample.prompts": ["one"]})
        draft.start_over(context.home, text, "pairs")
        screen.choose(str(other))  # it takes nothing of the preference run
        assert context.recipe()["run"]["name"] == "other" and "sample" not in context.recipe()
    else:
        draft.choose_preset(context.home, "demo")
    screen.choose(str(first))
    recipe = context.recipe()
    assert {key: draft.get(recipe, key) for key in mine} == mine


def test_a_caption_of_two_pictures_stays_with_both(tmp_path: Path) -> None:
    for ending in ("png", "jpg"):
        Image.new("RGB", (64, 64)).save(tmp_path / f"a.{ending}")
    (tmp_path / "a.txt").write_text("both", encoding="utf-8")
    edits.leave_out(tmp_path, ["a.png"])
    assert captions.read(tmp_path / "a.jpg") == captions.read(tmp_path / edits.LEFT_OUT / "a.png") == "both"


def test_filters_and_searches(screen: pictures.Pictures, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    captions.save(folder / "0.png", "a cat, ink")
    captions.save(folder / "1.png", "a catfish" + ", ink" * 60)
    (folder / "2.txt").unlink()
    (folder / "broken.png").write_bytes(b"none")
    view = view_of(screen)
    assert view.kinds() == {words.NO_CAPTION: 2, words.UNREADABLE: 1, words.TOO_LONG_HERE: 1, words.SMALL: 3}
    assert view.kept(words.NO_CAPTION, "") == ["2.png", "broken.png"] and view.kept(words.ALL, "CAT") == [
        "0.png",
        "1.png",
    ]
    assert view.kept(words.ALL, '"a cat"') == ["0.png"] and view.kept(words.SMALL, "ink") == ["0.png", "1.png"]
    assert view.kept("no such filter", "") == list(view.listing.pictures)


def test_a_picture_is_rotated_and_cropped_with_its_mask_and_comes_back(
    screen: pictures.Pictures, tmp_path: Path
) -> None:
    folder, masks = tmp_path / "pictures", tmp_path / "masks"
    masks.mkdir()
    marked = Image.new("RGB", (80, 40))
    marked.putpixel((0, 0), (255, 0, 0))
    marked.save(folder / "0.png")
    marked.save(masks / "0.png")
    before = (folder / "0.png").read_bytes()
    draft.change(screen.home, {"data.masks": str(masks)})
    screen.change_one(edits.rotate, *VIEW[:3], "0.png", "", "")
    for path in (folder / "0.png", masks / "0.png"):
        with Image.open(path) as turned:
            assert turned.size == (40, 80) and turned.getpixel((39, 0)) == (255, 0, 0)  # a quarter to the right
    screen.crop_one("50, 0, 50, 25", *VIEW[:3], "0.png", "", "")
    for path in (folder / "0.png", masks / "0.png"):
        with Image.open(path) as cut:
            assert cut.size == (20, 20) and cut.getpixel((19, 0)) == (255, 0, 0)
    for wrong, line in (("50, 0", "there is no frame"), ("0, 0, 1, 100", "less than 16 pixels")):
        with pytest.raises(Exception, match=line):
            screen.crop_one(wrong, *VIEW[:3], "0.png", "", "")
    shown = in_place(screen.crop_one, screen.outputs)("50, 0", *VIEW[:3], "0.png", "", "")
    assert len(shown) == len(screen.outputs) and "there is no frame" in shown[-1] and 'role="alert"' in shown[-1]
    screen.change_one(edits.bring_back, *VIEW[:3], "0.png", "", "")
    assert (folder / "0.png").read_bytes() == before and not edits.has_original(folder / "0.png")


def test_a_heic_file_is_converted_by_the_package_that_opens_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands for pillow-heif gives Pillow an opener, as the package does."""

    class Phone(ImageFile.ImageFile):
        format = "HEIF"

        def _open(self) -> None:
            assert self.fp is not None
            self._size, self._mode = (6, 4), "RGB"
            self.tile = [ImageFile._Tile("raw", (0, 0, 6, 4), 12, "RGB")]

    def register() -> None:
        Image.register_open("HEIF", Phone, lambda data: data[4:12] == b"ftypheic")

    package = types.ModuleType("pillow_heif")
    package.register_heif_opener = register  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "pillow_heif", package)
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes((200, 10, 30)) * 24)
    assert edits.others(captions.scan(tmp_path)) == ["phone.heic"]
    assert edits.convert(captions.scan(tmp_path)) == (1, [])
    with Image.open(tmp_path / "phone.png") as made:
        assert made.size == (6, 4) and made.getpixel((5, 3)) == (200, 10, 30)


def test_without_its_package_one_line_says_what_heic_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for number in range(5):
        (tmp_path / f"phone{number}.HEIC").write_bytes(b"any")
    listing = captions.scan(tmp_path)
    why = words.NEEDS_HEIF.format(sys.executable)
    assert "-m pip install pillow-heif" in why
    line = f"phone0.HEIC, phone1.HEIC, phone2.HEIC… (5): {why}"
    assert edits.convert(listing) == (0, [line])
    dropped = [tmp_path / name for name in listing.others]
    assert captions.import_pictures(tmp_path / "new", dropped) == (0, 0, [line])


def test_real_heic_files_keep_what_is_seen(tmp_path: Path) -> None:
    """Upright, with their transparency, in sRGB; the files stay. The encoder is lossy: within 12 of 255."""
    from pillow_heif import register_heif_opener  # pyright: ignore[reportMissingImports]

    register_heif_opener()
    seen = Image.new("RGB", (64, 48), (200, 30, 20))
    seen.paste((10, 200, 30), (0, 0, 32, 24))
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter to the right
    seen.save(tmp_path / "turned.heic", quality=95, exif=turned.tobytes())
    clear = seen.convert("RGBA")
    clear.putalpha(Image.new("L", seen.size, 90))
    clear.save(tmp_path / "clear.HEIF", format="HEIF", quality=95)
    swapped = Image.new("RGB", (64, 48), (200, 30, 20))
    swapped.save(tmp_path / "wide.heic", quality=95, icc_profile=wide_profile())
    whole = (tmp_path / "turned.heic").read_bytes()
    (tmp_path / "half.heic").write_bytes(whole[: len(whole) // 2])
    listing = captions.scan(tmp_path)
    assert not listing.pictures and len(listing.others) == 4
    assert edits.convert(listing) == (3, [f"half.heic: {words.NOT_WHOLE}"])
    assert set(listing.others) < {path.name for path in tmp_path.iterdir()}
    with Image.open(tmp_path / "turned.png") as made:
        assert made.size == (48, 64) and "exif" not in made.info
        assert close(made.getpixel((40, 5)), (10, 200, 30)) and close(made.getpixel((5, 5)), (200, 30, 20))
    with Image.open(tmp_path / "clear.png") as made:
        assert made.mode == "RGBA" and close(made.getpixel((5, 5)), (10, 200, 30, 90))
    with Image.open(tmp_path / "wide.png") as made:
        assert close(made.getpixel((5, 5)), (30, 200, 20)) and "icc_profile" not in made.info


def close(found: Any, wanted: tuple[int, ...]) -> bool:
    return len(found) == len(wanted) and all(abs(one - other) <= 12 for one, other in zip(found, wanted))


def wide_profile() -> bytes:
    """sRGB with red and green exchanged: a profile that nobody can overlook."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, green = data.index(b"rXYZ", 128), data.index(b"gXYZ", 128)
    data[red : red + 4], data[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(data)


def test_other_kinds_become_what_the_trainer_would_see(tmp_path: Path) -> None:
    plain = Image.new("RGB", (8, 8), (200, 30, 20))
    plain.save(tmp_path / "wide.tif", icc_profile=wide_profile())
    plain.save(tmp_path / "broken.tif", icc_profile=b"no profile")
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "print.tif", icc_profile=wide_profile())  # of RGB
    Image.new("I;16", (8, 8), 40_000).save(tmp_path / "grey.tiff")
    Image.new("RGBA", (8, 8), (200, 30, 20, 90)).save(tmp_path / "clear.tif", icc_profile=wide_profile())
    assert edits.convert(captions.scan(tmp_path)) == (5, [])
    seen = {}
    for path in tmp_path.glob("*.png"):
        with Image.open(path) as made:
            assert "icc_profile" not in made.info
            seen[path.stem] = made.getpixel((3, 3))
    assert close(seen.pop("wide"), (30, 200, 20)) and close(seen.pop("clear"), (30, 200, 20, 90))
    assert seen == {"broken": (200, 30, 20), "print": (255, 0, 0), "grey": (156, 156, 156)}


def test_two_files_of_one_name_do_not_become_one(tmp_path: Path) -> None:
    for ending, colour in ((".gif", "red"), (".tif", "blue")):
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"one{ending}")
    assert edits.convert(captions.scan(tmp_path)) == (1, [f"one.tif: {words.ANOTHER_NAMED.format('one.png')}"])
    with Image.open(tmp_path / "one.png") as made:
        assert made.getpixel((3, 3)) == (255, 0, 0)


def test_a_painted_mask_is_what_the_trainer_reads(screen: pictures.Pictures, tmp_path: Path) -> None:
    from pixelkiln.trainer.data import pictures as trainers

    folder = tmp_path / "pictures"
    seen, layer = edits.to_paint(folder / "0.png", None)
    assert seen.size == (64, 64) and layer.getchannel("A").getextrema() == (0, 0)
    layer.paste((*edits.PAINT, 255), (0, 0, 32, 64))
    screen.save_mask({"layers": [layer]}, *VIEW[:3], "0.png", "", "")
    masks = Path(draft.get(screen.context.recipe(), "data.masks"))
    assert masks == folder / "masks"
    mask = trainers.mask(masks / "0.png")
    assert mask[:, :30].max() == 0 and mask[:, 34:].min() == 255
    again = edits.to_paint(folder / "0.png", masks / "0.png")[1]
    assert again.getpixel((5, 5)) == (*edits.PAINT, 255) and again.getchannel("A").getpixel((60, 5)) == 0
    painted = (masks / "0.png").read_bytes()
    screen.save_mask({"layers": [Image.new("RGBA", (64, 64))]}, *VIEW[:3], "0.png", "", "")
    assert not (masks / "0.png").exists() and (masks / edits.ORIGINALS / "0.png").read_bytes() == painted


def test_pictures_of_other_kinds_are_saved_as_png(screen: pictures.Pictures, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    (folder / "phone.heic").write_bytes(b"none")
    listing = captions.scan(folder)
    assert edits.others(listing) == ["moving.gif", "phone.heic"]
    done, (line,) = edits.convert(listing)
    assert done == 1 and line.startswith("phone.heic: ") and "save it as" in line
    with Image.open(folder / "moving.png") as first:
        assert first.convert("RGB").getpixel((3, 3)) == (255, 0, 0)
    assert edits.others(captions.scan(folder)) == ["phone.heic"]
    upload = tmp_path / "dropped.gif"
    frames[0].save(upload)
    assert captions.import_pictures(tmp_path / "new", [upload])[0] == 1
    assert captions.scan(tmp_path / "new").pictures == ("dropped.png",)


def test_the_map_of_a_picture_is_shown_in_colours_with_its_holes(screen: pictures.Pictures, tmp_path: Path) -> None:
    import numpy as np

    maps = tmp_path / "maps"
    maps.mkdir()
    depth = np.linspace(1, 4, 64 * 64, dtype=np.float32).reshape(64, 64)
    depth[:16] = 0
    np.save(maps / "0.npy", depth)
    (maps / "1.npy").write_bytes(b"none")
    draft.change(screen.home, {"dense": {"task": "depth"}, "data.targets": str(maps)})
    recipe = screen.context.recipe()
    view = view_of(screen)
    assert set(view.targets) == {"0.png", "1.png"} and view.wrong["2.png"] == [words.SMALL, words.NO_TARGET]
    made = targets.thumbnail(maps / "0.npy", recipe, 64, screen.home.thumbnails)
    assert made is not None and made == targets.thumbnail(maps / "0.npy", recipe, 64, screen.home.thumbnails)
    with Image.open(made) as opened:
        shown_ = np.asarray(opened.convert("RGB"), dtype=int)
    assert np.ptp(shown_[:14], axis=-1).max() < 12  # the holes are grey
    assert shown_[18:24].sum(-1).mean() > shown_[58:].sum(-1).mean() + 200  # near is bright
    assert targets.thumbnail(maps / "1.npy", recipe, 64, screen.home.thumbnails) is None
    assert "1.npy: it cannot be read" in targets.wrong(maps / "1.npy", recipe)
    draft.change(screen.home, {"data.unit": 0.001, "data.valid": [0.5, 9.0]})
    assert "no pixel is valid" in targets.wrong(maps / "0.npy", screen.context.recipe())


def test_fields_that_are_hidden_at_first_say_what_the_browser_sends_back(screen: pictures.Pictures) -> None:
    """A field in a part that is not shown yet is not in the browser: its value comes back as it was given."""
    import gradio as gr

    for one in (*vars(screen).values(), *vars(screen.card).values()):
        if isinstance(one, gr.Textbox) and one is not screen.folder:
            assert one.value == "", one.elem_id
