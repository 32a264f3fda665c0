"""The folder of pairs: what is appended is read back, by whomever and however many at once."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_data import picture, png

from pixelkiln.trainer.data import pairs_file
from pixelkiln.trainer.data.pairs_file import Pair, Rating, add_best, add_pair, add_rating, contradictions
from pixelkiln.trainer.runs.process import wait_for_lock

ROOT = Path(__file__).resolve().parents[2]


def test_a_pair_is_read_back(tmp_path):
    made = add_pair(tmp_path, "ein Bär", png(seed=1), png(seed=2), weight=2, seed=5, source="test", mask=png(seed=3))
    assert pairs_file.read_pairs(tmp_path) == [made]
    line = json.loads((tmp_path / "pairs.jsonl").read_text("utf-8"))
    assert set(line) == {"prompt", "chosen", "rejected", "mask", "weight", "seed", "source"}  # defaults are not written
    for name in (made.chosen, made.rejected, made.mask):
        assert name and name.startswith("images/") and (tmp_path / name).is_file()
    assert (tmp_path / made.chosen).read_bytes() == png(seed=1)


def test_pictures_are_stored_once_under_their_content(tmp_path):
    file = picture(tmp_path / "out" / "x.jpg", seed=4)
    first = add_pair(tmp_path / "p", "a", file, png(seed=1))
    second = add_pair(tmp_path / "p", "b", png(seed=1), file)
    assert first.chosen == second.rejected and first.chosen.endswith(".jpg") and first.rejected.endswith(".png")
    assert len(list((tmp_path / "p" / "images").iterdir())) == 2


def test_best_of_n_gives_n_minus_one_rows_of_a_group(tmp_path):
    rows = add_best(tmp_path, "a", png(seed=0), [png(seed=i) for i in (1, 2, 3)], source="picker")
    assert len(rows) == 3 and len({row.group for row in rows}) == 1 and rows[0].group
    assert len({row.rejected for row in rows}) == 3 and len({row.chosen for row in rows}) == 1
    assert add_pair(tmp_path, "b", png(seed=0), png(seed=1)).group is None
    assert len(pairs_file.read_pairs(tmp_path)) == 4


def test_ratings(tmp_path):
    rows = [add_rating(tmp_path, "a", png(seed=i), liked=bool(i), seed=i) for i in range(2)]
    assert pairs_file.read_ratings(tmp_path) == rows and [row.liked for row in rows] == [False, True]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda p: add_pair(p, "  ", png(seed=1), png(seed=2)), "prompt: it is empty; a pair needs the prompt"),
        (lambda p: add_pair(p, "a", png(seed=1), png(seed=1)), "pictures: one of them is given twice"),
        (lambda p: add_best(p, "a", png(seed=1), [png(seed=2), png(seed=2)]), "one of them is given twice"),
        (lambda p: add_pair(p, "a", p / "no.png", png(seed=1)), r"no\.png: cannot be read .*; give a picture"),
        (lambda p: add_pair(p, "a", b"GIF89a", png(seed=1)), "the picture: not a PNG, JPEG, WebP, BMP or AVIF"),
        (lambda p: add_pair(p, "a", png(seed=3), png(seed=1), weight=float("nan")), "'weight' is nan; it should be"),
        (lambda p: add_rating(p, "", png(), liked=True), "prompt: it is empty"),
    ],
)
def test_wrong_pairs_are_not_written(tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong(tmp_path)
    assert not (tmp_path / "pairs.jsonl").exists() and not (tmp_path / "ratings.jsonl").exists()


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "not JSON"),
        ("[1]", "not an object"),
        ('{"prompt": "a", "chosen": "b"}', "'rejected' is missing"),
        ('{"prompt": "a", "chosen": "b", "rejected": null}', "'rejected' is missing"),
        ('{"prompt": 3, "chosen": "b", "rejected": "c"}', "'prompt' is 3; it should be a text"),
        ('{"prompt": "a", "chosen": "b", "rejected": "c", "tie": 1}', "'tie' is 1; it should be true or false"),
        (
            '{"prompt": "a", "chosen": "b", "rejected": "c", "seed": true}',
            "'seed' is true; it should be a whole number",
        ),
        ('{"prompt": "a", "chosen": "b", "rejected": "c", "weight": -1}', "'weight' is -1; it should be 0 or more"),
        ('{"prompt": "a", "chosen": "", "rejected": "c"}', "'chosen' is empty"),
        ('{"prompt": "a", "chosen": "b", "rejectd": "c"}', "unknown key 'rejectd'; did you mean 'rejected'?"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, problem):
    good = '{"prompt": "a", "chosen": "b.png", "rejected": "c\\\\d.png"}'
    (tmp_path / "pairs.jsonl").write_text(f"\ufeff{good}\n\n{line}\n{good}", "utf-8")
    rows, problems = pairs_file.read(tmp_path / "pairs.jsonl", Pair)
    assert [number for number, _ in rows] == [1, 4] and rows[0][1].rejected == "c/d.png"
    assert len(problems) == 1 and problems[0].startswith(f"line 3: {problem}")
    with pytest.raises(ValueError, match=r"pairs\.jsonl line 3: "):
        pairs_file.read_pairs(tmp_path)


def test_no_file_and_no_text(tmp_path):
    with pytest.raises(
        ValueError, match=r"ratings\.jsonl: cannot be read .*; give the folder that holds ratings\.jsonl"
    ):
        pairs_file.read_ratings(tmp_path)
    (tmp_path / "pairs.jsonl").write_bytes(b"\xe9t\xe9")
    with pytest.raises(ValueError, match="byte 0 is not UTF-8"):
        pairs_file.read_pairs(tmp_path)


def test_a_half_written_line_stays_alone(tmp_path):
    first = add_pair(tmp_path, "a", png(seed=1), png(seed=2))
    with (tmp_path / "pairs.jsonl").open("ab") as file:
        file.write(b'{"prompt": "cut o')
    second = add_pair(tmp_path, "b", png(seed=1), png(seed=2))
    rows, problems = pairs_file.read(tmp_path / "pairs.jsonl", Pair)
    assert [row for _, row in rows] == [first, second] and len(problems) == 1


WRITER = """
import sys; sys.path.insert(0, {tests!r}); import conftest
from pixelkiln.trainer.data.pairs_file import Pair, append_pairs
for i in range(25):
    append_pairs({folder!r}, [Pair("p" * 3000, f"{name}{{i}}.png", "b.png")])
