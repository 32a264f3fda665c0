"""Project rules that no linter checks: packages are listed, requirements pinned, modules light, imports relative."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import toml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import pixelkiln
from pixelkiln import install

ROOT = Path(pixelkiln.__path__[0])
PROJECT = toml.load(ROOT / "pyproject.toml")
KINDS = ("cpu", "cuda", "rocm")
SOURCES = sorted(path for folder in ("trainer", "extension", "nodes") for path in (ROOT / folder).rglob("*.py"))
HEAVY = ["accelerate", "bitsandbytes", "diffusers", "gradio", "peft", "transformers", "tensorboard"]
CONFIGURATION = ["pydantic", "toml", "tomlkit"]


def pins(kind: str) -> dict[str, str]:
    lines = [line for name in ("common", kind) for line in (ROOT / f"constraints/{name}.txt").read_text().splitlines()]
    return {canonicalize_name(a): b for a, _, b in (line.partition("==") for line in lines if "==" in line)}


def test_every_package_is_listed():
    folders = {path.parent.relative_to(ROOT) for path in SOURCES if path.name == "__init__.py"}
    assert {"pixelkiln", *(".".join(("pixelkiln", *folder.parts)) for folder in folders)} == set(
        PROJECT["tool"]["setuptools"]["packages"]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_requirement_is_pinned_within_its_range(kind: str):
    project = PROJECT["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    wanted = [Requirement(text) for texts in lists for text in texts]
    pinned = pins(kind)
    for requirement in wanted:
        if requirement.name != "pixelkiln":
            version = pinned.get(canonicalize_name(requirement.name))
            assert version, f"constraints/{kind}.txt: {requirement.name} has no pin"
            assert requirement.specifier.contains(version), f"{requirement} does not allow {version}"
    assert pinned["torch"] == install.TORCH
    assert pinned.get("xformers") == (install.XFORMERS if kind == "cuda" else None)


@pytest.mark.parametrize("kind", KINDS)
def test_constraints_state_whether_they_were_tested(kind: str):
    assert re.match(r"# (un)?tested: .{10}", (ROOT / f"constraints/{kind}.txt").read_text())


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_are_relative_and_the_trainer_does_not_import_from_above(path: Path):
    """So the same files work as a ComfyUI node pack, from a wheel, and as ``python -m trainer`` in a bare clone."""
    depth = len(path.relative_to(ROOT).parts) - 1
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not any(name.name.split(".")[0] == "pixelkiln" for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            assert (node.module or "").split(".")[0] not in ("pixelkiln", "trainer", "extension", "nodes")
        elif isinstance(node, ast.ImportFrom) and path.is_relative_to(ROOT / "trainer"):
            assert node.level <= depth, f"{path.name}:{node.lineno} imports from above trainer/"


def loads_without(module: str, absent: list[str]) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r}); import conftest\n"
        f"sys.modules.update(dict.fromkeys({absent!r}))\nimport {module}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("pixelkiln, pixelkiln.trainer.runs.control, pixelkiln.trainer.runs.events, pixelkiln.trainer.data.pairs_file",
         ["torch", "safetensors", "numpy", "PIL", *CONFIGURATION, *HEAVY]),
        ("pixelkiln.trainer.adapters.keys, pixelkiln.nodes.all, pixelkiln.nodes.routes",
         [*CONFIGURATION, *HEAVY, "psutil", "tqdm"]),
        pytest.param(
            "pixelkiln.extension.app, pixelkiln.extension.hosts, pixelkiln.extension.queue",
            ["torch", "scipy", *(name for name in HEAVY if name != "gradio")],
            marks=pytest.mark.slow,  # gradio alone takes three seconds
        ),
        ("pixelkiln.trainer.commands.doctor, pixelkiln.trainer.cli",
         ["torch", "safetensors", "numpy", "PIL", *CONFIGURATION, *HEAVY]),
    ],
    ids=["standard library", "nodes", "page", "doctor"],
)  # fmt: skip
def test_it_loads_without(module: str, absent: list[str]):
    """Nodes and hosts load the first two in Pythons that lack the rest; the page and what it asks of a configuration
    start without waiting for torch."""
    loads_without(module, absent)


PRESETS_READ = """pixelkiln.trainer.commands.options
from pixelkiln.trainer.config import PRESETS, load, reference
assert len(reference()) > 300
for path in sorted(PRESETS.glob("*.toml")):
    data = "pairs" if "dpo" in path.stem or "preference" in path.stem else "path"
    load(path, flags={"model.path": "x.safetensors", f"data.{data}": "."})
"""


def test_options_and_presets_are_read_without_torch():
    """All rows of the reference, every option's model, and the checks of whole configurations."""
    loads_without(PRESETS_READ, ["torch", "numpy", "scipy", "safetensors", "PIL", *HEAVY])


@pytest.mark.parametrize("name", ["trainer", "trainer/adapters", "trainer/data"])
def test_packages_that_hosts_import_are_empty(name: str):
    assert (ROOT / name / "__init__.py").read_text(encoding="utf-8").strip() == ""


def test_the_readme_opens_with_the_demo_and_the_tests():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    first = re.search(r"```[a-z]*\n(.*?)```", text, re.DOTALL)
    assert first
    commands = re.findall(r"python install\.py (\w+)", first[1])
    assert {"demo", "test"} <= set(commands) <= set(install.EXTRAS)
