"""The training loop: a run from start to end, its checkpoints, previews and validation, and what goes wrong in it."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from ..adapters.files import save as save_adapter
from ..adapters.verify import verify
from ..data.prune import prune
from ..diffusion import sampling
from ..diffusion.timesteps import fixed_draw, step_correction
from ..diffusion.types import Batch, Role
from ..errors import UserError
from ..memory import device as memory
from ..runs.check_report import clock, counted_noun
from ..runs.control import DONE, INTERRUPTED, lock
from ..runs.files import write_atomic
from ..runs.folder import RunFolder
from . import checkpoint, distributed, step_time
from .adapter_metadata import metadata
from .build import Examined, build_session
from .health import Health
from .monitors import StepTimeMonitor
from .oom import OutOfMemoryFallback, fill_with_blocks
from .profiling import Profiler
from .progress_writer import ProgressWriter
from .recovery import Diverged, roll_back
from .reference_cache import ReferenceCache
from .resume import keep_trained_mse, kept_attention
from .run_options import RunOptions, epochs
from .session import Session
from .signals import StoppedEarly, stop_if, stop_signals, stoppable
from .step import StepLoss, backward_row_by_row, compute_loss, micro_batches
from .surrogates import Settler, decode_facts

if TYPE_CHECKING:
    from ..config import Config

PEER_DIED = 2


Planner: TypeAlias = "Callable[[Config, bool, Examined | None, Callable[[str], None]], tuple[Config, Examined | None]]"
"""Chooses memory options before the run begins, from (configuration, resume, what is examined, where lines go)."""


def train(
    config: Config, resume: bool = False, examined: Examined | None = None, profiler: Profiler | None = None,
    planner: Planner | None = None, until: int | None = None,
) -> int:  # fmt: skip
    """Run a whole training; returns the exit code. Raises UserError for a person's mistake, shown in one line.

    ``examined``: the model and the data, where ``check`` has read them already. ``planner``: what ``memory.plan``
    asks for; without one, options are as they are. ``until``: the step after which it is stopped, as on request.
    """
    folder = RunFolder(Path(config.run.out) / config.run.name)
    plan = planner if planner and config.memory.plan == "auto" else _as_it_is
    try:
        if distributed.rank_and_world()[0] == 0:
            return _lead(config, folder, resume, examined, profiler or Profiler(), plan, until)
        return _follow(config, folder, resume, plan, until)
    finally:
        distributed.finalize()


def _as_it_is(
    config: Config, resume: bool, examined: Examined | None, say: Callable[[str], None]
) -> tuple[Config, Examined | None]:
    return config, examined


def _lead(
    config: Config, folder: RunFolder, resume: bool, examined: Examined | None, profiler: Profiler, plan: Planner,
    until: int | None,
) -> int:  # fmt: skip
    """As the only process, or the first of several: the one that writes."""
    folder.make()
    board = _tensorboard_folder(config.run, folder)
    with lock(folder.path), ProgressWriter(folder.path, board=board) as writer, stop_signals() as stop_requested:
        try:
            if not (resume or config.run.resume_from) and (folder.final.exists() or checkpoint.states(folder.state)):
                writer.warning(f"{folder.path} holds an earlier run. Starting over; use --resume to continue")
            writer.status("running", message="loading", now=True)
            state = folder.state if resume else config.run.resume_from
            config = keep_trained_mse(config, state, writer.warning)
            with _out_of_memory_is_one_line():
                config, examined = plan(config, resume, examined, writer.log)
                progress = stoppable(writer.progress, stop_requested, whole=True)
                session = build_session(config, writer.log, progress, examined, kept_attention(state))
                return Loop(session, folder, writer, stop_requested, profiler=profiler, until=until).run(resume)
        except StoppedEarly as stopped:
            writer.end("stopped", writer.at, str(stopped), INTERRUPTED)
            return INTERRUPTED
        except BaseException as error:
            writer.fail(error)
            raise


@contextmanager
def _out_of_memory_is_one_line() -> Iterator[None]:
    """Where no smaller way is left to try."""
    try:
        yield
    except RuntimeError as error:
        if not memory.is_out_of_memory(error):
            raise
        line = f"train: out of memory ({_first_line(error)}); `check --fit` proposes what takes less"
        raise UserError(f"{line}, and --resume continues from what is saved") from error


def _follow(config: Config, folder: RunFolder, resume: bool, plan: Planner, until: int | None) -> int:
    """As one of the other processes, which write nothing unless the first is dead."""
    loop = None
    with ProgressWriter(folder.path, main=False) as quiet, stop_signals() as stop_requested:
        try:
            state = folder.state if resume else config.run.resume_from
            config = keep_trained_mse(config, state, quiet.warning)
            config, _ = plan(config, resume, None, quiet.log)
            loop = Loop(build_session(config, quiet.log), folder, quiet, stop_requested, until=until)
            return loop.run(resume)
        except distributed.ProcessLost as error:
            if loop is None or not loop.save_for_the_first(error):
                return PEER_DIED
            raise
        except UserError as error:
            raise UserError(f"process {distributed.rank_and_world()[0]}: {error}") from error


def _tensorboard_folder(options: RunOptions, folder: RunFolder) -> Path:
    if not options.log_dir:
        return folder.path / "tensorboard"
    return Path(options.log_dir) / f"{options.log_prefix}{time.strftime('%Y%m%d%H%M%S')}" / "network_train"


def _first_line(error: RuntimeError) -> str:
    return str(error).split("\n")[0].partition(". GPU")[0]


@dataclass
class Loop:
    """The state of a running training."""

    session: Session
    folder: RunFolder
    writer: ProgressWriter
    stop_requested: threading.Event
    steps_done: int = 0
    """Optimizer steps taken."""
    health: Health = field(init=False)
    fallback: OutOfMemoryFallback = field(init=False)
    step_times: StepTimeMonitor = field(default_factory=StepTimeMonitor)
    in_optimizer_step: bool = False
    """The adapter is neither of this step nor of the next."""
    adapter_moved: bool = False
    """Whether any step of this process had a gradient and a learning rate other than 0."""
    began: float = field(default_factory=time.monotonic)
    started: float = field(default_factory=time.time)
    times: list[float] = field(default_factory=list)
    """Seconds of the last 50 steps."""
    references: ReferenceCache | None = None
    verified: bool = False
    """Whether a saved file was compared with the trained adapter's effect; once per run."""
    profiler: Profiler = field(default_factory=Profiler)
    until: int | None = None
    """The step after which it stops as if it were asked to."""

    def __post_init__(self) -> None:
        self.health = Health(self.session.config.recovery)
        self.fallback = OutOfMemoryFallback(self.session.config)

    # ------------------------------------------------------------------------------------------------- the run

    def run(self, resume: bool) -> int:
        s, config = self.session, self.session.config
        resumed: dict[str, Any] = {}
        if resume:
            resumed = self._load_state(self.folder.state)
        elif config.run.resume_from:
            resumed = self._load_state(Path(config.run.resume_from))
            if s.is_main:  # states of steps that came after, in an earlier run
                checkpoint.drop_after(self.folder.state, self.steps_done)
        self._prepare()
        if s.is_main and s.dataset.cache_root is not None:
            for line in prune(s.dataset.cache_root, config.data.cache_days, config.data.cache_gb, time.time()):
                self.writer.log(line)
        Settler(s, self.folder.surrogate, resumed, self.writer.log, self.writer.warning, self.writer.progress).settle()
        config = s.config
        self.fallback = OutOfMemoryFallback(config)
        if s.is_main:
            if not resumed and (earlier := self.folder.set_aside()):
                self.writer.log(f"states, checkpoints and pictures of the earlier run are now in {earlier}")
            out = {"run": config.run.model_copy(update={"out": str(Path(config.run.out).absolute())})}
            write_atomic(self.folder.config, config.model_copy(update=out).to_toml().encode())
        if resumed and resumed.get("data") != s.dataset.signature:
            self.writer.warning(
                "the data, its batches or the seed are not those that this run began with; the new ones are used from "
                "here on"
            )
        for line in s.model.family.warnings():
            self.writer.warning(line)
        s.offload_encoders()
        if s.dataset.fixed_draws:
            self.references = ReferenceCache(s)
        self.writer.start(step=self.steps_done, total=s.total, report=s.dataset.report)
        if self.steps_done == 0 and config.save.state_every:
            self._save_state()  # so that there is always something to go back to
        if self.steps_done == 0 and config.sample.at_start:
            self._sample()
        memory.reset_peak(s.model.device)
        try:
            recording = self.profiler.recording(self.folder.path, s.model.device, self.writer.log)
            with self.writer.bar(s.total, self.steps_done), recording as step_done:
                stopped = self._train(step_done)
            return self._stop() if stopped and self.steps_done < s.total else self._finish()
        except Diverged:
            raise
        except Exception:  # whatever ends the run, the steps taken are not lost with it
            if s.is_main:
                self._save_after_error()
            raise

    def _train(self, step_done: Callable[[], None]) -> bool:
        """All steps; returns whether a stop was requested before the last. ``step_done`` is called after each."""
        s, stopped = self.session, False
        while self.steps_done < s.total and not stopped:
            facts = self.step()
            self.steps_done += 1
            self.in_optimizer_step = False
            step_done()
            self.writer.event("step", self.steps_done, **facts)
            self.writer.tick(facts)
            for line in s.monitor.update(facts["terms"]):
                self.writer.warning(line)
            requests = self.folder.take_requests() if s.is_main else set()
            asked = self.stop_requested.is_set() or "stop" in requests or self.steps_done == self.until
            stopped = s.any_rank(asked or s.monitor.stop)
            if self.health.diverged:
                self._roll_back()
            else:
                self._save_what_is_due(requests, stopped)
            if len(self.times) == 2 and (line := fill_with_blocks(s)):
                self.writer.log(line)
        return stopped

    def _prepare(self) -> None:
        """Fill the caches, together where there are several processes, which then have to agree on what there is."""
        s, progress = self.session, stoppable(self.writer.progress, self.stop_requested, whole=False)
        known = s.dataset.scan.notes.lines()
        shared = s.world > 1 and s.config.data.cache_latents == "disk"
        for share in ((s.rank, s.world), (0, 1)) if shared else ((0, 1),):
            s.prepare(progress, share=share)
            stop_if(s.any_rank(self.stop_requested.is_set()))
        for line in s.dataset.scan.notes.lines():
            if line not in known:
                self.writer.warning(line)
        facts = {"model": s.model.family.fingerprints["model"], "data": s.dataset.signature, "steps": str(s.total)}
        distributed.require_equal(facts)

    def _save_what_is_due(self, requests: set[str], stopped: bool) -> None:
        """After a step: the rolling state, adapter files, previews, validation."""
        config, last = self.session.config, self.steps_done >= self.session.total
        if last or stopped:
            return
        save, sample, validation = config.save, config.sample, config.validation
        epoch, within = divmod(self.steps_done, self.session.dataset.steps_per_epoch)

        def due(steps: int, per_epochs: int) -> bool:
            """By epochs where that is given, else by steps."""
            return not within and epoch % per_epochs == 0 if per_epochs else _every(steps, self.steps_done)

        files = []
        if due(0, max(1, epochs(self.session.total, self.session.dataset.steps_per_epoch) // save.times) if save.times
               else save.every_epochs):  # fmt: skip
            files.append(self.folder.epoch(epoch))
        if _every(save.every, self.steps_done) or "save" in requests:
            files.append(self.folder.checkpoint(self.steps_done))
        rolling = _every(save.state_every, self.steps_done) and not self.health.streak
        if rolling or "save" in requests or (files and save.state_with_files):
            self._save_state()
        for path in files:
            self._save_adapter(path)
        if due(sample.every, sample.every_epochs) or "sample" in requests:
            self._sample()
        if due(validation.every, validation.every_epochs):
            self._validate()

    def remember_step_time(self, least: int = step_time.LEAST) -> None:
        """For ``check``: how long a step took on this machine, of ``least`` steps or more."""
        if (s := self.session).is_main:
            size, model = s.dataset.plan.largest[0], s.model
            step_time.remember(s.config, model.family.denoiser, size, model.device, model.dtype, self.times, least)

    def _stop(self) -> int:
        self.remember_step_time()
        self.writer.status("saving", message="saving, then stopping")
        self._save_state()
        self._save_adapter(self.folder.checkpoint(self.steps_done))
        why = " by objective.winner_stop" if self.session.monitor.stop else ""
        message = f"stopped at step {self.steps_done}{why}; continue with --resume"
        self.writer.end("stopped", self.steps_done, message, INTERRUPTED)
        return INTERRUPTED

    def _finish(self) -> int:
        s = self.session
        self.remember_step_time()
        self.writer.status("saving", message="saving")
        self._save_state()
        self._save_adapter(self.folder.final)
        self._validate()
        self._sample()
        texts = [prompt.text for prompt in s.previews.prompts]
        if s.is_main and texts:
            with self._error_is_a_warning("no picture of before and after"):
                sampling.before_after(self.folder.samples, texts, self.folder.before_after)
        if self.times and not self.adapter_moved:
            self.writer.warning(
                "the adapter has not changed, as every gradient or learning rate was 0: check masks, alpha channels, "
                "and the learning rates"
            )
        seconds = time.monotonic() - self.began
        skipped = f" ({self.health.skipped} skipped)" if self.health.skipped else ""
        message = f"{counted_noun(self.steps_done, 'step')}{skipped} in {clock(seconds)}: {self.folder.final}"
        self.writer.end("done", self.steps_done, message, DONE)
        return DONE

    # ------------------------------------------------------------------------------------------------- a step

    def step(self) -> dict[str, Any]:
        """One optimizer step, in a smaller way when memory runs out. Returns the facts of its event."""
        s, optimization, started = self.session, self.session.optimization, time.monotonic()
        rate = optimization.set_learning_rate(self.steps_done)
        while (local := self._gradients()) is None:
            pass
        local, (norm,) = local.on_host(optimization.clip_gradients())  # the one moment that waits for the device
        total = s.reduce(local)
        loss = float(total.loss)
        if math.isfinite(loss) and math.isfinite(norm):
            self.in_optimizer_step = True
            s.optimizer_step()
            s.terms.update(total.sums, total.counts)
            self.adapter_moved |= norm > 0 and rate > 0
            if (usual := self.health.record_step(loss)) is not None:
                self.writer.event("spike", self.steps_done + 1, loss=loss, usual=usual)
        else:
            self._skip(loss, norm)
        self.times = [*self.times[-49:], time.monotonic() - started]
        for line in self.step_times.update(self.times[-1], memory.spilled(s.model.device)):
            self.writer.warning(line)
        each = sum(self.times) / len(self.times)
        return {
            "loss": loss, "lr": rate, "rates": optimization.learning_rates(),
            "grad_norm": norm, "epoch": self.steps_done // s.dataset.steps_per_epoch, "terms": total.means(),
            "seconds": self.times[-1], "eta": each * (s.total - self.steps_done - 1),
            "gb": round(memory.peak_gb(s.model.device), 3),
        }  # fmt: skip

    def _gradients(self) -> StepLoss | None:
        """Forward and backward; None when memory ran out and the step is to be done again, smaller (by one process)."""
        s = self.session
        batch = s.dataset.batch(self.steps_done)
        s.model.adapter.train(True)
        s.optimization.optimizer.zero_grad(set_to_none=True)
        total = StepLoss.zero()
        size = -(-(s.dataset.micro_batch(self.steps_done) or s.config.run.batch) // self.fallback.split)
        try:
            for micro in micro_batches(batch, size, s.rank, s.world):
                total.add(self._micro_batch(micro.to(s.model.device), batch.rows.role))
            return total
        except RuntimeError as error:
            if s.world > 1 or not memory.is_out_of_memory(error):
                raise
            message = _first_line(error)
        self._make_smaller(message)  # out here, as an error holds on to all that its step has made
        return None

    def _micro_batch(self, batch: Batch, roles: Sequence[Role]) -> StepLoss:
        """Forward and backward of one micro-batch of an effective batch with these roles."""
        s, model = self.session, self.session.model
        seed, draws = s.config.run.seed, s.dataset.fixed_draws
        if draws:
            visits = s.dataset.visits(self.steps_done)
            part = [visits[group] for group in batch.rows.group.tolist()]
            random = fixed_draw(batch, part, draws, seed, model.process, s.config.noise, jitter=True)
            random = step_correction(random, batch, seed, self.steps_done)
        else:
            random = model.system.draw(batch, seed, self.steps_done)
        masks = seed + (self.steps_done << 20)
        if s.config.memory.grad_cache:
            scaler = s.optimization.scaler
            return backward_row_by_row(model, s.terms, batch, random, roles, masks, scaler, self.references)
        result = compute_loss(model, s.terms, batch, random, roles, masks, self.references)
        s.optimization.backward(result.loss)
        result.loss = result.loss.detach()
        return result

    def _skip(self, loss: float, norm: float) -> None:
        scale = self.session.optimization.scaler.get_scale()
        searching = math.isfinite(loss) and scale > 1
        self.health.record_skip(counts=not searching)
        at = f"step {self.steps_done + 1}"
        if searching:
            why = f"its gradients overflow float16 at a scale of {scale:g}; it is skipped, and the scale halved"
            self.writer.log(f"{at}: {why}")
        else:
            self.writer.warning(f"{at}: loss {loss}, gradient norm {norm}: non-finite, so the step is skipped")
        self.session.optimization.skip()

    # -------------------------------------------------------------------------------------------- what goes wrong

    def _make_smaller(self, message: str) -> None:
        """Memory ran out in a step: take the next remedy and report it. UserError where none is left."""
        s = self.session
        s.optimization.optimizer.zero_grad(set_to_none=True)
        memory.release(s.model.device)
        taken = self.fallback.take_next(s)
        if taken is None:
            raise UserError(
                f"train: out of memory at step {self.steps_done + 1}, and nothing smaller is left to try ({message}); "
                "lower data.resolution or adapter.rank, or see what `check --fit` proposes, then continue with --resume"
            )
        same = "the numbers stay the same" if taken.exact else "from here on not the same numbers"
        self.writer.event(
            "oom", self.steps_done, did=taken.label, exact=taken.exact, options=taken.changes, message=message
        )
        self.writer.warning(
            f"step {self.steps_done + 1}: out of memory ({message}); repeated with {taken.label} ({taken.cost}; {same})"
        )
        if self.references and not taken.exact:
            self.references = ReferenceCache(s)
        self.step_times.restart()

    def _roll_back(self) -> None:
        back = roll_back(self.session, self.health, self.steps_done, self.folder.state)
        self.steps_done = back.step
        self.writer.warning(back.message)
        self.writer.event("rollback", back.step, failed=back.failed + 1, rate_factor=back.lr_factor)
        self.writer.rewind(back.step)

    def _save_after_error(self) -> None:
        """Save the steps taken, though an error ends the run, and report where it can continue."""
        if self.in_optimizer_step:
            return
        try:
            if not checkpoint.state_path(self.folder.state, self.steps_done).exists():
                self._write_state()
            self.writer.log(f"the state of step {self.steps_done} is saved; --resume continues from there")
        except (OSError, RuntimeError, ValueError) as error:
            self.writer.log(f"the state of step {self.steps_done} could not be saved: {error}")

    def save_for_the_first(self, error: distributed.ProcessLost) -> bool:
        """As one of the processes that write nothing: save what the first, if it is dead, cannot save any more. Returns
        whether it is dead, or its folder out of reach; if not, it reports for all."""
        if not self.folder.path.is_dir():
            return True
        with ExitStack() as stack:
            try:
                stack.enter_context(lock(self.folder.path))
            except UserError:
                return False
            self.writer = stack.enter_context(ProgressWriter(self.folder.path))
            self.writer.at, self.writer.total = self.steps_done, self.session.total
            self._save_after_error()
            self.writer.fail(error)
        return True

    # ----------------------------------------------------------------------------------------------- side work

    def _save_adapter(self, path: Path) -> None:
        s, adapter = self.session, self.session.model.adapter
        if not s.is_main:
            return
        average, dtype = s.optimization.average, checkpoint.saved_type(s.config.save)
        with s.evaluating(), s.model.system.as_saved(s.model):
            save_adapter(path, adapter.for_file(dtype), metadata(s, self.steps_done, self.started))
            self._verify(path, effect=not self.verified)
        if average is not None:
            second = checkpoint.averaged(path)
            with s.evaluating(), average.shown(), s.model.system.as_saved(s.model):
                save_adapter(
                    second,
                    adapter.for_file(dtype),
                    metadata(s, self.steps_done, self.started),
                )
                self._verify(second, effect=False)
        self.verified = True
        if path.parent == self.folder.checkpoints:
            checkpoint.prune_checkpoints(self.folder.checkpoints, self.folder.path.name, s.config.save)
        self.writer.event("checkpoint", self.steps_done, path=str(path))

    def _verify(self, path: Path, effect: bool) -> None:
        """Compare the file with the trained adapter. A difference is a warning: the run has trained, and is saved."""
        result = verify(path, self.session.model.adapter, effect=effect)
        for line in result.problems:
            self.writer.warning(line)
        if effect and result.lines:
            self.writer.log(f"saved and read back: {'; '.join(result.lines)}")

    def _save_state(self) -> None:
        if self.session.is_main:
            self._write_state()

    def _write_state(self) -> None:
        tensors, facts = self.session.state()
        facts = {**facts, "health": self.health.state(), "decode": decode_facts(self.session)}
        save = self.session.config.save
        checkpoint.save_state(
            self.folder.state, self.steps_done, tensors, facts, save.keep_states, save.keep_states_steps
        )
        if self.references:
            self.references.save()

    def _load_state(self, state: Path) -> dict[str, Any]:
        """Continue from the last state of a folder; returns its facts."""
        tensors, facts = distributed.broadcast(lambda: checkpoint.load_state(state))
        self.steps_done = int(facts["step"])
        notes = [f"{name} in {state} is damaged; continuing from an older state" for name in facts["damaged"]]
        notes += self.session.load_state(tensors, facts)
        self.health.load(facts.get("health", {}))
        for note in notes:
            self.writer.warning(note)
        self.writer.log(f"resumed at step {self.steps_done}")
        if self.steps_done >= self.session.total:
            self.writer.log(
                f"nothing is left to do: the run has {self.session.total} steps; raise run.steps to train on"
            )
        return facts

    def _sample(self) -> None:
        if self.session.is_main and self.session.previews.prompts:
            self._if_it_fits("previews", "sample.width and sample.height", self._draw_previews)

    def _validate(self) -> None:
        """The loss on held-out pictures, per noise level, at noise that never changes."""
        batches = self.session.dataset.validation_batches(self.session.config.run.batch)
        batches = batches[: self.session.config.validation.max_batches]
        if batches and self.session.is_main:
            self._if_it_fits("validation", "run.batch", lambda: self._held_out_loss(batches))

    def _if_it_fits(self, what: str, lower: str, work: Callable[[], None]) -> None:
        """Work that a run can do without, left out when memory runs out in it."""
        try:
            work()
            return
        except RuntimeError as error:
            if not memory.is_out_of_memory(error):
                raise
            message = _first_line(error)
        finally:
            self.session.offload_encoders()  # the autoencoder may have come for it
        memory.release(self.session.model.device)
        self.writer.warning(
            f"step {self.steps_done}: out of memory ({message}): no {what} this time; a lower {lower} takes less"
        )

    def _draw_previews(self) -> None:
        s, previews = self.session, self.session.previews
        with s.evaluating():
            for index, prompt in enumerate(previews.prompts):
                if self.stop_requested.is_set() and self.steps_done < s.total:
                    stop_if(s.world == 1 and not self.steps_done)
                    return
                drawing = f"previews: {index + 1} of {len(previews.prompts)}"
                self.writer.status("running", message=drawing, now=True)
                with self._error_is_a_warning(f"no preview of '{prompt.text}'"):
                    path = sampling.picture_path(self.folder.samples, self.steps_done, index)
                    facts = {"run": s.config.run.name, "step": self.steps_done}
                    sampling.save_picture(previews.picture(prompt), path, prompt, facts)
                    self.writer.event("sample", self.steps_done, path=str(path), prompt=prompt.text, seed=prompt.seed)
        with self._error_is_a_warning("no grid of the previews"):
            sampling.grid(self.folder.samples, [prompt.text for prompt in previews.prompts])

    @contextmanager
    def _error_is_a_warning(self, lost: str) -> Iterator[None]:
        """An error costs what is ``lost``, not the run; that memory ran out is reported by the caller."""
        try:
            yield
        except Exception as error:
            if isinstance(error, RuntimeError) and memory.is_out_of_memory(error):
                raise
            if not isinstance(error, UserError):
                logging.getLogger(__name__).exception("step %d: %s", self.steps_done, lost)
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            self.writer.warning(f"step {self.steps_done}: {lost} ({reason})")

    def _held_out_loss(self, batches: list[Batch]) -> None:
        s, model, options = self.session, self.session.model, self.session.config.validation
        model.adapter.train(False)
        found: dict[str, Any] = {}
        roles: list[Role] = [role for batch in batches for role in batch.rows.role]
        with torch.no_grad(), s.evaluating():
            levels = model.system.levels(options.levels)
            for part in range(levels):
                total, level = StepLoss.zero(), 0.0
                for cpu_batch in batches:
                    batch = cpu_batch.to(model.device)
                    random = model.system.fixed_draw(batch, part, levels, options.seed)
                    level = float(random.level[0])
                    total.add(compute_loss(model, s.terms.exact(), batch, random, roles, options.seed))
                total, _ = total.on_host()
                found[f"{level:g}"] = {**total.means(), "loss": float(total.loss)}
        each = {name: [row[name] for row in found.values() if name in row] for row in found.values() for name in row}
        means = {name: sum(values) / len(values) for name, values in each.items()}
        with torch.no_grad(), s.evaluating():
            measured = model.system.measure(model, s.dataset, batches)
        self.writer.held_out(self.steps_done, means, found, measured)


def _every(period: int, step: int) -> bool:
    return period > 0 and step % period == 0
