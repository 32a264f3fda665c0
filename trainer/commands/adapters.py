"""``keys``, ``inspect``, ``convert`` and ``merge``: commands for adapter files."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import UserError, escaped
from ..runs.control import DONE, USER_ERROR
from .common import Command, print_json, print_lines


def register(command: Command) -> None:
    keys = command("keys", _keys, "Print `name [shape]` of the file that a run would write, without any weights.")
    keys.add_argument("--family", required=True)
    keys.add_argument("--rank", type=int, default=16)
    keys.add_argument("--conv-rank", type=int)
    keys.add_argument("--text-encoders", default="", help="clip_l,clip_g,t5")
    keys.add_argument("--json", action="store_true")
    inspect = command("inspect", _inspect, "Say what an adapter file is.")
    inspect.add_argument("file", type=Path)
    inspect.add_argument("--json", action="store_true")
    inspect.add_argument(
        "--verify", action="store_true", help="compare with the family's network and diffusers' loader"
    )
    inspect.add_argument("--family", help="for a file that does not tell it")
    convert = command("convert", _convert, "Write an adapter in another form or at another rank.")
    convert.add_argument("source", type=Path)
    convert.add_argument("target", type=Path)
    convert.add_argument("--to", choices=["kohya", "diffusers", "peft"], default="kohya")
    convert.add_argument("--rank", type=int, help="resize by singular values")
    convert.add_argument("--family", help="for a file that does not tell it, such as one of text encoders only")
    convert.add_argument("--force", action="store_true", help="replace what is there already")
    convert.add_argument("--json", action="store_true")
    merge = command("merge", _merge, "Join several adapters into one: merge OUT A.safetensors B.safetensors=0.5")
    merge.add_argument("target", type=Path)
    merge.add_argument("sources", nargs="+", help="FILE or FILE=WEIGHT")
    merge.add_argument("--rank", type=int)
    merge.add_argument("--family", help="for files that do not tell it")
    merge.add_argument("--force", action="store_true", help="replace what is there already")
    merge.add_argument("--json", action="store_true")


def _check_ranks(**ranks: int | None) -> None:
    for name, rank in ranks.items():
        if rank is not None and rank < 1:
            raise UserError(f"--{name.replace('_', '-')}: {rank} is no rank; give 1 or more")


def _check_adapter_target(target: Path, sources: Sequence[Path], folder: bool, force: bool, usage: str) -> None:
    """UserError where the target is no name for an adapter, or would replace what it must not."""
    from ..runs.files import check_target

    if not folder and target.suffix.lower() != ".safetensors":
        raise UserError(f"{target}: an adapter is written as .safetensors; give a name that ends so: {usage}")
    check_target(target, *sources, force=force, folder=folder)


def _keys(args: argparse.Namespace) -> int:
    from ..adapters.keys import file_keys
    from ..adapters.mappings.mapping import key_mapping
    from ..adapters.names import encoder
    from ..families.load import meta

    _check_ranks(rank=args.rank, conv_rank=args.conv_rank)
    denoiser, encoders = meta(args.family)
    if args.conv_rank and key_mapping(args.family).network == "mmdit":
        raise UserError(f"--conv-rank: {args.family} has no such convolutions; leave it out")
    wanted = {encoder(args.family, name) for name in filter(None, args.text_encoders.split(","))}
    modules = {"unet": denoiser, **{name: module for name, module in encoders.items() if name in wanted}}
    found = file_keys(args.family, modules, args.rank, args.conv_rank)
    if args.json:
        return print_json({"keys": [[name, list(shape)] for name, shape in found]})
    return print_lines([f"{name} {list(shape)}" for name, shape in found])


def _network(family: str) -> dict[str, Any]:
    """The modules of a family's public model that an adapter may be for, without weights."""
    from ..families.load import meta

    denoiser, encoders = meta(family)
    return {"unet": denoiser, **encoders}


def _names(family: str) -> dict[str, tuple[int, ...]]:
    from ..adapters.names import network_names

    return network_names(family, _network(family))


def _inspect(args: argparse.Namespace) -> int:
    from ..adapters.convert import inspect
    from ..config import ConfigError, renamed

    facts = inspect(args.file)
    if isinstance(facts.get("config"), dict):
        with suppress(ConfigError):  # a file of somebody who wrote an option under two names
            facts["config"] = renamed(facts["config"])
    if args.verify:
        from ..adapters.verify import verify_file

        found = verify_file(args.file, _network, args.family)
        facts["verified"], facts["problems"] = found.lines, found.problems
    code = USER_ERROR if facts.get("problems") else DONE
    if args.json:
        print_json(facts)
        return code
    strange = facts["does_not_belong"]
    if len(strange) > 10:  # a whole model, perhaps
        facts["does_not_belong"] = f"{', '.join(strange[:10])} and {len(strange) - 10} more"
    lines = []
    for name, value in facts.items():
        if isinstance(value, dict) and any(isinstance(one, dict) for one in value.values()):  # a configuration
            lines += [name, *(f"    {line}" for line in _flat(value))]
        elif value not in (None, [], {}, ""):
            lines.append(f"{name:16} {value}")
    print_lines(lines)
    return code


def _flat(table: dict[str, Any], above: str = "") -> list[str]:
    """The values of nested tables, one per line: ``adapter.rank = 8``. What is not set is left out."""
    lines = []
    for name, value in table.items():
        if isinstance(value, dict) and value:
            lines += _flat(value, f"{above}{name}.")
        elif value is not None:
            lines.append(f"{above}{name} = {json.dumps(value, ensure_ascii=False, default=str)}")
    return lines


def _convert(args: argparse.Namespace) -> int:
    from ..adapters.convert import convert

    _check_ranks(rank=args.rank)
    _check_adapter_target(args.target, [args.source], args.to == "peft", args.force, "convert IN OUT")
    notes = convert(args.source, args.target, args.to, args.rank, args.family, _names)
    return _written(args, notes)


def _written(args: argparse.Namespace, notes: Sequence[str]) -> int:
    """Print what a conversion tells, and the file."""
    if args.json:
        return print_json({"path": str(args.target), "notes": list(notes)})
    return print_lines([*map(escaped, notes), str(args.target)])


def _merge(args: argparse.Namespace) -> int:
    from ..adapters.convert import merge

    _check_ranks(rank=args.rank)
    sources = []
    for word in args.sources:
        path, equals, weight = word.rpartition("=")
        try:
            sources.append((Path(path), float(weight)) if equals and not Path(word).exists() else (Path(word), 1.0))
        except ValueError:
            raise UserError(f"{word}: '{weight}' is no weight; write FILE=0.5") from None
        if not math.isfinite(sources[-1][1]):
            raise UserError(f"{word}: '{weight}' is no weight; write FILE=0.5")
    _check_adapter_target(args.target, [path for path, _ in sources], False, args.force, "merge OUT A B=0.5")
    notes = merge(sources, args.target, args.rank, args.family, _names)
    return _written(args, notes)
