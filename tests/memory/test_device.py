"""What is different on a GPU, as far as a machine without one can show; and, with the mark ``gpu``, on one."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import short_runs as runs
import torch
from torch import nn

from pixelkiln.trainer.config import ConfigError
from pixelkiln.trainer.diffusion.types import Conditioning
from pixelkiln.trainer.errors import UserError
from pixelkiln.trainer.families import sdxl
from pixelkiln.trainer.losses.decode import decoding_dtype
from pixelkiln.trainer.memory import device as memory
from pixelkiln.trainer.memory import offload, quantize
from pixelkiln.trainer.training import build, oom
from pixelkiln.trainer.training import loop as loop_module
from pixelkiln.trainer.training.optimization import Optimization
from pixelkiln.trainer.training.previews import Previews
from pixelkiln.trainer.training.session import Session

NO_TERM = {"loss.mse.max_level": 1e-6}


@pytest.fixture
def card(monkeypatch):
    """torch believes in two cards, the second of which is the current one."""
    for name, value in {"is_available": True, "current_device": 1, "device_count": 2}.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)


def scaled(monkeypatch, first: float = 65536.0) -> None:
    """Gradients are scaled as they are in float16."""

    def scaler(device, dtype):
        made = torch.amp.GradScaler("cpu", init_scale=first)
        made.scale(torch.zeros(()))
        return made

    monkeypatch.setattr(build, "grad_scaler", scaler)


def warnings(config) -> list[str]:
    return [e["message"] for e in runs.events(config) if e["kind"] == "warning"]


def test_a_card_has_a_number(card):
    assert memory.choose_device("auto") == memory.choose_device("cuda") == torch.device("cuda:1")
    assert memory.choose_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(ValueError, match=r"there is no cuda:2; the last of this machine's GPUs is cuda:1"):
        memory.choose_device("cuda:2")


def test_bfloat16_that_is_only_imitated_is_not_decoded_in(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert decoding_dtype(torch.float16, torch.device("cuda:0"))[0] == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize("data", ["data.path", "data.pairs"])
def test_a_step_at_whose_noise_no_term_looks_changes_nothing(tmp_path, monkeypatch, one_by_one, data):
    scaled(monkeypatch)
    flags: dict[str, Any] = {**NO_TERM, "run.steps": 3, "memory.grad_cache": one_by_one}
    if data == "data.pairs":
        flags["objective.kind"] = "dpo"
    assert runs.trajectory(runs.config(tmp_path, flags, data=data)) == [(0.0, 0.0)] * 3


@pytest.mark.slow
def test_a_scale_being_sought_is_no_divergence(tmp_path, monkeypatch):
    scaled(monkeypatch)
    make = build.build_optimizer

    def overflowing(options, groups):
        for group in groups:
            for parameter in group["params"]:
                parameter.register_hook(lambda grad: torch.where(grad.abs() < 1e30, grad * seen[0], grad))
        return make(options, groups)

    seen, whole = [1.0], loop_module.Loop._gradients

    def gradients(self):
        seen[0] = float("inf") if self.session.optimization.scaler.get_scale() > 32 else 1.0
        return whole(self)

    monkeypatch.setattr(build, "build_optimizer", overflowing)
    monkeypatch.setattr(loop_module.Loop, "_gradients", gradients)
    config = runs.config(tmp_path, {"run.steps": 14, "run.batch": 1, "recovery.max_skipped_steps": 4})
    assert len(runs.trajectory(config)) == 14
    log = (tmp_path / "runs" / "t" / "log.txt").read_text("utf-8")
    assert log.count("gradients overflow float16 at a scale of") == 11 and "non-finite" not in log


@pytest.mark.slow
def test_going_back_keeps_the_lower_scale(tmp_path, monkeypatch):
    scaled(monkeypatch, 16.0)
    reduce, seen = Session.reduce, []

    def reduced(self, local):
        seen.append(self.optimization.scaler.get_scale())
        total = reduce(self, local)
        return replace(total, loss=torch.tensor(float("nan"))) if 3 <= len(seen) <= 6 else total

    monkeypatch.setattr(Session, "reduce", reduced)
    halved = Optimization.skip

    def skip(self):
        halved(self)
        self.scaler.update(self.scaler.get_scale() / 2)

    monkeypatch.setattr(Optimization, "skip", skip)
    flags = {"run.steps": 6, "recovery.max_skipped_steps": 4, "save.state_every": 1}
    runs.trajectory(runs.config(tmp_path, flags))
    assert seen[2] == 16.0 and seen[6:] == [1.0] * len(seen[6:])


@pytest.mark.slow
@pytest.mark.parametrize("what", ["previews", "validation"])
def test_without_room_for_it_the_run_goes_on(tmp_path, monkeypatch, what):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB. GPU 0 has none left.")

    monkeypatch.setattr(loop_module.Loop, {"previews": "_draw_previews", "validation": "_held_out_loss"}[what], full)
    flags = {"sample.prompts": ["a cat"], "data.validation_split": 0.5, "validation.every": 4}
    config = runs.config(tmp_path, flags)
    assert len(runs.trajectory(config)) == 6
    lines = [line for line in warnings(config) if f"no {what} this time" in line]
    assert len(lines) >= 2 and "out of memory (CUDA out of memory. Tried to allocate 1.00 GiB)" in lines[0]


def test_no_room_at_all_is_one_line(tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB. GPU 0 has none left.")

    monkeypatch.setattr(Session, "optimizer_step", full)
    config = runs.config(tmp_path)
    with pytest.raises(ValueError, match=r"train: out of memory \(CUDA out of memory\. Tried.*\); `check --fit`"):
        loop_module.train(config)
    assert "check --fit" in runs.events(config)[-1]["message"]


@pytest.mark.slow
def test_half_of_the_resident_blocks_are_the_first_to_go(tmp_path, monkeypatch):
    flags = {"run.steps": 4, "run.name": "plain"}
    plain = runs.trajectory(runs.config(tmp_path, flags))
    make, kept = loop_module.build_session, []

    def built(*args, **kwargs):
        session = make(*args, **kwargs)
        streamer = session.model.streamer

        def look(*_):
            kept.append(streamer.resident)
            if torch.is_grad_enabled() and streamer.resident > 1:
                raise torch.OutOfMemoryError("CUDA out of memory.")

        session.model.family.denoiser.conv_in.register_forward_pre_hook(look)
        return session

    monkeypatch.setattr(loop_module, "build_session", built)
    config = runs.config(tmp_path, {"run.steps": 4, "memory.blocks_on_gpu": 4, "run.name": "short"})
    short = runs.trajectory(config)
    assert kept[:3] == [4, 2, 1] and short == [pytest.approx(pair, rel=1e-9) for pair in plain]
    fallbacks = [e for e in runs.events(config) if e["kind"] == "oom"]
    assert [e["options"] for e in fallbacks] == [{"memory.blocks_on_gpu": 2}, {"memory.blocks_on_gpu": 1}]
    assert all(e["exact"] for e in fallbacks)


def test_streamed_blocks_fill_the_memory_that_a_step_leaves(monkeypatch):
    monkeypatch.setattr(memory, "spare_bytes", lambda *_: 100)
    asked = []
    streamer = SimpleNamespace(blocks=[1, 2], fit=lambda spare: asked.append(spare) or 2)
    options = SimpleNamespace(blocks_on_gpu="auto", limit_gb=None)
    model = SimpleNamespace(streamer=streamer, device=None)
    session: Any = SimpleNamespace(model=model, config=SimpleNamespace(memory=options))
    assert oom.fill_with_blocks(session) == "streaming: 2 of 2 blocks stay on the GPU from now on"
    assert asked == [100]


def test_blocks_are_pinned_to_the_byte(monkeypatch):
    calls = []

    class Cudart:
        """One that pins no more than a megabyte."""

        def cudaHostRegister(self, pointer, size, flags):
            calls.append(("pin", pointer, size))
            return 0 if size <= 2**20 else 2

        def cudaHostUnregister(self, pointer):
            calls.append(("unpin", pointer))

    zeros = torch.zeros
    monkeypatch.setattr(torch.cuda, "cudart", Cudart)
    monkeypatch.setattr(torch, "zeros", lambda *shape, device=None: zeros(*shape))
    card = torch.device("cuda:0")
    small, large = offload.pinned(1000, card), offload.pinned(2**21, card)
    assert (small.numel(), large.numel()) == (1000, 2**21)
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda self: self is small)
    offload.unpin(small)
    offload.unpin(large)
    assert [call[0] for call in calls] == ["pin", "pin", "unpin"] and calls[0][1:] == (small.data_ptr(), 1000)


def test_packed_weights_wait_where_they_are_streamed_from():
    block = nn.ModuleDict({"down_blocks": nn.Linear(64, 64)})
    assert quantize.quantize_module(block, "fp8", ("down_blocks",), torch.device("cpu"), torch.device("meta")) == 1
    assert all(buffer.is_meta for buffer in block.buffers())


def test_compiled_blocks_do_not_keep_packed_weights_whole(tmp_path):
    flags = {"memory.compile": "denoiser", "memory.base_weights": "fp8"}
    with pytest.raises(ConfigError, match=r"compile: compiled blocks keep base_weights = 'fp8' unpacked"):
        runs.config(tmp_path, flags)
    runs.config(tmp_path, {**flags, "memory.gradient_checkpointing": True})


def test_training_all_weights_needs_bfloat16(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "choose_precision", lambda *_: torch.float16)
    config = runs.config(tmp_path, {"run.full_bf16": True, "run.precision": "auto"})
    with pytest.raises(ValueError, match=r"run\.full_bf16: it needs bfloat16, which this GPU does not have"):
        loop_module.train(config)


def test_sizes_are_told_to_sdxl_as_they_are():
    added = {}

    def denoiser(noisy, time, encoder_hidden_states, added_cond_kwargs):
        added.update(added_cond_kwargs)
        return SimpleNamespace(sample=noisy)

    size = torch.tensor([[1333.0, 777.0, 0.0, 0.0, 1333.0, 777.0]])
    text = Conditioning(torch.zeros(1, 77, 8), torch.zeros(1, 8), size=size)
    sdxl.run(denoiser, torch.zeros(1, 4, 8, 8, dtype=torch.bfloat16), torch.zeros(1), text)
    assert torch.equal(added["time_ids"], size)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize(
    "flags",
    [
        {"loss.mse.max_level": 0.3},
        {"memory.limit_gb": 2.0, "optimizer.kind": "AdamW8bit", "memory.gradient_checkpointing": True},
        {"memory.base_weights": "nf4", "memory.blocks_on_gpu": "auto", "optimizer.kind": "PagedAdamW8bit"},
    ],
    ids=["gated", "capped", "streamed"],
)
def test_a_card_trains(tmp_path, precision, flags):
    own = {"run.device": "cuda", "run.precision": precision, "run.steps": 20, "loss.pixel.mode": "mixed"}
    config = runs.config(tmp_path, {**own, **flags, "sample.prompts": ["a cat"]})
    losses = [loss for loss, _ in runs.trajectory(config)]
    assert len(losses) == 20 and all(loss < 100 for loss in losses)
    assert runs.events(config)[-1]["state"] == "done"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB. GPU 0 has none left."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
    ids=["torch", "cuBLAS"],
)
def test_memory_that_runs_out_within_a_preview_is_reported_as_that(tmp_path, monkeypatch, error):
    def full(*_):
        raise error

    monkeypatch.setattr(Previews, "picture", full)
    config = runs.config(tmp_path, {"run.steps": 2, "sample.prompts": ["a cat"]})
    assert len(runs.trajectory(config)) == 2
    lines = [line for line in warnings(config) if "preview" in line]
    assert lines and all("out of memory" in line and "no previews this time" in line for line in lines)


def test_cudnn_tries_its_algorithms_where_asked_for_on_a_gpu_and_is_refused_elsewhere(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    for wanted in (False, True):  # what another program in this process chose does not count
        memory.tune_cudnn(memory.MemoryOptions(cudnn_benchmark=wanted), torch.device("cuda"))
        assert torch.backends.cudnn.benchmark is wanted
    with pytest.raises(UserError, match=r"memory\.cudnn_benchmark: .* not for this machine's CPU; set it to false"):
        runs.trajectory(runs.config(tmp_path, {"memory.cudnn_benchmark": True}))


@pytest.mark.skipif(sys.platform != "linux", reason="read from Linux's own facts")
def test_the_peak_is_that_of_the_system() -> None:
    rows = Path("/proc/self/status").read_text("ascii").splitlines()
    (said,) = (int(row.split()[1]) / 2**20 for row in rows if row.startswith("VmHWM"))
    assert memory.peak_gb(torch.device("cpu")) == pytest.approx(said, rel=0.01)
