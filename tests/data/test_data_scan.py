"""Folders of pictures: what is found, what is noted, and one clear line for each mistake."""

from __future__ import annotations

import json
import random
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sample_data import folder, noise, picture

from pixelkiln.trainer.data.cache import Index
from pixelkiln.trainer.data.items import Scan
from pixelkiln.trainer.data.options import DataOptions
from pixelkiln.trainer.data.scan import scan


def look(path: Path | None = None, /, **values) -> Scan:
    given = {"resolution": 64, "bucket_step": 8, **values}
    return scan(DataOptions.model_validate({**given, "path": str(path)} if path else given), 512, Index(None))


def notes(found: Scan) -> dict[str, int]:
    return {note["kind"]: note["count"] for note in found.notes.as_json()}


def test_pictures_with_captions(tmp_path):
    found = look(folder(tmp_path / "pics", 3))
    assert [item.name for item in found.items] == ["pics/000.png", "pics/001.png", "pics/002.png"]
    assert [item.caption for item in found.items] == ["tag 0, cat", "tag 1, cat", "tag 2, cat"]
    assert found.items[0].pictures[0].fit.bucket == (64, 64)
    assert notes(found) == {}


def test_somebody_is_told_how_far_it_is(tmp_path):
    shown = []

    def progress(items, text, total=None):
        for item in items:
            shown.append((text, total))
            yield item

    options = DataOptions(path=str(folder(tmp_path / "pics", 3)), resolution=64, bucket_step=8)
    assert len(scan(options, 512, Index(None), progress).items) == 3
    assert shown == [("files", 3)] * 3


def test_the_order_depends_on_names_alone(tmp_path):
    names = ["b.png", "A.PNG", "a2.jpg", "é.png", "C.jpeg", "Z.webp"]
    orders = []
    for turn in range(2):
        place = tmp_path / str(turn) / "pics"
        for i, name in enumerate(random.Random(turn).sample(names, len(names))):
            form = unicodedata.normalize("NFD" if turn else "NFC", name)
            picture(place / form, seed=i)
            (place / (form.rsplit(".")[0].lower() + ".txt")).write_text(unicodedata.normalize("NFC", name), "utf-8")
        found = look(place)
        assert all(item.caption == item.name.split("/")[1] for item in found.items)
        orders.append([item.name for item in found.items])
    assert (
        orders[0] == orders[1] == [f"pics/{name}" for name in ["A.PNG", "a2.jpg", "b.png", "C.jpeg", "Z.webp", "é.png"]]
    )


def test_no_caption_is_counted_not_silent(tmp_path):
    for i in range(8):
        picture(tmp_path / f"{i}.png", seed=i)
    found = look(tmp_path)
    assert found.notes.lines() == [
        "pictures without a caption: 8 (0.png, 1.png, 2.png, 3.png, 4.png, ...); add a text file of equal name beside "
        "each, or set caption"
    ]
    assert {item.caption for item in look(tmp_path, caption="zwx").items} == {"zwx"}
    assert notes(look(tmp_path, caption="zwx")) == {"fixed caption": 8}


def test_another_extension_is_found_and_said(tmp_path):
    found = look(folder(tmp_path, 4), caption_extension="caption", caption="folder name")
    assert found.items[0].caption == "tag 0, cat"
    assert (
        "found under another extension than caption_extension: 4 (000.png (.txt, not .caption)"
        in found.notes.lines()[0]
    )


def test_captions_of_face_crops_are_shared(tmp_path):
    picture(tmp_path / "anna_10_20_30_40.png")
    (tmp_path / "anna.txt").write_text("anna")
    assert look(tmp_path).items[0].caption == "anna"


def test_empty_captions_and_foreign_files_are_counted(tmp_path):
    folder(tmp_path, 2)
    (tmp_path / "000.txt").write_text(" \n\n")
    (tmp_path / "x.gif").write_bytes(b"GIF89a")
    (tmp_path / "._000.png").write_bytes(b"a Mac's shadow")
    assert notes(look(tmp_path)) == {"empty caption": 1, "other kind": 1}


