"""Commands beside training: ``keys inspect convert merge`` for adapter files, ``pairs ...`` for preferences."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import UserError

if TYPE_CHECKING:
    from ..diffusion.sampling import Prompt

DONE = 0


class Command(Protocol):
    def __call__(self, name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser: ...


def register(command: Command, configured: Command) -> None:
    """Add the commands to the parser of the command line."""
    keys = command("keys", _keys, "Print `name [shape]` of the file that a run would write, without any weights.")
    keys.add_argument("--family", required=True)
    keys.add_argument("--rank", type=int, default=16)
    keys.add_argument("--conv-rank", type=int)
    keys.add_argument("--text-encoders", default="", help="clip_l,clip_g,t5")
    keys.add_argument("--json", action="store_true")
    inspect = command("inspect", _inspect, "Say what an adapter file is.")
    inspect.add_argument("file", type=Path)
    inspect.add_argument("--json", action="store_true")
    convert = command("convert", _convert, "Write an adapter in another form or at another rank.")
    convert.add_argument("source", type=Path)
    convert.add_argument("target", type=Path)
    convert.add_argument("--to", choices=["kohya", "diffusers", "peft"], default="kohya")
    convert.add_argument("--rank", type=int, help="resize by singular values")
    convert.add_argument("--force", action="store_true", help="replace what is there already")
    merge = command("merge", _merge, "Join several adapters into one: merge OUT A.safetensors B.safetensors=0.5")
    merge.add_argument("target", type=Path)
    merge.add_argument("sources", nargs="+", help="FILE or FILE=WEIGHT")
    merge.add_argument("--rank", type=int)
    merge.add_argument("--force", action="store_true", help="replace what is there already")
    imported = command("pairs-import", _import, "Bring pairs of another tool into a folder of pairs.")
    imported.add_argument("source", type=Path)
    imported.add_argument("-o", "--output", type=Path, required=True)
    imported.add_argument("--prompt", help="for pairs that have none")
    imported.add_argument("--json", action="store_true")
    exported = command("pairs-export", _export, "Write a folder of pairs as pick-a-pic parquet.")
    exported.add_argument("folder", type=Path)
    exported.add_argument("target", type=Path)
    exported.add_argument("--force", action="store_true", help="replace what is there already")
    checked = command("pairs-check", _check, "Look for what is wrong with pairs and ratings.")
    checked.add_argument("folder", type=Path)
    checked.add_argument("--json", action="store_true")
    made = configured("pairs-generate", _generate, "Draw candidates to choose from; what is drawn already is kept.")
    made.add_argument("--adapter", dest="adapter_file", help="adapter file; without it the base model draws")
    made.add_argument("--prompts", type=Path, required=True, help="a prompt a line; # for comments")
    made.add_argument("-n", type=int, default=2, help="pictures a prompt")
    made.add_argument("-o", "--output", type=Path, required=True)

    kohya = command("import-kohya", _import_kohya, "Turn kohya's configuration into one of ours, with comments.")
    kohya.add_argument("file", type=Path, nargs="?", help="a .toml of sd-scripts; kohya's flags may follow")
    kohya.add_argument("-o", "--output", type=Path, help="the file to write; printed when not given")
    kohya.add_argument("--force", action="store_true", help="replace what is there already")
    kohya.add_argument("--json", action="store_true")


def joined(words: list[str]) -> list[str]:
    """``pairs import X`` is the command ``pairs-import X``; ``pairs`` alone asks what there is."""
    if words[:1] != ["pairs"]:
        return words
    name, *rest = words[1:] or ["--help"]
    return ["--help"] if name.startswith("-") else [f"pairs-{name}", *rest]


KOHYA = ("train", "check", "sample", "draw", "pairs-generate")
"""Commands that take kohya's command line in place of a configuration of ours."""
KOHYA_BEGINS = {"--config_file", "--dataset_config", "--pretrained_model_name_or_path", "--train_data_dir"}
"""Flags that say it is one."""


