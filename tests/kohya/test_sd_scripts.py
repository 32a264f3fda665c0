"""Our numbers beside those of sd-scripts, recorded once by running it (``golden/sd_scripts.json.gz`` names the commit).

Only inputs and results are recorded. Where sd-scripts draws random numbers it was given the ones that we draw.
"""

from __future__ import annotations

import gzip
import json
import random
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from sample_data import picture

from pixelkiln.trainer.adapters.options import AdapterOptions
from pixelkiln.trainer.adapters.plan import block_rates
from pixelkiln.trainer.data import captions
from pixelkiln.trainer.data.buckets import Rules, assign, conditioning
from pixelkiln.trainer.data.loader import Dataset
from pixelkiln.trainer.data.options import DataOptions, PictureOptions
from pixelkiln.trainer.diffusion import timesteps
from pixelkiln.trainer.diffusion.options import NoiseOptions
from pixelkiln.trainer.diffusion.process import Process, scaled_linear, zero_terminal_snr
from pixelkiln.trainer.diffusion.types import Batch, Draw, Rows, Step
from pixelkiln.trainer.families.sd15 import SD15
from pixelkiln.trainer.families.text import clip_tokens
from pixelkiln.trainer.families.words import tokenizer as read_tokenizer
from pixelkiln.trainer.losses.term import LossParts
from pixelkiln.trainer.objectives.options import SftOptions
from pixelkiln.trainer.objectives.sft import weightings
from pixelkiln.trainer.optimizers.build import build
from pixelkiln.trainer.optimizers.options import OptimizerOptions, ScheduleOptions, parse_args
from pixelkiln.trainer.optimizers.schedules import build_schedule
from pixelkiln.trainer.registry import losses
from pixelkiln.trainer.training.run_options import RunOptions, total_steps

GOLDEN: dict[str, Any] = json.loads(
    gzip.decompress((Path(__file__).parents[1] / "golden" / "sd_scripts.json.gz").read_bytes())
)


def test_buckets_sizes_and_sdxl_crops() -> None:
    for row in GOLDEN["buckets"]["rows"]:
        rules = Rules(tuple(row["resolution"]), True, row["low"], row["high"], row["step"], row["no_upscale"])
        for given, (bucket, resized, crop) in zip(GOLDEN["buckets"]["sizes"], row["found"], strict=True):
            fit = assign(tuple(given), rules)
            if min(bucket) == 0:
                assert fit is None
                continue
            assert fit is not None and (list(fit.bucket), list(fit.resized)) == (bucket, resized), (row, given)
            assert list(conditioning(given, fit.bucket)[2:4]) == crop[:2]
            assert conditioning(given, fit.bucket, flipped=True)[3] == crop[2]


TEXTS = [
    "a red cat", "", "a (red:1.3) cat, [blue] sky, ((tree)), \\(plain\\) (open",
    ", ".join(f"tag {i}, (word:{1 + i / 100:.2f})" for i in range(40)), " ".join(["cat"] * 75),
    " ".join(["cat"] * 76), " ".join(["dog"] * 74), " ".join(["cat"] * 149) + " dog dog",
]  # fmt: skip


def test_tokens_and_emphasis_of_one_to_three_chunks(tmp_path) -> None:
    """Of ids and of weights (to 4 digits) the checksums are recorded."""
    tokenizer = read_tokenizer(SD15.encoders["te"], tmp_path, None)
    for limit, text, *wanted in GOLDEN["tokens"]:
        plain = clip_tokens(tokenizer, [TEXTS[text]], limit)
        weighted = clip_tokens(tokenizer, [TEXTS[text]], limit, weighted=True)
        assert weighted.weights is not None
        emphasis = [round(float(v), 4) for v in weighted.weights[0]]
        found = [plain.ids.flatten().tolist(), weighted.ids.flatten().tolist(), emphasis]
        assert [zlib.crc32(repr(one).encode()) for one in found] == wanted, (limit, TEXTS[text])


def native(model: Any, words: dict[str, Any]) -> dict[str, Any]:
    """Kohya's names to ours."""
    named = {(info.json_schema_extra or {}).get("kohya"): name for name, info in model.model_fields.items()}
    return {named[word]: value for word, value in words.items()}


