"""The table of docs/fit.md: GB and operations of every preset, as it was until version 2 and as its plan chooses.

    python -m bench.presets            # all presets of a family, or the names that follow

Estimates for a GPU of the preset's class less what a desktop takes; minutes each on a CPU, remembered as check's are.
"""

from __future__ import annotations

import sys

from pixelkiln.trainer import config as configuration
from pixelkiln.trainer.commands.check import examine
from pixelkiln.trainer.config import PRESETS, Config, parse
from pixelkiln.trainer.estimate import plan
from pixelkiln.trainer.estimate.gpus import DESKTOP, Gpu
from pixelkiln.trainer.estimate.memory import operations
from pixelkiln.trainer.estimate.report import Estimator

FAMILIES = {"sd15": "sd15", "sdxl": "sdxl", "sd3": "sd3-medium"}


def row(name: str) -> str:
    family, _, size = name.split("-")
    gb = float(size.removesuffix("gb"))
    flags = {"model": {"path": "", "family": FAMILIES[family]}}
    old, new = (parse(configuration.preset_tables(name, version) | flags) for version in (2, configuration.VERSION))
    found = examine(new).found
    asked = Estimator(new, found, None, Gpu(size, gb, gb - DESKTOP, "cuda", True))
    chosen = plan.choose(new, asked, {})

    def figures(config: Config) -> str:
        fit = asked(config)
        step = operations(config, fit.measured, found.process)[0] * config.run.accumulation
        return f"{fit.gb:.1f}, {step / 1e12:.3g}"

    return f"| {name} | {figures(old)} | {figures(chosen.config)} | {chosen.chosen.label} |"


def main() -> None:
    names = sys.argv[1:] or sorted(path.stem for path in PRESETS.glob("*gb.toml"))
    print("| preset | before: GB, operations | plan: GB, operations | what the plan chooses |\n|---|---|---|---|")
    for name in names:
        print(row(name), flush=True)


if __name__ == "__main__":
    main()
