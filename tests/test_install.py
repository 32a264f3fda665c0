"""install.py: which torch a machine gets (pure), and the lifecycle of an environment with a real pip, offline."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from pixelkiln import install
from pixelkiln.install import Facts, Gpu, UserError, choose, explain, read_nvidia

SCRIPT = Path(install.__file__)
AMPERE, PASCAL, BLACKWELL = ("NVIDIA GeForce RTX 3060", 8.6), ("NVIDIA GeForce GTX 1080", 6.1), ("RTX 5090", 12.0)
KEPLER, HOPPER = ("Tesla K80", 3.7), ("NVIDIA GH200 480GB", 9.0)


def box(*gpus: tuple[str, float], driver: str = "580.95.05", system: str = "Linux", machine: str = "x86_64") -> Facts:
    return Facts(system, machine, tuple(Gpu(name, capability, driver) for name, capability in gpus))


PYTORCH = "--extra-index-url https://download.pytorch.org/whl"
CPU_TORCH = [
    "pip install torch==2.13.0+cpu -c constraints/cpu.txt",
    f"or, if that fails, torch==2.13.0+cpu {PYTORCH}/cpu -c constraints/cpu.txt",
    "or, if that fails, torch==2.13.0 -c constraints/cpu.txt",
]
XFORMERS = "pip install xformers==0.0.35 --no-deps --only-binary xformers -c constraints/cuda.txt"
CU130 = (
    "pip install torch==2.13.0+cu130 --extra-index-url https://download.pytorch.org/whl/cu130 -c constraints/cuda.txt"
)
CU126 = CU130.replace("cu130", "cu126")
PLAIN = "or, if that fails, torch==2.13.0 -c constraints/cuda.txt"
PYPI = "pip install torch==2.13.0 -c constraints/cpu.txt"
MACHINES = {
    "CUDA on Linux": (box(AMPERE), "cuda", [CU130, PLAIN, XFORMERS]),
    "CUDA on Windows": (box(AMPERE, system="Windows", machine="AMD64"), "cuda", [CU130, XFORMERS]),
    "CUDA on Linux, an older driver": (box(AMPERE, driver="550.54.14"), "cuda", [CU126, XFORMERS]),
    "CUDA on Linux, an older GPU": (box(PASCAL), "cuda", [CU126, XFORMERS]),
    "CUDA on ARM": (box(HOPPER, machine="aarch64"), "cuda", [CU130, PLAIN]),
    "Blackwell": (box(BLACKWELL), "cuda", [CU130, PLAIN, XFORMERS]),
    "Blackwell, driver too old": (box(BLACKWELL, driver="570.1"), "cpu", CPU_TORCH),
    "driver too old": (box(AMPERE, driver="470.256.02", system="Windows", machine="AMD64"), "cpu", [PYPI]),
    "GPU too old": (box(KEPLER, driver="470.256.02"), "cpu", CPU_TORCH),
    "ROCm": (
        Facts("Linux", "x86_64", amd=("gfx1100",)), "rocm",
        [CU130.replace("cu130", "rocm7.2").replace("cuda.txt", "rocm.txt")],
    ),
    "macOS": (Facts("Darwin", "arm64"), "cpu", [PYPI]),
    "ARM": (Facts("Linux", "aarch64"), "cpu", CPU_TORCH),
    "CPU on Linux": (Facts("Linux", "x86_64"), "cpu", CPU_TORCH),
    "CPU on Windows": (Facts("Windows", "AMD64"), "cpu", [PYPI]),
}  # fmt: skip


@pytest.mark.parametrize(("facts", "kind", "torch"), MACHINES.values(), ids=list(MACHINES))
def test_a_dry_run_prints_what_a_machine_would_get(facts, kind, torch, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(install, "look", lambda: facts)
    monkeypatch.setattr(install, "MARK", tmp_path / "none.json")
    monkeypatch.setattr(install, "_make", None)
    monkeypatch.setattr(install, "_pip", None)
    assert install.main(["--dry-run"]) == 0
    lines = [line.removeprefix("install.py: ") for line in capsys.readouterr().out.splitlines()]
    asked = [line for line in lines if line.startswith(("pip install", "or, if that fails"))]
    project = f"pip install -e .[train] -c constraints/{kind}.txt"
    last = [line for line in torch if line == XFORMERS]
    assert asked == [*(line for line in torch if line != XFORMERS), project, *last]
    assert lines[0].startswith(f"this machine: {kind} (") and f"constraints/{kind}.txt" in lines[1]
    assert [line for line in lines if line.startswith("xformers is left out")] == ([] if last else [lines[2]])


def test_a_dry_run_says_why_nothing_would_be_installed(monkeypatch, capsys):
    monkeypatch.setattr(install, "look", lambda: Facts("Darwin", "x86_64"))
    assert install.main(["ui", "--dry-run"]) == 2
    assert "no longer built for Intel Macs" in capsys.readouterr().err


def test_a_command_is_required():
    for arguments in (["--repair"], ["--dry-run", "--unknown"]):
        with pytest.raises(SystemExit, match="2"):
            install.main(arguments)


@pytest.mark.parametrize(
    ("facts", "kind", "requirements"),
    [
        (box(AMPERE), "cuda", ["torch==2.13.0+cu130", "torch==2.13.0"]),
        (box(AMPERE, system="Windows"), "cuda", ["torch==2.13.0+cu130"]),  # PyPI's torch for Windows is a CPU build
        (box(AMPERE, driver="550.54.14"), "cuda", ["torch==2.13.0+cu126"]),
        (box(PASCAL), "cuda", ["torch==2.13.0+cu126"]),
        (box(PASCAL, BLACKWELL), "cuda", ["torch==2.13.0+cu130", "torch==2.13.0"]),
        (box(BLACKWELL, driver="570.1"), "cpu", ["torch==2.13.0+cpu", "torch==2.13.0+cpu", "torch==2.13.0"]),
        (box(AMPERE, driver="470.256.02", system="Windows"), "cpu", ["torch==2.13.0"]),
        (box(KEPLER, driver="550.1"), "cpu", ["torch==2.13.0+cpu", "torch==2.13.0+cpu", "torch==2.13.0"]),
        (Facts("Linux", "x86_64", amd=("gfx1036", "gfx1100")), "rocm", ["torch==2.13.0+rocm7.2"]),
        (Facts("Linux", "x86_64", amd=("gfx1036",)), "cpu", ["torch==2.13.0+cpu"] * 2 + ["torch==2.13.0"]),
        (Facts("Linux", "aarch64"), "cpu", ["torch==2.13.0+cpu"] * 2 + ["torch==2.13.0"]),
        (Facts("Windows", "AMD64"), "cpu", ["torch==2.13.0"]),
        (Facts("Darwin", "arm64"), "cpu", ["torch==2.13.0"]),
        (Facts("Darwin", "x86_64"), "cpu", []),
    ],
)
def test_each_machine_gets_its_torch(facts: Facts, kind: str, requirements: list[str]):
    plan = choose(facts)
    assert plan.kind == kind
    assert [attempt.requirement for attempt in plan.attempts] == requirements
    assert plan.because
    for attempt in plan.attempts:
        build = attempt.requirement.partition("+")[2]
        assert not attempt.arguments or attempt.arguments[1].endswith(f"/whl/{build}")


def test_problems_that_the_user_can_fix_are_reported():
    def because(gpu: tuple[str, float], driver: str) -> str:
        return choose(box(gpu, driver=driver)).because

    assert "update it to 580" in because(BLACKWELL, "570.1") and "2.11.0, CUDA 12.8" in because(BLACKWELL, "570.1")
    assert "no torch that supports this GPU works with it" in because(BLACKWELL, "560.1")
    assert "update it to 525" in because(PASCAL, "470.1") and "2.7.1, CUDA 11.8" in because(PASCAL, "470.1")
    assert "no torch that supports this GPU works with it" in because(PASCAL, "440.1")
    assert "no torch 2.13.0 is built for its compute capability 3.7" in because(KEPLER, "470.1")
    assert (
        "couldn't communicate"
        in choose(Facts("Linux", "x86_64", nvidia_problem="NVIDIA-SMI couldn't communicate")).because
    )
    assert "gfx1036" in choose(Facts("Linux", "x86_64", amd=("gfx1036",))).because


@pytest.mark.parametrize(
    ("index", "kind"),
    [
        ("https://example.org/whl/cu126/", "cuda"),
        ("https://example.org/whl/rocm7.2", "rocm"),
        ("https://example.org/whl/cpu", "cpu"),
        ("https://example.org/nightly", "cuda"),  # says nothing: the machine decides
    ],
)
def test_an_index_overrides_the_machine(index: str, kind: str):
    plan = choose(box(AMPERE), index)
    assert (plan.kind, plan.attempts) == (kind, (install.Attempt("torch==2.13.0", ("--index-url", index)),))
    assert plan.xformers == ("xformers==0.0.35" if kind == "cuda" else "")


def test_nvidia_smi_is_read():
    text = "NVIDIA GeForce RTX 3060, 8.6, 580.95.05\nTesla, of old, 3.5, 470.1\nNo devices\n[N/A], [N/A], 580\n"
    assert read_nvidia(text) == (Gpu("NVIDIA GeForce RTX 3060", 8.6, "580.95.05"), Gpu("Tesla, of old", 3.5, "470.1"))


def test_amd_cards_are_read(tmp_path: Path):
    for node, version in enumerate([0, 90010, 100300, 110501, 120001]):
        (tmp_path / str(node)).mkdir()
        (tmp_path / str(node) / "properties").write_text(f"cpu_cores_count 0\ngfx_target_version {version}\n")
    assert install._amd(tmp_path) == ("gfx90a", "gfx1030", "gfx1151", "gfx1201")


def test_pips_errors_become_one_line():
    resolve = (
        "HTTPSConnectionPool(host='pypi.org', port=443): Max retries exceeded (Caused by NameResolutionError(...))"
    )
    assert explain(resolve).startswith("no network: pip cannot reach its package index (pypi.org)")
    assert "disk is full" in explain(
        "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"
    )
    odd = "WARNING: x\nERROR: No matching distribution found for torch==2.13.0\nnote: y"
    assert explain(odd) == "pip failed: ERROR: No matching distribution found for torch==2.13.0"
    assert explain("") == "pip failed: no output"


def test_without_a_command_it_prints_one_line_and_installs_nothing(tmp_path: Path):
    copy = shutil.copy(SCRIPT, tmp_path)
    done = subprocess.run([sys.executable, str(copy)], capture_output=True, text=True, cwd=tmp_path.parent)
    assert (done.returncode, done.stdout.count("\n"), done.stderr) == (0, 1, "")
    assert [path.name for path in tmp_path.iterdir()] == ["install.py"]


def test_an_old_or_missing_python_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(install, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(install, "MARK", tmp_path / ".venv" / "pixelkiln.json")
    monkeypatch.setattr(install, "OLDEST", (99, 0))
    with pytest.raises(UserError, match=r"needs Python 99\.0 or newer.*--python PATH"):
        install.set_up(["train"])
    with pytest.raises(UserError, match="it does not run"):
        install.set_up(["train"], python=str(tmp_path / "nowhere"))
    assert not (tmp_path / ".venv").exists()


@pytest.mark.skipif(os.name == "nt", reason="a test cannot send Ctrl-C to a child on Windows")
def test_ctrl_c_is_left_to_the_child(tmp_path: Path):
    child = (
        "import signal, sys, time\n"
        "def stop(*_): time.sleep(0.6); print('saved', flush=True); sys.exit(130)\n"
        "signal.signal(signal.SIGINT, stop); print('up', flush=True); time.sleep(60)"
    )
    runner = tmp_path / "runner.py"
    runner.write_text(
        f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import install\n"
        f"sys.exit(install.run(install.Path(sys.executable), ['-c', {child!r}]))"
    )
    process = subprocess.Popen([sys.executable, str(runner)], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout and process.stdout.readline() == "up\n"
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=30)[0] == "saved\n"
    assert process.returncode == 130


# -------------------------------------------------------------------------------------- the lifecycle of an environment

PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "project"
"""
BACKEND = '''
"""The smallest build backend that pip accepts for an editable install."""
import zipfile


def build_editable(folder, config_settings=None, metadata_directory=None):
    info = "project-1.dist-info"
    with zipfile.ZipFile(f"{folder}/project-1-py3-none-any.whl", "w") as wheel:
        extras = "".join(f"Provides-Extra: {x}\\nRequires-Dist: {y}; extra == '{x}'\\n" for x, y in
                         {"train": "kiln", "ui": "kiln", "test": "pytest"}.items())
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\\nName: project\\nVersion: 1\\n{extras}")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(f"{info}/RECORD", "")
    return "project-1-py3-none-any.whl"
'''
ECHO = "import json, os, sys; print(json.dumps([os.getcwd(), *sys.argv[1:]])); sys.exit(7)"


