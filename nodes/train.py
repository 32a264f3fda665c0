"""Train beside the server: started in the trainer's own environment, watched through its run folder."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..trainer.errors import UserError
from ..trainer.runs import check_report, control
from ..trainer.runs.events import read_object
from ..trainer.runs.folder import safe_name
from ..trainer.runs.turn import copy_adapter
from . import adapter, dataset, host, plan, runs
from .node import PRESET, In, Node, Out, Result, never_same
from .watch import Watch, in_words, picture

UNCHANGED, ALWAYS, START_OVER = "go on when unchanged", "go on always", "start over"
MARK = "comfyui.json"
"""In a run's folder: the key of the request that made it."""
_started_over: dict[Path, str] = {}
"""Run -> the request for which this server started it over."""


# ---------------------------------------------------------------------------------------------------------- a request


def presets() -> list[str]:
    """By the checkpoint, then the presets by name: the pack's, and .toml files in the pack's data folder."""
    return [*plan.BY_CHECKPOINT, *_named_presets()]


def _named_presets() -> list[str]:
    places = [control.ROOT / "presets", *host.folders(host.DATA)]
    return [path.stem for place in places for path in sorted(place.glob("*.toml"))]


def preset_path(name: str, base: Path | None = None) -> Path:
    """A preset's file; one that is chosen by the checkpoint needs the checkpoint's file ``base``."""
    if name in plan.BY_CHECKPOINT:
        if base is None:
            raise UserError(f"preset: '{name}' needs a checkpoint; choose the checkpoint, or a preset by its name")
        family = adapter.family_of(base)
        found = plan.suiting(plan.BY_CHECKPOINT[name], family, host.gpu_gb(), _named_presets()) if family else None
        if found is None:
            what = f"is for {family}, for which there is none" if family else "is of no family that can be trained"
            raise UserError(f"preset: {base.name} {what}; choose another checkpoint, or a preset by its name")
        name = found
    for place in (control.ROOT / "presets", *host.folders(host.DATA)):
        path = place / f"{safe_name(name)}.toml"
        if path.is_file():
            return path
    raise UserError(f"preset: there is no '{name}'; there is: {', '.join(_named_presets())}")


def checkpoints() -> list[str]:
    import folder_paths

    return [PRESET, *folder_paths.get_filename_list("checkpoints")]


def datasets() -> list[str]:
    return [PRESET, *(name for name in dataset.names() if name != host.NONE)]


def wanted(
    preset: str, name: str, checkpoint: str, dataset_name: str, learn_from: str, trigger: str, prompts: str,
    options: str, folder: str | None = None, start_from: str | None = None, **numbers: float | str,
) -> plan.Request:  # fmt: skip
    """The inputs of Train and Check as a request. UserError for what a workflow may not ask for."""
    import folder_paths

    run_dir = host.place(host.RUNS, name)
    flags = [plan.flag("run.name", run_dir.name), plan.flag("run.out", run_dir.parent)]
    files: list[Path] = []
    base: Path | None = None
    if checkpoint != PRESET:
        base = Path(folder_paths.get_full_path_or_raise("checkpoints", checkpoint))
        flags.append(plan.flag("model.path", base))
        files.append(base)
    source = host.inside(folder, dataset.roots()) if folder else None
    if source is None and dataset_name != PRESET:
        source = dataset.find(dataset_name)
    if source is not None:
        flags += plan.dataset_flags(source, learn_from)
        files.append(source)
    start = host.adapter_path(host.NONE, start_from)
    if start is not None:
        files.append(start)
    flags += plan.flags({option: NUMBERS[name].number(numbers.get(name)) for name, option in _OPTIONS.items()})
    flags += plan.flags({
        "data.trigger": trigger.strip(), "save.trigger": trigger.strip(),
        "sample.prompts": plan.prompt_list(prompts) or None, "adapter.init_from": start,
    })  # fmt: skip
    flags += plan.free_options(options)
    return plan.Request(preset_path(preset, base), run_dir, tuple(flags), tuple(files))


# ------------------------------------------------------------------------------------------------------ start, resume


