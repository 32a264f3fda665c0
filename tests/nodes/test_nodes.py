"""The nodes' logic, without ComfyUI: adapter files, blocks, graphs, preferences, datasets, grids, requests."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pixelkiln.nodes import (
    adapter,
    blocks,
    dataset,
    graph,
    grid,
    host,
    load,
    plan,
    preference,
    rewrite,
    routes,
    runs,
    schedule,
    train,
    triggers,
)
from pixelkiln.nodes.all import NODES
from pixelkiln.trainer.adapters.loading import for_host
from pixelkiln.trainer.data import pairs_file
from pixelkiln.trainer.errors import UserError
from pixelkiln.trainer.runs import control
from pixelkiln.trainer.runs.folder import safe_name

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def comfyui(tmp_path, monkeypatch) -> Path:
    """ComfyUI's list of folders, where extra_model_paths.yaml lists more for runs and data; the base of them all."""
    listed = {kind: [str(tmp_path / kind)] for kind in ("loras", "checkpoints")}
    listed |= {host.RUNS: [str(tmp_path / "more/runs")], host.DATA: [str(tmp_path / "more/data")]}
    paths = types.ModuleType("folder_paths")
    for name in ("output", "input", "temp"):
        setattr(paths, f"get_{name}_directory", lambda name=name: str(tmp_path / name))
    found: dict[str, Any] = {
        "add_model_folder_path": lambda kind, folder: listed.setdefault(kind, []).append(folder),
        "get_folder_paths": lambda kind: listed[kind],
        "get_full_path": lambda kind, name: next(
            (f"{f}/{name}" for f in listed[kind] if Path(f, name).is_file()), None
        ),
        "get_full_path_or_raise": lambda kind, name: f"{listed[kind][0]}/{name}",
    }
    vars(paths).update(found)
    monkeypatch.setitem(sys.modules, "folder_paths", paths)
    host.register.__wrapped__()
    listed[host.RUNS].remove(str(host.control.ROOT / "runs"))  # whatever was trained in this checkout
    for folder in ("loras/a", "loras/b", "checkpoints", "more/runs", "more/data", "output/pixelkiln/data/cats"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "output/pixelkiln/data/mine.toml").write_text("config_version = 1\n", encoding="utf-8")
    (tmp_path / "checkpoints/base.safetensors").touch()
    return tmp_path


def has_run(folder: Path, state: str = "done", step: int = 5) -> Path:
    """A run's folder, with a state to go on from."""
    (folder / "state").mkdir(parents=True, exist_ok=True)
    (folder / f"state/step{step:08d}.safetensors").touch()
    found = {"v": 1, "state": state, "step": step, "total": 5}
    (folder / "status.json").write_text(json.dumps(found), encoding="utf-8")
    return folder


TRAIN = {
    "preset": "mine", "name": "one", "checkpoint": "base.safetensors", "dataset_name": "cats", "learn_from": "auto",
    "steps": 5, "rank": 0, "learning_rate": 0.0, "resolution": 0, "batch": 0, "run_seed": -1, "trigger": "",
    "prompts": "", "options": "",
}  # fmt: skip


def fingerprint(of: str, **inputs: Any) -> Any:
    (node,) = (node for node in NODES if node.id == f"Pixelkiln{of}")
    assert node.fingerprint
    return node.fingerprint(**inputs)


# ------------------------------------------------------------------------------------------------------------ adapters


def lora(names: dict[str, tuple[int, int]], rank: int = 4, peft: bool = False) -> dict[str, torch.Tensor]:
    """Name -> (out, in) as a file's tensors."""
    down, up = ("lora_A", "lora_B") if peft else ("lora_down", "lora_up")
    found = {}
    for name, (out, into) in names.items():
        found[f"{name}.{down}.weight"] = torch.randn(rank, into)
        found[f"{name}.{up}.weight"] = torch.randn(out, rank)
        if not peft:
            found[f"{name}.alpha"] = torch.tensor(2.0)
    return found


BLOCK = "down_blocks_0_attentions_0_transformer_blocks_0"
SD15 = {f"lora_unet_{BLOCK}_attn2_to_k": (320, 768), f"lora_unet_{BLOCK}_attn1_to_q": (320, 320)}
XL = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
TEXT = {"lora_te_text_model_encoder_layers_0_mlp_fc1": (3072, 768)}


def written(
    folder: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None
) -> adapter.AdapterFile:
    save_file(tensors, str(folder / "a.safetensors"), metadata)
    return adapter.read(folder / "a.safetensors")


def test_modules_and_shapes_of_every_kind():
    r = torch.randn
    cases = {
        "lora": ({"lora_down.weight": r(4, 320), "lora_up.weight": r(640, 4), "alpha": r(())}, (640, 320)),
        "conv": ({"lora_down.weight": r(4, 32, 3, 3), "lora_up.weight": r(64, 4, 1, 1)}, (64, 288)),
        "tucker": ({"lora_down.weight": r(4, 32, 1, 1), "lora_mid.weight": r(4, 4, 3, 3),
                    "lora_up.weight": r(64, 4, 1, 1)}, (64, 288)),
        "loha": ({"hada_w1_a": r(64, 4), "hada_w1_b": r(4, 96), "hada_w2_a": r(64, 4),
                  "hada_w2_b": r(4, 96)}, (64, 96)),
        "lokr": ({"lokr_w1": r(4, 8), "lokr_w2_a": r(16, 4), "lokr_w2_b": r(4, 12)}, (64, 96)),
        "lokr conv": ({"lokr_w1": r(4, 8), "lokr_w2": r(16, 4, 3, 3)}, (64, 288)),
        "full": ({"diff": r(64, 32, 3, 3)}, (64, 288)),
        "oft": ({"oft_blocks": r(4, 8, 8)}, None),
    }  # fmt: skip
    modules = adapter.by_module(
        {f"{name}.{part}": t for name, (parts, _) in cases.items() for part, t in parts.items()}
    )
    assert {name: adapter.weight_shape(parts) for name, parts in modules.items()} == {
        n: s for n, (_, s) in cases.items()
    }
    old = adapter.by_module(
        {"unet.x.processor.to_q_lora.down.weight": r(4, 8), "unet.x.processor.to_q_lora.up.weight": r(8, 4)}
    )
    assert adapter.weight_shape(old["unet.x.processor.to_q"]) == (8, 8)


def test_a_file_of_another_family_is_told_before_patching(tmp_path):
    file = written(tmp_path, lora({XL: (640, 2048)}))
    match = load.compare(file.tensors, dict(SD15), True, True)
    assert load._problem(file, match, dict(SD15)) == (
        "this adapter is for SDXL (cross-attention 2048), the model is SD1.5 (cross-attention 768)"
    )


