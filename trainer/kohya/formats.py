"""Which tool wrote a configuration, and the reader for it.

A file is recognised by what must be in it. What is of another tool and not read here is named as what it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import BACKSLASH, loads
from ..errors import UserError
from .aitoolkit import read_aitoolkit
from .easy import read_easy
from .gui import NETWORK, TABS, known_names, read_gui
from .names import GUI, IGNORED, arguments, near
from .onetrainer import read_onetrainer
from .read import Values, flatten, parsed_json, read_text

GIVE = "give a .toml of sd-scripts, or a .json that the LoRA tab of kohya_ss saved"
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif")


def read_configuration(values: Values, path: Path) -> None:
    """Take a configuration of sd-scripts, the GUI of kohya_ss, LoRA_Easy_Training_Scripts, OneTrainer or ai-toolkit.

    :raises UserError: it cannot be read, or is something else, which is named.
    """
    text = read_text(path)
    raw = parsed(path, text)
    if what := foreign(raw):
        raise UserError(f"{path}: {what}")
    if not isinstance(raw, Mapping):
        raise UserError(f"{path}: it holds no settings; {GIVE}")
    if is_aitoolkit(raw):
        read_aitoolkit(values, raw, path)
    elif is_onetrainer(raw):
        read_onetrainer(values, raw, path)
    elif is_easy(raw):
        read_easy(values, raw, path)
    elif path.suffix.lower() in (".json", ".yaml", ".yml"):
        _gui(values, raw, path, text)
    else:
        _refuse_empty(raw, path)
        flatten(values, raw, path, text)


def parsed(path: Path, text: str) -> Any:
    """The content of a JSON, YAML or TOML file by its ending. UserError where it is not of that form."""
    suffix = path.suffix.lower()
    if suffix == ".json":
        return parsed_json(path, text)
    if suffix in (".yaml", ".yml"):
        return _yaml(path, text)
    try:
        return loads(text)
    except UserError as error:
        if suffix in (".env", ".sh", ".bat", ".ps1"):
            raise UserError(f"{path}: this is a script or a list of variables; paste the line that it runs") from None
        if suffix in (".jsonl", ".csv", ".ckpt", ".safetensors", ".py"):
            raise UserError(f"{path}: this is no configuration; {GIVE}") from None
        raise UserError(f"{path}: {error}") from None


def _yaml(path: Path, text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        why = getattr(error, "problem", None) or str(error).splitlines()[0]
        remedy = BACKSLASH if "escape" in why else "fix that line"
        raise UserError(
            f"{path}: this is not YAML: {why}{f' (line {mark.line + 1})' if mark else ''}; {remedy}"
        ) from None


# ---------------------------------------------------------------------------------------------------- recognition


def _refuse_empty(raw: Mapping[str, Any], path: Path) -> None:
    """:raises UserError: a TOML that holds something, but nothing that is, or looks like, an argument of sd-scripts."""
    names = {str(name) for name in (*raw, *(name for one in raw.values() if isinstance(one, Mapping) for name in one))}
    known = {*arguments(), *IGNORED, *GUI}
    if raw and not names & known and ("datasets" in raw or not any(near(name, arguments()) for name in names)):
        what = "this describes a data set; give it as --dataset_config" if "datasets" in raw else (
            f"it holds no argument of sd-scripts; {GIVE}")  # fmt: skip
        raise UserError(f"{path}: {what}")


def is_easy(raw: Mapping[str, Any]) -> bool:
    """LoRA_Easy_Training_Scripts: each section holds ``args`` or ``dataset_args``."""
    sections = [one for one in raw.values() if isinstance(one, Mapping) and {"args", "dataset_args"} & set(one)]
    return any(isinstance(one.get(name), Mapping) for one in sections for name in ("args", "dataset_args"))


def is_onetrainer(raw: Mapping[str, Any]) -> bool:
    return (isinstance(raw.get("training_method"), str) and "model_type" in raw) or (
        "base_model_name" in raw and "output_model_destination" in raw
    )


def is_aitoolkit(raw: Mapping[str, Any]) -> bool:
    config = raw.get("config")
    return isinstance(config, Mapping) and isinstance(config.get("process"), list)


def foreign(raw: Any) -> str:
    """What a file is that is no configuration to be read here, and what to do; empty for others."""
    rows = [one for one in raw if isinstance(one, Mapping)] if isinstance(raw, list) else []
    if rows and any("dataset_type" in one or "instance_data_dir" in one or "cache_dir_vae" in one for one in rows):
        return "this is SimpleTuner's data backend; name its folders in a --dataset_config or in [[data.sets]]"
    if rows and all("path" in one and "text" in one for one in rows):
        return "these are OneTrainer's concepts; give the configuration that names them"
    if rows and all("prompt" in one for one in rows):
        return "these are prompts, such as OneTrainer's samples; give them as --sample_prompts, beside a configuration"
    if not isinstance(raw, Mapping):
        return ""
    names = {str(name).lstrip("-") for name in raw}
    dashed = any(str(name).startswith("--") for name in raw)
    if dashed or names & {"model_family", "data_backend_config"} or (
        "model_type" in names and names & {"lora_type", "lora_rank"} and not is_onetrainer(raw)
    ):  # fmt: skip
        return "this is SimpleTuner's configuration, which is not read here; write its settings into a file of your own"
    if {"algo", "linear_dim"} <= names:
        return "this is SimpleTuner's configuration of a LyCORIS network, which is not read here"
    if {"nodes", "links"} <= names or (
        all(isinstance(one, Mapping) and "class_type" in one for one in raw.values()) and raw
    ):
        return f"this is a workflow of ComfyUI; {GIVE}"
    if raw and sum(_of_picture(name, one) for name, one in raw.items()) * 2 > len(raw):
        return "these are captions; give them as --in_json, beside a configuration"
    if "peft_type" in names and names & {"r", "target_modules", "base_model_name_or_path"}:
        return "this is PEFT's configuration of a finished adapter; give the configuration that it was made by"
    if "_class_name" in names:
        return "this describes a model of diffusers; give its folder as --pretrained_model_name_or_path"
    sets = raw.get("datasets")
    if isinstance(sets, list) and any(
        isinstance(one, Mapping) and {"image_directory", "video_directory", "image_jsonl_file"} & set(one)
        for one in sets
    ):
        return "this is musubi-tuner's data set; name its folders as image_dir in [[datasets.subsets]]"
    if any(name.startswith("ss_") for name in names):
        return "this is the metadata of a finished adapter; give the configuration that it was made by"
    if isinstance(raw.get("directory"), list) or ("dataset" in names and isinstance(raw.get("adapter"), Mapping)):
        return f"this is a file of diffusion-pipe, which is not read here; {GIVE}"
    model = raw.get("model")
    if "config_version" in names or (isinstance(model, Mapping) and "path" in model):
        return "this is a configuration of Pixelkiln already; train it as it is"
    return ""


def _of_picture(name: Any, value: Any) -> bool:
    """Whether an entry is a picture with its caption or tags."""
    if isinstance(value, Mapping):
        return bool({"caption", "tags", "train_resolution"} & set(value))
    return isinstance(value, str) and str(name).lower().endswith(PICTURES)


def _gui(values: Values, raw: Mapping[str, Any], path: Path, text: str) -> None:
    """A file of the GUI, if it is one of the LoRA tab."""
    if "datasets" in raw:
        raise UserError(f"{path}: this describes a data set; give it as --dataset_config")
    for tab, names, what in TABS:
        if len(names & set(raw)) >= (1 if tab == "LECO" else 2):
            raise UserError(_tab(path, tab, what))
    ours = known_names() & set(raw)
    if "LoRA_type" in raw or len(NETWORK & set(raw)) >= 2 or (NETWORK & set(raw) and len(ours) >= 5):
        read_gui(values, raw, path, text)
    elif len(ours) >= 5:
        raise UserError(_tab(path, "DreamBooth", "trains the whole model"))
    else:
        some = ", ".join(map(str, list(raw)[:3]))
        what = f"{some} ... are" if some else "there are"
        raise UserError(f"{path}: {what} no settings of a training that is known here; {GIVE}")


def _tab(path: Path, tab: str, what: str) -> str:
    return (
        f"{path}: this is of the GUI's {tab} tab, which {what}; give a file of its LoRA tab, as here LoRAs are trained"
    )


def is_configuration(raw: Mapping[str, Any]) -> bool:
    """Whether a file that is given as a data set holds the arguments of a training instead."""
    flat = set(raw) | {name for one in raw.values() if isinstance(one, Mapping) for name in one}
    run = set(arguments()) - {"resolution", "enable_bucket", "keep_tokens", "shuffle_caption", "flip_aug", "color_aug"}
    return (len(flat & run) > 1 and "datasets" not in raw) or len(flat & _RUN) > 0


_RUN = {"pretrained_model_name_or_path", "output_dir", "network_dim", "network_module", "learning_rate", "unet_lr",
        "optimizer_type", "max_train_steps", "max_train_epochs"}  # fmt: skip
