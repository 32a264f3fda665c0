"""A page to vote on, blind: two pictures of one prompt and noise at a time, sides by chance, arms not named.

It lies in the study's folder and shows the pictures there; what was voted is kept by the browser, and saved as
``votes.jsonl``, which belongs into the same folder. A vote counts once the browser's database says that it is kept:
``localStorage`` of a page from a file answers with older votes after a reload now and then.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass

STYLE = """
body { font: 16px/1.4 system-ui, sans-serif; margin: 1rem; text-align: center; background: #ddd; color: #111; }
main { display: flex; gap: 1rem; justify-content: center; } img { width: 45vw; max-width: 640px; }
[hidden] { display: none !important; }
button { font-size: 1rem; padding: .5rem 1rem; margin: .3rem; }
"""
SCRIPT = """
const key = "pixelkiln-votes-" + study, at = id => document.getElementById(id);
let given = JSON.parse(localStorage.getItem(key) || "[]"), database = null, busy = true;
function show() {
  const now = duels[given.length];
  at("count").textContent = given.length + " of " + duels.length;
  at("pair").hidden = at("choices").hidden = !now;
  at("prompt").textContent = now ? now.text : "All are voted on. Save the votes into the study's folder.";
  if (now) { at("left").src = now.sources[0]; at("right").src = now.sources[1]; }
  busy = false;
}
function open(kept) {
  if (kept) given = kept;
  if (!database) at("unkept").hidden = false;
  show();
}
function keep(rows) {
  busy = true;
  const shown = () => { given = rows; show(); };
  if (!database) return shown();
  const change = database.transaction("votes", "readwrite");
  change.objectStore("votes").put(rows, key);
  change.oncomplete = shown;
  change.onabort = () => { at("unkept").hidden = false; shown(); };
}
function vote(won) {
  const now = duels[given.length];
  if (!now || busy) return;
  keep([...given, {v: 1, left: now.left, right: now.right, won, prompt: now.prompt, t: Date.now() / 1000,
                   mark: now.mark}]);
}
function undo() { if (!busy) keep(given.slice(0, -1)); }
function save() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(given.map(row => JSON.stringify(row) + "\\n")));
  link.download = "votes.jsonl"; link.click();
}
addEventListener("keydown", event => {
  const what = {ArrowLeft: "left", ArrowRight: "right", ArrowDown: "tie"}[event.key];
  if (what) { event.preventDefault(); vote(what); } else if (event.key === "Backspace") undo();
});
const opening = indexedDB.open("pixelkiln-votes", 1);
opening.onupgradeneeded = () => opening.result.createObjectStore("votes");
opening.onerror = () => open();
opening.onsuccess = () => {
  database = opening.result;
  const asked = database.transaction("votes").objectStore("votes").get(key);
  asked.onsuccess = () => open(asked.result);
};
"""


@dataclass(frozen=True)
class Duel:
    """Pictures of the first arm and another, of one seed and prompt."""

    first: str
    """As ``votes.candidate`` calls it."""
    other: str
    prompt: int
    text: str
    sources: tuple[str, str]
    """Of the first and the other, relative to the study's folder."""


def page(study: str, duels: Sequence[Duel]) -> str:
    """All duels in an order and with sides that follow from their names: a page that is written again is the same."""
    shown = []
    for duel in duels:
        mark = hashlib.sha256(f"{study}/{duel.first}/{duel.other}/{duel.prompt}".encode()).hexdigest()[:16]
        names, sources = (duel.first, duel.other), duel.sources
        if int(mark, 16) % 2:
            names, sources = names[::-1], sources[::-1]
        shown.append({"left": names[0], "right": names[1], "prompt": duel.prompt, "text": duel.text,
                      "sources": sources, "mark": mark})  # fmt: skip
    shown.sort(key=lambda row: row["mark"])
    random.Random(0).shuffle(shown)
    data = json.dumps(shown).replace("<", "\\u003c")
    name = json.dumps(study + hashlib.sha256(data.encode()).hexdigest()[:8]).replace("<", "\\u003c")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Which is better?</title><style>{STYLE}'
        '</style></head><body><p id="prompt"></p><main id="pair"><img id="left" alt="left"><img id="right" alt="right">'
        '</main><p id="choices"><button onclick="vote(\'left\')">← left</button><button onclick="vote(\'tie\')">'
        '↓ equal</button><button onclick="vote(\'right\')">right →</button></p><p><small id="count"></small> '
        '<button onclick="undo()">undo</button><button onclick="save()">save votes.jsonl</button></p>'
        '<p id="unkept" hidden>This browser keeps no votes: save them before the page is closed.</p>'
        f"<script>const study = {name}, duels = {data};{SCRIPT}</script></body></html>\n"
    )
