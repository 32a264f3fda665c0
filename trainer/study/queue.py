"""The cells of a study, one after another: train, measure, report. Whatever is there already is kept.

    runs/ARM-seedN/       an ordinary run's folder
    cells/ARM-seedN/      what was drawn, and a file of values for each group of measures
    cells/base-seedN/     neutral prompts, drawn by the base
    truth/                of a study of dense runs: the true maps of the contact sheet
    report.html, report.md, values.csv, summary.json, vote.html

A group of measures is kept with a digest of all that it follows from (the adapter's tensors, prompts, settings), so a
study that was killed at any point, or changed, does again what is missing or stale, and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch

from ..adapters import files
from ..config import Config
from ..errors import UserError
from ..memory import device as memory
from ..runs.control import DONE
from ..runs.events import read_events, read_object
from ..runs.files import make_folder, write_atomic
from ..runs.folder import RunFolder
from ..runs.process import locked
from ..training import checkpoint
from ..training.build import scan
from ..training.loop import train
from ..training.run_options import total_steps
from . import decoding, maps, measure, vote_page, votes
from . import memory as memory_plan
from .measure import Bench, Found
from .models import Pictures
from .plan import Plan, PlannedArm, digest, dotted, tellable
from .report import Arm, Cost, Outcome, Sheet, clock, every_nth, markdown, page, summary_text
from .values import Value, to_csv

FAILED = "failed.json"
"""In a cell's folder: why it has no result."""
TIMED, WARM_UP = 24, 4
"""Steps of a timing run, and those of them that do not count."""
Log = Callable[[str], None]


@dataclass(frozen=True)
class Cell:
    """One arm at one seed."""

    plan: Plan
    arm: PlannedArm
    seed: int

    @property
    def name(self) -> str:
        return f"{self.arm.name}, seed {self.seed}"

    @property
    def folder(self) -> Path:
        return self.plan.folder / "cells" / self.plan.run_name(self.arm, self.seed)

    @property
    def run(self) -> RunFolder:
        return RunFolder(self.plan.folder / "runs" / self.plan.run_name(self.arm, self.seed))

    @property
    def adapter(self) -> Path | None:
        """The file to measure; None for the base alone."""
        given = self.arm.given
        if given.untrained:
            return None
        if given.adapters:
            return Path(given.adapters[self.plan.options.seed_list.index(self.seed)])
        return Path(given.adapter) if given.adapter else self.run.final

    @property
    def trained(self) -> bool:
        """Whether there is nothing to train, or it is done."""
        if not self.arm.given.trains:
            return True
        return read_object(self.run.path / "study.json").get("done") is True and self.run.final.exists()

    def content(self) -> str:
        """Of the adapter's tensors, whatever the file says beside them."""
        if self.adapter is None:
            return "base"
        return _content(self.adapter, self.adapter.stat().st_mtime_ns)


@lru_cache(maxsize=1024)
def _content(path: Path, _changed: int) -> str:
    tensors, _ = files.read(path)
    whole = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        whole.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        whole.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()[:24]


def run(plan: Plan, log: Log, budget: float | None = None) -> int:
    """Do what is missing and report after every cell; returns the exit code.

    ``budget``: seconds for the whole study, with what earlier calls took. Seeds are begun as long as one more of them
    fits; the first always is.
    """
    make_folder(plan.folder, "out")
    with locked(plan.folder / ".lock") as held:
        if not held:
            raise UserError(f"{plan.folder}: another study is running there; wait for it, or give another name")
        return Queue(memory_plan.shared(plan, log), log, budget).work()


