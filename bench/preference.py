"""Does preference training work, and does the pixel term help? Arms of the demo side by side, on pairs never seen.

    python -m bench.preference --out FOLDER [--arms "latent DPO;pixel DPO"] [--seeds 0,1] [--steps N]

Every arm learns the same 150 pairs (outlines preferred over colour) by ``presets/demo_dpo.toml``; 40 are held out. The
saved file of each is then asked, whatever it was trained with:

- accuracy: the share of held-out pairs in the right order, by latent errors over the base's at 16 fixed noise levels,
  by pixel errors at 2 of them. A pair's levels are one observation: the 95 % interval resamples pairs.
- style: pictures of the 40 held-out prompts at fixed seeds, classified by a small network that was trained on the two
  styles of the other pairs.
- colour: the mean difference of the greatest and the least of red, green and blue, against the rejected pictures'.
- subject: whether one of the five of all 380 pictures whose edges are most alike is of the prompt, in either style.

What is in FOLDER already is kept, so a list that was cut short, or split over processes, is gone on with.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[1]
PAIRS = ROOT / "presets" / "pictures" / "pairs"
PRESET, LEVELS, APART, SIDE, ALIKE = "demo_dpo", 16, 8, 64, 5
BASE = "before training"
ARMS: dict[str, dict[str, Any]] = {
    "latent DPO": {"loss.pixel.weight": 0.0},
    "pixel DPO": {"loss.mse.weight": 0.0, "loss.pixel.weight": 1.0},
    "latent + pixel DPO": {},
    "latent DPO, 2 cached draws": {"loss.pixel.weight": 0.0, "objective.reference_draws": 2},
    "latent DPO + pixel SimPO": {"objective.pixel.kind": "simpo"},
    "latent + pixel SimPO": {"objective.kind": "simpo"},
    "chosen pictures alone": {"loss.pixel.weight": 0.0, "objective.beta": 1e-9},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.preference", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="runs, measurements and the picture")
    parser.add_argument("--arms", default=";".join(ARMS), help="names, separated by semicolons")
    parser.add_argument("--seeds", default="0", help="separated by commas")
    parser.add_argument("--steps", type=int, help="instead of the preset's")
    args = parser.parse_args()
    names = args.arms.split(";")
    if unknown := [name for name in names if name not in ARMS]:
        raise SystemExit(f"bench: there is no arm '{unknown[0]}'; there is: {'; '.join(ARMS)}")
    runs = [(name, int(seed)) for name in names for seed in args.seeds.split(",")]
    files = {f"{name}, seed {seed}": trained(name, seed, args) for name, seed in runs}
    base = measured(BASE, args.out / "base", None)
    rows = [base, *(measured(name, file.parent, file, base) for name, file in files.items())]
    print(table(rows))
    sheet(rows, args.out / "preference.png")


def configuration(out: Path, flags: dict[str, Any]):
    from pixelkiln.trainer.config import load

    return load(preset=PRESET, flags={"run.out": str(out), "validation.levels": LEVELS, **flags})


def trained(name: str, seed: int, args: argparse.Namespace) -> Path:
    """The adapter file of an arm."""
    from pixelkiln.trainer.training.loop import train

    run = f"{name} {seed}".replace(" + ", "+").replace(",", "").replace(" ", "-")
    flags = {**ARMS[name], "run.name": run, "run.seed": seed, "sample.prompts": [], "validation.max_batches": 1}
    config = configuration(args.out, flags | ({"run.steps": args.steps} if args.steps else {}))
    file = args.out / run / f"{run}.safetensors"
    if not file.exists() and train(config):
        raise SystemExit(f"bench: the arm {name} did not end")
    return file


def measured(name: str, folder: Path, file: Path | None, base: dict[str, Any] | None = None) -> dict[str, Any]:
    """What an adapter file (or the base alone) does to held-out pairs and prompts."""
    known = folder / "measured.json"
    if known.exists():
        return json.loads(known.read_text("utf-8"))
    from pixelkiln.trainer.diffusion import sampling
    from pixelkiln.trainer.training.build import build_session, scan

    captions = [item.caption for item in scan(configuration(folder.parent, {}))[1].held]
    asked = {"sample.prompts": captions, "sample.steps": 12, "loss.pixel.probability": 1.0}
    config = configuration(folder.parent, asked)
    start = {"adapter.init_from": str(file)} if file else {}
    session = build_session(config.changed(start), lambda line: print(line, file=sys.stderr))
    session.dataset.prepare()
    session.model.adapter.train(False)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for index, prompt in enumerate(session.previews.prompts):
        path = sampling.picture_path(folder, 0, index)
        if not path.exists():
            sampling.save_picture(session.previews.picture(prompt), path, prompt, {"adapter": name})
        drawn.append(path)
    errors = held_out(session)
    row = {"arm": name, "errors": errors, "pictures": [str(p) for p in drawn], "minutes": minutes(folder)}
    row["accuracy"] = {term: interval(in_order(errors[term], (base or row)["errors"][term])) for term in errors}
    row |= classified(drawn, captions)
    known.write_text(json.dumps(row), "utf-8")
    return row


@torch.no_grad()
def held_out(session: Any) -> dict[str, list[list[tuple[float, float]]]]:
    """Term -> for each held-out pair and level the errors of winner and loser."""
    from pixelkiln.trainer.diffusion.timesteps import fixed_draw
    from pixelkiln.trainer.training import step

    model, terms_ = session.model, session.terms.terms
    found: dict[str, list[list[tuple[float, float]]]] = {term.name: [] for term in terms_}
    for batch in session.dataset.validation_batches(1):
        for each in found.values():
            each.append([])
        for level in range(LEVELS):
            chance = fixed_draw(batch, level, LEVELS, 0, model.process, session.config.noise)
            terms = [term for term in terms_ if term.name == "mse" or level % APART == APART // 2]
            for term, errors in step.compute_errors(terms, step.forward(model, batch, chance)).items():
                found[term][-1].append((float(errors[0]), float(errors[1])))
    return found


def in_order(errors: list[list[tuple[float, float]]], base: list[list[tuple[float, float]]]) -> list[float]:
    """For each pair the share of levels at which the winner's error fell more than the loser's; ties count half."""
    change = np.array(errors) - np.array(base)
    margin = change[..., 1] - change[..., 0]
    return ((margin > 0) + 0.5 * (margin == 0)).mean(1).tolist()


def interval(each: list[float]) -> tuple[float, float, float]:
    """Mean, and the middle 95 % of the means of 4,000 resamples."""
    values = np.array(each)
    means = np.random.default_rng(0).choice(values, (4000, len(values))).mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(values.mean()), float(low), float(high)


def minutes(folder: Path) -> float | None:
    """Of the training steps alone."""
    log = folder / "events.jsonl"
    if not log.exists():
        return None
    events = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    return sum(event["seconds"] for event in events if event["kind"] == "step") / 60


# ------------------------------------------------------------------------------------------------------------ pictures


def classified(drawn: list[Path], captions: list[str]) -> dict[str, Any]:
    rows = [json.loads(line) for line in (PAIRS / "pairs.jsonl").read_text("utf-8").splitlines()]
    known = [(row["prompt"], style, PAIRS / row[style]) for row in rows for style in ("chosen", "rejected")]
    every, made = pixels([path for *_, path in known]), pixels(drawn)
    held = torch.tensor([prompt in captions for prompt, *_ in known])
    chosen = torch.tensor([float(style == "chosen") for _, style, _ in known])
    ask = classifier(every[~held], chosen[~held])
    right = float(((ask(every[held]) > 0.5) == (chosen[held] > 0.5)).float().mean())
    alike = (edges(made) @ edges(every).T).topk(ALIKE).indices.tolist()
    found = [prompt in [known[at][0] for at in best] for best, prompt in zip(alike, captions, strict=True)]
    return {
        "count": len(made),
        "style": int((ask(made) > 0.5).sum()),
        "classifier": right,
        "colour": float(colour(made) / colour(every[chosen == 0])),
        "subject": sum(found),
    }


def colour(pictures: torch.Tensor) -> torch.Tensor:
    return (pictures.amax(1) - pictures.amin(1)).mean()


def edges(pictures: torch.Tensor, cell: int = 4) -> torch.Tensor:
    """[N, cells]: how much brightness changes in each cell, without its mean and of length 1. Blind to fill."""
    grey = torch.nn.functional.pad(pictures.mean(1), (0, 1, 0, 1), mode="replicate")
    change = grey.diff(dim=1)[..., :-1].abs() + grey.diff(dim=2)[:, :-1].abs()
    each = torch.nn.functional.avg_pool2d(change[:, None], cell).flatten(1).sqrt()
    return torch.nn.functional.normalize(each - each.mean(1, keepdim=True), dim=1)


def pixels(paths: list[Path]) -> torch.Tensor:
    """[N, 3, 64, 64] in [0, 1]."""
    made = []
    for path in paths:
        with Image.open(path) as picture:
            made.append(np.asarray(picture.convert("RGB").resize((SIDE, SIDE)), dtype=np.float32) / 255)
    return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2)


def classifier(pictures: torch.Tensor, labels: torch.Tensor, steps: int = 150):
    """A convolutional network of three layers, trained on flipped and shifted pictures -> probability of label 1."""
    torch.manual_seed(0)
    layers = [(3, 12), (12, 24), (24, 48)]
    stack = [
        part for i, o in layers for part in (torch.nn.Conv2d(i, o, 3, 2, 1), torch.nn.GroupNorm(4, o), torch.nn.SiLU())
    ]
    net = torch.nn.Sequential(*stack, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(48, 1))
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3, weight_decay=1e-2)
    with torch.enable_grad():
        for _ in range(steps):
            rows = torch.randint(len(pictures), (32,))
            shown = pictures[rows].roll(tuple(int(v) for v in torch.randint(-6, 7, (2,))), (2, 3))
            shown = shown.flip(3) if torch.rand(()) < 0.5 else shown
            loss = torch.nn.functional.binary_cross_entropy_with_logits(net(shown)[:, 0], labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return lambda some: torch.sigmoid(net(some)[:, 0]).detach()


# ------------------------------------------------------------------------------------------------------------- telling


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| arm | minutes | accuracy, latent errors | accuracy, pixel errors | style | colour | subject |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        latent, pixel = ("{:.3f} ({:.3f} to {:.3f})".format(*row["accuracy"][term]) for term in ("mse", "pixel"))
        style, subject = (f"{row[key]} of {row['count']}" for key in ("style", "subject"))
        took = "" if row["minutes"] is None else f"{row['minutes']:.1f}"
        lines.append(f"| {row['arm']} | {took} | {latent} | {pixel} | {style} | {row['colour']:.0%} | {subject} |")
    right = ", ".join(sorted({f"{row['classifier']:.3f}" for row in rows}))
    return "\n".join([*lines, "", f"The classifier is right about {right} of the held-out pictures themselves."])


def sheet(rows: list[dict[str, Any]], path: Path, columns: int = 8, cell: int = 96, margin: int = 190) -> None:
    """A line of pictures for each row: every n-th of the held-out prompts."""
    page = Image.new("RGB", (margin + columns * cell, len(rows) * cell), "white")
    pen = ImageDraw.Draw(page)
    for y, row in enumerate(rows):
        pen.text((6, y * cell + cell // 2 - 6), row["arm"], fill="black")
        apart = math.ceil(len(row["pictures"]) / columns)
        for x, file in enumerate(row["pictures"][::apart]):
            with Image.open(file) as picture:
                page.paste(picture.convert("RGB").resize((cell, cell)), (margin + x * cell, y * cell))
    page.save(path, optimize=True)


if __name__ == "__main__":
    main()
