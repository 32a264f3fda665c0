"""Import, export and check of preference data, for every form."""

from __future__ import annotations

import builtins
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sample_data import noise, picture, png

from pixelkiln.trainer.data.pairs import export_pairs, import_pairs
from pixelkiln.trainer.data.pairs_check import check_pairs
from pixelkiln.trainer.data.pairs_file import Pair, add_pair, add_rating, append_pairs, read_pairs

parquet = pytest.importorskip("pyarrow.parquet", reason="parquet is an optional part")


def table(path: Path, rows: list[dict]) -> Path:
    import pyarrow

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def contents(out: Path) -> list[tuple[str, bytes, bytes]]:
    return [(row.prompt, (out / row.chosen).read_bytes(), (out / row.rejected).read_bytes()) for row in read_pairs(out)]


A, B, C = png(seed=1), png(seed=2), png(seed=3)


def test_pick_a_pic(tmp_path):
    rows = [
        {"jpg_0": A, "jpg_1": B, "label_0": 1.0, "caption": "first", "has_label": True},
        {"jpg_0": A, "jpg_1": B, "label_0": 0.0, "caption": "second", "has_label": True},
        {"jpg_0": A, "jpg_1": B, "label_0": 0.5, "caption": "third", "has_label": True},
        {"jpg_0": A, "jpg_1": B, "label_0": 1.0, "caption": "fourth", "has_label": False},
        {"jpg_0": A, "jpg_1": A, "label_0": 1.0, "caption": "fifth", "has_label": True},
        {"jpg_0": A, "jpg_1": b"broken", "label_0": 1.0, "caption": "sixth", "has_label": True},
        {"jpg_0": A, "jpg_1": B, "label_0": 1.0, "caption": " ", "has_label": True},
        {"jpg_0": A, "jpg_1": B, "label_0": 0.7, "caption": "eighth", "has_label": True},
    ]
    done = import_pairs(table(tmp_path / "in.parquet", rows), tmp_path / "out")
    assert contents(tmp_path / "out") == [("first", A, B), ("second", B, A)]
    assert (done.form, done.pairs) == ("parquet", 2)
    assert done.rejects == [
        "in.parquet row 3: a tie",
        "in.parquet row 4: it has no label",
        "in.parquet row 5: both pictures are the same",
        "in.parquet row 6: a picture cannot be read (not a picture, or a kind that is not read here)",
        "in.parquet row 7: it has no prompt; give one for all",
        "in.parquet row 8: label_0 is 0.7, not 0, 0.5 or 1",
    ]


def test_columns_of_hugging_face(tmp_path):
    rows = [{"prompt": "a", "chosen": {"bytes": A, "path": None}, "rejected": {"bytes": B, "path": "b.png"}}]
    table(tmp_path / "data" / "train" / "0000.parquet", rows)
    table(tmp_path / "data" / "train" / "0001.parquet", [{**rows[0], "prompt": "b"}])
    done = import_pairs(tmp_path / "data", tmp_path / "out")
    assert contents(tmp_path / "out") == [("a", A, B), ("b", A, B)] and done.rejects == []


def named(folder: Path) -> Path:
    for i, name in enumerate("abc", 1):
        picture(folder / "images" / f"{name}.png", seed=i)
    return folder


def test_invoke_training(tmp_path):
    rows = [
        {"prompt": "a", "image_0": "images/a.png", "image_1": "images/b.png", "prefer_0": True, "prefer_1": False},
        {"prompt": "b", "image_0": "images\\a.png", "image_1": "images/b.png", "prefer_0": False, "prefer_1": True},
        {"prompt": "c", "image_0": "images/a.png", "image_1": "images/b.png", "prefer_0": False, "prefer_1": False},
        {"prompt": "d", "image_0": "images/a.png", "image_1": "images/z.png", "prefer_0": True, "prefer_1": False},
    ]
    text = "\n".join(map(json.dumps, rows)) + "\nnot json\n"
    (named(tmp_path / "in") / "metadata.jsonl").write_text(text)
    done = import_pairs(tmp_path / "in", tmp_path / "out")
    assert contents(tmp_path / "out") == [("a", A, B), ("b", B, A)]
    assert done.rejects == [
        "metadata.jsonl line 3: a tie",
        "metadata.jsonl line 4: there is no picture 'images/z.png'",
        "metadata.jsonl line 5: not an object",
    ]


