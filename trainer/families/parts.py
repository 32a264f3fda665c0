"""Reading the modules of a model from a single file or a diffusers folder."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from .family import Encoder, FamilySpec
from .sources import Checkpoint

NET = "model.diffusion_model."
Source = Checkpoint | Path
"""A single file, or a folder."""


def net_shapes(file: Checkpoint) -> dict[str, tuple[int, ...]]:
    """The denoiser's tensors without their prefix; of a file that holds nothing but a denoiser, all of them."""
    if file.has(NET):
        return {key.removeprefix(NET): shape for key, shape in file.shapes.items() if key.startswith(NET)}
    return dict(file.shapes)


def _home(folder: Path, part: str) -> Path:
    """A part's own folder: below a whole model's, or the one that was named."""
    return folder / part if (folder / part / "config.json").is_file() else folder


def files(source: Checkpoint | Path, part: str) -> list[Path]:
    """The files that a part is read from."""
    if isinstance(source, Checkpoint):
        return [source.path]
    return sorted(p for p in _home(source, part).iterdir() if p.suffix in (".safetensors", ".bin", ".json"))


def read_denoiser(source: Checkpoint | Path, spec: FamilySpec, dtype: torch.dtype, variant: str | None) -> Any:
    import diffusers

    made = getattr(diffusers, spec.model)
    if isinstance(source, Path):
        return _from_folder(made, source / spec.part, dtype, variant)
    weights = {NET + key: v for key, v in source.tensors(NET if source.has(NET) else "", dtype).items()}
    return _from_weights(made, weights, spec.config, source.path)


def check_vae(source: Checkpoint | Path, spec: FamilySpec, where: str) -> None:
    """UserError when there is no autoencoder, or in a file one of another kind."""
    if isinstance(source, Path):
        there = (_home(source, "vae") / "config.json").is_file()
        first = (0, spec.vae["latent_channels"])
    else:
        first = source.shapes.get(f"{_vae_prefix(source)}decoder.conv_in.weight", ())
        there, source = bool(first), source.path
    if not there:
        raise UserError(f"{where}: {source} holds no autoencoder; name a VAE file or folder in model.vae")
    if first[1] != spec.vae["latent_channels"]:
        raise UserError(
            f"{where}: {source} is an autoencoder of {first[1]} latent channels, but {spec.title} has "
            f"{spec.vae['latent_channels']}; name one of its own kind"
        )


_OLD_ATTENTION = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""Names in diffusers' autoencoders before 0.15."""


def _vae_prefix(source: Checkpoint) -> str:
    return next((prefix for prefix in ("first_stage_model.", "vae.") if source.has(prefix)), "")


def read_vae(source: Checkpoint | Path, spec: FamilySpec, dtype: torch.dtype, variant: str | None) -> Any:
    """The autoencoder of a whole checkpoint or of a file of its own; of a model's folder or of a folder of its own."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    if isinstance(source, Path):
        return _from_folder(AutoencoderKL, _home(source, "vae"), dtype, variant)
    weights = source.tensors(_vae_prefix(source), dtype)
    if any(".proj_attn." in key for key in weights):
        for old, new in _OLD_ATTENTION.items():
            weights = {key.replace(old, new): value for key, value in weights.items()}
    return _from_weights(AutoencoderKL, weights, spec.vae, source.path)


def read_encoder(source: Checkpoint | Path, encoder: Encoder, dtype: torch.dtype, variant: str | None) -> Any:
    if isinstance(source, Path):
        import transformers

        return _from_folder(getattr(transformers, encoder.model), _home(source, encoder.folder), dtype, variant)
    weights = source.tensors(encoder.prefix if source.has(encoder.prefix) else "", dtype)
    return encoder_from(encoder, weights, source.path)


def encoder_from(encoder: Encoder, weights: dict[str, Tensor], path: Path) -> Any:
    """A text encoder from tensors in any of the public layouts (transformers', OpenCLIP's)."""
    import transformers
    from accelerate import init_empty_weights

    made = getattr(transformers, encoder.model)
    with init_empty_weights():
        module = made(made.config_class(**encoder.config))
    if encoder.model == "T5EncoderModel":
        words = weights.get("shared.weight", weights.get("encoder.embed_tokens.weight"))
        weights |= {} if words is None else {"shared.weight": words, "encoder.embed_tokens.weight": words}
    else:
        weights = _clip_names(weights, encoder)
    _filled(module, weights, path).tie_weights()
    return module


def _clip_names(weights: dict[str, Tensor], encoder: Encoder) -> dict[str, Tensor]:
    """Tensors of a CLIP text encoder by the names of the transformers class."""
    if any("resblocks." in key for key in weights):
        weights = _from_openclip(weights)
    inside = "text_model." if encoder.model == "CLIPTextModelWithProjection" else ""
    projection = weights.pop("text_projection.weight", None)
    named = {inside + key.removeprefix("text_model."): value for key, value in weights.items()}
    if inside:
        # SD3's files leave out CLIP-L's projection, which is the identity there.
        width = encoder.config["hidden_size"]
        dtype = next(iter(weights.values())).dtype if weights else None
        named["text_projection.weight"] = torch.eye(width, dtype=dtype) if projection is None else projection
    return named


_OPENCLIP = (
    (r"^token_embedding\.", "embeddings.token_embedding."),
    (r"^positional_embedding$", "embeddings.position_embedding.weight"),
    (r"^ln_final\.", "final_layer_norm."),
    (r"^transformer\.resblocks\.", "encoder.layers."),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"\.attn\.out_proj\.", ".self_attn.out_proj."),
)


def _from_openclip(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    named: dict[str, Tensor] = {}
    for key, value in weights.items():
        if key == "text_projection":
            named["text_projection.weight"] = value.T.contiguous()
            continue
        for pattern, new in _OPENCLIP:
            key = re.sub(pattern, new, key)
        if fused := re.fullmatch(r"(.*)\.attn\.in_proj_(weight|bias)", key):
            for name, part in zip("qkv", value.chunk(3), strict=True):
                named[f"{fused[1]}.self_attn.{name}_proj.{fused[2]}"] = part.clone()
        else:
            named[key] = value
    return named


def _from_weights(made: Any, weights: dict[str, Tensor], config: dict[str, Any], path: Path) -> Any:
    """A diffusers model from tensors in the public single-file layout, or in diffusers' own."""
    from accelerate import init_empty_weights
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES as READERS

    with init_empty_weights():
        module = made.from_config(config)
    if not weights.keys() >= module.state_dict().keys():
        try:
            weights = READERS[made.__name__]["checkpoint_mapping_fn"](checkpoint=weights, config=module.config)
        except KeyError as error:
            raise UserError(f"model: {path} lacks {error}; it is incomplete, download it again") from None
    return _filled(module, weights, path)


