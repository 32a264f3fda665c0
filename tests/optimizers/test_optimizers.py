from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from pixelkiln.trainer.config import load, reference
from pixelkiln.trainer.optimizers.build import build, evaluating, learning_rates, optimizer_mode
from pixelkiln.trainer.optimizers.names import NAMED, PACKAGES, find
from pixelkiln.trainer.optimizers.options import USES, OptimizerOptions, ScheduleOptions, parse_args
from pixelkiln.trainer.optimizers.schedules import build_schedule
from pixelkiln.trainer.optimizers.state import load_optimizer_state, optimizer_state_to_tensors
from pixelkiln.trainer.training.remedies import PARTS, STEP, Phase, eight_bit

SHAPES = ((64, 80), (8, 4, 3, 3), (7,))
"""Big enough for 8-bit states (4096 elements), four-dimensional, and small."""
OPTIONAL = {"dadaptation", "lion_pytorch"}


def parameters(seed: int = 0, dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter((0.1 * torch.randn(s, generator=generator)).to(dtype)) for s in SHAPES]


def one_group(params: list[torch.nn.Parameter]) -> list[dict[str, Any]]:
    return [{"name": "denoiser", "params": params}]


def two_groups(params: list[torch.nn.Parameter]) -> list[dict[str, Any]]:
    return [{"name": "te1", "params": params[:1]}, {"name": "denoiser", "params": params[1:]}]


def train(optimizer: Any, params: list[torch.nn.Parameter], first: int, last: int) -> None:
    """Steps ``first`` to ``last`` of a run whose gradients depend on the weights and on the step alone."""
    for step in range(first, last):
        generator = torch.Generator().manual_seed(1000 + step)
        for p in params:
            p.grad = (p.detach() - torch.randn(p.shape, generator=generator)).to(p.dtype)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def needs(kind: str) -> None:
    package = NAMED[kind].path.partition(".")[0]
    if package in OPTIONAL:
        pytest.importorskip(package, reason=f"{package} is optional")


def usual(kind: str) -> OptimizerOptions:
    rate = 1.0 if kind.startswith(("Prodigy", "DAdapt")) else 1e-2
    args = {"d0": 1e-3} if kind == "Prodigy" else {}
    return OptimizerOptions(kind=kind, learning_rate=rate, weight_decay=None if "AdaGrad" in kind else 0.01, args=args)


def options_for(kind: str) -> OptimizerOptions:
    options = usual(kind)
    if kind == "Adafactor":
        return options.model_copy(update={"args": {"scale_parameter": False, "relative_step": False, "beta1": 0.9}})
    return options


def test_the_reference_offers_every_short_name():
    choices = {row["table"]: row["choices"] for row in reference() if row["name"] == "kind"}
    assert (choices["optimizer"], choices["schedule"]) == (list(NAMED), list(USES))


@pytest.mark.parametrize("kind", NAMED)
def test_a_short_name_is_read_in_any_case_and_its_package_is_known(kind):
    assert find(kind.lower()) is find(kind.upper()) is NAMED[kind]
    assert NAMED[kind].path.partition(".")[0] in {"torch", *PACKAGES}
    assert (not NAMED[kind].finds_rate) == (not kind.startswith(("Prodigy", "DAdapt")))


@pytest.mark.parametrize("kind", NAMED)
def test_an_optimizer_of_8_bits_is_offered_where_there_is_one(kind):
    config = load(flags={"model.path": "m", "data.path": "x", "optimizer.kind": kind.lower()})
    remedy, small = eight_bit(config, Phase(STEP, dict.fromkeys(PARTS, 1))), NAMED[kind].eight_bit
    assert (remedy is None) == (small is None)
    if remedy is not None and small is not None:
        assert remedy.changes == {"optimizer.kind": small}
        assert NAMED[small].path.startswith("bitsandbytes.") and NAMED[small].args == NAMED[kind].args