class Queue:
    """A study at work."""

    def __init__(self, plan: Plan, log: Log, budget: float | None = None, works: bool = True):
        """``works``: False for one that only reports, and so measures no time of an arm.

        :raises UserError: what is there was made from another configuration, or from other data.
        """
        self.plan, self.log, self.budget = plan, log, budget
        self.failed: dict[str, str] = {}
        self.steps = self._equal_times(works)
        self._nets: dict[str, Pictures] = {}
        for arm, seed in plan.cells:
            self._check_same(Cell(plan, arm, seed))

    def work(self) -> int:
        seeds = self.plan.seeds
        for number, seed in enumerate(seeds):
            if not self._fits(number):
                self.log(
                    f"budget: {clock(self._spent())} of {clock(self.budget or 0)} are used; {number} seeds are done"
                )
                break
            for arm in self.plan.arms:
                cell = Cell(self.plan, arm, seed)
                if self.finished(cell):
                    continue
                self.log(f"{cell.name}{self._left(cell)}")
                began = time.monotonic()
                try:
                    if (code := self._train(cell)) != DONE:
                        self.report()
                        return code
                    self._measure(cell)
                except UserError as error:
                    if isinstance(error, Stale | OSError):  # of a full disk no other cell would come out better
                        raise
                    self.failed[cell.name] = str(error).split("\n")[0]
                    self.log(f"{cell.name}: {error}")
                    why = {"v": 1, "why": self.failed[cell.name], "wall": time.monotonic() - began}
                    write_atomic(make_folder(cell.folder) / FAILED, json.dumps(why))
                    continue
                (cell.folder / FAILED).unlink(missing_ok=True)
                facts = read_object(cell.folder / "cell.json")
                wall = facts.get("wall", 0.0) + time.monotonic() - began
                known = {"v": 1, "wall": wall, "arm": arm.name, "seed": seed}
                write_atomic(cell.folder / "cell.json", json.dumps(known))
                self.report()
        self.report()
        if self.failed:
            raise UserError("\n".join(f"{name}: {why}" for name, why in self.failed.items()))
        return DONE

    # ------------------------------------------------------------------------------------------------ time

    def _wall(self, arm: PlannedArm) -> list[float]:
        """Seconds of an arm's finished cells."""
        cells = [Cell(self.plan, arm, seed) for seed in self.plan.seeds]
        return [wall for cell in cells if (wall := read_object(cell.folder / "cell.json").get("wall"))]

    def _spent(self) -> float:
        """Seconds of all cells, with those that failed."""
        failed = [
            read_object(Cell(self.plan, arm, seed).folder / FAILED).get("wall", 0.0) for arm, seed in self.plan.cells
        ]
        return sum(sum(self._wall(arm)) for arm in self.plan.arms) + sum(failed)

    @property
    def planned(self) -> int:
        """Seeds, of which fewer may fit into the budget: by what those that are done took, once there is one."""
        done = self._complete()
        if self.budget is None or not done:
            return len(self.plan.seeds)
        return min(len(self.plan.seeds), max(done, int(self.budget / (self._spent() / done))))

    def _complete(self) -> int:
        """How many seeds all arms have, from the first on."""
        cells = ([Cell(self.plan, arm, seed) for arm in self.plan.arms] for seed in self.plan.seeds)
        return sum(1 for _ in takewhile(lambda some: all(map(self.finished, some)), cells))

    def _fits(self, seeds_done: int) -> bool:
        """Whether another seed of all arms fits into the budget."""
        if self.budget is None or not seeds_done:
            return True
        if all(self.finished(Cell(self.plan, arm, self.plan.seeds[seeds_done])) for arm in self.plan.arms):
            return True
        spent = self._spent()
        each = spent / seeds_done
        if seeds_done == 1:
            fitting = max(1, min(len(self.plan.seeds), int(self.budget / each)))
            self.log(f"budget: one seed of all arms takes {clock(each)}, so {fitting} fit into {clock(self.budget)}")
        return spent + each <= self.budget

    def _left(self, now: Cell) -> str:
        """How far it is, and how long what is left takes."""
        cells = [Cell(self.plan, arm, seed) for arm, seed in self.plan.cells]
        open_ = [cell for cell in cells if not self.finished(cell)]
        known = {arm.name: walls for arm in self.plan.arms if (walls := self._wall(arm))}
        place = f": cell {len(cells) - len(open_) + 1} of {len(cells)}"
        if not known:
            return place
        every = [wall for walls in known.values() for wall in walls]
        mean = {name: sum(walls) / len(walls) for name, walls in known.items()}
        left = sum(mean.get(cell.arm.name, sum(every) / len(every)) for cell in open_)
        return f"{place}, about {clock(left)} left"

    # ------------------------------------------------------------------------------------------------ training

    def config(self, cell: Cell) -> Config:
        return self.plan.run_config(cell.arm, cell.seed, self.steps.get(cell.arm.name))

    def _train(self, cell: Cell) -> int:
        if cell.trained:
            return DONE
        config = self.config(cell)
        make_folder(cell.run.path, "out")
        facts: dict[str, Any] = {"v": 1, "config": _trained_by(config), "data": self.plan.data, "set": _set(config)}
        write_atomic(cell.run.path / "study.json", json.dumps(facts))
        resume = bool(cell.run.state.is_dir() and checkpoint.states(cell.run.state))
        code = train(memory_plan.planned(self._as_begun(cell, config), self.plan.found, self.log), resume=resume)
        if code == DONE:
            write_atomic(cell.run.path / "study.json", json.dumps({**facts, "done": True}))
        return code

    def _as_begun(self, cell: Cell, config: Config) -> Config:
        """With what the runs of the study that are there settled about decoding, in the order of its cells."""
        cells = [Cell(self.plan, arm, seed) for arm, seed in self.plan.cells if arm.given.trains]
        cells = [one for one in cells if one.run.path != cell.run.path]
        same = [*(one.run for one in cells if one.arm.name == cell.arm.name), self._timing(cell.arm)]
        return decoding.as_begun(config, same, [(self.config(one), one.run) for one in cells])

    def _check_same(self, cell: Cell) -> None:
        """Stale where the cell's run was begun with other options, or on other pictures."""
        known = read_object(cell.run.path / "study.json")
        if not cell.arm.given.trains or not known:
            return
        config = self.config(cell)
        if known.get("config") not in (None, _trained_by(config)):
            what = _difference(known.get("set"), _set(config))
            raise Stale(
                f"arms: '{cell.arm.name}' has changed since {cell.run.path} was begun{what}; give the arm or the study "
                "another name, or delete that folder"
            )
        if known.get("data") not in (None, self.plan.data):
            raise Stale(
                f"data: pictures, captions or what is held out have changed since {cell.run.path} was begun, so its "
                "results are not comparable; put them back, or give the study another name"
            )

    def _equal_times(self, works: bool) -> dict[str, int]:
        """Steps of the arms that are to take as long as the first, measured once. ``works``: False takes only what is
        known."""
        timed, path = [arm for arm in self.plan.arms if arm.equal_time], self.plan.folder / "steps.json"
        if not works:
            steps = {arm.name: read_object(path).get(arm.name, {}).get("steps") for arm in timed}
            return {name: count for name, count in steps.items() if count}
        if not timed:
            return {}
        make_folder(self.plan.folder)
        first, known = self.plan.arms[0], read_object(path)
        budget = total_steps_of(self.plan, first)
        for arm in timed:
            key = digest(_trained_by(self.plan.run_config(arm, 0)), _trained_by(self.plan.run_config(first, 0)))
            if known.get(arm.name, {}).get("key") != key:
                each = {one.name: self._seconds_per_step(one) for one in (first, arm)}
                steps = max(1, round(budget * each[first.name] / each[arm.name]))
                known[arm.name] = {"key": key, "steps": steps, "seconds": each[arm.name], "first": each[first.name]}
                write_atomic(path, json.dumps(known))
        return {arm.name: known[arm.name]["steps"] for arm in timed}

    def _seconds_per_step(self, arm: PlannedArm) -> float:
        """Of the first steps of a run that is as long as the arm's, since what it trains by may follow from that."""
        config, folder = self.plan.run_config(arm, 0), self._timing(arm)
        config = config.model_copy(update={"run": config.run.model_copy(update={"name": folder.path.name})})
        count = min(TIMED, total_steps_of(self.plan, arm))
        self.log(f"{arm.name}: timing {count} steps")
        shutil.rmtree(folder.path, ignore_errors=True)  # of a timing that was stopped
        train(memory_plan.planned(config, self.plan.found, self.log), until=count)
        seconds = list(_seconds(folder).values())
        if len(seconds) < count:
            raise UserError(f"equal: the timing of '{arm.name}' was stopped; start the study again")
        steady = seconds[WARM_UP:] or seconds
        return sum(steady) / len(steady)

    def _timing(self, arm: PlannedArm) -> RunFolder:
        return RunFolder(self.plan.folder / "runs" / f"{self.plan.run_name(arm, 0)}-timing")

    # ------------------------------------------------------------------------------------------------ measuring

    def parts(self, cell: Cell) -> dict[str, str]:
        """The groups of measures of a cell, and the digest of what each follows from."""
        plan, options = self.plan, self.plan.options.measures
        config = plan.config
        drawing = [config.sample.model_dump(), config.data.resolution, plan.prompts, cell.seed]
        whole = [cell.content(), config.model.model_dump(), config.run.precision, cell.seed]
        held = [plan.held, config.data.model_dump()]
        if config.dense:
            return {"maps": digest(whole, held)}
        found = {"errors": digest(whole, held, options.levels, options.pixel_levels)}
        if config.data.pairs:
            found["pairs"] = digest(whole, held, options.levels)
        found["real"] = digest(whole, drawing, held, options.features)
        if options.captions:
            found["alignment"] = digest(whole, drawing, options.captions, options.caption_levels)
        if options.neutral:
            found["drift"] = digest(whole, drawing, options.neutral)
        if options.scores:
            found["scores"] = digest(whole, drawing, options.scores)
        return found

    def finished(self, cell: Cell) -> bool:
        return cell.trained and (cell.adapter is None or cell.adapter.exists()) and not self._missing(cell)

    def _missing(self, cell: Cell) -> list[tuple[str, str]]:
        missing = []
        for name, key in self.parts(cell).items():
            known = read_object(cell.folder / f"{name}.json")
            if known.get("key") != key or known.get("data") not in (None, self.plan.data):
                missing.append((name, key))
        return missing

    def _measure(self, cell: Cell) -> None:
        missing = self._missing(cell)
        if not missing:
            return
        plan, adapter = self.plan, cell.adapter
        alike = {name: getattr(plan.config, name) for name in ("data", "sample", "noise", "run")}
        config = self.config(cell).model_copy(update=alike)  # whatever an arm trains with, it is measured as all are
        if config.dense:
            self._measure_maps(cell, config, missing)
            return
        one = measure.bench(config, adapter and str(adapter), plan.held, plan.prompts, cell.seed,
                            plan.options.measures, self.log)  # fmt: skip
        for name, key in missing:
            began = time.monotonic()
            self._keep(cell, name, key, self._found(name, cell, one), began)
        del one
        memory.release(memory.choose_device(config.run.device))

    def _measure_maps(self, cell: Cell, config: Config, missing: list[tuple[str, str]]) -> None:
        plan, began = self.plan, time.monotonic()
        assert cell.adapter is not None
        shown = every_nth(len(plan.held))
        found = maps.measured(config, cell.adapter, plan.held, shown, cell.folder / "pictures", plan.folder / "truth",
                              self.log)  # fmt: skip
        for name, key in missing:
            self._keep(cell, name, key, found, began)
        memory.release(memory.choose_device(config.run.device))

    def _keep(self, cell: Cell, name: str, key: str, found: Found, began: float) -> None:
        facts = {"v": 1, "key": key, "data": self.plan.data, "seconds": time.monotonic() - began, "values": found}
        write_atomic(make_folder(cell.folder) / f"{name}.json", json.dumps(facts))

    def _found(self, name: str, cell: Cell, one: Bench) -> Found:
        plan, options = self.plan, self.plan.options.measures
        count, prompts = len(plan.prompts), list(plan.prompts)
        facts = {"study": plan.options.name, "adapter": cell.content()}

        def pictures() -> list[Path]:
            return measure.drawn(one, cell.folder / "pictures", count, facts)

        match name:
            case "errors":
                return measure.held_out_errors(one)
            case "pairs":
                return measure.pairs_in_order(one)
            case "real":
                nets = [(self._called(folder), self._net(folder, one, False)) for folder in options.features]
                return measure.against_real(one, pictures(), nets)
            case "alignment":
                return measure.alignment(one, pictures(), prompts)
            case "drift":
                base = plan.folder / "cells" / f"base-seed{cell.seed}"
                by_base = measure.drawn_by_base(one, base, count, {**facts, "adapter": "base"})
                return measure.drift(measure.drawn_neutral(one, cell.folder / "neutral", count, facts), by_base)
            case "scores":
                nets = [(self._called(folder), self._net(folder, one, True)) for folder in options.scores]
                return [row for called, net in nets for row in measure.scored(called, net, pictures(), prompts)]
        raise AssertionError(name)

    def _called(self, folder: str) -> str:
        return Path(folder).name

    def _net(self, folder: str, one: Bench, scores: bool) -> Pictures:
        key = f"{folder} {scores}"
        if key not in self._nets:
            self._nets[key] = Pictures(
                folder, one.model.device, "measures.scores" if scores else "measures.features", scores
            )
        return self._nets[key]

    # ------------------------------------------------------------------------------------------------ the report

    def report(self) -> Outcome:
        """Write all files of the report from what is there."""
        outcome = self.outcome()
        folder = self.plan.folder
        write_atomic(folder / "values.csv", to_csv(outcome.values))
        write_atomic(folder / "report.md", markdown(outcome))
        write_atomic(folder / "report.html", page(outcome))
        write_atomic(folder / "summary.json", summary_text(outcome))
        if self.plan.prompts:
            write_atomic(folder / "vote.html", vote_page.page(self.plan.options.name, self._duels()))
        return outcome

    def _duels(self) -> list[vote_page.Duel]:
        """Of every seed, arm and prompt that both pictures are drawn of."""
        plan, found = self.plan, []
        first, *others = plan.arms
        for seed in plan.seeds:
            for arm in others:
                folders = [Cell(plan, one, seed).folder / "pictures" for one in (first, arm)]
                for i, text in enumerate(plan.prompts):
                    paths = [folder / f"{i:04d}.png" for folder in folders]
                    if all(path.exists() for path in paths):
                        one, other = (path.relative_to(plan.folder).as_posix() for path in paths)
                        names = (votes.candidate(first.name, seed), votes.candidate(arm.name, seed))
                        found.append(vote_page.Duel(*names, i, text, (one, other)))
        return found

    def outcome(self) -> Outcome:
        plan = self.plan
        done = {arm.name: [cell for seed in plan.seeds if self.finished(cell := Cell(plan, arm, seed))]
                for arm in plan.arms}  # fmt: skip
        values = [value for cells in done.values() for cell in cells for value in _values(cell, self.parts(cell))]
        values += votes.values(plan.folder / votes.FILE, [arm.name for arm in plan.arms], plan.seeds, len(plan.prompts))
        arms = [Arm(arm.name, arm.changes, tellable(arm.given.options), _cost(done[arm.name]), len(done[arm.name]))
                for arm in plan.arms]  # fmt: skip
        return Outcome(
            plan.options.name, arms, measure.catalogue(list(dict.fromkeys(v.measure for v in values))), values,
            _identical(plan.arms, done), self.planned, self._notes(done, values), self._facts(), self._sheets(done),
        )  # fmt: skip

    def _notes(self, done: dict[str, list[Cell]], values: Sequence[Value]) -> list[str]:
        plan, least = self.plan, min(len(cells) for cells in done.values())
        measured = "their maps" if plan.config.dense else f"{len(plan.prompts)} prompts"
        lines = [f"{len(plan.held)} held-out pictures, {measured}, seeds planned: {self.planned}."]
        if least < self.planned:
            lines.append(
                f"The study is not finished: {least} of {self.planned} seeds are done by every arm. To stop as soon as "
                "a difference is found makes false findings likelier: let it go on."
            )
        if least == 1:
            lines.append("There is one seed: what is seen may be the chance of one training. Nothing is tested.")
        lines += [f"{note}." for note in plan.notes]
        lines += [f"{name} has no result: {why}" for name, why in self._without_result().items()]
        lines += _not_finite(values)
        if line := maps.note(values, plan.arms[0].name):
            lines.append(line)
        if left_out := self._left_out():
            lines.append(
                f"Results that are in the folder and not in this report: {', '.join(left_out)}. Holm's correction does "
                "not know of them."
            )
        for name, steps in self.steps.items():
            lines.append(f"'{name}' has {steps} steps, which take as long as those of '{plan.arms[0].name}'.")
        return lines

    def _without_result(self) -> dict[str, str]:
        """Cells that failed, in this call or an earlier one, and why."""
        cells = [Cell(self.plan, arm, seed) for arm, seed in self.plan.cells]
        known = {cell.name: read_object(cell.folder / FAILED).get("why") for cell in cells if not self.finished(cell)}
        return {name: f"{why}. Seeds that an arm lacks are left out, which flatters one that fails." for
                 name, why in known.items() if why}  # fmt: skip

    def _left_out(self) -> list[str]:
        """Finished cells of arms or seeds that the study's file no longer has."""
        known = {(arm.name, seed) for arm, seed in self.plan.cells}
        rows = [read_object(path) for path in sorted((self.plan.folder / "cells").glob("*/cell.json"))]
        return [f"{row['arm']}, seed {row['seed']}" for row in rows
                if "arm" in row and (row["arm"], row.get("seed")) not in known]  # fmt: skip

    def _facts(self) -> dict[str, Any]:
        plan, config = self.plan, self.plan.config
        device = memory.choose_device(config.run.device)
        return {
            "family": plan.found.spec.name, "device": memory.device_name(device), "torch": torch.__version__,
            "resolution": config.data.resolution or plan.found.spec.resolution, "held_out": len(plan.held),
            "prompts": len(plan.prompts),
            "data": "maps" if config.dense else "pairs" if config.data.pairs else "pictures",
            "equal": plan.options.equal, "base": tellable(config.model_dump(
                include={"adapter", "optimizer", "schedule", "loss", "objective", "run", "dense"}, exclude_unset=True,
                exclude_none=True)),
        }  # fmt: skip

    def _sheets(self, done: dict[str, list[Cell]]) -> list[Sheet]:
        """Of the first seed that any arm has finished."""
        seeds = [cell.seed for cells in done.values() for cell in cells]
        if not seeds:
            return []
        seed = min(seeds, key=self.plan.seeds.index)
        columns = self.plan.prompts or self.plan.held
        numbers = every_nth(len(columns))
        folders = {arm.name: Cell(self.plan, arm, seed).folder / "pictures" for arm in self.plan.arms}
        folders |= {"truth": self.plan.folder / "truth"} if self.plan.config.dense else {}
        rows = []
        for name, folder in folders.items():
            paths = [path if (path := folder / f"{i:04d}.png").exists() else None for i in numbers]
            rows.append((name, tuple(paths)))
        return [Sheet(seed, tuple(columns[i] for i in numbers), tuple(rows))]


