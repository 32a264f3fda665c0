"""The doctor's wording is a pure function of facts; the facts of this machine are gathered for real once."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pixelkiln.trainer.cli import main
from pixelkiln.trainer.commands import doctor
from pixelkiln.trainer.commands.doctor import Facts, report_lines
from pixelkiln.trainer.memory import attention
from pixelkiln.trainer.memory.attention import MATH
from pixelkiln.trainer.runs import user_cache

CARD = Facts(
    python="3.12.3",
    torch="2.13.0+cu130",
    device="cuda",
    device_name="NVIDIA GeForce RTX 3060",
    device_gb=11.6,
    driver="NVIDIA GeForce RTX 3060",
    precision="bf16",
    attention="SDPA (xformers 0.0.35 has no kernel for this torch and card)",
    disk_gb=80.0,
)


def test_a_working_machine_is_one_line():
    assert report_lines(CARD)[1:] == [
        "ready: NVIDIA GeForce RTX 3060 12 GB, bf16, SDPA (xformers 0.0.35 has no kernel for this torch and card), "
        "8-bit optimizers ok"
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"missing_optional": ("gradio",)}, "missing: gradio. Without it .* Fix: python install.py ui"),
        ({"eight_bit_error": "bitsandbytes: not installed"}, "missing: 8-bit optimizers .* AdamW takes four times"),
        ({"device": "cpu", "torch": "2.13.0+cpu"}, r"unused: NVIDIA GeForce RTX 3060, for torch 2.13.0\+cpu does not"),
        ({"device": "cpu", "device_error": "no kernel image"}, r"broken: .*no kernel image.* Fix: update the driver"),
        ({"disk_gb": 1.2}, "little disk: 1.2 GB free"),
    ],
)
def test_a_missing_part_says_what_works_and_what_fixes_it(change: dict[str, object], message: str):
    lines = report_lines(replace(CARD, **change))
    assert len(lines) == 3
    assert re.match(message, lines[1])
    assert "Without" in lines[1] or "stops when" in lines[1]
    assert "Fix: " in lines[1]
    assert lines[-1].startswith("ready: ")


def test_every_optional_module_has_its_line():
    lines = report_lines(replace(CARD, missing_optional=tuple(doctor.OPTIONAL)))
    assert [line.split(".")[0] for line in lines[1:-1]] == [f"missing: {name}" for name in doctor.OPTIONAL]


def test_nothing_trains_without_torch_or_diffusers():
    lines = report_lines(
        Facts(python="3.12.3", torch_error="libcudart.so.13: cannot open", missing={"diffusers": "not installed"})
    )
    assert any("missing: torch (libcudart.so.13: cannot open). Without it nothing trains." in line for line in lines)
    assert lines[-1] == "not ready: torch, diffusers missing; python install.py trainer --repair"


def test_a_package_that_cannot_be_imported_is_reported_not_raised(tmp_path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "halfmade.py").write_text("import no_such_part")
    (tmp_path / "clashing.py").write_text("raise RuntimeError('needs torch 1.0\\nand more')")
    monkeypatch.syspath_prepend(tmp_path)
    assert doctor.cannot_import("json") == ""
    assert doctor.cannot_import("no_such_package") == "not installed"
    assert "no_such_part" in doctor.cannot_import("halfmade")
    assert doctor.cannot_import("clashing") == "needs torch 1.0"


def test_this_machine():
    """The test environment holds everything that training needs."""
    facts = doctor.gather(again=True)
    assert facts.tried == "" and facts.missing == {}
    assert facts.eight_bit_error is None
    assert doctor.report_lines(facts)[-1].startswith(f"ready: {facts.device_name}")


def test_json_for_a_bug_report(capsys: pytest.CaptureFixture[str]):
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ready"] and found["lines"][-1].startswith("ready: ")
    assert found["facts"]["python"] and found["packages"]["torch"] == found["facts"]["torch"]
    assert found["version"] and found["system"]
    assert set(found["facts"]) >= KEYS and set(found) >= {"version", "system", "ready", "lines", "facts", "packages"}


KEYS = {
    "python", "torch", "torch_error", "device", "device_name", "device_gb", "device_error", "driver", "precision",
    "attention", "eight_bit_error", "missing", "missing_optional", "disk_gb", "kernels", "no_kernels", "tried",
}  # fmt: skip
"""Of ``doctor --json``: programs read them."""


def test_kernels_that_ran_are_named_not_packages(monkeypatch: pytest.MonkeyPatch):
    def wrong(q, k, v, heads):
        return MATH(q, k, v, heads) * 1.1

    def wrong_backward(q, k, v, heads):
        return MATH(q, k, v, heads) + (q - q.detach()) * 0.1

    def absent(*_):
        raise NotImplementedError("No operator found for `memory_efficient_attention_forward` with inputs:\nmore")

    stand_ins = {"right": MATH, "wrong": wrong, "wrong backward": wrong_backward, "absent": absent}
    monkeypatch.setattr(attention, "KERNELS", stand_ins)
    found = doctor.choices("cpu")
    assert found["kernels"] == ("right",)
    assert found["no_kernels"]["absent"] == "no kernel for a CPU"
    assert all("wrong by" in found["no_kernels"][name] for name in ("wrong", "wrong backward"))


def test_kernels_that_ran_are_a_line_on_a_gpu():
    ran = replace(
        CARD, kernels=("sdpa-flash", "xformers"), no_kernels={"sdpa-cudnn": "no kernel for this torch and GPU"}
    )
    assert report_lines(ran)[1] == (
        "attention kernels that ran in bf16: sdpa-flash, xformers; sdpa-cudnn: no kernel for this torch and GPU"
    )


# -------------------------------------------------------------------------------------------------------- a kept trial


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """A machine to make changes to: its device, what cannot be imported, and how often each thing was tried."""
    monkeypatch.setenv("PIXELKILN_CACHE", str(tmp_path))
    cpu = {"device": "cpu", "device_name": "CPU (2 threads)"}
    found: dict[str, Any] = {
        "device": cpu, "broken": {}, "driver": ("", ""), "torch": "2.13.0+cpu", "tried": Counter(), "8 bit": None,
    }  # fmt: skip

    def tried(what: str, answer: Any) -> Any:
        found["tried"][what] += 1
        return answer

    chosen = {"precision": "bf16", "attention": "SDPA", "kernels": ("sdpa-flash",), "no_kernels": {}}
    monkeypatch.setattr(doctor, "cannot_import", lambda name: tried(name, found["broken"].get(name, "")))
    monkeypatch.setattr(doctor, "device", lambda: tried("device", found["device"]))
    monkeypatch.setattr(doctor, "choices", lambda where: tried("kernels", chosen))
    monkeypatch.setattr(doctor, "no_eight_bit", lambda where: tried("8 bit", found["8 bit"]))
    monkeypatch.setattr(doctor, "driver", lambda: found["driver"])
    monkeypatch.setattr(doctor.importlib.metadata, "version", lambda name: found["torch"])
    return found


def test_a_trial_without_fault_is_kept_with_its_date(machine: dict[str, Any]) -> None:
    first = doctor.gather()
    assert first.tried == "" and machine["tried"]["diffusers"] == machine["tried"]["8 bit"] == 1
    machine["tried"].clear()
    kept = doctor.gather()
    assert not machine["tried"] and re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d", kept.tried)
    assert replace(kept, tried="", disk_gb=first.disk_gb) == first
    line = report_lines(replace(kept, missing_optional=()))[-2]
    assert kept.tried in line and "--force" in line
    assert doctor.gather(again=True).tried == "" and machine["tried"]["diffusers"] == 1


@pytest.mark.parametrize(
    "fault",
    [
        {"broken": {"torch": "libcudart.so.13: cannot open"}},
        {"broken": {"peft": "needs torch 1.0"}},
        {"8 bit": "no kernel"},
        {"device": {"device": "cpu", "device_name": "RTX 3060", "device_error": "no kernel image"}},
    ],
    ids=["torch", "peft", "8 bit", "device"],
)
def test_a_fault_is_tried_again_each_time(fault: dict[str, Any], machine: dict[str, Any]) -> None:
    sound = {name: machine[name] for name in fault}
    machine.update(fault)
    assert doctor.gather().tried == ""
    assert doctor.gather().tried == "" and machine["tried"]["diffusers"] == 2
    machine.update(sound)
    assert doctor.gather().tried == ""
    assert doctor.gather().tried, "corrected"


def test_a_gpu_is_tried_each_time_and_another_one_with_all_packages(machine: dict[str, Any]) -> None:
    card = {"device": "cuda", "device_name": "RTX 3060", "device_gb": 11.6}
    machine.update({"device": card, "torch": "2.13.0+cu130"})
    doctor.gather()
    machine["tried"].clear()
    assert doctor.gather().tried and machine["tried"] == {"torch": 1, "device": 1, "kernels": 1}
    machine["device"] = {**card, "device_name": "RTX 4090"}
    assert doctor.gather().tried == "" and doctor.gather().tried
    machine["device"] = {"device": "cpu", "device_name": "RTX 4090", "device_error": "no kernel image"}
    found = doctor.gather()
    assert found.tried == "" and found.device_error == "no kernel image"
    machine.update({"device": card, "broken": {"torch": "libcudart.so.13: cannot open"}})
    assert doctor.gather().torch_error == "libcudart.so.13: cannot open"


def test_what_a_trial_follows_from_is_in_its_key(
    machine: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    keys = [doctor.installation("580")]

    def another() -> bool:
        keys.append(doctor.installation("580"))
        return keys[-1] not in keys[:-1]

    assert not another() and doctor.installation("590") != keys[0]
    (tmp_path / "bitsandbytes-9.0.dist-info").mkdir()
    assert another(), "a distribution"
    (tmp_path / "xformers.py").write_text("")
    assert another(), "a module that is found first"
    (tmp_path / "xformers.py").write_text("raise RuntimeError")
    assert another(), "its content"
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert another()
    monkeypatch.setattr(user_cache, "source_digest", lambda: "another")
    assert another()
    monkeypatch.setattr(doctor.sys, "version", "3.14")
    assert another()