def test_captions_under_fixed_seeds() -> None:
    """That version joined tags by a comma whatever the separator; it was fixed later, and here tags keep theirs."""
    for text, words, seed, epoch, step, recorded in GOLDEN["captions"]:
        options = PictureOptions(**native(PictureOptions, words))
        wanted = f"{options.separator} ".replace("  ", " ").join(recorded.split(", "))
        assert captions.draw(text, options, random.Random(seed), epoch, step, 40) == wanted, (text, words, seed)


def made(process: Process, out: Any, target: Any, level: list[float], mask: Any = None) -> Step:
    """A step whose residual is ``out - target``, for an epsilon model."""
    noise = torch.tensor(target)
    rows = len(noise)
    batch = Batch(
        torch.zeros_like(noise), [""] * rows, torch.zeros(rows, 6), Rows.plain(rows), [str(i) for i in range(rows)],
        mask=None if mask is None else torch.tensor(mask),
    )  # fmt: skip
    flat = torch.zeros(rows)
    drawn = Draw(noise, noise, torch.tensor(level), torch.zeros(rows, 2), flat, flat, flat)
    return Step(batch, drawn, noise, torch.tensor(out), process)


def test_losses_with_masks_and_huber_schedules() -> None:
    held = GOLDEN["losses"]
    process = Process("epsilon", scaled_linear())
    for kind, schedule, c, scale, masked, values in held["rows"]:
        name = {"l2": "mse"}.get(kind, kind)
        given = {"c": c, "schedule": schedule, "scale": scale} if kind in ("huber", "smooth_l1") else {}
        loss = losses[name].build(losses[name].options(**given), LossParts(process))
        level = [float(t) for t in held["timesteps"]]
        step = made(process, held["pred"], held["target"], level, held["mask"] if masked else None)
        assert loss(step).tolist() == pytest.approx(values, rel=3e-6), (kind, schedule, c, masked)


def test_snr_weights_and_the_strict_ones_at_zero_terminal_snr() -> None:
    level = torch.tensor(GOLDEN["weights"]["timesteps"], dtype=torch.float32)
    for zero, v, name, value, weights in GOLDEN["weights"]["rows"]:
        process = Process("v" if v else "epsilon", scaled_linear())  # strict: the schedule before it was changed
        (weight,) = weightings(SftOptions(**{name: value}), process)
        assert weight(level).tolist() == pytest.approx(weights, rel=2e-4), (zero, v, name)
    for name, change in (("alphas", lambda a: a), ("alphas zero", zero_terminal_snr)):
        ours = change(scaled_linear())[level.long()]
        assert ours.tolist() == pytest.approx(GOLDEN[name], rel=2e-4, abs=1e-7)
    fixed = Process("v", zero_terminal_snr(scaled_linear()))
    (weight,) = weightings(SftOptions(min_snr_gamma=5.0), fixed)
    strict = next(row[-1] for row in GOLDEN["weights"]["rows"] if row[:4] == [True, True, "min_snr_gamma", 5.0])
    assert float(weight(level)[-1]) == 0.0 and strict[-1] > 0.004  # pure noise says nothing of the picture


def test_noise_offset_and_multires_noise() -> None:
    latents = torch.tensor(GOLDEN["noise"]["latents"])
    batch = Batch(latents, ["", ""], torch.zeros(2, 6), Rows.plain(2), ["a", "b"])
    for words, (mean, deviation), some in GOLDEN["noise"]["rows"]:
        options = NoiseOptions(**native(NoiseOptions, words))
        noise = timesteps.draw(batch, 11, 3, Process("epsilon", scaled_linear()), options).noise
        torch.testing.assert_close(noise[:, :, ::3, ::5], torch.tensor(some), rtol=2e-6, atol=2e-6)
        assert (float(noise.mean()), float(noise.std())) == pytest.approx((mean, deviation), rel=1e-5, abs=1e-6)