def _filled(module: Any, weights: dict[str, Tensor], path: Path) -> Any:
    """A module without weights given its tensors; UserError when one is missing or of another shape."""
    wanted = module.state_dict()
    if lost := [key for key in wanted if key not in weights]:
        raise UserError(f"model: {path} lacks {lost[0]} ({len(lost)} in all); it is incomplete, download it again")
    for key, value in wanted.items():
        if (given := weights[key].shape) != value.shape:
            raise UserError(
                f"model: in {path} {key} is {list(given)}, but its family has {list(value.shape)}; "
                "give an unchanged checkpoint"
            )
    module.load_state_dict({key: weights[key] for key in wanted}, assign=True)
    return module


def _from_folder(made: Any, folder: Path, dtype: torch.dtype, variant: str | None) -> Any:
    if not (folder / "config.json").is_file():
        raise UserError(f"model: there is no {folder / 'config.json'}; give a whole diffusers folder")
    weights = [f.name for f in folder.iterdir() if f.suffix in (".safetensors", ".bin")]
    if variant is None and weights and all(name.count(".") > 1 for name in weights):
        variant = weights[0].split(".")[1].split("-")[0]  # model.fp16-00001-of-00002.safetensors
    try:
        module, found = made.from_pretrained(
            folder, torch_dtype=dtype, variant=variant, local_files_only=True, output_loading_info=True
        )
    except (OSError, RuntimeError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"model: {folder} cannot be read ({reason}); download it again") from None
    if lost := sorted(found["missing_keys"]):
        raise UserError(f"model: {folder} lacks {lost[0]} ({len(lost)} in all); it is incomplete, download it again")
    return module


Configs = dict[str, dict[str, Any]]
"""``denoiser``, ``vae`` and each text encoder -> its configuration."""


def configs(spec: FamilySpec, net: Source | None, vae: Source | None, texts: Mapping[str, Source | None]) -> Configs:
    """The configurations of a model's parts: a folder's own, and the public ones where a part has none of its own."""
    found = {"denoiser": _config(net, spec.part, spec.config), "vae": _config(vae, "vae", spec.vae)}
    for name, place in texts.items():
        found[name] = _config(place, spec.encoders[name].folder, spec.encoders[name].config)
    return found


def _config(source: Source | None, part: str, public: dict[str, Any]) -> dict[str, Any]:
    path = _home(source, part) / "config.json" if isinstance(source, Path) else None
    if path is None or not path.is_file():
        return dict(public)
    try:
        return {key: value for key, value in json.loads(path.read_text("utf-8")).items() if not key.startswith("_")}
    except (OSError, ValueError) as error:
        raise UserError(f"model: {path} cannot be read ({error}); download it again") from None


def bare(spec: FamilySpec, how: Configs) -> dict[str, Any]:
    """The modules of ``configs`` on the meta device: names and shapes, no memory. Frozen, in evaluation mode."""
    import diffusers
    import transformers
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    made: dict[str, Any] = {}
    with torch.device("meta"):
        for name, config in how.items():
            if name in spec.encoders:
                cls = getattr(transformers, spec.encoders[name].model)
                made[name] = cls(cls.config_class(**config))
            else:
                cls = AutoencoderKL if name == "vae" else getattr(diffusers, spec.model)
                made[name] = cls.from_config(config)
    for module in made.values():
        module.requires_grad_(False).eval()
    return made


def meta(spec: FamilySpec) -> tuple[nn.Module, dict[str, nn.Module]]:
    """The public denoiser and text encoders of a family on the meta device: names and shapes, no memory."""
    made = bare(spec, configs(spec, None, None, dict.fromkeys(spec.encoders)))
    return made["denoiser"], {name: made[name] for name in spec.encoders}
