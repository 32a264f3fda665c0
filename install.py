"""Make the environment that trains, in ``.venv`` beside this file, and run things in it.

    python install.py demo            # set-up, then a small training run that ends with a before/after picture
    python install.py test            # set-up with the test tools, then the tests; further arguments go to pytest
    python install.py trainer         # the set-up alone
    python install.py ui              # set-up with the user interface, then the interface
    python install.py doctor          # set-up, then a report of what this machine can train with

Without a command it prints one line and installs nothing: ComfyUI-Manager and A1111 call it so, in the host's Python.
Standard library only. pip's own settings (PIP_INDEX_URL, pip.conf, ...) are honoured.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
MARK = VENV / "pixelkiln.json"
TORCH = "2.13.0"
INDEX = "https://download.pytorch.org/whl/"
OLDEST, NEWEST = (3, 11), (3, 14)
TRAIN = ("train",)
EXTRAS = {"trainer": TRAIN, "demo": TRAIN, "doctor": TRAIN, "ui": (*TRAIN, "ui"), "test": (*TRAIN, "ui", "test")}
RUNS = {
    "demo": ("-m", "trainer", "demo"),
    "doctor": ("-m", "trainer", "doctor"),
    "ui": ("-m", "pixelkiln.extension"),
    "test": ("-m", "pytest", "-n", "auto", "--maxprocesses=4"),
}
ROCM_BUILDS = (
    "gfx900", "gfx906", "gfx908", "gfx90a", "gfx942", "gfx950", "gfx1030", "gfx1100", "gfx1101", "gfx1102", "gfx1150",
    "gfx1151", "gfx1200", "gfx1201",
)  # fmt: skip
NO_NETWORK = (
    "NewConnectionError", "NameResolutionError", "ConnectTimeoutError", "ReadTimeoutError", "ProxyError",
    "Max retries exceeded", "Network is unreachable", "Temporary failure in name resolution", "getaddrinfo failed",
)  # fmt: skip


class Trouble(Exception):
    """What a person has to know and can mend: one line."""


def say(text: str) -> None:
    print(f"install.py: {text}", flush=True)


# --------------------------------------------------------------------------- this machine -> which torch, from where


@dataclass(frozen=True)
class Card:
    """An NVIDIA card: its name, compute capability and the driver's version."""

    name: str
    capability: float
    driver: str


@dataclass(frozen=True)
class Facts:
    system: str
    """Linux, Windows or Darwin."""
    machine: str
    """x86_64, AMD64, arm64, aarch64."""
    nvidia: tuple[Card, ...] = ()
    nvidia_problem: str = ""
    """What nvidia-smi said, where it is there but names no card."""
    amd: tuple[str, ...] = ()
    """The architectures of AMD cards that the kernel offers for computing: gfx1100."""


class Attempt(NamedTuple):
    """One thing for pip to try."""

    requirement: str
    arguments: tuple[str, ...] = ()
    note: str = ""
    """Said before it is tried."""


@dataclass(frozen=True)
class Plan:
    kind: str
    """cpu, cuda or rocm: the constraints file."""
    because: str
    attempts: tuple[Attempt, ...]
    """Tried in this order until one succeeds; none means that there is no torch for this machine."""


def choose(facts: Facts, index: str | None = None) -> Plan:
    """Which torch this machine gets. ``index`` overrides: exactly that package index, whatever the machine is.

    CUDA 13.0 builds need driver 580 and a Turing card (7.5) or newer; CUDA 12.6 builds run from driver 525 on, from
    Maxwell to Hopper (9.0). Source: PyTorch's CUDA support matrix for 2.13, NVIDIA's CUDA compatibility guide.
    """
    found = _choose(facts)
    if not index:
        return found
    last = index.rstrip("/").rsplit("/", 1)[-1]
    kind = next((k for k, start in (("cuda", "cu1"), ("rocm", "rocm"), ("cpu", "cpu")) if last.startswith(start)), None)
    return Plan(kind or found.kind, f"torch from {index}", (Attempt(f"torch=={TORCH}", ("--index-url", index)),))


