"""Draw the pictures, train the bundled base model, and measure it.

    python presets/base/build.py pictures --openmoji FOLDER   # render emoji and outlines with their captions
    python presets/base/build.py bundle                       # the style set and the preference pairs of the demos
    python presets/base/build.py vae                          # train the autoencoder
    python presets/base/build.py unet                         # train text encoder and U-Net on its latents
    python presets/base/build.py narrow --width 160           # leave out the U-Net's weakest inner channels
    python presets/base/build.py score                        # PSNR and caption retrieval of what is bundled

``FOLDER`` is the unpacked npm package ``openmoji`` 17.0.0 (names, groups, outlines); colour pictures come from Debian's
``fonts-noto-color-emoji``. Everything is seeded; the model card beside this file says where each part comes from.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).resolve().parent
WORK = HERE.parents[1] / "build" / "base"
FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
SIZE = 128
STYLE_COUNT = 32
PAIR_COUNT = 190
GROUPS = {
    "smileys-emotion": "smiley",
    "people-body": "people",
    "animals-nature": "animals and nature",
    "food-drink": "food and drink",
    "travel-places": "travel and places",
    "activities": "activities",
    "objects": "objects",
}


def held_out(name: str) -> bool:
    """About one picture in sixteen, by the hash of its name: never seen by the autoencoder."""
    return hashlib.sha256(name.encode()).digest()[0] < 16


# ---------------------------------------------------------------------------------------------------------- pictures


def noto(text: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    glyph = Image.new("RGBA", (136, 128), (255, 255, 255, 0))
    ImageDraw.Draw(glyph).text((0, 0), text, font=font, embedded_color=True)
    page = Image.new("RGBA", (136, 136), "white")
    page.alpha_composite(glyph, (0, 4))
    return page.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def outline(svg: Path) -> Image.Image:
    import io

    import resvg_py

    png = resvg_py.svg_to_bytes(svg_path=str(svg), width=144, height=144)
    drawn = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    page = Image.new("RGBA", drawn.size, "white")
    page.alpha_composite(drawn)
    return page.convert("RGB").crop((8, 8, 136, 136))


def pictures(args: argparse.Namespace) -> None:
    """Write ``build/base/pictures/NAME.png`` with ``captions.json``."""
    from fontTools.ttLib import TTFont

    known = TTFont(FONT).getBestCmap()
    font = ImageFont.truetype(FONT, 109)
    folder = WORK / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    captions: dict[str, str] = {}
    for entry in json.loads((args.openmoji / "data" / "openmoji.json").read_text("utf-8")):
        points = [int(p, 16) for p in entry["hexcode"].split("-") if p != "FE0F"]
        if entry["group"] not in GROUPS or entry["skintone"] or len(points) != 1 or points[0] not in known:
            continue
        name = entry["hexcode"].split("-")[0].lower()
        picture = noto(chr(points[0]), font)
        if picture.convert("L").getextrema()[0] > 200:  # nothing was drawn
            continue
        picture.save(folder / f"{name}.png")
        captions[name] = f"{entry['annotation'].lower()}, {GROUPS[entry['group']]}"
        outline(args.openmoji / "black" / "svg" / f"{entry['hexcode']}.svg").save(folder / f"{name}.outline.png")
    (folder / "captions.json").write_text(json.dumps(captions, indent=0, ensure_ascii=False), "utf-8")
    print(f"{len(captions)} pictures, {sum(map(held_out, captions))} held out of the autoencoder's training")


def bundle(args: argparse.Namespace) -> None:
    """Write ``presets/pictures``: outlines with captions for the style demo, outline over colour as pairs."""
    import random
    import shutil

    captions: dict[str, str] = json.loads((WORK / "pictures" / "captions.json").read_text("utf-8"))
    named = {c: n for n, c in sorted(captions.items(), reverse=True)}  # one picture a caption
    alike = ("heart", "circle", "square", "moon", "o’clock", "thirty")  # in outline these look all the same
    names = sorted(n for c, n in named.items() if not any(word in c for word in alike))
    random.Random(7).shuffle(names)
    style, pairs = names[:STYLE_COUNT], names[STYLE_COUNT : STYLE_COUNT + PAIR_COUNT]
    home = HERE.parent / "pictures"
    for part in ("style", "pairs"):
        shutil.rmtree(home / part, ignore_errors=True)
        (home / part).mkdir(parents=True)
    for name in style:
        small(WORK / "pictures" / f"{name}.outline.png", home / "style" / f"{name}.png")
        (home / "style" / f"{name}.txt").write_text(captions[name] + "\n", "utf-8")
    lines = []
    for name in pairs:
        for suffix, role in ((".outline", "chosen"), ("", "rejected")):
            small(WORK / "pictures" / f"{name}{suffix}.png", home / "pairs" / f"{name}_{role}.webp")
        row = {"prompt": captions[name], "chosen": f"{name}_chosen.webp", "rejected": f"{name}_rejected.webp"}
        lines.append(json.dumps(row, ensure_ascii=False))
    (home / "pairs" / "pairs.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    size = sum(p.stat().st_size for p in home.rglob("*") if p.is_file())
    print(f"{len(style)} style pictures, {len(pairs)} pairs, {size / 2**20:.2f} MB")


def small(source: Path, target: Path) -> None:
    """The same picture with at most 128 colours: a fraction of the bytes."""
    with Image.open(source) as picture:
        few = picture.quantize(128, dither=Image.Dither.NONE)
    if target.suffix == ".webp":
        few.convert("RGB").save(target, lossless=True, quality=100, method=6)
    else:
        few.save(target, optimize=True)


def load_pictures(suffix: str = ".png") -> tuple[list[str], list[str], torch.Tensor]:
    """Names, captions and pictures [N,3,128,128] in [-1,1]."""
    import numpy as np

    captions: dict[str, str] = json.loads((WORK / "pictures" / "captions.json").read_text("utf-8"))
    names = sorted(captions)
    stack = np.stack([np.asarray(Image.open(WORK / "pictures" / f"{n}{suffix}")) for n in names])
    return names, [captions[n] for n in names], torch.from_numpy(stack).permute(0, 3, 1, 2).float() / 127.5 - 1


# ---------------------------------------------------------------------------------------------------------- training


class Average:
    """Exponential moving average of the trainable weights."""

    def __init__(self, modules: list[torch.nn.Module], decay: float):
        self.weights = [p for m in modules for p in m.parameters()]
        self.kept = [p.detach().clone() for p in self.weights]
        self.decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.kept, [p.detach() for p in self.weights], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        for p, kept in zip(self.weights, self.kept, strict=True):
            held = p.detach().clone()
            p.copy_(kept)
            kept.copy_(held)


def vae(args: argparse.Namespace) -> None:
    """Train the autoencoder on random 64-pixel crops; score it on whole held-out pictures."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    names, _, everything = load_pictures()
    test = torch.tensor([held_out(n) for n in names])
    # Outlines are drawings of another hand: a little of them keeps the decoder honest about thin black lines.
    outlines = load_pictures(".outline.png")[2]
    train = torch.cat([everything[~test], outlines[~test]])
    weights = torch.cat([torch.ones(int((~test).sum())), torch.full((int((~test).sum()),), 0.35)])
    model = (
        AutoencoderKL.from_pretrained(HERE / "vae", torch_dtype=torch.float32)
        if args.decoder
        else AutoencoderKL(
            block_out_channels=(32, 64, 96, 96),
            layers_per_block=1,
            norm_num_groups=8,
            latent_channels=4,
            sample_size=SIZE,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            mid_block_add_attention=False,
        )
    ).to(memory_format=torch.channels_last)
    if args.decoder:  # the U-Net lives on these latents: they stay as they are
        model.encoder.requires_grad_(False)
        model.quant_conv.requires_grad_(False)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {len(train)} pictures", flush=True)
    average = Average([model], 0.999)
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=args.lr, betas=(0.9, 0.99), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, args.steps, pct_start=0.05)
    began = time.time()
    for step in range(args.steps):
        rows = torch.multinomial(weights, args.batch, replacement=True)
        crops = []
        for row in rows.tolist():
            top, left = (int(v) for v in torch.randint(0, SIZE - 64 + 1, (2,)))
            crops.append(train[row, :, top : top + 64, left : left + 64])
        x = torch.stack(crops)
        x = x.flip(-1) if torch.rand(()) < 0.5 else x
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = model.encode(x).latent_dist
            y = model.decode(posterior.sample()).sample.float()
        edges = sum(((y - x).diff(dim=d).abs().mean() for d in (-1, -2)), torch.zeros(()))
        loss = (y - x).square().mean() + 0.02 * (y - x).abs().mean() + 0.05 * edges + 1e-6 * posterior.kl().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.update(step)
        if (step + 1) % 250 == 0:
            print(f"{step + 1}/{args.steps} loss {loss.item():.5f} {time.time() - began:.0f} s", flush=True)
        if (step + 1) % 1000 == 0 or step + 1 == args.steps:
            average.swap()
            print(f"    held-out PSNR {psnr(model, everything[test]):.2f} dB", flush=True)
            save_vae(model, everything, model.config["scaling_factor"] if args.decoder else None)
            average.swap()