"""


def test_many_processes_write_whole_lines(tmp_path):
    code = [WRITER.format(tests=str(ROOT / "tests"), folder=str(tmp_path), name=name) for name in "abc"]
    running = [subprocess.Popen([sys.executable, "-c", one]) for one in code]
    assert [one.wait(60) for one in running] == [0, 0, 0]
    rows = pairs_file.read_pairs(tmp_path)
    assert sorted(row.chosen for row in rows) == sorted(f"{name}{i}.png" for name in "abc" for i in range(25))
    for name in "abc":
        own = [int(row.chosen[1:-4]) for row in rows if row.chosen[0] == name]
        assert all(a < b for a, b in pairwise(own))


def test_whoever_holds_the_lock_too_long_is_told_of(tmp_path):
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with wait_for_lock(tmp_path / "x"):
            held.set()
            done.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    with pytest.raises(ValueError, match="another program is writing to it"), wait_for_lock(tmp_path / "x", 0.1):
        pass
    done.set()
    thread.join()
    with wait_for_lock(tmp_path / "x", 0.1):
        pass


prompts = st.text(max_size=30).filter(str.strip)
names = st.text(st.characters(exclude_characters="\\\0", exclude_categories=("Cs",)), min_size=1).filter(str.strip)


@settings(deadline=None, max_examples=60)
@given(
    st.builds(
        Pair, prompts, names, names, mask=st.none() | names, weight=st.floats(0, 1e6), tie=st.booleans(),
        seed=st.none() | st.integers(0, 2**63), source=st.none() | st.text(max_size=9),
        group=st.none() | st.text(max_size=9),
    )
)  # fmt: skip
def test_any_row_survives(tmp_path_factory, row):
    folder = tmp_path_factory.mktemp("rows")
    pairs_file.append_pairs(folder, [row, row])
    assert pairs_file.read_pairs(folder) == [row, row]


def test_any_rating_survives(tmp_path):
    row = Rating("a/b.png", "prompt\nof two lines", True, weight=0.5)
    pairs_file.append_ratings(tmp_path, [row])
    assert pairs_file.read_ratings(tmp_path) == [row]


def test_contradictions_are_the_circles():
    circle = [("p", "a", "b"), ("p", "b", "c"), ("p", "c", "a")]
    tail = [("p", "a", "d"), ("p", "e", "a"), ("q", "b", "a"), ("q", "b", "c")]
    assert contradictions([*circle, *tail]) == [0, 1, 2]
    assert contradictions(tail) == [] and contradictions([]) == []
    assert contradictions([("p", "a", "b"), ("p", "b", "a")]) == [0, 1]
    assert contradictions([("p", "a", "a")]) == [0]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.sampled_from("pq"), st.integers(0, 6), st.integers(0, 6)), max_size=25))
def test_without_the_contradictions_there_is_an_order(edges):
    found = set(contradictions(edges))
    left = [edge for i, edge in enumerate(edges) if i not in found]
    assert contradictions(left) == []

    def reaches(prompt, start, goal, seen):
        return any(
            worse == goal or (worse not in seen and reaches(prompt, worse, goal, seen | {worse}))
            for own, better, worse in edges
            if own == prompt and better == start
        )

    in_circles = {
        i for i, (prompt, better, worse) in enumerate(edges) if better == worse or reaches(prompt, worse, better, set())
    }
    assert in_circles <= found


def test_a_long_chain_is_linear_work():
    count = 30_000
    assert contradictions([("p", i, i + 1) for i in range(count)]) == []
    assert len(contradictions([("p", i, (i + 1) % count) for i in range(count)])) == count
