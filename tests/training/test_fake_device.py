"""Whole short runs on a GPU that is not there (``fake_device``): devices that are mixed, float64 on Apple GPUs, memory
that runs out anywhere, and how often a step makes the host wait."""

from __future__ import annotations

from typing import Any

import pytest
import short_runs as runs
import torch
from fake_device import FakeDevice, fake_device

from pixelkiln.trainer.diffusion.process import Process, scaled_linear
from pixelkiln.trainer.families.load import load
from pixelkiln.trainer.memory import device as memory
from pixelkiln.trainer.training import build, loop

PIXEL = {"loss.pixel.mode": "mixed", "loss.pixel.decode": "full", "loss.huber.weight": 1.0}
EVERYTHING = {
    **PIXEL, "sample.prompts": ["a cat"], "sample.steps": 2, "data.validation_split": 0.25, "validation.every": 2,
    "save.ema": 0.9,
}  # fmt: skip
STREAMED = {
    "memory.blocks_on_gpu": 1, "memory.gradient_checkpointing": True, "memory.cpu_offload_checkpointing": True,
    "memory.prefetch_blocks": 2, "memory.cudnn_benchmark": True,
}  # fmt: skip
FP16 = {"run.precision": "fp16", "memory.grad_cache": True, "objective.kind": "dpo"}
PAIRS = {"data.validation_split": 0.34}
CACHED = {"objective.kind": "dpo", "objective.reference_draws": 2, "loss.pixel.mode": "stepped"}
SFT = {"objective.min_snr_gamma": 5.0, "loss.huber.weight": 1.0, "loss.huber.schedule": "exponential"}
FP32 = {"run.precision": "fp32"}
QUICK = [
    ("cuda", "sd15", EVERYTHING, "data.path"),
    ("cuda", "sdxl", FP16, "data.pairs"),
    ("cuda", "sd3.5-medium", STREAMED, "data.path"),
    ("mps", "sd15", {**FP32, **PIXEL, **SFT}, "data.path"),
    ("mps", "sd3-medium", {"objective.flow_weighting": "cosmap", "loss.huber.weight": 1.0}, "data.path"),
]
SLOW = [
    ("cuda", "sd15", {"memory.base_weights": "nf4", "memory.text_weights": "int8", "save.ema": 0.9}, "data.path"),
    ("cuda", "sdxl", {"memory.base_weights": "int8", **STREAMED}, "data.path"),
    ("cuda", "sd15", {**FP16, "objective.kind": "kto", **EVERYTHING, **PAIRS}, "data.pairs"),
    ("cuda", "sd15", {"adapter.text_encoders": True, "optimizer.kind": "Prodigy", "run.accumulation": 2}, "data.path"),
    ("mps", "sdxl", {**FP32, **EVERYTHING, "memory.gradient_checkpointing": True}, "data.path"),
    ("cuda", "sd15", {"memory.base_weights": "fp8", **STREAMED}, "data.path"),
    ("cuda", "sd15", {"run.precision": "fp16", "model.vae_precision": "fp16", **PIXEL}, "data.path"),
    ("cuda", "sd15", CACHED, "data.pairs"),
    ("cuda", "sd3.5-large", EVERYTHING, "data.path"),
    ("cuda", "sdxl", EVERYTHING, "data.path"),
    *[("cuda", "sd15", {"objective.kind": kind}, "data.pairs") for kind in ("ipo", "kto", "mapo", "simpo")],
    ("mps", "sd15", {**FP32, **CACHED}, "data.pairs"),
    ("mps", "sd15", {**FP32, **EVERYTHING, **SFT}, "data.path"),
]
ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB. GPU 0 has none left."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("CUDA error: out of memory"),  # of pinned memory
    RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GB, max allowed: 9.07 GB)"),
]


def configured(tmp_path, flags: dict[str, Any], name: str = "sd15", data: str = "data.path"):
    own = {"run.device": "auto", "run.precision": "bf16", "run.steps": 2, "run.batch": 2, "memory.attention": "sdpa"}
    config = runs.config(tmp_path, {**own, **flags}, name=name, data=data)
    load(config.model, torch.float32)  # with all that libraries import when they first read a model
    return config


def train_on(kind: str, name: str, flags: dict[str, Any], data: str, tmp_path, monkeypatch) -> None:
    config = configured(tmp_path, flags, name, data)
    with fake_device(monkeypatch, kind) as fake:
        assert len(runs.trajectory(config)) == 2
    log = (tmp_path / "runs" / "t" / "log.txt").read_text("utf-8")
    assert f"training on {fake.kind}" in log and fake.to_device.total() > 0
    assert not [e["message"] for e in runs.events(config) if e["kind"] == "warning" and "out of memory" in e["message"]]


