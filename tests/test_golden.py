"""The contract with people outside: what golden/contract/ records must still be there; additions are allowed.

Recorded are command lines, JSON answers, run folders, adapter files, options, nodes, workflows, HTTP routes,
environment variables and entry points. PIXELKILN_RECORD_GOLDEN=1 writes the records again.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import short_runs as runs
import toml
from comfy_graph import to_prompt
from golden_record import RECORDS, golden, shape
from PIL import Image
from safetensors import safe_open

from pixelkiln.trainer import cli
from pixelkiln.trainer import config as configuration
from pixelkiln.trainer.registry import former_names

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [path for folder in ("trainer", "nodes", "extension") for path in sorted((ROOT / folder).rglob("*.py"))]


# -------------------------------------------------------------------------------------------------------- command line


def command_record(parser: argparse.ArgumentParser) -> dict[str, Any]:
    positionals, flags = [], {}
    for action in parser._actions:
        facts = {"value": action.nargs != 0, "required": action.required, "nargs": action.nargs,
                 "choices": list(action.choices or []), "default": action.default}  # fmt: skip
        facts = {key: value for key, value in facts.items() if value not in (None, False, [], str(ROOT / "runs"))}
        flags |= dict.fromkeys(action.option_strings, facts)
        positionals += [] if action.option_strings else [{"name": action.dest, **facts}]
    return {"positionals": positionals, "flags": flags}


def commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    return next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction)).choices


def test_commands_and_flags() -> None:
    page = import_module("pixelkiln.extension.__main__").parser()
    found = {name: command_record(one) for name, one in commands(cli.parser()).items()}
    golden("commands", {"trainer": found, "extension": command_record(page)})


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("golden")
    runs.pictures(root / "pictures")
    runs.pairs(root / "pairs")
    runs.model(root / "sd15")
    (root / "prompts.txt").write_text("a cat\n", "utf-8")
    (root / "empty.toml").write_text("config_version = 1\n", "utf-8")
    return root


def words(home: Path, command: str, family: str = "sd15", **more: Any) -> list[str]:
    """A command with a configuration of a short run on a tiny model."""
    values = {
        "model.path": runs.model(home / family, family), "data.path": home / "pictures", "data.resolution": 64,
        "run.out": home / "runs", "run.name": "t", "run.steps": 4, "run.batch": 2, "run.device": "cpu",
        "adapter.rank": 2, "save.every": 2, "save.state_every": 2, "sample.prompts": '["a red cat"]', "sample.steps": 1,
        "sample.every": 2, "validation.every": 2, "data.validation_split": 0.25, "save.ema": 0.9,
        **{key.replace("__", "."): value for key, value in more.items()},
    }  # fmt: skip
    return [command, str(home / "empty.toml"), *(f"--{key}={value}" for key, value in values.items())]


@pytest.fixture(scope="module")
def run(home: Path) -> Path:
    """A finished run whose host has asked for a save and for previews before the first step."""
    folder = home / "runs" / "t"
    (folder / "control").mkdir(parents=True)
    for request in ("save", "sample"):
        (folder / "control" / request).touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIXELKILN_JOB", "token")
        assert cli.main(words(home, "train")) == 0
    return folder


def test_exit_codes(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    found = {"bad option": cli.main(words(home, "train", adapter__rnk=4)), "done": cli.main(["presets"])}
    with pytest.raises(SystemExit) as end:
        cli.main(["nonsense"])
    found["bad command"] = end.value.code
    (home / "runs" / "stopped" / "control").mkdir(parents=True)
    (home / "runs" / "stopped" / "control" / "stop").touch()
    monkeypatch.setenv("PIXELKILN_JOB", "token")
    found["stop request"] = cli.main(words(home, "train", run__name="stopped", sample__prompts="[]"))
    for name, error in (("defect", RuntimeError("x")), ("interrupt", KeyboardInterrupt())):
        monkeypatch.setattr(cli, "parser", lambda error=error: (_ for _ in ()).throw(error))
        found[name] = cli.main(["presets"])
    assert found == {"bad option": 2, "done": 0, "bad command": 2, "stop request": 130, "defect": 1, "interrupt": 130}


@pytest.mark.slow
def test_json_answers(home: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    adapter, cells = run / "t.safetensors", tmp_path / "cells.json"
    cells.write_text(json.dumps([{"adapter": str(adapter), "strength": 1, "folder": str(tmp_path / "cell")}]), "utf-8")
    generate = [*words(home, "pairs-generate"), "--prompts", str(home / "prompts.txt"), "-n=1", "-o", str(tmp_path)]
    long = words(home, "train", run__name="long", run__steps=24, save__every=0, save__state_every=0, sample__every=0)
    assert cli.main(long) == 0  # so long that its step's time is remembered
    large = words(home, "check", data__resolution=1024, sample__prompts="[]")
    given = {
        "check": [*words(home, "check"), "--card=RTX 3060 12GB", "--fit"],
        "check, measured": words(home, "check"),
        "check, too little memory": [*large, "--memory=0.6GB"],
        "sample": [*words(home, "sample"), "--adapter", str(adapter), "-o", str(tmp_path / "drawn")],
        "draw": [*words(home, "draw"), "--cells", str(cells)],
        "options": ["options"], "presets": ["presets"], "inspect": ["inspect", str(adapter)],
        "keys": ["keys", "--family=sd15", "--rank=4"], "pairs check": ["pairs", "check", str(home / "pairs")],
        "pairs import": ["pairs", "import", str(home / "pairs"), "-o", str(tmp_path / "imported")],
        "import-kohya": ["import-kohya", "--pretrained_model_name_or_path=x", "--train_data_dir=y"],
    }  # fmt: skip
    found = {}
    for name, line in given.items():
        capsys.readouterr()
        assert cli.main([*line, "--json"]) == 0, name
        answer = json.loads(capsys.readouterr().out)
        for preset in answer.get("presets", []):
            preset["values"] = {}
        found[name] = shape(answer)
    assert cli.main(generate) == 0
    for path in (tmp_path / "candidates.jsonl", tmp_path / "imported" / "pairs.jsonl"):
        found[path.name] = shape(*map(json.loads, path.read_text("utf-8").splitlines()))
    config = found["inspect"]["config"]
    for row in filter(lambda row: row["formerly"], configuration.reference()):  # recorded before options were renamed
        table, name = row["formerly"].split(".")
        config.setdefault(table, {})[name] = config[row["table"]][row["name"]]
    golden("answers", found)


def test_options_and_presets(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["options", "--json"]) == cli.main(["presets", "--json"]) == 0
    options, presets = map(json.loads, capsys.readouterr().out.splitlines())
    kept = ("type", "choices", "default", "required", "path", "kohya")
    found = {
        one["formerly"] or f"{one['table']}.{one['name']}": {key: one[key] for key in kept}
        for one in options["options"]
    }
    version = found[".config_version"]
    assert (version["choices"], version["default"]) == ([configuration.VERSION], configuration.VERSION)
    found[".config_version"] |= {"type": "1", "choices": [1], "default": 1}  # of a file; it is migrated
    for name, old in json.loads((RECORDS / "options.json").read_text("utf-8")).items():
        one = found.get(name)
        if one and old["choices"] and [c for c in one["choices"] or [] if c in old["choices"]] == old["choices"]:
            one["type"] = old["type"]  # a choice more is an addition
    golden("options", found)
    golden("presets", [one["name"] for one in presets["presets"]])


# --------------------------------------------------------------------------------------------------------------- files


def test_run_folder(run: Path) -> None:
    names = sorted(path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file())
    events = [json.loads(line) for line in (run / "events.jsonl").read_text("utf-8").splitlines()]
    states = []
    for path in sorted((run / "state").iterdir()):
        with safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["pixelkiln.state"])
            keys = sorted({re.sub(r"\d+", "#", key) for key in file.keys()})  # noqa: SIM118 (no mapping)
            first = facts["optimizer"]["groups"][0]["params"][0]
            states.append({"metadata": sorted(file.metadata()), "tensors": keys, "first parameter": first,
                           "optimizer": facts["optimizer"]["class"], "facts": shape(facts)})  # fmt: skip
    assert not list((run / "control").iterdir()), "the requests were taken"
    with Image.open(run / "samples" / "step00000004_00.png") as picture:
        text = sorted(picture.info)
    kinds = sorted({event["kind"] for event in events})
    renamed = dict.fromkeys(former_names(configuration.Config))
    golden("run_folder", {
        "files": [re.sub(r"tfevents\..*", "tfevents", name) for name in names],
        "status.json": shape(json.loads((run / "status.json").read_text("utf-8"))),
        "events.jsonl": {kind: shape(*(event for event in events if event["kind"] == kind)) for kind in kinds},
        "requests": [[e["kind"], e["step"]] for e in events if e["kind"] in ("checkpoint", "sample", "validation")],
        "state": states[-1], "config.toml": sorted({**toml.load(run / "config.toml"), **renamed}), "picture": text,
    })  # fmt: skip


@pytest.mark.parametrize(("kind", "facts"), [
    ("oom", ("did", "exact", "options", "message")), ("spike", ("loss", "usual")),
    ("rollback", ("failed", "rate_factor")), ("warning", ("message",)),
])  # fmt: skip
def test_rare_events(kind: str, facts: tuple[str, ...]) -> None:
    """Events of runs that go wrong: some call in the sources writes this kind with these facts."""
    calls = [
        call for path in SOURCES for call in re.findall(rf'\w\(\s*"{kind}",[^#]{{0,250}}', path.read_text("utf-8"))
    ]
    assert any(all(f"{fact}=" in call for fact in facts) for call in calls), calls


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd3-medium"])
def test_adapter_file(home: Path, family: str) -> None:
    more = {"run__name": family, "run__steps": 1, "sample__prompts": "[]", "adapter__text_encoders": "true"}
    plain = {"validation__every": 0, "data__validation_split": 0, "save__ema": 0, "save__every": 0}
    assert cli.main(words(home, "train", family, **more, **plain)) == 0
    with safe_open(home / "runs" / family / f"{family}.safetensors", "pt") as file:
        names, metadata = sorted(file.keys()), file.metadata()
    assert names
    values = {key: value for key, value in metadata.items() if re.match(r"ss_(network_|v2$|base_model_v)", key)}
    values |= {key: metadata[key] for key in ("modelspec.architecture", "modelspec.sai_model_spec", "ss_optimizer")}
    golden(f"adapter_{family}", {
        "metadata": sorted(metadata), "values": values, "modules": sorted({name.split(".")[0] for name in names}),
        "tensors": sorted({name.partition(".")[2] for name in names}),
    })  # fmt: skip


# ------------------------------------------------------------------------------------------------- ComfyUI, HTTP, entry


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    command = [sys.executable, str(ROOT / "tests" / "golden_faces.py"), str(tmp_path_factory.mktemp("comfyui"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.split("FOUND ")[1])


def test_nodes(faces: dict[str, Any]) -> None:
    golden("nodes", {name: faces[name] for name in ("v1", "v3", "v3, Autogrow")})
    recorded = json.loads((RECORDS / "nodes.json").read_text("utf-8"))["v1"]
    for name, node in recorded.items():  # a new required input would break every saved prompt
        assert len(faces["v1"][name]["required"]) == len(node["required"]), name


def test_comfyui_entry_points_and_route(faces: dict[str, Any]) -> None:
    assert faces["v1 hidden by v3"] and faces["display_names"] and faces["web"]
    preference = faces["preference"]
    codes = {name: code for name, (code, _) in preference["answers"].items()}
    shapes = {name: shape(body) for name, (_, body) in preference["answers"].items()}
    files = {name: shape(*rows) for name, rows in preference["files"].items()}
    golden("comfyui", {"routes": faces["routes"], "ui": shape(*preference["ui"].values()), "codes": codes,
                       "answers": shapes, "files": files})  # fmt: skip


CORE = {
    "CheckpointLoaderSimple": "ckpt_name:STRING", "EmptyLatentImage": "width:INT height:INT batch_size:INT",
    "CLIPTextEncode": "text:STRING clip:CLIP", "VAEDecode": "samples:LATENT vae:VAE",
    "SaveImage": "images:IMAGE filename_prefix:STRING",
    "KSampler": "model:MODEL seed:INT steps:INT cfg:FLOAT sampler_name:STRING scheduler:STRING positive:CONDITIONING "
                "negative:CONDITIONING latent_image:LATENT denoise:FLOAT",
}  # fmt: skip
"""Inputs of ComfyUI's own nodes in the workflows."""