def _choose(facts: Facts) -> Plan:
    if facts.nvidia and facts.system != "Darwin":
        card = max(facts.nvidia, key=lambda c: c.capability)
        driver = int(card.driver.split(".")[0])
        told = f"{card.name}, driver {card.driver}"
        if driver >= 580 and card.capability >= 7.5:
            # PyPI's own torch for Linux is the CUDA 13.0 build, for Windows it is a CPU build.
            plain = Attempt(f"torch=={TORCH}", (), "PyTorch's own index failed; trying the usual one")
            return Plan("cuda", told, (_from("cu130"), plain) if facts.system == "Linux" else (_from("cu130"),))
        if driver >= 525 and card.capability < 10:
            return Plan("cuda", told, (_from("cu126"),))
        wanted = 580 if card.capability >= 7.5 else 525
        return _cpu(facts, f"{told}: the driver is too old; update it to {wanted} or newer and run this again")
    if facts.nvidia_problem:
        return _cpu(facts, f"an NVIDIA driver is installed but does not answer ({facts.nvidia_problem})")
    if facts.amd and facts.system == "Linux":
        built = [name for name in facts.amd if name in ROCM_BUILDS]
        if built:
            return Plan("rocm", f"AMD {built[0]}", (_from("rocm7.2"),))
        return _cpu(facts, f"PyTorch has no ROCm build for AMD {facts.amd[0]}; --torch-index can name another source")
    if facts.system == "Darwin":
        if facts.machine != "arm64":
            return Plan("cpu", "PyTorch is no longer built for Intel Macs; nothing here can train on this machine", ())
        return _cpu(facts, "Apple silicon; torch brings its GPU (MPS) along, which nobody has tried here yet")
    return _cpu(facts, "no NVIDIA or AMD driver found")


def _from(build: str) -> Attempt:
    return Attempt(f"torch=={TORCH}+{build}", ("--extra-index-url", INDEX + build))


def _cpu(facts: Facts, because: str) -> Plan:
    if facts.system != "Linux":
        return Plan("cpu", because, (Attempt(f"torch=={TORCH}"),))
    # On Linux PyPI's torch brings gigabytes of CUDA; so first a CPU build, from the user's own sources or PyTorch's.
    build = _from("cpu")
    note = "no CPU build of torch can be reached, so the usual one, which is several GB larger"
    return Plan("cpu", because, (Attempt(build.requirement), build, Attempt(f"torch=={TORCH}", (), note)))


def look() -> Facts:
    """The facts of this machine, by its drivers alone."""
    cards, problem = _nvidia()
    return Facts(platform.system(), platform.machine(), cards, problem, _amd(Path("/sys/class/kfd/kfd/topology/nodes")))