@torch.no_grad()
def psnr(model: torch.nn.Module, pictures: torch.Tensor) -> float:
    """Mean over pictures of 10 log10(4 / MSE), pictures in [-1,1], decoded from the posterior's mean."""
    each = []
    for chunk in pictures.split(16):
        y = model.decode(model.encode(chunk).latent_dist.mode()).sample.clamp(-1, 1)
        each.append(10 * torch.log10(4 / (y - chunk).square().mean((1, 2, 3))))
    return float(torch.cat(each).mean())


@torch.no_grad()
def save_vae(model: torch.nn.Module, pictures: torch.Tensor, scale: float | None) -> None:
    latents = torch.cat([model.encode(chunk).latent_dist.mode() for chunk in pictures[:256].split(32)])
    model.register_to_config(scaling_factor=scale or round(1 / float(latents.std()), 5))
    store(model, "vae")


def store(model, part: str) -> None:
    """A part of the pipeline in fp16, without a word of where it lay when it was made."""
    from safetensors.torch import load_file, save_file

    model.save_pretrained(HERE / part)
    config = HERE / part / "config.json"
    lines = config.read_text("utf-8").splitlines(keepends=True)
    config.write_text("".join(line for line in lines if "_name_or_path" not in line), "utf-8")
    [path] = (HERE / part).glob("*.safetensors")
    weights = {k: v.half() if v.is_floating_point() else v for k, v in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})