@pytest.mark.parametrize("name", ["ab_grid", "load_adapter", "preference", "train_and_use", "train_on_preferences"])
def test_workflows_become_the_same_prompts(faces: dict[str, Any], name: str) -> None:
    core = {node: dict(one.split(":") for one in text.split()) for node, text in CORE.items()}
    kinds = {node: {"required": {key: [kind, {}] for key, kind in inputs.items()}} for node, inputs in core.items()}
    kinds |= faces["info"]
    info = {node: {"input": k, "input_order": {group: list(k[group]) for group in k}} for node, k in kinds.items()}
    golden(f"api_{name}", to_prompt(json.loads((ROOT / f"example_workflows/{name}.json").read_text("utf-8")), info))
    for record in RECORDS.glob(f"api_{name}.*json"):  # also prompts that were saved from earlier templates
        for node in json.loads(record.read_text("utf-8")).values():
            known = kinds[node["class_type"]]
            assert known["required"].keys() <= node["inputs"].keys()
            assert node["inputs"].keys() <= known["required"].keys() | known.get("optional", {}).keys()


def test_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """The user interface started as a person does, with the web server replaced."""
    pytest.importorskip("gradio")
    import uvicorn
    from starlette.testclient import TestClient

    served: list[Any] = []
    monkeypatch.setattr(uvicorn, "run", lambda web, **_: served.append(web))
    main: Callable[..., int] = import_module("pixelkiln.extension.__main__").main
    assert main(["--runs", str(tmp_path), "--no-browser"]) == 0
    with TestClient(served[0], base_url="http://127.0.0.1") as client:
        alive, config = client.get("/alive").json(), client.get("/config").json()
        refused = client.get("/picture/x/0/y").status_code
    routes = sorted(
        f"{'/'.join(sorted(r.methods))} {r.path}" for r in served[0].app.app.routes if hasattr(r, "methods")
    )
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    page = shape(json.loads((tmp_path / ".ui" / "page.json").read_text("utf-8")))
    golden("page", {"alive": alive, "title": config["title"], "prefix": config["api_prefix"], "routes": routes,
                    "refused": refused, "files": files, "page.json": page})  # fmt: skip


def test_environment_variables() -> None:
    pattern = r'"((?:PIXELKILN|COMFYUI|A1111|FORGE|WEBUI|XDG|TORCHINDUCTOR)_[A-Z_]+|RANK|WORLD_SIZE|LOCALAPPDATA)"'
    golden("environment", sorted({n for path in SOURCES for n in re.findall(pattern, path.read_text("utf-8"))}))


def test_entry_points() -> None:
    scripts = toml.load(ROOT / "pyproject.toml")["project"]["scripts"]
    module, _, name = scripts["pixelkiln"].partition(":")
    assert callable(getattr(import_module(module), name))
    done = subprocess.run([sys.executable, "-m", "trainer", "presets", "--json"], cwd=ROOT, capture_output=True)
    assert done.returncode == 0 and json.loads(done.stdout)["presets"]
    for path in ("__init__.py", "install.py", "ui.sh", "ui.bat", "scripts/pixelkiln_tab.py", "extension/host_tab.py",
                 "extension/__main__.py", "trainer/__main__.py", "web/chooser.js", "web/text.js"):  # fmt: skip
        assert (ROOT / path).is_file(), path
