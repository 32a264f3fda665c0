"""The data set as the engine sees it."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sample_data import PRINTS, Encoder, dataset, folder, noise, picture, png
from torch import Tensor

from pixelkiln.trainer.data import loader
from pixelkiln.trainer.data.buckets import conditioning
from pixelkiln.trainer.data.cache import SdScriptsLatents
from pixelkiln.trainer.data.loader import Dataset
from pixelkiln.trainer.data.options import DataOptions
from pixelkiln.trainer.data.pairs_file import add_pair, add_rating, append_pairs, read_pairs
from pixelkiln.trainer.data.shelf import Shelf
from pixelkiln.trainer.diffusion.types import Batch, Conditioning


def shapes(path: Path, count: int = 9) -> Path:
    """Pictures of three shapes."""
    for i in range(count):
        picture(path / f"{i}.png", [(64, 64), (80, 48), (50, 70)][i % 3], i, f"tag {i}, cat, dog, bird")
    return path


def equal(a: Batch, b: Batch) -> bool:
    def same(x: Tensor | None, y: Tensor | None) -> bool:
        return (x is None and y is None) or (x is not None and y is not None and torch.equal(x, y))

    received = [(a.conditioning, b.conditioning)] if a.conditioning and b.conditioning else []
    return (
        torch.equal(a.latents, b.latents)
        and (a.captions, a.keys, a.rows.role) == (b.captions, b.keys, b.rows.role)
        and torch.equal(a.size, b.size) and torch.equal(a.rows.group, b.rows.group)
        and torch.equal(a.rows.weight, b.rows.weight) and same(a.mask, b.mask)
        and all(same(x.hidden, y.hidden) and same(x.pooled, y.pooled) for x, y in received)
    )  # fmt: skip


VARIED = {"flip": True, "shuffle": True, "caption_dropout": 0.3, "repeats": 2}


@pytest.mark.parametrize("values", [{}, VARIED], ids=["plain", "varied"])
def test_cached_equals_uncached_exactly(tmp_path, values):
    path = shapes(tmp_path / "pics")
    made = [
        dataset({"path": str(path), "cache_latents": keep, "cache_text": keep, **values}, tmp_path / "cache")
        for keep in ("off", "memory", "disk", "disk")
    ]
    for step in range(2 * made[0].steps_per_epoch):
        batches = [one.batch(step) for one in made]
        assert all(equal(batches[0], other) for other in batches[1:]), step


def test_a_second_run_encodes_nothing(tmp_path):
    path, first, second = shapes(tmp_path / "pics"), Encoder(), Encoder()
    dataset({"path": str(path), "flip": True, "caption_dropout": 0.1}, tmp_path / "cache", first)
    assert first.pictures == 18 and len(first.words) == 10  # both orientations; nine captions and the empty one
    again = dataset({"path": str(path), "flip": True}, tmp_path / "cache", second)
    again.batch(0)
    assert second.pictures == 0 and second.words == []


@pytest.mark.parametrize("change", ["picture", "resolution", "vae", "dtype", "caption", "text", "interpolation"])
def test_nothing_is_stale(tmp_path, change):
    path = folder(tmp_path / "pics", 3, (80, 80))
    options: dict[str, object] = {"path": str(path)}
    old = dataset(options, tmp_path / "cache").batch(0)
    prints, dtype = dict(PRINTS), torch.float32
    if change == "picture":
        before = (path / "001.png").stat()
        data = noise((80, 80), 1)
        data[0, 0, 0] ^= 255
        Image.fromarray(data).save(path / "001.png")
        os.utime(path / "001.png", ns=(before.st_atime_ns, before.st_mtime_ns))
    elif change == "caption":
        (path / "001.txt").write_text("tag 9, cat")
    elif change in prints:
        prints[change] += "!"
    elif change == "dtype":
        dtype = torch.bfloat16
    else:
        options[change] = {"resolution": 72, "interpolation": "nearest"}[change]
    made = Dataset(
        DataOptions.model_validate({"resolution": 64, "bucket_step": 8, **options}),
        effective_batch=4, cache_dir=tmp_path / "cache",
    )  # fmt: skip
    encoder = Encoder()
    made.attach(encoder.encode, encoder.encode_text, prints, dtype=dtype)
    made.prepare()
    assert encoder.pictures == {"picture": 1, "caption": 0, "text": 0}.get(change, 3)
    assert len(encoder.words) == {"caption": 1, "text": 3}.get(change, 0)
    if change not in ("text", "vae"):
        assert not equal(old, made.batch(0))


def test_batches_do_not_depend_on_what_was_asked_before(tmp_path):
    options = {"path": str(shapes(tmp_path / "pics")), **VARIED}
    forward, alone = dataset(options, tmp_path / "cache"), dataset(options, tmp_path / "cache")
    steps = [forward.batch(step) for step in range(12)]
    for step in (11, 3, 3, 0, 7):
        assert equal(alone.batch(step), steps[step])
        assert forward.visits(step) == alone.visits(step)


def test_all_rows_and_their_order(tmp_path):
    made = dataset({"path": str(shapes(tmp_path / "pics")), "repeats": 3})
    seen = Counter(key.split("@")[0] for step in range(made.steps_per_epoch) for key in made.batch(step).keys)
    assert seen == {f"pics/{i}.png": 3 for i in range(9)}
    batch = made.batch(0)
    assert batch.latents.shape == (4, 4, *[int(side) // 8 for side in batch.size[0, 4:]])
    assert batch.latents.dtype == torch.float32 and batch.rows.group.tolist() == [0, 1, 2, 3]
    assert batch.rows.role == ["plain"] * 4 and batch.rows.weight.tolist() == [1.0] * 4
    assert batch.conditioning is not None and batch.conditioning.size is batch.size


def test_latents_belong_to_their_picture(tmp_path):
    made = dataset({"path": str(folder(tmp_path / "pics", 4)), "flip": True})
    turned = 0
    for step in range(8):
        batch = made.batch(step)
        for row, key in enumerate(batch.keys):
            pixels = torch.from_numpy(noise((64, 64), int(key[5:8]))).permute(2, 0, 1)[None].float() / 127.5 - 1
            plain, mirrored = (Encoder().encode(one)[0] for one in (pixels, pixels.flip(3)))
            assert torch.equal(batch.latents[row], plain) or torch.equal(batch.latents[row], mirrored)
            turned += torch.equal(batch.latents[row], mirrored)
    assert 8 < turned < 24


def test_without_a_text_encoder_there_is_no_conditioning(tmp_path):
    made = dataset({"path": str(folder(tmp_path / "pics"))})
    made.attach(Encoder().encode, None, PRINTS)
    assert made.batch(0).conditioning is None


def test_which_captions_are_encoded_beforehand(tmp_path):
    path = str(shapes(tmp_path / "pics"))
    encoder = Encoder()
    made = dataset({"path": path, "shuffle": True, "caption_dropout": 0.1, "validation_split": 0.2}, None, encoder)
    assert made.needs_text_encoder and len(encoder.words) == 3  # two held out, and the empty one
    made.validation_batches()
    assert len(encoder.words) == 3
    assert not dataset({"path": path}).needs_text_encoder
    assert dataset({"path": path, "cache_text": "off"}).needs_text_encoder


def test_scanning_and_planning_need_no_model(tmp_path):
    made = Dataset(DataOptions.model_validate({"path": str(shapes(tmp_path / "pics"))}), effective_batch=2, native=64)
    report = json.loads(json.dumps(made.report))
    assert report["items"] == 9 and report["steps_per_epoch"] == made.steps_per_epoch == sum(
        bucket["steps"] for bucket in report["buckets"]
    )
    assert report["folders"][0]["name"] == "pics" and report["captions"] == {"distinct": 9, "change": False}
    assert made.resolution == (64, 64)
    assert made.tag_frequency()["pics"] == {"cat": 9, "dog": 9, "bird": 9, **{f"tag {i}": 1 for i in range(9)}}


def test_a_broken_picture_is_found_before_training(tmp_path):
    path = folder(tmp_path / "pics", 6)
    data = bytearray((path / "002.png").read_bytes())
    data[len(data) // 2] ^= 255  # its end looks whole
    (path / "002.png").write_bytes(data)
    options = {"path": str(path), "cache_latents": "off"}
    made = dataset(options)
    assert len(made.items) == 5 and "pics/002.png" in made.warnings[0]
    assert made.plan.samples == 5
    with pytest.raises(ValueError, match=r"pictures that cannot be read, left out: 1 .*max_unreadable = 0"):
        dataset({**options, "max_unreadable": 0})


def test_shares_of_the_work_end_alike(tmp_path):
    path = folder(tmp_path / "pics", 7)
    (path / "003.png").write_bytes((path / "003.png").read_bytes()[:-40] + b"IEND" + bytes(36))
    options = DataOptions.model_validate({"path": str(path), "resolution": 64, "bucket_step": 8})
    encoders, made = [Encoder(), Encoder()], []
    for rank in range(2):
        made.append(Dataset(options, effective_batch=4, cache_dir=tmp_path / "cache"))
        made[-1].attach(encoders[rank].encode, encoders[rank].encode_text, PRINTS)
        made[-1].prepare(share=(rank, 2))
    assert [encoder.pictures for encoder in encoders] == [4, 2]
    for one in made:
        one.prepare()
    assert sum(encoder.pictures for encoder in encoders) == 6
    assert made[0].signature == made[1].signature and equal(made[0].batch(0), made[1].batch(0))


def test_a_picture_that_disappears_matters_only_without_a_cache(tmp_path):
    path = folder(tmp_path / "pics", 4)
    kept = dataset({"path": str(path)}, tmp_path / "cache")
    made = dataset({"path": str(path), "cache_latents": "off"})
    before = kept.batch(1)
    shutil.rmtree(path)
    assert equal(kept.batch(1), before)
    with pytest.raises(ValueError, match=r"data: pics/00\d\.png cannot be read any more .*; restore it"):
        made.batch(0)


def test_damaged_entries_are_made_again_during_the_run(tmp_path):
    made = dataset({"path": str(folder(tmp_path / "pics", 4))}, tmp_path / "cache")
    before = made.batch(0)
    for path in (tmp_path / "cache" / "latents").rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-3])
    again = Dataset(made.options, effective_batch=4, cache_dir=tmp_path / "cache")
    encoder = Encoder()
    again.attach(encoder.encode, encoder.encode_text, PRINTS)
    assert equal(again.batch(0), before) and encoder.pictures == 4
    assert again.warnings == ["damaged cache entries, made again: 4"]


def test_sides_that_a_model_cannot_take(tmp_path):
    with pytest.raises(ValueError, match=r"data: .* multiples of 32, not 72x56; change resolution or bucket_step"):
        dataset({"path": str(folder(tmp_path / "pics", 1, (90, 70)))}, multiple=32)


def test_nan_latents_are_named_and_not_kept(tmp_path):
    made = Dataset(DataOptions.model_validate({"path": str(folder(tmp_path / "pics", 1))}), native=64)
    made.attach(lambda pixels: pixels[:, :, ::8, ::8] / 0, None, PRINTS)
    with pytest.raises(ValueError, match=r"the autoencoder makes NaN of .*000\.png; run it in float32"):
        made.prepare()


def test_validation_pictures_are_never_trained_on(tmp_path):
    path = shapes(tmp_path / "pics", 12)
    shutil.copy(path / "3.png", path / "copy.png")
    options = {"validation_split": 0.25, "sets": [{"path": str(path)}, {"path": str(path), "resolution": 80}], **VARIED}
    made = dataset(options)
    out, trained = ({one.path for item in items for one in item.pictures} for items in (made.held, made.items))
    assert out and trained and not out & trained
    assert (path / "3.png" in out) == (path / "copy.png" in out)
    batches = made.validation_batches()
    assert sorted(group for batch in batches for group in batch.rows.group.tolist()) == list(range(len(made.held)))
    assert all(equal(a, b) for a, b in zip(batches, dataset(options, base_seed=5).validation_batches(), strict=True))
    trained_on = {key for step in range(9) for key in made.batch(step).keys}
    assert not trained_on & {key for batch in batches for key in batch.keys}
    ones = made.validation_batches(size=1)
    assert [len(batch) for batch in ones] == [1] * len(made.held)
    assert [key for batch in ones for key in batch.keys] == [key for batch in batches for key in batch.keys]


def test_nothing_to_hold_out(tmp_path):
    with pytest.raises(ValueError, match=r"data\.validation_split: all items belong together"):
        dataset({"path": str(folder(tmp_path / "pics", 1)), "validation_split": 0.5})


def test_regularisation_pictures_are_as_many_and_weigh_less(tmp_path):
    sets = [
        {"path": str(folder(tmp_path / "a", 3)), "repeats": 4},
        {"path": str(folder(tmp_path / "b", 5, first=10)), "is_reg": True},
        {"path": str(folder(tmp_path / "c", 20, first=20)), "is_reg": True},
    ]
    made = dataset({"sets": sets, "prior_loss_weight": 0.5})
    assert made.plan.samples == 24
    assert made.warnings == ["regularisation pictures left out, as there are more than training pictures: 13"]
    batch = made.batch(0)
    weights = {key[0]: weight for key, weight in zip(batch.keys, batch.rows.weight.tolist(), strict=True)}
    assert weights == {key: 1.0 if key == "a" else 0.5 for key in weights}


def test_masks_and_alpha(tmp_path):
    path = tmp_path / "pics"
    rgba = noise((64, 64), 1, 4)
    rgba[..., 3] = np.arange(64)[None] * 4
    path.mkdir()
    Image.fromarray(rgba).save(path / "0.png")
    picture(path / "1.png", seed=2)
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.repeat(np.array([[0, 255]], np.uint8), 32, 1).repeat(64, 0)).save(tmp_path / "masks" / "1.png")
    both = {"path": str(path), "alpha_mask": True, "masks": str(tmp_path / "masks"), "caption": "x", "flip": True}
    alpha = torch.arange(64)[None].expand(64, 64) * 4 / 255
    half = (torch.arange(64)[None].expand(64, 64) >= 32).float()
    for keep in ("off", "disk"):
        made = dataset({**both, "cache_latents": keep}, tmp_path / "cache")
        for step in range(6):
            batch = made.batch(step)
            assert batch.mask is not None and batch.mask.shape == (2, 1, 64, 64)
            for key, mask in zip(batch.keys, batch.mask[:, 0], strict=True):
                expected = alpha if key.startswith("pics/0") else half
                assert torch.equal(mask, expected) or torch.equal(mask, expected.flip(1))
    assert dataset({"path": str(path), "caption": "x"}).batch(0).mask is None
    only_alpha = dataset({"path": str(path), "caption": "x", "alpha_mask": True}).batch(0)
    assert only_alpha.mask is not None
    assert {float(mask.mean()) for mask in only_alpha.mask} == {float(alpha.mean()), 1.0}


def test_a_rows_key_follows_all_that_its_error_depends_on(tmp_path):
    path, masks = folder(tmp_path / "pics", 2), tmp_path / "masks"
    Image.fromarray(noise((64, 64), 1, 4)).save(path / "001.png")
    masks.mkdir()

    def keys(**options) -> list[str]:
        made = Dataset(DataOptions.model_validate({"path": str(path), "resolution": 64, **options}), effective_batch=2)
        encoder = Encoder()
        made.attach(encoder.encode, None, PRINTS, sd_scripts=SdScriptsLatents("sd", True, 4, lambda latents: latents))
        return sorted(made.batch(0).keys)

    def masked(brightness: int) -> list[str]:
        Image.new("L", (64, 64), brightness).save(masks / "000.png")
        return keys(masks=str(masks))

    def foreign(seed: int) -> list[str]:
        latents = np.random.default_rng(seed).normal(size=(4, 8, 8)).astype(np.float32)
        np.savez(path / "000_0064x0064_sd", latents=latents, original_size=np.array([64, 64]), crop_ltrb=np.zeros(4))
        return keys(sd_scripts_cache=True)

    first, second = zip(keys(), masked(9), masked(8), foreign(0), foreign(1), strict=True)
    assert len(set(first)) == 5 and len(set(second)) == 1
    by_alpha = keys(alpha_mask=True)
    assert by_alpha[0] == first[0] and by_alpha[1] != second[0]


def test_fixed_draws_repeat_the_choices_of_an_item(tmp_path):
    options = {"path": str(folder(tmp_path / "pics", 8)), **VARIED, "repeats": 1}
    made = dataset(options, fixed_draws=2)
    seen: dict[tuple[str, int], set[tuple[str, str]]] = {}
    for step in range(8 * made.steps_per_epoch):
        batch = made.batch(step)
        for key, caption, visit in zip(batch.keys, batch.captions, made.visits(step), strict=True):
            seen.setdefault((key.split("@")[0], visit), set()).add((key, caption))
    assert len(seen) == 16 and all(len(found) == 1 for found in seen.values())
    with pytest.raises(ValueError, match="cached references need the same ones"):
        dataset({**options, "token_warmup_steps": 10}, fixed_draws=2)


def test_random_crops_and_colours(tmp_path):
    path = tmp_path / "pics"
    for i in range(4):
        picture(path / f"{i}.png", (100, 64), i, "x")
    base = {"path": str(path), "buckets": False, "cache_latents": "off", "random_crop": True, "color": True}
    made = dataset(base)
    batches = [made.batch(step) for step in range(4)]
    assert all(equal(batch, dataset(base).batch(step)) for step, batch in enumerate(batches))
    assert batches[0].size[0].tolist() == [64, 64, 0, 0, 64, 64]
    assert len({key for batch in batches for key in batch.keys}) == 16


def test_latents_of_sd_scripts(tmp_path):
    path = folder(tmp_path / "pics", 2)
    latents = np.random.default_rng(0).normal(size=(4, 8, 8)).astype(np.float32)
    np.savez(path / "000_0064x0064_sd.npz", latents=latents, original_size=np.array([64, 64]), crop_ltrb=np.zeros(4))
    for allowed in (True, False):
        made = Dataset(
            DataOptions.model_validate({"path": str(path), "resolution": 64, "sd_scripts_cache": allowed}),
            effective_batch=2,
        )
        encoder = Encoder()
        made.attach(
            encoder.encode, None, PRINTS, sd_scripts=SdScriptsLatents("sd", True, 4, lambda latents: latents * 0.18215)
        )
        made.prepare()
        batch = made.batch(0)
        assert encoder.pictures == (1 if allowed else 2)
        row = [key.startswith("pics/000") for key in batch.keys].index(True)
        assert torch.equal(batch.latents[row], torch.from_numpy(latents) * 0.18215) == allowed
        assert (made.warnings == ["pictures whose latents come from sd-scripts' .npz files: 1"]) == allowed


# -- pairs and ratings -------------------------------------------------------------------------------------------------


def pairs(path: Path, count: int = 6) -> Path:
    for i in range(count):
        add_pair(path, f"prompt {i // 2}", png((64, 64), 2 * i), png((64, 48), 2 * i + 1), weight=1 + i, source="test")
    return path


def test_pairs_are_winners_then_losers_of_one_group(tmp_path):
    made = dataset({"pairs": str(pairs(tmp_path / "p")), "flip": True}, tmp_path / "cache")
    assert made.kind == "pairs" and made.steps_per_epoch == 2
    for step in range(4):
        batch = made.batch(step)
        half = len(batch) // 2
        assert batch.rows.role == ["winner"] * half + ["loser"] * half
        assert batch.rows.group.tolist() == [*range(half), *range(half)]
        winners, losers = batch.rows.pairs()
        assert batch.captions[:half] == batch.captions[half:]
        assert torch.equal(batch.rows.weight[winners], batch.rows.weight[losers])
        assert batch.size[:, 4:].unique(dim=0).shape == (1, 2)
        assert batch.size[half:, :2].tolist() == [[48, 64]] * half  # of another shape, and fitted
    assert made.scan.notes.count("fitted") == 6


def test_a_pair_is_flipped_as_one_and_has_one_mask(tmp_path):
    area = np.zeros((64, 64), np.uint8)
    area[:, :16] = 255
    Image.fromarray(area).save(tmp_path / "area.png")
    for i in range(4):
        add_pair(tmp_path / "p", f"prompt {i}", png(seed=2 * i), png(seed=2 * i + 1), mask=tmp_path / "area.png")
    made = dataset({"pairs": str(tmp_path / "p"), "flip": True})
    flips = set()
    for step in range(5):
        batch = made.batch(step)
        assert batch.mask is not None and batch.mask.shape == (8, 1, 64, 64)
        assert torch.equal(batch.mask[:4], batch.mask[4:])
        for row, key in enumerate(batch.keys):
            name = read_pairs(tmp_path / "p")[int(key.split("line ")[1].split("@")[0]) - 1]
            file = tmp_path / "p" / (name.chosen if row < 4 else name.rejected)
            pixels = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)[None].float() / 127.5 - 1
            flipped = bool(batch.mask[row, 0, 0, -1])
            flips.add(flipped)
            assert torch.equal(batch.latents[row], Encoder().encode(pixels.flip(3) if flipped else pixels)[0])
    assert flips == {False, True}


def test_held_out_pairs_share_no_prompt_with_the_others(tmp_path):
    made = dataset({"pairs": str(pairs(tmp_path / "p", 12)), "validation_split": 0.3})
    out, trained = ({item.caption for item in items} for items in (made.held, made.items))
    assert len(made.held) == 4 and not out & trained
    batch = made.validation_batches()[0]
    assert batch.rows.role == ["winner"] * 4 + ["loser"] * 4


def test_ties_are_left_out_and_counted(tmp_path):
    path = pairs(tmp_path / "p", 3)
    add_pair(path, "tie", png(seed=50), png(seed=51), tie=True)
    made = dataset({"pairs": str(path)})
    assert len(made.items) == 3 and made.scan.notes.count("tie") == 1


def test_ratings(tmp_path):
    for i in range(6):
        add_rating(tmp_path / "r", f"prompt {i}", png(seed=i), liked=i % 3 == 0)
    made = dataset({"ratings": str(tmp_path / "r")}, effective_batch=6)
    batch = made.batch(0)
    assert made.kind == "ratings"
    assert sorted(batch.rows.role) == ["disliked"] * 4 + ["liked"] * 2
    assert all((role == "liked") == (caption in ("prompt 0", "prompt 3"))
               for role, caption in zip(batch.rows.role, batch.captions, strict=True))  # fmt: skip


def broken(path: Path, kind: str) -> str:
    rows = read_pairs(pairs(path, 3))
    first = rows[0]
    if kind == "missing":
        (path / first.rejected).unlink()
        return r"pairs\.jsonl line 1: there is no picture images/\w+\.png; restore it"
    if kind == "identical":
        shutil.copy(path / first.chosen, path / "images" / "copy.png")
        append_pairs(path, [type(first)("other", first.chosen, "images/copy.png")])
        return r"line 4: it compares a picture with itself"
    if kind == "cycle":
        append_pairs(path, [type(first)(first.prompt, first.rejected, rows[1].chosen)])
        append_pairs(path, [type(first)(first.prompt, rows[1].chosen, first.chosen)])
        return r"line 1 \(and 2 more lines\): A is better than B and B better than A; delete one, or mark"
    if kind == "empty":
        append_pairs(path, [type(first)(" ", first.chosen, first.rejected)])
        return r"line 4: the prompt is empty; write the one"
    (path / "pairs.jsonl").write_text('{"prompt": "a", "chosn": "x.png", "rejected": "y.png"}\n')
    return r"line 1: unknown key 'chosn'; did you mean 'chosen'\?"


@pytest.mark.parametrize("kind", ["missing", "identical", "cycle", "empty", "key"])
def test_pairs_that_would_train_the_wrong_thing(tmp_path, kind):
    message = broken(tmp_path / "p", kind)
    with pytest.raises(ValueError, match=message) as caught:
        dataset({"pairs": str(tmp_path / "p")})
    assert "\n" not in str(caught.value)


def test_only_thumbs_up(tmp_path):
    for i in range(3):
        add_rating(tmp_path, "p", png(seed=i), liked=True)
    with pytest.raises(ValueError, match=r"all 3 pictures are liked; rate some as disliked, both are needed"):
        dataset({"ratings": str(tmp_path)})


def test_pools_share_no_batch_and_have_their_own_batch_sizes_and_regularisation(tmp_path):
    for i, (name, count) in enumerate((("a", 5), ("b", 4), ("r", 6), ("q", 1))):
        folder(tmp_path / name, count, first=100 * i)
    sets = [
        {"path": str(tmp_path / "a"), "pool": "one"},
        {"path": str(tmp_path / "r"), "pool": "one", "is_reg": True},
        {"path": str(tmp_path / "b"), "pool": "two", "batch": 1},
        {"path": str(tmp_path / "q"), "pool": "two", "batch": 1, "is_reg": True},
    ]
    made = dataset({"sets": sets}, effective_batch=4, shares=2)
    assert [(f["name"], f["samples"]) for f in made.report["folders"]] == [("a", 5), ("r", 5), ("b", 4), ("q", 4)]
    assert made.unused == 1  # of r
    assert made.steps_per_epoch == 3 + 4  # 10 in fours, 8 in twos
    for step in range(7):
        batch = made.batch(step)
        names = {key.partition("/")[0] for key in batch.keys}
        assert names <= {"a", "r"} or names <= {"b", "q"}
        assert made.micro_batch(step) == (1 if names <= {"b", "q"} else None)
        assert len(batch) <= (2 if names <= {"b", "q"} else 4)


def test_rows_of_a_set_that_preserves_are_marked(tmp_path):
    folder(tmp_path / "a", 2)
    folder(tmp_path / "b", 2, first=10)
    plain = dataset({"path": str(tmp_path / "a")})
    assert plain.batch(0).preserve is None
    made = dataset({"sets": [{"path": str(tmp_path / "a")}, {"path": str(tmp_path / "b"), "preserve": True}]})
    batch = made.batch(0)
    assert batch.preserve is not None
    assert batch.preserve.tolist() == [key.startswith("b/") for key in batch.keys]


def test_a_flip_is_in_sdxls_size_conditioning(tmp_path):
    """A picture fitted inside its bucket has a margin; its crop corner is the other one's where it is mirrored."""
    picture(tmp_path / "pics" / "a.png", (70, 121), 1, "a")
    made = dataset({"path": str(tmp_path / "pics"), "flip": True, "repeats": 12})
    one = made.items[0].pictures[0]
    plain, turned = (conditioning(one.size, one.fit.bucket, flip) for flip in (False, True))
    assert plain != turned, "the picture has to tell them apart"
    seen = set()
    first: dict[bool, Tensor] = {}
    for step in range(6):
        batch = made.batch(step)
        for row in range(len(batch.keys)):
            size = tuple(int(v) for v in batch.size[row].tolist())
            flipped = size == tuple(turned)
            assert flipped or size == tuple(plain)
            seen.add(flipped)
            latents = first.setdefault(flipped, batch.latents[row])
            assert torch.equal(latents, batch.latents[row]), "pictures with the same size conditioning are the same"
    assert seen == {False, True}
    assert not torch.equal(first[False], first[True])


