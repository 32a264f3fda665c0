"""The options that a configuration is read by, without torch, are those of the parts that are built."""

from __future__ import annotations

from typing import Any

import pytest

from pixelkiln.trainer.families.options import PREDICTIONS
from pixelkiln.trainer.registry import families, losses, objectives


@pytest.mark.parametrize("registry", [losses, objectives], ids=lambda registry: registry.folder)
def test_every_part_is_listed_with_its_own_options(registry: Any):
    assert registry.tables() == {entry.name: entry.options for entry in registry}


def test_families_are_listed_with_what_they_predict():
    specs = [entry.build() for entry in families if entry.name != "new"]
    assert {spec.name: spec.predictions for spec in specs} == PREDICTIONS
    parts = [{spec.name: spec.part for spec in specs}[name] for name in PREDICTIONS]
    assert parts == sorted(parts, key=lambda part: part == "transformer")