def wheel(folder: Path, name: str, version: str, files: dict[str, str]) -> None:
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as out:
        for path, text in files.items():
            out.writestr(path, text)
        out.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        out.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        out.writestr(f"{info}/RECORD", "")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project laid out like this one, with stand-in packages as wheels in ``links``."""
    root = tmp_path / "a folder"
    for name in ("constraints", "links", "trainer"):
        (root / name).mkdir(parents=True)
    shutil.copy(SCRIPT, root)
    (root / "pyproject.toml").write_text(PROJECT)
    (root / "backend.py").write_text(BACKEND)
    (root / "trainer" / "__main__.py").write_text(ECHO)
    for kind in ("cpu", "cuda", "rocm"):
        (root / "constraints" / f"{kind}.txt").write_text("# tested: here\nkiln==2\n")
    for build in ("cpu", "cu126", "cu130", "rocm7.2"):
        wheel(root / "links", "torch", f"2.13.0+{build}", {"torch.py": ""})
    wheel(root / "links", "pytest", "1", {"pytest/__init__.py": "", "pytest/__main__.py": ECHO})
    for version in ("1", "2", "3"):
        wheel(root / "links", "kiln", version, {"kiln.py": ""})
    return root


def call_in(project: Path, *arguments: str, links: bool = True, **more: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    offline = {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "1"}
    env = {**kept, **offline, **({"PIP_FIND_LINKS": (project / "links").as_uri()} if links else {}), **more}
    command = [sys.executable, str(project / "install.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=project.parent, env=env)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the driver's program is a shell script here")
def test_xformers_never_fails_a_set_up(project: Path):
    """Where the driver names an NVIDIA GPU: without a wheel, with one that breaks on import, with a good one."""
    smi = project / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    smi.write_text("#!/bin/sh\necho NVIDIA GeForce RTX 3060, 8.6, 580.95.05\n")
    smi.chmod(0o755)
    path = f"{smi.parent}{os.pathsep}{os.environ['PATH']}"
    inside = project / ".venv" / "lib"

    done = call_in(project, "trainer", PATH=path)
    assert done.returncode == 0, done.stderr
    assert "this machine: cuda (NVIDIA GeForce RTX 3060, driver 580.95.05)" in done.stdout
    assert "xformers is left out (no network" in done.stdout
    assert call_in(project, "trainer", PATH=path).stdout == ""  # it is not tried each time

    for text, kept in [("raise ImportError('Flash-Attention is too old')", False), ("", True)]:
        (project / "links" / "xformers-0.0.35-py3-none-any.whl").unlink(missing_ok=True)
        wheel(project / "links", "xformers", "0.0.35", {"xformers/__init__.py": "", "xformers/ops.py": text})
        done = call_in(project, "trainer", "--repair", PATH=path)
        assert done.returncode == 0, done.stderr
        assert ("cannot be imported: ImportError: Flash-Attention is too old" in done.stdout) != kept
        assert bool(list(inside.rglob("xformers-*.dist-info"))) == bool(list(inside.rglob("xformers/ops.py"))) == kept


@pytest.mark.slow
def test_the_lifecycle_of_an_environment(project: Path):
    def call(*arguments: str, links: bool = True) -> subprocess.CompletedProcess[str]:
        return call_in(project, *arguments, links=links)

    def mark() -> dict[str, object]:
        return json.loads((project / ".venv" / "pixelkiln.json").read_text())

    (project / ".venv" / "bin").mkdir(parents=True)
    (project / ".venv" / "bin" / "junk").touch()
    done = call("trainer", links=False)  # incomplete, and no network
    assert done.returncode == 2
    assert "repairing .venv" in done.stdout
    assert not (project / ".venv" / "bin" / "junk").exists()
    assert done.stderr.startswith("install.py: no network") and done.stderr.count("\n") == 1

    done = call("demo", "--fast")  # the child's output and exit code come through
    assert "constraints/" in done.stdout and "tested: here" in done.stdout
    assert "repairing" not in done.stdout  # the failed pip had changed nothing
    assert json.loads(done.stdout.splitlines()[-1]) == [str(project), "demo", "--fast"]
    assert done.returncode == 7, done.stderr
    packages = mark()["packages"]
    assert isinstance(packages, list) and "kiln-2.dist-info" in packages and "pytest-1.dist-info" not in packages

    done = call("demo")  # nothing changed: nothing is done
    assert done.stdout.count("\n") == 1

    shutil.rmtree(next((project / ".venv").rglob("kiln-2.dist-info")))  # a package that disappeared is installed again
    done = call("test", "-k", "a or b", "-x", "tests/test_a.py")
    assert json.loads(done.stdout.splitlines()[-1]) == [
        str(project), "-n", "auto", "--maxprocesses=4", "--dist=loadfile", "-k", "a or b", "-x", "tests/test_a.py"
    ]  # fmt: skip
    assert mark()["extras"] == ["test", "train", "ui"]
    assert mark()["packages"] == sorted(["pytest-1.dist-info", *packages])
    assert call("demo").stdout.count("\n") == 1  # the extras stay

    pins = {file: file.read_text() for file in (project / "constraints").iterdir()}
    for file, text in pins.items():
        file.write_text(text.replace("kiln==2", "kiln==4"))
    done = call("demo")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    for file, text in pins.items():
        file.write_text(text)
    assert call("demo").stdout.count("\n") == 1  # the failed update changed nothing


def test_a_broken_python_is_detected(tmp_path: Path):
    assert install._runs(Path(sys.executable))
    assert not install._runs(tmp_path / "python")
    empty = tmp_path / "broken"
    empty.write_text("")
    assert not install._runs(empty)