def test_a_cached_picture_belongs_to_its_crop(tmp_path):
    """Everything that decides the latents is in their key, above all where the window was cut."""
    made = dataset({"path": str(folder(tmp_path / "pics", 1))})
    item = made.items[0]
    one, options = item.pictures[0], made.set_of(item)
    places = [((96, 64), (0, 0)), ((96, 64), (16, 0)), ((64, 96), (0, 16)), ((128, 96), (16, 0))]
    keys = {made.shelf.key(one, options, place, flip, color) for place in places for flip in (False, True)
            for color in (None, "x")}  # fmt: skip
    assert len(keys) == 16


def test_captions_encoded_together_are_found_when_the_caches_are_filled(tmp_path, monkeypatch):
    monkeypatch.setattr(loader, "TOGETHER", 2)
    path = folder(tmp_path / "pics", 5)
    plain = dataset({"path": str(path)}, tmp_path / "plain")
    for cache, expected in ((None, [2, 2, 1]), (tmp_path / "cache", [2, 2, 1]), (tmp_path / "cache", [])):
        made = Dataset(plain.options, effective_batch=4, cache_dir=cache)
        encoder, asked = Encoder(), []

        def together(words: list[str], encoder=encoder, asked=asked) -> list[Conditioning]:
            asked.append(len(words))
            return [encoder.encode_text([word]) for word in words]

        made.attach(encoder.encode, None, PRINTS)
        made.encode_captions(together)
        assert asked == expected
        made.attach(encoder.encode, lambda words: pytest.fail(f"{words}: encoded again"), PRINTS)
        made.prepare()
        assert equal(made.batch(0), plain.batch(0))


