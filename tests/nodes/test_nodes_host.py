"""The nodes in a real ComfyUI: COMFYUI_PATH names a checkout, COMFYUI_PYTHON the Python that runs it (this one, else).

With COMFYUI_CHECKPOINT, an SD1.5 single file (random weights will do), every example workflow is executed too, at 64x64
pixels and two steps; that takes about 7 GB of memory.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from comfy_graph import to_prompt
from comfy_server import PATIENCE, ROOT, comfyui, server, until
from PIL import Image
from safetensors.torch import load_file, save_file

from pixelkiln.nodes.all import NODES
from pixelkiln.trainer.data import pairs_file
from pixelkiln.trainer.runs import control

pytestmark = pytest.mark.host
FIXTURES = (comfyui, server)
PRESET = "as in the preset"


# ------------------------------------------------------------------------------------------------------------- loading


@pytest.fixture(scope="module")
def findings(comfyui) -> dict[str, Any]:
    path, python = comfyui
    command = [python, str(ROOT / "tests" / "comfy_load.py"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.split("FINDINGS ")[1])


@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr"])
@pytest.mark.parametrize("family, modules", [("sd15", 226), ("sdxl", 746), ("sd3", 17), ("sd3.5", 19)])
def test_a_kohya_file_patches_what_core_patches(findings, family, modules, kind):
    found = findings[f"{family} {kind}"]
    assert found["info"] == f"matched {modules} of {modules}"
    assert (found["missing"], found["unet"], found.get("te", 0)) == (0, 0, 0)


def test_files_of_today_are_base_plus_scale_times_delta_where_core_drops_them(findings):
    for style, core in (("diffusers", 86), ("peft", 0)):
        found = findings[f"sd15 {style} file"]
        assert found["error"] < 1e-6
        assert (found["ours"], found["core"]) == (214, core)


@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr"])
@pytest.mark.parametrize("family, modules", [("sd15", 160), ("sdxl", 700), ("sd3", 21), ("sd3.5", 25)])
def test_todays_names_of_every_kind_give_what_core_gives_for_names_that_it_reads(findings, family, modules, kind):
    found = findings[f"{family} {kind}, today's names"]
    assert found["info"] == f"matched {modules} of {modules}"
    assert (found["missing"], found["unet"]) == (0, 0)


def test_another_family_is_an_error_a_warning_or_as_comfyui(findings):
    words = "this adapter is for SDXL (cross-attention 2048), the model is SD1.5 (cross-attention 768)"
    assert words in findings["sdxl on sd15"]["message"]
    warned = findings["sdxl on sd15, warn"]["message"]
    assert words in warned
    assert "matched 62 of 746" in warned
    assert findings["sdxl on sd15, as ComfyUI"]["same"]


def test_blocks_are_factors_on_the_delta(findings):
    found = findings["blocks"]
    assert found["mid"] < 1e-5
    assert (found["in"], found["out.3-5"], found["te"]) == (0, 0, 0)
    assert "no 'joint.3'; it has: all te base in.0-12 mid out.0-11 clip_l.0-1" in found["unknown"]


def test_without_a_clip_its_modules_are_counted(findings):
    assert "matched 214 of 214\nnot used: 12 modules" in findings["model only"]["info"]


def test_what_is_not_applied_is_counted_and_named(findings):
    found = findings["faults"]
    for name, words in {"half": "without lora_up.weight", "nan": "NaN or infinite", "foreign": "lora_te9_strange",
                        "whole": "it is a whole checkpoint", "flux": "a LoRA for Flux"}.items():  # fmt: skip
        assert found[f"{name}, error"].startswith("refused: ") and words in found[f"{name}, error"], name
        assert words in found[f"{name}, warn"]
    assert "matched 225 of 226" in found["half, warn"]
    assert "matched 226 of 227" in found["foreign, warn"]
    assert "matched 226 of 226\nnote: it holds embeddings, which are not applied: cat" in found["embedding, error"]
    assert "matched 2 of 2" in found["omi"]
    assert found["bias"] < 1e-6
    assert "1 differences of biases have no bias in this model" in found["no bias"]


# -------------------------------------------------------------------------------------------------------------- server


IMAGES = {"a": ("EmptyImage", {"width": 64, "height": 64, "batch_size": 1, "color": 255}),
          "b": ("EmptyImage", {"width": 64, "height": 64, "batch_size": 1, "color": 65280})}  # fmt: skip


def _train(**changed: Any) -> tuple[str, dict[str, Any]]:
    return "PixelkilnTrain", {
        "preset": "tiny", "name": "one", "checkpoint": PRESET, "dataset_name": "colours", "learn_from": "auto",
        "steps": 0, "rank": 0, "learning_rate": 0.0, "resolution": 0, "batch": 0, "run_seed": -1, "trigger": "",
        "prompts": "", "options": "", "mode": "wait", "again": "go on when unchanged", **changed,
    }  # fmt: skip


def test_nodes_help_locales_scripts_and_templates_are_served(server):
    info = server.get("/object_info")
    for node in NODES:
        assert info[node.id]["display_name"] == node.name
        with urllib.request.urlopen(f"{server.url}/extensions/pixel-kiln.1/docs/{node.id}.md") as page:
            assert page.read().startswith(b"# ")
    scripts = {f"/extensions/pixel-kiln.1/{name}.js" for name in ("chooser", "text", "preset")}
    assert scripts <= set(server.get("/extensions"))
    shown = server.get("/i18n")
    assert shown["de"]["nodeDefs"]["PixelkilnTrain"]["display_name"] == "Trainieren (Pixelkiln)"
    took = re.search(r"([\d.]+) seconds: .*pixel-kiln\.1", (server.base / "server.log").read_text(encoding="utf-8"))
    assert took and float(took[1]) < 0.6, "beyond ComfyUI's own imports"
    templates = server.get("/workflow_templates")
    assert any(set(found) >= {"ab_grid", "train_and_use"} for found in templates.values())


def test_a_fresh_comfyui_has_something_to_choose(server):
    """Its own folder for 3D files is no dataset, and what the templates say is in every list."""
    lists = options(server, "PixelkilnDatasetFolder", "folder"), options(server, "PixelkilnRunStatus", "run")
    assert lists == (["pairs", "style", "none"], ["none"])
    assert "character (by checkpoint)" in options(server, "PixelkilnTrain", "preset")


def options(server: Any, node: str, name: str) -> list[str]:
    """What a list offers now."""
    inputs = server.get(f"/object_info/{node}")[node]["input"]
    kind, *more = (inputs.get("required", {}) | inputs.get("optional", {}))[name]
    return kind if isinstance(kind, list) else more[0]["options"]


def test_preference_on_the_node_and_headless(server):
    common = {"images": ["a", 0], "images_b": ["b", 0], "dataset": "likes", "prompt": "a colour", "picture_seed": 5}
    done = server.run(**IMAGES, one=("PixelkilnPreference", {**common, "winner": 1}),
                      two=("PixelkilnPreference", {**common, "winner": -1}))  # fmt: skip
    assert len(pairs_file.read_pairs(server.data / "likes")) == 1
    token = done["outputs"]["two"]["pixelkiln_choice"][0]["token"]
    assert server.post("/pixelkiln/choose", {"token": token, "winner": 1})["said"] == "likes: 1 pair added"
    assert "made already" in server.post("/pixelkiln/choose", {"token": token, "winner": 1})["error"]
    rows = pairs_file.read_pairs(server.data / "likes")
    assert [(row.prompt, row.seed, row.chosen) for row in rows] == [("a colour", 5, rows[0].chosen)] * 2


def test_a_name_cannot_leave_the_data_folder(server):
    done = server.run(
        **IMAGES, x=("PixelkilnRate", {"images": ["a", 0], "dataset": "../x", "liked": "yes", "prompt": "p"})
    )
    assert "cannot be a folder's name" in done["error"]


def test_dataset_train_again_interrupt_and_resume(server):
    written = (
        "PixelkilnDatasetImages",
        {"images": ["a", 0], "dataset": "colours", "captions": "a blue square", "resolution": 64},
    )
    assert "1 new pictures" in server.run(a=IMAGES["a"], w=written)["outputs"]["w"]["text"][0]
    done = server.run(t=_train())
    assert done["error"] == ""
    assert "one.safetensors" in done["outputs"]["t"]["text"][0]
    assert "finished before" in server.run(t=_train())["outputs"]["t"]["text"][0]
    assert "other settings" in server.run(t=_train(rank=2))["error"]

    long = _train(name="two", steps=60)
    prompt_id = server.queue({"t": {"class_type": long[0], "inputs": long[1]}})
    until(lambda: control.status(server.runs / "two").step >= 3, "the third step")
    server.post("/interrupt")
    assert "execution_interrupted" in server.ended(prompt_id)["kinds"]
    stopped = control.status(server.runs / "two")
    assert stopped.state == "stopped"
    assert 3 <= stopped.step < 60
    assert server.run(t=long)["error"] == ""
    events, _ = control.events(server.runs / "two")
    assert [e["step"] for e in events if e["kind"] == "step"] == list(range(1, 61))


def test_a_finished_run_is_in_every_list_of_loras(server):
    """Also without a watching node, under the folder that the node names."""
    assert "pixelkiln/one.safetensors" in options(server, "LoraLoader", "lora_name")
    assert "pixelkiln/one.safetensors" in options(server, "PixelkilnLoadAdapter", "adapter")
    assert (server.base / "output/loras/pixelkiln/one.safetensors").is_file()
    server.run(t=_train(name="beside", mode="background", save_to="models/loras", steps=2))
    copy = server.base / "models/loras/pixelkiln/beside.safetensors"
    until(copy.is_file, "the copy")
    assert "pixelkiln/beside.safetensors" in options(server, "LoraLoader", "lora_name")
    assert server.run(t=_train(name="hidden", save_to="the run's folder only", steps=2))["error"] == ""
    assert not [one for one in options(server, "LoraLoader", "lora_name") if "hidden" in one]


def test_trainings_in_the_background_queue(server):
    """On one device, here the CPU, they train one after the other and say so."""
    server.run(t=_train(name="bg1", mode="background", steps=2000))
    until(lambda: control.status(server.runs / "bg1").step >= 1, "the first to train")
    line = server.run(t=_train(name="bg2", mode="background", steps=2))["outputs"]["t"]["text"][0]
    assert line.startswith("bg2: waiting for run 'bg1', which trains or waits before it; it starts by itself")
    shown = server.run(s=("PixelkilnRunStatus", {"run": "bg2"}))["outputs"]["s"]["text"][0]
    assert shown.startswith("bg2: queued\nwaiting for run 'bg1'")
    time.sleep(3)
    assert control.status(server.runs / "bg2").state == "queued"
    server.run(s=("PixelkilnRunSteer", {"run": "bg1", "what": "stop"}))
    until(lambda: control.status(server.runs / "bg2").state == "done", "the second to train")
    assert control.status(server.runs / "bg1").state == "stopped"


@pytest.mark.parametrize("typed, rate", [("0.000004", 4e-6), ("5e-6", 5e-6), (5e-6, 5e-6)])
def test_a_small_learning_rate_reaches_the_trainer(server, typed, rate):
    name = f"rate {type(typed).__name__} {typed}"
    assert server.run(t=_train(name=name, learning_rate=typed, steps=1))["error"] == ""
    written = (server.runs / name / "config.toml").read_text(encoding="utf-8")
    assert float(re.search(r"learning_rate = (\S+)", written)[1]) == rate


def test_a_learning_rate_by_a_link(server):
    done = server.run(f=("PrimitiveFloat", {"value": 2e-5}), t=_train(name="linked", learning_rate=["f", 0], steps=1))
    assert done["error"] == ""
    assert "learning_rate = 2e-05" in (server.runs / "linked/config.toml").read_text(encoding="utf-8")


def test_a_number_that_is_none_is_refused_before_the_queue(server):
    node = _train(learning_rate="fast")
    answer = server.post("/prompt", {"prompt": {"t": {"class_type": node[0], "inputs": node[1]}}})
    assert "learning_rate: 'fast' is no number" in json.dumps(answer)


def test_pictures_without_captions_train_on_a_trigger_word(server):
    written = ("PixelkilnDatasetImages", {"images": ["a", 0], "dataset": "bare", "captions": "", "resolution": 64})
    done = server.run(a=IMAGES["a"], w=written, t=_train(name="bare", folder=["w", 0], trigger="sks", steps=1))
    assert done["error"] == ""
    assert "without caption: 1" in done["outputs"]["w"]["text"][0]


def test_a_training_that_fails_shows_the_trainers_line(server):
    done = server.run(t=_train(name="bad", options="adapter.rnak = 3"))
    assert "run 'bad' failed: adapter.rnak: there is no such option; did you mean 'rank'?" in done["error"]


def test_check_and_status(server):
    inputs = {key: value for key, value in _train()[1].items() if key not in ("mode", "again")}
    done = server.run(c=("PixelkilnFitCheck", inputs))
    shown = done["outputs"]["c"]["text"][0]
    assert "steps     8 (8.0 epochs of 1 steps)" in shown
    assert re.search(r"memory    \d+\.\d+ GB of \d", shown)
    assert re.search(r"time      about \d+ s, .* \(measured here", shown), shown
    done = server.run(s=("PixelkilnRunStatus", {"run": "one"}))
    assert done["outputs"]["s"]["text"][0].startswith("one: done")


def test_preferences_train(server):
    done = server.run(t=_train(name="pairs", dataset_name="likes", steps=2, options='objective.kind = "dpo"'))
    assert done["error"] == ""


# ----------------------------------------------------------------------------------------------------------- workflows


def small(prompt: dict[str, Any], checkpoint: str, dataset: str, run: str, preset: str) -> dict[str, Any]:
    """A workflow at 64x64 pixels and two steps, with the files that the test has."""
    for node in prompt.values():
        inputs, kind = node["inputs"], node["class_type"]
        inputs |= {"ckpt_name": checkpoint} if kind == "CheckpointLoaderSimple" else {}
        inputs |= {"width": 64, "height": 64} if kind == "EmptyLatentImage" else {}
        inputs |= {"steps": 2, "cfg": 2.0} if kind == "KSampler" else {}
        inputs |= {"folder": dataset} if kind == "PixelkilnDatasetFolder" else {}
        inputs |= {"run": run} if "run" in inputs else {}
        inputs |= {"strengths": "0, 1", "prompts": "a cat", "seed_list": "1"} if kind == "PixelkilnGridPlan" else {}
        if kind in ("PixelkilnTrain", "PixelkilnFitCheck"):
            inputs |= {"checkpoint": checkpoint, "steps": 2, "rank": 4, "resolution": 64}
            if inputs["learn_from"] == "pairs":  # a preset for hundreds of pairs holds some out, here is one
                inputs |= {"dataset_name": "preferences", "preset": preset, "options": 'objective.kind = "dpo"'}
    return prompt


FLOWS = sorted((ROOT / "example_workflows").glob("*.json"))


@pytest.mark.parametrize("path", FLOWS, ids=lambda path: path.stem)
def test_workflows_fit_the_nodes(server, path):
    info = server.get("/object_info")
    prompt = to_prompt(json.loads(path.read_text(encoding="utf-8")), info)
    by_core = path.stem == "dense_core_nodes"
    assert any(re.match("Pixelkiln", node["class_type"]) for node in prompt.values()) != by_core
    for node in prompt.values():
        required = info[node["class_type"]]["input"].get("required", {})
        assert required.keys() <= node["inputs"].keys(), node["class_type"]


@pytest.mark.skipif(not os.environ.get("COMFYUI_CHECKPOINT"), reason="COMFYUI_CHECKPOINT names no SD1.5 file")
def test_workflows_run(server):
    """In the order in which a person would: train, load, prefer, train on that, compare."""
    preset = "config_version = 1\nrun = {device = 'cpu'}\nmodel = {path = 'x'}\nsave = {state_every = 1}\n"
    (server.data / "full.toml").write_text(f"# full size\n{preset}", encoding="utf-8")
    (server.data / "colours").mkdir(exist_ok=True)
    Image.new("RGB", (64, 64), "blue").save(server.data / "colours/blue.png")
    (server.data / "colours/blue.txt").write_text("a blue square", encoding="utf-8")
    info, checkpoint = server.get("/object_info"), Path(os.environ["COMFYUI_CHECKPOINT"]).name
    for name in ("train_and_use", "load_adapter", "preference", "train_on_preferences", "ab_grid"):
        prompt = to_prompt(json.loads((ROOT / f"example_workflows/{name}.json").read_text(encoding="utf-8")), info)
        done = server.ended(server.queue(small(prompt, checkpoint, "colours", "my_adapter", "full")))
        assert done["error"] == "", name
        if name == "train_and_use":
            assert list(done["outputs"]).index("2") < list(done["outputs"]).index("3"), "the check comes first"
            assert done["outputs"]["2"]["text"][0].startswith("preset    sd15-character-8gb")
            text_to_image = {**prompt, "5": {"class_type": "LoraLoader", "inputs": {
                "model": ["4", 0], "clip": ["4", 1], "lora_name": "pixelkiln/my_adapter.safetensors",
                "strength_model": 1.0, "strength_clip": 1.0}}}  # fmt: skip
            assert server.ended(server.queue(text_to_image))["error"] == "", "in core's own loader, at once"
        if name == "preference":
            (choice,) = (o["pixelkiln_choice"][0] for o in done["outputs"].values() if "pixelkiln_choice" in o)
            assert server.post("/pixelkiln/choose", {"token": choice["token"], "winner": 0})["said"].endswith(
                "1 pair added"
            )


@pytest.mark.skipif(not os.environ.get("COMFYUI_CHECKPOINT"), reason="COMFYUI_CHECKPOINT names no SD1.5 file")
def test_prompts_saved_before_still_run(server):
    """The templates as they were saved in the API format when the preset was the demo's and numbers were 0 and -1."""
    checkpoint = Path(os.environ["COMFYUI_CHECKPOINT"]).name
    (server.data / "demo-like.toml").write_text("config_version = 1\nrun = {device = 'cpu'}\n", encoding="utf-8")
    record = ROOT / "tests/golden/contract/api_train_and_use.saved.json"
    prompt = small(json.loads(record.read_text(encoding="utf-8")), checkpoint, "colours", "saved", "full")
    for node in prompt.values():
        node["inputs"] |= {"name": "saved", "preset": "demo-like"} if "preset" in node["inputs"] else {}
    done = server.ended(server.queue(prompt))
    assert done["error"] == ""
    assert "saved.safetensors" in done["outputs"]["3"]["text"][0]
    check = {**prompt["2"]["inputs"], "preset": "demo"}
    report = server.run(d=("PixelkilnDatasetFolder", {"folder": "colours", "resolution": 64}),
                        c=("PixelkilnFitCheck", {**check, "folder": ["d", 0]}))["outputs"]["c"]["text"][0]  # fmt: skip
    assert "warning: the resolution is 64, Stable Diffusion 1.x was trained at 512" in report


