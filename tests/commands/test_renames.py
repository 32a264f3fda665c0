"""Options that were renamed: both names work everywhere, and only today's is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from pixelkiln.trainer import config as c
from pixelkiln.trainer.cli import main
from pixelkiln.trainer.commands import kohya
from pixelkiln.trainer.diffusion.options import NoiseOptions
from pixelkiln.trainer.kohya.entrance import imported
from pixelkiln.trainer.kohya.entrance import load as load_kohya
from pixelkiln.trainer.memory.options import MemoryOptions

BASE = {"model.path": "m", "data.path": "x"}
VALUES = {
    "run.full": True, "noise.whole_timesteps": True, "memory.checkpoint_share": 0.5, "memory.offload_checkpoints": True,
    "memory.resident_blocks": 3, "memory.one_by_one": True, "heal.skip_limit": 4, "heal.rollbacks": 0,
    "heal.rate_factor": 0.25,
}  # fmt: skip
"""Every former name, with a value that is not the default."""
ROWS = {row["formerly"]: f"{row['table']}.{row['name']}" for row in c.reference() if row["formerly"]}
NEEDED = {"memory.gradient_checkpointing": True}


def toml(values: dict) -> str:
    return "".join(f"{name} = {str(value).lower()}\n" for name, value in values.items())


def test_each_renamed_option_is_tried():
    assert ROWS.keys() == VALUES.keys()


@pytest.mark.parametrize("old", VALUES)
def test_the_former_name_works_in_flags_files_presets_and_changes(tmp_path, old):
    new, value = ROWS[old], VALUES[old]
    base = {**BASE, **NEEDED}
    wanted = c.load(flags={**base, new: value})
    assert c.load(flags={**base, old: value}) == wanted
    assert c.load(flags=base).changed({old: value}) == wanted.changed({})
    assert c.parse(c._nested({**base, old: value})) == c.parse(c._nested({**base, new: value}))
    for version in ("", "config_version = 1\n", "config_version = 2\n", "config_version = 3\n"):
        (tmp_path / "c.toml").write_text(version + toml({old: value}), "utf-8")
        assert c.load(tmp_path / "c.toml", base) == wanted
        preset = c.load(None, base, preset=str(tmp_path / "c.toml"))
        assert preset.model_copy(update={"preset": None}) == wanted
    other = c.load(flags={**base, new: c.load(flags=base).model_dump()[new.split(".")[0]][new.split(".")[1]]})
    assert c.load(tmp_path / "c.toml", {**base, new: c._at(other.model_dump(), new.split("."))}) == other, "a flag wins"


@pytest.mark.parametrize("old", VALUES)
def test_both_names_at_once_are_one_clear_line(tmp_path, capsys, old):
    new, value = ROWS[old], VALUES[old]
    line = f"{old}: its name is {new} today, and both are given; keep {new}"
    with pytest.raises(c.ConfigError) as caught:
        c.load(flags={**BASE, old: value, new: value})
    assert str(caught.value) == line
    (tmp_path / "c.toml").write_text(toml({old: value, new: value}), "utf-8")
    assert main(["check", str(tmp_path / "c.toml")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'c.toml'}: {line}\n"


def test_a_table_under_both_names_is_joined():
    made = c.load(flags={**BASE, "heal.skip_limit": 4, "recovery.max_rollbacks": 3})
    assert (made.recovery.max_skipped_steps, made.recovery.max_rollbacks) == (4, 3)
    assert c.load(flags={**BASE, "heal": {}}).recovery == c.load(flags=BASE).recovery
    with pytest.raises(c.ConfigError, match=r"recovery\.max_rolbacks: there is no such option; did you mean"):
        c.load(flags={**BASE, "heal.max_rolbacks": 4})


@pytest.mark.parametrize("old", VALUES)
def test_only_todays_name_is_written(old):
    text = c.load(flags={**BASE, **NEEDED, old: VALUES[old]}).to_toml(only_set=True)
    written = c.loads(text)
    assert c.renames(written) == [] and c._at(written, ROWS[old].split(".")) == VALUES[old]
    assert written["config_version"] == c.VERSION


def test_the_former_name_works_beside_kohyas_flags(tmp_path):
    flags = ["--pretrained_model_name_or_path=m", "--train_data_dir=y", "--memory.one_by_one=true"]
    _, given = kohya.take_arguments(["import-kohya", *flags])
    text, _ = imported(given)
    assert c.loads(text)["memory"] == {"grad_cache": True}
    (tmp_path / "1_a").mkdir()
    (tmp_path / "1_a" / "a.png").touch()
    flags[1] = f"--train_data_dir={tmp_path}"
    _, given = kohya.take_arguments(["train", *flags])
    assert load_kohya(given)[0].memory.grad_cache


def test_inspect_shows_the_configuration_of_an_old_file_under_todays_names(capsys):
    file = Path(__file__).parents[1] / "golden" / "old" / "adapters" / "sd15.safetensors"
    assert main(["inspect", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "memory.grad_cache = false" in shown and "recovery.max_rollbacks" in shown and "one_by_one" not in shown


def test_digests_are_made_of_the_first_names():
    assert MemoryOptions(grad_cache=True).recorded_dump()["one_by_one"] is True
    assert NoiseOptions().recorded_dump()["whole_timesteps"] is False
    dumped = c.load(flags=BASE).recorded_dump()
    assert "heal" in dumped and dumped["heal"].keys() == {"skip_limit", "rollbacks", "rate_factor"}
    assert {"blocks_on_gpu", "grad_cache"}.isdisjoint(dumped["memory"])


def test_the_pages_draft_is_brought_up_to_date_with_its_comments(tmp_path):
    draft = pytest.importorskip("pixelkiln.extension.draft")
    text = "# mine\nconfig_version = 1\n\n[memory] # room\nresident_blocks = 3 # few\n\n[heal]\nskip_limit = 4\n"
    now = draft.current(text)
    assert now.startswith("# mine\n") and "[memory] # room" in now and "heal" not in now
    assert draft.flat(draft.values_of(now)) == {
        "config_version": 1, "memory.blocks_on_gpu": 3, "recovery.max_skipped_steps": 4
    }  # fmt: skip
    assert draft.values_of(text) == draft.values_of(now) and draft.current(now) == now
    both = f"{text}[recovery]\nmax_skipped_steps = 5\n"
    assert draft.current(both) == both
    (problem,) = draft.problems(both, Path("d.toml"))
    assert problem.where == "heal.skip_limit" and "both are given" in problem.what
