"""The nodes, in the order of the menu. A new node is a new file and its name here."""

from __future__ import annotations

from . import dataset, dense, grid, load, preference, rewrite, runs, schedule, train, triggers

NODES = (
    *load.NODES, *runs.NODES, *preference.NODES, *grid.NODES, *dataset.NODES, *train.NODES, *triggers.NODES,
    *schedule.NODES, *rewrite.NODES, *dense.NODES,
)  # fmt: skip
