"""What a run's start reads, and how often."""

from __future__ import annotations

import pytest
import short_runs as runs

from pixelkiln.trainer.cli import main
from pixelkiln.trainer.commands import check as checking
from pixelkiln.trainer.data import loader
from pixelkiln.trainer.training import build


@pytest.mark.parametrize("words", [[], ["--fit"]], ids=["train", "train --fit"])
def test_the_model_is_identified_and_the_data_scanned_once(tmp_path, monkeypatch, words):
    calls = {"identify": 0, "scan": 0}

    def counted(name, function):
        def call(*args, **named):
            calls[name] += 1
            return function(*args, **named)

        return call

    from pixelkiln.trainer.families import load

    identify = counted("identify", load.identify)
    for module in (load, build, checking):
        monkeypatch.setattr(module, "identify", identify)
    monkeypatch.setattr(loader, "scan", counted("scan", loader.scan))
    config = runs.config(tmp_path, {"run.steps": 1, "run.batch": 1})
    path = tmp_path / "c.toml"
    path.write_text(config.to_toml(), "utf-8")
    assert main(["train", str(path), *words]) == 0
    assert calls == {"identify": 1, "scan": 1}


def test_what_was_examined_serves_the_same_model_and_data_alone(tmp_path):
    config = runs.config(tmp_path)
    examined = checking.examine(config)
    lighter = config.changed({"memory.gradient_checkpointing": True})
    assert examined.found_for(lighter) is examined.found and examined.dataset_for(lighter, 1) is examined.dataset
    assert examined.dataset_for(lighter, 2) is None
    smaller = config.changed({"run.batch": 1})
    assert examined.found_for(smaller) is examined.found and examined.dataset_for(smaller, 1) is None
    assert examined.found_for(config.changed({"model.clip_skip": 2})) is None