def kohya(words: list[str]) -> tuple[list[str], Any]:
    """A command line without its kohya flags, and these, where it speaks kohya's language."""
    if not words or words[0] not in (*KOHYA, "import-kohya"):
        return words, None
    if words[0] != "import-kohya" and not any(word.partition("=")[0] in KOHYA_BEGINS for word in words):
        return words, None
    from ..kohya.entrance import take

    given, left = take(words[1:])
    return [words[0], *left], given


def from_kohya(args: argparse.Namespace) -> Any:
    """The configuration of a kohya command line; what is to be said of it goes to standard error."""
    from ..kohya.entrance import load

    other = args.config or args.preset
    if other:
        raise UserError(f"{other}: kohya's flags are given too; give one of them, or import-kohya first")
    config, notes = load(args.kohya)
    print("".join(f"note: {note}\n" for note in notes), end="", file=sys.stderr)
    return config


def _import_kohya(args: argparse.Namespace) -> int:
    from ..kohya.entrance import imported, sources
    from ..runs.files import check_target, write_atomic

    toml, notes = imported(args.kohya, args.file)
    if args.output:
        check_target(args.output, *sources(args.kohya, args.file), force=args.force, name="--output")
        write_atomic(args.output, toml)
    if args.json:
        return _json({"toml": toml, "notes": notes})
    return _say([str(args.output), *(f"note: {note}" for note in notes)] if args.output else [toml])


def _say(notes: list[str]) -> int:
    print("\n".join(notes))
    return DONE


def _json(answer: dict[str, Any]) -> int:
    print(json.dumps({"v": 1, **answer}, ensure_ascii=False, default=str))
    return DONE


def _sound(**ranks: int | None) -> None:
    for name, rank in ranks.items():
        if rank is not None and rank < 1:
            raise UserError(f"--{name.replace('_', '-')}: {rank} is no rank; give 1 or more")


def _free(target: Path, sources: Sequence[Path], folder: bool, force: bool, usage: str) -> None:
    """UserError where the target is no name for an adapter, or would replace what it must not."""
    from ..runs.files import check_target

    if not folder and target.suffix.lower() != ".safetensors":
        raise UserError(f"{target}: an adapter is written as .safetensors; give a name that ends so: {usage}")
    check_target(target, *sources, force=force)


def _keys(args: argparse.Namespace) -> int:
    from ..adapters.keys import file_keys
    from ..adapters.mappings.mapping import key_mapping
    from ..adapters.names import encoder
    from ..families.load import meta

    _sound(rank=args.rank, conv_rank=args.conv_rank)
    denoiser, encoders = meta(args.family)
    if args.conv_rank and key_mapping(args.family).network == "mmdit":
        raise UserError(f"--conv-rank: {args.family} has no such convolutions; leave it out")
    wanted = {encoder(args.family, name) for name in filter(None, args.text_encoders.split(","))}
    modules = {"unet": denoiser, **{name: module for name, module in encoders.items() if name in wanted}}
    found = file_keys(args.family, modules, args.rank, args.conv_rank)
    if args.json:
        return _json({"keys": [[name, list(shape)] for name, shape in found]})
    return _say([f"{name} {list(shape)}" for name, shape in found])


def _inspect(args: argparse.Namespace) -> int:
    from ..adapters.convert import inspect

    facts = inspect(args.file)
    if args.json:
        return _json(facts)
    strange = facts["does_not_belong"]
    if len(strange) > 10:  # a whole model, perhaps
        facts["does_not_belong"] = f"{', '.join(strange[:10])} and {len(strange) - 10} more"
    return _say([f"{name:16} {value}" for name, value in facts.items() if value not in (None, [], {}, "")])


def _convert(args: argparse.Namespace) -> int:
    from ..adapters.convert import convert

    _sound(rank=args.rank)
    _free(args.target, [args.source], args.to == "peft", args.force, "convert IN OUT")
    return _say([*convert(args.source, args.target, args.to, args.rank), str(args.target)])


