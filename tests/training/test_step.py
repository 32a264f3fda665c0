"""Parts of a step, each against its definition: terms that count for a share of the steps, float16's scale."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import steps
import torch

from pixelkiln.trainer.losses.term import Balance, LossParts, LossTerms, Term
from pixelkiln.trainer.objectives.common import ObjectiveParts
from pixelkiln.trainer.registry import losses, objectives
from pixelkiln.trainer.training.optimization import Optimization
from pixelkiln.trainer.training.step import StepLoss, apply_objectives, compute_errors, micro_batches, seed_dropout


def mse(name: str = "mse", **options: Any) -> Term:
    process = steps.process("epsilon")
    entry, objective = losses["mse"], objectives["sft"]
    chosen = entry.options(**options)
    loss = entry.build(chosen, LossParts(process, None, False))
    return Term(name, loss, objective.build(objective.options(), ObjectiveParts(process, False, 2000.0)), chosen)


def applied(terms: list[Term], made: Any, roles: Any = None) -> StepLoss:
    found = LossTerms(terms, Balance(terms))
    errors = compute_errors(terms, made)
    return apply_objectives(found, made, errors, {}, roles or made.batch.rows.role)


def test_a_terms_probability_is_divided_out():
    """A term of probability p counts for a share p of the rows, 1 / p times as much: its mean is the whole term's."""
    made = steps.step(rows=400, size=2)
    errors = compute_errors([mse()], made)["mse"].detach()
    whole = float(applied([mse()], made).loss)
    assert whole == pytest.approx(float(errors.mean()))
    for probability in (0.5, 0.25):
        active = made.draw.coin < probability
        assert 0 < active.sum() < 400
        found = float(applied([mse(probability=probability)], made).loss)
        assert found == pytest.approx(float(errors[active].sum()) / probability / 400)
        assert found == pytest.approx(whole, rel=0.25)


def test_terms_add_up_by_their_weights_and_over_the_rows_of_the_effective_batch():
    made = steps.step(rows=4)
    one = float(applied([mse()], made).loss)
    assert float(applied([mse("a", weight=0.5), mse("b", weight=3.0)], made).loss) == pytest.approx(3.5 * one)
    assert float(applied([mse()], made, ["plain"] * 16).loss) == pytest.approx(one / 4)
    halves = [made.pick(torch.tensor(rows)) for rows in ([0, 1], [2, 3])]
    total = StepLoss.zero()
    for half in halves:
        total.add(applied([mse()], half, ["plain"] * 4))
    assert float(total.loss) == pytest.approx(one)
    assert total.counts["mse/value"] == 4 and total.means()["mse/value"] == pytest.approx(one)


def test_a_term_is_asked_once_for_its_rows_in_a_step(monkeypatch: pytest.MonkeyPatch):
    """By errors and objectives alike, also where it counts for some of the rows."""
    asked: list[str] = []
    active = Term.active

    def counted(term: Term, *args: Any) -> torch.Tensor:
        asked.append(term.name)
        return active(term, *args)

    monkeypatch.setattr(Term, "active", counted)
    applied([mse("a"), mse("b", probability=0.5)], steps.step(rows=40, size=2))
    assert asked == ["a", "b"]


def test_a_batch_that_is_one_micro_batch_is_not_copied():
    batch = steps.step(rows=4, size=2).batch
    assert micro_batches(batch, 4) == [batch]
    assert [part.keys for part in micro_batches(batch, 3)] == [batch.keys[:3], batch.keys[3:]]
    assert [part.keys for part in micro_batches(batch, 4, rank=0, world=2)] == [batch.keys]


def test_each_row_of_a_pair_has_dropout_masks_of_its_own():
    """By its role and its pair, so that they are the same however rows are batched."""
    asked: list[Any] = []
    adapter = SimpleNamespace(new_step=lambda seed, rows: asked.append((seed, rows)))
    rows = SimpleNamespace(role=["winner", "loser"] * 2, group=torch.tensor([3, 3, 7, 7]))
    seed_dropout(SimpleNamespace(adapter=adapter, device=torch.device("cpu")), SimpleNamespace(rows=rows), 5)
    drawn = torch.rand(3)
    torch.manual_seed(5 + 3)
    assert torch.equal(drawn, torch.rand(3))  # for the dropout inside a text encoder
    assert asked == [(5, ["winner 3", "loser 3", "winner 7", "loser 7"])]


def optimization() -> tuple[torch.nn.Parameter, Optimization]:
    parameter = torch.nn.Parameter(torch.ones(3))
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=3)
    return parameter, Optimization(
        torch.optim.SGD([{"params": [parameter], "name": "a", "lr": 1.0, "initial_lr": 1.0, "born": {}}]),
        None,
        scaler,
        0.0,
    )  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("most", [0.0, 1.0, 2.0 * 3**0.5, 2.0 * 3**0.5 + 5e-7, 4.0])
def test_clipping_gives_the_bits_of_torchs(most):
    """Also where it leaves out the multiplication by 1."""
    parameter, made = optimization()
    other = torch.nn.Parameter(torch.ones(3))
    made.max_grad_norm = most
    parameter.grad, other.grad = torch.full((3,), 2.0), torch.full((3,), 2.0)
    made.scaler = torch.amp.GradScaler("cpu", enabled=False)
    assert torch.equal(made.clip_gradients(), torch.nn.utils.clip_grad_norm_([other], most or torch.inf))
    assert torch.equal(parameter.grad, other.grad)


def test_the_scale_of_float16_survives_a_resume():
    parameter, before = optimization()
    for _ in range(2):
        before.backward(parameter.sum())
        before.clip_gradients()
        before.step()
    before.backward((parameter * torch.inf).sum())
    before.clip_gradients()
    before.skip()
    assert before.scaler.get_scale() == 32.0
    _, after = optimization()
    tensors, facts = before.state()
    after.load_state(tensors, facts)
    assert after.scaler.get_scale() == 32.0
    assert after.scaler.state_dict() == before.scaler.state_dict()


@pytest.mark.parametrize(("limit", "moved"), [(0.0, 3.0), (1.0, 1.0), (10.0, 3.0)])
def test_gradients_are_clipped_after_they_are_unscaled(limit, moved):
    """The norm is that of the loss's own gradient, whatever the scale; 0 does not clip."""
    parameter, made = optimization()
    made.max_grad_norm = limit
    made.backward((parameter * 3**0.5).sum())
    assert float(made.clip_gradients()) == pytest.approx(3.0)
    made.step()
    assert float((1 - parameter).norm()) == pytest.approx(moved, rel=1e-4)
