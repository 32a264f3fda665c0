"""Whatever is in a file: no traceback, no hang, no unbounded memory, nothing half written, nothing executed.

500 damaged inputs under ``pytest -m nightly tests/test_fuzz.py`` (``PIXELKILN_FUZZ=seed`` for others), a few of each
kind in the default run, and everything that once failed, in ``fuzz_corpus/``.
"""

from __future__ import annotations

import gzip
import os
import pickle
import random
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import ldm
import mutate
import pytest
import short_runs as runs
import tiny
import torch
from safetensors.torch import save_file

from pixelkiln.trainer.cli import main
from pixelkiln.trainer.training import checkpoint

CORPUS = Path(__file__).parent / "fuzz_corpus"
SEED = int(os.environ.get("PIXELKILN_FUZZ", "9"))
Capture = pytest.CaptureFixture[str]
Codes = tuple[int, ...]
SECONDS, GIB = 60, 2.0
PART = "unet/diffusion_pytorch_model.safetensors"
SOUND = ("sound.toml", "pairs.toml")
COUNTS = {
    "configuration": 140, "caption": 50, "picture": 70, "adapter": 110, "checkpoint": 30, "part": 20, "pairs": 50,
    "state": 30,
}  # fmt: skip


class Hung(BaseException):
    """Not an Exception: nobody may swallow it."""


class Home:
    """Sound inputs of every kind, and places for damaged ones."""

    def __init__(self, root: Path):
        self.root, self.marker = root, root / "executed"
        runs.pictures(root / "pictures", 4)
        runs.pairs(root / "pairs", 3)
        self.config = runs.config(root, {"run.steps": 2, "run.precision": "fp32", "run.name": "sound"})
        (root / "sound.toml").write_text(self.config.to_toml(), "utf-8")
        assert main(["train", str(root / "sound.toml")]) == 0
        self.adapter, self.pickled = root / "a.safetensors", root / "sound.pt"
        save_file(small_adapter(), self.adapter, metadata={"ss_network_dim": "4", "ss_base_model_version": "sd_v1"})
        torch.save(small_adapter(), self.pickled)
        self.state = checkpoint.states(root / "runs" / "sound" / "state")[-1]
        made = tiny.parts("sd15")
        self.model = ldm.write(
            root / "m.safetensors", ldm.checkpoint("sd15", made.denoiser, made.vae, made.text_encoders)
        )


def small_adapter() -> dict[str, torch.Tensor]:
    """A few modules of SD1.5 at their real widths, by which its family is known."""
    made = {}
    for block, width in enumerate((320, 640)):
        for leaf, inside in (("attn1_to_q", width), ("attn2_to_k", 768), ("attn2_to_v", 768)):
            name = f"lora_unet_down_blocks_{block}_attentions_0_transformer_blocks_0_{leaf}"
            made[f"{name}.lora_down.weight"], made[f"{name}.lora_up.weight"] = (
                torch.ones(4, inside),
                torch.ones(width, 4),
            )
            made[f"{name}.alpha"] = torch.tensor(4.0)
    return made


def attempt(home: Home, capsys: Capture, arguments: list[str], allowed: Codes = (0, 2)) -> tuple[int, str, str]:
    """Run a command under limits: its exit code and its output."""

    def hung(number: int, frame: FrameType | None) -> None:
        raise Hung(f"{SECONDS} s: {arguments}")

    old = signal.signal(signal.SIGALRM, hung)
    signal.alarm(SECONDS)
    before = peak()
    try:
        code = main(arguments)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
    out, err = capsys.readouterr()
    assert code in allowed, err
    assert "Traceback" not in out + err
    assert code == 0 or "error: " in err or out, "silence"
    assert peak() - before < GIB, "memory"
    assert not home.marker.exists(), "executed"
    assert not list(home.root.rglob("*.tmp")), "partial output"
    return code, out, err


def peak() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform != "darwin" else 2**30)


# ---------------------------------------------------------------------------------------------- one damaged input each


def configuration(home: Home, capsys: Capture, data: bytes, allowed: Codes = (0, 2)) -> None:
    file = home.root / "damaged.toml"
    file.write_bytes(data)
    attempt(home, capsys, ["check", str(file), *([] if len(data) % 2 else ["--json"])], allowed)


def caption(home: Home, capsys: Capture, data: bytes, allowed: Codes = (0, 2)) -> None:
    folder = home.root / "captions"
    if not folder.exists():
        runs.pictures(folder, 2)
    (folder / "p00.txt").write_bytes(data)
    attempt(
        home,
        capsys,
        ["check", str(home.root / "sound.toml"), f"--data.path={folder}", "--data.wildcards=true"],
        allowed,
    )