def test_counts_matched_unknown_misshaped_and_unconnected(tmp_path):
    file = written(tmp_path, lora({**SD15, **TEXT, "lora_unet_foo": (4, 4)}))
    shapes: dict[str, tuple[int, ...] | None] = {**SD15, f"lora_unet_{BLOCK}_attn1_to_q": (320, 640)}
    match = load.compare(file.tensors, shapes, True, False)
    assert (len(match.fits), len(match.unknown), len(match.shaped), len(match.asleep)) == (1, 1, 1, 1)
    assert match.total == 3
    assert "320x320, the weight is 320x640" in load._problem(file, match, shapes)


def test_a_file_that_fits_whole_is_no_problem(tmp_path):
    file = written(tmp_path, lora({**SD15, **TEXT}))
    match = load.compare(file.tensors, {**SD15, **TEXT}, True, True)
    assert (load._problem(file, match, dict(SD15)), len(match.fits), match.total) == ("", 3, 3)


def test_diffusers_names_of_today_become_names_that_comfyui_reads(tmp_path):
    dotted = "down_blocks.0.attentions.0.transformer_blocks.0"
    file = written(
        tmp_path, lora({f"unet.{dotted}.attn2.to_k": (320, 768), f"unet.{dotted}.attn1.to_q": (320, 320)}, peft=True)
    )
    found = for_host(file.tensors, file.metadata, set(SD15))
    tensors = found.tensors
    assert set(adapter.by_module(tensors)) == set(SD15)
    assert torch.equal(
        tensors[f"lora_unet_{BLOCK}_attn2_to_k.lora_down.weight"],
        file.tensors[f"unet.{dotted}.attn2.to_k.lora_A.weight"],
    )
    assert found.notes[0] == "read diffusers names"


def test_kohya_files_pass_unchanged(tmp_path):
    file = written(tmp_path, lora(SD15))
    found = for_host(file.tensors, file.metadata, set(SD15)).tensors
    assert found.keys() == file.tensors.keys() and all(found[key] is value for key, value in file.tensors.items())


@pytest.mark.parametrize("shape, wanted", [((6,), (6, 1)), ((1, 6, 1, 1), (6, 1, 1, 1))])
def test_magnitudes_of_an_unknown_network_keep_their_effect(tmp_path, shape, wanted):
    module = "transformer.other_blocks.0.attn.to_q"
    tensors = {f"{module}.lora_A.weight": torch.ones(2, 4), f"{module}.lora_B.weight": torch.ones(6, 2)}
    file = written(tmp_path, {**tensors, f"{module}.lora_magnitude_vector": torch.arange(6.0).reshape(shape)})
    found = for_host(file.tensors, file.metadata, {module}).tensors
    assert found.keys() == {*tensors, f"{module}.dora_scale"}
    assert torch.equal(found[f"{module}.dora_scale"], torch.arange(6.0).reshape(wanted))


def test_metadata_above_a_mebibyte_and_trigger_words(tmp_path):
    tags = {"10_cat": {"tom cat": 9, "sitting": 3}, "5_dog": {"sitting": 4}}
    big = {"ss_tag_frequency": json.dumps(tags), "padding": "x" * (2 << 20), "ss_base_model_version": "sd_v1"}
    file = written(tmp_path, lora(SD15), big)
    assert adapter.triggers(file.metadata) == "tom cat, sitting"
    assert adapter.triggers({**file.metadata, "modelspec.trigger_phrase": "a tom cat"}) == "a tom cat"
    assert adapter.triggers({"ss_tag_frequency": "no JSON"}) == ""
    assert {"for: sd15", "kind: lora", "rank: 4 (2 modules)", "base version: sd_v1"} <= set(adapter.about(file))


@pytest.mark.parametrize("name, content, reported", [
    ("a.pt", b"x", "a.pt: it holds code beside tensors, or is damaged"),
    ("a.safetensors", b"\x10\0\0\0\0\0\0\0{}", "a.safetensors: it is cut short"),
    ("gone.safetensors", None, "no such file"),
])  # fmt: skip
def test_files_that_cannot_be_read(tmp_path, name, content, reported):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=reported):
        adapter.read(tmp_path / name)


# -------------------------------------------------------------------------------------------------------------- blocks


def test_block_of_comfyui_names():
    named = {
        "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight": "in.4",
        "diffusion_model.middle_block.1.proj_in.weight": "mid",
        "diffusion_model.output_blocks.11.0.in_layers.2.weight": "out.11",
        "diffusion_model.time_embed.0.weight": "base",
        "diffusion_model.joint_blocks.23.x_block.attn.qkv.weight": "joint.23",
        "diffusion_model.double_blocks.3.img_attn.qkv.weight": "double.3",
        "diffusion_model.single_blocks.30.linear1.weight": "single.30",
        "diffusion_model.blocks.7.cross_attn.k.weight": "block.7",
        "clip_l.transformer.text_model.encoder.layers.5.mlp.fc1.weight": "clip_l.5",
        "t5xxl.transformer.encoder.block.2.layer.0.SelfAttention.q.weight": "t5xxl.2",
        "clip_g.transformer.text_projection.weight": "clip_g",
    }
    assert {key: blocks.block_of(key) for key in named} == named


NETWORK = [*(f"in.{i}" for i in range(12)), "mid", *(f"out.{i}" for i in range(12)), "clip_l.0", "base"]


def test_block_strengths_later_words_win():
    found = blocks.strengths("all=0.5, in=1; out.3-5=0 te = -1 out.4=2", NETWORK, NETWORK)
    assert (found["in.11"], found["mid"], found["out.3"], found["out.4"], found["clip_l.0"]) == (1, 0.5, 0, 2, -1)
    assert set(blocks.strengths("", NETWORK, NETWORK).values()) == {1.0}


def test_a_block_that_the_network_lacks_lists_those_it_has():
    with pytest.raises(ValueError, match=re.escape("no 'joint.3'; it has: all te in.0-11 mid out.0-11 clip_l.0 base")):
        blocks.strengths("joint.3=0", ["in.1"], NETWORK)
    assert blocks.strengths("in.2=0", ["in.1"], NETWORK) == {"in.1": 1.0}, "a block that only the adapter lacks is fine"


@pytest.mark.parametrize(
    "words", ["in", "in=", "in=x", "in.5-3=1", "in=nan", "in=1e999", "0=1", "in.=1", "__import__('os')=1"]
)
def test_words_that_are_no_rule(words):
    with pytest.raises(ValueError, match=r"^blocks: "):
        blocks.parse(words)


