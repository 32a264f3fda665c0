"""Models by name: fetched by a process of its own with the hub's client, from a stand-in for the hub."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="the interface's own extra is not installed")

from pixelkiln.extension import fetch, findings, recipe
from pixelkiln.extension.store import ROOT, Home

CONTENT = b"weights" * 1000


class Hub(BaseHTTPRequestHandler):
    """Answers for one file of each repository, in pieces, slowly where the test wants that."""

    slow = 0.0
    refuse = begun = False
    ranges: list[str]

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(b"")

    def do_GET(self) -> None:
        self._answer(CONTENT)

    def _answer(self, body: bytes) -> None:
        if type(self).refuse:
            self.send_response(403)
            self.send_header("X-Error-Code", "GatedRepo")
            self.end_headers()
            return
        begin = 0
        if asked := self.headers.get("Range"):
            begin = int(asked.removeprefix("bytes=").split("-")[0])
            type(self).ranges.append(asked)
        self.send_response(206 if begin else 200)
        self.send_header("ETag", f'"{sha256(CONTENT).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(CONTENT) - begin))
        self.end_headers()
        for at in range(begin, len(body), 1000):
            self.wfile.write(body[at : at + 1000])
            self.wfile.flush()
            type(self).begun = True
            time.sleep(type(self).slow)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type[Hub]]:
    handler = type("One", (Hub,), {"ranges": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "pixelkiln").symlink_to(ROOT)  # whatever this checkout's folder is called
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    yield handler
    server.shutdown()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "runs")
    made.make()
    return made


def test_a_tagger_is_fetched_by_name_and_only_once(home: Home, hub: type[Hub]) -> None:
    *_, last = recipe.fetching(home, "tagger")
    assert "WD tagger v3 is here" in last
    for name in fetch.SOURCES["tagger"].files:
        assert (fetch.place(home, "tagger") / name).read_bytes() == CONTENT
    fetch.start(home, "tagger")
    assert fetch.state(home, "tagger").done and not fetch.state(home, "tagger").live


def test_a_fetch_that_was_ended_says_so_and_can_be_taken_up(home: Home, hub: type[Hub]) -> None:
    hub.slow = 0.5
    fetch.start(home, "sd15")
    until = time.monotonic() + 60
    while not hub.begun and time.monotonic() < until:
        time.sleep(0.05)
    assert fetch.state(home, "sd15").live
    fetch.stop(home, "sd15")
    now = fetch.state(home, "sd15")
    assert not now.live and not now.done and not fetch.models(home)
    hub.slow = 0.0
    *_, last = recipe.fetching(home, "sd15")
    assert "SD 1.5 is here" in last and fetch.models(home)


def test_a_model_behind_a_licence_and_a_full_disk_are_one_line(
    home: Home, hub: type[Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.refuse = True
    *_, last = recipe.fetching(home, "sd35m")
    assert "accepted its licence" in last and "huggingface.co/stabilityai" in last
    kept = json.loads((fetch.place(home, "sd35m") / "failed.json").read_text(encoding="utf-8"))
    assert kept["why"] == ""
    monkeypatch.setattr(findings, "free_disk", lambda _: 1.0)
    with pytest.raises(ValueError, match=r"takes 6\.9 GB, and 1\.0 GB are free"):
        fetch.start(home, "sdxl")
