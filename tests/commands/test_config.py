"""The configuration: precedence, paths, problems in words, and the way there and back."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelkiln.trainer import config as c
from pixelkiln.trainer.commands.options import reference_markdown
from pixelkiln.trainer.registry import losses, objectives

BASE = {"model.path": "m", "data.path": "x"}


def made(**flags):
    return c.load(flags={**BASE, **{name.replace("__", "."): value for name, value in flags.items()}})


def problems(**flags) -> dict[str, str]:
    with pytest.raises(c.ConfigError) as caught:
        made(**flags)
    return dict(caught.value.problems)


def test_flag_over_file_over_preset_over_default(tmp_path):
    (tmp_path / "base.toml").write_text(
        "[run]\nsteps = 1\nbatch = 2\nseed = 3\n[model]\npath='m'\n[data]\npath='x'\n", "utf-8"
    )
    (tmp_path / "mine.toml").write_text("[run]\nsteps = 10\nbatch = 20\n", "utf-8")
    got = c.load(tmp_path / "mine.toml", {"run.steps": 100}, str(tmp_path / "base.toml"))
    assert (got.run.steps, got.run.batch, got.run.seed, got.run.accumulation) == (100, 20, 3, 1)


def test_paths_are_relative_to_the_file_that_holds_them(tmp_path):
    (tmp_path / "a").mkdir()
    text = "[model]\npath='models/m.safetensors'\n[[data.sets]]\npath='pictures'\n"
    (tmp_path / "a" / "mine.toml").write_text(text, "utf-8")
    got = c.load(tmp_path / "a" / "mine.toml", {"run.out": "here"})
    assert Path(got.model.path) == tmp_path / "a" / "models" / "m.safetensors"
    assert Path(got.data.sets[0].path) == tmp_path / "a" / "pictures"
    assert Path(got.run.out) == Path.cwd() / "here"


def test_a_hub_id_stays_an_id():
    assert made(model__path="org/name").model.path == "org/name"


def test_all_problems_at_once_each_with_its_place():
    message = problems(
        adapter__rnk=3, run__steps="many", loss__pixel__mode="mixd", data__sets=[{"path": "a", "repeat": 2}]
    )
    assert message["adapter.rnk"] == "there is no such option; did you mean 'rank'?"
    assert message["run.steps"].startswith("'many' does not fit; it should be a valid integer")
    assert "'mixed', 'x0', 'anchored' or 'stepped'" in message["loss.pixel.mode"]
    assert message["data.sets.0.repeat"] == "there is no such option; did you mean 'repeats'?"


def test_a_value_that_fits_none_of_several_types_is_one_problem():
    assert problems(objective__kind="dpo", objective__beta=-1)["objective.beta"].count("does not fit") == 1


def test_a_text_is_no_number_and_a_text_is_no_switch():
    assert set(problems(adapter__rank="16", data__shuffle="false")) == {"adapter.rank", "data.shuffle"}


def test_an_integer_is_a_number():
    assert made(adapter__alpha=8).adapter.alpha == 8.0


def test_the_latent_loss_is_there_unless_another_is():
    assert list(made(loss__pixel__mode="x0").terms()) == ["mse", "pixel"]
    assert list(made(loss__l1__weight=1.0).terms()) == ["l1"]
    assert list(made(loss__pixel__mode="x0", loss__mse__weight=0.0, loss__pixel__weight=1.0).terms()) == ["pixel"]


def test_an_objective_of_one_term_inherits_from_the_whole_unless_its_kind_differs():
    got = made(
        objective__kind="dpo", objective__beta=7.0, objective__pixel__dpop=1.0, loss__pixel__mode="mixed"
    ).terms()
    assert (got["pixel"][1].beta, got["pixel"][1].dpop, got["mse"][1].dpop) == (7.0, 1.0, 0.0)
    other = made(objective__kind="dpo", objective__beta=7.0, objective__pixel__kind="simpo", loss__pixel__mode="mixed")
    assert other.terms()["pixel"][1].kind == "simpo"
    assert other.terms()["mse"][1].beta == 7.0


def test_an_objective_of_no_term_is_told(tmp_path):
    with pytest.raises(c.ConfigError) as caught:
        made(objective__kind="dpo", objective__pixel__kind="simpo")
    assert caught.value.problems == [("objective.pixel", "there is no [loss.pixel]; add it or leave this out")]
    made(objective__kind="dpo", objective__pixel__kind="simpo", loss__pixel__weight=0.0)


def test_another_objective_drops_the_options_of_the_presets_own(tmp_path):
    preset = "[model]\npath='m'\n[data]\npairs='x'\n[objective]\nkind='dpo'\nbeta=3.0\n"
    (tmp_path / "p.toml").write_text(preset, "utf-8")
    assert c.load(preset=str(tmp_path / "p.toml"), flags={"objective.kind": "kto"}).objective.kind == "kto"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[run\nsteps = 3", "this is not TOML"),
        ("config_version = 9\n", "config_version 9 is not known"),
        ("config_version = 'x'\n", "is not known"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(tmp_path, text, message):
    (tmp_path / "bad.toml").write_text(text, "utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        c.load(tmp_path / "bad.toml")
    assert "\n" not in str(caught.value)


def test_a_missing_preset_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'demo'"):
        c.load(preset="dmo")


@pytest.mark.parametrize("objective", objectives.names())
@pytest.mark.parametrize("loss", losses.names())
def test_there_and_back(objective, loss):
    data = {} if objective == "sft" else {"data.path": "", "data.pairs": "p"}
    flags = {**BASE, f"loss.{loss}.probability": 0.5, "objective.kind": objective, **data}
    flags = {k: v for k, v in flags.items() if v != ""}
    got = c.load(flags=flags)
    assert c.parse(c.loads(got.to_toml())) == got


def test_a_text_that_begins_with_a_comma_is_kept():
    assert c.loads('x = [",", " , ", "a", ", b"]') == {"x": [",", " , ", "a", ", b"]}


@pytest.mark.slow
@settings(deadline=None)
@given(
    rank=st.integers(1, 4096),
    lr=st.floats(0, 1, allow_nan=False),
    name=st.text("abc äß-_", min_size=1).filter(lambda t: t == t.strip(" .")),
    prompts=st.lists(st.text(max_size=20)),
)
def test_there_and_back_for_any_values(rank, lr, name, prompts):
    got = made(adapter__rank=rank, optimizer__learning_rate=lr, run__name=name, sample__prompts=prompts)
    assert c.parse(c.loads(got.to_toml())) == got


@settings(deadline=None)
@given(
    st.sampled_from([r for r in c.reference() if r["table"] in ("run", "adapter", "optimizer", "noise", "save")]),
    st.data(),
)
def test_a_typo_names_the_option(row, data):
    name = row["name"]
    at = data.draw(st.integers(0, len(name) - 1))
    typo = name[:at] + name[at + 1 :]
    known = {r["name"] for r in c.reference() if r["table"] == row["table"]}
    if len(name) < 5 or typo in known:
        return
    message = problems(**{f"{row['table']}__{typo}": 1})[f"{row['table']}.{typo}"]
    assert message.startswith("there is no such option; did you mean '")


def test_every_option_has_a_help_text():
    assert [f"{r['table']}.{r['name']}" for r in c.reference() if len(r["help"]) < 10] == []


def test_the_committed_reference_is_fresh():
    page = Path(c.__file__).resolve().parents[1] / "docs" / "options.md"
    assert page.read_text("utf-8") == reference_markdown()


def test_a_set_that_is_not_there_cannot_be_changed():
    with pytest.raises(c.ConfigError, match=r"sets\.7: there is none; the last is sets\.0"):
        c.merge({"data": {"sets": [{"path": "a"}]}}, {"data": {"sets": {"7": {"path": "b"}}}})


@pytest.mark.parametrize("name", [" ", "x" * 245, "a/b", "con", ".", "a."])
def test_a_run_is_named_as_a_folder_can_be(name):
    with pytest.raises(c.ConfigError, match=r"run\.name: .*cannot be a folder's name everywhere"):
        c.parse({"run": {"name": name}, "model": {"path": "m"}, "data": {"path": "p"}, "loss": {"mse": {}}})


@pytest.mark.parametrize(
    ("text", "flag"),
    [
        ('pretrained_model_name_or_path = "m"\nnetwork_dim = 8\n', "--config_file"),
        ('[model_arguments]\npretrained_model_name_or_path = "m"\noutput_dir = "o"\n', "--config_file"),
        ('[general]\ncaption_extension = ".txt"\n[[datasets]]\nresolution = 512\n', "--dataset_config"),
    ],
)
def test_a_file_of_kohyas_tools_is_told(tmp_path, text, flag):
    file = tmp_path / "k.toml"
    file.write_text(text, "utf-8")
    with pytest.raises(
        ValueError, match=rf"k\.toml: this is a file of Kohya's tools; give it as {flag} .*k\.toml"
    ) as caught:
        c.load(file)
    assert "\n" not in str(caught.value)
