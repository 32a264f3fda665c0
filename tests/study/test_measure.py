"""The measures on tiny real models: by their definitions, paired, and with the base where they say the base."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import short_runs as runs
import torch
from PIL import Image

from pixelkiln.trainer.errors import UserError
from pixelkiln.trainer.study import measure, models, options, plan
from pixelkiln.trainer.training.loop import train

TEXT = """
name = "s"
seeds = 1
held_out = 0.4
[options.model]
path = "{family}"
[options.data]
{data}
resolution = 64
[options.run]
steps = 3
device = "cpu"
[options.adapter]
rank = 2
{adapter}
[options.optimizer]
learning_rate = 0.05
[options.sample]
steps = 2
guidance = 2.0
[[arms]]
name = "a"
[[arms]]
name = "b"
untrained = true
[measures]
levels = 4
pixel_levels = 2
captions = 3
caption_levels = 2
neutral = ["a dog", "a tree"]
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    root = tmp_path_factory.mktemp("measure")
    runs.pictures(root / "pictures")
    runs.pairs(root / "pairs")
    runs.model(root / "sd15")
    return root


def planned(home, family="sd15", data='path = "pictures"', adapter="", name="study"):
    path = home / f"{name}.toml"
    path.write_text(TEXT.format(family=family, data=data, adapter=adapter), "utf-8")
    return plan.make(*options.read(path))


def trained(home, name, **how):
    made = planned(home, name=name, **how)
    config = made.run_config(made.arms[0], 0)
    config = config.model_copy(update={"run": config.run.model_copy(update={"name": name})})
    assert train(config) == 0
    return made, str(made.folder / "runs" / name / f"{name}.safetensors")


@pytest.fixture(scope="module")
def adapter(home):
    return trained(home, "one")


def bench(made, file, seed=0):
    arm = made.arms[0]
    return measure.bench(made.run_config(arm, seed), file, made.held, made.prompts, seed, made.options.measures, print)


@pytest.fixture(scope="module")
def one(adapter):
    return bench(*adapter)


@pytest.fixture(scope="module")
def base(adapter):
    return bench(adapter[0], None)


def table(found):
    return {(name, item): value for name, item, value in found}


def test_held_out_errors_are_paired_and_follow_their_definition(one, base):
    found, other = table(measure.held_out_errors(one)), table(measure.held_out_errors(base))
    assert found.keys() == other.keys() and len(one.held) == 3
    for item in map(plan.item_id, one.held):
        levels = [value for (name, at), value in found.items() if name.startswith("latent error, ") and at == item]
        assert len(levels) == 4 and found["latent error", item] == pytest.approx(np.mean(levels))
        pixels = [value for (name, at), value in found.items() if name.startswith("pixel PSNR, ") and at == item]
        assert len(pixels) == 2 and found["pixel PSNR", item] == pytest.approx(np.mean(pixels))
        # the octaves' errors add up to the whole: their PSNRs are above it
        assert min(found[f"octave PSNR {j}", item] for j in range(5)) >= found["pixel PSNR", item] - 1e-6
        assert found["latent error", item] != other["latent error", item]
    assert table(measure.held_out_errors(one)) == found  # the same noise each time


def test_levels_are_measured_many_at_once_and_as_if_one_by_one(one):
    by_one = table(measure.held_out_errors(replace(one, rows=1)))
    for rows in (2, 3, 16):
        assert table(measure.held_out_errors(replace(one, rows=rows))) == pytest.approx(by_one, rel=1e-4)


def test_the_base_alone_is_what_the_adapter_leaves_when_it_is_off(one, base):
    with one.base():
        off = table(measure.held_out_errors(one))
    assert off == pytest.approx(table(measure.held_out_errors(base)))


