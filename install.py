"""Make the environment that trains, in ``.venv`` beside this file, and run things in it.

    python install.py demo            # set-up, then a small training run that ends with a before/after picture
    python install.py demo dense      # the same with depth: pictures of rendered scenes to maps, and their scores
    python install.py test            # set-up with the test tools, then the tests; further arguments go to pytest
    python install.py trainer         # the set-up alone
    python install.py ui              # set-up with the user interface, then the interface
    python install.py doctor          # set-up, then a report of what this machine can train with
    python install.py --dry-run       # what it would ask of pip on this machine; nothing is done

Without a command it prints one line and installs nothing: ComfyUI-Manager and A1111 call it that way, in the host's
Python. Standard library only. pip's own settings (PIP_INDEX_URL, pip.conf, ...) apply.
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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
MARK = VENV / "pixelkiln.json"
TORCH = "2.13.0"
XFORMERS = "0.0.35"
INDEX = "https://download.pytorch.org/whl/"
OLDEST, NEWEST = (3, 11), (3, 14)
TRAIN = ("train",)
EXTRAS = {"trainer": TRAIN, "demo": TRAIN, "doctor": TRAIN, "ui": (*TRAIN, "ui"), "test": (*TRAIN, "ui", "test")}
RUNS = {
    "demo": ("-m", "trainer", "demo"),
    "doctor": ("-m", "trainer", "doctor", "--force"),
    "ui": ("-m", "pixelkiln.extension"),
    "test": ("-m", "pytest", "-n", "auto", "--maxprocesses=4", "--dist=loadfile"),
}
ROCM_BUILDS = (
    "gfx900", "gfx906", "gfx908", "gfx90a", "gfx942", "gfx950", "gfx1030", "gfx1100", "gfx1101", "gfx1102", "gfx1150",
    "gfx1151", "gfx1200", "gfx1201",
)  # fmt: skip
NO_NETWORK = (
    "NewConnectionError", "NameResolutionError", "ConnectTimeoutError", "ReadTimeoutError", "ProxyError",
    "Max retries exceeded", "Network is unreachable", "Temporary failure in name resolution", "getaddrinfo failed",
)  # fmt: skip


class UserError(Exception):
    """A problem that the user can fix, as one line."""


def log(text: str) -> None:
    print(f"install.py: {text}", flush=True)


# --------------------------------------------------------------------------- this machine -> which torch, from where


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU: its name, compute capability and the driver's version."""

    name: str
    capability: float
    driver: str


@dataclass(frozen=True)
class Facts:
    system: str
    """Linux, Windows or Darwin."""
    machine: str
    """x86_64, AMD64, arm64, aarch64."""
    nvidia: tuple[Gpu, ...] = ()
    nvidia_problem: str = ""
    """The output of nvidia-smi where it is installed but lists no GPU."""
    amd: tuple[str, ...] = ()
    """Architectures of the AMD GPUs that the kernel offers for compute: gfx1100."""


class Attempt(NamedTuple):
    """One requirement for pip to try."""

    requirement: str
    arguments: tuple[str, ...] = ()
    note: str = ""
    """Logged before the attempt."""


@dataclass(frozen=True)
class Plan:
    kind: str
    """cpu, cuda or rocm: the constraints file."""
    because: str
    attempts: tuple[Attempt, ...]
    """Tried in this order until one succeeds; empty where there is no torch for this machine."""
    xformers: str = ""
    """Its requirement, where there are wheels with kernels for this machine. It never fails a set-up."""


def choose(facts: Facts, index: str | None = None) -> Plan:
    """Choose the torch build for this machine. ``index`` overrides it: exactly that package index.

    CUDA 13.0 builds need driver 580 and a Turing GPU (7.5) or newer; CUDA 12.6 builds run from driver 525 on, from
    Maxwell (5.0) to Hopper (9.0). Source: PyTorch's CUDA support matrix for 2.13, NVIDIA's CUDA compatibility guide.
    xformers has wheels for Linux and Windows on x86-64, for any CUDA torch from 2.10 on (torch's stable ABI).
    """
    found = _choose(facts)
    if index:
        last = index.rstrip("/").rsplit("/", 1)[-1]
        kinds = (("cuda", "cu1"), ("rocm", "rocm"), ("cpu", "cpu"))
        kind = next((kind for kind, start in kinds if last.startswith(start)), found.kind)
        found = Plan(kind, f"torch from {index}", (Attempt(f"torch=={TORCH}", ("--index-url", index)),))
    if found.kind == "cuda" and facts.machine.lower() in ("x86_64", "amd64"):
        return replace(found, xformers=f"xformers=={XFORMERS}")
    return found