def tokenizer(captions: list[str]):
    """A CLIP tokenizer with its own small byte-pair vocabulary, learned from the captions."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    learner = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    learner.normalizer = normalizers.Lowercase()
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_clip_words(), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    # Two entries per byte (inside and at the end of a word) let it spell any text, as CLIP's own vocabulary does.
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    extra = ["a drawing of the style made in black line outline simple bright"]
    learner.train_from_iterator(
        [*captions, *extra],
        trainers.BpeTrainer(vocab_size=1800, end_of_word_suffix="</w>", initial_alphabet=alphabet, show_progress=False),
    )
    model = json.loads(learner.to_str())["model"]
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    words = sorted(alphabet) + [f"{c}</w>" for c in sorted(alphabet)]
    words += [m for m in ("".join(pair) for pair in merges) if m not in words]
    vocabulary = {w: i for i, w in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    folder = HERE / "tokenizer"
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), "utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(m) for m in merges)]) + "\n", "utf-8")
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1), "utf-8")
    return CLIPTokenizer.from_pretrained(folder)


def _clip_words():
    from tokenizers import Regex

    return Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")


def chosen(captions: list[str]) -> list[int]:
    """Which pictures the U-Net ends on: those of the style set and the pairs, and others by the hash of their caption,
    300 in all. It is small: it draws 300 things well, or a thousand badly."""
    shared = {p.read_text("utf-8").strip() for p in (HERE.parent / "pictures" / "style").glob("*.txt")}
    rows = (HERE.parent / "pictures" / "pairs" / "pairs.jsonl").read_text("utf-8").splitlines()
    shared |= {json.loads(row)["prompt"] for row in rows}
    order = sorted(range(len(captions)), key=lambda i: hashlib.sha256(captions[i].encode()).digest())
    return sorted(order, key=lambda i: captions[i] not in shared)[:300]


def unet(args: argparse.Namespace) -> None:
    """Train text encoder and U-Net together: epsilon prediction, scaled-linear schedule, 10 % empty captions."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(2 if args.go_on else 1)
    _names, captions, everything = load_pictures()
    auto = AutoencoderKL.from_pretrained(HERE / "vae", torch_dtype=torch.float32)
    scale = auto.config["scaling_factor"]
    with torch.no_grad():
        latents = torch.cat([auto.encode(c).latent_dist.mode() * scale for c in everything.split(32)])
    words = CLIPTokenizer.from_pretrained(HERE / "tokenizer") if args.go_on else tokenizer(captions)
    if args.chosen:
        rows = chosen(captions)
        captions, latents = [captions[i] for i in rows], latents[rows]
    eos = words.eos_token_id
    ids = words([*captions, ""], padding="max_length", truncation=True, max_length=77, return_tensors="pt").input_ids
    text = (
        CLIPTextModel.from_pretrained(HERE / "text_encoder", dtype=torch.float32)
        if args.go_on
        else CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(words),
                hidden_size=128,
                intermediate_size=512,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=77,
                bos_token_id=words.bos_token_id,
                eos_token_id=eos,
                pad_token_id=eos,
                projection_dim=128,
            )
        )
    )
    net = (
        UNet2DConditionModel.from_pretrained(HERE / "unet", torch_dtype=torch.float32)
        if args.go_on
        else UNet2DConditionModel(
            sample_size=16,
            in_channels=4,
            out_channels=4,
            block_out_channels=(64, 128, 192),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=128,
            attention_head_dim=4,
            norm_num_groups=16,
        )
    )
    net = net.to(memory_format=torch.channels_last).train()
    text.train()
    count = [sum(p.numel() for p in m.parameters()) / 1e6 for m in (net, text)]
    print(f"U-Net {count[0]:.2f} M, text encoder {count[1]:.2f} M, {len(words)} tokens", flush=True)
    schedule = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    average = Average([net, text], 0.998)
    optimizer = torch.optim.AdamW([*net.parameters(), *text.parameters()], lr=args.lr, weight_decay=0.01)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, args.steps, pct_start=0.05)
    order, began, running = torch.empty(0, dtype=torch.long), time.time(), 0.0
    for step in range(args.until or args.steps):
        while len(order) < args.batch:
            order = torch.cat([order, torch.randperm(len(latents))])
        rows, order = order[: args.batch], order[args.batch :]
        z, noise = latents[rows], torch.randn(args.batch, *latents.shape[1:])
        t = torch.randint(0, 1000, (args.batch,))
        said = torch.where(torch.rand(args.batch) < 0.1, torch.full_like(rows, len(captions)), rows)
        noisy = schedule.add_noise(z, noise, t).contiguous(memory_format=torch.channels_last)
        longest = int((ids[said] == eos).int().argmax(1).max()) + 1  # tokens past the last end mark train nothing new
        width = 77 if step % 4 == 0 else min(77, longest)
        with torch.autocast("cpu", torch.bfloat16):
            out = net(noisy, t, text(ids[said][:, :width])[0]).sample.float()
        loss = (out - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], 1.0)
        optimizer.step()
        rate.step()
        average.update(step)
        running += loss.item()
        if (step + 1) % 100 == 0:
            print(f"{step + 1}/{args.steps} loss {running / 100:.5f} {time.time() - began:.0f} s", flush=True)
            running = 0.0
        if (step + 1) % 1000 == 0 or step + 1 in (args.steps, args.until):
            average.swap()
            save_pipeline(text, net, schedule)
            average.swap()
    score(args)


