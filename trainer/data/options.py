"""The tables [data] and [[data.sets]]. What [data] says holds for every set that does not say otherwise."""

from __future__ import annotations

from typing import Literal

from pydantic import ValidationInfo, field_validator, model_validator

from ..errors import UserError
from ..registry import Options, PathStr, option

Interpolation = Literal["auto", "area", "lanczos", "box", "bilinear", "linear", "bicubic", "cubic", "nearest"]
Keep = Literal["disk", "memory", "off"]


class PictureOptions(Options):
    """How pictures and captions are treated; in [data] for all sets, in a set for itself."""

    resolution: int | list[int] | None = option(None, kohya="resolution", label="Resolution")
    """Pixels of a side, or [width, height]: the area that pictures are scaled to. Unset: what the model is made for."""
    buckets: bool = option(True, kohya="enable_bucket", label="Keep aspect ratios")
    """Sort pictures into buckets of similar aspect ratio, so that little is cropped. Off: all are cropped to
    ``resolution``."""
    bucket_min: int | None = option(None, kohya="min_bucket_reso", label="Smallest bucket side", ge=8, le=8192)
    """Shortest side of a bucket in pixels, rounded down to the step. Unset: half of the shorter side of
    ``resolution``."""
    bucket_max: int | None = option(None, kohya="max_bucket_reso", label="Largest bucket side", ge=8, le=16384)
    """Longest side of a bucket in pixels, rounded up to the step. Unset: twice the longer side of ``resolution``."""
    bucket_step: int = option(64, kohya="bucket_reso_steps", label="Bucket step", ge=8, le=1024, multiple_of=8)
    """Sides of buckets are multiples of this many pixels. SD1.5 wants 64, SDXL and SD3 accept 32."""
    no_upscale: bool = option(False, kohya="bucket_no_upscale", label="Never enlarge pictures")
    """Small pictures keep their size, in a bucket of their own size; ``bucket_min`` and ``bucket_max`` play no part."""
    interpolation: Interpolation = option("auto", kohya="resize_interpolation", label="Resize filter")
    """How pictures are resized. ``auto`` averages areas when shrinking and uses Lanczos when enlarging."""
    transparent: Literal["white", "keep"] = option("white", label="Transparent pixels")
    """What stands behind transparent pixels: ``white``, or ``keep`` the colours that the file hides there, as
    sd-scripts does (they are often black)."""
    repeats: int = option(1, kohya="num_repeats", label="Repeats", ge=0, le=1_000_000)
    """How often a picture is seen per epoch. 0 leaves the set out."""
    recursive: bool = option(False, label="Read subfolders")
    """Read pictures in subfolders too."""

    caption_extension: str = option(".txt", kohya="caption_extension", label="Caption extension", min_length=1)
    """Ending of the caption file beside each picture. Where there is none, other usual endings are tried and noted."""
    caption: str | None = option(None, kohya="class_tokens", label="Caption for pictures without one")
    """Caption of pictures that have no caption file."""
    trigger: str | None = option(None, label="Trigger word")
    """Word or phrase put first in every caption that does not hold it already, as whole words; never shuffled or
    dropped alone."""
    prefix: str | None = option(None, kohya="caption_prefix", label="Caption prefix")
    """Text put before every caption, with a space between."""
    suffix: str | None = option(None, kohya="caption_suffix", label="Caption suffix")
    """Text put after every caption, with a space between."""
    separator: str = option(",", kohya="caption_separator", label="Tag separator", min_length=1)
    """What separates the tags of a caption. Shuffled tags are joined by it and a space."""
    secondary_separator: str | None = option(None, kohya="secondary_separator", label="Secondary separator")
    """Joins tags that must stay together while tags are shuffled; replaced by ``separator`` afterwards."""
    keep_tokens: int = option(0, kohya="keep_tokens", label="Keep first tags", ge=0, le=10_000)
    """How many tags at the start are neither moved nor dropped."""
    keep_tokens_separator: str | None = option(None, kohya="keep_tokens_separator", label="Keep separator")
    """Text that marks the end of the fixed tags (and, the second time, the start of a fixed tail), such as ``|||``."""
    shuffle: bool = option(False, kohya="shuffle_caption", label="Shuffle tags")
    """Shuffle the tags of a caption each time it is seen."""
    wildcards: bool = option(False, kohya="enable_wildcard", label="Wildcards")
    """Choose one of ``{a|b|c}`` and one line of a caption of several lines each time; otherwise the first line counts.
    ``{{`` and ``}}`` stand for braces."""
    caption_dropout: float = option(0.0, kohya="caption_dropout_rate", label="Caption dropout", ge=0, le=1)
    """Probability of an empty caption, so that guidance without a prompt is trained too."""
    caption_dropout_every_n_epochs: int = option(0, kohya="caption_dropout_every_n_epochs", ge=0)
    """Empty every caption in each n-th epoch; 0 is never."""
    tag_dropout: float = option(0.0, kohya="caption_tag_dropout_rate", label="Tag dropout", ge=0, le=1)
    """Probability of leaving out each tag; kept tags are exempt."""
    token_warmup_min: int = option(1, kohya="token_warmup_min", ge=0)
    """How many tags are used at the first step of the tag warm-up."""
    token_warmup_steps: float = option(0.0, kohya="token_warmup_step", ge=0)
    """Steps until all tags are used, growing evenly; below 1 a fraction of the run; 0 is no warm-up."""

    flip: bool = option(False, kohya="flip_aug", label="Mirror at random")
    """Mirror half of the pictures, drawn again each time. Not for text, faces or anything with a left and a right."""
    random_crop: bool = option(False, kohya="random_crop", label="Random crop")
    """Crop at random rather than in the middle. Needs ``cache_latents = "off"``."""
    color: bool = option(False, kohya="color_aug", label="Vary colours")
    """Shift the hue by up to 16 degrees or the gamma by up to 5 % in a third of the cases. Needs
    ``cache_latents = "off"``."""
    face_crop: list[float] | None = option(None, kohya="face_crop_aug_range", label="Face crop range")
    """[smallest, largest] ratio of the crop's shorter side to the face, for pictures named
    ``<name>_<centre x>_<centre y>_<width>_<height>``. Needs ``buckets = false`` and ``cache_latents = "off"``."""

    alpha_mask: bool = option(False, kohya="alpha_mask", label="Alpha channel is a mask")
    """Weigh the loss by the picture's alpha channel; opaque pictures count fully."""
    masks: PathStr | None = option(None, kohya="conditioning_data_dir", label="Mask folder")
    """Folder with a mask for each picture, of equal name and size: black is ignored by the loss, white counts."""
    targets: PathStr | None = option(None, label="Target folder")
    """Folder with the map of each picture, of equal name, for a run with [dense]: depth as .npy, .npz, 16-bit .png or
    .exr; normals as 8- or 16-bit .png or .npy; an image as any picture."""
    unit: float | None = option(None, label="Unit of depth", gt=0)
    """What a step of a depth PNG is worth, such as 0.001 for millimetres; 1 when not given."""
    valid: list[float] | None = option(None, label="Valid depth")
    """[smallest, largest] depth, in units; outside it, and where it is 0, NaN or infinite, nothing is learned."""
    metadata: PathStr | None = option(None, kohya="in_json", label="Captions in one file")
    """JSON ``{picture: {"caption": ..., "tags": ...}}`` or JSON Lines with ``image_path``, ``caption``, ``tags``."""

    @field_validator("resolution")
    @classmethod
    def _resolution(cls, value: int | list[int] | None) -> int | list[int] | None:
        sides = [] if value is None else [value] if isinstance(value, int) else value
        if isinstance(value, list) and len(value) != 2:
            raise UserError(f"{value} is not a size; give one number, or [width, height]")
        if any(side < 64 or side > 8192 or side % 8 for side in sides):
            raise UserError(f"{value} is not a size for training; sides are multiples of 8 between 64 and 8192")
        return value

    @field_validator("caption_extension")
    @classmethod
    def _dot(cls, value: str) -> str:
        return value if value.startswith(".") else "." + value

    @field_validator("valid")
    @classmethod
    def _depths(cls, value: list[float] | None) -> list[float] | None:
        if value is not None and not (len(value) == 2 and 0 <= value[0] < value[1]):
            raise UserError(f"{value} is no range of depths; give [smallest, largest]")
        return value

    @field_validator("face_crop")
    @classmethod
    def _range(cls, value: list[float] | None) -> list[float] | None:
        if value is not None and not (len(value) == 2 and 0 < value[0] <= value[1]):
            raise UserError(f"{value} is not a range; give [smallest, largest], both above 0")
        return value


