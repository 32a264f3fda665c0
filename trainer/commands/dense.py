"""``dense check``, ``import``, ``predict``, ``score`` and ``export``: commands around dense prediction."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from ..runs.control import DONE, USER_ERROR
from .common import Command, print_json, print_lines

if TYPE_CHECKING:
    from ..dense.targets import Task

TASKS: tuple[Task, ...] = ("depth", "normal", "image")


def register(command: Command) -> None:
    checked = command("dense-check", _check, "Look for what is wrong with pictures and their targets.")
    checked.add_argument("folder", type=Path, help="a folder with pictures/ and depth/, normal/ or image/")
    add_targets(checked)
    checked.add_argument("--json", action="store_true")
    imported = command("dense-import", _import, "Convert Hypersim, Virtual KITTI 2, NYUv2 or Middlebury data.")
    imported.add_argument("source", type=Path)
    imported.add_argument("-o", "--output", type=Path, required=True)
    imported.add_argument("--json", action="store_true")


def add_targets(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--task", choices=TASKS, help="without it: all of which there is a folder")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="instead of FOLDER/pictures")
    parser.add_argument("--targets", type=Path, metavar="FOLDER", help="instead of FOLDER/depth, normal or image")
    parser.add_argument("--unit", type=float, help="metres a step of depth files: 0.001 for millimetres")
    parser.add_argument("--valid", type=float, nargs=2, metavar=("LEAST", "LARGEST"), help="depth outside is invalid")


def folders(args: argparse.Namespace) -> tuple[Path, dict[Task, Path]]:
    """The folder of pictures and those of targets by task, as ``add_targets`` let them be given.

    :raises UserError: folders that are missing.
    """
    if not args.folder.is_dir():
        raise UserError(f"{args.folder}: there is no such folder")
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
    tasks = [args.task] if args.task else [task for task in TASKS if (args.folder / task).is_dir()]
    if not tasks:
        raise UserError(f"{args.folder}: it holds no folder depth, normal or image; give --task and --targets")
    return pictures, {task: args.targets or args.folder / task for task in tasks}


def _check(args: argparse.Namespace) -> int:
    from ..dense.check import check_folder
    from ..runs.check_report import aligned

    pictures, targets = folders(args)
    found = [check_folder(pictures, folder, task, args.unit, args.valid) for task, folder in targets.items()]
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