def test_other_seeds_have_other_noise_and_pictures(adapter, one):
    other = bench(*adapter, seed=1)
    assert table(measure.held_out_errors(other))["latent error", plan.item_id(one.held[0])] != pytest.approx(
        table(measure.held_out_errors(one))["latent error", plan.item_id(one.held[0])]
    )
    seeds = [{p.seed for p in some.previews.prompts} for some in (one, other)]
    assert not seeds[0] & seeds[1] and [p.text for p in other.previews.prompts] == [
        p.text for p in one.previews.prompts
    ]


def test_pictures_are_drawn_once_and_again_when_the_adapter_is_another(one, base, tmp_path):
    count = len(one.previews.prompts) - 2
    paths = measure.drawn(one, tmp_path, count, {"adapter": "x"})
    assert len(paths) == count == 3
    times = [path.stat().st_mtime_ns for path in paths]
    paths[1].unlink()
    assert measure.drawn(one, tmp_path, count, {"adapter": "x"}) == paths
    assert [path.stat().st_mtime_ns == t for path, t in zip(paths, times)] == [True, False, True]
    first = measure.read_pixels(paths[0])
    measure.drawn(base, tmp_path, count, {"adapter": "y"})
    assert not torch.equal(measure.read_pixels(paths[0]), first)


def test_drift_is_0_for_the_base_and_not_for_an_adapter(one, base, tmp_path):
    count = len(one.previews.prompts) - 2
    by_base = measure.drawn_by_base(one, tmp_path / "base", count, {})
    assert [v for *_, v in measure.drift(measure.drawn_neutral(base, tmp_path / "b", count, {}), by_base)] == [0.0, 0.0]
    moved = measure.drift(measure.drawn_neutral(one, tmp_path / "a", count, {}), by_base)
    assert [item for _, item, _ in moved] == ["neutral 0", "neutral 1"] and all(v > 0 for *_, v in moved)


def test_drift_is_in_shares_of_black_to_white(tmp_path):
    for name, shade in (("a", 0), ("b", 255)):
        Image.new("RGB", (8, 8), (shade,) * 3).save(tmp_path / f"{name}.png")
    assert measure.drift([tmp_path / "a.png"], [tmp_path / "b.png"])[0][2] == pytest.approx(1.0)


def test_the_judge_is_the_base_whatever_the_adapter_is(one, base, tmp_path):
    paths = measure.drawn(one, tmp_path, 3, {})
    texts = ["a red cat", "a blue dog", "a green tree"]
    found = measure.alignment(one, paths, texts)
    assert table(found) == pytest.approx(table(measure.alignment(base, paths, texts)), rel=1e-4)
    shares = [v for name, _, v in found if name == "text alignment"]
    assert len(shares) == 3 and set(shares) <= {0.0, 0.5, 1.0}
    margins = [v for name, _, v in found if name == "text alignment, margin"]
    assert all((m > 0) or s == 0 for m, s in zip(margins, shares))


def test_a_judge_that_reads_finds_the_caption(one, monkeypatch, tmp_path):
    """A network whose error is least under the caption of which the brightness is that of the picture."""
    shades = {"black": -1.0, "grey": 0.0, "white": 1.0}
    for name, shade in shades.items():
        level = round((shade + 1) * 127.5)
        Image.new("RGB", (64, 64), (level,) * 3).save(tmp_path / f"{name}.png")
    latents = {name: measure.latents_of(one, tmp_path / f"{name}.png") for name in shades}

    def encode(captions):
        hidden = torch.stack([latents[name].flatten() for name in captions])[:, None]
        return measure.Conditioning(hidden)

    def predict(noisy, level, conditioning):
        z = conditioning.hidden.reshape(noisy.shape)
        a, s = one.model.process.scales(level)
        return ((noisy - a[:, None, None, None] * z) / s[:, None, None, None]).float()

    monkeypatch.setattr(one.family, "encode_text", encode)
    monkeypatch.setattr(one.family, "predict", predict)
    names = list(shades)
    found = measure.alignment(one, [tmp_path / f"{name}.png" for name in names], names)
    assert [v for name, _, v in found if name == "text alignment"] == [1.0, 1.0, 1.0]
    wrong = measure.alignment(one, [tmp_path / f"{name}.png" for name in names[1:] + names[:1]], names)
    assert [v for name, _, v in wrong if name == "text alignment"] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(("texts", "index", "count", "expected"), [
    (list("abcdef"), 0, 3, ["a", "b", "d"]), (list("abcdef"), 4, 3, ["e", "f", "b"]), (["a", "b"], 1, 4, ["b", "a"]),
    (["a", "a", "b"], 0, 3, ["a", "b"]),
])  # fmt: skip
def test_other_captions_are_chosen_by_number(texts, index, count, expected):
    assert measure.candidates(texts, index, count) == expected


