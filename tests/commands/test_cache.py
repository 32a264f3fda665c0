"""``cache``: lists and prunes what runs have encoded."""

from __future__ import annotations

import errno
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
from pixelkiln.trainer.data.prune import entries, prune, remove
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


def test_entries_say_of_which_family_they_are_and_one_can_go(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those of earlier versions, and torn ones, say nothing."""
    store = filled(folder, {"old": 3})
    for family, key in (("sdxl", "a"), ("sd15", "b")):
        store.family = family
        store.put(key, {"latents": torch.zeros(1000)})
    store.put("torn", {"latents": torch.zeros(9)})
    store.path("torn").write_bytes(b"\xff" * 40)
    row = latents(capsys, str(folder))
    assert row["entries"] == 4 and row["families"].keys() == {"sdxl", "sd15"}  # pyright: ignore
    assert latents(capsys, str(folder), "--family", "sdxl")["entries"] == 1
    assert main(["cache", str(folder), "--family", "sd3-medium", "--clear"]) == USER_ERROR
    assert "no entries of sd3-medium; it has those of sd15, sdxl" in capsys.readouterr().err
    assert main(["cache", str(folder), "--family", "sdxl", "--clear"]) == DONE
    assert there(store, "old", "a", "b", "torn") == ["old", "b", "torn"]
    capsys.readouterr()
    assert main(["cache", str(folder)]) == DONE
    assert "(sd15 0.000 GB)" in capsys.readouterr().out and store.get("b") is not None


def test_everything_is_listed_and_goes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is kept by other names too, and what a killed process left."""
    store = filled(folder, {"a": 3})
    left = store.path("a").with_name(".a.safetensors.0123abcd.tmp")
    others = [folder / "compiled" / "x" / "code.so", folder / "references" / "r.json", folder / "files" / "f.json"]
    for path in (left, *others):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(2000))
    assert main(["cache", str(folder), "--keep", "0"]) == DONE
    out = capsys.readouterr().out
    assert "compiled         1 entries     0.000 GB" in out and "(entries: 2)" in out
    assert not left.exists() and all(path.exists() for path in others)
    assert main(["cache", str(folder), "--clear"]) == DONE
    assert "(entries: 3)" in capsys.readouterr().out and not any(path.exists() for path in others)


def test_a_disk_that_may_not_be_written_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Listed all the same; a mounted disk says EROFS, which is no PermissionError."""
    store = filled(folder, {"a": 3})

    def unlink(self: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    monkeypatch.setattr(Path, "unlink", unlink)
    assert latents(capsys, str(folder))["entries"] == 1
    assert main(["cache", str(folder), "--clear"]) == USER_ERROR
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "it cannot be removed (read-only file system)" in error
    assert prune(folder, 2, None, time.time()) == [] and there(store, "a")


def test_what_another_process_removes_meanwhile_is_gone(folder: Path) -> None:
    filled(folder, {"a": 3, "b": 3})
    first, second = entries(folder), entries(folder)
    remove(first)
    remove(second)
    assert entries(folder) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [(["nowhere"], "there is no such folder"), ([".", "--older-than", "0"], "--older-than: 0 is below 2"),
     ([".", "--keep", "-1"], "--keep: -1 is below 0"), ([".", "--clear", "--keep", "1"], "leave it out with"),
     (["."], "this is no cache")],
)  # fmt: skip
def test_mistakes_are_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", *words]) == USER_ERROR
    assert message in capsys.readouterr().err
