"""A study at work on a tiny model: what it leaves, what it keeps, and what it says when something changes or fails."""

from __future__ import annotations

import json
import shutil

import pytest
import short_runs as runs

from pixelkiln.trainer.commands.study import seconds
from pixelkiln.trainer.errors import UserError
from pixelkiln.trainer.runs.control import DONE, INTERRUPTED
from pixelkiln.trainer.study import options, plan, queue, votes
from pixelkiln.trainer.study.values import from_csv

TEXT = """
name = "s"
seeds = {seeds}
held_out = 0.4
{first}
[options.model]
path = "sd15"
[options.data]
path = "pictures"
resolution = 64
[options.run]
steps = 3
device = "cpu"
[options.adapter]
rank = 2
[options.optimizer]
learning_rate = 0.05
[options.sample]
steps = 1
guidance = 1.0
[[arms]]
name = "plain"
[[arms]]
name = "more"
options = {{ "run.steps" = 5 }}
{more}
[measures]
levels = 2
pixel_levels = 1
captions = 2
caption_levels = 1
neutral = ["a dog"]
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    root = tmp_path_factory.mktemp("queue")
    runs.pictures(root / "pictures", 6)
    runs.model(root / "sd15")
    return root


def planned(home, name, more="", first="", seeds=2, many=None):
    path = home / f"{name}.toml"
    path.write_text(
        TEXT.format(more=more, first=first, seeds=seeds).replace('name = "s"', f'name = "{name}"', 1), "utf-8"
    )
    return plan.make(*options.read(path), many)


def quiet(_):
    pass


@pytest.fixture(scope="module")
def done(home):
    """A study of two arms, one copy of the first as a file, and the base."""
    first = planned(home, "first", seeds=1)
    assert queue.run(first, quiet) == DONE
    file = queue.Cell(first, first.arms[0], 0).adapter
    more = f'[[arms]]\nname = "file"\nadapter = "{file.as_posix()}"\n[[arms]]\nname = "base"\nuntrained = true'
    made = planned(home, "first", more, seeds=1)
    assert queue.run(made, quiet) == DONE
    return made


def test_a_study_leaves_a_report_and_every_value(done):
    names = {path.name for path in done.folder.iterdir()}
    assert {"report.html", "report.md", "values.csv", "summary.json", "runs", "cells"} <= names
    values = from_csv((done.folder / "values.csv").read_text("utf-8"))
    assert {v.arm for v in values} == {"plain", "more", "file", "base"} and {v.seed for v in values} == {0}
    found = json.loads((done.folder / "summary.json").read_text("utf-8"))
    assert found["family"] == "sd15" and found["arms"][1]["options"] == {"run.steps": 5}
    assert found["arms"][1]["cost"]["steps"] == 5 and found["arms"][3]["cost"] is None
    text = (done.folder / "summary.json").read_text("utf-8")
    assert str(done.folder) not in text and "cat" not in text
    lines = (done.folder / "report.md").read_text("utf-8")
    assert "There is one seed" in lines and "one seed: no interval" in lines


def test_bit_equal_arms_are_identical_and_so_are_their_values(done):
    outcome = queue.Queue(done, quiet).outcome()
    assert outcome.identical == {"file"}
    rows = [row for row in outcome.rows() if row.arm == "file"]
    assert rows and all(row.identical and row.interval.mean == 0 for row in rows)


def test_nothing_is_done_twice(done, monkeypatch):
    monkeypatch.setattr(queue, "train", None)
    monkeypatch.setattr(queue.measure, "bench", None)
    assert queue.run(done, quiet) == DONE


def test_a_changed_measure_is_measured_again_and_nothing_else(home, done, monkeypatch):
    text = (home / "first.toml").read_text("utf-8").replace("levels = 2", "levels = 4", 1)
    (home / "first2.toml").write_text(text, "utf-8")
    changed = plan.make(*options.read(home / "first2.toml"))
    monkeypatch.setattr(queue, "train", None)
    cells = [queue.Cell(changed, arm, 0) for arm in changed.arms]
    missing = [name for cell in cells for name, _ in queue.Queue(changed, quiet)._missing(cell)]
    assert missing == ["errors"] * 4


def test_a_changed_arm_is_not_mistaken_for_the_one_that_was_trained(home, done):
    text = (home / "first.toml").read_text("utf-8").replace('"run.steps" = 5', '"run.steps" = 4')
    (home / "first3.toml").write_text(text, "utf-8")
    with pytest.raises(UserError, match=r"^arms: 'more' has changed since .*; give the arm or the study another name"):
        made = plan.make(*options.read(home / "first3.toml"))
        shutil.rmtree(done.folder / "cells" / "more-seed0")
        queue.run(made, quiet)
    assert queue.run(done, quiet) == DONE  # as it was


def test_votes_are_folded_in(done):
    lines = [{"left": "plain@0", "right": "more@0", "won": "right", "prompt": 0, "t": 0.0},
             {"left": "more@0", "right": "plain@0", "won": "left", "prompt": 1, "t": 0.0},
             {"left": "plain@0", "right": "more@0", "won": "tie", "prompt": 1, "t": 0.0},
             {"left": "more@0", "right": "base@0", "won": "left", "prompt": 1, "t": 0.0},
             {"left": "plain@7", "right": "more@7", "won": "left", "prompt": 1, "t": 0.0}]  # fmt: skip
    path = done.folder / votes.FILE
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"left": "torn', "utf-8")
    (row,) = [
        row for row in queue.Queue(done, quiet).outcome().rows() if row.measure.name == "votes" and row.arm == "more"
    ]
    path.unlink()
    assert (row.pairs, row.wins, row.losses, row.interval.mean) == (2, 2, 0, 0.75)


def test_the_page_to_vote_on_names_no_arm_to_the_eye_and_its_votes_are_read(done):
    """The duels in the page, answered as a browser would write them."""
    text = (done.folder / "vote.html").read_text("utf-8")
    duels, _ = json.JSONDecoder().raw_decode(text.partition("duels = ")[2])
    assert len(duels) == 3 * len(done.prompts)
    assert all((done.folder / source).is_file() for duel in duels for source in duel["sources"])
    sides = {duel["left"].partition("@")[0] == "plain" for duel in duels}
    assert sides == {True, False}
    rows = [
        {**duel, "v": 1, "t": 1.0, "won": "right" if duel["left"].startswith("plain") else "left"} for duel in duels
    ]
    path = done.folder / votes.FILE
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    found = [row for row in queue.Queue(done, quiet).outcome().rows() if row.measure.name == "votes"]
    path.unlink()
    assert {row.arm: (row.wins, row.losses) for row in found} == {
        name: (len(done.prompts), 0) for name in ("more", "file", "base")
    }
    body = text.partition("<script>")[0]
    assert "plain" not in body and "more" not in body


@pytest.mark.slow
def test_an_interrupted_training_goes_on_and_the_table_is_the_same(home, done, monkeypatch):
    """The process dies after two cells, then in the middle of drawing; in the end every value is that of one go."""
    whole = planned(home, "whole", seeds=1)
    assert queue.run(whole, quiet) == DONE
    broken = planned(home, "broken", seeds=1)
    real_train, count = queue.train, [0]

    def stops(config, resume=False):
        count[0] += 1
        return INTERRUPTED if count[0] == 2 else real_train(config, resume=resume)

    monkeypatch.setattr(queue, "train", stops)
    assert queue.run(broken, quiet) == INTERRUPTED
    real_draw, drawn = queue.measure.sampling.save_picture, [0]

    def dies(*args):
        drawn[0] += 1
        if drawn[0] == 2:
            raise KeyboardInterrupt
        real_draw(*args)

    monkeypatch.setattr(queue.measure.sampling, "save_picture", dies)
    with pytest.raises(KeyboardInterrupt):
        queue.run(broken, quiet)
    monkeypatch.setattr(queue.measure.sampling, "save_picture", real_draw)
    assert queue.run(broken, quiet) == DONE
    one, other = ((made.folder / "values.csv").read_text("utf-8") for made in (whole, broken))
    assert one == other and len(one.splitlines()) > 20


def test_an_arm_that_fails_is_told_and_the_others_go_on(home, monkeypatch):
    made, real, lines = planned(home, "fails", seeds=1), queue.train, []

    def fails(config, resume=False):
        if config.run.steps == 5:
            raise UserError("train: diverged; lower the rate")
        return real(config, resume=resume)

    monkeypatch.setattr(queue, "train", fails)
    with pytest.raises(UserError, match=r"^more, seed 0: train: diverged; lower the rate$"):
        queue.run(made, lines.append)
    assert "more, seed 0 has no result: train: diverged" in (made.folder / "report.md").read_text("utf-8")
    assert queue.Queue(made, quiet).finished(queue.Cell(made, made.arms[0], 0))


@pytest.mark.slow
def test_equal_time_gives_the_slower_arm_fewer_steps(home, monkeypatch):
    more = '[[arms]]\nname = "twice"\noptions = { "run.accumulation" = 4 }'
    seconds_of = {"plain": 0.1, "more": 0.1, "twice": 0.4}
    monkeypatch.setattr(queue.Queue, "_seconds_per_step", lambda self, arm: seconds_of[arm.name.partition(",")[0]])
    made = planned(home, "equal", more, 'equal = "time"', seeds=1)
    at_work = queue.Queue(made, quiet)
    assert at_work.steps == {"more": 3, "twice": 1}
    monkeypatch.setattr(queue.Queue, "_seconds_per_step", None)  # settled: not measured again
    assert queue.Queue(made, quiet).steps == at_work.steps
    assert queue.run(made, quiet) == DONE
    assert "'twice' has 1 steps, which take as long as those of 'plain'." in (made.folder / "report.md").read_text(
        "utf-8"
    )


@pytest.mark.slow
def test_timing_is_measured_by_runs_of_their_own(home):
    made = planned(home, "timing", first='equal = "time"', seeds=1)
    steps = queue.Queue(made, quiet).steps
    assert set(steps) == {"more"} and 1 <= steps["more"] <= 30
    assert (made.folder / "runs" / "timing-plain-seed0").is_dir()


def test_a_budget_decides_the_seeds(home, monkeypatch):
    walls, lines = {"plain": 10.0, "more": 20.0}, []
    made = planned(home, "budget", many=range(40))

    class Fake(queue.Queue):
        def __init__(self, *given, **named):
            super().__init__(*given, **named)
            self.done = set()

        def finished(self, cell):
            return (cell.arm.name, cell.seed) in self.done

        def _train(self, cell):
            cell.folder.mkdir(parents=True, exist_ok=True)
            return DONE

        def _measure(self, cell):
            self.done.add((cell.arm.name, cell.seed))

        def _wall(self, arm):
            return [walls[arm.name] for name, _ in self.done if name == arm.name]

        def report(self):  # pyright: ignore[reportIncompatibleMethodOverride]
            return None

    at_work = Fake(made, lines.append, budget=100.0)
    assert at_work.work() == DONE and at_work.planned == 3 and len(at_work.done) == 6
    assert any("one seed of all arms takes 30 s, so 3 fit into 1.7 min" in line for line in lines)
    least = Fake(made, quiet, budget=1.0)
    assert least.work() == DONE and len(least.done) == 2  # the first seed always is


@pytest.mark.parametrize(("text", "expected"), [("8h", 28800), ("90m", 5400), ("2h30m", 9000), ("1.5 h", 5400)])
def test_a_budget_is_read(text, expected):
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["8", "h", "8x", "", "0h", "-3h"])
def test_a_budget_that_is_no_time(text):
    with pytest.raises(UserError, match=r"^--budget: "):
        seconds(text)


def test_two_studies_in_one_folder_do_not_mix(done):
    import subprocess
    import sys

    path = str(done.folder / ".lock")
    hold = "f = open(sys.argv[1], 'a+b'); fcntl.lockf(f, fcntl.LOCK_EX); print('x', flush=True); time.sleep(30)"
    script = f"import fcntl, sys, time; {hold}"
    other = subprocess.Popen([sys.executable, "-c", script, path], stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline()
        with pytest.raises(UserError, match="another study is running there"):
            queue.run(done, quiet)
    finally:
        other.kill()
        other.wait()
