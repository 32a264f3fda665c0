"""What is kept is what was made: never stale, never damaged, whoever writes at the same time."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from sample_data import picture

from pixelkiln.trainer.data.cache import SdScriptsLatents, Store, find_npz, read_npz
from pixelkiln.trainer.runs.files import NotWritten


def entry(value: float) -> dict[str, torch.Tensor]:
    return {"latents": torch.full((4, 8, 8), float(value)), "extra": torch.arange(5)}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.uint8])
def test_an_entry_survives_the_process(tmp_path, dtype):
    made = {"x": torch.arange(6).reshape(2, 3).to(dtype)}
    Store(tmp_path, "disk").put("key", made)
    found = Store(tmp_path, "disk").get("key")
    assert found is not None and same(found, made) and found["x"].dtype == dtype
    assert Store(tmp_path, "disk").get("another key") is None


def test_memory_and_off(tmp_path):
    memory, off = Store(tmp_path, "memory"), Store(tmp_path, "off")
    memory.put("key", entry(1))
    assert memory.has("key") and not off.has("key")
    assert same(off.put("key", entry(2)), entry(2)) and off.get("key") is None
    assert list(tmp_path.iterdir()) == []


def test_memory_is_bounded_and_forgets_what_was_used_least():
    store = Store(Path(), "memory", limit=3000)  # two entries of 1064 bytes
    for name in "ab":
        store.put(name, entry(1))
    store.get("a")
    store.put("c", entry(1))
    assert [store.has(name) for name in "abc"] == [True, False, True]


@pytest.mark.parametrize("damage", ["cut", "bit", "header", "empty", "other key", "pickle"])
def test_a_damaged_entry_is_made_again(tmp_path, damage):
    store = Store(tmp_path, "disk")
    store.put("key", entry(3))
    store.put("other", entry(4))
    path = store.path("key")
    data = bytearray(path.read_bytes())
    if damage == "bit":
        data[-9] ^= 1
    elif damage == "header":
        data[9] ^= 255
    path.write_bytes(
        {
            "cut": bytes(data[:-7]), "empty": b"", "pickle": b"\x80\x04.",
            "other key": store.path("other").read_bytes(),
        }.get(damage, bytes(data))
    )  # fmt: skip
    fresh = Store(tmp_path, "disk")
    assert not fresh.has("key") and fresh.get("key") is None
    assert fresh.remade == 2
    fresh.put("key", entry(3))
    again = Store(tmp_path, "disk").get("key")
    assert again is not None and same(again, entry(3))


def test_many_writers_of_one_entry(tmp_path):
    def work(number: int) -> bool:
        store = Store(tmp_path, "disk")
        for _ in range(10):
            store.put("key", entry(5))
            found = Store(tmp_path, "disk").get("key")
            if found is None or not same(found, entry(5)):
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [".safetensors"]


def test_a_file_in_the_way_of_the_folder(tmp_path):
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(NotWritten, match="cannot be written"):
        Store(tmp_path / "cache", "disk").put("key", entry(1))


SIZE, BUCKET = (100, 80), (72, 56)


def npz(path: Path, suffix: str = "", size: tuple[int, int] = SIZE, shape: tuple[int, ...] = (4, 7, 9), **more) -> Path:
    latents = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    arrays = {
        "latents": latents,
        "latents_flipped": -latents,
        "original_size": np.array(size),
        "crop_ltrb": np.zeros(4),
    }
    np.savez(path, **{name + suffix: array for name, array in {**arrays, **more}.items()})
    return path


@pytest.mark.parametrize("suffix", ["", "_7x9"])
def test_latents_of_sd_scripts_are_read(tmp_path, suffix):
    path = npz(tmp_path / "a_0100x0080_sd.npz", suffix)
    plain, flipped = read_npz(path, SIZE, BUCKET, False, 4), read_npz(path, SIZE, BUCKET, True, 4)
    assert plain is not None and flipped is not None
    assert plain.shape == (4, 7, 9) and plain[0, 0, 2] == 2 and torch.equal(flipped, -plain)


@pytest.mark.parametrize(
    "wrong",
    [
        {"shape": (4, 8, 8)},
        {"shape": (16, 7, 9)},
        {"size": (99, 80)},
        {"latents": np.full((4, 7, 9), np.nan, np.float32)},
        {"latents": np.array({"a": 1}, dtype=object)},  # a pickle, which is not opened
    ],
    ids=["another bucket", "another family", "another picture", "not finite", "pickle"],
)
def test_latents_that_do_not_fit_are_not_used(tmp_path, wrong):
    assert read_npz(npz(tmp_path / "a.npz", **wrong), SIZE, BUCKET, False, 4) is None


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 broken", b"\x80\x04."])
def test_damaged_latents_files_are_not_used(tmp_path, data):
    (tmp_path / "a.npz").write_bytes(data)
    assert read_npz(tmp_path / "a.npz", SIZE, BUCKET, False, 4) is None


SD, SDXL, SD3 = (SdScriptsLatents(name, name != "sd3", 4, lambda z: z) for name in ("sd", "sdxl", "sd3"))


def test_which_file_holds_the_latents(tmp_path):
    image = picture(tmp_path / "a.b.png", SIZE)
    assert find_npz(image, SIZE, SD) is None
    new = npz(tmp_path / "a.b_0100x0080_sd.npz")
    assert find_npz(image, SIZE, SD) == new and find_npz(image, SIZE, SDXL) is None
    old = npz(tmp_path / "a.b.npz")
    assert find_npz(image, SIZE, SD) == old and find_npz(image, SIZE, SD3) is None
    os.utime(image, (image.stat().st_mtime + 100,) * 2)  # the picture was changed after
    assert find_npz(image, SIZE, SD) is None