def test_unreadable_pictures_are_named_and_left_out_up_to_a_limit(tmp_path):
    folder(tmp_path, 4)
    whole = (tmp_path / "001.png").read_bytes()
    (tmp_path / "001.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "002.png").write_text("not a picture")
    found = look(tmp_path)
    assert len(found.items) == 2 and notes(found) == {"unreadable": 2}
    assert "001.png (" in found.notes.line("unreadable") and "002.png (not a picture" in found.notes.line("unreadable")
    with pytest.raises(ValueError, match=r"^data: pictures that cannot be read, left out: 2 .*max_unreadable = 1$"):
        look(tmp_path, max_unreadable=1)


def test_only_unreadable_pictures(tmp_path):
    (tmp_path / "a.png").write_text("no")
    with pytest.raises(ValueError, match=r"no picture is left to train on; .*a\.png"):
        look(tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, r"nothing to train on; give \[data\] path"),
        ({"path": "nowhere"}, r"^data\.path: there is no folder .*nowhere; give the folder"),
        ({"path": "empty"}, r"^data: .*empty holds no pictures; looked for \.png \.jpg"),
        ({"path": "above"}, r"holds no pictures; its subfolders do: set recursive = true"),
        ({"sets": [{"path": "empty"}, {"path": "above"}]}, r"^data\.sets\[0\]: .*empty holds no pictures"),
        ({"path": "pics", "masks": "nowhere"}, r"^data\.masks: there is no folder"),
        ({"path": "pics", "metadata": "none.json"}, r"^data\.metadata: .*none\.json cannot be read \(No such file"),
        ({"sets": [{"path": "pics", "is_reg": True}]}, "all sets are regularisation pictures"),
        ({"path": "latin"}, r"captions are not UTF-8: the one of 000\.png \(byte 1\); save them as UTF-8"),
        ({"pairs": "pics"}, r"pairs\.jsonl: cannot be read"),
    ],
)
def test_mistakes_are_one_clear_line(tmp_path, monkeypatch, values, message):
    monkeypatch.chdir(tmp_path)
    folder(Path("pics"), 2)
    folder(Path("above/below"), 1)
    Path("empty").mkdir()
    folder(Path("latin"), 1)
    Path("latin/000.txt").write_bytes("Bär".encode("latin-1"))
    with pytest.raises(ValueError, match=message) as caught:
        look(None, **values)
    assert "\n" not in str(caught.value)


def test_subfolders_on_request(tmp_path):
    folder(tmp_path / "a", 1)
    folder(tmp_path / "a" / "b", 2, first=5)
    folder(tmp_path / "a" / "masks", 1)
    found = look(tmp_path / "a", recursive=True, masks=str(tmp_path / "a" / "masks"))
    assert [item.name for item in found.items] == ["a/000.png", "a/b/005.png", "a/b/006.png"]
    assert found.items[0].pictures[0].mask == tmp_path / "a" / "masks" / "000.png"


def test_equal_content_is_noted_and_kept_together(tmp_path):
    folder(tmp_path, 3)
    shutil.copy(tmp_path / "001.png", tmp_path / "copy.png")
    found = look(tmp_path, caption="x")
    assert notes(found) == {"fixed caption": 1, "duplicate": 1}
    groups = {item.name.split("/")[1]: item.group for item in found.items}
    assert groups["copy.png"] == groups["001.png"] != groups["000.png"]


def test_sizes_that_suffer_are_noted(tmp_path):
    picture(tmp_path / "small.png", (20, 20), 1, "a")
    picture(tmp_path / "long.png", (900, 64), 2, "a")
    assert notes(look(tmp_path)) == {"enlarged": 1, "cropped": 1}
    picture(tmp_path / "sliver.png", (400, 7), 3, "a")
    found = look(tmp_path, no_upscale=True)
    assert notes(found) == {"too small": 1, "cropped": 1} and len(found.items) == 2


def test_sets_inherit_from_data_and_may_differ(tmp_path):
    folder(tmp_path / "a", 2)
    folder(tmp_path / "b", 1, first=7)
    found = look(
        None,
        repeats=3,
        sets=[
            {"path": str(tmp_path / "a"), "resolution": 128},
            {"path": str(tmp_path / "a")},
            {"path": str(tmp_path / "b"), "repeats": 5, "is_reg": True},
            {"path": str(tmp_path / "a"), "repeats": 9},
            {"path": str(tmp_path / "b"), "repeats": 0},
        ],
        prior_loss_weight=0.5,
    )
    assert [(item.bucket[0], item.repeats, item.weight, item.is_reg) for item in found.items] == [
        (128, 3, 1.0, False), (128, 3, 1.0, False), (64, 3, 1.0, False), (64, 3, 1.0, False), (64, 5, 0.5, True),
    ]  # fmt: skip
    assert notes(found) == {"enlarged": 2, "repeated set": 1, "repeats = 0": 1}
    assert found.items[0].group == found.items[2].group  # one picture at two sizes is held out as one


def test_masks(tmp_path):
    folder(tmp_path / "a", 3)
    (tmp_path / "m").mkdir()
    for name, size in (("000", (64, 64)), ("001", (32, 64))):
        Image.fromarray(noise(size, 1)[..., 0]).save(tmp_path / "m" / f"{name}.png")
    found = look(tmp_path / "a", masks=str(tmp_path / "m"))
    assert [item.pictures[0].mask is not None for item in found.items] == [True, True, False]
    assert notes(found) == {"mask size": 1, "no mask": 1}
    (tmp_path / "m" / "002.png").write_text("x")
    with pytest.raises(ValueError, match=r"the mask .*002\.png cannot be read"):
        look(tmp_path / "a", masks=str(tmp_path / "m"))


