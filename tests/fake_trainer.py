"""Stands in for ``python -m trainer`` in the tests of job control: real processes that take no time.

``write(folder)`` puts it there as the module ``fake``; the configuration is JSON and says what to do.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = """
import json, os, subprocess, sys, time
sys.path.insert(0, {root!r})
from pathlib import Path
from trainer.runs.events import EventLog, write_status
from trainer.runs.control import lock

command, *rest = sys.argv[1:]
if command != "train":
    if command == "check":
        print(json.dumps({{"v": 1, "arguments": rest, "cwd": os.getcwd()}}))
    elif command == "hang":
        time.sleep(60)
    elif command == "babble":
        print("no JSON")
    else:
        print('{{"v": 1, "problems": ["a"]}}')
        sys.exit("warning: old\\nerror: adapter.rank: first\\nadapter.kind: second")
    sys.exit(0)
config = json.loads(Path(rest[0]).read_text())
run = Path(config["run"])
print("hello", *rest[1:], *sorted(key for key in os.environ if key.startswith(("PYTHON", "VIRTUAL"))), flush=True)
time.sleep(config.get("late", 0))
if config.get("mistake"):
    print("error: run.name: " + config["mistake"], file=sys.stderr)
    sys.exit(2)
try:
    with lock(run), EventLog(run / "events.jsonl") as log:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) if config.get("child") else None
        total = config.get("steps", 3)
        for step in range(1, total + 1):
            log.write("step", step, loss=1 / step, child=child and child.pid)
            write_status(run, "running", step=step, total=total, eta=1.0)
            if step == config.get("crash"):
                raise SystemExit("error: out of memory")
            if (run / "control" / "stop").exists():
                (run / "control" / "stop").unlink()
                write_status(run, "stopped", step=step, total=total, message="saved", exit_code=130)
                sys.exit(130)
            time.sleep(config.get("pause", 0.01))
        write_status(run, "done", step=total, total=total, exit_code=0)
except ValueError as error:
    print("error:", error, file=sys.stderr)
    sys.exit(2)
"""


def write(folder: Path) -> Path:
    (folder / "fake.py").write_text(SCRIPT.format(root=str(ROOT)), encoding="utf-8")
    return folder


def config(run: Path, **more: Any) -> Path:
    """A configuration for it, beside the run's folder."""
    path = run.with_name(f"{run.name}.json")
    path.write_text(json.dumps({"run": str(run), **more}), encoding="utf-8")
    return path
