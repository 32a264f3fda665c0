"""memory.plan = "auto" in a study: what changes the results is the same in every arm, the rest is each run's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

from ..config import Config
from ..estimate import gpus
from ..estimate import plan as planning
from ..estimate.report import Estimator
from ..families.load import Found
from ..runs.events import read_object
from ..runs.files import make_folder, write_atomic
from ..training.build import scan
from .plan import Plan

Log = Callable[[str], None]


def shared(plan: Plan, log: Log, choose: bool = True) -> Plan:
    """The study with the weights, optimizer and decode plans that fit every arm, where an arm leaves them to the plan.

    They are chosen once, by the smallest that any arm needs on this machine's device, and kept in ``memory.json`` of
    the study's folder. ``choose``: False takes only what is kept already.
    """
    arms = [arm for arm in plan.arms if arm.given.trains and arm.config.memory.plan == "auto"]
    file = plan.folder / "memory.json"
    once = read_object(file).get("once")
    if once is None and arms and choose:
        made = [_choose(arm.config, plan.found, log) for arm in arms]
        once = planning.smallest([one.once for one in made])
        for arm, one in zip(arms, made):
            log(f"{arm.name}: memory plan: {one.lines[0]}")
        log(f"memory plan of every arm: {', '.join(f'{name} = {value}' for name, value in once.items())}")
        make_folder(plan.folder, "out")
        write_atomic(file, json.dumps({"v": 1, "once": once}))
    if not once:
        return plan
    own = {arm.name: arm.config.changed(planning.left_open(arm.config, once)) for arm in arms}
    return replace(plan, arms=tuple(replace(arm, config=own.get(arm.name, arm.config)) for arm in plan.arms))


def planned(config: Config, found: Found, log: Log) -> Config:
    """One run's configuration with the options that its plan chooses anew at every start."""
    return _choose(config, found, log).config if config.memory.plan == "auto" else config


def _choose(config: Config, found: Found, log: Log) -> planning.Plan:
    dataset = scan(config, found=found)[1]
    return planning.choose(config, Estimator(config, found, dataset, gpus.here(config.run.device), log), {})