def test_sd3_levels_inputs_and_weights() -> None:
    held, process = GOLDEN["sd3"], Process("flow")
    u = torch.tensor(held["u"])
    for words, times, inputs in held["rows"]:
        kind = words.pop("weighting_scheme")
        options = NoiseOptions(sampling=kind, integer_timesteps=True, **native(NoiseOptions, words))
        level = timesteps.level_at(u, process, options)
        wanted = [max(1.0, t) for t in times]  # sd-scripts may draw a level of 0, pure data; ours begins at 1
        assert (level * 1000).tolist() == pytest.approx(wanted, abs=1e-3), kind
        one = torch.ones(len(u), 1, 1, 1)
        noisy = process.noisy(one, 3 * one, level).flatten()
        assert noisy.tolist() == pytest.approx([1 + 2 * t / 1000 for t in wanted], rel=1e-6)
        assert [n for n, t in zip(noisy.tolist(), times, strict=True) if t] == pytest.approx(
            [x for x, t in zip(inputs, times, strict=True) if t], rel=1e-6
        )
        words["weighting_scheme"] = kind
    sigma = torch.tensor(held["sigmas"])
    for kind, weights in held["weights"].items():
        found = weightings(SftOptions(flow_weighting={"none": "x0"}.get(kind, kind)), process)
        ours = found[0](sigma) if found else torch.ones(len(sigma), dtype=torch.float64)
        assert ours.tolist() == pytest.approx(weights, rel=1e-5)


def test_learning_rates_of_every_schedule() -> None:
    for words, wanted in GOLDEN["schedules"]:
        given = native(ScheduleOptions, {k: v for k, v in words.items() if k != "lr_scheduler_args"})
        if "lr_scheduler_power" in words:
            given["power"] = float(given["power"])
        options = ScheduleOptions(**given, args=parse_args(words.get("lr_scheduler_args", [])))
        group = {"name": "denoiser", "params": [torch.nn.Parameter(torch.zeros(1))]}
        optimizer, _ = build(OptimizerOptions(kind="AdamW", learning_rate=1e-3), [group])
        schedule, _ = build_schedule(options, 20, optimizer)
        rates = []
        for step in range(20):
            schedule.apply(optimizer, step)
            rates.append(optimizer.param_groups[0]["lr"])
        assert rates == pytest.approx(wanted, rel=1e-7), words


def test_learning_rates_over_blocks() -> None:
    for sdxl, spec, wanted in GOLDEN["block curves"]:
        options = AdapterOptions(down_lr=spec, up_lr=spec, mid_lr=[1.0] * (3 if sdxl else 1), lr_zero_threshold=0.2)
        assert block_rates("sdxl" if sdxl else "sd15", options) == pytest.approx(wanted, abs=1e-8)


def folders(root: Path, sets: list[Any], resolution: int, batch: int, pool: str) -> list[dict[str, Any]]:
    """The pictures of one of sd-scripts' data sets, and our sets for them."""
    made = []
    for name, count, sizes, repeats, reg in sets:
        for i in range(count):
            picture(root / name / f"{i:02d}.png", tuple(sizes[i % len(sizes)]), seed=len(name) * 1000 + i, caption="x")
        made.append(
            {"path": str(root / name), "repeats": repeats, "is_reg": reg, "resolution": resolution, "batch": batch,
             "pool": pool}
        )  # fmt: skip
    return made


@pytest.mark.parametrize("case", range(len(GOLDEN["steps"])))
def test_arithmetic_of_steps(tmp_path, case) -> None:
    spec, train, _, batches, counts, lengths = GOLDEN["steps"][case]
    sets = [
        one
        for i, some in enumerate(spec["sets"])
        for one in folders(tmp_path, some, spec["res"][i], spec["batch"][i], str(i))
    ]
    options = DataOptions.model_validate({"sets": sets, "bucket_min": 32, "bucket_max": 256, "bucket_step": 32})
    for accumulation, epochs, per_epoch, total in lengths:
        data = Dataset(options, effective_batch=accumulation, shares=accumulation)
        assert sum(f["samples"] for f in data.report["folders"] if not f["is_reg"]) == train
        assert data.batches_per_epoch(accumulation) == batches
        run = RunOptions(epochs=epochs, accumulation=accumulation, kohya_strict=True)
        assert total_steps(run, data.steps_per_epoch, batches) == total == epochs * per_epoch
        if accumulation == 1:
            assert data.steps_per_epoch == batches
            ours = sorted((f"{w}x{h}", samples) for (w, h), samples, *_ in data.plan.rows)
            assert ours == sorted(item for some, _ in counts for item in some.items())
