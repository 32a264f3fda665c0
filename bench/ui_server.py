"""The interface as a process of its own, for what drives a browser through it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pixelkiln.trainer.runs import control

ROOT = Path(__file__).resolve().parents[1]


@contextmanager
def served(runs: Path, patience: float = 120) -> Iterator[str]:
    """Its address, as soon as it answers; at the end the interface and what trains are ended."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "pixelkiln.extension", "--no-browser", "--port", str(port), "--runs", str(runs)]
    environment = {**os.environ, "PIXELKILN_PYTHON": os.environ.get("PIXELKILN_PYTHON", sys.executable)}
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    try:
        end = time.monotonic() + patience
        while not _answers(port):
            assert process.poll() is None and time.monotonic() < end, "the interface did not start"
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        for run in control.list_runs(runs):
            control.kill(run.path)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
