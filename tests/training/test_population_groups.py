"""How many members of a population are one computation: their largest tensors have to stay in a cache."""

from __future__ import annotations

import pytest
import torch
from population_toys import SEEDS, make_data, make_member
from torchrl.objectives import SoftUpdate

from torchrl_marl_offline.training import Population, PopulationBuffer
from torchrl_marl_offline.training.populations import population as module
from torchrl_marl_offline.training.populations.population import PopulationGradients

RULES = {"decomposition": "vdn", "value_learning": "td", "extraction": "brac"}
MEMBERS = 5


@pytest.fixture(scope="module")
def data():
    return make_data()


@pytest.fixture(scope="module")
def batch(data):
    return PopulationBuffer(data.data, batch_size=6, seeds=range(MEMBERS)).sample()


def gradients_of(data, **options) -> PopulationGradients:
    losses = {f"m{number}": make_member(data, number % len(SEEDS), **RULES) for number in range(MEMBERS)}
    for loss in losses.values():
        SoftUpdate(loss, tau=0.1)
    generators = [torch.Generator().manual_seed(number) for number in range(MEMBERS)]
    return PopulationGradients(Population(losses), backend=None, generators=generators, **options)


def sizes_of(gradients: PopulationGradients) -> list[int]:
    return [group.stop - group.start for group in gradients._groups]


def test_bytes_kept_by_hand() -> None:
    x = torch.rand(2, 3, requires_grad=True)
    with module._kept_for_backward() as kept:
        y = x.exp()  # keeps its result
        z = y * torch.rand(5, 4, 2, 3)[0]  # keeps the other factor, 4 times as large, of a memory 5 times as large
        (z * 2).sum()
    assert kept == [24, 96]


@pytest.mark.parametrize(
    ("compiled", "members_in_cache", "sizes"),
    [(True, 2.5, [1, 2, 2]), (True, 0.1, [1] * 5), (True, 100, [5]), (False, 0.1, [5])],
    ids=["two fit", "none fits", "all fit", "not compiled"],
)
def test_as_many_members_as_fit_the_cache(data, batch, monkeypatch, compiled, members_in_cache, sizes) -> None:
    look = PopulationGradients._look

    def with_a_cache_for_some(self, *arguments) -> int:
        largest = look(self, *arguments)
        assert largest >= 4 * 6 * data.spec.n_agents * 8  # a hidden layer of 8
        monkeypatch.setattr(module, "CACHE", int(largest * members_in_cache))
        return largest

    monkeypatch.setattr(PopulationGradients, "_look", with_a_cache_for_some)
    gradients = gradients_of(data, compiled=compiled)
    gradients(batch)
    assert sizes_of(gradients) == sizes


def test_never_more_than_eight_and_a_number_that_is_given_counts(data, batch) -> None:
    gradients = gradients_of(data, compiled=True)
    assert gradients._sensible_number(1, batch) == 8 == gradients._sensible_number(0, batch)
    given = gradients_of(data, compiled=True, members_at_once=3)
    given(batch)
    assert sizes_of(given) == [2, 3]


def test_groups_change_no_gradient(data, batch) -> None:
    found = []
    for at_once in (1, 2, 5):
        gradients = gradients_of(data, compiled=True, members_at_once=at_once)
        metrics = gradients(batch)
        grads = {
            name: tensor.grad for name, tensor in gradients.population.tensors().items() if tensor.grad is not None
        }
        found.append(metrics | grads)
    assert len(found[0]) > 10
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        for name, value in other.items():
            torch.testing.assert_close(value, found[0][name], rtol=1e-5, atol=1e-6)
