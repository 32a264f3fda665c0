"""The report of a study, from synthetic values."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from pixelkiln.trainer.study.report import Arm, Cost, Outcome, Sheet, every_nth, markdown, page, summary_text
from pixelkiln.trainer.study.values import Measure, Value

MEASURES = [
    Measure("error", "latent error", "lower", "The mean squared error."),
    Measure("align", "text alignment", "higher", "The share of pictures of their own caption."),
    Measure("error 100", "latent error, level 100", "lower", "A level.", tested=False),
]


def outcome(tmp_path, seeds=5, **changes) -> Outcome:
    rng, values = np.random.default_rng(0), []
    for arm, shift in (("plain & <old>", 0.0), ("pixel", 1.0), ("copy", 0.0)):
        for seed in range(seeds):
            for item in range(6):
                noise = 0.0 if arm == "copy" else rng.normal(0, 0.01)
                values += [Value("error", arm, seed, f"p{item}", 2 + shift + noise),
                           Value("align", arm, seed, f"p{item}", float((item + seed) % 2)),
                           Value("error 100", arm, seed, f"p{item}", 3.0)]  # fmt: skip
    picture = tmp_path / "a secret prompt.png"
    Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(picture)
    arms = [Arm("plain & <old>", "", {}, Cost(100, 61.0, 0.5, 8.0), seeds),
            Arm("pixel", "loss.pixel.weight = 1.0", {"loss.pixel.weight": 1.0}, None, seeds),
            Arm("copy", "x", {})]  # fmt: skip
    sheet = Sheet(0, ("a cat",), (("plain & <old>", (picture,)), ("pixel", (None,))))
    return Outcome("my study", arms, MEASURES, values, frozenset({"copy"}), seeds, ["A note with <b>."],
                   {"family": "sd15"}, [sheet], **changes)  # fmt: skip


ALONE = ("meta", "img", "circle", "line")


class Reader(HTMLParser):
    """Checks that tags are balanced, and collects what would be loaded."""

    def __init__(self):
        super().__init__()
        self.open, self.loaded = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in ALONE:
            self.open.append(tag)
        self.loaded += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert tag in ALONE or self.open.pop() == tag


def test_the_page_is_one_file_with_its_pictures_and_text_is_escaped(tmp_path):
    text, reader = page(outcome(tmp_path)), Reader()
    reader.feed(text)
    assert not reader.open
    assert reader.loaded and all(source.startswith("data:image/jpeg;base64,") for source in reader.loaded)
    assert "plain &amp; &lt;old&gt;" in text and "<old>" not in text and "A note with &lt;b&gt;." in text
    assert "1 of 4 comparisons show a difference" in text
    assert re.search(r'class="worse">worse: \S+ \((49|50)\.\d%\) higher<', text), re.findall("worse.*?<", text)


def test_bars_of_a_measure_have_one_scale_and_captions_are_cut(tmp_path):
    """A difference of half the size is drawn half as long; the whole prompt stays to be read."""
    long = "a very long caption " * 20
    made = outcome(tmp_path)
    half = [
        Value("error", "half", v.seed, v.item, 2.5) for v in made.values if v.arm == "pixel" and v.measure == "error"
    ]
    made = replace(
        made, arms=[*made.arms, Arm("half", "")], values=[*made.values, *half],
        sheets=[Sheet(0, (long,), made.sheets[0].rows)],
    )  # fmt: skip
    text = page(made)
    at = {row[0]: 60 - float(row[1]) for row in re.findall(r"<td>(pixel|half)</td>.*?cx=\"([\d.]+)\"", text)[:2]}
    assert at["pixel"] / at["half"] == pytest.approx(2, rel=0.02)
    assert f'title="{long.strip()}' in text and f"<small>{long[:60]}" in text and f"<small>{long[:90]}" not in text


def test_the_table_says_what_was_compared_with_what(tmp_path):
    lines = markdown(outcome(tmp_path)).splitlines()
    table = [line.strip("| ").split(" | ") for line in lines if line.startswith("| latent error |")]
    assert [cells[1] for cells in table] == ["pixel", "copy"]
    assert table[0][5:8] == ["30", "5", "0 : 30"] and table[0][10].startswith("worse: ")
    assert table[1][10] == "identical files"
    align = next(line for line in lines if line.startswith("| text alignment | pixel"))
    assert "30 tied" in align and align.endswith("| no difference seen in any seed |")
    assert any(line.startswith("| plain & <old> |  | 5 | 100 | 1.0 min | 0.5 GB | 8 s |") for line in lines)
    assert "- A note with <b>." in lines


def test_one_seed_says_that_it_has_one(tmp_path):
    one = outcome(tmp_path, seeds=1)
    assert "one seed: no interval" in markdown(one)
    assert "There are not two seeds" in page(one)


def test_the_summary_holds_no_names_prompts_or_paths(tmp_path):
    text = summary_text(outcome(tmp_path))
    found = json.loads(text)
    assert found["arms"][1]["options"] == {"loss.pixel.weight": 1.0} and found["rows"][0]["arm"] == 1
    assert found["rows"][0]["p_holm"] < 0.05 and found["rows"][0]["pairs"] == 30
    for secret in ("secret", "a cat", "plain", "my study", str(tmp_path)):
        assert secret not in text


def test_nothing_measured_yet_is_a_report_too(tmp_path):
    none = Outcome("s", [Arm("a", ""), Arm("b", "")], MEASURES, [], frozenset(), 3, [], {})
    assert "Nothing is measured yet" in page(none) and json.loads(summary_text(none))["rows"] == []
    assert markdown(none).count("\n") > 3


@pytest.mark.parametrize(("count", "expected"), [(3, [0, 1, 2]), (0, []), (9, [0, 2, 4, 6, 8])])
def test_a_sheet_is_chosen_by_index(count, expected):
    assert every_nth(count) == expected
