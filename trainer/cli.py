"""The command line: the parser and the process edge.

Exit codes: 0 done, 2 a mistake in what was given (one line), 1 a defect (a traceback), 130 interrupted after saving.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .commands import adapters, cache, dense, kohya, pairs, study
from .commands.common import configuration, joined, print_json, print_lines, print_note
from .errors import UserError
from .runs.control import DEFECT, DONE, INTERNAL_ERROR, INTERRUPTED, USER_ERROR

ROOT = Path(__file__).resolve().parents[1]
PROJECT = ROOT / "pyproject.toml"
"""Only in the source tree, not in a package that a wheel installed."""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m trainer", description="Train adapters for Stable Diffusion.")
    top.add_argument("--version", action="version", version=f"pixelkiln {_version()}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        added.add_argument("--debug", action="store_true", help="show the traceback of every error, and log in detail")
        added.set_defaults(run=run)
        return added

    def configured(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        kohyas = "Kohya's arguments stand in for a configuration: --config_file, --dataset_config, " if (
            name in kohya.COMMANDS) else ""  # fmt: skip
        kohyas += "--network_dim 32 and all others of train_network.py, also a whole pasted line." if kohyas else ""
        added = command(name, run, f"{text} Any option also as a flag: --adapter.rank=16. {kohyas}".rstrip())
        added.add_argument("config", nargs="?", help="a .toml configuration")
        added.add_argument("--preset", help="start from a preset, by name or path")
        return added

    train = configured("train", _train, "Train an adapter.")
    train.add_argument("--resume", action="store_true", help="continue from the run's last state")
    train.add_argument("--fit", action="store_true", help="first change what does not fit on the GPU, cheapest first")
    train.add_argument(
        "--profile", type=int, default=0, metavar="N", help="trace the first N steps into the run's folder"
    )
    train.add_argument("--memory-snapshot", action="store_true", help="record the GPU's allocations (CUDA only)")
    check = configured("check", _check, "Report what a run would do, its memory and its time, without loading a model.")
    check.add_argument("--card", help='another GPU than the one here, e.g. "RTX 3060 12GB"')
    check.add_argument("--memory", help="free GPU memory to assume, e.g. 8GB")
    check.add_argument("--fit", action="store_true", help="print the configuration, changed so that it fits")
    check.add_argument("-o", "--output", help="with --fit: write it to this file instead")
    check.add_argument("--force", action="store_true", help="with -o: replace what is there already")
    check.add_argument("--calibrate", action="store_true", help="take three real steps first, and remember their time")
    check.add_argument("--json", action="store_true")
    sample = configured("sample", _sample, "Draw the configuration's previews with an adapter.")
    sample.add_argument("--adapter", help="adapter file; without it the base model draws", dest="adapter_file")
    sample.add_argument("-o", "--output", help="folder for the pictures; samples/, and there one for each adapter")
    sample.add_argument("--json", action="store_true")
    draw = configured("draw", _draw, "Draw the prompts with several adapters at several strengths.")
    draw.add_argument("--cells", required=True, help="JSON list of {adapter, strength, folder}")
    draw.add_argument("--json", action="store_true")
    metric = configured(
        "surrogate", _surrogate, "Make and measure the learned pixel metric of a model's autoencoder. A model may be "
        "given in place of a configuration."
    )  # fmt: skip
    metric.add_argument("-o", "--output", help="write it to this file too")
    metric.add_argument("--force", action="store_true", help="make it anew, and replace what is there already")
    metric.add_argument("--json", action="store_true")
    options = command("options", _options, "Print the reference of all options.")
    options.add_argument("--json", action="store_true")
    options.add_argument("--check", action="store_true", help="fail when docs/options.md is stale")
    options.add_argument("--write", action="store_true", help="write docs/options.md")
    command("presets", _presets, "List the presets.").add_argument("--json", action="store_true")
    adapters.register(command)
    pairs.register(command, configured)
    dense.register(command)
    kohya.register(command)
    study.register(command)
    cache.register(command)
    doctor = command("doctor", _doctor, "Report what this machine can train with.")
    doctor.add_argument("--force", action="store_true", help="try every package again, also where none has changed")
    doctor.add_argument("--json", action="store_true")
    demo = command("demo", _demo, "Train on the bundled base; ends with a before/after picture, or with maps of depth.")
    demo.add_argument(
        "which", nargs="?", choices=("style", "dense"), default="style", help="the bundled style, or depth"
    )
    return top


def _version() -> str:
    """Of the installed package, or of the source tree it runs from."""
    from importlib import metadata

    import tomllib  # pyright: ignore[reportMissingImports]  # the trainer needs Python 3.11

    if PROJECT.is_file():
        return str(tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["version"])
    return metadata.version("pixelkiln")


def main(arguments: Sequence[str] | None = None) -> int:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    atexit.register(gc.freeze)  # Python would look through all of torch's objects for cycles before it ends, for 0.4 s
    given = joined(list(sys.argv[1:] if arguments is None else arguments))
    _utf8()
    debug = "--debug" in given
    if debug:
        logging.basicConfig(level=logging.DEBUG, format="%(asctime)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        given, arguments_of_kohya = kohya.take_arguments(given)
        given, flags = split_flags(given)
        args, rest = parser().parse_known_args(given)
        args.kohya, args.flags = arguments_of_kohya, dotted([*flags, *rest], allowed=hasattr(args, "preset"))
        code = args.run(args)
        sys.stdout.flush()
        return code
    except UserError as error:
        if debug:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # `presets | head -1`: who reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except Exception:  # the process edge
        traceback.print_exc()
        print(f"error: {DEFECT}", file=sys.stderr)
        return INTERNAL_ERROR


def _utf8() -> None:
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure:
            reconfigure(encoding="utf-8", errors="replace")


def split_flags(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Words without the flags for options, and these with their values. argparse takes a word with a space in it, such
    as ``--sample.prompts=["a cat"]``, for a file."""
    others: list[str] = []
    flags: list[str] = []
    remaining = list(words)
    while remaining:
        word = remaining.pop(0)
        if word == "--":
            return [*others, word, *remaining], flags
        if not re.fullmatch(r"--\w+(\.\w+)+(=.*)?", word, re.DOTALL):
            others.append(word)
            continue
        flags.append(word)
        if "=" not in word and remaining and not remaining[0].startswith("--"):
            flags.append(remaining.pop(0))
    return others, flags


