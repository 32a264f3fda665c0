"""The wheel: it holds every file of the packages, and works where the source tree is not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
import short_runs as runs

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("extension", "locales", "nodes", "presets", "trainer", "web")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, as setuptools leaves folders of its own in the source tree."""
    source, out = tmp_path_factory.mktemp("source") / "pixelkiln", tmp_path_factory.mktemp("wheel")
    unneeded = shutil.ignore_patterns("__pycache__", "*.egg-info")
    top = {"build", "dist", "tests", "bench", "runs", "docs"}

    def left_out(folder: str, names: list[str]) -> set[str]:
        here = {name for name in names if name in top or name.startswith(".")} if Path(folder) == ROOT else set()
        return here | unneeded(folder, names)

    shutil.copytree(ROOT, source, ignore=left_out)
    isolation = ["--no-build-isolation"] if find_spec("setuptools") else []  # without: pip fetches setuptools
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", *isolation, "-w", str(out), "."]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    (path,) = out.glob("*.whl")
    return path


def test_every_file_of_the_packages_is_in_it(wheel: Path):
    files = [path for folder in PACKAGES for path in (ROOT / folder).rglob("*") if path.is_file()]
    wanted = {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}
    there = set(zipfile.ZipFile(wheel).namelist())
    assert sorted(path for path in wanted if f"pixelkiln/{path}" not in there) == []


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its commands' folder, in an environment that shares this one's libraries but not its pixelkiln."""
    home = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(home, symlinks=os.name != "nt")
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    command = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        str(wheel),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    (site,) = home.rglob("site-packages")
    shared = {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}
    (site / "shared.pth").write_text("".join(f"{path}\n" for path in shared), "utf-8")  # whose own .pth are not read
    return python.parent


def test_it_works_without_the_source_tree(installed: Path, tmp_path: Path):
    def run(*command: str) -> str:
        env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        done = subprocess.run([str(installed / command[0]), *command[1:]], cwd=tmp_path, env=env,
                              capture_output=True, text=True, timeout=600)  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = Path(run("python", "-c", "import pixelkiln; print(pixelkiln.__file__)").strip())
    assert where.is_relative_to(installed.parent)
    assert run("pixelkiln", "--version").startswith("pixelkiln ")
    assert {"demo", "sd15-style-8gb"} <= {
        one["name"] for one in json.loads(run("pixelkiln", "presets", "--json"))["presets"]
    }
    assert run("pixelkiln", "doctor").splitlines()[-1].startswith("ready: ")
    config = runs.config(tmp_path, {"run.steps": 1})
    (tmp_path / "c.toml").write_text(config.to_toml(), "utf-8")
    run("pixelkiln", "train", "c.toml")
    assert (tmp_path / "runs" / "t" / "t.safetensors").is_file()
    run("pixelkiln", "train", "--preset=demo", "--run.steps=1", f"--run.out={tmp_path / 'out'}", "--run.name=demo",
        "--sample.prompts=[]")  # fmt: skip
    assert (tmp_path / "out" / "demo" / "demo.safetensors").is_file()
