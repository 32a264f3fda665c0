"""The JSON that the GUI of kohya_ss saves: its own names, turned into arguments as the GUI turns them.

The GUI drops every 0, false and empty text, so that sd-scripts' defaults hold there.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import current_names
from ..errors import UserError
from .launcher import one_line
from .names import IGNORED, arguments, elsewhere, near, script_of
from .network import network_aliases, network_names
from .read import Values, Wrong, line_of, number, read_flags

RENAMED = {
    "optimizer": "optimizer_type", "max_resolution": "resolution", "lora_network_weights": "network_weights",
    "sdxl_no_half_vae": "no_half_vae", "sd3_clip_l": "clip_l", "sd3_t5xxl": "t5xxl",
    "sdxl_cache_text_encoder_outputs": "cache_text_encoder_outputs", "sd3_t5_dropout_rate": "t5_dropout_rate",
    "sd3_cache_text_encoder_outputs": "cache_text_encoder_outputs", "sd3_fused_backward_pass": "fused_backward_pass",
    "sd3_cache_text_encoder_outputs_to_disk": "cache_text_encoder_outputs_to_disk",
    "sd3_clip_l_dropout_rate": "clip_l_dropout_rate", "sd3_enable_scaled_pos_embed": "enable_scaled_pos_embed",
    "sd3_text_encoder_batch_size": "text_encoder_batch_size",
    "sd3_disable_mmap_load_safetensors": "disable_mmap_load_safetensors",
}  # fmt: skip
"""The GUI's name -> sd-scripts'."""
_OTHERS = """
LoRA_type LyCORIS_preset additional_parameters cache_latent caption_metadata_filename constrain conv_alphas conv_dims
dynamo_mode dynamo_use_dynamic dynamo_use_fullgraph enable_all_linear extra_accelerate_launch_args file_path full_path
gpu_ids in_dims latent_metadata_filename lora_type lowvram lr_warmup main_process_port model_list multi_gpu
network_train no_token_padding num_cpu_threads_per_process num_machines num_processes rank_dropout_scale save_as
save_as_bool sd3_checkbox sdxl stop_text_encoder_training_pct t5xxl_lr train_blocks train_lora_ggpo ggpo_beta
ggpo_sigma training_preset unit use_wandb flux1_checkbox hunyuan_image_checkbox anima_checkbox lumina_checkbox
"""
OTHERS = frozenset(_OTHERS.split())
"""What else the GUI saves (all tags to v26.0.0): its own affairs, or read below."""
NETWORK = {"network_dim", "network_alpha", "unet_lr", "text_encoder_lr"}
"""What only a training of a network has."""
TABS = (
    ("Textual Inversion", {"token_string", "init_word", "num_vectors_per_token", "weights", "template"},
     "trains an embedding"),
    ("LECO", {"leco_denoise_guidance_scale"}, "trains without pictures"),
    ("Fine-tuning", {"train_dir", "image_folder", "create_buckets", "create_caption", "sdxl_checkbox", "batch_size",
                     "train_text_encoder", "use_latent_files", "generate_caption_database"}, "trains the whole model"),
    ("DreamBooth", {"learning_rate_te", "learning_rate_te1", "learning_rate_te2", "fused_optimizer_groups",
                    "blockwise_fused_optimizers"}, "trains the whole model"),
)  # fmt: skip
"""The GUI's other tabs: name, what only they save, and what they do."""
WHOLE = 100
"""So many settings of the GUI are in no file but one that the GUI wrote."""
STRANGERS = {"flux1_checkbox": "FLUX", "hunyuan_image_checkbox": "HunyuanImage", "anima_checkbox": "Anima",
             "lumina_checkbox": "Lumina"}  # fmt: skip
KINDS = {"LyCORIS/LoCon": "locon", "LoCon": "locon", "LyCORIS/LoHa": "loha", "LyCORIS/LoKr": "lokr",
         "LyCORIS/iA3": "ia3", "LyCORIS/GLoRA": "glora", "LyCORIS/DyLoRA": "dylora", "LyCORIS/BOFT": "boft",
         "LyCORIS/Diag-OFT": "diag-oft", "LyCORIS/Native Fine-Tuning": "full"}  # fmt: skip
MODULES = {"Standard": "networks.lora", "Kohya LoCon": "networks.lora", "Kohya LoHa": "networks.loha",
           "Kohya LoKr": "networks.lokr", "LoRA-FA": "networks.lora_fa", "Kohya DyLoRA": "networks.dylora"}  # fmt: skip
ONLY = {"use_cp": {"lokr"}, "factor": {"lokr"}, "decompose_both": {"lokr"}, "use_tucker": {"locon", "loha", "boft",
        "diag-oft", "dylora", "glora"}}  # fmt: skip
