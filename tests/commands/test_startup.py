"""Commands that only look something up start without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pixelkiln.trainer.commands.options import reference_markdown
from pixelkiln.trainer.config import PRESETS, read_toml, reference

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import sys
from trainer.cli import main
try:
    main(sys.argv[1:])
finally:
    heavy = {"torch", "numpy", "diffusers", "transformers", "peft", "PIL", "gradio", "safetensors"}
    print(bool(heavy & {name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""


def printed(*words: str) -> tuple[str, bool]:
    """Standard output of a command in a process of its own, and whether it imported torch or another heavy library."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, *words], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout, done.stderr.splitlines()[-1] == "True"


@pytest.mark.parametrize("words", [("--help",), ("--version",), ("presets",)])
def test_torch_is_not_imported(words: tuple[str, ...]) -> None:
    out, with_torch = printed(*words)
    assert out and not with_torch


def test_a_cache_is_listed_without_torch(tmp_path: Path) -> None:
    out, with_torch = printed("cache", str(tmp_path))
    assert "0 entries" in out and not with_torch


def test_presets_are_read_as_a_run_reads_them() -> None:
    out, with_torch = printed("presets", "--json")
    rows = json.loads(out)["presets"]
    assert not with_torch
    assert {row["name"]: row["values"] for row in rows} == {p.stem: read_toml(p) for p in PRESETS.glob("*.toml")}


@pytest.mark.slow
def test_options_are_looked_up_again_without_torch_and_made_anew_after_a_change(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PIXELKILN_CACHE", str(tmp_path))
    first, with_torch = printed("options")
    assert not with_torch and first == reference_markdown()
    assert printed("options") == (first, False)
    out, with_torch = printed("options", "--json")
    assert not with_torch
    assert json.loads(out)["options"] == json.loads(json.dumps(reference()))
    kept = json.loads((tmp_path / "options.json").read_text("utf-8"))
    (tmp_path / "options.json").write_text(json.dumps({"another state of the sources": next(iter(kept.values()))}))
    assert printed("options") == (first, False)
    assert kept.items() <= json.loads((tmp_path / "options.json").read_text("utf-8")).items(), "made anew"
