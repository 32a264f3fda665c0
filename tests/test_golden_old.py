"""Files that an earlier version wrote keep working: a stopped run, references, configurations and adapter files.

``golden/old`` was written once, by the code of November 2026, and is never written again: ``stopped`` is a run that was
stopped after 3 of 6 steps (without curves and caches), ``references`` belongs to a preference run, ``options`` has
configurations that together set every option, and ``adapters`` has files of every family. ``@ROOT@`` stands for the
folder where all that was.
``facts.json`` has what the runs gave when they were not stopped, and what ``inspect`` gave for each adapter.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import golden_runs
import numpy as np
import pytest
import safetensors.torch
import short_runs
import torch
from fork_server import Server, file_of

from pixelkiln.trainer import config as configuration

pytestmark = pytest.mark.skipif(os.name == "nt", reason="processes are forked")
OLD = Path(__file__).parent / "golden" / "old"
FACTS = json.loads((OLD / "facts.json").read_text("utf-8")) if (OLD / "facts.json").exists() else {}
STOPPED = {
    "run.batch": 2,
    "adapter.rank": 1,
    "adapter.targets": ["attn2.to_[qk]"],
    "adapter.dropout": 0.1,
    "data.flip": True,
    "loss.pixel.mode": "mixed",
    "loss.pixel.weight": "auto",
    "schedule.kind": "cosine",
}
"""What the run in ``stopped`` changes in the configuration of ``short_runs.config``."""
PREFERENCE = {**golden_runs.DPO, "run.name": "dpo", "run.batch": 2, "adapter.rank": 1}
"""Of the run that the references belong to."""
ADAPTERS = {
    "sd15": {"adapter.targets": ["attn2.to_q"]},
    "sd15-conv": {"adapter.conv_rank": 1, "adapter.targets": ["down_blocks.0.resnets.0"]},
    "sd15-dora": {"adapter.kind": "dora", "adapter.targets": ["attn2.to_q"]},
    "sd15-loha": {"adapter.kind": "loha", "adapter.targets": ["attn2.to_q"]},
    "sd15-lokr": {"adapter.kind": "lokr", "adapter.targets": ["attn2.to_q"]},
    "sd15-text": {"adapter.text_encoders": True, "adapter.denoiser": False},
    "sdxl": {"adapter.targets": ["down_blocks.*attn2.to_q"]},
    "sd3-medium": {"adapter.targets": ["blocks.0.attn.to_q", "blocks.1.attn.add_q_proj"]},
    "sd3.5-medium": {"adapter.targets": ["blocks.0.attn2?.to_q"]},
    "sd3.5-large": {"adapter.targets": ["blocks.0.attn.to_k"]},
}
"""Of the runs that wrote the adapter files, by the files' names: see ``family_of``."""


RENAMED = {
    "memory.one_by_one": "memory.grad_cache", "memory.resident_blocks": "memory.blocks_on_gpu",
    "memory.offload_checkpoints": "memory.cpu_offload_checkpointing",
    "memory.checkpoint_share": "memory.checkpointing_fraction", "run.full": "run.full_bf16",
    "noise.whole_timesteps": "noise.integer_timesteps", "heal.skip_limit": "recovery.max_skipped_steps",
    "heal.rollbacks": "recovery.max_rollbacks", "heal.rate_factor": "recovery.lr_factor",
}  # fmt: skip
"""The options that have another name than they had then."""


def family_of(name: str) -> str:
    return name if name.startswith("sd3") else name.partition("-")[0]


def adapter_flags(name: str) -> dict[str, Any]:
    return {"run.name": name, "run.steps": 1, "run.batch": 1, "run.precision": "fp32", "adapter.rank": 1,
            **ADAPTERS[name]}  # fmt: skip


def steps_of(events: Path) -> list[tuple[float, float]]:
    rows = [json.loads(line) for line in events.read_text("utf-8").splitlines()]
    return [(row["loss"], row["grad_norm"]) for row in rows if row["kind"] == "step"]


def near(steps: Sequence[Sequence[float]], recorded: Sequence[Sequence[float]]) -> bool:
    """Whether these are the recorded losses and gradient norms, in double precision on any machine."""
    return np.shape(steps) == np.shape(recorded) and np.allclose(steps, recorded, rtol=1e-9, atol=1e-9)


@pytest.fixture(scope="module")
def server():
    with Server() as made:
        yield made


def restored(root: Path, name: str, place: str) -> Path:
    """Copy ``golden/old/NAME`` to ``root/PLACE``, as if it had been made below ``root``."""
    for path in sorted(one for one in (OLD / name).rglob("*") if one.is_file()):
        to = root / place / path.relative_to(OLD / name)
        to.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            shutil.copyfile(path, to)
        else:
            to.write_text(path.read_text("utf-8").replace("@ROOT@", root.as_posix()), "utf-8", newline="\n")
    return root / place