@pytest.mark.filterwarnings("ignore:Paged optimizers")
@pytest.mark.parametrize("kind", [*NAMED, "Adam", "torch.optim.RMSprop", "bitsandbytes.optim.LAMB8bit"])
def test_resumed_equals_never_stopped(kind: str, tmp_path: Path):
    """Ten steps, or five, a file, a new optimizer and five more: the same bits, in weights and in state."""
    if kind in NAMED:
        needs(kind)
    straight, stopped = parameters(), parameters()
    whole, _ = build(options_for(kind), two_groups(straight))
    train(whole, straight, 0, 10)
    before, _ = build(options_for(kind), two_groups(stopped))
    train(before, stopped, 0, 5)
    tensors, facts = optimizer_state_to_tensors(before)
    save_file(tensors, tmp_path / "state.safetensors")
    text = json.dumps(facts, allow_nan=False)

    resumed = [torch.nn.Parameter(p.detach().clone()) for p in stopped]
    after, _ = build(options_for(kind), two_groups(resumed))
    assert load_optimizer_state(after, load_file(tmp_path / "state.safetensors"), json.loads(text)) == []
    train(before, stopped, 5, 6)  # the old one goes on: nothing may be shared with the new one
    train(after, resumed, 5, 10)

    assert all(torch.equal(a, b) for a, b in zip(straight, resumed))
    assert not any(torch.equal(a, b) for a, b in zip(parameters(), resumed)), "it did not train at all"
    one, two = optimizer_state_to_tensors(whole), optimizer_state_to_tensors(after)
    assert one[1] == two[1]
    assert all(torch.equal(one[0][name], two[0][name]) and one[0][name].dtype == two[0][name].dtype for name in one[0])


def test_adafactor_that_finds_its_own_rate_resumes_too():
    straight, stopped = parameters(), parameters()
    options = OptimizerOptions(kind="adafactor")
    whole, notes = build(options, one_group(straight))
    assert len(notes) == 1
    assert "relative_step" in notes[0]
    train(whole, straight, 0, 10)
    before, _ = build(options, one_group(stopped))
    train(before, stopped, 0, 5)
    after, _ = build(options, one_group(stopped))
    load_optimizer_state(after, *optimizer_state_to_tensors(before))
    train(after, stopped, 5, 10)
    assert all(torch.equal(a, b) for a, b in zip(straight, stopped))
    # min(1e-2, 1 / sqrt(10)) times the root mean square of the first parameter, at the tenth step
    assert learning_rates(after)["denoiser"] == pytest.approx(1e-2 * float(whole.state[straight[0]]["RMS"]))


@pytest.mark.parametrize("kind", ["AdamW8bit", "PagedAdamW8bit", "Lion8bit", "SGDNesterov8bit", "AdEMAMix8bit"])
@pytest.mark.filterwarnings("ignore:Paged optimizers")
def test_eight_bits_are_eight_bits_and_their_map_is_kept_once(kind: str):
    params = [torch.nn.Parameter(torch.ones(64, 80)), torch.nn.Parameter(torch.ones(80, 64))]
    optimizer, notes = build(usual(kind), one_group(params))
    train(optimizer, params, 0, 1)
    assert optimizer.state[params[0]]["state1"].dtype == torch.uint8
    assert any("pages its state" in note for note in notes) == kind.startswith("Paged")
    tensors, facts = optimizer_state_to_tensors(optimizer)
    assert "denoiser.0.qmap1" in tensors
    assert "denoiser.1.qmap1" not in tensors
    again, _ = build(usual(kind), one_group(params))
    load_optimizer_state(again, tensors, facts)
    assert again.state[params[0]]["qmap1"] is again.state[params[1]]["qmap1"]


@pytest.mark.filterwarnings("ignore:Paged optimizers")
def test_a_state_keeps_its_own_type_beside_half_precision_weights():
    """PyTorch's own loading would round these to the type of the weights."""
    params = parameters(dtype=torch.bfloat16)
    optimizer, _ = build(OptimizerOptions(kind="PagedAdamW32bit"), one_group(params))
    train(optimizer, params, 0, 2)
    again, _ = build(OptimizerOptions(kind="PagedAdamW32bit"), one_group(params))
    load_optimizer_state(again, *optimizer_state_to_tensors(optimizer))
    assert again.state[params[0]]["state1"].dtype == torch.float32
    assert torch.equal(again.state[params[0]]["state1"], optimizer.state[params[0]]["state1"])


