"""Objectives: published numbers, symmetries, and the mistakes that others shipped."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import steps
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from steps import pairs

from pixelkiln.extension import fields
from pixelkiln.trainer.config import OBJECTIVE, load
from pixelkiln.trainer.errors import UserError
from pixelkiln.trainer.losses import term
from pixelkiln.trainer.objectives import common
from pixelkiln.trainer.objectives.common import ObjectiveParts
from pixelkiln.trainer.objectives.mapo import phi
from pixelkiln.trainer.objectives.options import SftOptions
from pixelkiln.trainer.registry import families, objectives
from pixelkiln.trainer.training.build import _fits, build_terms

NAMES = objectives.names()
PAIRED = [entry.name for entry in objectives if entry.options().needs_pairs]
LN2 = math.log(2)
SAMPLES: dict[str, Any] = {"ratings": ["liked", "disliked"] * 2, "pairs": ["winner", "loser"] * 2}
ROLES: dict[str, Any] = {
    entry.name: SAMPLES[entry.options.data[0]] if entry.options.data else ["plain"] * 4 for entry in objectives
}


def build(
    kind: str, prediction: Any = "epsilon", decodes: Any = False, default_beta: Any = 2000.0, **options: Any
) -> Any:
    entry = objectives[kind]
    return entry.build(entry.options(**options), ObjectiveParts(steps.process(prediction), decodes, default_beta))


def score(objective, errors, reference, made):
    return objective(errors, torch.tensor(reference, dtype=torch.float64), made)


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


# ---------------------------------------------------------------------------------------------------------- contract


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_finite_value_per_sample_or_pair_with_detached_metrics(name, dtype):
    made = steps.step(roles=ROLES[name])
    errors = torch.rand(4, dtype=dtype).requires_grad_()
    objective = build(name)
    output = objective(errors, torch.rand(4, dtype=dtype) + 0.1, made)
    assert output.values.shape == ((2,) if name in PAIRED else (4,))
    assert output.values.dtype == dtype
    assert output.values.isfinite().all()
    (grad,) = torch.autograd.grad(output.values.sum(), errors)
    assert grad.isfinite().all()
    for metric in output.metrics.values():
        assert metric.ndim == 1 and len(metric) <= len(output.values)  # fewer where they are of one side only
        assert metric.grad_fn is None
    objective.update({k: float(v.sum()) for k, v in output.metrics.items()}, len(output.values))
    assert all(isinstance(v, float) for v in objective.state.values())


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_rows_multiply(name):
    made = steps.step(roles=ROLES[name])
    heavy = replace(made, batch=replace(made.batch, rows=replace(made.batch.rows, weight=torch.tensor([3.0, 1, 1, 1]))))
    errors, reference = torch.tensor([0.1, 0.2, 0.3, 0.2]), torch.tensor([0.15, 0.15, 0.25, 0.25])
    plain, weighed = (build(name)(errors, reference, m).values for m in (made, heavy))
    assert weighed[0].item() == pytest.approx(3 * plain[0].item())
    assert torch.equal(weighed[1:], plain[1:])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("data", ["pictures", "pairs", "ratings"])
def test_data_that_an_objective_cannot_learn_from_is_one_line(name, data):
    options = objectives[name].options()
    if not options.data or data in options.data:
        _fits("objective", options, data)
        return
    with pytest.raises(UserError, match=rf"^objective: it needs .*; set data\.{options.data[0]} = .*$"):
        _fits("objective", options, data)


def test_the_form_lists_every_objective_and_shows_its_data():
    assert set(fields.objectives()) == set(NAMES) and next(iter(fields.objectives())) == OBJECTIVE
    assert [fields.usual_data(name) for name in ("sft", "dpo", "kto", "x")] == [
        None,
        "data.pairs",
        "data.ratings",
        None,
    ]


@pytest.mark.parametrize("name", PAIRED)
@settings(max_examples=20, deadline=None)
@given(st.permutations(range(6)), st.integers(0, 999))
def test_order_of_rows_does_not_matter(name, order, seed):
    made = steps.step(roles=["winner", "loser"] * 3, channels=1, size=1)
    generator = torch.Generator().manual_seed(seed)
    errors, reference = (torch.rand(6, generator=generator, dtype=torch.float64) + 0.01 for _ in range(2))
    at = torch.tensor(order)
    one = build(name)(errors, reference, made).values
    two = build(name)(errors[at], reference[at], made.pick(at)).values
    torch.testing.assert_close(one.sort().values, two.sort().values)


@pytest.mark.parametrize("name", PAIRED)
@settings(max_examples=30, deadline=None)
@given(st.floats(0.01, 0.5), st.floats(0.01, 0.5), st.floats(0.01, 0.5), st.floats(0.01, 0.5))
def test_descent_lowers_the_winners_error_and_raises_the_losers(name, w, l, rw, rl):  # noqa: E741
    """The sign that a trainer's open pull request has the wrong way round for SimPO, CPO and IPO.

    IPO is left out where its aim is passed: there it pulls back.
    """
    errors, made = pairs(w, l)
    options = {"beta": 10.0} if name in ("dpo", "simpo") else {}
    (grad,) = torch.autograd.grad(score(build(name, **options), errors, [rw, rl], made).values.sum(), errors)
    if name == "ipo" and (rw - w) - (rl - l) >= 1 / 500:
        return
    assert grad[0] >= 0
    assert grad[1] <= 0
    if name != "mapo":
        assert grad[0] > 0
        assert grad[1] < 0


@pytest.mark.parametrize("name", NAMES)
def test_every_objective_has_a_title_and_every_option_help(name):
    assert objectives[name].options.title
    assert [n for n, f in objectives[name].options.model_fields.items() if not f.description] == []
    assert objectives[name].options().model_dump()["kind"] == name


@pytest.mark.parametrize("name", PAIRED)
def test_single_pictures_are_not_pairs(name):
    with pytest.raises(ValueError, match=r"^objective: it compares pairs, .*; give"):
        score(build(name), torch.ones(2), [1.0, 1.0], steps.step())


# --------------------------------------------------------------------------------------------------------------- dpo


@pytest.mark.parametrize(("default", "slope"), [(5000.0, 1250), (2000.0, 500)])
def test_dpo_at_the_reference(default, slope):
    errors, made = pairs(0.1, 0.12)
    output = score(build("dpo", default_beta=default), errors, [0.1, 0.12], made)
    assert output.values.item() == pytest.approx(0.6931471805599453, abs=1e-12)
    assert output.metrics["accuracy"].item() == 0.5
    (grad,) = torch.autograd.grad(output.values.sum(), errors)
    assert grad.tolist() == pytest.approx([slope, -slope], abs=1e-9)


def test_dpo_numbers():
    errors, made = pairs(0.099, 0.120)
    output = score(build("dpo", beta=5000.0), errors, [0.100, 0.120], made)
    assert output.metrics["margin"].item() == pytest.approx(2.5, abs=1e-9)
    assert output.values.item() == pytest.approx(0.0788897, abs=1e-7)
    assert output.metrics["winner_change"].item() == pytest.approx(-0.001)
    assert output.metrics["winner_rise"].item() == pytest.approx(-0.01)
    assert output.metrics["accuracy"].item() == 1
    assert output.metrics["saturated"].item() == 0
    far, _ = pairs(0.098, 0.120)
    assert score(build("dpo", beta=5000.0), far, [0.100, 0.120], made).metrics["saturated"].item() == 1


@settings(max_examples=30, deadline=None)
@given(*[st.floats(0.01, 0.5)] * 4, st.floats(-0.2, 0.2))
def test_dpo_invariances(w, l, rw, rl, c):  # noqa: E741
    dpo, (errors, made) = build("dpo", beta=50.0), pairs(w, l)
    margin = score(dpo, errors, [rw, rl], made).metrics["margin"].item()
    same_picture, all_four, swapped = pairs(w + c, l)[0], pairs(w + c, l + c)[0], pairs(l, w)[0]
    assert score(dpo, same_picture, [rw + c, rl], made).metrics["margin"].item() == pytest.approx(margin, abs=1e-9)
    assert score(dpo, all_four, [rw + c, rl + c], made).metrics["margin"].item() == pytest.approx(margin, abs=1e-9)
    assert score(dpo, swapped, [rl, rw], made).metrics["margin"].item() == pytest.approx(-margin, abs=1e-9)


def test_the_sigmoid_comes_before_the_mean():
    """Two different pairs: an early script took the mean first, and two opposite pairs cancelled."""
    errors, made = pairs(0.1, 0.2, 0.2, 0.1)
    output = score(build("dpo", beta=100.0), errors, [0.15, 0.15, 0.15, 0.15], made)
    assert output.metrics["margin"].tolist() == pytest.approx([5, -5])
    assert output.values.mean().item() == pytest.approx((softplus(-5) + softplus(5)) / 2)
    assert output.values.mean().item() == pytest.approx(2.506715, abs=1e-6)
    assert softplus(0) == pytest.approx(0.6931, abs=1e-4), "what the mistake gives"


def test_the_sigmoid_acts_on_pictures_not_on_latent_cells():
    """An error is a mean over cells before the sigmoid; the mean of sigmoids over cells is another objective."""
    cells_w, cells_l = torch.tensor([0.0, 0.4]), torch.tensor([0.2, 0.2])
    errors, made = pairs(cells_w.mean().item(), cells_l.mean().item())
    value = score(build("simpo", beta=20.0), errors, [0.0, 0.0], made).values.item()
    assert value == pytest.approx(LN2)
    assert torch.nn.functional.softplus(20 * (cells_w - cells_l)).mean().item() == pytest.approx(2.018, abs=1e-3)


def test_dpo_of_a_flow_has_a_constant_beta():
    errors, margins = pairs(0.099, 0.120)[0], []
    for level in (0.1, 0.9):
        at = steps.step("flow", [level, level], roles=["winner", "loser"])
        margins.append(
            score(build("dpo", "flow", default_beta=100.0), errors, [0.1, 0.12], at).metrics["margin"].item()
        )
    assert margins == pytest.approx([0.05, 0.05])


def test_dpo_is_the_released_formula():
    """-log sigmoid(-beta/2 (policy difference - reference difference)), mean over pairs, with its gradient."""
    torch.manual_seed(4)
    out, target, ref = (torch.randn(6, 4, 8, 8, dtype=torch.float64) for _ in range(3))
    out.requires_grad_()
    made = steps.step(roles=["winner"] * 3 + ["loser"] * 3)
    made = replace(made, batch=replace(made.batch, rows=replace(made.batch.rows, group=torch.tensor([0, 1, 2] * 2))))

    def errors(x):
        return ((x - target) ** 2).mean((1, 2, 3))

    ours = build("dpo", beta=20.0)(errors(out), errors(ref), made).values.mean()
    (model_w, model_l), (ref_w, ref_l) = errors(out).chunk(2), errors(ref).chunk(2)
    theirs = -torch.log(1 / (1 + torch.exp(10 * ((model_w - model_l) - (ref_w - ref_l))))).mean()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    grads = [torch.autograd.grad(x, out, retain_graph=True)[0] for x in (ours, theirs)]
    torch.testing.assert_close(*grads, rtol=0, atol=1e-12)


def test_dpop_penalises_a_winner_that_gets_worse_and_only_that():
    made = pairs(0, 0)[1]
    for w, l, rw, rl, worse in ((0.09, 0.12, 0.1, 0.12, False), (0.11, 0.2, 0.1, 0.12, True)):  # noqa: E741
        plain, dpop = (score(build("dpo", beta=100.0, dpop=k), pairs(w, l)[0], [rw, rl], made) for k in (0.0, 2.0))
        assert (dpop.values.item() > plain.values.item() + 1e-6) == worse
        assert dpop.metrics["margin"].item() == plain.metrics["margin"].item()
    inside = -0.5 * 100 * ((0.01 - 0.08) + 2 * 0.01)
    assert dpop.values.item() == pytest.approx(softplus(-inside), abs=1e-9)


def test_label_smoothing_and_anchor():
    errors, made = pairs(0.09, 0.12)
    smooth = score(build("dpo", beta=200.0, label_smoothing=0.1), errors, [0.1, 0.12], made).values.item()
    assert smooth == pytest.approx(0.9 * softplus(-1) + 0.1 * softplus(1), abs=1e-9)
    for kind, options in (("dpo", {"beta": 200.0}), ("simpo", {"beta": 10.0}), ("ipo", {})):
        plain, anchored = (
            score(build(kind, sft_weight=k, **options), errors, [0.1, 0.12], made).values.item() for k in (0.0, 2.0)
        )
        assert anchored == pytest.approx(plain + 2 * 0.09)


def test_automatic_beta_holds_the_average_pair_where_the_slope_is_a_fifth():
    dpo, made = build("dpo", beta="auto", default_beta=1234.0), steps.step(size=64)
    assert dpo.beta(made) == 1234
    dpo.update({"margin_size": 0.0}, 4)
    assert dpo.beta(made) == 1234, "at the start every margin is 0, which says nothing"
    dpo.update({"margin_size": 4 * 0.001}, 4)
    assert dpo.beta(made) == pytest.approx(2 * math.log(4) / 0.001)
    assert 1 / (1 + math.exp(0.5 * dpo.beta(made) * 0.001)) == pytest.approx(0.2)
    for _ in range(2000):
        dpo.update({"margin_size": 4 * 1.0}, 4)
    assert dpo.beta(made) == pytest.approx(0.001 * 4 * 64 * 64), "at least 0.001 for sums"
    tiny_margins = build("dpo", beta="auto")
    tiny_margins.update({"margin_size": 1e-9}, 1)
    assert tiny_margins.beta(made) == 1.0 * 4 * 64 * 64
    pixels = build("dpo", beta="auto", decodes=True)
    pixels.update({"margin_size": 1e-9}, 1)
    assert pixels.beta(made) == 3 * 512 * 512
    restored = build("dpo", beta="auto")
    restored.state = dict(dpo.state)
    assert restored.beta(made) == dpo.beta(made)


# --------------------------------------------------------------------------------------------------------------- ipo


def test_ipo_numbers():
    errors, made = pairs(0.1, 0.12)
    assert score(build("ipo", tau=0.1), errors, [0.1, 0.12], made).values.item() == pytest.approx(25)
    at_aim, _ = pairs(0.1 - 0.003, 0.12 + 0.002)
    output = score(build("ipo", tau=100.0), at_aim, [0.1, 0.12], made)
    assert output.values.item() == pytest.approx(0, abs=1e-18)
    (grad,) = torch.autograd.grad(output.values.sum(), at_aim)
    assert grad.abs().max() < 1e-12
    beyond, _ = pairs(0.09, 0.13)
    assert score(build("ipo", tau=100.0), beyond, [0.1, 0.12], made).metrics["saturated"].item() == 1


# ------------------------------------------------------------------------------------------------------------- simpo


def test_simpo_at_equal_errors():
    errors, made = pairs(0.1, 0.1)
    output = score(build("simpo", beta=60.0), errors, [0.0, 0.0], made)
    assert output.values.item() == pytest.approx(LN2, abs=1e-12)
    assert (1 + 8) * output.values.item() == pytest.approx(6.238325, abs=1e-6)
    (grad,) = torch.autograd.grad(output.values.sum(), errors)
    assert grad.tolist() == pytest.approx([30, -30])
    with_margin = score(build("simpo", beta=60.0, gamma=0.7), errors, [0.0, 0.0], made).values.item()
    assert with_margin == pytest.approx(softplus(0.7), abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.001, 0.2), st.floats(0.5, 10), st.floats(1, 60))
def test_two_terms_are_two_sigmoids(a, mu, beta):
    """Latent says +a, pixel says -a: the sum is softplus(beta a) + mu softplus(-beta a), not one sigmoid of a sum."""
    made, simpo = pairs(0, 0)[1], build("simpo", beta=beta)
    latent, pixel = (score(simpo, pairs(*e)[0], [0.0, 0.0], made).values.item() for e in ((a, 0.0), (0.0, a)))
    assert latent + mu * pixel == pytest.approx(softplus(beta * a) + mu * softplus(-beta * a), abs=1e-9)
    assert latent + mu * pixel > softplus(beta * (a - mu * a)), "one sigmoid of the summed margins is another number"


def test_simpo_does_not_look_at_the_reference():
    errors, made = pairs(0.1, 0.12)
    simpo = build("simpo", beta=60.0)
    assert not simpo.needs_reference
    one, two = simpo(errors, None, made), score(simpo, errors, [9.0, 3.0], made)
    assert torch.equal(one.values, two.values)


def test_simpos_automatic_beta_makes_a_typical_margin_one():
    simpo, fixed = build("simpo"), 0.0
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        margins = torch.randn(4, generator=generator) * 0.01
        errors, made = pairs(*[e for m in margins.tolist() for e in (0.5, 0.5 + m)])
        output = simpo(errors, None, made)
        simpo.update({k: float(v.sum()) for k, v in output.metrics.items()}, 4)
        if simpo.state["pairs"] == 100:
            fixed = simpo.beta
    assert simpo.state["pairs"] == 100
    assert simpo.beta == fixed
    typical = simpo.beta * 0.6745 * 0.01
    assert 0.7 < typical < 1.6


# -------------------------------------------------------------------------------------------------------------- mapo


def test_mapos_phi():
    at = torch.tensor([0.0, 1e-8, 0.05, 0.06, 9e-5, 1.1e-4], dtype=torch.float64)
    values = phi(at)
    assert values[0] == 1
    assert values[1].item() == pytest.approx(1 - 5e-9, abs=1e-12)
    assert values[2:4].tolist() == pytest.approx([0.975208, 0.970300], abs=5e-7)
    torch.testing.assert_close(values[4:], 1 - at[4:] / 2 + at[4:] ** 2 / 12, rtol=0, atol=1e-12)
    zero = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.grad(phi(zero).sum(), zero)[0].item() == -0.5


def test_mapos_phi_survives_float32():
    """a / (exp(a) - 1) is 1e-8 / 0 in float32."""
    small = torch.tensor([1e-8])
    assert torch.isinf(small / (torch.exp(small) - 1))
    assert phi(small).item() == 1


def test_mapo_numbers():
    errors, made = pairs(0.1, 0.1)
    assert score(build("mapo"), errors, [0, 0], made).values.item() == pytest.approx(0.1 + 0.1 * LN2, abs=1e-9)
    errors, made = pairs(0.10, 0.12)
    output = score(build("mapo", mapo_weight=1.0), errors, [0, 0], made)
    assert output.values.item() - 0.1 == pytest.approx(0.007358, abs=2e-6)
    assert not build("mapo").needs_reference


# --------------------------------------------------------------------------------------------------------------- kto


def test_kto_numbers():
    made = steps.step(roles=["liked", "disliked"])
    errors = torch.tensor([0.1, 0.2], dtype=torch.float64, requires_grad=True)
    kto = build("kto", liked_weight=2.0)
    output = score(kto, errors, [0.1, 0.2], made)
    assert output.values.tolist() == pytest.approx([2 * 0.5, 0.5])
    assert output.metrics["accuracy"].tolist() == [0.5, 0.5]
    (grad,) = torch.autograd.grad(output.values.sum(), errors)
    assert grad.tolist() == pytest.approx([2 * 250, -250]), "liked errors fall, disliked errors rise"
    output = score(build("kto"), errors, [0.101, 0.201], made)
    s = 1 / (1 + math.exp(-1))
    assert output.values.tolist() == pytest.approx([1 - s, s])


def test_ktos_kl_is_a_number_from_the_steps_before_and_never_negative():
    made = steps.step(roles=["liked", "disliked"])
    kto, errors = build("kto"), torch.tensor([0.1, 0.2], dtype=torch.float64, requires_grad=True)
    kto.update({"reward": 2 * 0.001}, 2)
    assert kto.kl == pytest.approx(0.001)
    assert score(kto, errors, [0.101, 0.201], made).values.tolist() == pytest.approx([0.5, 0.5])
    for _ in range(100):
        kto.update({"reward": -1.0}, 1)
    assert kto.kl == 0


def test_kto_takes_pairs_apart_and_refuses_the_rest():
    errors = torch.tensor([0.1, 0.2], dtype=torch.float64)
    paired, single = (
        score(build("kto"), errors, [0.11, 0.19], steps.step(roles=r)).values
        for r in (["winner", "loser"], ["liked", "disliked"])
    )
    assert torch.equal(paired, single)
    with pytest.raises(AssertionError, match="ratings or pairs"):
        score(build("kto"), errors, [0.1, 0.2], steps.step())


# --------------------------------------------------------------------------------------------------------------- sft


LEVEL = {"epsilon": [0.0, 500.0, 999.0], "v": [0.0, 500.0, 999.0], "flow": [0.2, 0.5, 0.9]}


def weights(prediction: str, **options) -> list[float]:
    made = steps.step(prediction, LEVEL[prediction], rows=3)
    return build("sft", prediction, **options)(torch.ones(3, dtype=torch.float64), None, made).values.tolist()


def snrs(prediction: str) -> list[float]:
    return steps.process(prediction).snr(torch.tensor(LEVEL[prediction])).tolist()


def test_sft_alone_is_the_error():
    assert weights("epsilon") == [1, 1, 1]
    assert weights("flow") == [1, 1, 1]


@pytest.mark.parametrize(
    ("prediction", "options", "formula"),
    [
        ("epsilon", {"min_snr_gamma": 5.0}, lambda s: min(s, 5) / s),
        ("v", {"min_snr_gamma": 5.0}, lambda s: min(s, 5) / (s + 1)),
        ("epsilon", {"debiased_estimation_loss": True}, lambda s: min(s, 1000) ** -0.5),
        ("v", {"debiased_estimation_loss": True}, lambda s: 1 / (min(s, 1000) + 1)),
        ("v", {"scale_v_pred_loss_like_noise_pred": True}, lambda s: min(s, 1000) / (min(s, 1000) + 1)),
        ("epsilon", {"v_pred_like_loss": 0.5}, lambda s: 1 + 0.5 * (min(s, 1000) + 1) / min(s, 1000)),
        (
            "v", {"min_snr_gamma": 5.0, "scale_v_pred_loss_like_noise_pred": True},
            lambda s: min(s, 5) / (s + 1) * min(s, 1000) / (min(s, 1000) + 1),
        ),
    ],
)  # fmt: skip
def test_time_weights_are_kohyas(prediction, options, formula):
    assert weights(prediction, **options) == pytest.approx([formula(s) for s in snrs(prediction)], rel=1e-9)


@pytest.mark.parametrize(
    ("kind", "formula"),
    [
        ("none", lambda s: 1), ("sigma_sqrt", lambda s: s**-2), ("x0", lambda s: 1),
        ("cosmap", lambda s: 2 / (math.pi * (1 - 2 * s + 2 * s**2))),
    ],
)  # fmt: skip
def test_flow_weightings_are_sd3s_on_the_error_in_x0(kind, formula):
    """All but ``none`` are defined on the error of the clean latents, and ask for it."""
    assert SftOptions(flow_weighting=kind).in_x0 == (kind != "none")
    assert weights("flow", flow_weighting=kind) == pytest.approx([formula(s) for s in LEVEL["flow"]], rel=1e-6)


def test_min_snr_of_a_flow_limits_the_weight_in_x0():
    formula = [min(((1 - s) / s) ** 2, 5) * s**2 for s in LEVEL["flow"]]
    assert weights("flow", min_snr_gamma=5.0) == pytest.approx(formula, rel=1e-6)


def test_min_snr_at_the_end_of_a_zero_terminal_schedule():
    from pixelkiln.trainer.diffusion.process import Process, scaled_linear, zero_terminal_snr

    made = replace(steps.step("v", [999.0], rows=1), process=Process("v", zero_terminal_snr(scaled_linear())))
    sft = objectives["sft"].build(SftOptions(min_snr_gamma=5.0), ObjectiveParts(made.process))
    assert sft(torch.ones(1), None, made).values.tolist() == [0]


@pytest.mark.parametrize(
    ("prediction", "options"),
    [
        ("flow", {"debiased_estimation_loss": True}), ("epsilon", {"scale_v_pred_loss_like_noise_pred": True}),
        ("v", {"v_pred_like_loss": 0.1}), ("epsilon", {"flow_weighting": "cosmap"}),
    ],
)  # fmt: skip
def test_weights_that_do_not_apply_are_refused(prediction, options):
    with pytest.raises(ValueError, match=rf"^objective\.{next(iter(options))}: .*; leave it out$"):
        build("sft", prediction, **options)


def test_time_weights_leave_decoded_terms_alone():
    made = steps.step("epsilon", LEVEL["epsilon"], rows=3)
    sft = build("sft", decodes=True, min_snr_gamma=5.0)
    assert sft(torch.ones(3), None, made).values.tolist() == [1, 1, 1]


def test_a_time_weight_without_a_term_to_weigh_is_a_warning():
    base = {"model.path": "m", "data.path": "d", "objective.min_snr_gamma": 5.0, "loss.pixel.weight": 1.0}
    spec = families["sd15"].build()
    family = SimpleNamespace(spec=spec, process=steps.process("epsilon"), vae=tiny.vae(), scale=1.0, shift=0.0)
    for weight, warned in ((0.0, ["objective.min_snr_gamma"]), (1.0, [])):
        lines: list[str] = []
        config = load(flags={**base, "loss.mse.weight": weight})
        model: Any = SimpleNamespace(family=family, process=family.process, device=torch.device("cpu"))
        build_terms(config, model, torch.float32, lines.append)
        assert [line.split(": ")[1] for line in lines if "all terms decode" in line] == warned


def test_sft_learns_from_what_is_liked_only():
    made = steps.step(roles=["winner", "loser", "winner", "loser"])
    assert build("sft")(torch.tensor([1.0, 2, 3, 4]), None, made).values.tolist() == [1, 3]


@pytest.mark.parametrize("kind", [entry.name for entry in objectives if entry.options.data])
@pytest.mark.parametrize("option", ["min_snr_gamma", "debiased_estimation_loss", "flow_weighting"])
def test_preference_objectives_refuse_time_weights(kind, option):
    with pytest.raises(ValidationError, match=option):
        build(kind, **{option: 5.0})


@pytest.mark.parametrize("kind", ["simpo", "mapo", "sft"])
def test_objectives_without_a_reference_have_no_cached_draws(kind):
    with pytest.raises(ValidationError, match="reference_draws"):
        build(kind, reference_draws=4)


# ------------------------------------------------------------------------------------------------------ running means


@settings(max_examples=30, deadline=None)
@given(st.lists(st.one_of(st.floats(0, 1e6), st.just(math.nan), st.just(math.inf)), min_size=1, max_size=20))
def test_both_running_means_agree(values):
    """The one of automatic weights and the one of automatic betas."""
    state: dict[str, float] = {}
    anchor = term.Term("mse", lambda step: step.out, None, term.TermOptions())  # pyright: ignore[reportArgumentType]
    balance = term.Balance([anchor], decay=0.9)
    for value in values:
        common.average(state, "x", value, 0.9)
        balance.update({"mse": value}, {"mse": 1})
    assert (common.averaged(state, "x") or 0.0) == pytest.approx(balance._mean("mse"))