def _choose(facts: Facts) -> Plan:
    if facts.nvidia and facts.system != "Darwin":
        gpu = max(facts.nvidia, key=lambda g: g.capability)
        driver = int(gpu.driver.split(".")[0])
        found = f"{gpu.name}, driver {gpu.driver}"
        if driver >= 580 and gpu.capability >= 7.5:
            # PyPI's own torch for Linux is the CUDA 13.0 build, for Windows it is a CPU build.
            plain = Attempt(f"torch=={TORCH}", (), "PyTorch's own index failed; trying pip's default index")
            return Plan("cuda", found, (_from("cu130"), plain) if facts.system == "Linux" else (_from("cu130"),))
        if gpu.capability < 5:
            return _cpu(facts, f"{found}: no torch {TORCH} is built for its compute capability {gpu.capability}")
        if driver >= 525 and gpu.capability < 10:
            return Plan("cuda", found, (_from("cu126"),))
        wanted = 580 if gpu.capability >= 7.5 else 525
        return _cpu(
            facts,
            f"{found}: the driver is too old; update it to {wanted} or newer and run this again "
            f"({_newest(gpu.capability, driver)})",
        )
    if facts.nvidia_problem:
        return _cpu(facts, f"an NVIDIA driver is installed but does not answer ({facts.nvidia_problem})")
    if facts.amd and facts.system == "Linux":
        built = [name for name in facts.amd if name in ROCM_BUILDS]
        if built:
            return Plan("rocm", f"AMD {built[0]}", (_from("rocm7.2"),))
        return _cpu(facts, f"PyTorch has no ROCm build for AMD {facts.amd[0]}; --torch-index can name another source")
    if facts.system == "Darwin":
        if facts.machine != "arm64":
            return Plan("cpu", "PyTorch is no longer built for Intel Macs, so this machine cannot train", ())
        return _cpu(facts, "Apple silicon; torch includes MPS, which is untested here")
    return _cpu(facts, "no NVIDIA or AMD driver found")


def _newest(capability: float, driver: int) -> str:
    """The newest torch for a driver that is too old for this one, where there is any: CUDA 12.8 builds with Blackwell
    end at 2.11, CUDA 11.8 builds, without it, at 2.7."""
    if driver >= 570:
        return "the newest torch that works with it is 2.11.0, CUDA 12.8, which is not installed here"
    if driver >= 450 and capability < 10:
        return "the newest torch that works with it is 2.7.1, CUDA 11.8, older than the 2.10 that training needs"
    return "no torch that supports this GPU works with it"


def _from(build: str) -> Attempt:
    return Attempt(f"torch=={TORCH}+{build}", ("--extra-index-url", INDEX + build))


def _cpu(facts: Facts, because: str) -> Plan:
    if facts.system != "Linux":
        return Plan("cpu", because, (Attempt(f"torch=={TORCH}"),))
    # On Linux PyPI's torch pulls in gigabytes of CUDA: first try a CPU build, from the user's own index or PyTorch's.
    build = _from("cpu")
    note = "no CPU build of torch can be reached; installing the default build, which is several GB larger"
    return Plan("cpu", because, (Attempt(build.requirement), build, Attempt(f"torch=={TORCH}", (), note)))


def look() -> Facts:
    """Detect this machine's GPUs from its drivers."""
    gpus, problem = _nvidia()
    return Facts(platform.system(), platform.machine(), gpus, problem, _amd(Path("/sys/class/kfd/kfd/topology/nodes")))


