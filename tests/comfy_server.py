"""A real ComfyUI with a copy of the pack: what test_nodes_host.py and test_nodes_pictures.py start and talk to."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 900


@pytest.fixture(scope="module")
def comfyui() -> tuple[Path, str]:
    if not os.environ.get("COMFYUI_PATH"):
        pytest.skip("COMFYUI_PATH names no ComfyUI")
    return Path(os.environ["COMFYUI_PATH"]), os.environ.get("COMFYUI_PYTHON", sys.executable)


@dataclass
class Server:
    url: str
    base: Path

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return json.loads(answer.read() or b"null")

    def post(self, path: str, body: Any = None) -> Any:
        data = b"" if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"}, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            return {"refused": error.code, **json.loads(error.read() or b"{}")}

    def queue(self, prompt: dict[str, Any]) -> str:
        answer = self.post("/prompt", {"prompt": prompt})
        assert "prompt_id" in answer, answer
        return answer["prompt_id"]

    def ended(self, prompt_id: str) -> dict[str, Any]:
        """Wait for a prompt; its outputs by node id, and its error."""
        until = time.monotonic() + PATIENCE
        while not (history := self.get(f"/history/{prompt_id}")):
            assert time.monotonic() < until
            time.sleep(0.1)
        one = history[prompt_id]
        messages = one["status"]["messages"]
        errors = [m[1]["exception_message"] for m in messages if m[0] == "execution_error"]
        return {"outputs": one["outputs"], "error": "".join(errors), "kinds": [m[0] for m in messages]}

    def run(self, **nodes: tuple[str, dict[str, Any]]) -> dict[str, Any]:
        return self.ended(self.queue({key: {"class_type": t, "inputs": i} for key, (t, i) in nodes.items()}))

    @property
    def data(self) -> Path:
        return self.base / "output" / "pixelkiln" / "data"

    @property
    def runs(self) -> Path:
        return self.base / "output" / "pixelkiln" / "runs"


@pytest.fixture(scope="module")
def server(request, comfyui, tmp_path_factory) -> Iterator[Server]:
    """ComfyUI with a copy of the pack: in the folder FOLDER of the test's file, else in one with a hyphen and a dot."""
    path, python = comfyui
    base = tmp_path_factory.mktemp("comfyui")
    pack = base / "custom_nodes" / getattr(request.module, "FOLDER", "pixel-kiln.1")
    common = shutil.ignore_patterns(".*", "__pycache__")
    apart = {ROOT / name for name in ("build", "tests", "runs", "presets/base", "extension")}

    def unwanted(folder: str, names: list[str]) -> set[str]:
        return {*common(folder, names), *(name for name in names if Path(folder, name) in apart)}

    shutil.copytree(ROOT, pack, ignore=unwanted)
    for folder in ("models/loras", "models/checkpoints", "input", "output/pixelkiln/data", "temp", "user"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    if os.environ.get("COMFYUI_CHECKPOINT"):
        (base / "models.yaml").write_text(f"ours:\n  checkpoints: {Path(os.environ['COMFYUI_CHECKPOINT']).parent}\n")
    model = tiny.tiny_sd15(base / "tiny")
    (base / "output/pixelkiln/data/tiny.toml").write_text(
        f"""# tiny
config_version = 1
run = {{steps = 8, batch = 1, device = "cpu"}}
model = {{path = {json.dumps(str(model))}}}
data = {{resolution = 64}}
adapter = {{rank = 4}}
save = {{every = 4, state_every = 4}}
sample = {{prompts = ["a red cat"], steps = 2, every = 4}}
""",
        encoding="utf-8",
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [python, "main.py", "--cpu", "--base-directory", str(base), "--disable-auto-launch", "--port", str(port)]
    command += ["--disable-api-nodes", "--preview-method", "none", "--database-url", "sqlite:///:memory:"]
    command += ["--extra-model-paths-config", str(base / "models.yaml")] if (base / "models.yaml").exists() else []
    environment = {**os.environ, "PIXELKILN_PYTHON": sys.executable, "HF_HUB_OFFLINE": "1"}
    with (base / "server.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=path, env=environment, stdout=log, stderr=log)
        try:
            one = Server(f"http://127.0.0.1:{port}", base)
            until(lambda: process.poll() is not None or answers(one), "the server to start")
            assert process.poll() is None, (base / "server.log").read_text(encoding="utf-8")[-4000:]
            yield one
        finally:
            process.terminate()
            process.wait(60)


def answers(server: Server) -> bool:
    try:
        return bool(server.get("/system_stats"))
    except OSError:
        return False


def until(true: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.1)
