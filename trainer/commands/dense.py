"""``dense check``, ``import``, ``predict``, ``score`` and ``export``: commands around dense prediction."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from ..runs.check_report import counted_noun
from ..runs.control import DONE, USER_ERROR
from .common import Command, print_json, print_lines, print_note

if TYPE_CHECKING:
    from ..dense.header import Task
    from .dense_predict import Loaded

TASKS: tuple[Task, ...] = ("depth", "normal", "image")


def register(command: Command) -> None:
    checked = command("dense-check", _check, "Look for what is wrong with pictures and their targets.")
    checked.add_argument("folder", type=Path, help="a folder with pictures/ and depth/, normal/ or image/")
    checked.add_argument("--task", choices=TASKS, help="without it: all of which there is a folder")
    add_targets(checked)
    checked.add_argument("--resolution", type=int, metavar="SIDE", help="as trained: the size at which cells count")
    checked.add_argument("--json", action="store_true")
    predicted = command("dense-predict", _predict, "Write the maps of pictures, with an adapter of a dense run.")
    predicted.add_argument("source", type=Path, help="a picture, or a folder of pictures or of a video's frames")
    predicted.add_argument("output", type=Path, help="a folder, or for one picture a .png, .npy or .exr file")
    add_adapter(predicted)
    predicted.add_argument("--formats", default="png,preview", help="of png (16 bits), npy, exr, preview (colours)")
    predicted.add_argument("--json", action="store_true")
    scored = command("dense-score", _score, "Compare the maps of an adapter with true ones.")
    scored.add_argument("folder", type=Path, help="a folder with pictures/ and depth/, normal/ or image/")
    add_adapter(scored)
    add_targets(scored)
    scored.add_argument("--csv", type=Path, metavar="FILE", help="write the figures of each picture")
    scored.add_argument("--picture", type=Path, metavar="FILE", help="write picture | prediction | truth of eight")
    scored.add_argument("--json", action="store_true")
    imported = command("dense-import", _import, "Convert Hypersim, Virtual KITTI 2, NYUv2 or Middlebury data.")
    imported.add_argument("source", type=Path)
    imported.add_argument("-o", "--output", type=Path, required=True)
    imported.add_argument("--json", action="store_true")
    exported = command("dense-export", _export, "Write base model and adapter as one model of another program.")
    exported.add_argument("output", type=Path, help="a .safetensors file")
    exported.add_argument("--adapter", type=Path, required=True, help="the file of a run with [dense] on SD 2.x")
    exported.add_argument("--model", help="the base model, where the adapter is not in its run's folder")
    exported.add_argument("--comfy-lotus", action="store_true", required=True, help="ComfyUI's own LotusD")
    exported.add_argument("--precision", choices=("fp32", "fp16", "bf16"), default="fp16", help="of the file")
    exported.add_argument("--force", action="store_true", help="replace what is there already")


def add_adapter(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--adapter", type=Path, required=True, help="the file of a run with [dense]")
    parser.add_argument("--model", help="the base model, where the adapter is not in its run's folder")
    parser.add_argument("--precision", choices=("auto", "fp32", "fp16", "bf16"), default="auto")
    parser.add_argument("--tiles", action="store_true", help="in tiles of the trained size: detail of large pictures")


def add_targets(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="instead of FOLDER/pictures")
    parser.add_argument("--targets", type=Path, metavar="FOLDER", help="instead of FOLDER/depth, normal or image")
    parser.add_argument("--unit", type=float, help="metres a step of depth files: 0.001 for millimetres")
    parser.add_argument("--valid", type=float, nargs=2, metavar=("LEAST", "LARGEST"), help="depth outside is invalid")


def folders(args: argparse.Namespace) -> tuple[Path, dict[Task, Path]]:
    """The folder of pictures and those of targets by task, as ``add_targets`` let them be given.

    :raises UserError: folders that are missing.
    """
    if not args.folder.is_dir():
        raise UserError(f"{args.folder}: there is no such folder; give the folder of the pictures")
    if args.valid and not 0 <= args.valid[0] < args.valid[1]:
        raise UserError(
            f"--valid: {args.valid[0]:g} {args.valid[1]:g} is no range; give the least and the largest depth"
        )
    if args.unit is not None and args.unit <= 0:
        raise UserError(f"--unit: {args.unit:g} is no size of a step; give 0.001 for millimetres")
    if args.targets and not args.task:
        raise UserError("--targets: which task they are for is not given; add --task depth, normal or image")
    inside = args.folder / "pictures"
    pictures = args.pictures or (inside if inside.is_dir() else args.folder)
    tasks: list[Task] = [args.task] if args.task else [task for task in TASKS if (args.folder / task).is_dir()]
    if not tasks:
        raise UserError(f"{args.folder}: it holds no folder depth, normal or image; give --task and --targets")
    return pictures, {task: args.targets or args.folder / task for task in tasks}


def _load(args: argparse.Namespace) -> Loaded:
    from .dense_predict import load_adapter

    return load_adapter(args.adapter, args.model, print_note, {"run.precision": args.precision})


def _predict(args: argparse.Namespace) -> int:
    from .dense_predict import BRIGHT, FORMATS, header, predict

    formats = [word.strip() for word in args.formats.split(",")]
    if wrong := [word for word in formats if word not in FORMATS]:
        raise UserError(f"--formats: {wrong[0]!r} is none; give some of {', '.join(FORMATS)}")
    found = header(args.adapter)
    written = predict(args.source, args.output, lambda: _load(args), formats, args.tiles)
    if args.json:
        return print_json(
            {"maps": written, "task": found.task, "space": found.space if found.task == "depth" else None}
        )
    note = f" ({BRIGHT[found.space]})" if found.task == "depth" else ""
    return print_lines([*map(str, written), f"{counted_noun(len(written), 'file')} of {found.task}{note}"])


def _score(args: argparse.Namespace) -> int:
    from ..dense.files import write
    from .dense_predict import header, score, sheet

    args.task = header(args.adapter).task
    pictures, targets = folders(args)
    found = score(_load(args), pictures, targets[args.task], args.unit, args.valid, 8 * bool(args.picture), args.tiles)
    if args.csv:
        found.write_csv(args.csv)
    if args.picture:
        write(args.picture.with_suffix(".png"), sheet(found.shown, min(2, len(found.shown))))
    if args.json:
        answer = {"task": found.task, "scores": found.summary(), "pictures": found.rows}
        return print_json(answer | {"without_target": found.without_target})
    return print_lines(found.lines())


def _export(args: argparse.Namespace) -> int:
    from .dense_export import export_lotus

    export_lotus(args.adapter, args.output, args.model, args.precision, print_note, args.force)
    return print_lines([f"{args.output}: for ComfyUI's models/diffusion_models and its Lotus Depth blueprint"])


def _check(args: argparse.Namespace) -> int:
    from ..dense.check import check_folder
    from ..runs.check_report import aligned

    if args.resolution is not None and args.resolution < 64:
        raise UserError(f"--resolution: {args.resolution} is no side of a picture; give that of the run, such as 512")
    pictures, targets = folders(args)
    found = [
        check_folder(pictures, folder, task, args.unit, args.valid, args.resolution) for task, folder in targets.items()
    ]
    sound = all(one.sound for one in found)
    if args.json:
        return print_json({"sound": sound, "tasks": [one.as_json() for one in found]})
    for one in found:
        print("\n".join(aligned(one.rows())))
    if sound:
        print("nothing is wrong")
    return DONE if sound else USER_ERROR


def _import(args: argparse.Namespace) -> int:
    from ..dense.imports import convert

    found = convert(args.source, args.output)
    options = found.options(args.output)
    if args.json:
        answer = {"layout": found.layout, "count": found.count, "tasks": sorted(found.tasks), "rejects": found.rejects}
        return print_json({**answer, "options": options})
    maps = " and ".join(sorted(found.tasks))
    head = f"{found.count} pictures with {maps} from {found.layout} into {args.output}"
    return print_lines([head, *(f"left out: {one}" for one in found.rejects), "", *options])