def test_names_in_any_case_and_the_classes_behind_them():
    params = parameters()
    kinds = {"adamw": torch.optim.AdamW, "ADAM": torch.optim.Adam, "torch.optim.SGD": torch.optim.SGD}
    for kind, cls in kinds.items():
        assert type(build(OptimizerOptions(kind=kind), one_group(params))[0]) is cls
    group = build(OptimizerOptions(kind="sgdnesterov"), one_group(params))[0].param_groups[0]
    assert (group["momentum"], group["nesterov"]) == (0.9, True)


def test_each_part_has_its_rate_and_rate_zero_leaves_it_out():
    a, b, c = parameters()
    options = OptimizerOptions(learning_rate=1e-4, denoiser_lr=3e-4, text_encoder_lr=[5e-5, 0.0], betas=[0.8, 0.9])
    groups = [
        {"name": "te1", "params": [a]},
        {"name": "te2", "params": [b]},
        {"name": "denoiser.up", "params": [c], "ratio": 16.0},
    ]
    optimizer, notes = build(options, groups)
    assert [(g["name"], g["initial_lr"]) for g in optimizer.param_groups] == [("te1", 5e-5), ("denoiser.up", 16 * 3e-4)]
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.9)
    assert notes == ["optimizer: te2 is not trained, its rate is 0"]
    with pytest.raises(ValueError, match=r"text_encoder_lr: 1 rates for 2 or more .*; give one rate"):
        build(OptimizerOptions(text_encoder_lr=[1.0]), groups)
    with pytest.raises(ValueError, match="every learning rate is 0"):
        build(OptimizerOptions(learning_rate=0), groups)


def test_rate_finders_take_one_rate_and_say_when_it_is_low():
    params = parameters()
    with pytest.raises(ValueError, match=r"Prodigy finds one rate for all parts, but they are given 0\.5, 1; set"):
        build(OptimizerOptions(kind="Prodigy", learning_rate=1.0, text_encoder_lr=0.5), two_groups(params))
    _, notes = build(OptimizerOptions(kind="Prodigy"), two_groups(params))
    assert notes == [
        "optimizer: Prodigy finds its own rate and multiplies it by learning_rate; 0.0001 is low, 1 is usual"
    ]
    optimizer, notes = build(OptimizerOptions(kind="Prodigy", learning_rate=2.0, args={"d0": 1e-3}), one_group(params))
    train(optimizer, params, 0, 3)
    assert notes == []
    assert learning_rates(optimizer)["denoiser"] == 2 * optimizer.param_groups[0]["d"] >= 2e-3


def test_standard_output_stays_clean(capsys: pytest.CaptureFixture[str]):
    build(OptimizerOptions(kind="Prodigy", weight_decay=0.1, learning_rate=1.0), one_group(parameters()))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"args": {"betaz": 1}}, r"optimizer\.args\.betaz: AdamW takes no such argument; did you mean 'betas'\?"),
        ({"kind": "SGDNesterov", "betas": [0.9]}, r"optimizer\.betas: SGDNesterov takes no such argument; there is: "),
        ({"args": {"eps": -1.0}}, r"optimizer: AdamW refuses its arguments: Invalid epsilon value: -1.0; see"),
        ({"betas": [0.9]}, r"optimizer\.betas: AdamW takes 2 numbers; give as many as \[0\.9, 0\.999\]"),
        ({"args": {"betas": "abc"}}, r"optimizer\.betas: AdamW takes 2 numbers"),
        ({"kind": "LBFGS"}, r"optimizer\.kind: LBFGS computes the loss again within a step, .*; use AdamW"),
        ({"kind": "SparseAdam"}, r"optimizer\.kind: SparseAdam takes sparse gradients, .*; use AdamW"),
        ({"kind": "no.such.Optimizer"}, r"no\.such\.Optimizer cannot be imported \(No module named 'no'\); install"),
        ({"kind": "os.path"}, r"os\.path is no Optimizer of PyTorch; give the path of one"),
        ({"kind": "torch.optim.nothing"}, r"torch\.optim\.nothing is no Optimizer of PyTorch"),
    ],
)
def test_mistakes_that_building_finds(options: dict[str, Any], line: str):
    with pytest.raises(ValueError, match=line) as error:
        build(OptimizerOptions(**options), one_group(parameters()))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"kind": "AdamV"}, "there is no 'AdamV'; did you mean 'AdamW'?"),
        ({"kind": 3}, "3 does not fit; give the name of an optimizer"),
        ({"text_encoder_lr": "fast"}, "'fast' does not fit; give a number from 0 up, or a list of them"),
        ({"text_encoder_lr": [1.0, -1.0]}, "does not fit; give a number from 0 up"),
        ({"args": {"lr": 1.0}}, "args.lr is the option learning_rate"),
        ({"weight_decay": 0.1, "args": {"weight_decay": 0.1}}, "weight_decay and args.weight_decay are both given"),
    ],
)
def test_mistakes_that_the_schema_finds(options: dict[str, Any], line: str):
    with pytest.raises(ValidationError) as error:
        OptimizerOptions(**options)
    assert error.value.error_count() == 1
    assert line in error.value.errors()[0]["msg"]


