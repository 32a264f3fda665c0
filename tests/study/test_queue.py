"""A study at work on a tiny model: what it leaves, what it keeps, and what it says when something changes or fails."""

from __future__ import annotations

import errno
import json
import shutil

import pytest
import short_runs as runs

from pixelkiln.trainer.commands.study import seconds
from pixelkiln.trainer.config import load
from pixelkiln.trainer.errors import UserError
from pixelkiln.trainer.runs.control import DONE, INTERRUPTED
from pixelkiln.trainer.runs.files import NotWritten
from pixelkiln.trainer.runs.folder import RunFolder
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


def changed(home, before, after):
    """The finished study with a change in its file, as a new start meets it."""
    text = (home / "first.toml").read_text("utf-8")
    assert before in text
    (home / "changed.toml").write_text(text.replace(before, after, 1), "utf-8")
    return plan.make(*options.read(home / "changed.toml"))


@pytest.mark.parametrize(("before", "after", "line"), [
    ('"run.steps" = 5', '"run.steps" = 4', r"arms: 'more' has .* \(run\.steps was 5 and is 4\); give the arm or"),
    ("rank = 2", "rank = 2\nalpha = 1.0", r"arms: 'plain' has .* \(adapter\.alpha was not set and is 1\.0\)"),
    ("held_out = 0.4", "held_out = 0.6", r"arms: 'plain' has .* \(data\.validation_split was 0\.4 and is 0\.6\)"),
])  # fmt: skip
def test_finished_cells_are_not_taken_for_those_of_a_changed_recipe(home, done, before, after, line):
    """Neither by a start nor by a report."""
    made = changed(home, before, after)
    for start in (lambda: queue.run(made, quiet), lambda: queue.Queue(made, quiet, works=False)):
        with pytest.raises(UserError, match=f"^{line}"):
            start()
    queue.Queue(done, quiet, works=False)


@pytest.mark.parametrize("name", ["p00.txt", "p09.png"])
def test_changed_pictures_or_captions_are_not_taken_for_the_old_ones(home, done, name):
    path, kept = home / "pictures" / name, None
    if path.exists():
        kept = path.read_bytes()
        path.write_text("another caption", "utf-8")
    else:
        shutil.copy(home / "pictures" / "p00.png", path)
    try:
        made = plan.make(*options.read(home / "first.toml"))
    finally:
        path.write_bytes(kept) if kept else path.unlink()
    with pytest.raises(UserError, match=r"^data: pictures, captions or what is held out have changed since"):
        queue.run(made, quiet)


def test_what_is_lost_is_made_again_and_nothing_else(done):
    """An adapter's file; values that were torn."""
    cell = queue.Cell(done, done.arms[1], 0)
    file, torn = cell.adapter, cell.folder / "errors.json"
    kept = file.read_bytes(), torn.read_bytes()
    torn.write_bytes(kept[1][:50])
    assert [name for name, _ in queue.Queue(done, quiet)._missing(cell)] == ["errors"]
    file.unlink()
    assert not cell.trained and not queue.Queue(done, quiet).finished(cell)
    outcome = queue.Queue(done, quiet, works=False).outcome()
    file.write_bytes(kept[0])
    torn.write_bytes(kept[1])
    assert [arm.seeds for arm in outcome.arms] == [1, 0, 1, 1]
    assert queue.Queue(done, quiet).finished(cell)


def test_every_arm_is_measured_as_the_base_configuration_says(home, done, monkeypatch):
    """Whatever resolution, precision or sampler an arm trains with."""
    asked = []
    monkeypatch.setattr(queue.measure, "bench", lambda config, *_: asked.append(config))
    arm = (
        '[[arms]]\nname = "other"\noptions = { "data.resolution" = 128, "sample.steps" = 3, "run.precision" = "bf16" }'
    )
    made = changed(home, "[measures]", f"{arm}\n[measures]")
    cell = queue.Cell(made, made.arms[-1], 0)
    monkeypatch.setattr(queue.Cell, "content", lambda self: "x")
    monkeypatch.setattr(queue.Queue, "_found", lambda *_: [])
    queue.Queue(made, quiet)._measure(cell)
    shutil.rmtree(cell.folder)
    (config,) = asked
    assert (config.data, config.sample, config.run.precision) == (made.config.data, made.config.sample, "auto")


