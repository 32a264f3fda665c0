"""Runs of the command line in processes of their own, without the seconds that an import takes: forked, not started.

``Server()`` starts one Python that imports the trainer and then forks a child per run. A child can be told to die by
SIGKILL at its n-th change of the file system, or in the middle of writing a file. Not on Windows.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.truncate"}


class Server:
    """``with Server() as server: server.run([...])``."""

    def __enter__(self) -> Server:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)

    def _ask(self, **what: Any) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, arguments: Sequence[str], log: Path, env: Mapping[str, str] | None = None, **hooks: Any) -> int:
        """The process number of ``python -m trainer ARGUMENTS``. Hooks: see ``_child``."""
        return self._ask(arguments=list(map(str, arguments)), log=str(log), env=dict(env or {}), hooks=hooks)

    def wait(self, pid: int) -> int:
        """Its exit code, negative for a signal."""
        return self._ask(wait=pid)

    def run(self, arguments: Sequence[str], log: Path, **more: Any) -> int:
        return self.wait(self.start(arguments, log, **more))


def _serve() -> None:
    import torch

    from pixelkiln.trainer import build, cli, config, engine  # noqa: F401

    torch.set_num_threads(1)
    for line in sys.stdin:
        asked = json.loads(line)
        if "wait" in asked:
            answer = os.waitstatus_to_exitcode(os.waitpid(asked["wait"], 0)[1])
        elif (answer := os.fork()) == 0:
            _child(asked)
        print(json.dumps(answer), flush=True)


def _child(asked: dict[str, Any]) -> None:
    """Hooks: ``kill_at``: die at so many changes of the file system; ``torn_at``: die in the middle of so many writes;
    ``kill_after``: die so many seconds after the first step; ``kill_after_step``: die when so many are taken;
    ``nan_steps``: the losses of these are no number."""
    from pixelkiln.trainer import cli

    with Path(asked["log"]).open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.environ.update(asked["env"])
    for name, value in asked["hooks"].items():
        globals()[f"_{name}"](value)
    code = 99
    try:
        code = cli.main(asked["arguments"])
    finally:
        with suppress(ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _die() -> None:
    os.kill(os.getpid(), 9)
    time.sleep(60)


def _kill_at(count: int) -> None:
    left = count

    def hook(event: str, details: tuple) -> None:
        nonlocal left
        writes = event == "open" and isinstance(details[1], str) and details[1][0] in "wxa"
        if event in CHANGES or writes:
            left -= 1
            if left == 0:
                _die()

    sys.addaudithook(hook)


def _torn_at(count: int) -> None:
    left, write = count, Path.write_bytes

    def torn(self: Path, data: bytes) -> int:
        nonlocal left
        left -= 1
        if left == 0:
            write(self, data[: len(data) // 2])
            _die()
        return write(self, data)

    Path.write_bytes = torn


def _kill_after(seconds: float) -> None:
    import threading

    from pixelkiln.trainer import engine

    step = engine.Loop.step

    def first(self: engine.Loop) -> dict[str, Any]:
        engine.Loop.step = step
        threading.Timer(seconds, _die).start()
        return step(self)

    engine.Loop.step = first


def _kill_after_step(count: int) -> None:
    from pixelkiln.trainer import engine

    step = engine.Loop.step

    def counted(self: engine.Loop) -> dict[str, Any]:
        if self.at == count:
            _die()
        return step(self)

    engine.Loop.step = counted


def _nan_steps(steps: list[int]) -> None:
    """The losses of these steps (from 1) are no number, whenever they are taken."""
    from pixelkiln.trainer import build

    reduce, at = build.Parts.reduce, build.Parts.set_rate

    def remember(self: Any, step: int) -> float:
        self.now = step + 1
        return at(self, step)

    def broken(self: Any, total: Any) -> dict[str, float]:
        sums = reduce(self, total)
        return {**sums, "loss": float("nan")} if self.now in steps else sums

    build.Parts.set_rate, build.Parts.reduce = remember, broken


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    import conftest  # noqa: F401

    _serve()
