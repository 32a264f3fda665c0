"""Habits of sd-scripts' users: pasted lines, values that mean not given, folders as they lie about."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import tomlkit
from sample_data import folder, picture

from pixelkiln.trainer import config as c
from pixelkiln.trainer.cli import main
from pixelkiln.trainer.diffusion.options import SampleOptions
from pixelkiln.trainer.diffusion.sampling import prompts
from pixelkiln.trainer.errors import UserError
from pixelkiln.trainer.kohya.entrance import load, take
from pixelkiln.trainer.kohya.names import arguments

BASE = ["--pretrained_model_name_or_path=m", "--model.family=sd15"]


def read(root: Path, values: dict, *words: str):
    path = root / "their.toml"
    path.write_text(tomlkit.dumps(values), "utf-8")
    return load(take(["--config_file", str(path), *BASE, *words])[0])


@pytest.fixture
def data(tmp_path):
    folder(tmp_path / "img" / "1_cat", 1)
    return tmp_path


TEXTS = sorted(name for name, one in arguments().items() if one.type != "flag" and name != "config_file")


@pytest.mark.parametrize("name", TEXTS)
def test_false_for_a_text_or_number_is_not_given(name, data):
    img = {} if name in ("train_data_dir", "dataset_config") else {"train_data_dir": str(data / "img")}
    with_it, without = ({**img, **more} for more in ({name: False}, {}))
    if not img:
        with_it["in_json"] = without["in_json"] = "m.json"
    assert read(data, with_it)[0] == read(data, without)[0]


@pytest.mark.parametrize("place", ["general", "dataset", "subset"])
@pytest.mark.parametrize(
    "key", ["caption_extension", "caption_prefix", "caption_separator", "keep_tokens_separator", "secondary_separator"]
)
@pytest.mark.parametrize("value", ["", False])
def test_empty_texts_of_a_data_set_are_not_given(place, key, value, data):
    def config(more: dict) -> c.Config:
        own = more if place == "subset" else {}
        subset = {"image_dir": str(data / "img" / "1_cat"), "class_tokens": "zz", **own}
        dataset = {"resolution": 64, "subsets": [subset], **(more if place == "dataset" else {})}
        tables = {"general": more if place == "general" else {}, "datasets": [dataset]}
        (data / "d.toml").write_text(tomlkit.dumps(tables), "utf-8")
        return load(take(["--dataset_config", str(data / "d.toml"), *BASE])[0])[0]

    assert config({key: value}) == config({})
    assert config({key: value}).data.sets[0].caption == "zz"


LINE = ["--train_data_dir", "IMG", "--network_dim", "8", "--network_module", "networks.lora"]
LAUNCHERS = {
    "accelerate": ["accelerate", "launch", "--num_cpu_threads_per_process", "1", "train_network.py"],
    "flags with =": ["accelerate", "launch", "--mixed_precision=bf16", "./sd-scripts/train_network.py"],
    "windows": [r"C:\kohya\venv\Scripts\accelerate.exe", "launch", r"C:\kohya\sd-scripts\train_network.py"],
    "python": ["python3.11", "train_network.py"],
    "module": ["python", "-m", "accelerate.commands.launch", "train_network.py"],
    "torchrun": ["torchrun", "--nproc_per_node", "2", "train_network.py"],
    "environment": ["CUDA_VISIBLE_DEVICES=0", "accelerate", "launch", "train_network.py"],
    "uv": ["uv", "run", "accelerate", "launch", "train_network.py"],
    "script": ["train_network.py"],
    "a prompt": ["(venv)", "user@host:~/sd-scripts$", "accelerate", "launch", "train_network.py"],
    "a prompt of windows": ["PS", r"C:\kohya>", "accelerate", "launch", "train_network.py"],
    "a notebook": ["!accelerate", "launch", "train_network.py"],
    "call": ["call", "accelerate", "launch", "train_network.py"],
    "start": ["start", "my training", "/wait", "accelerate", "launch", "train_network.py"],
    "variables": ["export", "CUDA_VISIBLE_DEVICES=0", "&&", "accelerate", "launch", "train_network.py"],
    "env": ["env", "A=1", "B=2", "python", "train_network.py"],
    "set": ["set", "A=1", "&&", "python", "train_network.py"],
    "a folder first": ["cd", "sd-scripts", "&&", "source", "venv/bin/activate", "&&", "python", "train_network.py"],
    "nice": ["nohup", "nice", "-n", "10", "python", "-u", "train_network.py"],
    "its own configuration": ["accelerate", "launch", "--config_file", "acc.yaml", "train_network.py"],
    "as a module": ["accelerate", "launch", "--module", "train_network"],
    "deepspeed": ["deepspeed", "--num_gpus", "2", "train_network.py"],
    "torch": ["python", "-m", "torch.distributed.run", "--nproc_per_node=2", "train_network.py"],
    "accelerate-launch": ["accelerate-launch", "TRAIN_NETWORK.PY"],
    "powershell": ["&", r"C:\kohya ss\venv\Scripts\accelerate.exe", "launch", r"C:\kohya ss\train_network.py"],
    "docker": ["docker", "run", "--gpus", "all", "image", "python", "train_network.py"],
}


@pytest.mark.parametrize("mark", ["\\", "^", "`", "\\\n", None])
@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_pasted_line_works(name, mark, data):
    words = [*LAUNCHERS[name], *LINE]
    if mark:
        words = [one for word in words for one in ((mark, word) if word.startswith("--") else (word,))]
    words = [str(data / "img") if word == "IMG" else word for word in words]
    config, notes = load(take([*words, *BASE])[0])
    assert config.adapter.rank == 8 and config.data.sets[0].caption == "cat"
    assert any("the launcher is not needed" in note for note in notes) == (name != "script")
    assert any("line continuations" in note for note in notes) == bool(mark)


def test_marks_at_the_end_of_a_value_are_left_out(data):
    words = [
        "accelerate",
        "launch",
        "train_network.py",
        "--network_dim=8^",
        "--train_data_dir",
        f"{data / 'img'}`",
        *BASE,
    ]
    assert load(take(words)[0])[0].adapter.rank == 8


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("train_db.py", "the whole model"), ("sdxl_train.py", "the whole model"),
        ("train_textual_inversion.py", "embedding"),
        ("flux_train_network.py", "a model of another family"), ("kohya_gui.py", "no script that is done here"),
        ("sdxl_train_control_net_lllite.py", "a ControlNet"), ("trian_network.py", "did you mean train_network"),
    ],
)  # fmt: skip
def test_other_scripts_are_named(script, message):
    with pytest.raises(UserError, match=message):
        take(["accelerate", "launch", script, *BASE])
    with pytest.raises(UserError, match="no script of sd-scripts follows"):
        take(["accelerate", "launch", *BASE])


def test_several_gpus_are_told_where_they_are_asked_for(data):
    def several(*words):
        notes = load(take([*words, "train_network.py", *LINE[:1], str(data / "img"), *BASE])[0])[1]
        return any("several GPUs" in note for note in notes)

    assert several("torchrun", "--nproc_per_node=2") and several("deepspeed", "--num_gpus", "4")
    assert several("accelerate", "launch", "--multi_gpu")
    assert not several("accelerate", "launch", "--num_processes", "1") and not several("accelerate", "launch")


@pytest.mark.parametrize("end", [["&"], [">", "log.txt", "2>&1"], ["2>&1", "|", "tee", "log.txt"], ["&&", "echo"],
                                 [";", "shutdown"], ["#", "my", "best", "run"], ["&", "pause"]])  # fmt: skip
def test_what_a_shell_does_after_a_pasted_line_is_passed_over(end, data):
    config, notes = load(take(["python", "train_network.py", *LINE[:1], str(data / "img"), *BASE, *end])[0])
    assert any("this is for a shell" in note for note in notes)
    assert config.data.sets[0].caption == "cat"


@pytest.mark.parametrize("value", [";", "|", "#", "&&"])
def test_marks_of_a_shell_are_kept_as_values(value, data):
    words = ["python", "train_network.py", *LINE[:1], str(data / "img"), *BASE, "--caption_separator", value]
    assert load(take(words)[0])[0].data.separator == value


@pytest.mark.parametrize("dash", ["\u2014", "\u2013\u2013", "-\u2013", "\u2212\u2212", "-"])
@pytest.mark.parametrize("form", [["network_dim=8"], ["network_dim", "8"]])
def test_dashes_of_a_text_program_are_hyphens(dash, form, data):
    words = [*LINE[:1], str(data / "img"), *BASE, dash + form[0], *form[1:]]
    config, notes = load(take(words)[0])
    assert config.adapter.rank == 8 and any("read as --" in note for note in notes)


def test_quotes_of_a_text_program_are_named(data):
    with pytest.raises(UserError, match="quotes of a text program"):
        take(["python", "train_network.py", "--train_data_dir=\u201cmy", "img\u201d"])


def test_the_script_says_the_family(data):
    words = ["sdxl_train_network.py", "--pretrained_model_name_or_path=owner/m", "--clip_skip=2"]
    _, notes = load(take([*words, "--train_data_dir", str(data / "img")])[0])
    assert any("clip_skip is left out: sd-scripts does not use it for sdxl" in note for note in notes)


def test_a_pasted_line_needs_no_command(data, capsys):
    assert main(["accelerate", "launch", "train_network.py", "--network_dmi", "8"]) == 2
    assert "network_dmi" in capsys.readouterr().err
    assert main(["check", "accelerate", "launch", "train_network.py", "--network_dim", "8"]) == 2
    assert "pretrained_model_name_or_path" in capsys.readouterr().err


def test_a_folder_of_pictures_itself_names_its_parent(tmp_path):
    folder(tmp_path / "img" / "10_cat", 2)
    folder(tmp_path / "plain", 2)
    for name, message in (("img/10_cat", "give its parent, .*img"), ("plain", "move them into plain/10_plain")):
        with pytest.raises(c.ConfigError, match=message):
            load(take([*BASE, "--train_data_dir", str(tmp_path / name)])[0])


@pytest.mark.parametrize("text", ["--n blurry --d 7", " --n blurry --d 7", "\t--n blurry --d 7"])
def test_a_prompt_that_begins_with_flags_is_empty(text):
    one = prompts(SampleOptions(prompts=[text]), (64, 64))[0]
    assert one.text == "" and one.negative == "blurry" and one.seed == 7


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1, 10**30])
def test_a_seed_that_is_none_is_refused(seed, tmp_path):
    with pytest.raises(UserError, match="is no seed"):
        prompts(SampleOptions(prompts=[f"a --d {seed}"]), (64, 64))
    (tmp_path / "p.json").write_text(f'[{{"prompt": "a", "seed": {seed}}}]', "utf-8")
    with pytest.raises(UserError, match="is no seed"):
        prompts(SampleOptions(file=str(tmp_path / "p.json")), (64, 64))
    assert prompts(SampleOptions(prompts=["a", "b"], seed=2**64 - 1), (64, 64))[1].seed == 0


def test_check_refuses_such_a_seed(data, capsys):
    path = data / "mine.toml"
    path.write_text('[model]\nfamily = "sd15"\n[sample]\nprompts = ["a --d 99999999999999999999"]\n', "utf-8")
    words = ["check", str(path), f"--data.path={data / 'img' / '1_cat'}", "--data.resolution=64", f"--run.out={data}"]
    assert main(words) == 2
    assert "is no seed" in capsys.readouterr().err


@pytest.mark.parametrize("mark", ["\ufeff", ""])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be"])
def test_prompt_files_and_configurations_in_the_encodings_of_editors(data, encoding, mark):
    (data / "p.txt").write_bytes(f"{mark}a red cat --d 7\n# no\n猫 --n ugly\n".encode(encoding))
    found = prompts(SampleOptions(file=str(data / "p.txt")), (64, 64))
    assert [one.text for one in found] == ["a red cat", "猫"] and found[0].seed == 7
    text = tomlkit.dumps({"train_data_dir": str(data / "img"), "network_dim": 8})
    (data / "their.TOML").write_bytes((mark + text).encode(encoding))
    assert load(take(["--config_file", str(data / "their.TOML"), *BASE])[0])[0].adapter.rank == 8


def test_a_closed_pipe_is_no_defect():
    command = f"{sys.executable} -m trainer options | head -1"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr and done.stdout.count("\n") == 1


def test_version_and_help(capsys):
    for words, wanted in ((["--version"], "pixelkiln 0"), (["train", "--help"], "train_network.py")):
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == 0 and wanted in " ".join(capsys.readouterr().out.split())


def test_an_empty_folder_among_others_is_a_warning(data):
    (data / "img" / "5_old").mkdir()
    (data / "reg" / "1_man").mkdir(parents=True)
    picture(data / "img" / "1_cat" / "b.png")
    words = ["--train_data_dir", str(data / "img"), "--reg_data_dir", str(data / "reg"), "--resolution", "64,64",
             "--output_dir", str(data)]  # fmt: skip
    config, _ = load(take([*BASE, *words])[0])
    from pixelkiln.trainer.data.loader import Dataset

    assert any("folders without pictures, left out: 2" in line for line in Dataset(config.data).warnings)


@pytest.mark.parametrize(
    ("line", "text", "values"),
    [
        ("a cat \u2014w 64", "a cat", {"width": 64}), ("a cat \u2013n blurry", "a cat", {"negative": "blurry"}),
        ("\u2013\u2013d 7", "", {"seed": 7}), ("a --W 64 --N b", "a", {"width": 64, "negative": "b"}),
        ("a --n=bad --w=64", "a", {"negative": "bad", "width": 64}), ("a --am 0.5 --fs 3 --ow 8", "a", {}),
        ("a cat \u2013 striped", "a cat \u2013 striped", {}), ("well--known", "well--known", {}),
        ("a --d -1", "a", {"seed": 42}), ("a --n b --n c", "a", {"negative": "c"}),
        ("\u00e4 \u732b --n \u60aa\u3044", "\u00e4 \u732b", {"negative": "\u60aa\u3044"}),
    ],
)  # fmt: skip
def test_flags_of_a_prompt_as_people_write_them(line, text, values):
    one = prompts(SampleOptions(prompts=[line], seed=42), (512, 512))[0]
    assert one.text == text and {name: getattr(one, name) for name in values} == values


def test_a_text_behind_the_flags_is_reported():
    with pytest.raises(UserError, match="behind the text of the prompt"):
        prompts(SampleOptions(prompts=["--w 64 a cat"]), (512, 512))


@pytest.mark.parametrize("value", ["conv_dim=4 conv_alpha=1", ["conv_dim=4 conv_alpha=1"],
                                   ['"conv_dim=4"', "'conv_alpha=1'"],
                                   ["conv_dim = 4", "conv_alpha=1"]])  # fmt: skip
def test_lists_of_arguments_in_any_quotes(value, data):
    made, _ = read(
        data, {"train_data_dir": str(data / "img"), "network_module": "networks.lora", "network_args": value}
    )
    assert (made.adapter.conv_rank, made.adapter.conv_alpha) == (4, 1)


def test_a_value_with_spaces_stays_one(data):
    made, _ = read(data, {"train_data_dir": str(data / "img"), "optimizer_args": ["betas=0.9, 0.99 weight_decay=0.1"]})
    assert made.optimizer.args == {"betas": [0.9, 0.99], "weight_decay": 0.1}


@pytest.mark.parametrize(("text", "remedy"), [("None", "leave out"), ("null", "leave out"), ("True", "write true"),
                                              ("FALSE", "write false")])  # fmt: skip
def test_words_of_other_languages_in_a_toml_are_named(text, remedy, data):
    (data / "their.toml").write_text(f"network_weights = {text}\n", "utf-8")
    with pytest.raises(UserError, match=remedy):
        load(take(["--config_file", str(data / "their.toml"), *BASE])[0])