def test_results_that_are_not_in_the_file_any_more_are_told(home, done):
    made = changed(home, '[[arms]]\nname = "base"\nuntrained = true', "")
    notes = queue.Queue(made, quiet, works=False).outcome().notes
    assert any("not in this report: base, seed 0. Holm's correction does not know" in note for note in notes)
    assert not any("not in this report" in note for note in queue.Queue(done, quiet, works=False).outcome().notes)


def test_values_that_are_no_numbers_are_told(done):
    path = queue.Cell(done, done.arms[1], 0).folder / "errors.json"
    kept = path.read_text("utf-8")
    facts = json.loads(kept)
    facts["values"] = [[name, item, float("nan") if name == "latent error" else x] for name, item, x in facts["values"]]
    path.write_text(json.dumps(facts), "utf-8")
    outcome = queue.Queue(done, quiet, works=False).outcome()
    path.write_text(kept, "utf-8")
    assert any(note.startswith("'more' has values that are no finite numbers, and are left out: latent error (2)")
               for note in outcome.notes)  # fmt: skip
    assert "more" not in [row.arm for row in outcome.rows() if row.measure.name == "latent error"]


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
    for _ in range(2):  # told again by a report of its own
        text = (made.folder / "report.md").read_text("utf-8")
        assert (
            "more, seed 0 has no result: train: diverged; lower the rate. Seeds that an arm lacks are left out" in text
        )
        queue.Queue(made, quiet, works=False).report()
    assert queue.Queue(made, quiet).finished(queue.Cell(made, made.arms[0], 0))


def test_a_full_disk_ends_the_study_and_not_an_arm(home, monkeypatch):
    """Every other cell would train for hours and fail in the same way."""
    made, trained = planned(home, "full", seeds=1), []

    def full(config, resume=False):
        trained.append(config.run.name)
        raise NotWritten(home / "x", errno.ENOSPC)

    monkeypatch.setattr(queue, "train", full)
    with pytest.raises(UserError, match="free some space there"):
        queue.run(made, quiet)
    assert len(trained) == 1 and not list(made.folder.glob("cells/*/failed.json"))


def test_a_report_times_no_arm(home, monkeypatch):
    made = planned(home, "untimed", first='equal = "time"', seeds=1)
    monkeypatch.setattr(queue.Queue, "_seconds_per_step", None)
    assert queue.Queue(made, quiet, works=False).steps == {} and not made.folder.exists()


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
    assert (made.folder / "runs" / "plain-seed0-timing").is_dir()


@pytest.mark.slow
def test_timing_takes_the_first_steps_of_a_whole_run_and_a_stopped_one_is_refused(home, monkeypatch):
    made = planned(home, "timing-whole", first='equal = "time"', seeds=1)
    monkeypatch.setattr(queue, "TIMED", 2)
    steps = queue.Queue(made, quiet).steps
    timing = RunFolder(made.folder / "runs" / "more-seed0-timing")
    assert load(timing.config).run.steps == 5 and len(queue._seconds(timing)) == 2
    monkeypatch.setattr(queue, "train", lambda config, until: INTERRUPTED)
    assert queue.Queue(made, quiet).steps == steps, "known steps are kept"
    (made.folder / "steps.json").unlink()
    with pytest.raises(UserError, match="equal: the timing of 'plain' was stopped; start the study again"):
        queue.Queue(made, quiet)


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
    assert at_work.work() == DONE and at_work.planned == 3, "a second start has the same seeds"
    assert Fake(made, quiet).planned == 40 and Fake(made, quiet, budget=100.0).planned == 40
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