def _merge(args: argparse.Namespace) -> int:
    from ..adapters.convert import merge

    _sound(rank=args.rank)
    sources = []
    for word in args.sources:
        path, equals, weight = word.rpartition("=")
        try:
            sources.append((Path(path), float(weight)) if equals and not Path(word).exists() else (Path(word), 1.0))
        except ValueError:
            raise UserError(f"{word}: '{weight}' is no weight; write FILE=0.5") from None
        if not math.isfinite(sources[-1][1]):
            raise UserError(f"{word}: '{weight}' is no weight; write FILE=0.5")
    _free(args.target, [path for path, _ in sources], False, args.force, "merge OUT A B=0.5")
    return _say([*merge(sources, args.target, args.rank), str(args.target)])


def _import(args: argparse.Namespace) -> int:
    from ..data.pairs import import_pairs

    found = import_pairs(args.source, args.output, args.prompt)
    if args.json:
        return _json(found.as_json())
    return _say(
        [f"{found.pairs} pairs from {found.form} into {args.output}", *(f"left out: {r}" for r in found.rejects)]
    )


def _export(args: argparse.Namespace) -> int:
    from ..data.pairs import export_pairs
    from ..runs.files import check_target

    check_target(args.target, args.folder, force=args.force)
    return _say([f"{export_pairs(args.folder, args.target)} pairs in {args.target}"])


def _check(args: argparse.Namespace) -> int:
    from ..data.pairs_check import check_pairs

    found = check_pairs(args.folder)
    if args.json:
        return _json(found.as_json())
    print(f"{found.pairs} pairs, {found.ratings} ratings, {found.prompts} prompts")
    print("\n".join(found.lines() or ["nothing is wrong"]))
    return DONE if found.sound else 2


def _apart(prompts: Sequence[Prompt], n: int) -> list[Prompt]:
    """Each ``n`` candidates of a prompt with seeds of their own, also where the prompt names one."""
    first = [prompts[i - i % n].seed for i in range(len(prompts))]
    return [replace(p, seed=p.seed + i % n) if p.seed == first[i] else p for i, p in enumerate(prompts)]


def _generate(args: argparse.Namespace) -> int:
    """``NNNN_k.png`` for prompt N, and ``candidates.jsonl`` with prompt, seed and picture."""
    from ..config import load
    from ..diffusion.sampling import is_of, save_picture
    from ..runs.files import make_folder, write_atomic
    from ..training.build import build

    if args.n < 1:
        raise UserError(f"-n: {args.n} is no number of pictures; give 1 or more")
    try:
        lines = [line.strip() for line in args.prompts.read_text("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{args.prompts}: it cannot be read ({error}); give a UTF-8 text file") from None
    texts = [line for line in lines if line and not line.startswith("#")]
    if not texts:
        raise UserError(f"{args.prompts}: it holds no prompt; write one a line")
    flags = {**args.flags, "sample.prompts": [text for text in texts for _ in range(args.n)]}
    parts = build(
        load(args.config, flags, args.preset), lambda line: print(line, file=sys.stderr), args.adapter_file, data=False
    )
    parts.adapter.train(False)
    make_folder(args.output, "--output")
    facts = {"adapter": args.adapter_file or ""}
    plan = [
        (args.output / f"{i // args.n:04d}_{i % args.n}.png", prompt)
        for i, prompt in enumerate(_apart(parts.prompts, args.n))
    ]
    for path, prompt in plan:
        if path.exists() and not is_of(path, prompt, facts):
            raise UserError(f"{path}: it has another prompt, seed or adapter; give another folder")
    try:
        for path, prompt in plan:
            if not path.exists():
                save_picture(parts.picture(prompt), path, prompt, facts)
    finally:
        rows = [{"prompt": p.text, "seed": p.seed, "image": path.name} for path, p in plan if path.exists()]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_atomic(args.output / "candidates.jsonl", lines)
    return _say([f"{len(rows)} pictures of {len(texts)} prompts in {args.output}"])
