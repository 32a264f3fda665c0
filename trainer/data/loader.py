"""The data as the engine sees it: ``Dataset``, then its ``attach``, ``prepare``, and ``batch(step)`` for any step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..dense.options import DenseOptions
from ..diffusion.types import Batch, Conditioning, Maps, Rows
from ..errors import UserError
from . import captions
from .augment import Window, vary_colors, window
from .batches import Plan, balanced, held_out, stream
from .buckets import Size, conditioning, rules
from .cache import SdScriptsLatents, digest
from .items import Item, Picture, check_unreadable
from .options import DataOptions, SetOptions
from .pictures import Unreadable
from .progress import Progress, in_parallel, silent
from .report import report, tag_frequency
from .scan import scan
from .shelf import Absent, Encode, EncodeText, Shelf

TOGETHER = 256
"""Captions that a text encoder reads before the next takes its place on the GPU: 0.7 GB of SD3's states in 16 bits."""


@dataclass(frozen=True)
class Use:
    """One item in a batch, with what chance decided; both pictures of a pair share it."""

    item: Item
    group: int
    caption: str
    flip: bool = False
    key: tuple = ()
    """Of the stream that draws crops and colours; empty: nothing is left to chance."""
    visit: int = 0


@dataclass(frozen=True)
class Job:
    """A picture to decode and encode."""

    picture: Picture
    options: SetOptions
    flips: tuple[bool, ...]


