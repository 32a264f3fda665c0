"""What happens around a run: full disks, folders that are read-only or gone, clocks, twins, other machines. Each is a
clear line, or it just works."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import short_runs as runs
from fork_server import Server
from safetensors import safe_open
from waiting import until

from pixelkiln.trainer.config import Config
from pixelkiln.trainer.runs import control
from pixelkiln.trainer.training import checkpoint

pytestmark = pytest.mark.skipif(os.name == "nt", reason="processes are forked")


@pytest.fixture(scope="module")
def server():
    with Server() as made:
        yield made


class Run:
    """A run in a process of its own."""

    def __init__(self, server: Server, root: Path, **flags: object):
        self.server, self.root, self.log = server, root, root / "log"
        values = {"run.steps": 8, "run.batch": 2, "save.state_every": 2, "save.every": 2, "optimizer.kind": "AdamW"}
        self.config: Config = runs.config(root, {**values, **{k.replace("__", "."): v for k, v in flags.items()}})
        self.folder = Path(self.config.run.out) / self.config.run.name
        self.file = root / f"{self.config.run.name}.toml"
        self.file.write_text(self.config.to_toml(), "utf-8")

    def train(self, *words: object, **hooks: object) -> int:
        self.log.unlink(missing_ok=True)
        return self.server.run(["train", self.file, *words], self.log, **hooks)

    def error(self) -> str:
        """The one clear line."""
        reported = self.log.read_text("utf-8")
        assert "Traceback" not in reported, reported
        (line,) = [line for line in reported.splitlines() if line.startswith("error: ")]
        return line

    @property
    def states(self) -> list[int]:
        found = []
        for path in checkpoint.states(self.folder / "state"):
            with safe_open(path, "pt") as file:
                assert all(file.get_tensor(name).isfinite().all() for name in file.keys())  # noqa: SIM118
            found.append(int(path.stem[4:]))
        return found

    @property
    def steps(self) -> list[tuple[int, float]]:
        return [(e["step"], e["loss"]) for e in control.events(self.folder)[0] if e["kind"] == "step"]


# ---------------------------------------------------------------------------------------------------------- full disks


@pytest.mark.slow
def test_a_disk_that_is_full_from_the_middle_on(server, tmp_path):
    """Every file is cut at so many bytes: states and adapters of later steps do not fit, smaller files do."""
    whole, run = Run(server, tmp_path, run__name="whole"), Run(server, tmp_path, run__name="full")
    assert whole.train() == 0
    assert run.train(full_at_step=5) == 2
    assert "it cannot be written (file too large)" in run.error()
    assert "What was there before is untouched" in run.error()
    assert run.states == [2, 4]
    assert not list(run.folder.rglob("*.tmp"))
    assert run.train("--resume") == 0
    assert dict(run.steps) == dict(whole.steps)


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts a small disk")
@pytest.mark.nightly
@pytest.mark.parametrize("kilobytes", [200, 700, 1500])
def test_a_small_disk(server, tmp_path, kilobytes):
    """Nothing at all can be written any more: neither events nor status nor log."""
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", str(small)]).returncode:
        pytest.skip("may not mount")
    try:
        run = Run(server, tmp_path, run__out=str(small / "runs"), run__steps=400, save__every=1, save__state_every=1)
        assert run.train() == 2
        assert "cannot be written (no space left on device); free some space" in run.error()
        kept = run.states
        subprocess.run(["mount", "-o", "remount,size=64m", str(small)], check=True)
        shorter = ["--run.steps", len(run.steps) + 3, "--save.every=0"]
        assert run.train(*["--resume"] * bool(kept), *shorter) == 0, run.log.read_text()
        assert not list(run.folder.rglob("*.tmp"))
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


# ------------------------------------------------------------------------------------------------- folders and files


@pytest.mark.nightly
def test_a_folder_that_may_not_be_written(server, tmp_path):
    run = Run(server, tmp_path)
    Path(run.config.run.out).mkdir(parents=True)
    Path(run.config.run.out).chmod(0o555)
    assert run.train(no_override=True) == 2
    assert run.error().startswith(
        f"error: run.out: {run.folder} cannot be written (Permission denied); choose a folder"
    )


@pytest.mark.slow
def test_a_folder_that_becomes_read_only(server, tmp_path):
    run = Run(server, tmp_path)
    assert run.train(no_override=True, read_only_at_step=5) == 2
    assert "it cannot be written (permission denied); choose a folder that can be written to" in run.error()
    assert run.states == [2, 4]
    (run.folder / "state").chmod(0o755)
    (run.folder / "checkpoints").chmod(0o755)
    assert run.train("--resume") == 0


@pytest.mark.nightly
def test_a_read_only_folder_of_pictures_is_enough(server, tmp_path):
    run = Run(server, tmp_path)
    (tmp_path / "pictures").chmod(0o555)
    assert run.train(no_override=True) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "cache", [pytest.param("disk", marks=pytest.mark.nightly), pytest.param("memory", marks=pytest.mark.nightly), "off"]
)
def test_pictures_that_disappear_in_the_middle(server, tmp_path, cache):
    """Kept latents are enough; without them the run says what it misses, and goes on when it is back."""
    whole = Run(server, tmp_path, run__name="whole", data__cache_latents=cache)
    run = Run(server, tmp_path, data__cache_latents=cache)
    assert whole.train() == 0
    gone = tmp_path / "gone"
    code = run.train(move_at_step=[5, str(tmp_path / "pictures"), str(gone)])
    gone.rename(tmp_path / "pictures")
    if cache == "off":
        assert code == 2
        assert "cannot be read any more" in run.error() and run.error().endswith("; restore it")
        assert run.states[-1] == 5, "the steps taken are saved"
        assert run.train("--resume") == 0
    else:
        assert code == 0
    assert dict(run.steps) == dict(whole.steps)


@pytest.mark.nightly
def test_a_state_with_a_flipped_bit_gives_way_to_the_one_before(server, tmp_path):
    whole, run = Run(server, tmp_path, run__name="whole"), Run(server, tmp_path)
    assert whole.train() == 0 and run.train(kill_after_step=7) == -9
    assert run.states == [4, 6]
    newest = run.folder / "state" / "step00000006.safetensors"
    data = bytearray(newest.read_bytes())
    data[-100] ^= 1
    newest.write_bytes(data)
    assert run.train("--resume") == 0
    assert "step00000006.safetensors in " in run.log.read_text() and "is damaged; going on" in run.log.read_text()
    assert dict(run.steps) == dict(whole.steps)


# -------------------------------------------------------------------------------------------- clocks, twins, machines


@pytest.mark.nightly
@pytest.mark.parametrize("jump", [-(10**9), 10**9], ids=["back", "ahead"])
def test_a_clock_that_jumps(server, tmp_path, jump):
    plain, run = Run(server, tmp_path, run__name="plain"), Run(server, tmp_path)
    assert plain.train() == 0 and run.train(jump_at_step=[4, jump]) == 0
    assert run.steps == plain.steps
    etas = [e["eta"] for e in control.events(run.folder)[0] if e["kind"] == "step"]
    assert all(0 <= eta < 60 for eta in etas)
    assert control.status(run.folder).state == "done"


@pytest.mark.nightly
def test_two_runs_with_one_name(server, tmp_path):
    first = Run(server, tmp_path, run__steps=3000)
    pid = server.start(["train", first.file], tmp_path / "first", stop_at_step=20, wait_for=str(tmp_path / "refused"))
    until(lambda: first.steps, "the first step")
    assert first.train() == 2
    assert f"run 't': it is already training (process {pid}); stop it first, or choose another" in first.error()
    (tmp_path / "refused").touch()
    assert server.wait(pid) == 130
    assert [step for step, _ in first.steps] == list(range(1, len(first.steps) + 1)), "the second left it alone"


@pytest.mark.slow
def test_a_run_folder_copied_to_another_machine(server, tmp_path):
    """Killed here, gone on with there: other paths, another host's name in the status, a lock file that came along."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    whole, run = Run(server, here, run__name="whole"), Run(server, here)
    assert whole.train() == 0 and run.train(kill_after_step=5) == -9
    shutil.move(here, there)
    folder = there / "runs" / "t"
    status = json.loads((folder / "status.json").read_text("utf-8"))
    (folder / "status.json").write_text(json.dumps({**status, "host": "elsewhere"}), "utf-8")
    paths = {"run.out": there / "runs", "model.path": there / "sd15", "data.path": there / "pictures"}
    flags = [f"--{name}={path}" for name, path in paths.items()]
    log = there / "log"
    assert server.run(["train", folder / "config.toml", "--resume", *flags], log) == 0, log.read_text()
    found = {e["step"]: e["loss"] for e in control.events(folder)[0] if e["kind"] == "step"}
    assert found == {e["step"]: e["loss"] for e in control.events(there / "runs" / "whole")[0] if e["kind"] == "step"}
    assert "warning" not in log.read_text()