def _nvidia() -> tuple[tuple[Gpu, ...], str]:
    program = shutil.which("nvidia-smi") or shutil.which("nvidia-smi", path="/usr/lib/wsl/lib")
    if not program:
        return (), ""
    query = [program, "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, errors="replace", timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return (), str(error)
    gpus = read_nvidia(answer.stdout) if answer.returncode == 0 else ()
    output = (answer.stdout + answer.stderr).strip().splitlines()
    return gpus, "" if gpus else (output or ["no GPU"])[0]


def read_nvidia(text: str) -> tuple[Gpu, ...]:
    """Parse nvidia-smi's lines ``NVIDIA GeForce RTX 3060, 8.6, 580.95.05``; other lines are skipped."""
    lines = (re.fullmatch(r"(.+), (\d+\.\d+), (\d+[\d.]*)", line.strip()) for line in text.splitlines())
    return tuple(Gpu(line[1], float(line[2]), line[3]) for line in lines if line)


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


def set_up(needed: Iterable[str], python: str | None = None, index: str | None = None, repair: bool = False) -> Path:
    """Make, update or repair ``.venv`` with these extras and those it already has, and return its Python.

    It returns at once when nothing changed. An update that fails leaves a working environment as it was.
    """
    mark = _read_mark()
    inside = python_in(VENV)
    complete = not repair and mark.get("state") != "making" and _runs(inside) and _same_python(python, inside)
    index = index or mark.get("torch_index")
    plan = choose(look(), index)
    if not plan.attempts:
        raise UserError(plan.because)
    extras = sorted({*needed, *mark.get("extras", ())})
    wanted = {"state": "ready", "key": fingerprint(plan), "extras": extras, "torch_index": index}
    if complete and wanted.items() <= mark.items() and set(mark["packages"]) <= _packages():
        return inside
    _log_plan(plan)
    if not complete:
        log("repairing .venv: it is incomplete, broken or to be replaced" if VENV.exists() else "making .venv")
        _make(python)
    _write_mark({**wanted, "state": "making"})
    try:
        _install(inside, plan, extras)
    except UserError:
        _write_mark(mark if complete else {"state": "empty"})
        raise
    _write_mark({**wanted, "packages": sorted(_packages())})
    log(f"ready: {VENV}")
    return inside


def dry_run(needed: Iterable[str], index: str | None = None) -> None:
    """Print what ``set_up`` would ask of pip, in its order, and do nothing."""
    mark = _read_mark()
    plan = choose(look(), index or mark.get("torch_index"))
    if not plan.attempts:
        raise UserError(plan.because)
    _log_plan(plan)
    for number, attempt in enumerate(plan.attempts):
        log(f"{'pip install' if not number else 'or, if that fails,'} {' '.join([*_torch(attempt, plan)])}")
    log(f"pip install {' '.join(_project(sorted({*needed, *mark.get('extras', ())}), plan))}")
    if plan.xformers:
        log(f"pip install {' '.join(_xformers(plan))}")


def _log_plan(plan: Plan) -> None:
    tested = (ROOT / _constraints(plan)).read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
    log(f"this machine: {plan.kind} ({plan.because})")
    log(f"versions: {_constraints(plan)}, {tested}")
    if not plan.xformers:
        log("xformers is left out: it has kernels for NVIDIA GPUs on x86-64 only; attention is torch's own")


def _constraints(plan: Plan) -> str:
    return f"constraints/{plan.kind}.txt"


def _torch(attempt: Attempt, plan: Plan) -> tuple[str, ...]:
    return (attempt.requirement, *attempt.arguments, "-c", _constraints(plan))


def _project(extras: list[str], plan: Plan) -> tuple[str, ...]:
    return ("-e", f".[{','.join(extras)}]", "-c", _constraints(plan))


def _xformers(plan: Plan) -> tuple[str, ...]:
    """It takes a wheel only, for a build from source takes an hour, and leaves torch as it is."""
    return (plan.xformers, "--no-deps", "--only-binary", "xformers", "-c", _constraints(plan))


def python_in(venv: Path, windows: bool = os.name == "nt") -> Path:
    return venv / ("Scripts/python.exe" if windows else "bin/python")


def fingerprint(plan: Plan) -> str:
    """A hash of all that the environment depends on: pins, requirements, torch and its location."""
    files = [ROOT / "pyproject.toml", *sorted((ROOT / "constraints").glob("*.txt"))]
    asked = repr((plan.attempts, plan.xformers))
    parts = [str(ROOT).encode(), asked.encode(), *(file.read_bytes() for file in files)]
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
    """Names of the installed packages' dist-info folders, which include the versions."""
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
        raise UserError(f"--python {python}: it does not run; give the path of python.exe or python3") from None


def _same_python(asked: str | None, inside: Path) -> bool:
    return asked is None or _version(asked) == _version(str(inside))


def _make(asked: str | None) -> None:
    python = asked or getattr(sys, "_base_executable", None) or sys.executable
    version = _version(python)
    if version < OLDEST:
        raise UserError(
            f"training needs Python {_dotted(OLDEST)} or newer, and {python} is {_dotted(version)}; "
            "run install.py with a newer one, or give its path: --python PATH"
        )
    if version > NEWEST:
        log(f"Python {_dotted(version)} is newer than any tested version ({_dotted(OLDEST)} to {_dotted(NEWEST)})")
    try:
        if VENV.exists():
            shutil.rmtree(VENV)
        VENV.mkdir()
    except OSError as error:
        raise UserError(f".venv: it cannot be replaced ({error}); close what uses it, or remove the folder") from None
    _write_mark({"state": "making"})
    made = subprocess.run([python, "-m", "venv", str(VENV)], capture_output=True, text=True, env=_environment())
    if made.returncode or not _runs(python_in(VENV)):
        raise UserError(
            f"{python} cannot make environments (it lacks venv or ensurepip); on Debian and Ubuntu: "
            "sudo apt install python3-venv; otherwise give another Python: --python PATH"
        )


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def _install(python: Path, plan: Plan, extras: list[str]) -> None:
    errors: str | None = None
    for attempt in plan.attempts:
        if attempt.note:
            log(attempt.note)
        errors = _pip(python, *_torch(attempt, plan))
        if errors is None or (offline(errors) and not attempt.arguments):
            break
    errors = errors or _pip(python, *_project(extras, plan))
    if errors is not None:
        raise UserError(explain(errors))
    if plan.xformers:
        _install_xformers(python, plan)


def _install_xformers(python: Path, plan: Plan) -> None:
    """Or log why not. One that cannot be imported is removed again: diffusers imports whatever is installed."""
    errors = _pip(python, *_xformers(plan))
    if errors is None:
        command = [str(python), "-c", "import xformers.ops"]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=_environment())
        if not done.returncode:
            return
        why = f"it cannot be imported: {(done.stderr.strip().splitlines() or ['no output'])[-1]}"
        remove = [str(python), "-m", "pip", "uninstall", "--quiet", "--yes", "xformers"]
        subprocess.run(remove, env=_environment(), capture_output=True)
    else:
        why = explain(errors)
    log(f"xformers is left out ({why}); attention is torch's own. To try again: python install.py trainer --repair")


