"""Commands that only look something up start without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from pixelkiln.trainer.cli import main
from pixelkiln.trainer.commands.options import reference_markdown
from pixelkiln.trainer.config import PRESETS, read_toml, reference

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import sys
from trainer.cli import main
try:
    main(sys.argv[1:])
finally:
    print(*sys.modules, file=sys.stderr)
"""
HEAVY = {"torch", "numpy", "diffusers", "transformers", "peft", "PIL", "gradio", "safetensors"}
SLOW = {"torch._dynamo", "diffusers", "transformers", "peft", "accelerate", "bitsandbytes", "scipy.stats"}
"""What takes as long as torch itself, or nearly."""


def imported(*words: str) -> tuple[str, set[str]]:
    """Standard output of a command in a process of its own, and the modules that it imported."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, *words], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout, set(done.stderr.splitlines()[-1].split())


def printed(*words: str) -> tuple[str, bool]:
    """Standard output of a command in a process of its own, and whether it imported torch or another heavy library."""
    out, modules = imported(*words)
    return out, not HEAVY.isdisjoint(name.partition(".")[0] for name in modules)


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


@pytest.mark.slow
def test_the_doctor_tries_everything_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIXELKILN_CACHE", str(tmp_path))
    first, modules = imported("doctor")
    assert {"torch", "diffusers", "transformers", "peft", "bitsandbytes"} <= modules
    out, modules = imported("doctor")
    assert out.splitlines()[-1] == first.splitlines()[-1] and "tried: all packages on" in out
    on_a_cpu = version("torch").endswith("+cpu")
    assert not SLOW & modules and ("torch" in modules) != on_a_cpu


STUDY = """
name = "two"
preset = "demo"
out = "{out}"
[options]
"run.steps" = 4
"loss.pixel.weight" = 0.0
[[arms]]
name = "one"
[[arms]]
name = "two"
options = {{ "adapter.rank" = 8 }}
"""


@pytest.mark.slow
def test_what_is_estimated_already_imports_torch_and_nothing_as_slow(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """torch itself says what this machine computes on, and how fast a matrix product is there."""
    monkeypatch.setenv("PIXELKILN_CACHE", str(tmp_path / "cache"))
    study = tmp_path / "two.toml"
    study.write_text(STUDY.format(out=(tmp_path / "out").as_posix()), encoding="utf-8")
    check = ["check", "--preset", "demo", "--loss.pixel.weight=0", f"--run.out={tmp_path}"]
    for words in (check, ["study", str(study), "--plan"]):
        assert main(words) == 0
        first = capsys.readouterr().out.splitlines()
        out, modules = imported(*words)
        assert out.splitlines()[0] == first[0] and len(out.splitlines()) == len(first)
        assert "torch" in modules and not SLOW & modules


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--optimizer.args={ nesterov = true }"], "optimizer.args.nesterov: AdamW takes no such argument"),
        (["--schedule.kind=warmup_stable_decay", "--schedule.warmup=90", "--schedule.decay=90"], "exceed the run's"),
    ],
)
def test_a_mistake_is_found_each_time(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert main(["check", "--preset", "demo", f"--run.out={tmp_path}", *flags]) == 2
        assert message in capsys.readouterr().err
