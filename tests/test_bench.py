"""The bench: its cases are configurations, rows are not measured twice, and its script names cases that there are."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scipy import stats
from torch.autograd import DeviceType

from pixelkiln.bench import __main__ as bench
from pixelkiln.bench import balance, launches, making
from pixelkiln.bench import dense as dense_bench
from pixelkiln.bench import surrogate as surrogate_bench
from pixelkiln.bench import tiny as distil
from pixelkiln.trainer.config import load
from pixelkiln.trainer.losses.decode import Decoder, tiny_decoder

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", bench.CASES)
def test_every_case_is_a_configuration(name):
    flags = {key: value for key, value in bench.CASES[name].items() if key != "plain"}
    data = {} if "data.pairs" in flags else {"data.path": "x"}
    load(flags={"model.path": "m", **data, **flags})


def test_the_gpu_script_names_only_cases_there_are():
    text = (ROOT / "bench" / "gpu_all.sh").read_text("utf-8")
    lists = re.findall(r'^[A-Z]+="(.*)"$', text, re.MULTILINE) + re.findall(r'--cases "([^$]*?)"', text)
    assert len(lists) >= 7
    for names in lists:
        bench.chosen(names)


def test_the_gpu_script_lists_every_part_and_refuses_others():
    script = ROOT / "bench" / "gpu_all.sh"
    text = script.read_text("utf-8")
    parts = [int(number) for number in re.findall(r"^  (\d+)\)", text, re.MULTILINE)]
    assert parts == list(range(1, len(parts) + 1)) and f"there are 1 to {len(parts)}" in text
    listed = subprocess.run(["bash", str(script)], capture_output=True, text=True)
    assert listed.returncode == 0
    assert all(re.search(rf"(^|\s){number} [A-Za-z]", listed.stdout) for number in parts)
    modules = set(re.findall(r"-m (bench[.\w]*)", text))
    assert all((ROOT / f"{name.replace('.', '/')}.py").exists() for name in modules - {"bench"})


def test_time_in_which_nothing_runs_counts_overlapping_kernels_once():
    assert launches.covered([(5.0, 7.0), (0.0, 2.0), (1.0, 3.0), (1.5, 2.0), (7.0, 8.0)]) == 6.0
    assert launches.covered([]) == 0.0


def test_kernels_are_the_outermost_operations_on_a_cpu_and_what_ran_on_a_gpu():
    def event(name: str, start: float, parent: Any = None, device: Any = DeviceType.CPU) -> Any:
        span = SimpleNamespace(start=start, end=start + 1.0)
        return SimpleNamespace(name=name, cpu_parent=parent, device_type=device, time_range=span)

    outer = event("aten::linear", 0.0)
    inner = event("aten::mm", 0.2, event("autograd", 0.1, outer))
    kernel = event("gemm", 3.0, device=DeviceType.CUDA)
    seen = [outer, inner, kernel, event("python", 9.0)]
    assert launches.kernels(seen, on_gpu=False) == [(0.0, 1.0)]
    assert launches.kernels(seen, on_gpu=True) == [(3.0, 4.0)]


def test_a_file_that_grew_is_a_table_and_is_not_measured_again(tmp_path):
    machine = {"card": "a card", "torch": "2"}
    row = {
        "model": "sdxl",
        "case": "nf4",
        "size": 1024,
        "batch": 1,
        "precision": "auto",
        "limit_gb": 8.0,
        "machine": machine,
        "foretold_gb": 5.2,
        "seconds": 1.0,
        "peak_gb": 5.0,
        "before_gb": 3.0,
        "of_matmul_peak": 0.3,
    }
    rows = [{**row, "case": "latent"}, {**row, "seconds": 1.5}, {**row, "case": "fp8", "failed": "out of memory"}]
    del rows[2]["seconds"]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in rows), "utf-8")
    read = bench.read(file)
    assert read == rows and bench.read(tmp_path / "none") == []
    assert bench.identity(rows[1]) == bench.identity(row) != bench.identity({**row, "limit_gb": 6.0})
    printed = bench.table(read)
    assert "sdxl, 1024 px, batch 1, auto, capped at 8 GB; card a card, torch 2" in printed
    assert "| nf4 | 1.500 | 1.50 | 5.00 | 5.20 | 2.00 | 30% |" in printed and "| fp8 | out of memory |" in printed


def test_an_estimate_is_never_taken_for_measured(monkeypatch, tmp_path, capsys):
    """Of a step of 4 operations and one whose decode, for half of the samples, adds 6: p = 0.5 * 0.3 * 4 / 6."""
    numbers = {"latent, checkpointed": {"flops": 4e12, "decoding": 0.0, "step_gb": 2.0, "run_gb": 2.5},
               "pixel, full": {"flops": 1e13, "decoding": 6e12, "step_gb": 3.0, "run_gb": 3.0},
               "latent": {"flops": 2e12, "decoding": 0.0, "step_gb": 5.0, "run_gb": 5.0}}  # fmt: skip
    monkeypatch.setattr(bench, "estimate", lambda case: numbers[case["case"]])
    monkeypatch.setitem(bench.CASES, "pixel, full", {**bench.CASES["pixel, full"], "loss.pixel.probability": 0.5})
    file, cases = tmp_path / "rows.jsonl", "latent, checkpointed;pixel, full"
    flags = ["--estimate", "--models", "sd15", "--cases", cases, "--append", str(file)]
    monkeypatch.setattr(sys, "argv", ["bench", *flags])
    bench.main()
    printed = capsys.readouterr().out
    assert "sd15, 512 px, batch 1, bf16, not capped; card none" in printed and "estimated, not measured" in printed
    assert "| latent, checkpointed | 4.0 | 1.00 | | | | 2.00 | 1.00 | 2.50 |" in printed
    assert "| pixel, full | 10.0 | 2.50 | | 2.50 | 0.10 | 3.00 | 1.50 | 3.00 |" in printed
    monkeypatch.setattr(sys, "argv", ["bench", *flags[:-3], f"{cases};latent", *flags[-2:]])
    bench.main()
    printed = capsys.readouterr().out
    assert "| latent, checkpointed | 4.0 | 1.00 | 2.00 | | | 2.00 | 1.00 | 2.50 |" in printed
    assert "| pixel, full | 10.0 | 2.50 | 5.00 | 2.50 | 0.10 | 3.00 | 1.50 | 3.00 |" in printed
    assert "| latent | 2.0 | 0.50 | 1.00 | | | 5.00 | 2.50 | 5.00 |" in printed
    rows = bench.read(file)
    assert all(row["foretold"] and "seconds" not in row for row in rows)
    assert bench.identity(rows[0]) != bench.identity({**rows[0], "machine": bench.of_machine()})
    with pytest.raises(SystemExit, match="there is no estimate of base, latent"):
        bench.estimated({"model": "base", "case": "latent"})
    with pytest.raises(SystemExit, match="there is no estimate of sd15, plain"):
        bench.estimated({"model": "sd15", "case": "plain"})


@pytest.mark.nightly
def test_a_family_is_estimated_without_weights():
    settings = {"model": "sd15", "case": "dpo, cached reference", "size": 64, "batch": 1}
    row = bench.estimated(settings)
    assert row["foretold"] and 1e10 < row["flops"] < 1e12 and 1.6 < row["step_gb"] <= row["run_gb"] < 4


@pytest.mark.slow
def test_a_distilled_tiny_decoder_is_written_as_comfyui_has_it(tmp_path, monkeypatch):
    """Its file decodes as its weights do, and a step moves every one of them. Nothing is drawn or decoded."""
    torch.manual_seed(0)
    z, pixels = torch.randn(2, 4, 2, 2), torch.rand(2, 3, 16, 16)
    teacher: Any = SimpleNamespace(batch=lambda: (z, pixels), held=(z, pixels))
    layers = distil.new(4).decoder.layers.requires_grad_(True)
    before = {name: value.clone() for name, value in layers.state_dict().items()}
    run = distil.Run(teacher, layers, True, tmp_path / "taesd_decoder.safetensors")
    run.step(1.0)
    assert not any(torch.equal(value, before[name]) for name, value in layers.state_dict().items())
    run.report("1")
    found = tiny_decoder(str(run.output), torch.device("cpu"), torch.float32)
    torch.testing.assert_close(found(z), run.decode(z).detach())
    free = Decoder(surrogate_bench.Unclamped(found.vae), 1.0)
    run.clamped = False
    torch.testing.assert_close(free(z), run.decode(z).detach())


def test_what_a_making_takes_is_measured():
    found = making.making(making.BUNDLED, 2, 2, 1, torch.device("cpu"))
    assert found["example"] > 0 and found["step"] > 0 and min(found["decoding_gb"], found["fitting_gb"]) > 0


def test_an_unknown_case_is_one_line():
    with pytest.raises(SystemExit, match="there is no case 'fp3'"):
        bench.chosen("latent; fp3")


def test_a_case_that_breaks_is_told_and_the_others_are_measured(tmp_path, monkeypatch, capsys):
    def apart(settings, path, steps, cache):
        if settings["case"] == "fp8":
            raise RuntimeError("no such type")
        return {"seconds": 1.0, "peak_gb": 1.0, "before_gb": 1.0, "of_matmul_peak": 0.1}

    monkeypatch.setattr(bench, "apart", apart)
    file = tmp_path / "rows.jsonl"
    monkeypatch.setattr(sys, "argv", ["bench", "--cases", "latent;fp8;nf4", "--append", str(file)])
    with pytest.raises(SystemExit, match="bench: base, fp8: no such type"):
        bench.main()
    assert [row["case"] for row in bench.read(file)] == ["latent", "nf4"]
    assert "| nf4 | 1.000 |" in capsys.readouterr().out


@pytest.mark.nightly
def test_the_tiny_bench_runs_with_the_plain_way_beside(tmp_path):
    command = [sys.executable, "-m", "bench", "--tiny", "--append", str(tmp_path / "rows.jsonl")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = bench.read(tmp_path / "rows.jsonl")
    assert [row["case"] for row in rows] == bench.TINY
    assert all(row["seconds"] > 0 and row["flops"] > 0 and row["of_matmul_peak"] > 0 for row in rows)


def test_the_balance_of_automatic_weights_is_of_gradients_at_equal_losses(capsys):
    along, across = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    losses = {name: torch.ones(2) for name in balance.TERMS} | {"latent": torch.full((2,), 4.0)}
    gradients = {name: torch.stack([along, along]) for name in balance.TERMS} | {"latent": torch.stack([along, along])}
    losses["x0, max_level 0.3"][1] = 0  # behind its gate: not a loss of 0
    gradients["x0"] = torch.stack([along, 3 * across])
    balance.report(torch.tensor([0.1, 0.9]), losses, gradients)
    rows = {row.split(" | ")[0][2:]: row.split(" | ")[1:] for row in capsys.readouterr().out.splitlines()[2:]}
    assert rows["mixed"] == ["4.00", "4.00", "1.00", "50% |"]
    assert rows["x0, max_level 0.3"][0] == "4.00"
    assert rows["x0"] == ["8.00", "6.32", "0.32", "90% |"]


@pytest.mark.parametrize("name", dense_bench.ARMS)
def test_every_arm_of_the_dense_ablation_is_a_configuration(name):
    paths = {"data.path": "x", "data.targets": "y"}
    config = load(preset="demo_dense", flags={**paths, **dense_bench.ARMS[name]})
    assert config.dense is not None


def test_differences_of_the_dense_ablation_are_paired_by_seed():
    """Seeds differ by more than arms do; a seed that one arm lacks counts in neither."""
    base, gain = [0.10, 0.20, 0.40, 0.90], [0.010, 0.012, 0.011]
    measured = {"delta1": 0.5, "edge_f1": 0.5, "seconds": 1.0}
    cells = {f"latent/{seed}": {"absrel": value, **measured} for seed, value in enumerate(base)}
    cells |= {f"detail/{seed}": {"absrel": base[seed] + more, **measured} for seed, more in enumerate(gain)}
    low, high = stats.ttest_rel([base[seed] + more for seed, more in enumerate(gain)], base[:3]).confidence_interval()
    row = next(line for line in dense_bench.table(cells, 5) if line.startswith("| detail - latent"))
    assert row.startswith(f"| detail - latent | 3 | +0.0110 ({low:+.4f} to {high:+.4f}) |")