def test_a_vector_of_numbers_is_a_rule_for_each_block():
    """LoRA Block Weight's layouts, with a preset's name before it and words after it."""
    vector = "NAME:0.5,1,0,.25" + ",0" * 13
    found = blocks.strengths(f"{vector} out.11=2", NETWORK, NETWORK)
    named = {"clip_l.0": 0.5, "base": 0.5, "in.1": 1, "in.2": 0, "in.4": 0.25, "in.0": 0, "out.11": 2}
    assert {block: found[block] for block in named} == named
    whole = blocks.strengths(",".join(map(str, range(26))), NETWORK, NETWORK)
    assert (whole["clip_l.0"], whole["in.0"], whole["in.11"], whole["mid"], whole["out.11"]) == (0, 1, 12, 13, 25)
    xl = [*(f"in.{i}" for i in range(9)), "mid", *(f"out.{i}" for i in range(9)), "clip_l.0"]
    assert blocks.strengths("1" + ", 0.5" * 11, xl, xl)["out.5"] == 0.5
    assert blocks.strengths("1" + ",2" * 19, xl, xl)["out.8"] == 2
    with pytest.raises(UserError, match="5 numbers are no block vector; there are vectors of 12"):
        blocks.parse("1,0,0,1,1")
    with pytest.raises(UserError, match=r"no 'in.9'"):
        blocks.strengths(",".join(["1"] * 26), xl, xl)


def test_presets_are_rules():
    for words in blocks.PRESETS.values():
        blocks.parse(words)


# ----------------------------------------------------------------------------------------------------- prompt and seed

GRAPH = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "a"}},
    "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a red cat"}},
    "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "blurry"}},
    "4": {"class_type": "KSampler", "inputs": {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "seed": 7,
                                               "latent_image": ["9", 0]}},
    "5": {"class_type": "VAEDecode", "inputs": {"samples": ["4", 0], "vae": ["1", 2]}},
    "6": {"class_type": "PixelkilnPreference", "inputs": {"images": ["5", 0], "images_b": ["15", 0]}},
    "12": {"class_type": "Primitive", "inputs": {"value": "a blue dog"}},
    "13": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": ["12", 0]}},
    "16": {"class_type": "RandomNoise", "inputs": {"noise_seed": 11}},
    "17": {"class_type": "BasicGuider", "inputs": {"model": ["1", 0], "conditioning": ["13", 0]}},
    "14": {"class_type": "SamplerCustomAdvanced", "inputs": {"noise": ["16", 0], "guider": ["17", 0]}},
    "15": {"class_type": "VAEDecode", "inputs": {"samples": ["14", 0], "vae": ["1", 2]}},
    "20": {"class_type": "Loop", "inputs": {"images": ["20", 0]}},
}  # fmt: skip


def test_prompt_and_seed_from_the_graph():
    assert graph.origin(GRAPH, "6", "images") == ("a red cat", 7)
    assert graph.origin(GRAPH, "6", "images_b") == ("a blue dog", 11)
    assert graph.origin(GRAPH, "20", "images") == (None, None), "a circle ends"
    assert graph.origin({}, "6", "images") == (None, None)


# ---------------------------------------------------------------------------------------------------------- preference


def pngs(count: int) -> list[bytes]:
    return [host.png(Image.new("RGB", (8, 8), (40 * i, 0, 0))) for i in range(count)]


def question(folder: Path, count: int = 2, rate: bool = False) -> preference.Question:
    return preference.Question(folder, "a cat", pngs(count), list(range(7, 7 + count)), rate)


def test_the_best_of_three_makes_two_pairs_that_the_trainer_reads(tmp_path):
    token = preference.ask(question(tmp_path, 3))
    assert preference.answer(token, winner=1) == f"{tmp_path.name}: 2 pairs added"
    rows = pairs_file.read_pairs(tmp_path)
    assert [(row.prompt, row.seed, row.source) for row in rows] == [("a cat", 8, "comfyui")] * 2
    assert rows[0].group == rows[1].group is not None
    assert (tmp_path / rows[0].chosen).read_bytes() == pngs(3)[1]
    with pytest.raises(ValueError, match="made already"):
        preference.answer(token, winner=1)


def test_a_wrong_answer_leaves_the_question_open(tmp_path):
    token = preference.ask(question(tmp_path))
    for winner in (5, -3, preference.ASK):
        with pytest.raises(ValueError, match="winner"):
            preference.answer(token, winner=winner)
    assert preference.answer(token, winner=preference.TIE).endswith("a tie added")
    assert pairs_file.read_pairs(tmp_path)[0].tie


def test_of_two_answers_at_once_one_is_written(tmp_path, monkeypatch):
    token, choose = preference.ask(question(tmp_path)), preference.choose

    def meanwhile(asked: preference.Question, winner: int) -> str:
        monkeypatch.setattr(preference, "choose", choose)
        with pytest.raises(ValueError, match="made already"):
            preference.answer(token, winner=1 - winner)
        return choose(asked, winner)

    monkeypatch.setattr(preference, "choose", meanwhile)
    assert preference.answer(token, winner=1).endswith("1 pair added")
    assert len(pairs_file.read_pairs(tmp_path)) == 1


def test_an_answer_that_the_disk_refuses_leaves_the_question_open(tmp_path, monkeypatch):
    def full(*given: Any, **more: Any) -> None:
        raise OSError(28, "No space left on device")

    token = preference.ask(question(tmp_path))
    with monkeypatch.context() as disk, pytest.raises(OSError, match="No space"):
        disk.setattr(pairs_file, "add_best", full)
        preference.answer(token, winner=1)
    assert preference.answer(token, winner=1).endswith("1 pair added")


def test_thumbs_are_ratings(tmp_path):
    token = preference.ask(question(tmp_path, 3, rate=True))
    assert preference.answer(token, liked=[True, None, False]).endswith("2 ratings added")
    assert [(row.liked, row.seed) for row in pairs_file.read_ratings(tmp_path)] == [(True, 7), (False, 9)]


@pytest.mark.parametrize("given", [
    None, [], {}, {"token": 3}, {"token": "x", "winner": "0"}, {"token": "x", "winner": True},
    {"token": "x", "liked": "yes"}, {"token": "x", "liked": ["yes"]},
])  # fmt: skip
def test_answers_that_are_none(given):
    with pytest.raises(ValueError):
        routes.checked(given)


# ------------------------------------------------------------------------------------------------------------ datasets