def test_hpd(tmp_path):
    rows = [
        {"prompt": "a", "image_left_id": "a", "image_right_id": "b", "pref": 1},
        {"prompt": "b", "image_left_id": "a", "image_right_id": "b", "pref": -1},
        {"prompt": "c", "image_left_id": "a", "image_right_id": "b", "pref": 3},
    ]
    (named(tmp_path) / "hpd.json").write_text(json.dumps(rows))
    done = import_pairs(tmp_path / "hpd.json", tmp_path / "out")
    assert contents(tmp_path / "out") == [("a", A, B), ("b", B, A)]
    assert done.rejects == ["hpd.json row 3: pref is 3, not 1 (left) or -1 (right)"]


@pytest.mark.parametrize("sides", [("chosen", "rejected"), ("w", "l")])
@pytest.mark.parametrize("nested", [False, True])
def test_folders_of_equal_stems(tmp_path, sides, nested):
    root = tmp_path / "in"
    place = root / "1_name" if nested else root
    picture(place / sides[0] / "x.png", seed=1, caption="from the chosen")
    picture(place / sides[1] / "X.PNG", seed=2)
    picture(place / sides[0] / "y.png", seed=1)
    picture(place / sides[1] / "y.png", seed=3, caption="from the rejected")
    picture(place / sides[0] / "alone.png", seed=1)
    picture(place / sides[1] / "other.png", seed=2)
    done = import_pairs(root, tmp_path / "out")
    assert contents(tmp_path / "out") == [("from the chosen", A, B), ("from the rejected", A, C)]
    assert done.form == f"{sides[0]} + {sides[1]} folders"
    assert [reject.split(": ")[1] for reject in done.rejects] == [
        f"there is no picture of this name in {sides[1]}", f"there is no picture of this name in {sides[0]}",
    ]  # fmt: skip


def test_suffixes(tmp_path):
    picture(tmp_path / "in" / "x_w.png", seed=1)
    picture(tmp_path / "in" / "x_l.png", seed=2)
    picture(tmp_path / "in" / "y_w.png", seed=3)
    done = import_pairs(tmp_path / "in", tmp_path / "out", prompt="for all")
    assert contents(tmp_path / "out") == [("for all", A, B)]
    assert done.rejects == ["y_w.png: its partner is not there"]


def test_our_own_folder_is_added_to_another_and_only_once(tmp_path):
    first = add_pair(tmp_path / "a", "p", A, B, weight=2.5, seed=3, source="s")
    add_pair(tmp_path / "a", "q", A, C, tie=True)
    add_pair(tmp_path / "b", "r", A, C)
    assert import_pairs(tmp_path / "a", tmp_path / "b").pairs == 1
    assert read_pairs(tmp_path / "b")[1] == first
    again = import_pairs(tmp_path / "a", tmp_path / "b")
    assert again.pairs == 0
    assert again.rejects == ["pairs.jsonl line 1: the same pair is there already", "pairs.jsonl line 2: a tie"]


def test_rows_that_contradict_each_other_are_listed(tmp_path):
    rows = [
        {"jpg_0": A, "jpg_1": B, "label_0": 1, "caption": "p"},
        {"jpg_0": A, "jpg_1": B, "label_0": 0, "caption": "p"},
        {"jpg_0": A, "jpg_1": C, "label_0": 1, "caption": "p"},
        {"jpg_0": A, "jpg_1": B, "label_0": 1, "caption": "q"},
    ]
    done = import_pairs(table(tmp_path / "in.parquet", rows), tmp_path / "out")
    assert contents(tmp_path / "out") == [("p", A, C), ("q", A, B)]
    assert done.rejects == [f"in.parquet row {i}: it contradicts other pairs of its prompt" for i in (1, 2)]
    back = table(tmp_path / "back.parquet", [{"jpg_0": B, "jpg_1": A, "label_0": 1, "caption": "q"}])
    assert import_pairs(back, tmp_path / "out").pairs == 0