def test_an_absent_package_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "prodigyopt", None)
    with pytest.raises(
        ValueError, match=r"Prodigy needs the package prodigyopt; run `.* -m pip install prodigyopt`, or use AdamW"
    ):
        build(OptimizerOptions(kind="Prodigy"), one_group(parameters()))


def test_a_rate_changed_before_resuming_takes_effect_and_is_told():
    params = parameters()
    old, _ = build(OptimizerOptions(learning_rate=1e-3), one_group(params))
    train(old, params, 0, 2)
    old.param_groups[0]["initial_lr"] *= 0.5  # lowered by the run itself: kept
    tensors, facts = optimizer_state_to_tensors(old)
    same, _ = build(OptimizerOptions(learning_rate=1e-3), one_group(params))
    assert load_optimizer_state(same, tensors, facts) == []
    assert same.param_groups[0]["initial_lr"] == 5e-4
    new, _ = build(OptimizerOptions(learning_rate=1e-4, weight_decay=0.0), one_group(params))
    assert load_optimizer_state(new, tensors, facts) == [
        "optimizer: lr was 0.001 up to here and is 0.0001 from here on",
        "optimizer: weight_decay was 0.01 up to here and is 0.0 from here on",
    ]
    assert (new.param_groups[0]["initial_lr"], new.param_groups[0]["weight_decay"]) == (1e-4, 0.0)
    assert int(new.state[params[0]]["step"]) == 2


def test_a_state_of_something_else_is_refused_and_changes_nothing():
    params = parameters()
    old, _ = build(OptimizerOptions(), one_group(params))
    train(old, params, 0, 1)
    tensors, facts = optimizer_state_to_tensors(old)
    for kind, groups, line in (
        ("Adam", one_group(params), r"saved state is of torch\.optim\.adamw\.AdamW, not of torch\.optim\.adam\.Adam"),
        ("AdamW", one_group(params[:2]), r"other parameters \(denoiser: 3; here denoiser: 2\)"),
        ("AdamW", two_groups(params), r"other parameters \(denoiser: 3; here te1: 1, denoiser: 2\)"),
    ):
        other, _ = build(OptimizerOptions(kind=kind), groups)
        with pytest.raises(ValueError, match=line):
            load_optimizer_state(other, tensors, facts)
        assert not other.state
    again, _ = build(OptimizerOptions(), one_group(params))
    with pytest.raises(ValueError, match=r"lacks denoiser\.1\.exp_avg; it is damaged"):
        load_optimizer_state(again, {k: v for k, v in tensors.items() if k != "denoiser.1.exp_avg"}, facts)


