"""The documentation: its links lead somewhere, and its script runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import pixelkiln

ROOT = Path(pixelkiln.__path__[0])


def test_links_lead_somewhere():
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / ".github").rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)}: {target}"


def test_files_named_by_the_architecture_exist():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for name in re.findall(r"`([a-z_0-9]+/[a-z_0-9/]*(?:\.py)?)`", text):
        assert any((root / name).exists() for root in (ROOT, ROOT / "trainer")) or name in (
            "control/", "state/", "checkpoints/", "samples/",
        ), name  # fmt: skip


def test_functions_named_by_the_architecture_exist():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    code = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "trainer").rglob("*.py"))
    rows = re.findall(r"^\| \d \| (.*?) \|", text, re.MULTILINE)
    names = [name for row in rows for name in re.findall(r"`(?:[A-Z]\w+\.)?(\w+)(?:\(\w+\))?`", row)]
    assert len(names) > 20
    for name in names:
        known = rf"(def|class) {name}\b|^ *{name}: |\"{name}\""
        assert re.search(known, code, re.MULTILINE), f"docs/architecture.md: {name}"


@pytest.mark.slow
def test_the_script_of_the_debugging_page_runs(tmp_path):
    text = (ROOT / "docs" / "debugging.md").read_text(encoding="utf-8")
    script = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    assert len([line for line in script.splitlines() if line and not line.startswith(("import", "from"))]) <= 15
    script = script.replace("build/debug", tmp_path.as_posix())
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    last = re.search(r"^loss (\S+) gradient norm (\S+)$", done.stdout, re.MULTILINE)
    assert last and 0 < float(last[1]) < 100 and float(last[2]) > 0
    assert "output (" in done.stdout
