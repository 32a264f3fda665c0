"""``network_module``, ``network_args`` and learning rates: what is trained, of which kind and size, and how fast."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from ..config import reference
from ..optimizers.names import Named, short
from .made import Made
from .names import arguments, near, script_of
from .read import Values, Wrong, number, whole

MODULES = {"networks.lora": "lora", "networks.lora_sd3": "lora", "networks.loha": "loha", "networks.lokr": "lokr",
           "locon.locon_kohya": "lora"}  # fmt: skip
"""Module -> kind; the last is LyCORIS's before it had that name."""
LYCORIS = {"lora": "lora", "locon": "lora", "loha": "loha", "lokr": "lokr"}
REFUSED_MODULES = {
    "networks.lora_fa": "networks.lora, with optimizer_type AdamW8bit where memory is short",
    "networks.dylora": "networks.lora at the rank that you want; `python -m trainer convert --rank` changes it later",
}
"""Modules that are not here, and what is."""
SWITCHES = {
    **dict.fromkeys(("use_tucker", "use_cp", "use_conv_cp"), "Tucker decomposition of convolutions"),
    "use_scalar": "a trained scalar", "train_norm": "training of norm layers", "full_matrix": "a full matrix",
    "unbalanced_factorization": "an unbalanced factorisation", "rescaled": "OFT",
    "split_qkv": "one LoRA each for q, k, v",
}  # fmt: skip
"""Switches of network modules that can only be off here."""
WITHOUT_EFFECT = {"verbose", "bypass_mode", "rank_dropout_scale", "block_size", "constraint", "train_on_input", "unit"}
"""Arguments of network modules that change no number here."""
OTHER_ARGS = {"algo", "preset", "dora_wd", "wd_on_output", "rs_lora", "train_t5xxl", "dropout"}
PRESETS = {"full", "attn-mlp"}
"""LyCORIS presets that come to what is adapted here."""


@cache
def network_aliases() -> dict[str, str]:
    """Network argument -> option, from the aliases on [adapter]."""
    rows = [row for row in reference() if row["table"] == "adapter" and row["kohya"]]
    return {row["kohya"]: row["name"] for row in rows if row["kohya"] not in arguments()}


def network_names() -> set[str]:
    return {*network_aliases(), *SWITCHES, *WITHOUT_EFFECT, *OTHER_ARGS}


@dataclass
class Args:
    """``network_args`` as a table of texts."""

    values: Values
    table: Mapping[str, str]

    def on(self, name: str) -> bool:
        return self.table.get(name, "").lower() in ("true", "1")

    def origin(self, name: str) -> str:
        return f"{name}={self.table[name]} in network_args" if name in self.table else f"{name} is not in network_args"

    def wrong(self, name: str, what: str) -> None:
        self.values.wrong("network_args", f"{name}={self.table[name]}: {what}")

    def number(self, name: str) -> float | None:
        try:
            return number(self.table[name]) if self.table.get(name) else None
        except Wrong as wrong:
            self.wrong(name, str(wrong))
            return None


def network(values: Values, made: Made, family: str | None) -> None:
    args = Args(values, _table(values))
    kind = _kind(values, args, made)
    _size(values, made, args, kind, convolutions=script_of(family) != "sd3")
    for name in args.table:
        if name in network_aliases() and args.table[name] and name not in ("conv_dim", "conv_alpha"):
            _alias(values, made, args, name)
    _trained(values, made, args, family)


def _table(values: Values) -> dict[str, str]:
    table: dict[str, str] = {}
    for word in values["network_args"] or []:
        name, equals, text = word.partition("=")
        name, text = name.strip(), text.strip().strip("\"'")
        if not equals:
            values.wrong("network_args", f"{word!r} does not fit; write name=value")
        elif name not in network_names():
            hint = near(name, network_names()) or f"there is {', '.join(sorted(network_names()))}"
            values.wrong("network_args", f"there is no {name}; {hint}")
        else:
            table[name] = "" if text == "None" else text
    return table


def _kind(values: Values, args: Args, made: Made) -> str:
    """lora, dora, loha or lokr."""
    module = values["network_module"] or "networks.lora"
    kind = MODULES.get(module)
    if module == "lycoris.kohya":
        algo = (args.table.get("algo") or "lora").lower()
        kind = LYCORIS.get(algo)
        if kind is None:
            args.values.wrong("network_args", f"algo={algo} is not here; there is {', '.join(LYCORIS)}")
        preset = args.table.get("preset") or "full"
        if preset not in PRESETS:
            args.wrong("preset", "it is not here; use full, or adapter.targets for modules by name")
        elif kind:
            made.notes.append(f"preset={preset}: attention blocks, and with conv_dim resnet blocks, are adapted; "
                              "the first and last convolution and embeddings are not")  # fmt: skip
    elif kind is None:
        instead = REFUSED_MODULES.get(module) or near(module, [*MODULES, "lycoris.kohya"])
        values.wrong("network_module", f"{module} is not here; {instead or 'use networks.lora or lycoris.kohya'}")
    for name, what in SWITCHES.items():
        if args.on(name):
            args.wrong(name, f"{what} is not here; leave it out")
    if args.on("dora_wd"):
        if kind in ("loha", "lokr"):
            args.wrong("dora_wd", f"there is no {kind} with magnitudes; use algo=locon, or leave it out")
        elif args.table.get("wd_on_output", "True").lower() == "false":
            args.wrong("wd_on_output", "magnitudes are per output here; leave it out")
        kind = "dora" if kind == "lora" else kind
        made.put("adapter.dora_for", "lycoris", values, "network_args", comment=args.origin("dora_wd"))
    made.put("adapter.kind", kind, values, "network_args" if module == "lycoris.kohya" else "network_module")
    return kind or "lora"


