"""Kohya's names: every argument of sd-scripts' three LoRA scripts with its type, and what becomes of it here.

``arguments.csv`` holds the 218 arguments as sd-scripts 48d368fa (2026-02-16) declares them. Each is mapped (an alias on
one of our fields, or a conversion), harmless (accepted, with the reason why it has no effect here), or refused (with
the nearest thing that there is).
"""

from __future__ import annotations

import csv
import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..families.family import FamilySpec, SdScripts
from ..registry import families


@dataclass(frozen=True)
class Argument:
    """One argument of sd-scripts."""

    name: str
    type: str
    """flag, int, float, str, path, steps (a number, a ratio or "10%"), list[str] or list[float]."""
    default: Any
    choices: tuple[str, ...]
    families: tuple[str, ...]
    """The scripts that know it: sd15 (also SD 2.x), sdxl, sd3."""


@cache
def arguments() -> dict[str, Argument]:
    with (Path(__file__).parent / "arguments.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {row["name"]: _argument(row) for row in rows}


def _argument(row: dict[str, str]) -> Argument:
    text, kind = row["default"], row["type"]
    readers: dict[str, Any] = {"flag": lambda word: word == "true", "int": int, "float": float, "steps": int}
    default = readers.get(kind, str)(text) if text else None
    choices = tuple(filter(None, row["choices"].split("|")))
    return Argument(row["name"], kind, default, choices, tuple(row["families"].split(";")))


_IGNORED = """
ae attn_mode byt5 compile compile_backend compile_cache_size_limit compile_dynamic compile_fullgraph compile_mode
discrete_flow_shift double_blocks_to_swap epoch fp8_scaled fp8_vl gemma2 gemma2_max_token_length guidance_scale
llm_adapter_path mem_eff_save model_prediction_type model_type noise_offset_type qwen3 qwen3_max_token_length
qwen_image_vae_2d show_timesteps show_timesteps_resolution sigmoid_scale single_blocks_to_swap split_attn split_mode
stop_text_encoder_training system_prompt t5_max_token_length t5_tokenizer_path text_encoder text_encoder_cpu
timestep_sampling train_inpainting unsloth_offload_checkpointing use_flash_attn use_sage_attn vae_chunk_size
vae_disable_cache
"""
IGNORED = frozenset(_IGNORED.split())
"""What the GUI of kohya_ss writes and the three scripts never read."""
GUI = {
    "lora_network_weights": "sd-scripts does not read it either; write network_weights",
    **dict.fromkeys(("loraplus_lr_ratio", "loraplus_text_encoder_lr_ratio", "loraplus_unet_lr_ratio"),
                    "sd-scripts reads it in network_args alone; write it there"),
    "lowvram": "", "use_wandb": "",
}  # fmt: skip
"""What else the GUI writes into the TOML that it gives to the scripts (v24.0.0 to v25.2.2), and what to say of it."""
_ELSEWHERE = ("flux1_", "flux_", "flux2_", "hunyuan_", "anima_", "lumina_", "hidream_", "qwen_", "chroma_", "zimage_",
              "wan_", "img_attn_", "img_mlp_", "img_mod_", "txt_attn_", "txt_mlp_", "txt_mod_", "single_dim",
              "single_mod_dim", "train_double_block_", "train_single_block_")  # fmt: skip


def elsewhere(name: str) -> bool:
    """Whether an argument or a setting belongs to a family that is not trained here."""
    return name.startswith(_ELSEWHERE)


_NO_UPLOAD = "nothing is uploaded from here"
_DEEPSPEED = "it belongs to deepspeed, which is not used here"
_DDP = "several GPUs are driven without DDP's wrapper"
_LOGGING = "everything is in the run's log.txt and events.jsonl"
_NOWHERE = "sd-scripts does nothing with it either"
HARMLESS = {
    "async_upload": _NO_UPLOAD,
    "cache_info": "sizes are kept by the pictures' content",
    "console_log_file": _LOGGING,
    "console_log_level": _LOGGING,
    "console_log_simple": _LOGGING,
    "ddp_gradient_as_bucket_view": _DDP,
    "ddp_static_graph": _DDP,
    "ddp_timeout": _DDP,
    "dim_from_weights": "network_weights always brings its own ranks and alphas",
    "disable_mmap_load_safetensors": "files are read part by part",
    "dynamo_backend": "the model is not compiled",
    "fp16_master_weights_and_gradients": _DEEPSPEED,
    "fused_backward_pass": "sd-scripts does not fuse it for LoRA either",
    "highvram": "memory is freed when something is done with, whatever the GPU",
    "huggingface_path_in_repo": _NO_UPLOAD,
    "huggingface_repo_type": _NO_UPLOAD,
    "huggingface_repo_visibility": _NO_UPLOAD,
    "huggingface_token": _NO_UPLOAD,
    "log_config": "config.toml in the run's folder is the whole configuration",
    "log_tracker_config": "TensorBoard needs none",
    "log_tracker_name": "TensorBoard's folder is the run's",
    "lowram": "models are read part by part",
    "max_data_loader_n_workers": "pictures are read by threads of the trainer",
    "offload_optimizer_device": _DEEPSPEED,
    "offload_optimizer_nvme_path": _DEEPSPEED,
    "offload_param_device": _DEEPSPEED,
    "offload_param_nvme_path": _DEEPSPEED,
    "persistent_data_loader_workers": "pictures are read by threads of the trainer",
    "save_clip": _NOWHERE,
    "save_state_on_train_end": "a state is always kept at the end",
    "save_state_to_huggingface": _NO_UPLOAD,
    "save_t5xxl": _NOWHERE,
    "skip_cache_check": "caches are found by content, there is nothing to check",
    "skip_until_initial_step": "a resumed run always continues with the pictures that come next",
    "t5xxl_device": _NOWHERE,
    "t5xxl_dtype": _NOWHERE,
    "text_encoder_batch_size": "it changes only how fast captions are cached",
    "torch_compile": "memory.compile does that here; the numbers are the same",
    "vae_batch_size": "it changes only how fast pictures are cached",
    "wandb_api_key": "nothing is sent to Weights & Biases",
    "wandb_run_name": "nothing is sent to Weights & Biases",
    "zero3_init_flag": _DEEPSPEED,
    "zero3_save_16bit_model": _DEEPSPEED,
    "zero_stage": _DEEPSPEED,
}
"""Accepted, and why it has no effect here."""

REFUSED = {
    "clip_g_dropout_rate": "single encoders are not dropped; use caption_dropout_rate",
    "clip_l_dropout_rate": "single encoders are not dropped; use caption_dropout_rate",
    "dataset_class": "there is no data set of your own code; name folders in a dataset_config",
    "debug_dataset": "leave it out and run `python -m trainer check` with the same arguments",
    "deepspeed": "one GPU, or torchrun with several, is what there is",
    "enable_scaled_pos_embed": "positions are embedded as the model was made; leave it out",
    "full_fp16": 'fp16 has no room for small updates; use full_bf16 with mixed_precision = "bf16", or leave it out',
    "huggingface_repo_id": "nothing is uploaded from here; leave it out and run `hf upload` with the finished file",
    "initial_epoch": "a run continues where its state stopped; use resume",
    "initial_step": "a run continues where its state stopped; use resume",
    "output_config": "run `python -m trainer import-kohya ... -o mine.toml` with the same arguments",
    "pos_emb_random_crop_rate": "positions are embedded as the model was made; leave it out",
    "resume_from_huggingface": "download the state and name its folder in resume",
    "t5_dropout_rate": "single encoders are not dropped; use caption_dropout_rate",
}
"""Not done here, and the nearest thing that is. An alias on a field takes precedence."""


def near(name: str, known: Iterable[str]) -> str:
    """'did you mean ...?' with every name one letter away, or else the most alike; empty when nothing is alike."""
    known = sorted(known)
    found = [other for other in known if _one_letter(name, other)]
    found = found or difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    return f"did you mean {' or '.join(found)}?" if found else ""


def _one_letter(a: str, b: str) -> bool:
    """Whether one letter more, less, other, or two swapped, makes b of a (upper and lower case are one)."""
    a, b = a.lower(), b.lower()
    if a == b:
        return True
    if abs(len(a) - len(b)) > 1:
        return False
    start = 0
    while start < min(len(a), len(b)) and a[start] == b[start]:
        start += 1
    a, b = a[start:], b[start:]
    return a[1:] == b[1:] or a[1:] == b or a == b[1:] or (a[:2] == b[:2][::-1] and a[2:] == b[2:])


# ------------------------------------------------------------------------------------------------------------ families


def spec_of(family: str | None) -> FamilySpec:
    """The description of a family that a reader has found. UserError for one that is not known."""
    return families[str(family)].build()


def sd_scripts(family: str) -> SdScripts:
    """What sd-scripts does for a family. UserError for one that it does not train."""
    spec = spec_of(family)
    if spec.sd_scripts is None:
        raise UserError(f"model.family: sd-scripts does not train {spec.title}; write its configuration by hand")
    return spec.sd_scripts


def script_of(family: str | None) -> str | None:
    """The script of sd-scripts that trains a family: sd15, sdxl or sd3; None where the family is not known."""
    return sd_scripts(family).script if family else None
