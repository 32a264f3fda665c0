"""Golden runs give the recorded losses, gradient norms and adapter files; see ``golden_runs.py`` for bit for bit."""

from __future__ import annotations

import os

import golden_runs as golden
import pytest
from fork_server import Server

pytestmark = pytest.mark.skipif(os.name == "nt", reason="processes are forked")


@pytest.fixture(scope="module")
def server():
    with Server() as made:
        yield made


@pytest.mark.slow
@pytest.mark.parametrize("name", golden.RUNS)
def test_a_golden_run_gives_the_recorded_numbers(server, tmp_path, name):
    old, new = golden.recorded(name), golden.repeat(server, tmp_path, name)
    assert len(new["steps"]) == golden.STEPS
    assert golden.near_differences(old, new, golden.RUNS[name].tolerance) == []
    assert old["pictures"].keys() == new["pictures"].keys()


def test_every_record_is_of_a_run():
    assert {path.name.removesuffix(".json.gz") for path in golden.RECORDS.iterdir()} == set(golden.RUNS)


@pytest.mark.slow
def test_the_comparisons_find_a_changed_number():
    old = golden.recorded("sft")
    name, adapter = next(iter(old["adapters"].items()))
    key = next(key for key in adapter["norms"] if key.endswith("lora_up.weight"))
    loss, norm = old["steps"][4]
    steps = [*old["steps"][:4], [(float.fromhex(loss) * (1 + 1e-8)).hex(), norm], *old["steps"][5:]]
    changed = {"digest": "0", "norms": {**adapter["norms"], key: adapter["norms"][key] * 1.001}}
    new = {**old, "steps": steps, "adapters": {name: changed}}
    near, exact = golden.near_differences(old, new, 1e-9), golden.exact_differences(old, new, "sft")
    assert [line.split(":")[0] for line in near] == ["step 5 loss", f"{name} {key} norm"]
    assert [line.split(":")[0] for line in exact] == [
        f"sft/adapters/{name}/digest",
        f"sft/adapters/{name}/norms/{key}",
        "sft/steps 5 loss",
    ]
    assert golden.near_differences(old, old, 0.0) == golden.exact_differences(old, old, "sft") == []