def test_sets_against_real_pictures(one, tmp_path):
    paths = measure.drawn(one, tmp_path, 3, {})
    found = table(measure.against_real(one, paths, []))
    assert found["spectrum distance", ""] > 0 and ("kernel distance, autoencoder", "") in found
    assert len([k for k in found if k[0] == "nearness to training"]) == 3
    real = []
    for i, item in enumerate(one.held):  # the held-out pictures themselves are nearest to themselves
        latents = measure.real_latents(one, [item])[0]
        path = tmp_path / f"real{i}.png"
        measure.sampling.to_image(one.family.decode(latents)[0]).save(path)
        real.append(path)
    own = table(measure.against_real(one, real, []))
    assert own["spectrum distance", ""] < 0.1 < found["spectrum distance", ""]


@pytest.mark.slow
def test_pairs_are_asked_about_their_order(home):
    made, file = trained(home, "pairs", data='pairs = "pairs"')
    one, base = bench(made, file), bench(made, None)
    found = measure.pairs_in_order(one)
    assert len(found) == len(made.held) and all(0 <= value <= 1 for *_, value in found)
    assert [value for *_, value in measure.pairs_in_order(base)] == [0.5] * len(found)
    errors = []
    for rows in (2, 8):  # of a pair, which has one noise for both of its pictures
        some = replace(one, rows=rows)
        (_, batch), *_ = measure._single(some, some.held)
        errors.append(torch.stack(measure._errors(some, batch, some.shown)))
    assert errors[0].shape == (4, 2)
    assert torch.allclose(*errors, rtol=1e-4)
    assert len({item for name, item, _ in measure.held_out_errors(one) if name == "latent error"}) == len(found)


@pytest.mark.slow
def test_an_adapter_on_the_text_encoders_counts_in_every_measure(home, tmp_path):
    made, file = trained(home, "text", adapter="text_encoders = true\ndenoiser = false")
    one, base = bench(made, file), bench(made, None)
    errors = [[v for name, _, v in measure.held_out_errors(some) if name == "latent error"] for some in (one, base)]
    assert errors[0] != errors[1]
    moved = measure.drift(measure.drawn_neutral(one, tmp_path / "a", 3, {}),
                          measure.drawn_by_base(one, tmp_path / "b", 3, {}))  # fmt: skip
    assert all(v > 0 for *_, v in moved)


@pytest.mark.slow
def test_sdxl_is_measured_too(home, tmp_path):
    runs.model(home / "sdxl", "sdxl")
    made, file = trained(home, "xl", family="sdxl")
    one = bench(made, file)
    assert len(measure.held_out_errors(one)) > 10
    paths = measure.drawn(one, tmp_path, 3, {})
    assert len(measure.alignment(one, paths, list(made.prompts))) == 6


# ------------------------------------------------------------------------------------------------- models of folders