class Dataset:
    """Pictures, pairs or ratings, in an order that is a pure function of the seed.

    It can be built, and asked for ``report``, ``plan`` and ``needs_text_encoder``, without any model.
    """

    def __init__(
        self,
        options: DataOptions,
        *,
        base_seed: int = 0,
        effective_batch: int = 1,
        shares: int = 1,
        native: int = 512,
        multiple: int = 8,
        cache_dir: Path | str | None = None,
        fixed_draws: int = 0,
        dense: DenseOptions | None = None,
        encode: Encode | None = None,
        encode_text: EncodeText | None = None,
        fingerprints: Mapping[str, str] | None = None,
        progress: Progress = silent,
        remember: bool = True,
    ):
        """Scan and plan.

        :param effective_batch: items per optimizer step, over all micro-batches and processes.
        :param shares: into so many micro-batches of all processes an effective batch is cut; that of a set with a batch
            size of its own has so many times that.
        :param native: side in pixels that the model was made for, where [data] gives no resolution.
        :param multiple: what the sides of its pictures have to be a multiple of.
        :param cache_dir: where caches go if [data] does not say; None: what would go to the disk stays in memory.
        :param dense: of a dense run, whose pictures have targets and no captions; a sample is a row that predicts the
            map and, with a detail preserver, one that reconstructs the picture.
        :param remember: whether what files hold is kept in the cache folder, so that the next scan need not read them.
        :param fixed_draws: K > 0: the k-th visit of an item repeats the choices of visit k mod K.
        :raises UserError: see ``scan.scan``; nothing can be held out; the options contradict ``fixed_draws``; a
            bucket does not fit ``multiple``.
        """
        self.options = options
        self.seed = base_seed
        self.effective_batch = effective_batch
        self.shares = shares
        self.fixed_draws = fixed_draws
        self.dense = dense
        self.native = native
        self.total_steps = 0
        root = options.cache_dir or cache_dir
        self.cache_root = Path(root) if root else None
        self.shelf = Shelf(options, self.cache_root, dense)
        self.scan = scan(options, native, self.shelf.index, progress, dense)
        self._sparse: set[Path] = set()
        if remember:
            self.shelf.index.save()
        for one in self.scan.sets:
            if fixed_draws and (one.token_warmup_steps or one.caption_dropout_every_n_epochs):
                raise UserError(
                    "data: token_warmup_steps and caption_dropout_every_n_epochs change captions during the run, but "
                    "cached references need the same ones; leave them out, or set reference_draws = 0"
                )
        odd = next((i.bucket for i in self.scan.items if i.bucket[0] % multiple or i.bucket[1] % multiple), None)
        if odd:
            raise UserError(
                f"data: this model takes sides that are multiples of {multiple}, not {odd[0]}x{odd[1]}; change "
                "resolution or bucket_step"
            )
        self._worker: ThreadPoolExecutor | None = None
        self._next: tuple[int, Future[Batch | None]] | None = None
        self._plan()
        self.attach(encode, encode_text, fingerprints)

    def attach(
        self,
        encode: Encode | None,
        encode_text: EncodeText | None = None,
        fingerprints: Mapping[str, str] | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        sd_scripts: SdScriptsLatents | None = None,
        total_steps: int = 0,
        family: str = "",
    ) -> None:
        """Say how pictures and captions are encoded.

        :param encode_text: None when text encoders are trained: batches then have no conditioning.
        :param fingerprints: ``"vae"``: whatever decides what ``encode`` gives (weights, precision, scaling);
            ``"text"``: the same of the text encoders and their token settings.
        :param dtype: of kept latents.
        :param sd_scripts: how latents that sd-scripts cached are read.
        :param total_steps: of the run, for a tag warm-up that is a fraction of it.
        :param family: of the model, which cached entries name.
        """
        self.shelf.attach(encode, encode_text, fingerprints, dtype, sd_scripts, family)
        self.total_steps = total_steps
        self._next = None

    def _plan(self) -> None:
        plain = [item for item in self.scan.items if not item.is_reg]
        out = held_out([item.group for item in plain], self.options.validation_split, self.options.validation_seed)
        if self.options.validation_split and not out:
            raise UserError("data.validation_split: all items belong together, so none can be held out; set it to 0")
        self.held = [item for i, item in enumerate(plain) if i in out]
        train = [item for i, item in enumerate(plain) if i not in out]
        regs = [item for item in self.scan.items if item.is_reg]
        used = [(item, count) for item, count in self._matched(train, regs) if count]
        self.unused = len(regs) - len(used)
        self.items = train + [item for item, _ in used]
        repeats = [item.repeats for item in train] + [count for _, count in used]
        pools = [(self.set_of(item).pool, self.set_of(item).batch or 0) for item in self.items]
        sizes = {pool: pool[1] * self.shares for pool in pools if pool[1]}
        buckets = [item.bucket for item in self.items]
        self.plan = Plan(buckets, repeats, self.effective_batch, self.seed, pools, sizes)
        if not self.plan.samples:
            raise UserError("data: nothing is left to train on; set repeats to 1 or more")

    def _matched(self, train: Sequence[Item], regs: Sequence[Item]) -> Iterator[tuple[Item, int]]:
        """Regularisation pictures with how often each is seen: as often as the others of their pool, together."""
        for pool in dict.fromkeys(self.set_of(item).pool for item in regs):
            mine = [item for item in regs if self.set_of(item).pool == pool]
            others = sum(item.repeats for item in train if self.set_of(item).pool == pool)
            yield from zip(mine, balanced(others, [item.repeats for item in mine]), strict=True)

    # -- what there is ---------------------------------------------------------------------------------------------

    def set_of(self, item: Item) -> SetOptions:
        return self.scan.sets[item.set]

    @property
    def steps_per_epoch(self) -> int:
        return self.plan.steps_per_epoch

    def batches_per_epoch(self, accumulation: int) -> int:
        """Micro-batches of an epoch, where ``accumulation`` of them are a step."""
        return sum(-(-samples // max(1, size // accumulation)) for _, samples, _, size, _ in self.plan.rows)

    @property
    def resolution(self) -> Size:
        """Width and height of the first set's resolution."""
        return rules(self.scan.sets[0], self.native).resolution

    @property
    def kind(self) -> str:
        return "pairs" if self.options.pairs else "ratings" if self.options.ratings else "pictures"

    @property
    def needs_text_encoder(self) -> bool:
        """Whether captions have to be encoded during the run: they change, or are not kept."""
        return self.options.cache_text == "off" or any(captions.varies(self.set_of(item)) for item in self.items)

    @property
    def signature(self) -> str:
        """Changes when a resumed run would not see the order of the stopped one."""
        rows = [
            (
                item.name,
                item.caption,
                item.weight,
                self.set_of(item).pool,
                self.set_of(item).batch,
                [(one.size, one.fit.bucket) for one in item.pictures],
                times,
            )
            for item, times in zip(self.items, self.plan.repeats, strict=True)
        ]
        return digest(repr((rows, self.seed, self.effective_batch, self.fixed_draws)))

    @property
    def warnings(self) -> list[str]:
        """One line for each kind of oddity, counted."""
        lines = self.scan.notes.lines()
        if self.unused:
            lines.append(f"regularisation pictures left out, as there are more than training pictures: {self.unused}")
        if self.shelf.foreign:
            lines.append(f"pictures whose latents come from sd-scripts' .npz files: {len(self.shelf.foreign)}")
        if self.shelf.remade:
            lines.append(f"damaged cache entries, made again: {self.shelf.remade}")
        return lines

    @property
    def report(self) -> dict:
        """JSON-able: what there is, and how long an epoch is."""
        return report(self)

    def tag_frequency(self) -> dict[str, dict[str, int]]:
        """For each folder how often each tag occurs in its captions."""
        return tag_frequency(self)

    # -- batches ---------------------------------------------------------------------------------------------------

    def batch(self, step: int) -> Batch:
        """The whole effective batch of a step (from 0), on the CPU. The next one is read meanwhile if it is kept."""
        ready = self._next[1].result() if self._next is not None and self._next[0] == step else None
        batch = ready or self._build(self._uses(step), make=True)
        if self.options.cache_latents != "off":
            self._worker = self._worker or ThreadPoolExecutor(1, "prefetch")
            self._next = (step + 1, self._worker.submit(self._ahead, step + 1))
        return batch

    def _ahead(self, step: int) -> Batch | None:
        try:
            return self._build(self._uses(step), make=False)
        except (Absent, ValueError, OSError):  # the main thread makes it, or meets the error itself
            return None

    def micro_batch(self, step: int) -> int | None:
        """Items on the GPU at a time in a step, where its sets say so."""
        return self.set_of(self.items[self.plan.batch(step).occurrences[0].item]).batch

    def visits(self, step: int) -> list[int]:
        """For each group of a step's batch how often its item was seen before, modulo ``fixed_draws`` when that is
        set."""
        return [use.visit for use in self._uses(step)]

    def validation_batches(self, size: int | None = None) -> list[Batch]:
        """All held-out items, at most ``size`` at once, without chance: no flip, no dropout. Groups count through all
        of them."""
        return self.plain_batches(self.held, size)

    def plain_batches(self, items: Sequence[Item], size: int | None = None) -> list[Batch]:
        """As ``validation_batches``, of any items."""
        order = sorted(range(len(items)), key=lambda i: (items[i].bucket, i))
        uses = [
            Use(item, group, captions.plain(item.caption, self.set_of(item)))
            for group, item in enumerate(items[i] for i in order)
        ]
        batches = []
        while uses:
            some = [use for use in uses[: size or self.effective_batch] if use.item.bucket == uses[0].item.bucket]
            batches.append(self._build(some, make=True))
            uses = uses[len(some) :]
        return batches

    def _uses(self, step: int) -> list[Use]:
        planned = self.plan.batch(step)
        uses = []
        for one in planned.occurrences:
            item = self.items[one.item]
            options = self.set_of(item)
            visit = one.visit % self.fixed_draws if self.fixed_draws else one.visit
            key = (self.seed, item.name, visit) if self.fixed_draws else (self.seed, step, one.index)
            rng = stream(*key, "caption")
            caption = captions.draw(item.caption, options, rng, planned.epoch, step, self.total_steps)
            flip = options.flip and stream(*key, "flip").random() < 0.5
            uses.append(Use(item, one.index, caption, flip, key, visit))
        return uses

    def _build(self, uses: Sequence[Use], make: bool) -> Batch:
        """Winners before losers; plain pictures as they come. Absent when ``make`` is off and something is not kept."""
        rows = [(use, i) for i in range(len(uses[0].item.pictures)) for use in uses]
        parts = [self._row(use, i, make) for use, i in rows]
        sets = [self.set_of(use.item) for use, _ in rows]
        size = torch.tensor([part[1] for part in parts], dtype=torch.float32)
        words = [use.caption for use, _ in rows]
        passing = [bool(use.key) and captions.varies(one) for (use, _), one in zip(rows, sets, strict=True)]
        weights = torch.tensor([use.item.weight for use, _ in rows], dtype=torch.float32)
        batch = Batch(
            latents=torch.stack([part[0] for part in parts]),
            captions=words,
            size=size,
            rows=Rows([use.item.roles[i] for use, i in rows], weights, torch.tensor([use.group for use, _ in rows])),
            keys=[part[3] for part in parts],
            conditioning=self.shelf.conditioning(words, passing, size, make),
            mask=_stacked([part[2] for part in parts], uses[0].item.bucket),
            preserve=torch.tensor([one.preserve for one in sets]) if any(one.preserve for one in sets) else None,
        )
        return batch if self.dense is None else self._with_targets(batch, rows, self.dense.detail, make)

    def _with_targets(self, batch: Batch, rows: Sequence[tuple[Use, int]], detail: float, make: bool) -> Batch:
        """The batch of a dense run: rows that reconstruct count ``detail`` times, and have their own latents as target;
        masks are part of the maps' validity."""
        targets, cells, maps = [], [], []
        for (use, i), latents in zip(rows, batch.latents, strict=True):
            picture = use.item.pictures[i]
            place = self._window(use, picture)
            entry, _ = self.shelf.target(picture, self.set_of(use.item), place, use.flip, make)
            whole = use.item.roles[i] == "reconstruction"
            names = ("truth", "values", "valid")
            targets.append(latents if whole else entry["latents"].float())
            cells.append(torch.ones_like(entry["cells"]) if whole else entry["cells"])
            maps.append([torch.zeros_like(entry[name]) if whole else entry[name] for name in names])
        many = [detail if role == "reconstruction" else 1.0 for role in batch.rows.role]
        return replace(
            batch,
            rows=replace(batch.rows, weight=batch.rows.weight * torch.tensor(many)),
            mask=torch.stack(cells),
            target=torch.stack(targets),
            maps=Maps(*(torch.stack(part) for part in zip(*maps, strict=True))),
        )

    def _row(self, use: Use, i: int, make: bool) -> tuple[Tensor, list[int], Tensor | None, str]:
        """Latents, size conditioning, mask and key of one picture."""
        options, picture = self.set_of(use.item), use.item.pictures[i]
        place = self._window(use, picture)
        colors = repr(use.key) if use.key and options.color else None
        key = self.shelf.key(picture, options, place, use.flip, colors)
        latents, foreign = self.shelf.kept(key, picture, use.flip) or (None, [])
        if latents is None:
            if not make:
                raise Absent(key)
            try:
                image = self.shelf.pixels(picture, options, place)
            except (Unreadable, OSError) as error:
                raise UserError(f"data: {use.item.name} cannot be read any more ({error}); restore it") from error
            image = vary_colors(image, stream(*use.key, "color")) if colors else image
            latents = self.shelf.make(key, picture, image, use.flip)
        size = conditioning(picture.size, picture.fit.bucket, use.flip)
        if (options.random_crop or options.face_crop) and not options.buckets:  # the crop is the picture
            size = conditioning(picture.fit.bucket, picture.fit.bucket, use.flip)
        first = use.item.pictures[0]  # a pair has one mask
        where = place if i == 0 else self._window(use, first)
        mask, weighing = self.shelf.mask(first, options, where, options.alpha_mask)
        if mask is not None and use.flip:
            mask = mask.flip(1)
        known = digest(repr((key, use.caption, *foreign, *weighing)))
        return latents, list(size), mask, f"{use.item.name}@{known[:16]}"

    def _window(self, use: Use, picture: Picture) -> Window:
        rng = stream(*use.key, "crop") if use.key else None
        return window(picture.path, picture.size, picture.fit, self.set_of(use.item), rng)

    def true_map(self, item: Item) -> tuple[Tensor, Tensor]:
        """The truth and the validity of a dense run's item, as ``Maps`` has them, without chance."""
        picture, options = item.pictures[0], self.set_of(item)
        place = window(picture.path, picture.size, picture.fit, options, None)
        entry, _ = self.shelf.target(picture, options, place, flip=False, make=True)
        return entry["truth"], entry["valid"]

    # -- filling the caches ----------------------------------------------------------------------------------------

    def prepare(
        self,
        progress: Progress | None = None,
        share: tuple[int, int] = (0, 1),
        between: Callable[[], None] | None = None,
    ) -> None:
        """Decode every picture once, and fill the caches. Pictures that turn out to be broken are left out and noted,
        and the plan is made again without them.

        :param between: called when the captions are encoded and the pictures are not yet.
        :param share: (i, n): do the i-th of n parts only, and leave nothing out; all processes then wait for each other
            and call this once more without it.
        :raises UserError: more broken pictures than allowed, the cache cannot be written, the autoencoder makes NaN.
        """
        jobs = self._jobs()[share[0] :: share[1]]
        broken: dict[Path, str] = {}
        shown = progress or silent
        words = self._fixed_captions()[share[0] :: share[1]] if self.shelf.encode_text else []
        for word in shown(words, "captions", len(words)):
            self.shelf.words(word, passing=False, make=True)
        if between:
            between()
        for job, found in shown(in_parallel(self._decode, jobs), "pictures", len(jobs)):
            if isinstance(found, str):
                broken[job.picture.path] = found
            elif found is not None:
                for key, flip in found[1]:
                    self.shelf.make(key, job.picture, found[0], flip)
        if self.dense and self.options.cache_latents != "off":
            self._make_targets([job for job in jobs if job.picture.path not in broken], shown)
        if broken and share[1] == 1:
            self._leave_out(broken)
        self.shelf.index.save()

    def encode_captions(
        self, encode: Callable[[list[str]], list[Conditioning]], progress: Progress | None = None
    ) -> None:
        """Fill the cache of captions by an ``encode`` of many at once, before ``prepare``, which then finds them."""
        words = [word for word in self._fixed_captions() if not self.shelf.has_words(word)]
        parts = [words[at : at + TOGETHER] for at in range(0, len(words), TOGETHER)]
        for part in (progress or silent)(parts, "captions", len(parts)):
            for word, made in zip(part, encode(part), strict=True):
                self.shelf.keep_words(word, made)

    def _jobs(self) -> list[Job]:
        """Each picture of each size once, with the orientations that are needed."""
        jobs: dict[tuple, Job] = {}
        for items, trained in ((self.items, True), (self.held, False)):
            for item in items:
                options = self.set_of(item)
                flips = (False, True) if options.flip and trained else (False,)
                for picture in item.pictures:
                    key = (picture, options.interpolation, options.transparent, options.alpha_mask, flips)
                    jobs.setdefault(key, Job(picture, options, flips))
        return list(jobs.values())

    def _decode(self, job: Job) -> tuple[np.ndarray, list[tuple[str, bool]]] | str | None:
        """In a thread: the picture, with the keys under which it has to be encoded; None when all is kept already; text
        when it is broken."""
        keep = self.options.cache_latents != "off" and self.shelf.encode is not None
        place = window(job.picture.path, job.picture.size, job.picture.fit, job.options, None)
        try:
            keys = [(self.shelf.key(job.picture, job.options, place, flip), flip) for flip in job.flips] if keep else []
            todo = [(key, flip) for key, flip in keys if not self.shelf.has(key, job.picture, flip)]
            if not todo and (keep or self.shelf.index.sound(job.picture.path)):
                return None
            image = self.shelf.pixels(job.picture, job.options, place)
        except (Unreadable, OSError) as error:
            return str(error)
        self.shelf.index.sound(job.picture.path, now=True)
        if self.options.cache_latents != "off":
            self.shelf.mask(job.picture, job.options, place, job.options.alpha_mask)
        return (image, todo) if todo else None

    def _make_targets(self, jobs: Sequence[Job], shown: Progress) -> None:
        """Read and encode the maps, and note the pictures that the losses on latents leave out."""
        for job in shown(jobs, "targets", len(jobs)):
            place = window(job.picture.path, job.picture.size, job.picture.fit, job.options, None)
            for flip in job.flips:
                entry, _ = self.shelf.target(job.picture, job.options, place, flip, make=True)
                if not flip and not entry["cells"].any():
                    self._note_sparse(job.picture)

    def look_at_targets(self, progress: Progress | None = None) -> None:
        """Read the maps of a dense run, and note the pictures that the losses on latents leave out, as ``prepare``
        does, but without an autoencoder. What was seen of a file is remembered.

        :raises UserError: a map cannot be used.
        """
        jobs = self._jobs()

        def look(job: Job) -> bool:
            place = window(job.picture.path, job.picture.size, job.picture.fit, job.options, None)
            return self.shelf.is_sparse(job.picture, job.options, place)

        for job, sparse in (progress or silent)(in_parallel(look, jobs), "targets", len(jobs)):
            if sparse:
                self._note_sparse(job.picture)
        self.shelf.index.save()

    def _note_sparse(self, picture: Picture) -> None:
        if picture.path not in self._sparse:
            self._sparse.add(picture.path)
            self.scan.notes.add("sparse target", picture.path.name)

    def _leave_out(self, broken: Mapping[Path, str]) -> None:
        kept = []
        for item in self.scan.items:
            why = next((broken[one.path] for one in item.pictures if one.path in broken), None)
            if why is None:
                kept.append(item)
            else:
                self.scan.notes.add("unreadable", f"{item.name} ({why})")
        check_unreadable(self.scan.notes, self.options.max_unreadable)
        self.scan.items = kept
        self._next = None
        self._plan()

    def _fixed_captions(self) -> list[str]:
        """The captions that are known beforehand and worth keeping."""
        if self.options.cache_text == "off":
            return []
        words: dict[str, None] = {}
        for items, trained in ((self.items, True), (self.held, False)):
            for item in items:
                options = self.set_of(item)
                if not trained or not captions.varies(options):
                    words[captions.plain(item.caption, options)] = None
                if trained and captions.drops(options):
                    words[""] = None
        return list(words)


def _stacked(masks: Sequence[Tensor | None], bucket: tuple[int, int]) -> Tensor | None:
    """[B, 1, H, W]; ones where there is none; None when there is none at all."""
    if all(mask is None for mask in masks):
        return None
    ones = torch.ones(bucket[1], bucket[0])
    return torch.stack([ones if mask is None else mask for mask in masks])[:, None]
