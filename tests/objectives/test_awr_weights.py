"""How advantage-weighted regression's weights are made: strength that rises with its setting, and rare successes."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from objective_toys import Case, make_batch
from selection import thorough
from torch import Tensor
from torchrl.objectives import SoftUpdate

from torchrl_marl_offline import (
    AWR,
    SARSA,
    OfflineMARLLoss,
    from_arrays,
    make_actor,
    make_critic,
    make_loss,
)
from torchrl_marl_offline.objectives.batch_weights import bounded_weights
from torchrl_marl_offline.objectives.functional import effective_sample_size, standardize

TEMPERATURES = (0.01, 0.1, 0.3, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 1000.0)


def weigh(x: Tensor, temperature: Tensor | float, mask: Tensor | None = None, *, most: float = 30.0) -> Tensor:
    return bounded_weights(x, temperature, mask, max_weight=most)


def advantages(kind: str, rows: int = 512) -> Tensor:
    """Return standardized advantages ``[rows, 1]`` of a kind of distribution."""
    at = (torch.arange(rows, dtype=torch.float64) + 0.5) / rows  # quantiles: nothing is drawn
    normal = torch.special.ndtri(at)
    drawn = {
        "normal": normal,
        "skewed": -torch.log1p(-at),
        "skewed to the left": torch.log(at),
        "heavy-tailed": normal * (1 + normal.pow(2)),
        "rare successes": torch.where(at > 0.97, 10.0, -0.1 * normal),
        "two values": torch.where(at > 0.5, 1.0, -1.0),
    }[kind]
    return standardize(drawn.unsqueeze(-1))


KINDS = ("normal", "skewed", "skewed to the left", "heavy-tailed")


@pytest.mark.fault("3.15")
@pytest.mark.parametrize("kind", KINDS)
def test_a_larger_temperature_never_prefers_better_actions_less(kind: str) -> None:
    x = advantages(kind)
    selectivity = [float((weigh(x, temperature) * x).mean()) for temperature in TEMPERATURES]
    assert all(low <= high + 1e-9 for low, high in itertools.pairwise(selectivity))
    assert selectivity[0] < selectivity[4] < selectivity[-1] + 1e-9
    clipped = [AWR(weights="clipped").weight(x, temperature) for temperature in (1.0, 2.0, 3.0, 10.0)]
    falls = [float((weight * x).mean() / weight.mean()) for weight in clipped]
    assert kind != "normal" or falls == pytest.approx([1.0, 1.62, 1.52, 1.03], abs=0.02)  # as released


@pytest.mark.fault("3.15")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("most", [1.5, 5.0, 30.0])
def test_no_weight_is_far_above_the_mean_and_the_effective_sample_size_is_kept(kind: str, most: float) -> None:
    x = advantages(kind)
    for temperature in TEMPERATURES:
        weight = weigh(x, temperature, most=most)
        assert float(weight.mean()) == pytest.approx(1.0) and float(weight.max()) <= most * (1 + 1e-6)
        assert float(effective_sample_size(weight)) >= 1 / most - 1e-6
    best = round(len(x) / most)  # the largest temperature: equal weights for the best, but for a few at the boundary
    assert weight.flatten()[-best + 1 :].min() > 0.98 * most and weight.flatten()[: -best - 9].max() < 0.01


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_the_temperature_is_the_exponent_where_no_weight_is_far_above_the_mean(kind: str, temperature: float) -> None:
    x = advantages(kind)
    expected = (temperature * x).exp()
    torch.testing.assert_close(weigh(x, temperature, most=1e4), expected / expected.mean())


def test_weights_by_hand() -> None:
    # One success of four, at most 2.5 times the mean: (2.5, .5, .5, .5). The deviation of a share of 1/4: sqrt(3)/4.
    x = standardize(torch.tensor([[4.0], [0.0], [0.0], [0.0]], dtype=torch.float64))
    expected = torch.tensor([2.5, 0.5, 0.5, 0.5], dtype=torch.float64)
    torch.testing.assert_close(weigh(x, 3.0, most=2.5).flatten(), expected, rtol=2e-2, atol=2e-2)
    low = math.exp(0.3 * (0.0 - 1.0) / (math.sqrt(3) / 4))
    expected = torch.tensor([1.0, low, low, low], dtype=torch.float64)
    torch.testing.assert_close(weigh(x, 0.3, most=3.0).flatten(), expected / expected.mean(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 3.0])
def test_equal_advantages_have_equal_weights(temperature: float) -> None:
    assert torch.equal(weigh(torch.zeros(8, 2), temperature), torch.ones(8, 2))


def test_temperature_0_weighs_all_alike() -> None:
    assert torch.equal(weigh(torch.randn(8, 2), 0.0), torch.ones(8, 2))


def test_where_the_best_are_many_they_may_share_all_the_weight() -> None:
    weight = weigh(advantages("two values", rows=8), 100.0)
    torch.testing.assert_close(weight.flatten().float(), torch.tensor([0.0] * 4 + [2.0] * 4))


def test_what_does_not_count_has_no_weight_and_no_say() -> None:
    x, mask = torch.randn(64, 3, generator=torch.Generator().manual_seed(0)), torch.arange(192).reshape(64, 3) % 5 < 3
    weight = weigh(x, 30.0, mask, most=5.0)
    assert not weight[~mask].any()
    torch.testing.assert_close(weight[mask], weigh(x[mask].unsqueeze(-1), 30.0, most=5.0).squeeze(-1))
    assert torch.equal(weigh(torch.where(mask, x, torch.nan), 30.0, mask, most=5.0), weight)
    assert weigh(x, 2.0, torch.zeros_like(mask)).isfinite().all()


def test_members_of_a_population_have_their_own_temperature() -> None:
    x, temperatures = torch.randn(4, 32, 2), torch.tensor([0.0, 0.5, 3.0, 10.0])
    together = torch.vmap(weigh)(x, temperatures)
    alone = torch.stack([weigh(one, temperature) for one, temperature in zip(x, temperatures)])
    torch.testing.assert_close(together, alone)


def test_the_loss_has_the_weights_and_their_size() -> None:
    case = Case("mixer", "iql", "awr")
    loss = case.build(extraction=AWR(temperature=1000.0, advantage="joint", max_relative_weight=4.0))
    batch = make_batch(case.spec, 24)
    output = loss(batch)
    assert float(output["effective_sample_size"]) == pytest.approx(0.25, rel=0.05)
    assert "capped_weights" not in output
    loss.temperature = 0.0
    assert float(loss(batch)["effective_sample_size"]) == pytest.approx(1.0)


@pytest.mark.fault("3.15")
def test_clipped_weights_tell_how_many_have_the_largest() -> None:
    case = Case("mixer", "iql", "awr")
    batch = make_batch(case.spec, 24)
    shares = [
        float(case.build(extraction=AWR(temperature=t, weights="clipped"))(batch)["capped_weights"])
        for t in (0.1, 30.0)
    ]
    assert shares[0] == 0.0 and 0.1 < shares[1] < 0.9


@pytest.mark.fault("3.15")
def test_one_default_temperature() -> None:
    spec = Case("mixer", "iql", "awr").spec
    assert float(make_loss(spec, hidden=(4,)).temperature) == AWR().temperature
    assert make_loss(spec, hidden=(4,)).extraction.weights == AWR().weights


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "hard"}, "weights must be 'bounded', 'softmax' or 'clipped', got 'hard'"),
        ({"max_weight": 5.0}, "max_weight is a bound of weights='clipped'"),
        ({"weights": "softmax", "exponent_range": (-1.0, 1.0)}, "exponent_range is a bound of weights='clipped'"),
        ({"standardize": False}, "weights='bounded' standardizes always"),
        ({"weights": "softmax", "max_relative_weight": 3.0}, "max_relative_weight is read by weights='bounded' alone"),
        ({"max_relative_weight": 1.0}, "max_relative_weight must be above 1, got 1.0"),
    ],
)
def test_settings_without_effect_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AWR(**options)


def stag_hunt(rows: int = 2000):
    """Three agents; all hunt: 10, some: -3, none: 0. Each hunts with probability 0.3, so 2.7 % succeed."""
    generator = np.random.default_rng(1)
    hunts = (generator.random((rows, 3)) < 0.3).astype(np.int64)
    reward = np.select([hunts.sum(1) == 3, hunts.sum(1) == 0], [10.0, 0.0], -3.0).astype(np.float32)
    return from_arrays(
        observations=np.ones((rows, 3, 1), np.float32),
        actions=hunts,
        rewards=np.repeat(reward[:, None], 3, axis=1),
        terminals=np.ones(rows, bool),
        n_actions=2,
    )


@pytest.mark.slow
@pytest.mark.fault("3.15")
@pytest.mark.parametrize("seeds", [[0], thorough([1, 2, 3, 4])])
def test_rare_successes_are_found(seeds: list[int]) -> None:
    data = stag_hunt()
    for seed in seeds:
        torch.manual_seed(seed)
        actor = make_actor(data.spec, hidden=(32, 32))
        critic = make_critic(data.spec, decomposition="centralized", hidden=(32, 32))
        loss = OfflineMARLLoss(actor, critic, value_learning=SARSA(), extraction=AWR())
        buffer = data.replay_buffer(batch_size=256, seed=seed, keys=loss.in_keys)
        optimizer, updater = torch.optim.Adam(loss.parameters(), lr=2e-3), SoftUpdate(loss, tau=0.005)
        for _ in range(400):
            terms = loss(buffer.sample())
            sum(value for name, value in terms.items() if name.startswith("loss")).backward()
            optimizer.step()
            optimizer.zero_grad()
            updater.step()
        assert loss.policy_action(data.data[:1]).tolist() == [[1, 1, 1]], seed