def dotted(rest: Sequence[str], allowed: bool) -> dict[str, Any]:
    """``--adapter.rank=16`` and ``--adapter.rank 16`` -> {"adapter.rank": 16}."""
    flags: dict[str, Any] = {}
    words = list(rest)
    if not words:
        return flags
    from .config import flag_value

    while words:
        word = words.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if not allowed or not word.startswith("--") or "." not in name:
            raise UserError(f"{word}: there is no such argument; options are flags such as --adapter.rank=16")
        if not equals and (not words or words[0].startswith("--")):
            raise UserError(f"{word}: a value is missing; write --{name}=VALUE")
        flags[name] = flag_value(value if equals else words.pop(0))
    return flags


def _train(args: argparse.Namespace) -> int:
    from .memory.device import choose_device
    from .training.profiling import Profiler

    config, examined = configuration(args), None
    profiler = Profiler(args.profile, args.memory_snapshot)
    profiler.check(choose_device(config.run.device))
    planner = None
    if config.memory.plan == "auto":
        from .commands.check import planned as planner
    if args.fit:
        from .commands.check import card_for, check, examine
        from .estimate import report

        examined = examine(config)
        answer = check(config, card_for(config, None, None), examined, print_note)
        config = report.apply(config, answer["fit"], print_note)
    from .training.loop import train

    return train(config, resume=args.resume, examined=examined, profiler=profiler, planner=planner)


