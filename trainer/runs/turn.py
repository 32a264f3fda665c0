"""One training at a time on a GPU: a started run waits for those before it, trains, and copies its adapter.

``python -m trainer.runs.turn RUN_DIR [--device gpu0] [--copy-to FOLDER] -- MODULE train ...`` is what ``control.start``
runs when a host asks for a queue. The process that waits is the one that trains, so it outlives the host. Standard
library only.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import runpy
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path

from .control import DONE, INTERRUPTED
from .events import STARTED_AS, read_object, write_status
from .files import make_folder, user_cache, write_atomic
from .process import locked, wait_for_lock

POLL_SECONDS = 0.2


class Stopped(Exception):
    """The run was asked to stop while it waited."""


@contextmanager
def turn(device: str, name: str, waiting: Callable[[str], None]) -> Iterator[None]:
    """Reserve ``device`` for this process; first come, first served among the processes of this user.

    ``waiting`` is called again and again with the name of the run directly ahead, and may raise. A ticket is a file
    that its process locks for life, so a killed process leaves the queue at once.
    """
    folder = make_folder(user_cache() / "queue" / device)
    with ExitStack() as held:
        with wait_for_lock(folder):
            mine = 1 + max((int(path.name) for path in folder.iterdir() if path.name.isdigit()), default=0)
            ticket = folder / f"{mine:08d}"
            ticket.write_text(name, encoding="utf-8")
            held.enter_context(locked(ticket))
        try:
            while (ahead := _ahead(folder, mine)) is not None:
                waiting(ahead)
                time.sleep(POLL_SECONDS)
            yield
        finally:
            held.close()
            with suppress(OSError):
                ticket.unlink()


def _ahead(folder: Path, mine: int) -> str | None:
    """The name of the run directly ahead; None when it is our turn. Tickets without a process are removed."""
    for ticket in sorted((p for p in folder.iterdir() if p.name.isdigit() and int(p.name) < mine), reverse=True):
        try:
            with locked(ticket) as free:
                if not free:
                    return ticket.read_text(encoding="utf-8")
            ticket.unlink()
        except OSError:  # its process removed it meanwhile, or Windows refuses to read what is locked
            if ticket.exists():
                return "another run"
    return None


def copy_adapter(run_dir: Path, folder: Path) -> Path | None:
    """Copy a run's final adapter to where hosts look for adapters; None when there is none yet.

    A copy that is the same already is left alone. Raises NotWritten.
    """
    final = run_dir / f"{run_dir.name}.safetensors"
    if not final.is_file():
        return None
    copy = make_folder(folder) / final.name
    if not (copy.is_file() and filecmp.cmp(final, copy, shallow=False)):
        write_atomic(copy, lambda aside: shutil.copyfile(final, aside))
    return copy


def _wait_line(run_dir: Path) -> Callable[[str], None]:
    """Writes what the run waits for into ``start.json``, where ``control.status`` finds it; notices a stop."""
    written = ""

    def waiting(ahead: str) -> None:
        nonlocal written
        if (run_dir / "control" / "stop").exists():
            raise Stopped
        started = read_object(run_dir / "start.json")
        if ahead != written and started.get("job") == os.environ.get(STARTED_AS):  # the host may still be writing it
            message = f"waiting for run '{ahead}', which trains or waits before it"
            write_atomic(run_dir / "start.json", json.dumps({**started, "message": message}), durable=False)
            print(message, flush=True)
            written = ahead

    return waiting


def main(arguments: Sequence[str]) -> int:
    own, command = list(arguments[: arguments.index("--")]), list(arguments[arguments.index("--") + 1 :])
    parser = argparse.ArgumentParser(prog="python -m trainer.runs.turn")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--device", help="wait for the runs before it on this one")
    parser.add_argument("--copy-to", type=Path)
    options = parser.parse_args(own)
    run_dir: Path = options.run_dir
    try:
        with turn(options.device, run_dir.name, _wait_line(run_dir)) if options.device else nullcontext():
            code = _run(command)
    except Stopped:
        (run_dir / "control" / "stop").unlink(missing_ok=True)
        last = read_object(run_dir / "status.json")
        step, total = (value if isinstance(value := last.get(key), int) else 0 for key in ("step", "total"))
        write_status(run_dir, "stopped", step=step, total=total, message="stopped before its turn came",
                     exit_code=INTERRUPTED)  # fmt: skip
        (run_dir / "start.json").unlink(missing_ok=True)
        return INTERRUPTED
    if code == DONE and options.copy_to is not None:
        copy = copy_adapter(run_dir, options.copy_to)
        print(f"copied to {copy}" if copy else "no final adapter to copy", flush=True)
    return code


def _run(command: Sequence[str]) -> int:
    """``python -m COMMAND`` in this process, which thereby stays the run's; its exit code."""
    sys.argv = list(command)
    try:
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr, flush=True)
            return 1
        return end.code or 0
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