def test_export_and_import_give_the_same_pairs(tmp_path):
    add_pair(tmp_path / "a", "p", A, B, weight=2.5, seed=3, source="s", mask=C)
    add_pair(tmp_path / "a", "q", B, A, tie=True)
    add_pair(tmp_path / "a", "r", B, C)
    assert export_pairs(tmp_path / "a", tmp_path / "out.parquet") == 3
    assert parquet.read_table(tmp_path / "out.parquet")["label_0"].to_pylist() == [1.0, 0.5, 1.0]
    done = import_pairs(tmp_path / "out.parquet", tmp_path / "b")
    assert read_pairs(tmp_path / "b") == [row for row in read_pairs(tmp_path / "a") if not row.tie]
    assert done.rejects == ["out.parquet row 2: a tie"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        (None, b"", "there is nothing; give a folder"),
        ("x.csv", b"a", r"not a \.parquet or \.jsonl file"),
        ("x.parquet", b"PAR1 no", "cannot be read as parquet"),
        ("x.jsonl", b"\xff", "byte 0 is not UTF-8"),
        ("x.json", b"{", "not JSON"),
        ("folder/x.txt", b"", "no pairs in a known form"),
    ],
)
def test_sources_that_are_none(tmp_path, name, data, message):
    source = tmp_path / "in" / (name or "nowhere")
    if name:
        source.parent.mkdir(parents=True)
        source.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        import_pairs(source if "/" not in (name or "") else source.parent, tmp_path / "out")


def test_without_pyarrow_there_is_one_line(tmp_path, monkeypatch):
    path = table(tmp_path / "in.parquet", [{"a": 1}])
    real = builtins.__import__

    def without(name, *more):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"pyarrow is not installed; pip install pyarrow"):
        import_pairs(path, tmp_path / "out")


# -- check -------------------------------------------------------------------------------------------------------------


def test_a_good_folder_is_sound(tmp_path):
    for i in range(4):
        add_pair(tmp_path, f"prompt {i // 2}", png(seed=2 * i), png(seed=2 * i + 1))
    done = check_pairs(tmp_path)
    assert done.sound and (done.pairs, done.prompts, done.lines()) == (4, 2, [])
    assert json.loads(json.dumps(done.as_json()))["sound"] is True


def test_everything_that_is_odd_is_found(tmp_path):
    good = add_pair(tmp_path, "p", A, B)
    other = add_pair(tmp_path, "q", C, png((64, 32), 4))
    almost = np.clip(noise((64, 64), 1).astype(int) + 2, 0, 255).astype(np.uint8)
    Image.fromarray(almost).save(tmp_path / "almost.png")
    close = add_pair(tmp_path, "r", A, tmp_path / "almost.png")
    (tmp_path / "images" / "copy.png").write_bytes(A)
    (tmp_path / "images" / "broken.png").write_bytes(A[:-30])
    append_pairs(
        tmp_path,
        [
            Pair("p", good.rejected, good.chosen),
            Pair("q", other.chosen, other.rejected, tie=True),
            Pair("", good.chosen, good.rejected),
            Pair("s", good.chosen, "images/copy.png"),
            Pair("t", good.chosen, "images/gone.png"),
            Pair("u", good.chosen, "images/broken.png"),
            Pair("word " * 80, other.chosen, good.chosen),
            Pair("красивый медведь в лесу", other.chosen, good.chosen),
        ],
    )
    with (tmp_path / "pairs.jsonl").open("a") as file:
        file.write("{\n")
    picture(tmp_path / "images" / "orphan.png", seed=9)
    found = check_pairs(tmp_path)
    assert not found.sound and found.pairs == 11
    cases = {kind: [text.split(":")[0] for text in texts] for kind, texts in found.findings.items()}
    assert cases == {
        "line": ["line 12"],
        "missing": ["line 8"],
        "unreadable": ["line 9"],
        "empty prompt": ["line 6"],
        "long": ["line 10"],
        "script": ["line 11"],
        "tie": ["line 5"],
        "same picture": ["line 7"],
        "near-identical": ["line 3"],
        "shapes": ["line 2", "line 5"],
        "contradiction": ["line 1", "line 4"],
        "repeated": ["line 5 = line 2"],
        "copies": [good.chosen, "images/copy.png"],
        "unused": ["images/orphan.png"],
    }
    assert close.rejected != good.chosen
    lines = found.lines()
    assert lines[0].startswith("error: lines that are no rows: 1 (line 12: not JSON")
    assert all("\n" not in line for line in lines) and len(lines) == len(cases)


def test_ratings_are_checked_too(tmp_path):
    for i in range(2):
        add_rating(tmp_path, "p", png(seed=i), liked=False)
    add_rating(tmp_path, "p", png(seed=1), liked=False)
    found = check_pairs(tmp_path)
    assert found.ratings == 3 and set(found.findings) == {"one-sided", "repeated"}


def test_nothing_to_check(tmp_path):
    with pytest.raises(ValueError, match=r"there is no pairs\.jsonl and no ratings\.jsonl"):
        check_pairs(tmp_path)