def _nvidia() -> tuple[tuple[Card, ...], str]:
    program = shutil.which("nvidia-smi") or shutil.which("nvidia-smi", path="/usr/lib/wsl/lib")
    if not program:
        return (), ""
    query = [program, "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, errors="replace", timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return (), str(error)
    cards = read_nvidia(answer.stdout) if answer.returncode == 0 else ()
    said = (answer.stdout + answer.stderr).strip().splitlines()
    return cards, "" if cards else (said or ["no card"])[0]


def read_nvidia(text: str) -> tuple[Card, ...]:
    """nvidia-smi's lines ``NVIDIA GeForce RTX 3060, 8.6, 580.95.05``; lines of another form are left out."""
    lines = (re.fullmatch(r"(.+), (\d+\.\d+), (\d+[\d.]*)", line.strip()) for line in text.splitlines())
    return tuple(Card(line[1], float(line[2]), line[3]) for line in lines if line)


def _amd(nodes: Path) -> tuple[str, ...]:
    names = []
    for file in sorted(nodes.glob("*/properties")):
        try:
            words = dict(line.split(" ", 1) for line in file.read_text(encoding="utf-8").splitlines() if " " in line)
        except OSError:
            continue
        version = int(words.get("gfx_target_version", 0))
        if version:
            names.append(f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}")
    return tuple(names)


# -------------------------------------------------------------------------------------------------- the environment


def set_up(needed: Iterable[str], python: str | None = None, index: str | None = None, anew: bool = False) -> Path:
    """Make, update or repair ``.venv`` so that it holds these extras and whatever it held; -> its Python. Quick when
    nothing changed. An update that fails leaves a working environment as it was."""
    mark = _read_mark()
    inside = python_in(VENV)
    sound = not anew and mark.get("state") != "making" and _runs(inside) and _same_python(python, inside)
    index = index or mark.get("torch_index")
    plan = choose(look(), index)
    if not plan.attempts:
        raise Trouble(plan.because)
    extras = sorted({*needed, *mark.get("extras", ())})
    wanted = {"state": "ready", "key": fingerprint(plan), "extras": extras, "torch_index": index}
    if sound and wanted.items() <= mark.items() and set(mark["packages"]) <= _packages():
        return inside
    constraints = ROOT / "constraints" / f"{plan.kind}.txt"
    tested = constraints.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
    say(f"this machine: {plan.kind} ({plan.because})")
    say(f"versions: constraints/{plan.kind}.txt, {tested}")
    if not sound:
        say("repairing .venv: it is half made, broken or unwanted" if VENV.exists() else "making .venv")
        _make(python)
    _write_mark({**wanted, "state": "making"})
    try:
        _install(inside, plan, extras, constraints)
    except Trouble:
        _write_mark(mark if sound else {"state": "empty"})
        raise
    _write_mark({**wanted, "packages": sorted(_packages())})
    say(f"ready: {VENV}")
    return inside


def python_in(venv: Path, windows: bool = os.name == "nt") -> Path:
    return venv / ("Scripts/python.exe" if windows else "bin/python")


def fingerprint(plan: Plan) -> str:
    """Changes when the environment would: other pins, other requirements, another torch, another place."""
    files = [ROOT / "pyproject.toml", *sorted((ROOT / "constraints").glob("*.txt"))]
    parts = [str(ROOT).encode(), repr(plan.attempts).encode(), *(file.read_bytes() for file in files)]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _read_mark() -> dict[str, Any]:
    try:
        mark = json.loads(MARK.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return mark if isinstance(mark, dict) else {}


def _write_mark(mark: dict[str, Any]) -> None:
    aside = MARK.with_suffix(".new")
    aside.write_text(json.dumps(mark), encoding="utf-8")
    aside.replace(MARK)


def _packages() -> set[str]:
    """The installed packages with their versions, as their folders are named."""
    return {
        folder.name for place in ("lib/python*", "Lib") for folder in VENV.glob(f"{place}/site-packages/*.dist-info")
    }


def _runs(python: Path) -> bool:
    command = [str(python), "-c", "import pip"]
    try:
        return subprocess.run(command, capture_output=True, env=_environment()).returncode == 0
    except OSError:
        return False


def _version(python: str) -> tuple[int, int]:
    try:
        command = [python, "-c", "import sys; print(*sys.version_info[:2])"]
        answer = subprocess.run(command, capture_output=True, text=True, env=_environment()).stdout.split()
        return int(answer[0]), int(answer[1])
    except (OSError, ValueError, IndexError):
        raise Trouble(f"--python {python}: it is no Python that runs; give the path of python.exe or python3") from None


def _same_python(asked: str | None, inside: Path) -> bool:
    return asked is None or _version(asked) == _version(str(inside))


def _make(asked: str | None) -> None:
    python = asked or getattr(sys, "_base_executable", None) or sys.executable
    version = _version(python)
    if version < OLDEST:
        raise Trouble(
            f"training needs Python {_dotted(OLDEST)} or newer, and {python} is {_dotted(version)}; "
            "run install.py with a newer one, or name it: --python PATH"
        )
    if version > NEWEST:
        say(f"Python {_dotted(version)} is newer than any that was tried ({_dotted(OLDEST)} to {_dotted(NEWEST)})")
    try:
        if VENV.exists():
            shutil.rmtree(VENV)
        VENV.mkdir()
    except OSError as error:
        raise Trouble(f".venv: it cannot be replaced ({error}); close what uses it, or remove the folder") from None
    _write_mark({"state": "making"})
    made = subprocess.run([python, "-m", "venv", str(VENV)], capture_output=True, text=True, env=_environment())
    if made.returncode or not _runs(python_in(VENV)):
        raise Trouble(
            f"{python} cannot make environments (its modules venv and ensurepip are needed); on Debian and Ubuntu: "
            "sudo apt install python3-venv; else name another Python: --python PATH"
        )


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def _install(python: Path, plan: Plan, extras: list[str], constraints: Path) -> None:
    said: str | None = None
    for attempt in plan.attempts:
        if attempt.note:
            say(attempt.note)
        said = _pip(python, attempt.requirement, *attempt.arguments, "-c", str(constraints))
        if said is None or (offline(said) and not attempt.arguments):
            break
    said = said or _pip(python, "-e", f".[{','.join(extras)}]", "-c", str(constraints))
    if said is not None:
        raise Trouble(explain(said))


def _pip(python: Path, *arguments: str) -> str | None:
    """None, or what pip said when it failed."""
    quiet = () if sys.stdout.isatty() else ("--quiet",)
    command = [str(python), "-m", "pip", "install", *quiet, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=_environment(), stderr=subprocess.PIPE, text=True, errors="replace")
    return done.stderr if done.returncode else None


def offline(said: str) -> bool:
    return any(sign in said for sign in NO_NETWORK)


def explain(said: str) -> str:
    """pip's complaint as one line."""
    if offline(said):
        host = re.search(r"host='([^']+)'|Failed to resolve '([^']+)'", said)
        where = f" ({host[1] or host[2]})" if host else ""
        return f"no network: pip cannot reach its package index{where}; connect, or set PIP_INDEX_URL, and run it again"
    if "No space left on device" in said or "[Errno 28]" in said:
        return (
            "the disk is full: the environment takes about 3 GB for a CPU, 10 GB for a GPU; make room and run it again"
        )
    errors = [line.strip() for line in said.splitlines() if line.lower().lstrip().startswith("error:")]
    return "pip failed: " + (errors[0] if errors else (said.strip().splitlines() or ["it said nothing"])[-1])


def _environment() -> dict[str, str]:
    """This process's environment without what would lead pip or Python out of ``.venv``."""
    away = {"PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_USER", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__"}
    kept = {name: value for name, value in os.environ.items() if name not in away}
    return {
        "PIP_RETRIES": "3",
        **kept,
        "PYTHONNOUSERSITE": "1",
        "PIP_NO_INPUT": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }


# ------------------------------------------------------------------------------------------------- the command line


def run(python: Path, arguments: list[str]) -> int:
    """Run Python in the repository; Ctrl-C is the child's to obey (it saves), and this waits for it."""
    child = subprocess.Popen([str(python), *arguments], cwd=ROOT, env=_environment())
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    while True:
        try:
            code = child.wait()
        except KeyboardInterrupt:
            continue
        return code if code >= 0 else 128 - code


def main(arguments: list[str]) -> int:
    if not arguments:
        print("Pixelkiln: nothing to install into this Python; training has its own: python install.py trainer|demo|ui")
        return 0
    parser = argparse.ArgumentParser(
        prog="install.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("command", choices=list(EXTRAS))
    parser.add_argument("--torch-index", metavar="URL", help="take torch from this index, whatever the machine is")
    parser.add_argument("--python", metavar="PATH", help="make .venv with this Python")
    parser.add_argument("--repair", action="store_true", help="make .venv anew, even if it looks sound")
    args, rest = parser.parse_known_args(arguments)
    if rest and args.command in ("trainer", "doctor"):
        parser.error(f"unknown arguments: {' '.join(rest)}")
    try:
        python = set_up(EXTRAS[args.command], args.python, args.torch_index, args.repair)
        return run(python, [*RUNS[args.command], *rest]) if args.command in RUNS else 0
    except Trouble as trouble:
        print(f"install.py: {trouble}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("install.py: stopped; the same command goes on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
