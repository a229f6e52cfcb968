"""How hard the laser worlds' datasets of the suite ``coordination`` are, exactly, by tables instead of networks.

    marl-offline benchmark make coordination --output data/coordination --only lle
    python benchmarks/laser_data.py data/coordination

A world has a few hundred positions, so that what follows needs no network. For each dataset the return of

- the mode of cloning: each agent takes its most frequent recorded action of a position;
- sampled cloning: each draws by its frequencies, on average over 1,000 episodes;
- Q iteration over recorded joint actions: of each position the joint action of the largest value, to the end;
- independent Q iteration: each agent's own values of its own actions, the others' being part of the world.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NamedTuple

import torch
from arguments import as_folder, run_script
from torch import Tensor

from torchrl_marl_offline import OfflineDataset, load_dataset
from torchrl_marl_offline.core.layout import ACTION, STATE, next_key
from torchrl_marl_offline.envs import make_env
from torchrl_marl_offline.envs.laser_grid import LaserGrid

GAMMA, SWEEPS, ACTIONS = 0.99, 200, 5


class Recorded(NamedTuple):
    """A dataset in numbers of positions: rows ``[T]``, actions ``[T, n]``, codes of joint actions, rewards, ends."""

    here: Tensor
    there: Tensor
    action: Tensor
    code: Tensor
    reward: Tensor
    over: Tensor


def recorded(dataset: OfflineDataset, env: LaserGrid) -> Recorded:
    """Return what was recorded."""
    numbers = {tuple(state): number for number, state in enumerate(env.positions.state.tolist())}
    here, there = (
        torch.tensor([numbers[tuple(row)] for row in dataset.data[key].tolist()]) for key in (STATE, next_key(STATE))
    )
    action = dataset.data[ACTION].as_subclass(Tensor)
    code = (action * ACTIONS ** torch.arange(action.shape[1])).sum(-1)
    reward = dataset.data["next", "agents", "reward"][:, 0, 0].as_subclass(Tensor)
    return Recorded(here, there, action, code, reward, dataset.data["next", "terminated"].squeeze(-1))


def counts(rows: Recorded, positions: int) -> list[Tensor]:
    """Return how often each agent took each action in each position, ``[P, 5]`` each."""
    one = torch.ones(len(rows.here))
    return [torch.zeros(positions, ACTIONS).index_put((rows.here, own), one, accumulate=True) for own in rows.action.T]


def joint_values(rows: Recorded, positions: int) -> Tensor:
    """Return values ``[P, 5 ** n]`` of recorded joint actions; the world has no chance."""
    known = torch.full((positions, ACTIONS ** rows.action.shape[1]), -torch.inf)
    for _ in range(SWEEPS):
        best = known.amax(-1).nan_to_num(neginf=0.0)
        known[rows.here, rows.code] = rows.reward + GAMMA * best[rows.there] * ~rows.over
    return known


def own_values(rows: Recorded, seen: Tensor, agent: int) -> Tensor:
    """Return an agent's values ``[P, 5]`` of its own actions, the mean over what the others did."""
    known, own = torch.zeros_like(seen).masked_fill(seen == 0, -torch.inf), rows.action[:, agent]
    for _ in range(SWEEPS):
        best = known.amax(-1).nan_to_num(neginf=0.0)
        target = rows.reward + GAMMA * best[rows.there] * ~rows.over
        total = torch.zeros_like(seen).index_put((rows.here, own), target, accumulate=True)
        known = (total / seen).masked_fill(seen == 0, -torch.inf)
    return known


def play(env: LaserGrid, choose: Callable[[Tensor], Tensor], episodes: int = 1) -> float:
    """Return what a team earns that maps positions ``[B]`` to codes of joint actions ``[B]``."""
    found = env.positions
    at, earned = torch.zeros(episodes, dtype=torch.int64), torch.zeros(episodes)
    for _ in range(env.max_episode_steps):
        code = choose(at)
        after = torch.where(found.legal[at, code], found.following[at, code], at)
        out, done = found.out[after], found.out[after].all(-1) & ~found.out[at].all(-1)
        earned += (out & ~found.out[at]).sum(-1) + done.float() - (found.alive[at] & ~found.alive[after]).sum(-1)
        at = after
    return earned.mean().item()


def measure(dataset: OfflineDataset) -> dict[str, float]:
    """Return the returns of a dataset's teams, by name."""
    env = make_env(dataset.spec.task)
    rows, positions = recorded(dataset, env), len(env.positions.state)
    seen = counts(rows, positions)
    powers = ACTIONS ** torch.arange(len(seen))
    generator = torch.Generator().manual_seed(0)

    def of(each: list[Tensor]) -> Callable[[Tensor], Tensor]:
        greedy = torch.stack([values.argmax(-1) for values in each], -1)
        return lambda at: (greedy[at] * powers).sum(-1)

    def sampled(at: Tensor) -> Tensor:
        drawn = [torch.multinomial(own[at] + 1e-9, 1, generator=generator) for own in seen]
        return (torch.cat(drawn, -1) * powers).sum(-1)

    joint = joint_values(rows, positions).argmax(-1)
    return {
        "mode of cloning": play(env, of(seen)),
        "sampled cloning": play(env, sampled, 1000),
        "joint Q": play(env, lambda at: joint[at]),
        "independent Q": play(env, of([own_values(rows, own, agent) for agent, own in enumerate(seen)])),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=as_folder, help="where the suite was made")
    for place in sorted(parser.parse_args().folder.glob("lle-*")):
        dataset = load_dataset(place)
        shares = {"recorded": dataset.episode_returns().mean().item(), "success": dataset.success().float().mean()}
        print("|", place.name, "|", " | ".join(f"{value:.3g}" for value in (shares | measure(dataset)).values()), "|")


if __name__ == "__main__":
    run_script(main)
