"""``docs/options.md``: every option, as a page.

Making them takes pydantic half a second. What came of it is kept in the user's cache for as long as no source file of
the trainer changes, so that looking an option up does not wait for that.
"""

from __future__ import annotations

from typing import Any

from ..runs import user_cache


def looked_up() -> dict[str, Any]:
    """``rows``: every option as JSON has it; ``page``: ``reference_markdown``. From the cache where they are there."""
    key = user_cache.source_digest()
    found = user_cache.known("options").get(key)
    if isinstance(found, dict) and found.keys() == {"rows", "page"}:
        return found
    from ..config import reference

    made = {"rows": reference(), "page": reference_markdown()}
    user_cache.remember("options", key, made, most=1)
    return made


def reference_markdown() -> str:
    """The reference as it is committed in ``docs/options.md``."""
    from ..config import reference

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