class SetOptions(PictureOptions):
    """One folder of pictures."""

    path: PathStr | None = option(None, kohya="image_dir", label="Folder")
    """Folder with the pictures; may be left out when ``metadata`` names them by absolute paths."""
    is_reg: bool = option(False, kohya="is_reg", label="Regularisation pictures")
    """Pictures of the class in general, which keep the model from forgetting it; weighed by ``prior_loss_weight``."""
    preserve: bool = option(False, kohya="diff_output_preservation", label="Preserve the model's output")
    """Instead of these pictures, learn what the model says of them without the adapter: keeps it from changing there.
    One more forward pass for each."""
    batch: int | None = option(None, kohya="batch_size", label="Batch size of this set", ge=1)
    """Pictures of this set on the GPU at a time, where it is not ``run.batch``: more of small ones, fewer of large
    ones. Sets with different batch sizes never share a batch."""
    pool: str = option("", label="Pool")
    """Sets of different pools never share a batch, and each pool's regularisation pictures are matched with its own
    others: what one [[datasets]] is to sd-scripts."""

    @model_validator(mode="after")
    def _source(self) -> SetOptions:
        if self.path is None and self.metadata is None:
            raise UserError('a set needs pictures; give path = "folder", or metadata = "file.json"')
        return self


class DataOptions(PictureOptions):
    """What to train on: pictures with captions, or pairs, or ratings."""

    path: PathStr | None = option(None, label="Folder of pictures")
    """Folder of pictures with captions beside them; the short form of one [[data.sets]]."""
    pairs: PathStr | None = option(None, label="Folder of pairs")
    """Folder with ``pairs.jsonl``: for each prompt a chosen and a rejected picture."""
    ratings: PathStr | None = option(None, label="Folder of ratings")
    """Folder with ``ratings.jsonl``: single pictures, liked or not."""
    prior_loss_weight: float = option(1.0, kohya="prior_loss_weight", label="Weight of regularisation", ge=0)
    """What the loss of regularisation pictures is multiplied by."""
    validation_split: float = option(0.0, kohya="validation_split", label="Held out", ge=0, lt=1)
    """Fraction of the pictures (of the prompts, for pairs and ratings) held out to measure, never trained on."""
    validation_seed: int = option(0, label="Seed of the split")
    """Which pictures are held out."""
    cache_latents: Keep = option("disk", label="Keep latents")
    """Encode each picture once and keep the result: on ``disk`` (found again by the next run), in ``memory``, or
    ``off``: encode every time."""
    cache_text: Keep = option("disk", label="Keep text")
    """The same for captions; captions that change each time are kept in memory at most, and trained text encoders never
    read from it."""
    cache_dir: PathStr | None = option(None, label="Cache folder")
    """Where encoded pictures and captions are kept, by their content: safe to share between runs and to delete. Unset:
    beside the runs."""
    cache_days: float = option(90.0, label="Days in the cache", ge=0)
    """A run removes from its cache folder the entries that no run has used for this number of days (2 or more), and
    logs how much that was. 0: no entry is removed for its age."""
    cache_gb: float | None = option(None, label="Cache limit (GB)", gt=0)
    """The same beyond this size of the folder: what was used longest ago goes, but nothing that a run has used in the
    last two days. Unset: no limit."""
    max_unreadable: int = option(10, label="Unreadable pictures allowed", ge=0)
    """How many pictures that cannot be read are skipped, and named, before the run stops."""
    sd_scripts_cache: bool = option(False, label="Use sd-scripts' latents")
    """Use ``.npz`` latents of sd-scripts beside the pictures where size and age fit. They do not say which autoencoder
    made them: it must be the same."""
    sets: list[SetOptions] = option([], label="Sets")
    """Folders of pictures, each with its own settings."""

    @field_validator("cache_days")
    @classmethod
    def _days(cls, value: float) -> float:
        if 0 < value < 2:
            raise UserError(f"{value:g} is below 2 days, which a run that trains now may need; give 2 or more, or 0")
        return value

    @field_validator("sets")
    @classmethod
    def _inherit(cls, sets: list[SetOptions], info: ValidationInfo) -> list[SetOptions]:
        """A set takes from [data] what it does not say itself."""
        shared = {name: info.data[name] for name in PictureOptions.model_fields if name in info.data}
        return [
            one.model_copy(update={name: value for name, value in shared.items() if name not in one.model_fields_set})
            for one in sets
        ]

    @model_validator(mode="after")
    def _consistent(self) -> DataOptions:
        kinds = [name for name in ("pairs", "ratings") if getattr(self, name)]
        if self.path or self.sets or (self.metadata and not kinds):
            kinds.append("pictures (path, sets or metadata)")
        if len(kinds) > 1:
            raise UserError(f"data: {' and '.join(kinds)} are given; one run trains on one of them")
        for name in ("masks", "metadata") if self.pairs or self.ratings else ():
            if getattr(self, name):
                raise UserError(f"{name}: it is not read with {kinds[0]}, whose file names all there is; leave it out")
        for name, one in self.named_sets():
            varied = [key for key in ("random_crop", "color", "face_crop") if getattr(one, key)]
            if varied and self.cache_latents != "off":
                raise UserError(
                    f"{name}.{varied[0]}: it changes the picture each time, but latents are kept; set [data] "
                    'cache_latents = "off", or leave it out'
                )
            if one.face_crop and one.buckets:
                raise UserError(f"{name}.face_crop: it crops to one size; set buckets = false, or leave it out")
        return self

    def shared(self) -> SetOptions:
        """What [data] says, as a set: for ``path``, pairs and ratings."""
        values = {name: getattr(self, name) for name in PictureOptions.model_fields}
        return SetOptions.model_construct(path=self.path, **values)

    def named_sets(self) -> list[tuple[str, SetOptions]]:
        """All sets, with their place in the configuration for messages."""
        own = self.path or self.pairs or self.ratings or (self.metadata and not self.sets)
        short = [("data", self.shared())] if own else []
        return short + [(f"data.sets[{number}]", one) for number, one in enumerate(self.sets)]
