"""Encoded pictures, masks and captions: taken from the cache, or made and put there."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..dense import maps, targets
from ..dense.options import CELL, WHOLE_CELLS, DenseOptions
from ..diffusion.types import Conditioning
from ..errors import UserError
from . import pictures
from .augment import Window
from .buckets import Size
from .cache import Entry, Index, SdScriptsLatents, Store, digest, find_npz, read_npz
from .items import Picture
from .options import DataOptions, Keep, SetOptions
from .pictures import Unreadable

Encode = Callable[[Tensor], Tensor]
"""Pixels [N, 3, H, W] in [-1, 1], float32, CPU -> scaled latents [N, C, h, w], the posterior's mean."""
EncodeText = Callable[[list[str]], Conditioning]
"""Captions -> prompt embeddings; each is encoded alone."""


class Absent(LookupError):
    """Something is not kept, and the caller may not make it."""


class Shelf:
    """All encodings of a data set. Pictures and captions are encoded one at a time, so that neither company nor the
    cache changes a number."""

    def __init__(self, options: DataOptions, root: Path | None, dense: DenseOptions | None = None):
        """``root``: of the caches; without one, what would go to the disk stays in memory. ``dense``: of a dense run,
        whose pictures have targets."""
        self.dense = dense
        self.index = Index(root / "files" if root else None)
        self._root = root
        self._use_npz = options.sd_scripts_cache
        self.latents = self._store("latents", options.cache_latents)
        self.masks = self._store("masks", options.cache_latents)
        self.targets = self._store("targets", options.cache_latents)
        self.text = self._store("text", options.cache_text)
        self.passing = Store(Path(), "off" if options.cache_text == "off" else "memory")
        """Captions that are drawn again each time."""
        self.foreign: set[Path] = set()
        """Pictures whose latents sd-scripts made."""
        self.attach(None, None, None)

    def _store(self, name: str, keep: Keep) -> Store:
        if keep == "disk" and self._root:
            return Store(self._root / name, "disk")
        return Store(Path(), "off" if keep == "off" else "memory", limit=None)

    def attach(
        self,
        encode: Encode | None,
        encode_text: EncodeText | None,
        fingerprints: Mapping[str, str] | None,
        dtype: torch.dtype = torch.float32,
        sd_scripts: SdScriptsLatents | None = None,
        family: str = "",
    ) -> None:
        """See ``Dataset.attach``."""
        self.encode, self.encode_text = encode, encode_text
        self.fingerprints = dict(fingerprints or {})
        for store in (self.latents, self.targets, self.text):
            store.family = family
        self.dtype = dtype
        self.sd_scripts = sd_scripts if self._use_npz else None
        assert encode is None or "vae" in self.fingerprints, "encode needs the autoencoder's fingerprint"
        assert encode_text is None or "text" in self.fingerprints, "encode_text needs the text encoders' fingerprint"

    @property
    def remade(self) -> int:
        """Damaged entries that were made again."""
        return self.latents.remade + self.masks.remade + self.targets.remade + self.text.remade

    # -- pictures --------------------------------------------------------------------------------------------------

    def key(self, picture: Picture, options: SetOptions, place: Window, flip: bool, colors: object = None) -> str:
        """Everything that decides a picture's latents."""
        return json.dumps(
            [self.index.sha(picture.path), picture.fit.bucket, place, flip, options.interpolation, options.transparent,
             self.fingerprints.get("vae"), str(self.dtype), colors]
        )  # fmt: skip

    def kept(self, key: str, picture: Picture, flip: bool) -> tuple[Tensor, list[str]] | None:
        """Latents [C, h, w] float32 from our cache, or from a file of sd-scripts, whose content is named then."""
        entry = self.latents.get(key)
        return (entry["latents"].float(), []) if entry is not None else self._npz(picture, flip)

    def has(self, key: str, picture: Picture, flip: bool) -> bool:
        return self.latents.has(key) or self._npz(picture, flip) is not None

    def _npz(self, picture: Picture, flip: bool) -> tuple[Tensor, list[str]] | None:
        if self.sd_scripts is None:
            return None
        path = find_npz(picture.path, picture.size, self.sd_scripts)
        latents = read_npz(path, picture.size, picture.fit.bucket, flip, self.sd_scripts.channels) if path else None
        if path is None or latents is None:
            return None
        self.foreign.add(picture.path)
        return self.sd_scripts.scaled(latents[None])[0].float(), [self.index.sha(path)]

    def pixels(self, picture: Picture, options: SetOptions, place: Window) -> np.ndarray:
        """uint8 [H, W, 3], as it is encoded. Unreadable when broken, OSError when gone."""
        image, _ = pictures.pixels(picture.path.read_bytes(), options.transparent == "keep")
        return pictures.fitted(image, *place, picture.fit.bucket, options.interpolation)

    @torch.no_grad()
    def make(self, key: str, picture: Picture, colors: np.ndarray, flip: bool) -> Tensor:
        """Encode uint8 [H, W, 3] to latents [C, h, w] float32, and keep them.

        :raises UserError: they are not finite, or cannot be written.
        """
        assert self.encode is not None, "no autoencoder is attached"
        pixels = torch.from_numpy(np.array(colors)).permute(2, 0, 1)[None].float() / 127.5 - 1
        latents = self.encode(pixels.flip(3) if flip else pixels)[0].to("cpu", self.dtype)
        if not latents.isfinite().all():
            raise UserError(
                f"data: the autoencoder makes NaN of {picture.path.as_posix()}; run it in float32 or bfloat16 (that of "
                "SDXL overflows in float16)"
            )
        return self.latents.put(key, {"latents": latents})["latents"].float()

    def mask(
        self, picture: Picture, options: SetOptions, place: Window, alpha: bool
    ) -> tuple[Tensor | None, list[str]]:
        """[H, W] float32 in [0, 1]: the mask picture times, if asked for, the alpha channel; None when there is none.
        And everything that decides it.

        :raises UserError: the mask is broken or gone.
        """
        found, keys = None, list[str]()
        for path, own, key in self._masks(picture, options, place, alpha):
            entry = self.masks.get(key) or self.masks.put(
                key, self._mask(path, own, picture.fit.bucket, options, place)
            )
            weight = entry["mask"].float() / 255
            found = weight if found is None else found * weight
            keys.append(key)
        return found, keys

    def _masks(self, picture: Picture, options: SetOptions, place: Window, alpha: bool) -> list[tuple[Path, bool, str]]:
        """The file of each mask, whether it is an alpha channel, and the key of it in that window."""
        sources = [(picture.mask, False)] if picture.mask else []
        if alpha and picture.alpha:
            sources.append((picture.path, True))
        where = (picture.fit.bucket, place, options.interpolation)
        return [(path, own, json.dumps([self.index.sha(path), own, *where])) for path, own in sources]

    def _mask(self, path: Path, own: bool, bucket: Size, options: SetOptions, place: Window) -> Entry:
        try:
            colors, alpha = pictures.pixels(path.read_bytes(), hidden=True)
        except (Unreadable, OSError) as error:
            raise UserError(f"data: the mask {path.as_posix()} cannot be read ({error}); fix or remove it") from error
        image = alpha if own and alpha is not None else colors[..., 0]
        cut = pictures.fitted(np.ascontiguousarray(image), *place, bucket, options.interpolation)
        return {"mask": torch.from_numpy(np.array(cut))}

    # -- targets ---------------------------------------------------------------------------------------------------

    def target(self, picture: Picture, options: SetOptions, place: Window, flip: bool, make: bool) -> tuple[Entry, str]:
        """A picture's map in its window: ``latents`` [C, h, w] float32; ``values``, ``truth`` and ``valid`` as ``Maps``
        has them, of one row; ``cells`` [1, h, w] float32, the weight of each cell in a mean over the valid ones. Masks
        make pixels invalid. And the key of it.

        :raises UserError: the file is no such map, or of another shape than its picture, or nothing of it is valid.
        :raises Absent: it is not kept, and may not be made.
        """
        dense, path = self.dense, picture.target
        assert dense is not None and path is not None
        mask, masks = self.mask(picture, options, place, options.alpha_mask)
        key = json.dumps(
            [self.index.sha(path), picture.fit.bucket, place, flip, options.unit, options.valid, dense.task,
             dense.space, dense.quantiles, masks, self.fingerprints.get("vae"), str(self.dtype)]
        )  # fmt: skip
        entry = self.targets.get(key)
        if entry is None:
            if not make:
                raise Absent(key)
            found = self._read_target(path, picture, options, place, None if mask is None else mask.numpy() >= 0.5)
            entry = self.targets.put(key, self._encode_target(targets.flip(found, dense.task) if flip else found))
        return entry, key

    def is_sparse(self, picture: Picture, options: SetOptions, place: Window) -> bool:
        """Whether the losses on latents leave a picture out, as hardly a cell of its map is valid: found without an
        autoencoder, once for each state of the files. UserError as ``target``."""
        dense, path = self.dense, picture.target
        assert dense is not None and path is not None
        masks = self._masks(picture, options, place, options.alpha_mask)
        key = digest(
            json.dumps([picture.fit.bucket, place, options.unit, options.valid, dense.task, [key for *_, key in masks]])
        )

        def look() -> bool:
            weight = torch.ones(picture.fit.bucket[::-1])
            for file, own, _ in masks:
                weight = weight * (self._mask(file, own, picture.fit.bucket, options, place)["mask"].float() / 255)
            found = self._read_target(path, picture, options, place, weight.numpy() >= 0.5 if masks else None)
            return _is_sparse(maps.cell_validity(torch.from_numpy(found.valid), CELL).float())

        return self.index.once(path, "sparse", key, look)

    def _read_target(
        self, path: Path, picture: Picture, options: SetOptions, place: Window, mask: np.ndarray | None
    ) -> targets.Target:
        assert self.dense is not None
        task, (resized, corner) = self.dense.task, place
        found = targets.read_target(path, task, options.unit, options.valid)
        targets.check_shape(path, found, picture.size)
        found = targets.resize(found, (resized[1], resized[0]), task)
        found = targets.crop(found, (corner[1], corner[0]), (picture.fit.bucket[1], picture.fit.bucket[0]))
        found = found if mask is None else targets.Target(found.values, found.valid & mask)
        if not found.valid.any():
            raise UserError(f"{path.as_posix()}: no pixel is valid where the picture is seen; remove it, or its mask")
        return found

    @torch.no_grad()
    def _encode_target(self, found: targets.Target) -> Entry:
        assert self.encode is not None and self.dense is not None, "no autoencoder is attached"
        dense = self.dense
        pixels = maps.encode(found, dense.task, dense.space, dense.quantiles)
        latents = self.encode(pixels[None])[0].to("cpu", self.dtype)
        truth = maps.decode(pixels[None], dense.task)[0]
        values = torch.from_numpy(found.values)
        values = values[None] if values.ndim == 2 else values.permute(2, 0, 1)
        valid = torch.from_numpy(found.valid)
        whole = maps.cell_validity(valid, valid.shape[-1] // latents.shape[-1])[None].float()
        share = float(whole.mean())
        cells = torch.zeros_like(whole) if _is_sparse(whole) else whole / share
        return {
            "latents": latents, "values": values, "truth": truth[None] if truth.ndim == 2 else truth,
            "valid": valid[None], "cells": cells,
        }  # fmt: skip

    # -- captions --------------------------------------------------------------------------------------------------

    def conditioning(self, words: list[str], passing: list[bool], size: Tensor, make: bool) -> Conditioning | None:
        """Of the captions, in float32; None when text encoders are trained. ``passing``: drawn again each time."""
        if self.encode_text is None:
            return None
        entries = [self.words(word, brief, make) for word, brief in zip(words, passing, strict=True)]

        def stack(name: str) -> Tensor | None:
            return torch.cat([entry[name] for entry in entries]) if name in entries[0] else None

        hidden, pooled, mask = stack("hidden"), stack("pooled"), stack("mask")
        assert hidden is not None
        return Conditioning(hidden.float(), None if pooled is None else pooled.float(), mask, size)

    @torch.no_grad()
    def words(self, word: str, passing: bool, make: bool) -> Entry:
        """One caption. Absent when it is not kept and may not be made."""
        key = self._words_key(word)
        entry = self.text.get(key) or self.passing.get(key)
        if entry is None:
            if not make:
                raise Absent(word)
            assert self.encode_text is not None, "no text encoder is attached"
            store = self.passing if passing else self.text
            entry = store.put(key, _parts(self.encode_text([word])))
        return _whole(entry)

    def has_words(self, word: str) -> bool:
        """Whether the caption is kept."""
        return self.text.has(self._words_key(word))

    def keep_words(self, word: str, made: Conditioning) -> None:
        self.text.put(self._words_key(word), _parts(made))

    def _words_key(self, word: str) -> str:
        return json.dumps([word, self.fingerprints["text"]])


def _is_sparse(whole: Tensor) -> bool:
    """Of the share of valid cells, float32."""
    return float(whole.mean()) < WHOLE_CELLS


def _parts(made: Conditioning) -> Entry:
    """As it is kept, in the text encoders' own dtype, less what ``_whole`` gives back exactly.

    Of ``hidden`` [1, tokens, width] it leaves out the rows that repeat the one before them (zeros in place of a missing
    T5, the end of a padding that T5 does not see), and the zeros that the first rows end in (SD3 widens its CLIPs'
    states to T5's). The states of a padding that T5 sees all differ, and SD3's network reads them: they stay.
    """
    hidden = made.hidden
    entry = {name: part for name, part in (("pooled", made.pooled), ("mask", made.mask)) if part is not None}
    new = torch.cat([hidden.new_ones(1, dtype=torch.bool), (hidden[0, 1:] != hidden[0, :-1]).any(1)])
    rows, width = hidden[:, new], hidden.shape[2]
    places = torch.arange(1, width + 1, device=hidden.device)
    widest = ((rows[0] != 0) * places).amax(1).cummax(0).values
    count = int(((width - widest) * torch.arange(1, len(widest) + 1, device=hidden.device)).argmax()) + 1
    narrow = int(widest[count - 1])
    if bool(new.all()) and narrow == width:
        return entry | {"hidden": hidden}
    index = new.cumsum(0, dtype=torch.int32) - 1
    return entry | {"narrow": rows[:, :count, :narrow], "wide": rows[:, count:], "index": index}


def _whole(entry: Entry) -> Entry:
    """With what ``_parts`` left out, and entries of earlier versions with the zeros that these did."""
    if "index" in entry:
        narrow, wide = entry["narrow"], entry["wide"]
        narrow = torch.nn.functional.pad(narrow, (0, wide.shape[2] - narrow.shape[2]))
        hidden = torch.cat([narrow, wide], 1).index_select(1, entry["index"])
    elif "shape" in entry:
        hidden, (_, tokens, width) = entry["hidden"], entry["shape"].tolist()
        hidden = torch.nn.functional.pad(hidden, (0, width - hidden.shape[2], 0, tokens - hidden.shape[1]))
    else:
        return entry
    return {"hidden": hidden, **{name: entry[name] for name in ("pooled", "mask") if name in entry}}
