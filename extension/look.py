"""The page's colours and letters: calm, legible, from this machine alone (no fonts or scripts from elsewhere)."""

from __future__ import annotations

from pathlib import Path

import gradio as gr
from gradio.themes.utils import colors, sizes

from . import language

HERE = Path(__file__).resolve().parent
LETTERS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif"]
FIXED = ["ui-monospace", "Cascadia Mono", "Consolas", "DejaVu Sans Mono", "monospace"]
BLUE = colors.Color(
    name="kiln", c50="#f0f6fa", c100="#dceaf3", c200="#b9d5e6", c300="#8dbad4", c400="#5a98bd", c500="#37799f",
    c600="#2b6286", c700="#244f6d", c800="#1f415a", c900="#1b364a", c950="#112332",
)  # fmt: skip


def theme() -> gr.Theme:
    made = gr.themes.Base(
        primary_hue=BLUE, secondary_hue=BLUE, neutral_hue=colors.slate, radius_size=sizes.radius_md,
        spacing_size=sizes.spacing_md, text_size=sizes.text_md, font=LETTERS, font_mono=FIXED,
    )  # fmt: skip
    return made.set(
        body_background_fill="#f7f8fa",
        body_background_fill_dark="#14181d",
        block_background_fill="#ffffff",
        block_background_fill_dark="#1b2027",
        block_border_width="1px",
        block_label_text_size="*text_sm",
        block_info_text_size="*text_xs",
        block_title_text_weight="600",
        block_title_text_color="*neutral_600",  # 4.5 to 1 on the page's grey too
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_500",
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#ffffff",
        input_background_fill_dark="#12161b",
        body_text_color_subdued="#566273",
        body_text_color_subdued_dark="#a3afbd",
    )


def style() -> str:
    return (HERE / "style.css").read_text(encoding="utf-8")


def keys() -> str:
    """The page's own script: keys, addresses of screens, theme, title and notification."""
    return (HERE / "keys.js").read_text(encoding="utf-8")


def head() -> str:
    """What the page runs first: gradio's own words follow the browser's language, and are to follow the page's. A part
    that has left the page is not measured any more: gradio's plot asks for the width of a frame that is gone."""
    spoken = language.spoken()
    return (
        f"<script>document.documentElement.lang = '{spoken}';"
        f"Object.defineProperty(navigator, 'language', {{ get: () => '{spoken}' }});"
        "window.ResizeObserver = class extends ResizeObserver { constructor(measured) { super((entries, observer) => {"
        " const there = entries.filter((one) => one.target.isConnected);"
        " if (there.length) measured(there, observer); }); } };</script>"
    )


def other_language() -> str:
    """The button's script: the page in the other language, which is remembered for a year."""
    other = next(name for name in language.PATHS if name != language.spoken())
    kept = f"{language.COOKIE}={other}; path=/; max-age=31536000; samesite=lax"
    return f"() => {{ document.cookie = '{kept}'; location.assign('{language.PATHS[other]}' + location.hash); }}"