"""Settings that the GUI passes on for some kinds alone."""
LYCORIS_ARGS = ("conv_dim", "conv_alpha", "rank_dropout", "module_dropout", "use_tucker", "use_cp", "use_scalar",
                "dora_wd", "train_norm", "factor", "decompose_both")  # fmt: skip


def known_names() -> set[str]:
    """Every setting of the GUI's LoRA tab that is known here."""
    return {*arguments(), *RENAMED, *network_names(), *OTHERS, *IGNORED}


def read_gui(values: Values, raw: Mapping[str, Any], path: Path, text: str) -> None:
    """Take a file of the GUI's LoRA tab."""
    for checkbox, value in raw.items():
        if checkbox.endswith("_checkbox") and checkbox != "sd3_checkbox" and value is True:
            what = STRANGERS.get(checkbox, checkbox.removesuffix("_checkbox"))
            raise UserError(f"{path}: it trains {what}, which is not here; there is SD 1.x, 2.x, SDXL and SD3")
    values.repairs = True
    values.family = "sdxl" if raw.get("sdxl") else "sd3-medium" if raw.get("sd3_checkbox") else (
        "sd2" if raw.get("v2") else "sd15")  # fmt: skip
    gui = Gui(values, raw, path.name)
    for name, value in raw.items():
        gui.take(name, value)
    gui.set(
        "sdpa" if raw.get("xformers") == "sdpa" else "xformers", raw.get("xformers") not in ("", "none", None, False)
    )
    gui.network()
    gui.rates()
    gui.schedule()
    _unknown(values, raw, path, text)
    flags = values.own()
    dotted, left = read_flags(flags, one_line(_words(raw.get("additional_parameters")), flags), ())
    values.over(flags)
    values.options |= current_names(dotted)
    if left:
        values.notes.append(f"additional_parameters: {' '.join(left)} is left out")


def _words(text: Any) -> list[str]:
    """The words of a field of the GUI: quotes hold words together, backslashes are those of Windows' paths."""
    text = " ".join(map(str, text)) if isinstance(text, list) else str(text or "")
    reader = shlex.shlex(text, posix=True)
    reader.whitespace_split, reader.commenters, reader.escape = True, "", ""
    try:
        return list(reader)
    except ValueError:  # an apostrophe
        return text.split()


def _unknown(values: Values, raw: Mapping[str, Any], path: Path, text: str) -> None:
    """Settings that are not known: a slip where the setting that it is like is missing, and else of another version.

    The GUI writes all of its settings, so a file with very many of them is its own, and holds no slips.
    """
    known, left = known_names(), []
    whole = len(known & set(raw)) >= WHOLE
    for name in sorted(set(raw) - known):
        if elsewhere(name) or raw[name] in ("", None, False, 0, "0", [], {}):
            continue
        if hint := "" if whole else near(name, known - set(raw)):
            values.problems.append((f"{path.name}{_line(text, name)}: {name}", f"the GUI has no such setting; {hint}"))
        else:
            left.append(name)
    if left:
        values.notes.append(f"{path.name}: {', '.join(left)}: not known here; left out")


def _line(text: str, name: str) -> str:
    return next(
        (f", line {i}" for i, line in enumerate(text.splitlines(), 1) if f'"{name}"' in line), line_of("", name)
    )