def _size(values: Values, made: Made, args: Args, kind: str, convolutions: bool) -> None:
    """Ranks and alphas. They travel together: the effect is alpha / rank."""
    lycoris = values["network_module"] == "lycoris.kohya"
    rank = values["network_dim"] or 4
    alpha = values["network_alpha"]
    conv = args.number("conv_dim")
    conv_alpha = args.number("conv_alpha")
    if lycoris and convolutions and args.table.get("preset") != "attn-mlp":  # adapted unless the preset leaves them out
        conv, conv_alpha = conv or rank, conv_alpha or alpha
    elif (conv or args.table.get("conv_block_dims")) and conv_alpha is None:
        conv_alpha = 1.0
    if kind == "lokr" and rank > LARGEST:
        made.notes.append(f"network_dim = {rank} asks LoKr for full matrices, and so does {LARGEST}; their scale is 1")
        rank, alpha = LARGEST, float(LARGEST)
    if kind == "lokr" and conv and conv > LARGEST:
        conv, conv_alpha = LARGEST, float(LARGEST)
    if args.on("rs_lora"):
        alpha, conv_alpha = alpha * rank**0.5, conv_alpha and conv and conv_alpha * conv**0.5
    given = "network_dim" in values.given
    made.put("adapter.rank", rank, values, "network_dim", force=True,
             comment="" if given else "network_dim is not given; sd-scripts takes 4")  # fmt: skip
    made.put("adapter.alpha", float(alpha), values, "network_alpha", force=True)
    if conv:
        made.put("adapter.conv_rank", int(conv), values, "network_args", comment=args.origin("conv_dim"))
    if conv or args.table.get("conv_block_dims"):
        made.put("adapter.conv_alpha", conv_alpha, values, "network_args", comment=args.origin("conv_alpha"))
    dropout = values["network_dropout"] or args.number("dropout")
    made.put("adapter.dropout", dropout or None, values, "network_dropout")
    made.put("adapter.scale_weight_norms", values["scale_weight_norms"] or None, values, "scale_weight_norms")


LARGEST = 4096
"""The largest rank here."""


def _alias(values: Values, made: Made, args: Args, name: str) -> None:
    """One network argument that is an option of [adapter] under another name."""
    option, text = network_aliases()[name], args.table[name]
    kind = next(row["type"] for row in reference() if row["table"] == "adapter" and row["name"] == option)
    value: Any
    try:
        if kind.startswith("list") and any(c.isdigit() for c in text.partition("+")[0]):
            one = whole if "integer" in kind else number
            value = [one(piece) for piece in text.strip("[]").split(",")]
        elif kind == "true | false":
            value = args.on(name)
        elif kind == "integer":
            value = whole(text)
        elif kind == "number":
            value = number(text)
        else:
            value = text
    except Wrong as wrong:
        args.wrong(name, str(wrong))
        return
    if value == 0 and name.endswith("_ratio"):
        return
    made.put(f"adapter.{option}", value, values, "network_args", comment=args.origin(name))


def _trained(values: Values, made: Made, args: Args, family: str | None) -> None:
    """Which parts are trained and at which rates. A rate of 0 leaves a part out, as sd-scripts does."""
    if values["network_train_unet_only"] and values["network_train_text_encoder_only"]:
        values.wrong("network_train_unet_only", "network_train_text_encoder_only is given too; keep one of them")
        return
    base, unet = values["learning_rate"], values["unet_lr"]
    texts = values["text_encoder_lr"] or []
    if texts and script_of(family) != "sd3":
        if any(rate != texts[0] for rate in texts):
            made.notes.append(f"text_encoder_lr: sd-scripts takes the first of {texts} for all encoders")
        texts = texts[:1]
    elif len(texts) > 1:
        texts = [*texts, texts[-1]][:3]
    text_rates = texts or [base]
    trains_text = not values["network_train_unet_only"] and any(text_rates)
    trains_unet = not values["network_train_text_encoder_only"] and (base if unet is None else unet) != 0
    if not trains_text and not trains_unet:
        values.wrong("learning_rate", "every learning rate is 0, so nothing would be trained; raise one")
        return
    encoders: Any = ["clip_l", "clip_g", "t5"] if args.on("train_t5xxl") else True
    made.put("adapter.text_encoders", encoders if trains_text else False, values, "network_train_unet_only",
             *(["text_encoder_lr"] if not trains_text else []))  # fmt: skip
    made.put("adapter.denoiser", trains_unet, values, "network_train_text_encoder_only")
    rate = (text_rates[0] if len(set(text_rates)) == 1 else text_rates) if texts and trains_text else None
    kind = str(values["optimizer_type"] or "")
    if (short(kind) or Named(kind)).finds_rate and trains_text and trains_unet:
        first = text_rates[0]
        if {first} != {base if unet is None else unet, *text_rates}:
            made.notes.append(f"{values['optimizer_type']} works with one rate: as sd-scripts does, with the first "
                              f"group's, {first:g} of the text encoders")  # fmt: skip
            base, unet, rate = first, None, None
    made.put("optimizer.learning_rate", base, values, "learning_rate", force=True)
    if trains_unet:
        made.put("optimizer.denoiser_lr", unet, values, "unet_lr")
    made.put("optimizer.text_encoder_lr", rate, values, "text_encoder_lr")