class Stale(UserError):
    """What is there was made by something else: nothing is done before that is settled."""


def _trained_by(config: Config) -> str:
    """Of all that is set in a run's configuration, wherever it lies."""
    return digest(config.model_dump(exclude_unset=True, exclude={"run": {"out", "name"}}))


def _set(config: Config) -> dict[str, Any]:
    """What ``_trained_by`` is of, by dotted names, as JSON."""
    given = config.model_dump(exclude_unset=True, exclude={"run": {"out", "name"}})
    return json.loads(json.dumps(dotted(given), default=str))


def _difference(before: Any, now: dict[str, Any]) -> str:
    """The first option that is not what it was, in brackets; empty where that is not known."""
    if not isinstance(before, dict):
        return ""
    for name in sorted({**before, **now}):
        was, is_ = (json.dumps(one[name], ensure_ascii=False) if name in one else "not set" for one in (before, now))
        if was != is_:
            return f" ({name} was {was} and is {is_})"
    return ""


def _not_finite(values: Sequence[Value]) -> list[str]:
    """A line for each arm that has values which are no numbers."""
    found: dict[str, dict[str, int]] = {}
    for one in values:
        if not math.isfinite(one.value):
            of_arm = found.setdefault(one.arm, {})
            of_arm[one.measure] = of_arm.get(one.measure, 0) + 1
    return [
        f"'{arm}' has values that are no finite numbers, and are left out: "
        + ", ".join(f"{measure} ({count})" for measure, count in counts.items()) + ". It may have diverged."
        for arm, counts in found.items()
    ]  # fmt: skip


