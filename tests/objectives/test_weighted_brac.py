"""BRAC whose cloning is weighted by advantages: the sum of the two rules that it is made of."""

from __future__ import annotations

import pytest
import torch
from objective_toys import Case, make_batch
from torch.testing import assert_close
from torchrl.objectives import SoftUpdate

from torchrl_marl_offline import AWR, BRAC, TD, make_loss
from torchrl_marl_offline.core.layout import MASK
from torchrl_marl_offline.objectives import WeightedBRAC


@pytest.mark.parametrize("decomposition", ["mixer", "centralized", "independent"])
@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("advantage", ["joint", "local"])
def test_it_is_the_ascent_of_brac_and_the_cloning_of_awr(decomposition: str, discrete: bool, advantage: str) -> None:
    case = Case(decomposition, "td", "brac", discrete)
    batch = make_batch(case.spec, 9)
    batch[MASK] = torch.arange(9) % 4 != 0
    rules = {
        "both": WeightedBRAC(0.7, sample=False, temperature=2.0, advantage=advantage),
        "ascent": BRAC(0.0, sample=False),
        "cloning": AWR(2.0, advantage),
    }
    found, gradients = {}, {}
    for name, rule in rules.items():
        loss = case.build(value_learning=TD(), extraction=rule)
        term = loss(batch)["loss_actor"]
        term.backward()
        found[name] = term.detach()
        gradients[name] = [p.grad.clone() for n, p in loss.named_parameters() if n.startswith("actor")]
    assert_close(found["both"], found["ascent"] + 0.7 * found["cloning"])
    for both, ascent, cloning in zip(*(gradients[name] for name in rules), strict=True):
        assert_close(both, ascent + 0.7 * cloning)
    assert any(grad.abs().sum() > 0 for grad in gradients["both"])


@pytest.mark.parametrize("learning", ["td", "sarsa", "iql"])
@pytest.mark.parametrize("decomposition", ["mixer", "centralized", "independent"])
def test_every_network_is_trained_beside_it(learning: str, decomposition: str) -> None:
    case = Case(decomposition, learning, "brac")
    batch, found = make_batch(case.spec, 9), {}
    for name, rule in (("own", WeightedBRAC(sample=False)), ("brac", BRAC(sample=False))):
        loss = case.build(extraction=rule)
        output = loss(batch)
        sum(output[key] for key in output.keys() if key.startswith("loss")).backward()  # noqa: SIM118
        found[name] = {n: p.grad for n, p in loss.named_parameters() if not n.startswith("actor")}
    assert found["own"]
    for name, grad in found["own"].items():
        assert_close(grad, found["brac"][name])
        assert grad.abs().sum() > 0 or "bias" in name


def test_as_an_extraction_of_the_recipe() -> None:
    case = Case(discrete=True)
    loss = make_loss(case.spec, extraction="weighted_brac", alpha=0.3, temperature=5.0, hidden=(8,))
    SoftUpdate(loss, tau=0.5)
    assert loss.extraction == WeightedBRAC(0.3, temperature=5.0)
    found = loss(make_batch(case.spec, 6))
    assert 0 < found["effective_sample_size"] <= 1
    loss.alpha, loss.temperature = 0.0, 1.0
    assert not torch.equal(loss(make_batch(case.spec, 6))["loss_actor"], found["loss_actor"])
    for wrong in ({"temperature": -1.0}, {"max_relative_weight": 1.0}, {"advantage": "own"}, {"alpha": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            WeightedBRAC(**wrong)
    with pytest.raises(ValueError, match="weights is read only with extraction 'awr'"):
        make_loss(case.spec, extraction="weighted_brac", weights="clipped", hidden=(8,))