def test_adapters_are_resized_converted_and_merged(server):
    """By the trainer's own environment; the new files are in ComfyUI's lists, and a link takes them further."""
    site = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    for name in "ab":
        tensors = {"lora_down.weight": torch.randn(4, 768), "lora_up.weight": torch.randn(1280, 4)}
        save_file({f"{site}.{k}": v for k, v in tensors.items()}, server.base / f"models/loras/{name}.safetensors")
    plain = {"family": "from the file", "name": ""}
    done = server.run(
        m=("PixelkilnMergeAdapters", {"adapter_1": "a.safetensors", "weight_1": 0.5, "adapter_2": "b.safetensors",
                                      "weight_2": -1.0, "rank": 0, **plain}),
        c=("PixelkilnConvertAdapter", {"adapter": "none", "form": "diffusers", "rank": 2, **plain, "path": ["m", 0]}),
    )  # fmt: skip
    assert not done["error"], done["error"]
    listed = server.get("/object_info/PixelkilnLoadAdapter")["PixelkilnLoadAdapter"]["input"]["required"]["adapter"]
    files = [Path(name) for name in (listed[1]["options"] if listed[0] == "COMBO" else listed[0]) if "a+b-" in name]
    merged, small = sorted(files, key=lambda name: len(name.stem))
    assert merged.parent.name == "pixelkiln" and "-diffusers-rank2-" in small.name
    of = server.base / "output/loras"
    assert {v.shape for v in load_file(of / merged).values()} == {(8, 768), (1280, 8), ()}
    assert {v.shape for v in load_file(of / small).values()} == {(2, 768), (1280, 2)}
    assert "of the effect is lost" in str(done["outputs"]["c"])
    again = server.run(c=("PixelkilnConvertAdapter", {"adapter": str(merged), "form": "kohya", "rank": 0, **plain}))
    assert not again["error"]
    wrong = server.run(c=("PixelkilnConvertAdapter", {"adapter": "a.safetensors", "form": "kohya", "rank": 0,
                                                      "family": "sdxl", "name": "x"}))  # fmt: skip
    assert "it is an adapter for sd15, not for sdxl" in wrong["error"]