class Gui:
    """One saved file, on its way into arguments."""

    def __init__(self, values: Values, raw: Mapping[str, Any], file: str):
        self.values, self.raw, self.file = values, raw, file

    def number(self, name: str, default: float = 0, share: bool = False) -> float:
        """A setting that is a number; ``share``: in per cent, which may be written behind it."""
        value = self.raw.get(name)
        value = value.strip().removesuffix("%") if share and isinstance(value, str) else value
        try:
            return default if value in (None, "", False, []) else number(value)
        except Wrong as wrong:
            self.values.problems.append((f"{self.file}: {name}", str(wrong)))
            return default

    def set(self, name: str, value: Any) -> None:
        self.values.set(name, value, self.file)

    def take(self, name: str, value: Any) -> None:
        """A setting that is an argument, perhaps by another name."""
        target = RENAMED.get(name, name)
        if target not in arguments() or name in _READ_ELSEWHERE or value in ("", None, []) or value is False:
            return
        script = script_of(self.values.family)
        if name.startswith(("sdxl_", "sd3_")) and not name.startswith(f"{script}_"):
            return
        if script and script not in arguments()[target].families:
            return  # the GUI saves the settings of all families
        original = self.raw.get("noise_offset_type", "Original") == "Original"
        if name.startswith(("multires_" if original else "noise_offset", "adaptive_noise_scale")) and not (
            original and name == "adaptive_noise_scale"
        ):
            return
        if not isinstance(value, (list, dict)) and str(value) in ("0", "0.0"):
            if name in ("max_grad_norm", "prior_loss_weight"):
                self.values.notes.append(f"{name} = 0: the GUI does not pass a 0 on, so {arguments()[name].default:g} "
                                         f"holds; for 0 add --{name}=0")  # fmt: skip
            return
        self.set(target, value)

    def network(self) -> None:
        kind = str(self.raw.get("LoRA_type") or "Standard")
        raw, args = self.raw, []
        if kind in KINDS:
            self.set("network_module", "lycoris.kohya")
            args = [f"algo={KINDS[kind]}", f"preset={raw.get('LyCORIS_preset') or 'full'}"]
            names = [name for name in LYCORIS_ARGS if KINDS[kind] in ONLY.get(name, {KINDS[kind]})]
            args += [f"{name}={raw[name]}" for name in names if raw.get(name) not in (None, "", False, 0)]
        elif kind in MODULES:
            module = "networks.lora_sd3" if raw.get("sd3_checkbox") and kind == "Standard" else MODULES[kind]
            self.set("network_module", module)
            names = [name for name in network_aliases() if name not in ("conv_dim", "conv_alpha") and raw.get(name)]
            names = [name for name in names if not name.startswith("loraplus") and (
                name not in ("factor", "decompose_both") or kind == "Kohya LoKr")]  # fmt: skip
            names += ["conv_dim", "conv_alpha"] if kind != "Standard" and raw.get("conv_dim") else []
            args = [f"{name}={raw[name]}" for name in names if raw.get(name) not in (None, "")]
        else:
            known = [*KINDS, *MODULES]
            self.values.problems.append(
                (f"{self.file}: LoRA_type", f"{kind!r} is not here; {near(kind, known) or 'use Standard'}")
            )
        args += [f"{name}={raw[name]}" for name in network_aliases() if name.startswith("loraplus") and raw.get(name)]
        self.set("network_args", args or None)

    def rates(self) -> None:
        """A rate of 0 beside another that is not 0 leaves that part out."""
        rates = self.raw.get("text_encoder_lr")
        several = rates if isinstance(rates, list) and all(type(one) in (int, float) for one in rates) else []
        text = max(several) if several else self.number("text_encoder_lr")
        unet, t5 = self.number("unet_lr"), self.number("t5xxl_lr")
        self.set("unet_lr", unet or None)
        self.set("text_encoder_lr", (several or ([text, t5] if t5 else [text])) if text else None)
        if {"text_encoder_lr", "unet_lr"} <= set(self.raw):
            self.set("network_train_unet_only", True if not text and unet else None)
            self.set("network_train_text_encoder_only", True if text and not unet else None)

    def schedule(self) -> None:
        epochs, steps = int(self.number("epoch", 1)), int(self.number("max_train_steps"))
        warmup, exact = self.number("lr_warmup", share=True), int(self.number("lr_warmup_steps"))
        self.set("lr_warmup_steps", exact or (warmup / 100 if warmup else None))
        if "lr_scheduler_num_cycles" in self.raw and not self.raw["lr_scheduler_num_cycles"]:
            self.set("lr_scheduler_num_cycles", epochs)
        self.set("max_train_steps", steps or None)
        if not steps and not self.number("max_train_epochs") and not self.raw.get("dataset_config"):
            self._computed(epochs)
        if isinstance(prompts := self.raw.get("sample_prompts"), str) and prompts.strip():
            lines = [line.strip() for line in prompts.splitlines()]
            self.values.options["sample.prompts"] = [line for line in lines if line and not line.startswith("#")]

    def _computed(self, epochs: int) -> None:
        """The GUI's own arithmetic; epochs, where its folders are not on this machine."""
        root = Path(str(self.raw.get("train_data_dir") or "-")).expanduser()
        folders = [p for p in root.iterdir() if p.is_dir()] if root.is_dir() else []
        total = 0
        for folder in folders:
            repeats = folder.name.partition("_")[0]
            if repeats.isdigit():
                pictures = [p for p in folder.iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp")]
                total += int(repeats) * len(pictures)
        if not total:
            self.set("max_train_epochs", epochs)
            return
        each = self.number("train_batch_size", 1) * self.number("gradient_accumulation_steps", 1)
        steps = math.ceil(total / max(each, 1) * epochs * (2 if self.raw.get("reg_data_dir") else 1))
        self.set("max_train_steps", steps)
        self.values.notes.append(f"{steps} steps, as the GUI computes them: {total} pictures with their repeats, "
                                 f"{epochs} epochs, {each:g} at a time")  # fmt: skip


_READ_ELSEWHERE = {"unet_lr", "text_encoder_lr", "max_train_steps", "lr_warmup_steps", "sample_prompts", "network_args",
                   "xformers"}  # fmt: skip