def _check(args: argparse.Namespace) -> int:
    from .commands.calibrate import calibrate
    from .commands.check import card_for, check, load_without_model, planned, sources
    from .estimate import report
    from .runs.check_report import lines
    from .runs.files import check_target, write_atomic

    config = configuration(args, load_without_model)
    if args.fit and args.output:
        check_target(args.output, *sources(config, args), force=args.force, name="--output")
    if args.calibrate:
        calibrate(planned(config, False, None, print_note)[0] if config.memory.plan == "auto" else config)
    card = card_for(config, args.card, args.memory)
    answer = check(config, card) if args.json else check(config, card, say=print_note)
    if args.fit:
        text = report.apply(config, answer["fit"], print_note).to_toml(only_set=True)
        if args.output:
            write_atomic(args.output, text)
        elif not args.json:
            print(text, end="")
            return DONE
        answer["config"] = text
    if args.json:
        return print_json(answer)
    return print_lines(lines(answer, Path(config.preset or args.config or "").stem))


def _sample(args: argparse.Namespace) -> int:
    from .commands.sample import sample

    paths = sample(configuration(args), args.adapter_file, args.output and Path(args.output))
    return print_json({"pictures": paths}) if args.json else print_lines(list(map(str, paths)))


def _draw(args: argparse.Namespace) -> int:
    from .commands.sample import draw, read_cells

    return print_json({"pictures": draw(configuration(args), read_cells(Path(args.cells)))})


def _surrogate(args: argparse.Namespace) -> int:
    from .commands.surrogate import is_model, lines, surrogate

    if args.config and is_model(args.config):
        args.flags, args.config = {"model.path": args.config, **args.flags}, None
    answer = surrogate(configuration(args), args.output, args.force)
    return print_json(answer) if args.json else print_lines(lines(answer))


def _options(args: argparse.Namespace) -> int:
    from .commands.options import looked_up, reference_markdown

    page = ROOT / "docs" / "options.md"
    if args.json:
        return print_json({"options": looked_up()["rows"]})
    if args.write:
        page.write_text(reference_markdown(), encoding="utf-8", newline="\n")
        return DONE
    if args.check:
        if not page.exists() or page.read_text(encoding="utf-8") != reference_markdown():
            raise UserError("docs/options.md: it is stale; run `python -m trainer options --write`")
        return DONE
    print(looked_up()["page"], end="")
    return DONE


def _presets(args: argparse.Namespace) -> int:
    import tomllib  # pyright: ignore[reportMissingImports]  # our own files: no old name, no other tool's syntax in them

    rows = []
    for path in sorted((ROOT / "presets").glob("*.toml")):
        text = path.read_text(encoding="utf-8")
        purpose = text.splitlines()[0].lstrip("# ")
        rows.append({"name": path.stem, "path": str(path), "purpose": purpose, "values": tomllib.loads(text)})
    if args.json:
        return print_json({"presets": rows})
    width = max((len(row["name"]) for row in rows), default=0)
    return print_lines([f"{row['name']:{width}}  {row['purpose']}" for row in rows])


def _doctor(args: argparse.Namespace) -> int:
    from .commands.doctor import report, report_json

    if args.json:
        return print_json(report_json(_version(), args.force))
    return print_lines(report(args.force))


def _demo(args: argparse.Namespace) -> int:
    from .config import load
    from .runs.folder import RunFolder
    from .training.loop import train

    runs = ROOT / "runs" if PROJECT.is_file() else Path("runs")  # never into an installed package
    if args.which == "dense":
        from .commands.dense_demo import demo

        return demo(runs)
    config = load(preset="demo", flags={"run.out": str(runs)})
    code = train(config)
    if code == DONE:
        folder = RunFolder(Path(config.run.out) / config.run.name)
        print(f"\npicture:  {folder.before_after}\nadapter:  {folder.final}")
    return code