def picture(home: Home, capsys: Capture, data: bytes, allowed: Codes = (0, 2)) -> None:
    folder = home.root / "damaged pictures"
    if not folder.exists():
        runs.pictures(folder, 2)
    (folder / "p00.png").write_bytes(data)
    flags = [f"--data.path={folder}", "--data.max_unreadable=9"]
    attempt(home, capsys, ["check", str(home.root / "sound.toml"), *flags], allowed)


def adapter(home: Home, capsys: Capture, data: bytes, allowed: Codes = (0, 2)) -> None:
    file, target = home.root / "damaged.safetensors", home.root / "converted.safetensors"
    if data[:2] in (b"PK", b"\x80\x02"):
        file = file.with_suffix(".pt")
    file.write_bytes(data)
    attempt(home, capsys, ["inspect", str(file), *([] if len(data) % 2 else ["--json"])], allowed)
    for more in (["--to", "diffusers"], ["--rank", "2"]):
        code, _, _ = attempt(home, capsys, ["convert", str(file), str(target), *more], allowed)
        assert code == 0 or not target.exists(), "partial output"
        target.unlink(missing_ok=True)


def model(home: Home, capsys: Capture, data: bytes, allowed: Codes = (0, 2)) -> None:
    """Checked, and loaded where the check lets it pass."""
    file = home.root / "damaged model.safetensors"
    if data[:2] in (b"PK", b"\x80\x02"):
        file = file.with_suffix(".ckpt")
    file.write_bytes(data)
    flags = [str(home.root / "sound.toml"), f"--model.path={file}"]
    code, _, _ = attempt(home, capsys, ["check", *flags], allowed)
    if code == 0:
        attempt(home, capsys, ["train", *flags, "--run.name=damaged", "--run.steps=1"], allowed)


def part(home: Home, capsys: Capture, data: bytes, allowed: Codes = (0, 2)) -> None:
    """The weights of a part in a model folder, which is known by its other files: they are loaded and trained on."""
    folder = home.root / "damaged folder"
    if not folder.exists():
        shutil.copytree(home.config.model.path, folder)
    (folder / PART).write_bytes(data)
    flags = [f"--model.path={folder}", "--run.name=damaged", "--run.steps=1"]
    attempt(home, capsys, ["train", str(home.root / "sound.toml"), *flags], allowed)


def pairs(home: Home, capsys: Capture, data: bytes, allowed: Codes = (0, 2)) -> None:
    folder = home.root / "damaged pairs"
    if not folder.exists():
        runs.pairs(folder, 3)
    (folder / "pairs.jsonl").write_bytes(data)
    attempt(home, capsys, ["pairs", "check", str(folder)], allowed)
    attempt(home, capsys, ["check", str(home.root / "pairs.toml"), f"--data.pairs={folder}"], allowed)


def state(home: Home, capsys: Capture, data: bytes, allowed: Codes = (0, 2)) -> None:
    """The only state of a run is damaged: it is resumed from, or refused in a line."""
    folder = home.root / "runs" / "resumed" / "state"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    (folder / "step00000002.safetensors").write_bytes(data)
    attempt(
        home,
        capsys,
        ["train", str(home.root / "sound.toml"), "--resume", "--run.name=resumed", "--run.steps=3"],
        allowed,
    )


# ------------------------------------------------------------------------------------------------------------- damage