def begin(request: plan.Request, again: str, copy_to: Path | None = None) -> str:
    """Start or resume what is wanted, if it does not run or is not finished: 'finished', 'running' or 'started'.

    A run that others train before on its device waits for them. Once it is finished, its adapter is copied into the
    folder ``copy_to``.

    For a request it is started over once; queued again, that run goes on. UserError when the run's name was used for
    something else.
    """
    run_dir, key = request.run_dir, request.key()
    now = control.status(run_dir)
    same = _mark(run_dir) == key
    if now.live:
        if same:
            return "running"
        raise UserError(f"run '{run_dir.name}': it is training with other settings; wait, or choose another name")
    if same and now.step and _started_over.get(run_dir) == key:
        again = UNCHANGED
    if now.state == "done" and same and again != START_OVER:
        return "finished"
    has_state = any((run_dir / "state").glob("step*.safetensors"))
    known = now.state != "new"
    if known and not same and again == UNCHANGED and (has_state or now.state == "done"):
        raise UserError(
            f"run '{run_dir.name}': it was made with other settings or data; choose another name, or set again to "
            f"'{ALWAYS}' or '{START_OVER}'"
        )
    host.free_memory()
    device = plan.device(request.preset.read_text(encoding="utf-8"), request.flags)
    resume = has_state and again != START_OVER
    control.start(request.preset, run_dir, *request.flags, resume=resume, queue=device, copy_to=copy_to)
    # In place: the new process removes leftovers of atomic writes as soon as it has the run's lock.
    (run_dir / MARK).write_text(json.dumps({"v": 1, "key": key}), encoding="utf-8")
    if again == START_OVER:
        _started_over[run_dir] = key
    return "started"


def _mark(run_dir: Path) -> str:
    return str(read_object(run_dir / MARK).get("key", ""))


# --------------------------------------------------------------------------------------------------------------- nodes


def _train(
    mode: str, again: str, save_to: str = host.OUTPUT_LORAS, report: str | None = None, node_id: Any = None,
    graph: Any = None, **inputs: Any,
) -> Result:  # fmt: skip
    request = wanted(**inputs)
    _, offset = control.events(request.run_dir)
    copy_to = host.lora_folder(save_to)
    begun = begin(request, again, copy_to)
    if mode == "background" and begun != "finished":
        return _outputs(request.run_dir, background_line(request.run_dir))
    warnings: list[str] = []
    if begun != "finished":
        watch = Watch(request.run_dir, str(node_id), offset)
        now, warnings = watch.until_end(), watch.warnings
        if watch.presses:
            raise host.interrupted()
        if now.state != "done":
            raise UserError(failure(request.run_dir, now))
    copy = copy_adapter(request.run_dir, copy_to) if copy_to else None
    now = control.status(request.run_dir)
    line = now.message if begun != "finished" else f"{request.run_dir.name}: finished before with the same settings"
    lines = [line] if line else []
    lines += [f"listed under loras as pixelkiln/{copy.name}"] if copy else []
    return _outputs(request.run_dir, "\n".join(lines), warnings)


def background_line(run_dir: Path, patience: float = 3.0) -> str:
    """What a run that was started beside the queue does now; the process gets a moment to find its place in line."""
    until = time.monotonic() + patience
    while (now := control.status(run_dir)).state == "queued" and "waiting" not in now.message:
        if time.monotonic() > until:
            break
        time.sleep(0.1)
    if now.state == "queued" and "waiting" in now.message:
        return f"{run_dir.name}: {now.message}; it starts by itself"
    return f"{run_dir.name}: training in the background; Run status follows it"


def failure(run_dir: Path, now: control.Status) -> str:
    """The trainer's one clear line, and the end of its log."""
    if now.state == "stopped":
        return f"run '{run_dir.name}': stopped at step {now.step} of {now.total}; queue again to resume"
    line = plan.in_inputs(now.message)
    return f"run '{run_dir.name}' failed: {line}\n\nthe end of {run_dir / 'log.txt'}:\n{control.tail(run_dir, 12)}"


def _outputs(run_dir: Path, message: str, warnings: Sequence[str] = ()) -> Result:
    found = control.checkpoints(run_dir)
    path = found[-1].path if found else None
    events, _ = control.events(run_dir)
    tensors = adapter.read(path).tensors if path else {}
    lines = [message, *([f"adapter: {path.name}"] if path else ["no adapter yet"])]
    lines += [f"warning: {line}" for line in warnings]
    shown = {"images": host.show(pictures, "pixelkiln_train")} if (pictures := _newest_pictures(run_dir)) else {}
    values = (str(path or ""), run_dir.name, tensors, plan.loss_map(events), "\n".join(lines))
    return Result(values, {**host.text(lines), **shown})


def _newest_pictures(run_dir: Path) -> list[Image.Image]:
    before_after = picture(run_dir / "before_after.png")
    return [before_after] if before_after else []


def _train_stamp(mode: str | None = None, again: str | None = None, **inputs: Any) -> str:
    """Runs again when the request's files, the run's state or its adapter change, however that came about."""
    if None in inputs.values():
        return never_same()
    for name in ("save_to", "report"):
        inputs.pop(name, None)
    try:
        request = wanted(**inputs)
        key, newest = request.key(), control.checkpoints(request.run_dir)
    except (OSError, UserError):
        return never_same()
    return f"{key} {control.status(request.run_dir).state} {host.stamp(newest[-1].path if newest else None)}"