@pytest.mark.parametrize(("kind", "name", "flags", "data"), QUICK)
def test_a_run_mixes_no_devices(kind, name, flags, data, tmp_path, monkeypatch):
    train_on(kind, name, flags, data, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name", "flags", "data"), SLOW)
def test_no_other_run_mixes_devices(kind, name, flags, data, tmp_path, monkeypatch):
    train_on(kind, name, flags, data, tmp_path, monkeypatch)


def test_one_text_encoder_at_a_time_is_on_the_gpu_and_the_autoencoder_leaves_it(tmp_path, monkeypatch):
    """SD3 with T5: nothing else while captions and prompts are encoded; only the denoiser in a step."""
    flags = {"sample.prompts": ["a dog"], "sample.steps": 1, "sample.every": 1, "run.steps": 2}
    config = configured(tmp_path, flags, "sd3-medium")
    reading: list[tuple[str, set[str]]] = []
    stepping: list[set[str]] = []
    step, make = loop.Loop.step, build.load

    def here(family) -> set[str]:
        parts = {"denoiser": family.denoiser, "vae": family.vae, **family.text_encoders}
        return {name for name, part in parts.items() if any(p.device.type == "cuda" for p in part.parameters())}

    def loaded(*args, **kwargs):
        family = make(*args, **kwargs)
        for name, encoder in family.text_encoders.items():
            encoder.register_forward_pre_hook(lambda *_, name=name: reading.append((name, here(family))))
        return family

    def counted(self):
        stepping.append(here(self.session.model.family))
        return step(self)

    monkeypatch.setattr(build, "load", loaded)
    monkeypatch.setattr(loop.Loop, "step", counted)
    with fake_device(monkeypatch):
        assert len(runs.trajectory(config)) == 2
    assert {name for name, _ in reading} == {"te1", "te2", "te3"} and len(reading) > 6
    assert all(found == {name} for name, found in reading)
    assert stepping == [{"denoiser"}, {"denoiser"}]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd15", "sd3-medium"])
def test_buckets_of_several_sizes_mix_no_devices(name, tmp_path, monkeypatch):
    for i, size in enumerate([(64, 64), (96, 64), (64, 128)]):
        pictures = runs.pictures(tmp_path / "some", 2, size, seed=i)
        for path in sorted(pictures.glob("p*")):
            path.rename(runs.pictures(tmp_path / "pictures", 0) / f"{i}{path.name}")
    train_on("cuda", name, {"run.steps": 2, "run.batch": 1, **PIXEL}, "data.path", tmp_path, monkeypatch)


def counts_of_a_step(name: str, flags: dict[str, Any], data: str, tmp_path, monkeypatch) -> tuple[int, ...]:
    """Waits, copies to the host and copies to the device of the third step."""
    counts: list[tuple[int, ...]] = []
    step = loop.Loop.step
    config = configured(tmp_path, {**flags, "run.steps": 3}, name, data)
    with fake_device(monkeypatch) as fake:

        def counted(self):
            before = fake.counts()
            facts = step(self)
            counts.append(tuple(now - was for now, was in zip(fake.counts(), before, strict=True)))
            return facts

        monkeypatch.setattr(loop.Loop, "step", counted)
        assert len(runs.trajectory(config)) == 3
    return counts[-1]


COUNTS = {
    "SD1.5": ("sd15", {}, "data.path", (2, 1, 12)),
    "SDXL": ("sdxl", {}, "data.path", (2, 1, 13)),
    "SD3.5 medium": ("sd3.5-medium", {}, "data.path", (2, 1, 13)),
    "SD1.5, fp16": ("sd15", {"run.precision": "fp16"}, "data.path", (2, 1, 12)),
    "SD1.5, pixel and Huber loss": ("sd15", PIXEL, "data.path", (2, 1, 16)),
    "SD1.5, DPO": ("sd15", {"objective.kind": "dpo"}, "data.pairs", (2, 1, 15)),
    "SD1.5, KTO": ("sd15", {"objective.kind": "kto"}, "data.pairs", (6, 1, 13)),
}
"""A step's waits, copies to the host and copies to the device, at most: ``docs/benchmarks.md`` has them too. One wait
and its copy are none on a GPU: torch's clipping asks in C++ for the device, and gets CPU."""


def below(found: tuple[int, ...], most: tuple[int, ...]) -> bool:
    """Zero waits or copies would mean that nothing is counted."""
    return 0 < found[0] <= most[0] and found[1] <= most[1] and 0 < found[2] <= most[2]


def test_a_step_waits_for_the_gpu_a_few_times(tmp_path, monkeypatch):
    name, flags, data, most = COUNTS["SD1.5"]
    assert below(counts_of_a_step(name, flags, data, tmp_path, monkeypatch), most)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in COUNTS if case != "SD1.5"])