METADATA = {
    "000.png": {"caption": "a cat", "tags": "red, blue"},
    "001": {"tags": "only tags", "image_size": [64, 64]},
    "002.png": {"caption": "one\ntwo", "tags": "x\ny"},
    "gone.png": {"caption": "z"},
}


def test_an_empty_folder_among_others_is_noted(tmp_path):
    """As sd-scripts does; one of regularisation pictures too. A folder of other files counts as empty."""
    folder(tmp_path / "pics", 2)
    for name in ("empty", "reg", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "other" / "a.gif").write_bytes(b"GIF89a")
    sets = [{"path": str(tmp_path / name)} for name in ("empty", "pics", "other")]
    found = look(sets=[*sets, {"path": str(tmp_path / "reg"), "is_reg": True}])
    assert len(found.items) == 2 and notes(found)["empty folder"] == 3
    assert {item.set for item in found.items} == {0} and found.names == ["pics"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"C:\\train\\img\\p0.png": {"tags": "a"}}, r"none of the 1 pictures that m\.json names is there: C:\\train"),
        (
            {"/gone/p0.png": {"tags": "a"}},
            r"none of the 1 pictures that m\.json names is there: /gone/p0\.png; names are",
        ),
        (
            {f"old/{i}.png": {} for i in range(5)},
            r"none of the 5 pictures .* \.\.\.; names are relative to image_dir, ",
        ),
        ({}, r"m\.json names no pictures"),
    ],
)
def test_metadata_that_names_other_pictures_is_told_as_that(tmp_path, content, message):
    folder(tmp_path / "pics", 2)
    (tmp_path / "m.json").write_text(json.dumps(content), "utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        look(tmp_path / "pics", metadata=str(tmp_path / "m.json"))
    assert "holds no pictures" not in str(caught.value) and "recursive" not in str(caught.value)


def test_linked_folders_are_read_once_and_loops_are_noted(tmp_path):
    pics, outside = folder(tmp_path / "pics" / "real", 2).parent, folder(tmp_path / "outside", 1, first=5)
    folder(pics / ".store" / "deep", 1, first=9)
    for name, target in (("a", outside), ("b", outside), ("again", pics / "real"), ("self", pics), ("up", tmp_path),
                         ("hidden", pics / ".store" / "deep")):  # fmt: skip
        (pics / name).symlink_to(target, target_is_directory=True)
    (outside / "back").symlink_to(pics, target_is_directory=True)
    found = look(pics, recursive=True)
    names = [item.name for item in found.items]
    assert names == ["pics/a/005.png", "pics/hidden/009.png", "pics/real/000.png", "pics/real/001.png"]
    assert notes(found)["linked twice"] == 5
    assert look(pics / "real").notes.count("linked twice") == 0


@pytest.mark.parametrize("mark", [True, False])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("text", ["a red cat, solo", "猫, 赤い\nねこ", "кошка", "a"])
def test_captions_and_metadata_in_the_encodings_of_editors(tmp_path, text, encoding, mark):
    pics = folder(tmp_path / "pics", 1)
    data = (("\ufeff" if mark else "") + text).encode(encoding)
    (pics / "000.txt").write_bytes(data)
    assert look(pics).items[0].caption == text
    entry = json.dumps({"000.png": {"caption": text}}, ensure_ascii=False)
    (tmp_path / "m.json").write_bytes((("\ufeff" if mark else "") + entry).encode(encoding))
    assert look(pics, metadata=str(tmp_path / "m.json")).items[0].caption == text


def rgba(path: Path, alpha: np.ndarray, mask: Path | None = None) -> None:
    """A picture with this alpha channel, or with this mask beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(noise((alpha.shape[1], alpha.shape[0]), 1))
    if mask:
        mask.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(alpha).save(mask)
    else:
        image.putalpha(Image.fromarray(alpha))
    image.save(path)


def spot(width: int, height: int, *at: int) -> np.ndarray:
    alpha = np.zeros((height, width), np.uint8)
    if at:
        alpha[at[0] : at[1], at[2] : at[3]] = 255
    return alpha


@pytest.mark.parametrize("kind", ["mask", "alpha"])
def test_masks_that_leave_nothing_are_noted(tmp_path, kind):
    """Black all over; white only where the crop cuts; and not those with a single white pixel, or without a mask."""
    masks = {
        "black": spot(64, 64), "beside": spot(128, 64, 0, 64, 0, 20), "pixel": spot(64, 64, 3, 4, 3, 4),
        "white": spot(64, 64, 0, 64, 0, 64), "one": spot(64, 64, 0, 64, 0, 64) // 255,
    }  # fmt: skip
    for name, alpha in masks.items():
        rgba(tmp_path / "pics" / f"{name}.png", alpha, tmp_path / "masks" / f"{name}.png" if kind == "mask" else None)
    picture(tmp_path / "pics" / "none.png")
    more = {"masks": str(tmp_path / "masks")} if kind == "mask" else {"alpha_mask": True}
    found = look(tmp_path / "pics", buckets=False, **more)
    assert sorted(found.notes.names("black mask")) == ["pics/beside.png", "pics/black.png", "pics/one.png"]
    found = look(tmp_path / "pics", buckets=True, bucket_max=256, **more)
    assert found.notes.names("black mask") == ["pics/black.png", "pics/one.png"]
    assert notes(look(tmp_path / "pics", buckets=False)).get("black mask") is None


def test_a_mask_and_an_alpha_channel_that_do_not_meet(tmp_path):
    rgba(tmp_path / "pics" / "a.png", spot(64, 64, 0, 64, 0, 32))
    rgba(tmp_path / "b.png", spot(64, 64, 0, 64, 32, 64), tmp_path / "masks" / "a.png")
    found = look(tmp_path / "pics", masks=str(tmp_path / "masks"), alpha_mask=True)
    assert found.notes.names("black mask") == ["pics/a.png"]


@pytest.mark.parametrize("wildcards", [False, True])
def test_captions_of_one_json_file(tmp_path, wildcards):
    folder(tmp_path / "a", 3)
    path = tmp_path / "meta.json"
    path.write_text(json.dumps(METADATA))
    found = look(tmp_path / "a", metadata=str(path), wildcards=wildcards)
    words = "one,x,y\ntwo,x,y" if wildcards else "one\ntwo,x\ny"
    assert [item.caption for item in found.items] == ["a cat,red, blue", "only tags", words]
    assert notes(found)["missing"] == 1


def test_captions_of_json_lines_with_absolute_names(tmp_path):
    folder(tmp_path / "a", 2)
    rows = [
        {"image_path": str(tmp_path / "a" / "001.png"), "caption": "first"},
        {"image_path": str(tmp_path / "a" / "000.png"), "caption": "second", "tags": "t"},
    ]
    path = tmp_path / "meta.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    found = look(None, sets=[{"metadata": str(path)}])
    assert {item.name: item.caption for item in found.items} == {
        "meta.jsonl/000.png": "second,t",
        "meta.jsonl/001.png": "first",
    }


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", "{"),
        ("a.json", "[1]"),
        ("a.json", '{"x": 1}'),
        ("a.jsonl", '{"caption": "x"}'),
        ("a.json", "[" * 99999),
    ],
)
def test_broken_metadata_is_one_line(tmp_path, name, text):
    folder(tmp_path / "a", 1)
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=r"^data\.metadata: ") as caught:
        look(tmp_path / "a", metadata=str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_facts_are_remembered_until_the_file_changes(tmp_path, monkeypatch):
    import os

    from pixelkiln.trainer.data import cache

    path = picture(tmp_path / "a.png", (30, 20))
    old = path.stat().st_mtime - 100
    os.utime(path, (old, old))
    monkeypatch.setattr(cache.time, "time", lambda: path.stat().st_ctime + 50)
    first = Index(tmp_path / "index")
    assert first.header(path).size == (30, 20)
    sha = first.sha(path)
    first.save()
    monkeypatch.setattr(cache, "header", lambda _: pytest.fail("read again"))
    again = Index(tmp_path / "index")
    assert again.header(path).size == (30, 20) and again.sha(path) == sha
    monkeypatch.undo()
    data = np.array(Image.open(path))
    data[0, 0] ^= 255
    Image.fromarray(data).save(path)
    os.utime(path, (old, old))  # even with the old time and, perhaps, the old length
    assert Index(tmp_path / "index").sha(path) != sha


def test_a_file_that_just_changed_is_not_remembered(tmp_path):
    path = picture(tmp_path / "a.png")
    index = Index(tmp_path / "index")
    index.sha(path)
    index.save()
    assert list((tmp_path / "index").glob("*")) == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"v": 1, "of": 3}', '{"v": 1, "files": {"a.png": 3}}'])
def test_a_damaged_memory_is_as_none(tmp_path, text):
    path = picture(tmp_path / "a.png")
    index = Index(tmp_path)
    file = index._file(path.parent.as_posix())
    assert file
    file.write_text(text)
    assert Index(tmp_path).header(path).size == (64, 64)


def test_names_with_line_breaks_stay_on_one_line(tmp_path):
    picture(tmp_path / "a\nb.png")
    picture(tmp_path / "c.png")
    assert not any("\n" in line for line in look(tmp_path).notes.lines())