def _check_inputs(
    options: str | None = None, steps: Any = None, rank: Any = None, learning_rate: Any = None, resolution: Any = None,
    batch: Any = None, run_seed: Any = None,
) -> None:  # fmt: skip
    plan.free_options(options or "")
    numbers = {"steps": steps, "rank": rank, "learning_rate": learning_rate, "resolution": resolution, "batch": batch,
               "run_seed": run_seed}  # fmt: skip
    for name, value in numbers.items():
        NUMBERS[name].number(value)


def _status(run: str) -> Result:
    folder = host.run_path(run)
    now = control.status(folder)
    events, _ = control.events(folder)
    found = control.checkpoints(folder)
    last = next((e for e in reversed(events) if e["kind"] == "step"), None)
    lines = [f"{folder.name}: {now.state}" + (f", {in_words(last, now)}" if last and now.live else "")]
    lines += [plan.in_inputs(now.message)] if now.message else []
    lines += [f"newest adapter: {runs.label(found[-1])}"] if found else ["no adapter yet"]
    lines += [control.tail(folder, 12)] if now.state == "failed" else []
    samples = [p for e in events[-400:] if e["kind"] == "sample" and (p := picture(e.get("path")))][-4:]
    shown = {"images": host.show(samples, "pixelkiln_status")} if samples else {}
    values = (
        now.state,
        now.step,
        now.total,
        str(found[-1].path) if found else "",
        plan.loss_map(events),
        "\n".join(lines),
    )
    return Result(values, {**host.text(lines), **shown})


def _stop(run: str, what: str) -> Result:
    folder = host.run_path(run)
    if what == "stop":
        now = control.stop(folder, 60)
        message = f"{folder.name}: {now.state} at step {now.step}" + ("; it is still saving" if now.live else "")
    else:
        control.request(folder, "save" if what == "save" else "sample")
        message = f"{folder.name}: asked to {what}"
    return Result((message,), host.text(message))


def _check(**inputs: Any) -> Result:
    request = wanted(**inputs)
    try:
        answer = control.ask(["check", str(request.preset), *request.flags])
    except control.Refused as refused:
        raise UserError(plan.in_inputs(str(refused))) from None
    lines = [f"preset    {request.preset.stem}", *check_report.lines(answer, request.preset.stem)]
    text = "\n".join(map(plan.in_inputs, lines))
    return Result((text,), host.text(text))


_NUMBERS = (
    In("steps", "INT", "Steps of the optimizer.", default=0, unset=0, low=0, high=1_000_000),
    In("rank", "INT", "Rank of the adapter.", default=0, unset=0, low=0, high=1024),
    In("learning_rate", "FLOAT", "Learning rate, such as 0.0001 or 1e-4.", default=0.0, unset=0, low=0.0, high=10.0,
       step=1e-7),
    In("resolution", "INT", "Pixels of a side.", default=0, unset=0, low=0, high=4096),
    In("batch", "INT", "Pictures in a batch.", default=0, unset=0, low=0, high=256, advanced=True),
    In("run_seed", "INT", "Seed of all randomness.", default=-1, unset=-1, low=-1, high=2**53, advanced=True),
)  # fmt: skip
"""Each may be left to the preset."""
NUMBERS = {one.name: one for one in _NUMBERS}
_OPTIONS = {
    "steps": "run.steps", "batch": "run.batch", "rank": "adapter.rank", "resolution": "data.resolution",
    "learning_rate": "optimizer.learning_rate", "run_seed": "run.seed",
}  # fmt: skip
_REQUEST = (
    In(
        "preset",
        "COMBO",
        "Where the settings start. By checkpoint: the preset of this purpose for the checkpoint's family and the GPU's "
        "memory. Others: a preset of the pack, or a .toml file in its data folder.",
        options=presets,
    ),
    In("name", "STRING", "Name of the run: its folder and its adapter are called so.", default="my_adapter"),
    In("checkpoint", "COMBO", "The base model.", default=PRESET, options=checkpoints),
    In("dataset_name", "COMBO", "The dataset's folder.", default=PRESET, options=datasets),
    In(
        "learn_from",
        "COMBO",
        "What the dataset's folder holds; auto looks.",
        default="auto",
        options=("auto", "pictures", "pairs", "ratings"),
        advanced=True,
    ),
    *_NUMBERS,
    In("trigger", "STRING", "Trigger words, put before every caption and into the file.", default=""),
    In(
        "prompts",
        "STRING",
        "Preview pictures: a prompt in each line; empty: as in the preset.",
        default="",
        multiline=True,
    ),
    In(
        "options",
        "STRING",
        'More options, one per line: adapter.kind = "dora". They may name neither files nor code.',
        default="",
        multiline=True,
        advanced=True,
    ),
    In(
        "folder",
        "STRING",
        "A dataset's folder from another node; it comes before the list.",
        optional=True,
        socket=True,
    ),
    In("start_from", "STRING", "An adapter file to continue from.", optional=True, socket=True),
)

