"""What scripted teams earn in ``games/commons`` and, by roles, in ``games/grid_navigation``.

    python benchmarks/scripted_teams.py

The commons has no exact optimum that could be had: 2^49 boards and the places of three agents. Best known is the best
of a search among restrained teams, over ``leave`` (apples around one that they take) and ``rush`` (steps before the end
in which they take all), 200 episodes each; the one that is found is then measured on other episodes. An upper bound: in
a step an apple grows with probability 0.02 for each pair of neighbouring cells of which one has an apple, of which
there are at most as many as the largest cut of the board's graph of neighbours, found by dynamic programming over its
rows; and half of the cells without an agent have an apple at the start.
"""

from __future__ import annotations

from itertools import product

import torch
from arguments import as_size, run_script, script_parser
from measuring import machine, markdown, with_interval
from torch import Tensor

from torchrl_marl_offline import evaluate, make_env
from torchrl_marl_offline.envs import CommonsController, role_team
from torchrl_marl_offline.envs.commons import SIDE
from torchrl_marl_offline.evaluation import mean_confidence_interval

MIXED = (
    "restrained",
    "greedy",
    "random",
    ["greedy", "restrained", "restrained"],
    ["greedy", "greedy", "restrained"],
)


def harvest(episodes: int, kinds: str | list[str], *, seed: int, **options: int) -> Tensor:
    """Return what each agent harvests in each episode, ``[episodes, n]``."""
    env = make_env("games/commons", num_envs=episodes, seed=seed)
    policy, td = CommonsController(env, kinds, seed=seed, **options), env.reset()
    total, going = torch.zeros(episodes, env.task_spec.n_agents), torch.ones(episodes, 1)
    with torch.no_grad():
        for _ in range(env.max_episode_steps):
            td = env.step(policy(td))["next"]
            total += td["agents", "reward"].squeeze(-1) * going
            going *= ~td["terminated"]
    return total


def largest_cut() -> int:
    """Return the most pairs of neighbouring cells, of eight around each, of which one has an apple and one has none."""
    rows = range(2**SIDE)

    def within(a: int) -> int:
        return sum((a >> i & 1) != (a >> i + 1 & 1) for i in range(SIDE - 1))

    def between(a: int, b: int) -> int:
        pairs = ((i, j) for i in range(SIDE) for j in (i - 1, i, i + 1) if 0 <= j < SIDE)
        return sum((a >> i & 1) != (b >> j & 1) for i, j in pairs)

    inside, across = [within(a) for a in rows], [[between(a, b) for a in rows] for b in rows]
    best = inside
    for _ in range(SIDE - 1):
        best = [inside[b] + max(best[a] + across[b][a] for a in rows) for b in rows]
    return max(best)


def main() -> None:
    """Search, measure and print."""
    parser = script_parser(__doc__)
    parser.add_argument("--episodes", type=as_size, default=1000)
    args = parser.parse_args()
    print(machine())
    grid = list(product((3, 4, 5), (12, 16, 20, 24, 30)))
    found = {
        pair: harvest(args.episodes // 5, "restrained", seed=1, leave=pair[0], rush=pair[1]).sum(1).mean().item()
        for pair in grid
    }
    print(markdown(["leave", "rush", "team"], [[*map(str, pair), f"{value:.1f}"] for pair, value in found.items()]))
    leave, rush = max(found, key=found.__getitem__)
    rows = []
    for kinds in MIXED:
        each = harvest(args.episodes, kinds, seed=2, leave=leave, rush=rush)
        team = mean_confidence_interval(each.sum(1))
        agents = ", ".join(f"{value:.1f}" for value in each.mean(0).tolist())
        words = kinds if isinstance(kinds, str) else ", ".join(kinds)
        rows.append([words, with_interval(team), agents])
    print(f"leave={leave}, rush={rush}")
    print(markdown(["team", "all agents", "each"], rows))
    env = make_env("games/commons")
    cut = largest_cut()
    bound = (SIDE**2 - env.task_spec.n_agents) / 2 + env.max_episode_steps * env.growth * cut
    print(f"largest cut {cut}, so at most {bound:.0f}")
    rows = []
    for agents in (2, 3, 4):
        env = make_env("games/grid_navigation", num_envs=args.episodes, agents=agents)
        for name in (*(f"strong_{agent}" for agent in range(agents)), "weak_all", "strong_all"):
            played = evaluate(role_team(name, agents=agents, seed=0), env, episodes=args.episodes, seed=0)
            rows.append(
                [str(agents), name, f"{played.success_rate:.3f}", f"{played.lengths.double().mean().item():.1f}"]
            )
    print(markdown(["agents", "team", "success", "steps"], rows))


if __name__ == "__main__":
    run_script(main)