def test_no_other_step_waits_for_the_gpu_more_often(case, tmp_path, monkeypatch):
    name, flags, data, most = COUNTS[case]
    assert below(counts_of_a_step(name, flags, data, tmp_path, monkeypatch), most)


@pytest.mark.parametrize("error", ERRORS[1:2])
def test_memory_that_runs_out_in_a_step_takes_the_fallback(tmp_path, monkeypatch, error):
    config, step = configured(tmp_path, {}), loop.Loop.step
    with fake_device(monkeypatch) as fake:

        def failing(self):
            if self.steps_done == 1:
                fake.fail(100, error)
            return step(self)

        monkeypatch.setattr(loop.Loop, "step", failing)
        assert len(runs.trajectory(config)) == 2
    (event,) = [e for e in runs.events(config) if e["kind"] == "oom"]
    assert event["did"] == "gradient checkpointing" and event["message"] in str(error)


@pytest.mark.parametrize("error", ERRORS, ids=str)
def test_each_kind_of_no_memory_is_known(error):
    assert memory.is_out_of_memory(error)


@pytest.mark.parametrize("line", ["mat1 and mat2 shapes cannot be multiplied", "CUDA error: device-side assert"])
def test_other_errors_are_not_of_memory(line):
    assert not memory.is_out_of_memory(RuntimeError(line))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"run.precision": "fp16"}, r"run\.precision: fp16 does not train on an Apple GPU"),
        ({"run.precision": "fp64"}, r"run\.precision: Apple GPUs have no float64"),
        ({"optimizer.kind": "AdamW8bit"}, r"optimizer\.kind: AdamW8bit is bitsandbytes'.*use AdamW"),
        ({"memory.base_weights": "nf4"}, r"memory\.base_weights: 'nf4' has no kernels for Apple GPUs"),
    ],
)
def test_what_apple_gpus_lack_is_one_line(tmp_path, monkeypatch, flags, message):
    config = configured(tmp_path, flags)
    with fake_device(monkeypatch, "mps"), pytest.raises(ValueError, match=message):
        loop.train(config)


def test_memory_figures_of_an_apple_gpu(monkeypatch):
    with fake_device(monkeypatch, "mps") as fake:
        memory.reset_peak(fake.device)
        assert memory.used_gb(fake.device) == memory.peak_gb(fake.device) == 1.0
        assert memory.free_bytes(fake.device, 2.0) == 3 * 2**29
        assert memory.device_name(fake.device) == "the Apple GPU"


def test_what_is_free_on_a_gpu(monkeypatch):
    """Of 8 GiB 2 are taken, 1 of them here and all of it in use."""
    with fake_device(monkeypatch) as fake:
        gib = 2**30
        assert memory.free_bytes(fake.device, None) == 6 * gib
        assert memory.free_bytes(fake.device, 2.0) == gib
        assert memory.spare_bytes(fake.device, None) == 6 * gib - 7 * gib // 10
        assert memory.spare_bytes(fake.device, 2.0) == gib - 2 * gib // 10


def test_the_cpu_in_place_of_an_apple_gpu_is_reported(monkeypatch):
    monkeypatch.setenv("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    assert "run slowly on the CPU" in (memory.mps_fallback(torch.device("mps")) or "")
    assert memory.mps_fallback(torch.device("cpu")) is None


def test_the_schedule_in_float32_keeps_small_amounts_of_noise(monkeypatch):
    process, level = Process("epsilon", scaled_linear()), torch.arange(1000.0)
    with fake_device(monkeypatch, "mps") as fake:
        found = [scale.cpu() for scale in process.scales(level.to(fake.device))]
    for scale, wanted in zip(found, process.scales(level), strict=True):
        assert scale.dtype == torch.float32
        torch.testing.assert_close(scale.double(), wanted, rtol=1e-7, atol=0)


def test_the_fake_device_refuses_what_a_gpu_refuses(monkeypatch):
    with fake_device(monkeypatch, "mps") as fake:
        here, away = torch.ones(2, device=fake.device), torch.ones(2)
        with pytest.raises(RuntimeError, match="at least two devices"):
            _ = here + away
        with pytest.raises(RuntimeError, match="for generator"):
            torch.randn(2, device=fake.device, generator=torch.Generator())
        with pytest.raises(TypeError, match="numpy"):
            here.numpy()
        with pytest.raises(TypeError, match="float64"):
            here.double()
        assert torch.equal((here + here).cpu(), away + away)
    assert not isinstance(torch.ones(2), type(here)) and isinstance(fake, FakeDevice)