def _pip(python: Path, *arguments: str) -> str | None:
    """None, or pip's error output when it failed."""
    quiet = () if sys.stdout.isatty() else ("--quiet",)
    command = [str(python), "-m", "pip", "install", *quiet, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=_environment(), stderr=subprocess.PIPE, text=True, errors="replace")
    return done.stderr if done.returncode else None


def offline(errors: str) -> bool:
    return any(sign in errors for sign in NO_NETWORK)


def explain(output: str) -> str:
    """pip's error output as one line."""
    if offline(output):
        host = re.search(r"host='([^']+)'|Failed to resolve '([^']+)'", output)
        where = f" ({host[1] or host[2]})" if host else ""
        return f"no network: pip cannot reach its package index{where}; connect or set PIP_INDEX_URL, and try again"
    if "No space left on device" in output or "[Errno 28]" in output:
        return "the disk is full: the environment takes 3 GB for a CPU, 10 GB for a GPU; free some space and try again"
    lines = [line.strip() for line in output.splitlines() if line.lower().lstrip().startswith("error:")]
    return "pip failed: " + (lines[0] if lines else (output.strip().splitlines() or ["no output"])[-1])


def _environment() -> dict[str, str]:
    """This process's environment without variables that point pip or Python outside ``.venv``."""
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
    """Run Python in the repository and wait for it, also on Ctrl-C: the child handles it and saves."""
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
    parser.add_argument("command", choices=list(EXTRAS), nargs="?")
    parser.add_argument("--torch-index", metavar="URL", help="install torch from this index, whatever the machine is")
    parser.add_argument("--python", metavar="PATH", help="make .venv with this Python")
    parser.add_argument("--repair", action="store_true", help="rebuild .venv even if it looks complete")
    parser.add_argument("--dry-run", action="store_true", help="print what would be installed here, and do nothing")
    args, rest = parser.parse_known_args(arguments)
    if args.command is None and (rest or not args.dry_run):
        parser.error(f"no command; one of {', '.join(EXTRAS)}")
    if rest and args.command in ("trainer", "doctor"):
        parser.error(f"unknown arguments: {' '.join(rest)}")
    command: str = args.command or "trainer"
    try:
        if args.dry_run:
            dry_run(EXTRAS[command], args.torch_index)
            return 0
        python = set_up(EXTRAS[command], args.python, args.torch_index, args.repair)
        return run(python, [*RUNS[command], *rest]) if command in RUNS else 0
    except UserError as error:
        print(f"install.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("install.py: interrupted; run the same command again to continue", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