def test_report_of_a_folder(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a", encoding="utf-8")
    Image.new("RGB", (64, 64)).save(tmp_path / "b.png")
    Image.new("RGB", (96, 64), "red").save(tmp_path / "c.jpg")
    (tmp_path / "d.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    lines = "\n".join(dataset.report(tmp_path).lines(80))
    assert "3 pictures, 2 square, 1 wide" in lines
    assert "3 smaller than 80x80" in lines
    assert "without caption: 2 (b.png, c.jpg)" in lines
    assert "unreadable: 1 (d.png)" in lines
    assert "duplicates: 1 (a.png = b.png)" in lines
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no picture"):
        dataset.report(tmp_path / "empty")


def test_pictures_are_written_once(tmp_path):
    pictures = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    assert dataset.write(tmp_path / "d", pictures, ["one", "two"]) == (2, 0)
    assert dataset.write(tmp_path / "d", pictures, ["one", "two"]) == (0, 0)
    assert sorted(p.read_text(encoding="utf-8").strip() for p in (tmp_path / "d").glob("*.txt")) == ["one", "two"]


def test_what_lies_in_a_dataset_is_not_written_again(comfyui):
    """Also not with the same content: Train knows a dataset by its files' times."""
    images = [torch.zeros(3, 8, 8, 3) + torch.tensor([0.0, 0.5, 1.0])[:, None, None, None]]
    written = dataset._from_images(images, ["dogs"], ["a dog"], [64])
    folder = Path(written.values[0])
    by_hand, emptied, gone = sorted(folder.glob("*.txt"))
    by_hand.write_text("a tabby cat asleep\n", encoding="utf-8")
    emptied.write_text("\n", encoding="utf-8")
    gone.unlink()
    line = dataset._from_images(images, ["dogs"], ["a dog"], [64]).values[1]
    assert line.startswith("dogs: 0 new pictures, 3 were there\n1 kept another caption;")
    assert [path.read_text(encoding="utf-8").strip() for path in (by_hand, emptied, gone)] == [
        "a tabby cat asleep", "a dog", "a dog",
    ]  # fmt: skip
    before = fingerprint("DatasetFolder", folder="dogs")
    dataset._from_images(images, ["dogs"], ["a dog"], [64])
    assert fingerprint("DatasetFolder", folder="dogs") == before


@pytest.mark.parametrize("captions, count, wanted", [
    ([""], 3, ["", "", ""]), (["a"], 2, ["a", "a"]), (["a\n\n b \n"], 2, ["a", "b"]), (["a\n\nb"], 3, ["a", "", "b"]),
    (["a", ""], 2, ["a", ""]), ([], 2, ["", ""]), (["\n \n"], 2, ["", ""]),
])  # fmt: skip
def test_captions_for_each_for_all_or_none(captions, count, wanted):
    assert dataset._captions(captions, count) == wanted


def test_captions_that_do_not_fit_the_pictures():
    with pytest.raises(UserError, match="captions: 2 for 3 pictures"):
        dataset._captions(["a\nb"], 3)


def test_pictures_without_captions_are_written_for_a_trigger_word(comfyui):
    images = [torch.zeros(2, 8, 8, 3) + torch.tensor([0.0, 1.0])[:, None, None, None]]
    line = dataset._from_images(images, ["dogs"], [""], [64]).values[1]
    assert line.startswith("dogs: 2 new pictures")
    assert "without caption: 2" in line


def test_a_list_offers_folders_with_something_to_learn_from_and_none(comfyui):
    """A fresh ComfyUI has only its own folder for 3D files, which is no dataset; the demo's are offered."""
    (comfyui / "input/3d").mkdir(parents=True)
    assert dataset.names() == ["pairs", "style", host.NONE]
    (comfyui / "input/mine/deep").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(comfyui / "input/mine/deep/a.PNG")
    (comfyui / "output/pixelkiln/data/cats/pairs.jsonl").touch()
    assert dataset.names() == ["cats", "mine", "pairs", "style", host.NONE]
    assert train.datasets() == [train.PRESET, "cats", "mine", "pairs", "style"]
    with pytest.raises(UserError, match="folder: none is chosen"):
        dataset.find(host.NONE)
    assert host.run_names() == [host.NONE]
    with pytest.raises(UserError, match="run: none is chosen"):
        host.run_path(host.NONE)


def test_nodes_that_receive_nothing_say_so():
    for run in (lambda: grid._grid([], []), lambda: grid._grid([torch.zeros(0, 8, 8, 3)], [0]),
                lambda: dataset._from_images([], ["x"], [""], [64])):  # fmt: skip
        with pytest.raises(UserError, match=r"^images: no picture came in"):
            run()


def test_new_things_go_into_comfyuis_output_and_known_ones_are_found(comfyui):
    own = comfyui / "output/pixelkiln"
    assert (host.folders(host.RUNS)[:2], host.folders(host.DATA)[0]) == (
        [own / "runs", comfyui / "more/runs"], own / "data",
    )  # fmt: skip
    assert host.place(host.DATA, "new") == own / "data/new"
    (comfyui / "more/data/likes").mkdir()
    assert host.place(host.DATA, "likes") == comfyui / "more/data/likes"
    for folder in (comfyui / "more/runs/one", own / "runs/one"):
        has_run(folder, "stopped")
        request = train.wanted(**TRAIN)
        assert request.run_dir == folder
        assert plan.flag("run.out", folder.parent) in request.flags


# ---------------------------------------------------------------------------------------------------------------- grid


def test_grid_is_a_table_of_the_labels():
    colours = ["red", "blue", "green", "white"]
    labels = [f"{column}\n{row}" for column in ("no adapter", "mine 1") for row in ("a cat, seed 1", "a dog, seed 1")]
    whole = grid.assemble([Image.new("RGB", (64, 64), c) for c in colours], labels)
    right, bottom = whole.width - 10, whole.height - 10
    assert whole.getpixel((right - 68, bottom - 68)) == (255, 0, 0)
    assert whole.getpixel((right - 68, bottom)) == (0, 0, 255), "the first column's second row"
    assert whole.getpixel((right, bottom - 68)) == (0, 128, 0)
    with pytest.raises(ValueError, match="same label"):
        grid.assemble([Image.new("RGB", (8, 8))] * 2, ["a\nb", "a\nb"])


def test_grid_without_a_table():
    whole = grid.assemble([Image.new("RGB", (64, 64))] * 5, [])
    assert whole.size == (3 * 68, 2 * 68)
    labelled = grid.assemble([Image.new("RGB", (64, 64))] * 5, [str(i) for i in range(5)], columns=5)
    assert labelled.width == 5 * 68
    assert labelled.height > 68


@pytest.mark.parametrize("text", ["", "a", "1,,b", "nan", "1 inf"])
def test_lists_of_numbers(text):
    assert grid.strengths_of("0, 0.5;1 -2") == [0, 0.5, 1, -2]
    with pytest.raises(ValueError, match="write for example"):
        grid.strengths_of(text)


@pytest.mark.parametrize("text", ["", "1.5", "1.0", "1e3", "inf", "nan", "-1", str(2**64), "9" * 5000])
def test_seeds_are_whole_numbers(text):
    assert grid.seeds(f"1, 2;{2**64 - 1}") == [1, 2, 2**64 - 1]
    with pytest.raises(ValueError, match=r"^seeds: .*whole numbers from 0 on"):
        grid.seeds(text)


@pytest.mark.parametrize("inputs, reported", [
    ({"strengths": "1, 0.5, 1.0"}, "strengths: '1' is there 2 times"),
    ({"seed_list": "1 2 01"}, "seeds: '1' is there 2 times"),
    ({"prompts": "a cat\na dog\n a cat"}, "prompts: 'a cat' is there 2 times"),
])  # fmt: skip
def test_a_plan_in_which_two_pictures_would_be_called_the_same(inputs, reported):
    with pytest.raises(ValueError, match=reported):
        grid._check_plan(**inputs)


def test_files_of_one_name_are_told_apart_by_their_folders(comfyui, monkeypatch):
    for folder in "ab":
        (comfyui / "loras" / folder / "style.safetensors").touch()
    (comfyui / "loras/other.safetensors").touch()
    monkeypatch.setattr(load, "apply", lambda model, clip, *more: load.Loaded(model, clip, "", ""))
    files = "a/style.safetensors\nb/style.safetensors\nother.safetensors\nb/style.safetensors"
    labels = grid._plan("model", files, "1", "a cat", "1", "error").values[4]
    assert [label.split("\n")[0] for label in labels] == ["a/style 1", "b/style 1", "other 1"]
    grid.assemble([Image.new("RGB", (8, 8))] * 3, labels)


def test_a_plan_follows_the_files_that_it_names(comfyui):
    run = has_run(comfyui / "output/pixelkiln/runs/mine")
    (run / "checkpoints").mkdir()
    (comfyui / "loras/other.safetensors").touch()
    seen = []
    for path in ("runs/mine/checkpoints/mine-step00000100", "runs/mine/mine", "../../loras/other"):
        (comfyui / "output/pixelkiln" / f"{path}.safetensors").write_text(path)
        seen.append(fingerprint("GridPlan", adapters="run mine: newest\nother.safetensors"))
    assert len({*seen, fingerprint("GridPlan", adapters="run mine: newest\nother.safetensors")}) == 3
    assert list(grid.adapters_of("run mine: newest, step 100, final").values()) == ["mine final", "mine step 100"]


# ------------------------------------------------------------------------------------------------------------ training


def test_newest_final_step_and_epoch_of_a_run(tmp_path):
    run = tmp_path / "mine"
    (run / "checkpoints").mkdir(parents=True)
    for step in (10, 200):
        (run / "checkpoints" / f"mine-step{step:08d}.safetensors").touch()
    assert runs.choose(run, "newest").step == 200
    assert runs.choose(run, " Step 10 ").step == 10
    with pytest.raises(ValueError, match="it has no final; it has: step 10, step 200"):
        runs.choose(run, "final")
    with pytest.raises(ValueError, match="write newest, final, step 500 or epoch 3"):
        runs.choose(run, "latest")
    (run / "mine.safetensors").touch()
    assert runs.label(runs.choose(run, "newest")) == "final"


def test_flags_read_as_the_trainer_reads_them(tmp_path):
    from pixelkiln.trainer.cli import dotted

    values = {"a.text": 'C:\\x "y" é', "a.list": ["a", "b, c"], "a.number": 1e-4, "a.switch": True, "a.empty": ""}
    assert dotted([plan.flag(name, value) for name, value in values.items()], allowed=True) == values


def test_a_dataset_tells_what_it_is(tmp_path):
    assert plan.dataset_flags(tmp_path, "auto") == [
        plan.flag("data.path", tmp_path),
        '--data.pairs=""',
        '--data.ratings=""',
    ]
    (tmp_path / "pairs.jsonl").touch()
    assert plan.flag("data.pairs", tmp_path) in plan.dataset_flags(tmp_path, "auto")
    assert plan.flag("data.path", tmp_path) in plan.dataset_flags(tmp_path, "pictures")
    with pytest.raises(ValueError, match=r"no ratings\.jsonl"):
        plan.dataset_flags(tmp_path, "ratings")


def test_a_run_is_started_over_once_for_a_request(comfyui, monkeypatch):
    resumed: list[bool] = []
    monkeypatch.setattr(host, "free_memory", lambda: None)
    monkeypatch.setattr(control, "start", lambda *given, resume, **more: resumed.append(resume))
    run = has_run(comfyui / "output/pixelkiln/runs/one")
    assert train.begin(train.wanted(**TRAIN), train.START_OVER) == "started"
    assert train.begin(train.wanted(**TRAIN), train.START_OVER) == "finished"
    has_run(run, "stopped", 3)
    assert train.begin(train.wanted(**TRAIN), train.START_OVER) == "started"
    has_run(run)
    changed = train.wanted(**{**TRAIN, "rank": 8})
    assert [train.begin(changed, train.START_OVER) for _ in range(2)] == ["started", "finished"]
    assert train.begin(train.wanted(**TRAIN), train.START_OVER) == "started"
    has_run(run, "failed", 0)
    assert train.begin(train.wanted(**TRAIN), train.START_OVER) == "started"
    assert resumed == [False, True, False, False, False], "on from a stop, but not from what an earlier life left"


@pytest.mark.parametrize("file", [
    "output/pixelkiln/data/cats/a.txt", "output/pixelkiln/data/mine.toml", "checkpoints/base.safetensors",
    "output/pixelkiln/runs/one/one.safetensors",
])  # fmt: skip
def test_train_looks_again_when_a_file_changes(comfyui, file):
    has_run(comfyui / "output/pixelkiln/runs/one")
    before = fingerprint("Train", mode="wait", again=train.UNCHANGED, **TRAIN)
    assert fingerprint("Train", mode="wait", again=train.UNCHANGED, **TRAIN) == before
    (comfyui / file).write_text("another", encoding="utf-8")
    assert fingerprint("Train", mode="wait", again=train.UNCHANGED, **TRAIN) != before


@pytest.mark.parametrize("node, inputs", [
    ("Train", {**TRAIN, "name": None}), ("Train", {**TRAIN, "folder": None}), ("DatasetFolder", {"folder": None}),
    ("RunAdapter", {"run": None, "which": "newest"}), ("LoadAdapter", {"adapter": None, "model": None}),
    ("AdapterStack", {"adapter_1": None}), ("GridPlan", {"adapters": None}),
])  # fmt: skip
def test_what_a_link_brings_is_looked_at_each_time(comfyui, node, inputs):
    assert fingerprint(node, **inputs) != fingerprint(node, **inputs)


def test_a_link_without_an_adapter_is_told(comfyui):
    """The list beside it is not taken for it."""
    (comfyui / "loras/other.safetensors").touch()
    with pytest.raises(ValueError, match=r"^path: the linked node has no adapter yet; [^\n]*$"):
        load._load("model", "other.safetensors", 1.0, path="")
    with pytest.raises(ValueError, match="no adapter yet"):
        train.wanted(**TRAIN, start_from="")
    with pytest.raises(ValueError, match="no adapter yet"):
        runs._stack("model", "error", path_1="")
    assert runs._stack("model", "error", path_1="", strength_1=0).values[0] == "model"
    assert host.adapter_path("other.safetensors") == comfyui / "loras/other.safetensors"


def test_free_options():
    assert plan.free_options("sample.negative = 'a ~ b: c'") == ["--sample.negative='a ~ b: c'"]
    text = 'adapter.kind = "dora"\n\n# a comment\n--loss.pixel.weight=0.5\nobjective.kind = "dpo"'
    assert plan.free_options(text) == ['--adapter.kind="dora"', "--loss.pixel.weight=0.5", '--objective.kind="dpo"']


def test_a_number_is_typed_or_left_to_the_preset(comfyui):
    """As a text or a number; 0 and -1 are what workflows were saved with before the widget was a text."""
    for value, flag in (("0.000004", "4e-06"), ("5e-6", "5e-06"), (4e-6, "4e-06"), (" 1e-4 ", "0.0001")):
        flags = train.wanted(**{**TRAIN, "learning_rate": value}).flags
        assert f"--optimizer.learning_rate={flag}" in flags
    for value in ("as in the preset", "", 0, 0.0, "0", None):
        request = train.wanted(**{**TRAIN, "learning_rate": value, "rank": value, "batch": value})
        assert not [one for one in request.flags if "learning_rate" in one or "rank" in one or "batch" in one]
    seeds = [train.wanted(**{**TRAIN, "run_seed": value}).flags for value in (0, "0", -1, "-1", "as in the preset")]
    assert ["--run.seed=0" in flags for flags in seeds] == [True, True, False, False, False]


@pytest.mark.parametrize("name, value, reported", [
    ("learning_rate", "x", "'x' is no number; write for example 0.0001 or 1e-4, or 'as in the preset'"),
    ("learning_rate", "nan", "is no number"), ("learning_rate", "-1", "out of range; write a number from 0 to 10"),
    ("learning_rate", 11, "out of range"), ("steps", "1.5", "is no whole number"), ("rank", "2048", "out of range"),
    ("steps", "1,000", "is no whole number"), ("run_seed", -2, "out of range"),
])  # fmt: skip
def test_what_is_no_number_is_told_before_anything_runs(comfyui, name, value, reported):
    with pytest.raises(UserError, match=f"^{name}: .*{re.escape(reported)}"):
        train._check_inputs(**{name: value})
    with pytest.raises(UserError, match=f"^{name}: "):
        train.wanted(**{**TRAIN, name: value})


def test_no_numeric_widget_changes_a_number_that_people_type():
    """The page rounds to a widget's step: strengths have ComfyUI's own, numbers left to a preset are texts there."""
    for node in NODES:
        for one in node.inputs:
            if one.kind == "INT":
                assert one.step is None, (node.id, one.name)
            if one.kind == "FLOAT" and one.unset is None:
                assert one.step == 0.01, (node.id, one.name)


def test_a_preset_is_chosen_by_the_checkpoint_and_the_gpus_memory(comfyui, monkeypatch):
    key = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
    sd3 = {f"model.diffusion_model.joint_blocks.{i}.x_block.attn.qkv.weight": torch.zeros(12, 4) for i in (0, 23)}
    files = {
        "sd15": {key: torch.zeros(320, 768)},
        "sdxl": {key: torch.zeros(640, 2048)},
        "sd3": sd3,
        "refiner": {key: torch.zeros(640, 1280)},
        "flux": {"double_blocks.0.img_attn.qkv.weight": torch.zeros(3, 3)},
    }
    for name, tensors in files.items():
        save_file(tensors, str(comfyui / f"checkpoints/{name}.safetensors"))

    def chosen(purpose: str, name: str, gb: float) -> str:
        monkeypatch.setattr(host, "gpu_gb", lambda: gb)
        values = {**TRAIN, "preset": f"{purpose} (by checkpoint)", "checkpoint": f"{name}.safetensors"}
        return train.wanted(**values).preset.stem

    assert chosen("character", "sd15", 24) == "sd15-character-8gb"
    assert [chosen("style", "sdxl", gb) for gb in (0, 8, 11.7, 24)] == ["sdxl-style-12gb"] * 3 + ["sdxl-style-24gb"]
    assert [chosen("character", "sdxl", gb) for gb in (7.8, 12)] == ["sdxl-character-8gb", "sdxl-character-12gb"]
    assert chosen("detail", "sd3", 24) == "sd3-style-24gb", "the nearest purpose that the family has"
    assert chosen("preference", "sd15", 0) == "sd15-preference-8gb"
    for name in ("refiner", "flux"):
        with pytest.raises(UserError, match=f"preset: {name}.safetensors is of no family that can be trained"):
            chosen("character", name, 24)
    with pytest.raises(UserError, match="needs a checkpoint"):
        train.wanted(**{**TRAIN, "preset": "style (by checkpoint)", "checkpoint": "as in the preset"})
    for purpose in plan.PURPOSES:
        for family in ("sd15", "sdxl", "sd3"):
            assert plan.suiting(purpose, family, 24, train._named_presets()), (purpose, family)


@pytest.mark.parametrize("preset, flags, name", [
    ("", [], "gpu0"), ("[run]\ndevice = \"cpu\"", [], "cpu"), ("run = {steps = 3, device = 'cuda:1'}", [], "gpu1"),
    ('[run]\ndevice = "cpu"', ['--run.device="cuda:2"'], "gpu2"), ("", ["--run.device=cuda"], "gpu0"),
    ("mydevice = 'cpu'", [], "gpu0"), ("", ['--run.device="auto"'], "gpu0"),
])  # fmt: skip
def test_trainings_on_one_device_share_a_queue(preset, flags, name):
    assert plan.device(preset, flags) == name


def test_where_the_finished_adapter_is_copied(comfyui):
    assert host.lora_folder(host.OUTPUT_LORAS) == comfyui / "output/loras/pixelkiln"
    assert host.lora_folder(host.MODELS_LORAS) == comfyui / "loras/pixelkiln"
    assert host.lora_folder(host.RUN_ONLY) is None


def test_a_run_that_was_finished_before_is_listed_too(comfyui):
    run = has_run(comfyui / "output/pixelkiln/runs/one")
    save_file(lora(SD15), str(run / "one.safetensors"))
    (run / train.MARK).write_text(json.dumps({"key": train.wanted(**TRAIN).key()}), encoding="utf-8")
    done = train._train("wait", train.UNCHANGED, **TRAIN)
    assert "listed under loras as pixelkiln/one.safetensors" in done.values[4]
    assert (comfyui / "output/loras/pixelkiln/one.safetensors").is_file()


def test_the_trainers_lines_name_the_nodes_inputs():
    assert plan.in_inputs("data.path: there is none; set --data.path=x or run.steps") == (
        "dataset_name: there is none; set dataset_name=x or steps"
    )
    assert plan.in_inputs("memory.offload: see --memory.offload=blocks -- or not") == (
        "memory.offload: see memory.offload=blocks -- or not"
    )


@pytest.mark.parametrize("line", [
    "model.path = 'x'", "run.out = 'x'", "run.name = 'x'", "data.path = 'x'", "data.sets = []",
    "data.sets.0.path = 'x'", "sample.file = 'x'", "optimizer.kind = 'os.system'", "adapter.init_from = 'x'",
    "data.masks = '../x'", "data.masks = 'C:\\\\x'", "rank = 3", "run.log_dir = '~'", 'run.resume_from = "~"',
    "run.log_dir = ~", "loss.lpips.backbone = 'C:x'", "loss.lpips = {heads = '~'}",
    "adapter.rank", "preset = 'x'", "--resume", "run.batch 3",
])  # fmt: skip
def test_options_that_a_workflow_may_not_set(line):
    with pytest.raises(ValueError, match=r"^options: "):
        plan.free_options(line)


def test_a_request_is_the_same_until_its_data_change(tmp_path):
    preset = tmp_path / "p.toml"
    preset.write_text("", encoding="utf-8")
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.txt").write_text("a", encoding="utf-8")
    request = plan.Request(preset, tmp_path / "run", ("--run.steps=3",), (data,))
    key = request.key()
    assert request.key() == key
    (data / "b.txt").write_text("b", encoding="utf-8")
    assert request.key() != key
    assert plan.Request(preset, tmp_path / "other", ("--run.steps=3",), ()).key() != key


def test_losses_of_a_resumed_run_count_once():
    rows = [
        {"kind": "step", "step": s, "loss": loss} for s, loss in ((1, 3.0), (2, 2.0), (3, 9.0), (3, 1.0), (4, None))
    ]
    assert plan.loss_map([*rows, {"kind": "sample", "step": 3}]) == {"loss": [3.0, 2.0, 1.0]}


# ---------------------------------------------------------------------------------------------------------- the pack


def test_importing_the_pack_imports_nothing():
    """In a folder with a hyphen and a dot, by a path as Windows has them, beside other packs' modules of our names."""
    code = """
import importlib.util, sys, types
for name in ("nodes", "trainer", "extension"):
    sys.modules[name] = types.ModuleType(name)
before = set(sys.modules)
name = "C:\\\\ComfyUI\\\\custom_nodes\\\\pixel-kiln_x_1"
spec = importlib.util.spec_from_file_location(name, ROOT + "/__init__.py", submodule_search_locations=[ROOT])
module = importlib.util.module_from_spec(spec)
sys.modules[name] = module
spec.loader.exec_module(module)
assert not hasattr(module, "NODE_CLASS_MAPPINGS")
assert module.WEB_DIRECTORY == "./web"
print(sorted(set(sys.modules) - before - {name}))
""".replace("ROOT", repr(str(ROOT)))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_table_of_nodes():
    """Ids are for ever, so they are listed here; every input, output and node says what it is for."""
    assert [node.id for node in NODES] == [
        "PixelkilnLoadAdapter", "PixelkilnLoadAdapterModelOnly", "PixelkilnRunAdapter", "PixelkilnBlockStrengths",
        "PixelkilnAdapterStack", "PixelkilnPreference", "PixelkilnRate", "PixelkilnGridPlan", "PixelkilnGrid",
        "PixelkilnDatasetFolder", "PixelkilnDatasetImages", "PixelkilnTrain", "PixelkilnRunStatus", "PixelkilnRunSteer",
        "PixelkilnFitCheck", "PixelkilnTriggerWords", "PixelkilnAdapterSchedule", "PixelkilnConvertAdapter",
        "PixelkilnMergeAdapters", "PixelkilnDensePrediction",
    ]  # fmt: skip
    for node in NODES:
        assert node.about.endswith(".") and node.aliases
        assert len({one.name for one in node.inputs}) == len(node.inputs)
        for one in (*node.inputs, *node.outputs):
            assert one.tip, f"{node.id}.{one.name}"
        assert (ROOT / "web" / "docs" / f"{node.id}.md").is_file()


def test_locales_name_what_there_is():
    for folder in (ROOT / "locales").iterdir():
        entries = json.loads((folder / "nodeDefs.json").read_text(encoding="utf-8"))
        assert entries.keys() == {node.id for node in NODES}, folder.name
        for node in NODES:
            names = {name for one in node.inputs for name in (one.name, one.grows)}
            assert entries[node.id].get("inputs", {}).keys() <= names, (folder.name, node.id)
            assert all(int(i) < len(node.outputs) for i in entries[node.id].get("outputs", {})), (folder.name, node.id)


def test_rows_of_the_stack():
    text = "\n a.safetensors\n# b.safetensors | 0.5\nsub/c d.safetensors | 0.8 | 0 | in=1 te=0\ne.st | | 0.25\n"
    assert runs.rows_of(text) == [
        runs.StackRow(True, "a.safetensors"), runs.StackRow(False, "b.safetensors", 0.5, 0.5),
        runs.StackRow(True, "sub/c d.safetensors", 0.8, 0, "in=1 te=0"), runs.StackRow(True, "e.st", 1.0, 0.25),
    ]  # fmt: skip
    for line in ("a | x", "a | 1 | nan", "| 1", "a | 1 | 1 | in", "a|1|1|te=0|x", "a | 101"):
        with pytest.raises(UserError):
            runs._check_rows(line)


def test_a_stack_applies_its_rows_in_their_order(comfyui, monkeypatch):
    for name in "abc":
        (comfyui / f"loras/{name}.safetensors").touch()
    applied = []

    def apply(model, clip, path, strength_model, strength_clip, words, check):
        applied.append((path.stem, strength_model, strength_clip, words))
        return load.Loaded(model, clip, path.stem, path.stem)

    monkeypatch.setattr(load, "apply", apply)
    rows = "c.safetensors | 0.5 | 0.25 | te=0\n# b.safetensors\na.safetensors | 2"
    done = runs._stack("model", "error", adapter_1="b.safetensors", rows=rows)
    assert applied == [("b", 1.0, 1.0, ""), ("c", 0.5, 0.25, "te=0"), ("a", 2, 2, "")]
    assert done.values[2] == "b, c, a"
    before = fingerprint("AdapterStack", rows=rows)
    (comfyui / "loras/b.safetensors").write_text("b", encoding="utf-8")
    assert fingerprint("AdapterStack", rows=rows) == before, "a row that is off is not looked at"
    (comfyui / "loras/c.safetensors").write_text("c", encoding="utf-8")
    assert fingerprint("AdapterStack", rows=rows) != before


def test_trigger_words_are_chosen_by_number_or_by_name(comfyui):
    tags = {"10_cat": {"tom cat": 9, "sitting": 3}, "5_dog": {"sitting": 4, "wet": 1}}
    metadata = {"ss_tag_frequency": json.dumps(tags), "modelspec.trigger_phrase": "sks, ohwx man"}
    save_file(lora(SD15), str(comfyui / "loras/a.safetensors"), metadata)

    def words(source: str, which: str, most: int = 5) -> list[str]:
        return triggers._run("a.safetensors", source, which, most).values[1]

    assert words(triggers.EITHER, "") == ["sks", "ohwx man"]
    assert words(triggers.TAGS, "", 2) == ["tom cat", "sitting"]
    assert words(triggers.TAGS, "3, 1-2") == ["wet", "tom cat", "sitting"]
    assert words(triggers.TAGS, "wet; tom cat; 1") == ["wet", "tom cat"]
    shown = triggers._run("a.safetensors", triggers.TAGS, "2", 5).ui["text"][0]
    assert "* 2 sitting (7 times)" in shown and "  1 tom cat (9 times)" in shown
    for which in ("4", "0", "2-1", "dog"):
        with pytest.raises(UserError, match=r"^which: "):
            words(triggers.TAGS, which)


def test_a_schedule_is_points_in_rising_order():
    assert schedule.points("0: 0, 30%: 1; 1 = -0.5") == [(0, 0), (0.3, 1), (1, -0.5)]
    assert schedule.keyframes("0.5: 1, 0.75: 0", schedule.STEPS) == [(0, 1), (0.5, 1), (0.75, 0)]
    line = schedule.keyframes("0: 0, 0.5: 1", schedule.LINEAR)
    assert len(line) == 26
    assert line[5] == pytest.approx((0.1, 0.2))
    for text in ("", "x", "0", "0.5: 1, 0.2: 0", "1.5: 1", "0: 0, 0: 1", "150%: 1"):
        with pytest.raises(UserError, match=r"^schedule: "):
            schedule.points(text)


def test_job_names_are_safe():
    for name in ("../x", "a/b", "a\\b", "CON", "", ".", "a\0"):
        with pytest.raises(ValueError):
            safe_name(name)


def test_a_converted_file_is_made_once_and_never_replaced(comfyui, monkeypatch):
    source, asked = comfyui / "loras/a.safetensors", []
    source.write_bytes(b"x")

    def ask(words):
        asked.append(words)
        target = Path(words[1] if words[0] == "merge" else words[2])
        target.write_bytes(b"made")
        return {"path": str(target), "notes": ["rank 8: 3 % of the effect is lost"]}

    monkeypatch.setattr(control, "ask", ask)
    given = {"adapter": "a.safetensors", "form": "kohya", "rank": 8, "family": rewrite.FROM_FILE, "name": ""}
    path, info = rewrite._convert(**given).values
    assert Path(path).parent == comfyui / "output/loras/pixelkiln" and Path(path).name.startswith("a-kohya-rank8-")
    assert "3 % of the effect is lost" in info
    assert asked == [["convert", str(source), path, "--to", "kohya", "--rank", "8"]]
    assert rewrite._convert(**given).values[0] == path and len(asked) == 1
    source.write_bytes(b"another file")
    assert rewrite._convert(**given).values[0] != path and len(asked) == 2
    for change in ({"form": "diffusers"}, {"rank": 4}, {"family": "sdxl"}, {"name": "mine"}):
        assert rewrite._convert(**{**given, **change}).values[0] != path
    assert asked[-2][-2:] == ["--family", "sdxl"] and Path(asked[-1][2]).name.startswith("mine-")


def test_merged_are_the_chosen_and_the_linked(comfyui, monkeypatch):
    for name in "ab":
        (comfyui / f"loras/{name}.safetensors").write_bytes(b"x")
    asked = []
    monkeypatch.setattr(control, "ask", lambda words: asked.append(words) or {"notes": []})
    rows = {"adapter_1": "a.safetensors", "weight_1": 0.5, "adapter_2": "none", "weight_2": 1.0,
            "adapter_3": "none", "weight_3": -1.0, "path_3": str(comfyui / "loras/b.safetensors")}  # fmt: skip
    rewrite._merge(rank=0, family=rewrite.FROM_FILE, name="", **rows)
    assert asked[0][2:] == [f"{comfyui}/loras/a.safetensors=0.5", f"{comfyui}/loras/b.safetensors=-1.0"]
    with pytest.raises(UserError, match="none is chosen"):
        rewrite._merge(rank=0, family=rewrite.FROM_FILE, name="", adapter_1="none", adapter_2="none")
    with pytest.raises(UserError, match="none is chosen"):
        rewrite._convert("none", "kohya", 0, rewrite.FROM_FILE, "")
    with pytest.raises(UserError):
        rewrite._convert("a.safetensors", "kohya", 0, rewrite.FROM_FILE, "../out")
    assert rewrite._fingerprint(adapter_1="a.safetensors") == rewrite._fingerprint(adapter_1="a.safetensors")
    assert rewrite._fingerprint(adapter_1=None) != rewrite._fingerprint(adapter_1=None)
