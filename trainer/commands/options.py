"""``docs/options.md``: every option, as a page."""

from __future__ import annotations

from typing import Any

from ..config import reference


def reference_markdown() -> str:
    """The reference as it is committed in ``docs/options.md``."""
    out = [
        "# Options", "",
        "Made by `python -m trainer options`; do not edit. A name in brackets is kohya's. "
        "As a flag: `--adapter.rank=16`; in a file: `[adapter]`, `rank = 16`.",
    ]  # fmt: skip
    heading = None
    for row in reference():
        title = row["table"] + (f" (kind = {row['kind']})" if row.get("kind") else "")
        if title != heading:
            heading = title
            out += ["", f"## [{title}]" if title else "## top level", ""]
        default = "needed" if row["required"] else f"default {_shown(row['default'])}"
        signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
        bounds = ", ".join(f"{sign} {row['bounds'][k]}" for k, sign in signs.items() if k in row["bounds"])
        kohya = f" [{row['kohya']}]" if row["kohya"] else ""
        former = row["formerly"] and f"formerly `{row['formerly']}`"
        facts = ", ".join(filter(None, [row["type"], bounds, default, former]))
        out.append(f"- **`{row['name']}`**{kohya} — {facts}. {row['help']}")
    return "\n".join(out) + "\n"


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else repr(value)}`".replace("'", '"')
