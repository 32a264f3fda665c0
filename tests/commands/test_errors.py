"""How errors are shown, and what ``--debug``, ``--profile`` and ``--memory-snapshot`` add."""

from __future__ import annotations

import argparse
import ast
import gzip
import json
import logging
from pathlib import Path

import pytest
import short_runs as runs

from pixelkiln.trainer import cli
from pixelkiln.trainer.training import loop


@pytest.fixture
def config(tmp_path: Path) -> Path:
    made = runs.config(tmp_path, {"run.steps": 3})
    (tmp_path / "c.toml").write_text(made.to_toml(), "utf-8")
    return tmp_path / "c.toml"


@pytest.fixture(autouse=True)
def _logging_as_before():
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


def test_every_command_takes_debug():
    (commands,) = (a for a in cli.parser()._actions if isinstance(a, argparse._SubParsersAction))
    assert [name for name, one in commands.choices.items() if "--debug" not in one._option_string_actions] == []


def test_debug_shows_the_traceback_of_a_user_error_too(config, capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    words = ["check", str(config), "--adapter.rnk=3"]
    assert cli.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert cli.main([*words, "--debug"]) == 2
    shown = capsys.readouterr().err
    assert "Traceback (most recent call last)" in shown and shown.splitlines()[-1] == line
    assert cli.main(["check", str(config), "--debug"]) == 0
    assert "pixelkiln.trainer.config: configuration: file" in capsys.readouterr().err
    kohya = ["--pretrained_model_name_or_path=x", "--train_data_dir=nowhere", "--debug"]
    assert cli.main(["train", *kohya]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_the_log_holds_every_error_line_of_the_terminal(config, capsys, monkeypatch):
    folder = config.parent / "runs" / "t"

    def failing(error):
        def step(*_):
            raise error

        monkeypatch.setattr(loop, "compute_loss", step)
        (folder / "log.txt").unlink(missing_ok=True)
        capsys.readouterr()
        code = cli.main(["train", str(config)])
        shown = capsys.readouterr().err
        lines = [line for line in shown.splitlines() if line.startswith("error: ")]
        log = (folder / "log.txt").read_text("utf-8")
        assert len(lines) == 1 and lines[0] in log.splitlines()
        assert ("Traceback" in shown) is ("Traceback" in log)
        return code, "Traceback" in log

    assert failing(cli.UserError("data: wrong; fix it")) == (2, False)
    assert failing(TypeError("a mistake")) == (1, True)
    assert failing(ValueError("not for people")) == (1, True)


def test_a_profile_has_the_first_steps(config, capsys):
    assert cli.main(["train", str(config), "--profile", "2"]) == 0
    trace = config.parent / "runs" / "t" / "profile.json.gz"
    assert f"profile of 2 steps: {trace}" in capsys.readouterr().err
    with gzip.open(trace, "rt", encoding="utf-8") as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert "aten::conv2d" in names


def test_what_cannot_be_recorded_is_refused_before_the_run(config, capsys):
    line = "error: --memory-snapshot: it needs a CUDA GPU, and this run is on cpu; leave it out\n"
    assert cli.main(["train", str(config), "--memory-snapshot"]) == 2
    assert capsys.readouterr().err == line
    assert cli.main(["train", str(config), "--profile=-1"]) == 2
    assert "--profile: -1 is no number of steps; give 1 or more" in capsys.readouterr().err
    assert not (config.parent / "runs").exists()


NO_REMEDY = (
    "q, k and v ",  # caught where they are raised from, and named with the module and the file
    "the host does not know",  # caught: the module is put by its parts
    " was trained but is not in the file", " are the same module of the model",  # what a verification found
    ", or raise max_unreadable", ", or --rank makes", "DreamBooth", ", and --resume continues",
)  # fmt: skip
"""Parts of messages that need not say what would be right."""


def test_every_line_for_people_says_what_would_be_right():
    """*where: what is wrong; what would be right*. Messages that are put together elsewhere are passed over."""
    bare = []
    for path in sorted(Path(cli.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            name = getattr(getattr(getattr(node, "exc", None), "func", None), "id", "")
            if not isinstance(node, ast.Raise) or name not in ("UserError", "Wrong", "Diverged"):
                continue
            last = [one.values[-1] for one in ast.walk(node) if isinstance(one, ast.JoinedStr) and one.values][:1]
            if last and isinstance(last[0], ast.FormattedValue):
                continue  # the remedy is made elsewhere
            pieces = [one.value for one in ast.walk(node) if isinstance(one, ast.Constant)]
            text = "".join(piece for piece in pieces if isinstance(piece, str))
            if len(text.split()) > 3 and ";" not in text and not any(one in text for one in NO_REMEDY):
                bare.append(f"{path.name}:{node.lineno}: {text}")
    assert not bare, "\n".join(bare)
