"""Runs of the command line in processes of their own, without the seconds that an import takes: forked, not started.

``Server()`` starts one Python that trains once, so that all is imported, and then forks a child per run. A child can be
made to die by SIGKILL at its n-th change of the file system, or in the middle of writing a file. Not on Windows.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from pathlib import Path
from threading import RLock
from typing import Any

from waiting import until

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


def places(world: int = 2) -> list[dict[str, str]]:
    """The environment that torchrun gives each process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [{k: str(v) for k, v in {**shared, "RANK": r, "LOCAL_RANK": r}.items()} for r in range(world)]


def file_of(config: Any) -> Path:
    folder = Path(config.run.out)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.parent / f"{config.run.name}.toml"
    path.write_text(config.to_toml(), "utf-8")
    return path


def together(server: Server, config: Any, *words: str, world: int = 2, hooks: dict | None = None) -> list[int]:
    """Start the processes of a run; their numbers. Rank r writes to ``r.log`` beside the runs."""
    file = file_of(config)
    logs = [file.with_name(f"{r}.log") for r in range(world)]
    hooks = hooks or {}
    return [
        server.start(["train", file, *words], log, env, **hooks.get(r, {}))
        for r, (env, log) in enumerate(zip(places(world), logs, strict=True))
    ]


def _serve() -> None:
    import short_runs
    import torch
    from tqdm import tqdm

    tqdm.monitor_interval = 0  # nothing but this thread is there when a child is made,
    tqdm.set_lock(RLock())  # and no child that dies holds what others wait for
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        short_runs.trajectory(short_runs.config(Path(folder), {"run.steps": 1, "optimizer.kind": "AdamW"}))
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        asked = json.loads(line)
        if "wait" in asked:
            answer = os.waitstatus_to_exitcode(os.waitpid(asked["wait"], 0)[1])
        elif (answer := os.fork()) == 0:
            _child(asked)
        print(json.dumps(answer), flush=True)


def _child(asked: dict[str, Any]) -> None:
    """``hooks``: the functions below by their names, with their argument."""
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


def _each_change(act: Callable[[int], None]) -> None:
    """Report the number of each change of the file system, before it is made."""
    count = 0

    def hook(event: str, details: tuple) -> None:
        nonlocal count
        if event in CHANGES or (event == "open" and isinstance(details[1], str) and details[1][0] in "wxa"):
            count += 1
            act(count)

    sys.addaudithook(hook)


def _kill_at(change: int) -> None:
    """Die at that change of the file system."""
    _each_change(lambda count: _die() if count == change else None)


def _count_in(path: str) -> None:
    """Keep the number of changes in a file."""
    file = os.open(path, os.O_CREAT | os.O_WRONLY)
    _each_change(lambda count: os.pwrite(file, str(count).encode(), 0) and None)


def _torn_at(count: int) -> None:
    """Die in the middle of writing the file of that number."""
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
    """Die that many seconds after the first step began."""
    import threading

    from pixelkiln.trainer.training import loop as engine

    step = engine.Loop.step

    def first(self: engine.Loop) -> dict[str, Any]:
        engine.Loop.step = step
        threading.Timer(seconds, _die).start()
        return step(self)

    engine.Loop.step = first


def _at_step(count: int, act: Callable[[Any], object]) -> None:
    """Act before the step that follows step ``count``."""
    from pixelkiln.trainer.training import loop as engine

    step = engine.Loop.step

    def counted(self: engine.Loop) -> dict[str, Any]:
        if self.steps_done == count:
            act(self)
        return step(self)

    engine.Loop.step = counted


def _kill_after_step(count: int) -> None:
    _at_step(count, lambda loop: _die())


def _full_at_step(count: int) -> None:
    import resource

    _at_step(count, lambda loop: resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY)))


def _move_at_step(what: list[Any]) -> None:
    _at_step(what[0], lambda loop: Path(what[1]).rename(what[2]))


def _read_only_at_step(count: int) -> None:
    def act(loop: Any) -> None:
        loop.folder.state.chmod(0o555)
        loop.folder.checkpoints.chmod(0o555)

    _at_step(count, act)


def _jump_at_step(what: list[int]) -> None:
    now = time.time

    def jump(loop: Any) -> None:
        time.time = lambda: now() + what[1]

    _at_step(what[0], jump)


def _stop_at_step(count: int) -> None:
    _at_step(count, lambda loop: loop.stop_requested.set())


def _wait_for(path: str) -> None:
    """Before the fifth step: until that file is there."""

    def act(loop: Any) -> None:
        until(Path(path).exists, path)

    _at_step(4, act)


def _no_override(_: bool) -> None:
    """Root without its exemption from file permissions: without CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH."""
    import ctypes

    if os.geteuid() or sys.platform != "linux":
        return
    libc, header = ctypes.CDLL(None, use_errno=True), (ctypes.c_uint32 * 2)(0x20080522, 0)
    capabilities = (ctypes.c_uint32 * 6)()
    assert libc.capget(header, capabilities) == 0
    for i in range(2):
        capabilities[i] &= ~0b110
    assert libc.capset(header, capabilities) == 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    import conftest  # noqa: F401

    _serve()
