"""``cache``: lists and prunes what runs have encoded."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import torch

from pixelkiln.trainer.cli import main
from pixelkiln.trainer.commands import cache
from pixelkiln.trainer.data.cache import Store
from pixelkiln.trainer.data.options import DataOptions
from pixelkiln.trainer.data.prune import prune
from pixelkiln.trainer.runs.control import DONE, USER_ERROR, Run, Status


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    """A cache's folder; runs are looked for beside it, and beside ``tmp_path`` are those of other tests."""
    return tmp_path / "cache"


def filled(root: Path, days: dict[str, float]) -> Store:
    """A cache whose entries were used ``days`` days ago; 4 KB each."""
    store = Store(root / "latents", "disk", limit=0)
    for key, ago in days.items():
        store.put(key, {"latents": torch.zeros(1000)})
        os.utime(store.path(key), (time.time() - ago * 86400,) * 2)
    return store


def there(store: Store, *keys: str) -> list[str]:
    return [key for key in keys if store.path(key).exists()]


def latents(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, float]:
    capsys.readouterr()
    assert main(["cache", *words, "--json"]) == DONE
    return next(row for row in json.loads(capsys.readouterr().out)["kinds"] if row["kind"] == "latents")


def test_unused_entries_go_and_used_ones_stay(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filled(folder, {"new": 0, "read again": 100, "old": 100})
    assert Store(folder / "latents", "disk").get("read again") is not None  # a run uses it
    assert latents(capsys, str(folder))["entries"] == 3
    row = latents(capsys, str(folder), "--older-than", "60")
    store = Store(folder / "latents", "disk")
    assert there(store, "new", "read again", "old") == ["new", "read again"]
    assert (row["entries"], row["removed"]) == (2, 1) and row["removed_bytes"] > 4000


def test_what_was_used_longest_ago_goes_first(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = filled(folder, {"a": 3, "b": 9, "c": 6})
    latents(capsys, str(folder), "--keep", str(1.5 * store.path("a").stat().st_size / 1e9))
    assert there(store, "a", "b", "c") == ["a"]
    assert main(["cache", str(folder), "--clear"]) == DONE
    assert "(entries: 1)" in capsys.readouterr().out and not there(store, "a")


def test_what_a_run_may_need_stays(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(folder, {"a": 3})
    run = Run("busy", folder, Status("running", live=True))
    monkeypatch.setattr(cache, "list_runs", lambda folder: [run])
    assert main(["cache", str(folder), "--clear"]) == USER_ERROR
    assert "run 'busy' trains" in capsys.readouterr().err and there(store, "a")


def test_a_run_removes_what_no_run_used_and_never_what_one_may_need(folder: Path) -> None:
    days = {"used": 0, "last week": 7, "old": 100}
    store = filled(folder, days)
    now, gb = time.time(), store.path("used").stat().st_size / 1e9
    (line,) = prune(folder, 90, None, now)
    assert there(store, *days) == ["used", "last week"]
    assert line == f"{folder}: removed {gb:.3f} GB that no run has used lately (entries: 1)"
    assert not prune(folder, 90, None, now)
    removed, over = prune(folder, 90, gb / 2, now)
    assert there(store, *days) == ["used"] and "(entries: 1)" in removed and "more than data.cache_gb" in over
    filled(folder, days)
    assert not prune(folder, 0, None, now)
    assert there(store, *days) == list(days)
    with pytest.raises(ValueError, match="1 is below 2 days"):
        DataOptions(path="x", cache_days=1)


@pytest.mark.parametrize(
    ("words", "message"),
    [(["nowhere"], "there is no such folder"), ([".", "--older-than", "0"], "--older-than: 0 is below 2"),
     ([".", "--keep", "-1"], "--keep: -1 is below 0")],
)  # fmt: skip
def test_mistakes_are_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", *words]) == USER_ERROR
    assert message in capsys.readouterr().err
