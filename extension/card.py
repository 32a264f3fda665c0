"""One picture of step 1: its caption, and what can be done with the picture itself."""

from __future__ import annotations

import functools
import secrets
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from ..trainer.errors import UserError
from . import captions, crops, draft, edits, images, targets, tokens, words
from .boxes import Boxes
from .look import HERE
from .page import EVENT, Context, alert, in_place, kindly, note

SIDE = 720
TYPED = """(text) => {
  const name = document.querySelector("#card figure")?.dataset.name;
  const cell = [...document.querySelectorAll("#grid [role=option]")].find((one) => one.dataset.name === name);
  if (cell) cell.querySelector(".text").textContent = text.slice(0, 140);
}"""
"""Shows a caption under its picture in the grid while it is typed."""


class Card:
    """The picture that is open."""

    def __init__(self, context: Context):
        self.context, self.saved = context, Boxes(context)
        self.name = gr.State("")
        with gr.Column(visible=False, elem_id="card", elem_classes="card") as self.column:
            with gr.Row(elem_classes="tight"):
                self.back = gr.Button(words.PREVIOUS, size="sm", scale=0, min_width=44, elem_id="picture-before")
                self.forward = gr.Button(words.FOLLOWING, size="sm", scale=0, min_width=44, elem_id="picture-after")
                gr.HTML("")
                self.close = gr.Button(words.CLOSE, size="sm", scale=0, min_width=70, elem_id="close-picture")
            self.picture = gr.HTML(js_on_load=(HERE / "crop.js").read_text(encoding="utf-8"))
            self.token = gr.Textbox("", show_label=False, elem_classes="unseen")  # "hidden" ends when the card is shown
            self.box = gr.Textbox(
                "",
                label=words.CAPTION, show_label=False, lines=3, max_lines=8, placeholder=words.CAPTION_PLACEHOLDER,
                elem_id="caption", elem_classes="caption",
            )  # fmt: skip
            self.status = gr.HTML(elem_id="caption-status")
            with gr.Row(elem_classes="tight"):
                self.leave = gr.Button(words.LEAVE_OUT, size="sm", min_width=80, elem_id="leave-out")
                self.take = gr.Button(words.TAKE_BACK, size="sm", min_width=80, elem_id="take-back")
                self.turn = gr.Button(words.ROTATE, size="sm", min_width=70, elem_id="rotate-picture")
                self.paint = gr.Button(words.PAINT, size="sm", min_width=100, elem_id="paint-mask")
                self.original = gr.Button(words.ORIGINAL, size="sm", min_width=110, elem_id="original-picture")
            with gr.Row(elem_classes="align-end tight") as self.cropping:
                self.frame = gr.Textbox(
                    "", label=words.FRAME, info=words.FRAME_INFO, max_lines=1, elem_id="crop-frame", scale=3
                )
                self.crop = gr.Button(words.CROP, size="sm", scale=1, min_width=70, elem_id="crop-picture")
            self.wrong = gr.HTML(elem_id="card-error")
        self.outputs = [
            self.name, self.column, self.picture, self.token, self.box, self.status, self.leave, self.take, self.turn,
            self.paint, self.original, self.cropping, self.frame, self.wrong,
        ]  # fmt: skip
        line = [self.status]
        typed = in_place(functools.partial(self.save, leaving=False), line)
        self.box.input(typed, [self.box, self.token], line, trigger_mode="always_last", **EVENT)
        self.box.input(None, [self.box], None, js=TYPED, **EVENT)
        # What was pasted or dropped is no ``input``.
        self.left = self.box.blur(in_place(self.save, line), [self.box, self.token], line, **EVENT)

    def build_editor(self) -> None:
        """Where a mask is painted, in the place of the grid."""
        with gr.Column(visible=False, elem_id="mask-editor") as self.painting:
            gr.HTML(note(words.PAINT_INFO))
            self.editor = gr.ImageEditor(
                type="pil", sources=(), transforms=(), layers=False, height=560, show_label=False, label=words.PAINT,
                brush=gr.Brush(default_size=32, colors=[edits.PAINT_CSS], color_mode="fixed"),
                eraser=gr.Eraser(default_size=32), format="png", buttons=[],
            )  # fmt: skip
            with gr.Row():
                self.save_mask = gr.Button(
                    words.SAVE_MASK, variant="primary", scale=0, min_width=150, elem_id="save-mask"
                )
                self.end_paint = gr.Button(words.CANCEL, scale=0, min_width=90, elem_id="end-mask")
            self.not_saved = gr.HTML(elem_id="mask-error")

    def shown(self, folder: Path | None, name: str, marks: list[str], recipe: dict[str, Any]) -> list[Any]:
        """The card of a picture, of one that was left out too; closed for a name that is none."""
        path = place(folder, name)
        if folder is None or path is None:
            return ["", gr.update(visible=False), *[gr.skip()] * (len(self.outputs) - 2)]
        text = captions.current(path)
        out, dense = path.parent.name == edits.LEFT_OUT, recipe.get("dense") is not None
        found = targets.of(recipe, folder, [name])
        whole = not out and not dense
        return [
            name, gr.update(visible=True), self._picture(path, marks, recipe, (found or {}).get(name)),
            self.saved.token(path, text), gr.update(value=text, visible=not dense),
            "" if dense else self.length(text), gr.update(visible=not out), gr.update(visible=out),
            gr.update(visible=whole), gr.update(visible=not out),
            gr.update(visible=whole and edits.has_original(path)), gr.update(visible=whole), "",
            "" if dense else self._unread(path),
        ]  # fmt: skip

    def _unread(self, path: Path) -> str:
        """That a caption cannot be read, and so is not in the box."""
        try:
            captions.read(path)
        except UserError:
            return alert(words.CAPTION_LOST.format(captions.file_of(path).name))
        return ""

    def _picture(self, path: Path, marks: list[str], recipe: dict[str, Any], target: Path | None) -> str:
        size, rules = images.size(path), crops.rules(recipe, str(path.parent))
        sizes = f"{size[0]} × {size[1]}" if size else ""
        fit = crops.kept(size, rules) if size and rules else None
        sizes += f" → {fit[0][0]} × {fit[0][1]}" if fit else ""
        seen = "".join(f'<span class="mark">{escape(one)}</span>' for one in marks)
        address, name = self.context.addresses, escape(path.name)
        beside = ""
        if target is not None:
            about = escape(words.TARGET_OF.format(path.name))
            beside = f'<img class="map" src="{address.target(target, SIDE)}" alt="{about}" title="{about}">'
            if wrong := targets.wrong(target, recipe):
                beside = note(wrong, "bad")
        ratio = f"{size[0]} / {size[1]}" if size else "1"
        return (
            f'<figure data-name="{name}" data-shown="{secrets.token_hex(4)}">'
            f'<span class="whole" style="aspect-ratio: {ratio}"><img draggable="false" '
            f'src="{address.url(path, SIDE)}" alt="{name}"><span class="drawn"></span></span>{beside}'
            f'<figcaption title="{escape(str(path))}"><a href="{address.url(path)}" target="_blank">{name}</a> '
            f"<small>{sizes}</small> {seen}</figcaption></figure>"
        )

    def length(self, text: str, saved: bool = False) -> str:
        """How long a caption is as the text encoder sees it, and whether it is saved."""
        values = self.context.recipe()
        trigger, limit = draft.get(values, "data.trigger") or "", draft.get(values, "model.max_tokens") or tokens.LIMIT
        text = captions.line(text)
        count = tokens.count(f"{trigger}, {text}" if trigger and text else text)
        line = (f"{words.SAVED} · " if saved else "") + words.OF_TOKENS.format(count, limit)
        return note(line + (words.CUT if count > limit else ""), "warn" if count > limit else "quiet")

    @kindly
    def save(self, text: str, token: str, leaving: bool = True) -> str:
        self.saved.save(text, token, leaving)
        return self.length(text, saved=bool(token) and self.saved.holds(text, token))

    def keep(self, text: str, token: str) -> None:
        """Save what stands in the box, so that opening another picture loses no keystroke. UserError: it could not."""
        self.saved.save(text, token)

    def masks(self, folder: Path) -> Path | None:
        """Where the masks of a folder of pictures lie; None where the recipe names none."""
        given = crops.of_folder(self.context.recipe(), str(folder)).get("masks")
        return Path(given) if isinstance(given, str) and given else None

    def change(self, what: Callable[[Path, Path | None], None], folder: Path, name: str) -> None:
        """Change a picture and its mask. UserError: it cannot be, or belongs to maps, which would no longer fit."""
        path = place(folder, name)
        if path is None or self.context.recipe().get("dense") is not None:
            raise UserError(words.PICTURE_GONE)
        what(path, edits.mask_of(self.masks(folder), name))

    @kindly
    def open_editor(self, folder: Path, name: str) -> list[Any]:
        """The editor over a picture and its mask."""
        path = place(folder, name)
        if path is None:
            raise UserError(words.NONE_OPEN)
        seen, layer = edits.to_paint(path, edits.mask_of(self.masks(folder), name))
        return [gr.update(visible=True), {"background": seen, "layers": [layer], "composite": None}]

    def paint_over(self, folder: Path, name: str, painted: dict[str, Any] | None) -> None:
        """Save what was painted as the picture's mask, in the folder that the recipe names, or one beside the pictures,
        which it names then."""
        path, layers = place(folder, name), (painted or {}).get("layers") or []
        if path is None:
            raise UserError(words.MASK_GONE)
        before = self.masks(folder)
        masks = before or folder / edits.MASKS
        there = edits.save_mask(masks, path, [one for one in layers if one is not None])
        if there is not None and before is None:
            self.context.change(_naming(self.context.recipe(), folder, str(masks)))


def place(folder: Path | None, name: str) -> Path | None:
    """Where a picture of this name lies, among those that were left out too; None for a name that is none of them."""
    if folder is None or not name or "/" in name or "\\" in name or Path(name).suffix.lower() not in images.ENDINGS:
        return None
    return next((one for one in (folder / name, folder / edits.LEFT_OUT / name) if one.is_file()), None)


def _naming(recipe: dict[str, Any], folder: Path, masks: str) -> dict[str, Any]:
    """What tells the recipe where the masks of this folder lie."""
    sets = draft.get(recipe, "data.sets") or []
    if draft.get(recipe, "data.path") == str(folder) or not sets:
        return {"data.masks": masks}
    return {"data.sets": [{**one, "masks": masks} if one.get("path") == str(folder) else one for one in sets]}
