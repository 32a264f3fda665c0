"""Pictures without training: what the command ``sample`` draws."""

from __future__ import annotations

import sys
from pathlib import Path

from ..config import Config
from ..diffusion import sampling
from ..errors import UserError
from ..runs.files import make_folder
from ..training.build import build

DEFAULT = Path("samples")
"""The folder of pictures where none is named; in it each adapter has one of its own, to compare two."""


def sample(config: Config, adapter_file: str | None, output: Path | None = None) -> list[Path]:
    """Draw the configuration's prompts with an adapter file, or with the base alone."""
    if output is None:
        output = DEFAULT / Path(adapter_file).stem if adapter_file else DEFAULT
    parts = build(config, lambda line: print(line, file=sys.stderr), adapter_file=adapter_file, data=False)
    if not parts.prompts:
        raise UserError("sample.prompts: there is nothing to draw; give sample.prompts or sample.file")
    paths = []
    make_folder(output, "--output")
    with parts.evaluating():
        for index, prompt in enumerate(parts.prompts):
            path = sampling.picture_path(output, 0, index)
            sampling.save_picture(parts.picture(prompt), path, prompt, {"adapter": adapter_file or ""})
            paths.append(path)
    return paths