def states(case: str) -> torch.Tensor:
    """[1, 9, 8]: three rows of CLIP's and six of T5's, or of its place."""
    hidden = torch.randn(1, 9, 8).to(torch.bfloat16)
    if case != "plain":
        hidden[:, :3, 5:] = 0
    if case == "no T5":
        hidden[:, 3:] = 0
    if case == "hidden padding":
        hidden[:, 6:] = hidden[:, 6:7]
    return hidden * (case != "nothing")


@pytest.mark.parametrize(
    ("case", "kept"), [("plain", 72), ("T5", 63), ("hidden padding", 47), ("no T5", 20), ("nothing", 0)]
)
def test_what_a_caption_has_of_zeros_and_repeated_rows_is_not_kept_and_comes_back(
    tmp_path: Path, case: str, kept: int
) -> None:
    hidden, pooled = states(case), torch.ones(1, 4)
    whole = {"hidden": hidden, "pooled": pooled}

    def shelf() -> Shelf:
        made = Shelf(DataOptions(path=str(tmp_path)), tmp_path)
        made.attach(None, lambda words: Conditioning(hidden, pooled), {"text": "t"})
        return made

    made = shelf().words("a", False, make=True)
    entry = shelf().text.get(shelf()._words_key("a"))
    assert entry is not None
    assert sum(part.numel() for name, part in entry.items() if name not in ("pooled", "index")) == kept
    for found in (made, shelf().words("a", False, make=False)):
        assert found.keys() == whole.keys()
        assert torch.equal(found["hidden"], hidden) and found["hidden"].dtype == hidden.dtype
        assert torch.equal(found["pooled"], pooled)


def test_captions_that_earlier_versions_kept_are_read(tmp_path: Path) -> None:
    hidden = states("no T5")
    shelf = Shelf(DataOptions(path=str(tmp_path)), tmp_path)
    shelf.attach(None, lambda words: pytest.fail(f"{words}: encoded again"), {"text": "t"})
    shape = torch.tensor(hidden.shape)
    for entry in ({"hidden": hidden}, {"hidden": hidden[:, :3, :5].contiguous(), "shape": shape}):
        shelf.text.put(shelf._words_key("a"), entry)
        found = shelf.words("a", False, make=False)
        assert found.keys() == {"hidden"} and torch.equal(found["hidden"], hidden)