Damage = Callable[[random.Random, Home], bytes]
DAMAGE: dict[str, tuple[Callable[..., None], Damage]] = {
    "configuration": (
        configuration,
        lambda rng, home: mutate.text_of(rng, (home.root / rng.choice(SOUND)).read_text("utf-8")),
    ),
    "caption": (
        caption,
        lambda rng, home: mutate.bytes_of(
            rng, mutate.text_of(rng, "a {red|blue} cat, (big:1.2), __animal__\nsecond line, tag, {2$$a|b}"),
        ),
    ),
    "picture": (
        picture,
        lambda rng, home: mutate.bytes_of(
            rng, (home.root / "pictures" / "p00.png").read_bytes(), [(home.root / "jpeg.jpg").read_bytes()]
        ),
    ),
    "adapter": (
        adapter,
        lambda rng, home: mutate.bytes_of(rng, rng.choice((home.adapter, home.pickled)).read_bytes())
        if rng.random() < 0.5
        else mutate.header_of(rng, home.adapter.read_bytes()),
    ),
    "checkpoint": (
        model,
        lambda rng, home: (mutate.bytes_of if rng.random() < 0.4 else mutate.header_of)(rng, home.model.read_bytes()),
    ),
    "part": (
        part,
        lambda rng, home: (mutate.bytes_of if rng.random() < 0.3 else mutate.header_of)(
            rng, Path(home.config.model.path, PART).read_bytes()
        ),
    ),
    "pairs": (
        pairs,
        lambda rng, home: (mutate.text_of if rng.random() < 0.4 else mutate.rows_of)(
            rng, (home.root / "pairs" / "pairs.jsonl").read_text("utf-8").strip()
        ),
    ),
    "state": (
        state,
        lambda rng, home: (mutate.bytes_of if rng.random() < 0.3 else mutate.header_of)(rng, home.state.read_bytes()),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Home:
    if os.name == "nt":
        pytest.skip("alarms")
    made = Home(tmp_path_factory.mktemp("fuzz"))
    from PIL import Image

    with Image.open(made.root / "pictures" / "p01.png") as shown:
        shown.save(made.root / "jpeg.jpg")
    like = runs.config(made.root, {"objective.kind": "dpo", "run.precision": "fp32"}, data="data.pairs")
    (made.root / "pairs.toml").write_text(like.to_toml(), "utf-8")
    return made


def damaged(home: Home, capsys: Capture, kind: str, numbers: range) -> None:
    look, damage = DAMAGE[kind]
    for number in numbers:
        data = damage(random.Random(f"{SEED} {kind} {number}"), home)
        try:
            look(home, capsys, data)
        except BaseException as error:
            folder = os.environ.get("PIXELKILN_FUZZ_KEEP")
            if not folder:
                raise AssertionError(f"{kind} {number} of seed {SEED}: {error}") from error
            Path(folder, f"{kind}-{SEED}-{number}").write_bytes(data)
            Path(folder, f"{kind}-{SEED}-{number}.txt").write_text(f"{type(error).__name__}: {error}"[-3000:], "utf-8")
            capsys.readouterr()


@pytest.mark.slow
def test_what_is_damaged_here_was_sound(home, capsys):
    """Else all damage would be refused for one and the same reason. (Of a single-file checkpoint only names and shapes
    are looked at here: no tiny one is of a known model.)"""
    sound = {
        "configuration": home.root / "sound.toml", "picture": home.root / "jpeg.jpg", "adapter": home.adapter,
        "part": Path(home.config.model.path, PART), "pairs": home.root / "pairs" / "pairs.jsonl", "state": home.state,
    }  # fmt: skip
    for kind, path in sound.items():
        DAMAGE[kind][0](home, capsys, path.read_bytes(), allowed=(0,))


@pytest.mark.parametrize("kind", DAMAGE)
def test_some_damaged_inputs(home, capsys, kind):
    damaged(home, capsys, kind, range(6 if kind in ("configuration", "adapter") else 2))


@pytest.mark.nightly
@pytest.mark.parametrize("kind", DAMAGE)
def test_five_hundred_damaged_inputs(home, capsys, kind):
    assert sum(COUNTS.values()) == 500
    damaged(home, capsys, kind, range(COUNTS[kind]))


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*")) if CORPUS.exists() else [], ids=lambda path: path.name)
def test_what_once_failed(home, capsys, path):
    data = path.read_bytes()
    data = gzip.decompress(data) if path.suffix == ".gz" else data
    DAMAGE[path.name.partition("-")[0]][0](home, capsys, data)


def test_code_in_a_file_is_never_executed(home, capsys, tmp_path):
    """As a bare pickle, inside torch's archives, and under a name that promises something else."""
    made = mutate.armed(str(home.marker), {"a.lora_down.weight": 1})
    torch.save([mutate.Touch(str(home.marker)), torch.zeros(1)], home.root / "armed.pt")
    for data in (made, (home.root / "armed.pt").read_bytes()):
        adapter(home, capsys, data)
        model(home, capsys, data)
    for name in ("x.safetensors", "x.pt", "x.bin", "x.ckpt"):
        (tmp_path / name).write_bytes(made)
        attempt(home, capsys, ["inspect", str(tmp_path / name)], allowed=(2,))
        attempt(home, capsys, ["check", str(home.root / "sound.toml"), f"--adapter.init_from={tmp_path / name}"])
    pickle.loads(made)[0].close()
    assert home.marker.exists(), "the payload does work"
    home.marker.unlink()
