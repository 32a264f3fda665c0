"""The training loop: batches in, events out, and nothing lost on the way."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..adapters.files import save as save_adapter
from ..adapters.verify import prove
from ..diffusion import sampling
from ..diffusion.timesteps import draw, fixed_draw
from ..diffusion.types import Batch, Role
from ..errors import UserError
from ..memory import device
from ..optimizers.build import learning_rates
from ..runs.control import DONE, INTERRUPTED, lock
from ..runs.files import write_atomic
from ..runs.folder import RunFolder
from . import checkpoint, distributed, recovery, step, step_time
from .adapter_metadata import metadata
from .build import build
from .health import Health
from .oom import Ladder, settle, smaller
from .progress_writer import Writer
from .pulse import Pulse
from .resume import with_its_mse
from .run_options import RunOptions, epochs
from .score import References, score, score_one_by_one
from .session import Parts
from .signals import Stopped, stop_if, stop_signals, until

if TYPE_CHECKING:
    from ..config import Config

LEFT = 2


def train(config: Config, resume: bool = False) -> int:
    """Run a whole training; returns the exit code. UserError is a person's mistake, shown in one line."""
    folder = RunFolder(Path(config.run.out) / config.run.name)
    try:
        return _lead(config, folder, resume) if distributed.place()[0] == 0 else _follow(config, folder, resume)
    finally:
        distributed.leave()


def _lead(config: Config, folder: RunFolder, resume: bool) -> int:
    """As the only process, or the first of several: the one that writes."""
    folder.make()
    with lock(folder.path), Writer(folder.path, board=_board(config.run, folder)) as writer, stop_signals() as asked:
        try:
            if not (resume or config.run.resume_from) and (folder.final.exists() or checkpoint.states(folder.state)):
                writer.warning(f"{folder.path} holds an earlier run; this begins anew, --resume would go on with it")
            writer.status("running", message="loading", now=True)
            config = with_its_mse(config, folder.state if resume else config.run.resume_from, writer.warning)
            with _fitting():
                parts = build(config, writer.say, progress=until(asked, writer.progress, whole=True))
                return Loop(parts, folder, writer, asked).run(resume)
        except Stopped as stopped:
            writer.end("stopped", writer.at, str(stopped), INTERRUPTED)
            return INTERRUPTED
        except BaseException as error:
            writer.fail(error)
            raise


@contextmanager
def _fitting() -> Iterator[None]:
    """Memory that runs out where no smaller way is left to try is said in one line."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        said = f"train: out of memory ({_first_line(error)}); `check --fit` proposes what takes less"
        raise UserError(f"{said}, and --resume goes on from what is saved") from error


def _follow(config: Config, folder: RunFolder, resume: bool) -> int:
    """As one of the others, which write nothing unless the first is dead."""
    loop = None
    with Writer(folder.path, main=False) as quiet, stop_signals() as asked:
        try:
            config = with_its_mse(config, folder.state if resume else config.run.resume_from, quiet.warning)
            loop = Loop(build(config, quiet.say), folder, quiet, asked)
            return loop.run(resume)
        except distributed.Lost as error:
            if loop is None or not recovery.take_over(loop, error):
                return LEFT
            raise
        except UserError as error:
            raise UserError(f"process {distributed.place()[0]}: {error}") from error


def _board(options: RunOptions, folder: RunFolder) -> Path:
    """Where TensorBoard's curves go."""
    if not options.log_dir:
        return folder.path / "tensorboard"
    return Path(options.log_dir) / f"{options.log_prefix}{time.strftime('%Y%m%d%H%M%S')}" / "network_train"


def _first_line(error: torch.OutOfMemoryError) -> str:
    return str(error).split("\n")[0].partition(". GPU")[0]