@torch.no_grad()
def narrow(args: argparse.Namespace) -> None:
    """Leave out the weakest channels of the U-Net's inner level: as many of every group of its norms, by the squared
    weights that write them. What is left needs training (``unet --go-on --chosen``)."""
    from diffusers import UNet2DConditionModel

    net = UNet2DConditionModel.from_pretrained(HERE / "unet", torch_dtype=torch.float32)
    *outer, old = net.config["block_out_channels"]
    groups, new = net.config["norm_num_groups"], args.width
    small = UNet2DConditionModel.from_config(net.config, block_out_channels=(*outer, new))
    strength = torch.stack(
        [
            w.square().reshape(old, -1).sum(1)
            for n, w in net.state_dict().items()
            if n.endswith("weight") and len(w) == old
        ]
    ).sum(0)
    order = strength.view(groups, -1).argsort(dim=1, descending=True)[:, : new // groups].sort(dim=1).values
    kept = (order + torch.arange(groups)[:, None] * (old // groups)).flatten()

    def cut(weights: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        for dim, (had, has) in enumerate(zip(weights.shape, shape, strict=True)):
            if had == has:
                continue
            copies = (had - has) // (old - new)  # channels of the inner level come first, several times over or once
            rows = torch.cat([kept + old * i for i in range(copies)])
            weights = weights.index_select(dim, torch.cat([rows, torch.arange(old * copies, had)]))
        return weights

    weights = net.state_dict()
    small.load_state_dict({name: cut(weights[name], here.shape) for name, here in small.state_dict().items()})
    store(small, "unet")


def save_pipeline(text, net, schedule) -> None:
    store(text, "text_encoder")
    store(net, "unet")
    schedule.save_pretrained(HERE / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (HERE / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", "utf-8")


# ----------------------------------------------------------------------------------------------------------- scoring


def score(args: argparse.Namespace) -> None:
    """PSNR on held-out pictures; retrieval of 100 training captions (DDIM 30 steps, guidance 3, fixed seeds)."""
    from diffusers import StableDiffusionPipeline

    names, captions, everything = load_pictures()
    pipe = StableDiffusionPipeline.from_pretrained(HERE, torch_dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    test = torch.tensor([held_out(n) for n in names])
    print(f"autoencoder: {psnr(pipe.vae, everything[test]):.2f} dB PSNR on {int(test.sum())} held-out pictures")
    trained = chosen(captions)
    order = torch.randperm(len(trained), generator=torch.Generator().manual_seed(5))[:100].tolist()
    picked = [trained[i] for i in order]
    right, shown = 0, []
    for at in range(0, len(picked), 20):
        rows = picked[at : at + 20]
        seeds = [torch.Generator().manual_seed(1000 + row) for row in rows]
        drawn = (
            pipe(
                [captions[r] for r in rows],
                num_inference_steps=30,
                guidance_scale=3.0,
                height=SIZE,
                width=SIZE,
                generator=seeds,
                output_type="pt",
            ).images.float()
            * 2
            - 1
        )
        for row, picture in zip(rows, drawn, strict=True):
            nearest = int((everything - picture).square().mean((1, 2, 3)).argmin())
            right += captions[nearest] == captions[row]
        shown += list(drawn)
    print(f"retrieval: {right} of {len(picked)} samples are nearest to the picture of their own caption")
    columns = 20
    sheet = Image.new("RGB", (columns * SIZE, math.ceil(len(shown) / columns) * SIZE))
    for i, picture in enumerate(shown):
        pixels = ((picture.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        sheet.paste(Image.fromarray(pixels), (i % columns * SIZE, i // columns * SIZE))
    WORK.mkdir(parents=True, exist_ok=True)
    sheet.save(WORK / "samples.png")
    print(f"samples: {WORK / 'samples.png'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    draw = commands.add_parser("pictures")
    draw.add_argument("--openmoji", type=Path, required=True)
    for name, steps, batch, lr in (("vae", 4500, 12, 2e-3), ("unet", 4500, 48, 1e-3)):
        train = commands.add_parser(name)
        train.add_argument("--steps", type=int, default=steps)
        train.add_argument("--batch", type=int, default=batch)
        train.add_argument("--lr", type=float, default=lr)
        if name == "unet":
            train.add_argument("--until", type=int, help="stop after so many of the steps")
            train.add_argument("--go-on", action="store_true", help="start from the bundled weights")
            train.add_argument("--chosen", action="store_true", help="end on the 300 pictures that are drawn well")
        else:
            train.add_argument("--decoder", action="store_true", help="the bundled one's decoder only; latents stay")
    slim = commands.add_parser("narrow")
    slim.add_argument("--width", type=int, default=160, help="channels of the inner level, a multiple of 16")
    commands.add_parser("bundle")
    commands.add_parser("score")
    args = parser.parse_args()
    run = {"pictures": pictures, "bundle": bundle, "vae": vae, "unet": unet, "narrow": narrow, "score": score}
    run[args.command](args)


if __name__ == "__main__":
    main()
