"""The TOML that LoRA_Easy_Training_Scripts saves: sections with ``args`` and ``dataset_args``, whose leaves are
sd-scripts' arguments, and ``[[subsets]]``. Read as its backend turns it into arguments (162e56de, 2025-04-21).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError
from .read import Values

OWN = {
    "easy_name",
    "tag_occurrence",
    "tag_file_location",
    "save_toml",
    "save_toml_location",
    "sdxl",
    "fa",
    "warmup_ratio",
}
"""Names of its own among the arguments."""
LISTS = ("network_args", "optimizer_args", "lr_scheduler_args")


def read_easy(values: Values, raw: Mapping[str, Any], path: Path) -> None:
    """Take a saved file."""
    mode = raw.get("train_mode", {})
    tool = f"{path}: this is a file of LoRA_Easy_Training_Scripts"
    if isinstance(mode, Mapping) and mode.get("train_mode", "lora") != "lora":
        raise UserError(f"{tool} that trains an embedding, which is not here; give one of a LoRA")
    if raw.get("flux_args"):
        raise UserError(f"{tool} that trains FLUX, which is not here; there is SD 1.x, 2.x, SDXL and SD3")
    args: dict[str, Any] = {}
    general: dict[str, Any] = {}
    for section in raw.values():
        if isinstance(section, Mapping):
            args |= _filled(section.get("args"))
            general |= _filled(section.get("dataset_args"))
    values.family = "sdxl" if args.get("sdxl") else "sd2" if args.get("v2") else "sd15"
    tables = {name: args[name] for name in LISTS if isinstance(args.get(name), Mapping)}
    args |= {name: [f"{key}={_word(one)}" for key, one in table.items() if one != ""] for name, table in tables.items()}
    if algo := str(tables.get("network_args", {}).get("algo") or "").split():  # "locon (lycoris)"
        args["network_args"] = [one for one in args["network_args"] if not one.startswith("algo=")]
        args["network_args"].append(f"algo={algo[0]}")
    if args.get("fa"):
        args["network_module"] = "networks.lora_fa"
    elif "algo" in tables.get("network_args", {}):
        args["network_module"] = "lycoris.kohya"
    elif "unit" in tables.get("network_args", {}):
        args["network_module"] = "networks.dylora"
    if ratio := args.get("warmup_ratio"):
        args["lr_warmup_steps"] = ratio
    name = args.get("easy_name", "")
    for argument, value in args.items():
        if argument not in OWN:
            value = value.replace("${replace}", str(name)) if isinstance(value, str) else value
            values.set(argument, value, path.name)
    rows = raw.get("subsets")
    subsets = [_filled(one) for one in (rows if isinstance(rows, list) else []) if isinstance(one, Mapping)]
    for one in subsets:
        one.pop("name", None)
    if subsets:
        general = {key: value for key, value in general.items() if key != "max_token_length"}
        values.datasets = (path, "", {"general": general, "datasets": [{"subsets": subsets}]})
    else:
        for key, value in general.items():
            values.set({"batch_size": "train_batch_size"}.get(key, key), value, path.name)


def _filled(table: Any) -> dict[str, Any]:
    """What is given; the tool passes over what is empty, zero or false, also in quotes."""
    if not isinstance(table, Mapping):
        return {}
    words = {"true": True, "false": False}
    found = {key: words.get(value.lower(), value) if isinstance(value, str) else value for key, value in table.items()}
    return {key: value for key, value in found.items() if value}


def _word(value: Any) -> str:
    """One value of a list of name=value."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return value.capitalize() if value in ("true", "false") else str(value)