@pytest.mark.parametrize("kind", ["AdamWScheduleFree", "RAdamScheduleFree", "SGDScheduleFree"])
def test_looking_at_a_schedule_free_run_does_not_change_it(kind: str):
    quiet, watched = parameters(), parameters()
    one, _ = build(usual(kind), one_group(quiet))
    two, _ = build(usual(kind), one_group(watched))
    trained = averaged = watched[0]
    for step in range(6):
        train(one, quiet, step, step + 1)
        train(two, watched, step, step + 1)
        trained = watched[0].detach().clone()
        with evaluating(two):
            averaged = watched[0].detach().clone()
    assert not torch.equal(trained, averaged)
    assert all(torch.equal(a, b) for a, b in zip(quiet, watched))
    optimizer_mode(two, "eval")
    assert torch.equal(watched[0], averaged)


def test_other_optimizers_know_no_modes():
    params = parameters()
    optimizer, _ = build(OptimizerOptions(), one_group(params))
    optimizer_mode(optimizer, "eval")
    with evaluating(optimizer):
        train(optimizer, params, 0, 1)
    assert not torch.equal(params[0], parameters()[0])


def test_through_accelerate():
    """Accelerate wraps the optimizer; its state, modes and rates are the inner one's."""
    from accelerate import Accelerator

    params = parameters()
    inner, _ = build(usual("AdamWScheduleFree"), one_group(params))
    wrapped: Any = Accelerator(cpu=True).prepare(inner)
    train(wrapped, params, 0, 2)
    tensors, facts = optimizer_state_to_tensors(wrapped)
    assert torch.equal(tensors["denoiser.0.z"], inner.state[params[0]]["z"])
    assert load_optimizer_state(wrapped, tensors, facts) == []
    schedule, _ = build_schedule(ScheduleOptions(), 10, wrapped)
    schedule.apply(wrapped, 0)
    assert learning_rates(wrapped) == {"denoiser": 1e-2}


def test_kohyas_arguments():
    words = ["betas=0.9,0.99", "eps=(1e-30, 1e-3)", "weight_decay=0.1", "decouple=True", "beta1=None", "name='a=b'"]
    table = parse_args(words)
    assert table == {
        "betas": [0.9, 0.99],
        "eps": [1e-30, 1e-3],
        "weight_decay": 0.1,
        "decouple": True,
        "beta1": "None",
        "name": "a=b",
    }
    for word in ("eps", "=3", "eps=__import__('os')", "growth=inf", "x={1}", "x=b'1'"):
        with pytest.raises(ValueError, match="does not fit; write name=value with"):
            parse_args([word])
    arguments = parse_args(["eps=(1e-30, 1e-3)", "relative_step=False", "beta1=None"])
    optimizer, _ = build(OptimizerOptions(kind="Adafactor", args=arguments), one_group(parameters()))
    assert optimizer.param_groups[0]["eps"] == (1e-30, 1e-3)
    assert optimizer.param_groups[0]["beta1"] is None


@pytest.mark.parametrize("kind", ["AdamW", "SGD"])
def test_a_fused_step_equals_the_plain_one_and_takes_up_its_state(kind: str):
    """Torch's fused kernels, unasked on cards and CPUs: the same weights up to rounding, also from a plain state."""
    plain, fused = parameters(), parameters()
    args = {"momentum": 0.9} if kind == "SGD" else {}
    bare = {**args, "fused": False}
    one, _ = build(OptimizerOptions(kind=kind, learning_rate=1e-2, args=bare), one_group(plain))
    two, _ = build(OptimizerOptions(kind=kind, learning_rate=1e-2, args=args), one_group(fused))
    assert not one.param_groups[0].get("fused") and two.param_groups[0]["fused"]
    train(one, plain, 0, 3)
    train(two, fused, 0, 3)
    assert load_optimizer_state(two, *optimizer_state_to_tensors(one)) == []
    assert two.param_groups[0]["fused"]
    train(one, plain, 3, 6)
    train(two, fused, 3, 6)
    for a, b in zip(plain, fused):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
def test_on_a_card_the_step_is_fused():
    weight = torch.nn.Parameter(torch.randn(4, 4, device="cuda"))
    made, _ = build(OptimizerOptions(kind="AdamW"), [{"name": "unet", "params": [weight]}])
    weight.grad = torch.ones_like(weight)
    made.step()
    assert made.param_groups[0]["fused"] and made.state[weight]["step"].is_cuda