@pytest.mark.slow
def test_an_old_run_is_resumed(server, tmp_path):
    folder = restored(tmp_path, "stopped", "runs/t")
    golden_runs.write_model(tmp_path / "sd15")
    short_runs.pictures(tmp_path / "pictures")
    before = (folder / "events.jsonl").read_text("utf-8")
    assert len(steps_of(folder / "events.jsonl")) == 3
    code = server.run(["train", folder / "config.toml", "--resume"], tmp_path / "log")
    assert code == 0, (tmp_path / "log").read_text("utf-8")
    assert (folder / "events.jsonl").read_text("utf-8").startswith(before)
    steps = steps_of(folder / "events.jsonl")
    assert len(steps) == 6 and near(steps, FACTS["never stopped"])
    rows = [json.loads(line) for line in (folder / "events.jsonl").read_text("utf-8").splitlines()]
    assert [row for row in rows if row["kind"] == "warning"] == [], "it is the same model and the same data"
    status = json.loads((folder / "status.json").read_text("utf-8"))
    assert (status["state"], status["step"], status["exit_code"]) == ("done", 6, 0)
    assert (folder / "t.safetensors").exists()


@pytest.mark.parametrize("changed", [False, True], ids=["as they were", "changed"])
def test_old_references_are_found_and_not_computed_again(server, tmp_path, changed):
    """The run keeps their file and writes no other; with other numbers in it, it comes to other losses.

    The file's name covers the bytes of the tiny model's files and the spelling of its tokenizers, so it can also change
    with the versions of safetensors, diffusers and transformers.
    """
    golden_runs.write_model(tmp_path / "sd15")
    (file,) = restored(tmp_path, "references", "runs/cache/references").iterdir()
    if changed:
        kept = json.loads(file.read_text("utf-8"))
        doubled = {row: {term: 2 * error for term, error in errors.items()} for row, errors in kept.items()}
        file.write_text(json.dumps(doubled), "utf-8")
    before = file.read_bytes()
    config = short_runs.config(tmp_path, PREFERENCE, data="data.pairs")
    assert server.run(["train", file_of(config)], tmp_path / "log") == 0, (tmp_path / "log").read_text("utf-8")
    assert list(file.parent.iterdir()) == [file] and file.read_bytes() == before
    assert near(short_runs.steps(config), FACTS["preference"]) is not changed


@pytest.mark.parametrize("name", sorted(path.stem for path in (OLD / "options").glob("*.toml")))
def test_an_old_configuration_is_read_and_written_as_it_was(tmp_path, name):
    file = restored(tmp_path, "options", "options") / f"{name}.toml"
    config = configuration.load(file)
    written, old = configuration.loads(config.to_toml(only_set=True)), configuration.loads(file.read_text("utf-8"))
    for before, now in RENAMED.items():
        (table, option), (table_now, option_now) = before.split("."), now.split(".")
        if option in old.get(table, {}):
            old.setdefault(table_now, {})[option_now] = old[table].pop(option)
            assert configuration.load(file, {before: old[table_now][option_now]}) == config, "as a flag too"
    old.pop("heal", None)
    if (pixel := old.get("loss", {}).get("pixel")) is not None:
        pixel.setdefault("auto_ratio", 1.0)  # the default until version 3
        if pixel.get("decode", "auto") == "auto":
            pixel["decode"] = "by_size"  # what auto was until version 2
    assert written == {**old, "config_version": configuration.VERSION}
    assert configuration.parse(configuration.loads(config.to_toml())) == config


def test_every_old_option_is_in_an_old_configuration():
    """Every option that there was is set, to something else than its default, in one of the files."""
    tables = [configuration.loads(path.read_text("utf-8")) for path in sorted((OLD / "options").glob("*.toml"))]

    def is_set(place: str) -> bool:
        return any(_value(table, place.split(".")) is not None for table in tables)

    assert [place for place in FACTS["options"] if not is_set(place)] == []


def _value(at: Any, place: list[str]) -> Any:
    for part in place:
        at = at[0] if isinstance(at, list) else at
        at = at.get(part) if isinstance(at, dict) else None
    return at


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_old_adapter_file_is_inspected_as_then(server, tmp_path, name):
    log = tmp_path / "log"
    assert server.run(["inspect", OLD / "adapters" / f"{name}.safetensors", "--json"], log) == 0, log.read_text("utf-8")
    facts = json.loads(log.read_text("utf-8"))
    assert {key: facts.get(key) for key in FACTS["inspect"][name]} == FACTS["inspect"][name]
    assert facts["config"]["run"]["name"] == name and facts["training"]["seed"] == "0"


@pytest.mark.slow
@pytest.mark.parametrize("name", ADAPTERS)
def test_training_goes_on_from_an_old_adapter_file(server, tmp_path, name):
    """A step with next to no learning rate gives the same tensors back."""
    family, file = family_of(name), OLD / "adapters" / f"{name}.safetensors"
    golden_runs.write_model(tmp_path / family, family)
    flags = {**adapter_flags(name), "adapter.init_from": str(file), "optimizer.learning_rate": 1e-30}
    config = short_runs.config(tmp_path, flags, family)
    assert server.run(["train", file_of(config)], tmp_path / "log") == 0, (tmp_path / "log").read_text("utf-8")
    then = safetensors.torch.load_file(file)
    now = safetensors.torch.load_file(tmp_path / "runs" / name / f"{name}.safetensors")
    assert now.keys() == then.keys()
    for key, tensor in then.items():
        torch.testing.assert_close(now[key], tensor, rtol=0, atol=0)