@dataclass
class Loop:
    """The state of a running training."""

    parts: Parts
    folder: RunFolder
    writer: Writer
    asked: threading.Event
    at: int = 0
    """Optimizer steps taken."""
    health: Health = field(init=False)
    ladder: Ladder = field(init=False)
    pulse: Pulse = field(default_factory=Pulse)
    torn: bool = False
    """An optimizer step is under way: the adapter is neither of this step nor of the next."""
    began: float = field(default_factory=time.monotonic)
    started: float = field(default_factory=time.time)
    times: list[float] = field(default_factory=list)
    references: References | None = None
    proven: bool = False
    """Whether a saved file was shown to have the trained adapter's effect; once per run."""

    def __post_init__(self) -> None:
        self.health = Health(self.parts.config.heal)
        self.ladder = Ladder(self.parts.config)

    # ------------------------------------------------------------------------------------------------- the run

    def run(self, resume: bool) -> int:
        p, config = self.parts, self.parts.config
        told: dict[str, Any] = {}
        if resume:
            told = self._restore(self.folder.state)
        elif config.run.resume_from:
            told = self._restore(Path(config.run.resume_from))
            if p.is_main:  # of what came after, in another life
                checkpoint.drop_after(self.folder.state, self.at)
        self._prepare()
        if p.is_main:
            if not told and (earlier := self.folder.set_aside()):
                self.writer.say(f"states, checkpoints and pictures of the earlier run are now in {earlier}")
            out = {"run": config.run.model_copy(update={"out": str(Path(config.run.out).absolute())})}
            write_atomic(self.folder.config, config.model_copy(update=out).to_toml().encode())
        if told and told.get("data") != p.dataset.signature:
            self.writer.warning(
                "the data, its batches or the seed are not what this run began with; the new ones count from here on"
            )
        for line in p.family.warnings():
            self.writer.warning(line)
        p.free_encoders()
        if p.dataset.fixed_draws:
            self.references = References(p)
        self.writer.start(step=self.at, total=p.total, report=p.dataset.report)
        if self.at == 0 and config.save.state_every:
            self._save_state()  # so that there is always something to go back to
        if self.at == 0 and config.sample.at_start:
            self._sample()
        device.reset_peak(p.device)
        with recovery.saving(self):
            with self.writer.bar(p.total, self.at):
                stopped = self._train()
            return self._stop() if stopped and self.at < p.total else self._finish()

    def _train(self) -> bool:
        """All steps; whether somebody asked to stop before the last."""
        p, stopped = self.parts, False
        while self.at < p.total and not stopped:
            facts = self.step()
            self.at += 1
            self.torn = False
            self.writer.event("step", self.at, **facts)
            self.writer.tick(facts)
            for line in p.watch.see(facts["terms"]):
                self.writer.warning(line)
            requests = self.folder.take_requests() if p.is_main else set()
            stopped = p.any_rank(self.asked.is_set() or "stop" in requests or p.watch.stop)
            if self.health.ill:
                recovery.roll_back(self)
            else:
                self._due(requests, stopped)
            settle(self)
        return stopped

    def _prepare(self) -> None:
        """Fill the caches, together where there are several processes, which then have to agree on what there is."""
        p, progress = self.parts, until(self.asked, self.writer.progress, whole=False)
        shared = p.world > 1 and p.config.data.cache_latents == "disk"
        for share in ((p.rank, p.world), (0, 1)) if shared else ((0, 1),):
            p.prepare(progress, share=share)
            stop_if(p.any_rank(self.asked.is_set()))
        distributed.same({"model": p.family.fingerprints["model"], "data": p.dataset.signature, "steps": str(p.total)})

    def _due(self, requests: set[str], stopped: bool) -> None:
        """What falls due after a step: adapter files, the rolling state, previews, validation."""
        config, last = self.parts.config, self.at >= self.parts.total
        if last or stopped:
            return
        save, sample, validation = config.save, config.sample, config.validation
        epoch, within = divmod(self.at, self.parts.dataset.steps_per_epoch)

        def due(steps: int, per_epochs: int) -> bool:
            """By epochs where that is given, else by steps."""
            return not within and epoch % per_epochs == 0 if per_epochs else _every(steps, self.at)

        files = []
        if due(0, max(1, epochs(self.parts.total, self.parts.dataset.steps_per_epoch) // save.times) if save.times
               else save.every_epochs):  # fmt: skip
            files.append(self.folder.epoch(epoch))
        if _every(save.every, self.at) or "save" in requests:
            files.append(self.folder.checkpoint(self.at))
        for path in files:
            self._save_adapter(path)
        rolling = _every(save.state_every, self.at) and not self.health.streak
        if rolling or "save" in requests or (files and save.state_with_files):
            self._save_state()
        if due(sample.every, sample.every_epochs) or "sample" in requests:
            self._sample()
        if due(validation.every, validation.every_epochs):
            self._validate()

    def remember_pace(self) -> None:
        """For ``check``: how long a step took here."""
        if (p := self.parts).is_main:
            step_time.remember(p.config, p.family.denoiser, p.dataset.plan.largest[0], p.device, p.dtype, self.times)

    def _stop(self) -> int:
        self.remember_pace()
        self.writer.status("saving", message="saving, then stopping")
        self._save_state()
        self._save_adapter(self.folder.checkpoint(self.at))
        why = " by objective.winner_stop" if self.parts.watch.stop else ""
        self.writer.end("stopped", self.at, f"stopped at step {self.at}{why}; go on with --resume", INTERRUPTED)
        return INTERRUPTED

    def _finish(self) -> int:
        p = self.parts
        self.remember_pace()
        self.writer.status("saving", message="saving")
        self._save_adapter(self.folder.final)
        self._save_state()
        self._validate()
        self._sample()
        texts = [prompt.text for prompt in p.prompts]
        if p.is_main and texts:
            sampling.before_after(self.folder.samples, texts, self.folder.before_after)
        seconds = time.monotonic() - self.began
        skipped = f" ({self.health.skipped} skipped)" if self.health.skipped else ""
        self.writer.end("done", self.at, f"{self.at} steps{skipped} in {_clock(seconds)}: {self.folder.final}", DONE)
        return DONE

    # ------------------------------------------------------------------------------------------------- a step

    def step(self) -> dict[str, Any]:
        """One optimizer step, in a smaller way when memory runs out. The facts of its event."""
        p, started = self.parts, time.monotonic()
        rate = p.set_rate(self.at)
        while (total := self._gradients()) is None:
            pass
        sums = p.reduce(total)
        loss = sums.pop("loss")
        norm = p.gradient_norm()
        if math.isfinite(loss) and math.isfinite(norm):
            self.torn = True
            p.optimizer_step()
            p.adapt(sums)
            if (usual := self.health.good(loss)) is not None:
                self.writer.event("spike", self.at + 1, loss=loss, usual=usual)
        else:
            self._skip(loss, norm)
        means = p.means(sums)
        self.times = [*self.times[-49:], time.monotonic() - started]
        for line in self.pulse.see(self.times[-1], device.spilled(p.device)):
            self.writer.warning(line)
        each = sum(self.times) / len(self.times)
        return {
            "loss": loss, "lr": rate, "rates": learning_rates(p.optimizer),
            "grad_norm": norm, "epoch": self.at // p.dataset.steps_per_epoch, "terms": means,
            "seconds": self.times[-1], "eta": each * (p.total - self.at - 1), "gb": round(device.peak_gb(p.device), 3),
        }  # fmt: skip

    def _gradients(self) -> step.Judged | None:
        """Forward and backward; None when memory ran out and the step is to be done again, smaller (by one process)."""
        p = self.parts
        batch = p.dataset.batch(self.at)
        p.adapter.train(True)
        p.optimizer.zero_grad(set_to_none=True)
        total = step.Judged(torch.zeros((), dtype=torch.float64))
        size = -(-(p.dataset.micro_batch(self.at) or p.config.run.batch) // self.ladder.split)
        try:
            for micro in step.micro_batches(batch, size, p.rank, p.world):
                total.add(self._micro(micro.to(p.device), batch.rows.role))
            return total
        except torch.OutOfMemoryError as error:
            if p.world > 1:
                raise
            said = _first_line(error)
        smaller(self, said)  # out here, as an error holds on to all that its step has made
        return None

    def _micro(self, batch: Batch, roles: Sequence[Role]) -> step.Judged:
        """Forward and backward of one micro-batch of an effective batch with these roles."""
        p = self.parts
        seed, noise, draws = p.config.run.seed, p.config.noise, p.dataset.fixed_draws
        if draws:
            visits = p.dataset.visits(self.at)
            part = [visits[group] for group in batch.rows.group.tolist()]
            chance = fixed_draw(batch, part, draws, seed, p.process, noise, jitter=True)
        else:
            chance = draw(batch, seed, self.at, p.process, noise)
        masks = seed + (self.at << 20)
        if p.config.memory.one_by_one:
            return score_one_by_one(p, self.references, batch, chance, roles, masks)
        judged = score(p, self.references, batch, chance, roles, masks)
        if judged.loss.requires_grad:
            p.scaler.scale(judged.loss).backward()
        judged.loss = judged.loss.detach()
        return judged

    def _skip(self, loss: float, norm: float) -> None:
        scale = self.parts.scaler.get_scale()
        seeking = math.isfinite(loss) and scale > 1
        self.health.skip(counts=not seeking)
        if seeking:
            said = f"its gradients overflow float16 at a scale of {scale:g}; it is skipped, and the scale halved"
            self.writer.say(f"step {self.at + 1}: {said}")
        else:
            said = f"loss {loss}, gradient norm {norm}: not a number, so the step is skipped"
            self.writer.warning(f"step {self.at + 1}: {said}")
        self.parts.skip_step()

    # ----------------------------------------------------------------------------------------------- side work

    def _save_adapter(self, path: Path) -> None:
        p = self.parts
        if not p.is_main:
            return
        with p.evaluating():
            save_adapter(path, p.adapter.for_file(p.config.save.dtype), metadata(p, self.at, self.started))
            said = prove(path, p.adapter, effect=not self.proven)
        if p.average is not None:
            second = checkpoint.averaged(path)
            with p.evaluating(), p.average.shown():
                save_adapter(second, p.adapter.for_file(p.config.save.dtype), metadata(p, self.at, self.started))
                prove(second, p.adapter, effect=False)
        if not self.proven:
            self.writer.say(f"saved and read back: {'; '.join(said)}")
        self.proven = True
        if path.parent == self.folder.checkpoints:
            checkpoint.prune_checkpoints(self.folder.checkpoints, self.folder.path.name, p.config.save)
        self.writer.event("checkpoint", self.at, path=str(path))

    def _save_state(self) -> None:
        if self.parts.is_main:
            self.write_state()

    def write_state(self) -> None:
        tensors, facts = self.parts.state()
        facts, save = {**facts, "health": self.health.state()}, self.parts.config.save
        checkpoint.save_state(self.folder.state, self.at, tensors, facts, save.keep_states, save.keep_states_steps)
        if self.references:
            self.references.save()

    def _restore(self, state: Path) -> dict[str, Any]:
        """Take up the last state of a folder; its facts."""
        tensors, facts = distributed.of_the_first(lambda: checkpoint.load_state(state))
        self.at = int(facts["step"])
        notes = [f"{name} in {state} is damaged; going on from an older state" for name in facts["damaged"]]
        notes += self.parts.load_state(tensors, facts)
        self.health.load(facts.get("health", {}))
        for note in notes:
            self.writer.warning(note)
        self.writer.say(f"resumed at step {self.at}")
        return facts

    def _sample(self) -> None:
        if self.parts.is_main and self.parts.prompts:
            self._if_it_fits("previews", "sample.width and sample.height", self._draw_previews)

    def _validate(self) -> None:
        """The loss on held-out pictures, per level, at noise that never changes."""
        batches = self.parts.dataset.validation_batches(self.parts.config.run.batch)
        batches = batches[: self.parts.config.validation.max_batches]
        if batches and self.parts.is_main:
            self._if_it_fits("validation", "run.batch", lambda: self._hold_out(batches))

    def _if_it_fits(self, what: str, lower: str, work: Callable[[], None]) -> None:
        """Work that a run can do without, left out when memory runs out in it."""
        try:
            work()
            return
        except torch.OutOfMemoryError as error:
            said = _first_line(error)
        device.release(self.parts.device)
        self.writer.warning(f"step {self.at}: out of memory ({said}): no {what} this time; a lower {lower} takes less")

    def _draw_previews(self) -> None:
        p = self.parts
        p.adapter.train(False)
        with p.evaluating():
            for index, prompt in enumerate(p.prompts):
                if self.asked.is_set() and self.at < p.total:
                    stop_if(p.world == 1 and not self.at)
                    return
                path = sampling.picture_path(self.folder.samples, self.at, index)
                facts = {"run": p.config.run.name, "step": self.at}
                sampling.save_picture(p.picture(prompt), path, prompt, facts)
                self.writer.event("sample", self.at, path=str(path), prompt=prompt.text, seed=prompt.seed)
        sampling.grid(self.folder.samples, [prompt.text for prompt in p.prompts])

    def _hold_out(self, batches: list[Batch]) -> None:
        p, options = self.parts, self.parts.config.validation
        p.adapter.train(False)
        found: dict[str, Any] = {}
        roles: list[Role] = [role for batch in batches for role in batch.rows.role]
        with torch.no_grad(), p.evaluating():
            for part in range(options.levels):
                total, level = step.Judged(torch.zeros((), dtype=torch.float64)), 0.0
                for cpu_batch in batches:
                    batch = cpu_batch.to(p.device)
                    chance = fixed_draw(batch, part, options.levels, options.seed, p.process, p.config.noise)
                    level = float(chance.level[0])
                    total.add(score(p, None, batch, chance, roles, options.seed))
                found[f"{level:g}"] = {**p.means(total.sums, total.counts), "loss": float(total.loss)}
        each = {name: [row[name] for row in found.values() if name in row] for row in found.values() for name in row}
        means = {name: sum(values) / len(values) for name, values in each.items()}
        self.writer.held_out(self.at, means, found)


def _every(period: int, at: int) -> bool:
    return period > 0 and at % period == 0


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"