TRAIN = Node(
    id="PixelkilnTrain",
    name="Train (Pixelkiln)",
    about="Trains an adapter in the trainer's own environment and process (set up once: python install.py trainer). "
    "Interrupt saves and stops, a second one ends it at once; queueing again resumes. The same settings again give the "
    "finished adapter at once.",
    run=_train,
    inputs=(
        *_REQUEST[:-2],
        In(
            "mode",
            "COMBO",
            "wait: the queue waits and the adapter can be used at once. background: the queue goes on; "
            "sampling then shares the GPU. Trainings on one GPU wait for each other.",
            default="wait",
            options=("wait", "background"),
        ),
        In(
            "again",
            "COMBO",
            "When the run exists: go on if settings and data are the same, go on in any case, or start over, once "
            "for each change of them.",
            default=UNCHANGED,
            options=(UNCHANGED, ALWAYS, START_OVER),
            advanced=True,
        ),
        *_REQUEST[-2:],
        In(
            "save_to",
            "COMBO",
            "Where the finished adapter is copied, so that every list of LoRAs has it as pixelkiln/NAME.",
            default=host.OUTPUT_LORAS,
            options=(host.OUTPUT_LORAS, host.MODELS_LORAS, host.RUN_ONLY),
            optional=True,
        ),
        In(
            "report",
            "STRING",
            "The report of Check a training, which then runs before Train; a check that fails stops the queue.",
            optional=True,
            socket=True,
        ),
    ),
    outputs=(
        Out("path", "STRING", "The adapter file, for Load adapter."),
        Out("run", "STRING", "The run's name."),
        Out("lora", "LORA_MODEL", "The adapter for ComfyUI's own Load LoRA Model and Save LoRA."),
        Out("loss_map", "LOSS_MAP", "The losses for ComfyUI's own Plot Loss Graph."),
        Out("info", "STRING", "How it ended."),
    ),
    group="training",
    aliases=("train lora", "dpo", "finetune"),
    fingerprint=_train_stamp,
    check=_check_inputs,
    output=True,
    knows_graph=True,
)
STATUS = Node(
    id="PixelkilnRunStatus",
    name="Run status (Pixelkiln)",
    about="How a run stands now: state, step, loss, time left, its newest adapter and pictures.",
    run=_status,
    inputs=(In("run", "COMBO", "A training run.", options=host.run_names),),
    outputs=(
        Out("state", "STRING", "new, queued, running, saving, done, stopped or failed."),
        Out("step", "INT", "Steps taken."),
        Out("total", "INT", "Steps of the whole run."),
        Out("path", "STRING", "The newest adapter file; empty when there is none yet."),
        Out("loss_map", "LOSS_MAP", "The losses for ComfyUI's own Plot Loss Graph."),
        Out("info", "STRING", "All of it in words."),
    ),
    group="training",
    aliases=("training progress", "loss", "watch run"),
    fingerprint=never_same,
    output=True,
)
STEER = Node(
    id="PixelkilnRunSteer",
    name="Steer a run (Pixelkiln)",
    about="Asks a run in the background to save and stop, to save, or to draw its previews.",
    run=_stop,
    inputs=(
        In("run", "COMBO", "A training run.", options=host.run_names),
        In("what", "COMBO", "What it should do.", default="stop", options=("stop", "save", "draw previews")),
    ),
    outputs=(Out("said", "STRING", "What happened."),),
    group="training",
    aliases=("stop training", "pause", "save now"),
    fingerprint=never_same,
    output=True,
)
CHECK = Node(
    id="PixelkilnFitCheck",
    name="Check a training (Pixelkiln)",
    about="What Train would do with these settings, without loading a model: family, pictures, buckets, steps, files, "
    "warnings, and memory and time where the trainer can tell them.",
    run=_check,
    inputs=_REQUEST,
    outputs=(Out("report", "STRING", "What would happen."),),
    group="training",
    aliases=("vram", "fit check"),
    fingerprint=never_same,
    check=_check_inputs,
    output=True,
)
NODES = (TRAIN, STATUS, STEER, CHECK)
