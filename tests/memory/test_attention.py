"""The choice of an attention kernel: what runs, what is fastest, what is remembered, and what a run keeps."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import short_runs as runs
import tiny
import torch
from fake_device import fake_device

from pixelkiln.trainer.families.load import load
from pixelkiln.trainer.memory import attention
from pixelkiln.trainer.memory.attention import KERNELS, MATH, SDPA, choose_attention, head_size, use_attention, why_not
from pixelkiln.trainer.training.checkpoint import state_facts

CPU = torch.device("cpu")
DEFAULT = torch._C._get_sdp_priority_order()


CLOCK = [0.0]


def slow(seconds: float):
    def kernel(q, k, v, heads):
        CLOCK[0] += seconds
        return MATH(q, k, v, heads)

    return kernel


def absent(*_):
    raise RuntimeError("No available kernel. Aborting execution.")


@pytest.fixture
def stand_ins(monkeypatch, tmp_path):
    """Kernels of known speed in the place of real ones, and a cache of their own."""
    named = {"xformers": slow(0.02), "sdpa-flash": slow(0.002), "sdpa-efficient": slow(0.01), "sdpa-cudnn": absent}
    monkeypatch.setenv("PIXELKILN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(attention, "KERNELS", named)
    monkeypatch.setattr(attention, "_version", lambda: "0.0.35")
    monkeypatch.setattr(attention, "TOKENS", 8)
    monkeypatch.setattr(attention, "perf_counter", lambda: CLOCK[0])
    return named


@pytest.fixture(autouse=True)
def order():
    yield
    use_attention(None, "sdpa")
    assert torch._C._get_sdp_priority_order() == DEFAULT


def test_the_fastest_that_runs_is_taken_and_remembered(stand_ins, monkeypatch):
    with fake_device(monkeypatch) as fake:
        name, why = choose_attention(fake.device, torch.float32, 40)
        assert name == "sdpa-flash"
        assert why == (
            "sdpa-flash, 5.00 times as fast as sdpa-efficient (heads of 40, forward and backward: sdpa-flash 2 ms, "
            "sdpa-efficient 10 ms, xformers 20 ms; sdpa-cudnn: no kernel for this torch and GPU)"
        )
        stand_ins["sdpa-flash"] = stand_ins["sdpa-cudnn"] = slow(0.05)
        assert choose_attention(fake.device, torch.float32, 40) == (name, why)  # not measured again
        assert choose_attention(fake.device, torch.float32, 64)[0] == "sdpa-efficient"  # of another head size
        assert choose_attention(fake.device, torch.bfloat16, 40)[0] == "sdpa-efficient"  # of another precision
        monkeypatch.setattr(attention, "_version", lambda: "0.0.36")
        assert choose_attention(fake.device, torch.float32, 40)[0] == "sdpa-efficient"  # of another version


def test_what_computes_wrong_is_not_taken(stand_ins, monkeypatch):
    stand_ins["sdpa-flash"] = lambda q, k, v, heads: MATH(q, k, v, heads) + (q - q.detach()) * 0.1  # its gradient
    with fake_device(monkeypatch) as fake:
        name, why = choose_attention(fake.device, torch.float32, 40)
    assert name == "sdpa-efficient" and "sdpa-flash: wrong by" in why


def test_a_kernel_without_room_is_left_out_and_measured_again(stand_ins, monkeypatch):
    def full(q, k, v, heads):
        if q.shape[1] == attention.TOKENS:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return MATH(q, k, v, heads)

    stand_ins["sdpa-flash"] = full
    with fake_device(monkeypatch) as fake:
        name, why = choose_attention(fake.device, torch.float32, 40)
        assert name == "sdpa-efficient" and "sdpa-flash: out of memory" in why
        stand_ins["sdpa-flash"] = slow(0.001)
        assert choose_attention(fake.device, torch.float32, 40)[0] == "sdpa-flash"


def test_without_any_kernel_torch_chooses(stand_ins, monkeypatch):
    stand_ins.update(dict.fromkeys(stand_ins, absent))
    with fake_device(monkeypatch) as fake:
        name, why = choose_attention(fake.device, torch.float32, 40)
    assert name == "sdpa" and why.count("no kernel") == 4


def test_an_explicit_choice_wins(stand_ins, monkeypatch):
    kept = {"kernel": "sdpa-flash", "device": "Fake GPU"}
    with fake_device(monkeypatch) as fake:
        for wanted in ("xformers", "sdpa-efficient", "sdpa"):
            assert choose_attention(fake.device, torch.float32, 40, wanted, kept)[0] == wanted
        assert choose_attention(fake.device, torch.float32, 40, "sdpa-cudnn") == (
            "sdpa", "SDPA (sdpa-cudnn was asked for; no kernel for this torch and GPU)"
        )  # fmt: skip


def test_a_run_keeps_its_choice_on_the_same_gpu(stand_ins, monkeypatch):
    kept = {"kernel": "sdpa-efficient", "device": "Fake GPU"}
    with fake_device(monkeypatch) as fake:
        assert choose_attention(fake.device, torch.float32, 40, "auto", kept) == (
            "sdpa-efficient", "sdpa-efficient (as this run began)"
        )  # fmt: skip
        other = {**kept, "device": "NVIDIA GeForce RTX 3060"}
        assert choose_attention(fake.device, torch.float32, 40, "auto", other)[0] == "sdpa-flash"
        stand_ins["sdpa-efficient"] = absent
        name, why = choose_attention(fake.device, torch.float32, 40, "auto", kept)
        assert name == "sdpa" and "the run began with sdpa-efficient; no kernel" in why


def test_nothing_is_measured_without_an_nvidia_gpu(stand_ins, monkeypatch):
    monkeypatch.setattr(attention, "measure", None)
    assert choose_attention(CPU, torch.float32) == ("sdpa", "SDPA")
    with fake_device(monkeypatch, "mps") as fake:
        assert choose_attention(fake.device, torch.float32) == ("sdpa", "SDPA")


@pytest.mark.slow
def test_a_run_stores_its_choice_and_keeps_it_on_resume(stand_ins, monkeypatch, tmp_path):
    flags = {"run.device": "auto", "run.precision": "bf16", "run.steps": 2, "save.state_every": 1}
    config = runs.config(tmp_path, flags)
    load(config.model, torch.float32)
    log = tmp_path / "runs" / "t" / "log.txt"
    with fake_device(monkeypatch):
        assert len(runs.trajectory(config)) == 2
        assert "attention: sdpa-flash, " in log.read_text("utf-8")
        assert state_facts(log.parent / "state")["attention"] == {"kernel": "sdpa-flash", "device": "Fake GPU"}
        stand_ins["sdpa-flash"] = slow(0.05)
        monkeypatch.setenv("PIXELKILN_CACHE", str(tmp_path / "another"))
        longer = runs.config(tmp_path, {**flags, "run.steps": 3})
        assert len(runs.trajectory(longer, resume=True)) == 3
        assert "attention: sdpa-flash (as this run began)" in log.read_text("utf-8")
        again = runs.config(tmp_path, {**flags, "run.steps": 1, "run.name": "u"})
        runs.trajectory(again)
    assert "attention: sdpa-efficient, " in (tmp_path / "runs" / "u" / "log.txt").read_text("utf-8")


@pytest.mark.parametrize("name", list(SDPA))
def test_torch_tries_the_chosen_kernel_first_and_all_others_after_it(name):
    use_attention(None, name)
    order = torch._C._get_sdp_priority_order()
    assert order[0] == int(SDPA[name]) and {int(one) for one in SDPA.values()} <= {*order}
    assert torch.backends.cuda.math_sdp_enabled() and torch.backends.cuda.flash_sdp_enabled()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_of_this_cpu(dtype):
    assert why_not("sdpa-flash", CPU, dtype, 40) == ""
    assert why_not("sdpa-cudnn", CPU, dtype, 40) == "no kernel for a CPU"
    assert "xformers" in KERNELS


@pytest.mark.parametrize(("name", "size"), [("sd15", 4), ("sdxl", 8), ("sd3-medium", 8)])
def test_the_head_size_is_that_of_the_outermost_attention(name, size):
    denoiser = tiny.parts(name).denoiser
    assert head_size(denoiser) == size


def test_xformers_that_diffusers_cannot_use_is_reported():
    def enable():
        raise NotImplementedError("No operator found for `memory_efficient_attention_forward`\nmore")

    note = use_attention(SimpleNamespace(enable_xformers_memory_efficient_attention=enable), "xformers")
    assert note == (
        "attention: SDPA after all (diffusers cannot use xformers here: "
        "No operator found for `memory_efficient_attention_forward`)"
    )


@pytest.mark.gpu
@pytest.mark.parametrize("size", [40, 64, 80, 160])
def test_kernels_of_this_gpu(size):
    device = torch.device("cuda")
    times, missing = attention.measure(device, torch.bfloat16, size)
    assert times and not [why for why in missing.values() if "wrong" in why]