def total_steps_of(plan: Plan, arm: PlannedArm) -> int:
    """Steps of an arm as configured."""
    run = arm.config.run
    if not run.epochs:
        return run.steps or 1000
    dataset = scan(arm.config, found=plan.found, remember=False)[1]
    return total_steps(run, dataset.steps_per_epoch, dataset.batches_per_epoch(run.accumulation))


def _seconds(folder: RunFolder) -> dict[int, float]:
    """Of each training step; of a step that was repeated after a kill, the last time."""
    events = read_events(folder.path / "events.jsonl")[0]
    return {event["step"]: event["seconds"] for event in events if event["kind"] == "step"}


def _values(cell: Cell, parts: dict[str, str]) -> list[Value]:
    rows = [row for part in parts for row in read_object(cell.folder / f"{part}.json").get("values", [])]
    return [Value(name, cell.arm.name, cell.seed, item, float(value)) for name, item, value in rows]


def _cost(cells: Sequence[Cell]) -> Cost | None:
    if not cells or not cells[0].arm.given.trains:
        return None
    seconds = [_seconds(cell.run) for cell in cells]
    peaks = [max((event.get("gb", 0.0) for event in read_events(cell.run.path / "events.jsonl")[0]
                  if event["kind"] == "step"), default=0.0) for cell in cells]  # fmt: skip
    measuring = [sum(read_object(path).get("seconds", 0.0) for path in cell.folder.glob("*.json")) for cell in cells]
    count = len(cells)
    return Cost(sum(map(len, seconds)) / count, sum(sum(s.values()) for s in seconds) / count, max(peaks),
                sum(measuring) / count)  # fmt: skip


def _identical(arms: Sequence[PlannedArm], done: dict[str, list[Cell]]) -> frozenset[str]:
    """Arms whose tensors are those of the first at every seed that both have."""
    first = {cell.seed: cell.content() for cell in done[arms[0].name]}
    same = set()
    for arm in arms[1:]:
        pairs = [(first[cell.seed], cell.content()) for cell in done[arm.name] if cell.seed in first]
        if pairs and all(one == other for one, other in pairs):
            same.add(arm.name)
    return frozenset(same)
