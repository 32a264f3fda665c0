"""The tab in A1111, Forge and their kin: it starts or finds our page, and frames it.

It runs in the host's Python, whatever that brings: standard library, the host's own gradio (3.41 or newer), and of ours
only what needs no more. The page is another process in our own environment.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import locale
import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
WAIT_SECONDS = 60
WORDS = {
    "START": ("Start or show Pixelkiln", "Pixelkiln starten oder zeigen"),
    "FAILED": ("Pixelkiln could not be started: {}", "Pixelkiln konnte nicht gestartet werden: {}"),
    "NOT_SET_UP": (
        "Pixelkiln is not set up yet. Run once, in {}: python install.py ui",
        "Pixelkiln ist noch nicht eingerichtet. Einmal ausführen, in {}: python install.py ui",
    ),
    "EMPTY": (
        "If this stays empty: {} on the machine that trains.",
        "Wenn dies leer bleibt: {} auf dem Rechner, der trainiert.",
    ),
}
"""What the tab says, in English and German."""


def word(name: str) -> str:
    """In the language of the machine, since the host builds its tabs once."""
    spoken = os.environ.get("LANG") or locale.getlocale()[0] or ""
    return WORDS[name][spoken.lower().startswith(("de", "german"))]


def register() -> None:
    from modules import script_callbacks  # type: ignore[import-not-found]  # the host's

    script_callbacks.on_ui_tabs(tab)


def tab():
    """[(page, title, element id)], as the host wants it."""
    import gradio as gr

    with gr.Blocks(analytics_enabled=False) as blocks:
        button = gr.Button(word("START"))
        frame = gr.HTML("")
        button.click(open_page, [], [frame])
    return [(blocks, "Pixelkiln", "pixelkiln_tab")]


def open_page() -> str:
    """The frame around our page; a line of text where it cannot be started."""
    try:
        address = find() or start()
    except OSError as error:
        return f"<p>{word('FAILED').format(error)}</p>"
    if address is None:
        return f"<p>{word('NOT_SET_UP').format(ROOT)}</p>"
    link = f'<a href="{address}" target="_blank">{address}</a>'
    return (
        f"<p>{word('EMPTY').format(link)}</p>"
        f'<iframe src="{address}" style="width:100%;height:90vh;border:0" title="Pixelkiln"></iframe>'
    )


def find() -> str | None:
    """The address of a page that answers; None without one."""
    try:
        known = json.loads((ROOT / "runs" / ".ui" / "page.json").read_text(encoding="utf-8"))
        address = f"http://127.0.0.1:{int(known['port'])}"
        with urllib.request.urlopen(f"{address}/alive", timeout=2) as answer:
            return address if json.load(answer).get("is") == "pixelkiln" else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, urllib.error.URLError):
        return None


def start() -> str | None:
    """Start the page in its own environment and wait for it; None when that is not set up, or it does not answer."""
    python = ROOT / ".venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.is_file():
        return None
    processes = _processes()
    command = [str(python), "-m", "pixelkiln.extension", "--no-browser"]
    process = processes.start_detached(command, None, cwd=ROOT, env=processes.environment())
    until = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < until and process.poll() is None:
        address = find()
        if address:
            return address
        time.sleep(0.5)
    return None


def _processes() -> Any:
    """``trainer/runs/process.py``, standard library only, whatever else the host calls ``trainer``."""
    name = "pixelkiln_tab_trainer"
    where = importlib.machinery.ModuleSpec(name, None, is_package=True)
    where.submodule_search_locations = [str(ROOT / "trainer")]
    sys.modules.setdefault(name, importlib.util.module_from_spec(where))
    return importlib.import_module(f"{name}.runs.process")