def clip_folder(path, kind="clip"):
    """A CLIP, SigLIP or DINO of a few channels with random weights."""
    import tiny
    import transformers as t

    torch.manual_seed(0)
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
              "image_size": 32, "patch_size": 8}  # fmt: skip
    if kind == "dinov2":
        net = t.Dinov2Model(t.Dinov2Config(**{k: v for k, v in vision.items() if k != "intermediate_size"}))
        net.save_pretrained(path)
    else:
        words = tiny.clip_tokenizer()
        text = {"vocab_size": len(words), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
                "num_attention_heads": 2, "max_position_embeddings": 20, "bos_token_id": words.bos_token_id,
                "eos_token_id": words.eos_token_id, "pad_token_id": words.eos_token_id}  # fmt: skip
        if kind == "siglip":
            net = t.SiglipModel(t.SiglipConfig(text_config=text, vision_config=vision))
        else:
            net = t.CLIPModel(t.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
        net.save_pretrained(path)
        words.save_pretrained(path)
    t.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(path)
    return str(path)


@pytest.fixture
def photos():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (40, 48, 3), dtype=np.uint8)) for _ in range(10)]


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_scorer_is_100_times_the_cosine_of_its_own_embeddings(kind, tmp_path, photos):
    import transformers as t

    folder = clip_folder(tmp_path, kind)
    texts = [f"a red cat {i}" for i in range(10)]
    found = models.Pictures(folder, torch.device("cpu"), scores=True).score(photos, texts)
    net, process = t.AutoModel.from_pretrained(folder).eval(), t.CLIPImageProcessor.from_pretrained(folder)
    words = t.AutoTokenizer.from_pretrained(folder)
    for i in (0, 9):
        padding = "max_length" if kind == "siglip" else False
        tokens = words([texts[i]], return_tensors="pt", padding=padding, max_length=20, truncation=True)
        tokens = {k: v for k, v in tokens.items() if k in ("input_ids", "attention_mask")}
        with torch.no_grad():
            out = net(pixel_values=process(images=[photos[i]], return_tensors="pt")["pixel_values"], **tokens)
        cosine = torch.nn.functional.cosine_similarity(out.image_embeds, out.text_embeds)
        assert float(found[i]) == pytest.approx(100 * float(cosine), abs=1e-3)


def test_features_of_folders_are_used_beside_the_autoencoders(one, tmp_path, photos):
    net = models.Pictures(clip_folder(tmp_path / "dino", "dinov2"), torch.device("cpu"))
    assert net.features(photos).shape == (10, 16)
    paths = measure.drawn(one, tmp_path / "drawn", 3, {})
    found = table(measure.against_real(one, paths, [("dino", net)]))
    assert np.isfinite(found["kernel distance, dino", ""])
    scorer = models.Pictures(clip_folder(tmp_path / "clip"), torch.device("cpu"), scores=True)
    assert len(measure.scored("clip", scorer, paths, ["a", "b", "c"])) == 3


def test_a_folder_of_something_else_is_named(tmp_path):
    with pytest.raises(UserError, match=r"^measures.features: .* holds no config.json of transformers; give a folder"):
        models.check(str(tmp_path), "measures.features", False)
    clip_folder(tmp_path, "dinov2")
    models.check(str(tmp_path), "measures.features", False)
    with pytest.raises(UserError, match=r"^measures.scores: .* holds a model of type 'dinov2'"):
        models.check(str(tmp_path), "measures.scores", True)
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"cannot be loaded"):
        models.Pictures(str(tmp_path), torch.device("cpu"))


def test_every_measure_has_a_name_a_direction_and_a_definition():
    names = ["latent error", "latent error, level 125", "octave PSNR 0", "octave PSNR 3", "pixel PSNR, level 9",
             "kernel distance, dino", "score, clip", "votes", "drift"]  # fmt: skip
    found = measure.catalogue(names)
    assert {m.name for m in found} == set(names) and all(m.what and m.title for m in found)
    better = {m.name: m.better for m in found}
    assert better["latent error, level 125"] == better["drift"] == better["kernel distance, dino"] == "lower"
    assert better["octave PSNR 3"] == better["score, clip"] == better["votes"] == "higher"
    assert [m.tested for m in found] == sorted((m.tested for m in found), reverse=True)
    assert found[0].tested
