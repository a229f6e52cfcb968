"""What hindsight adds where goals are hardly ever reached in the data: ``games/grid_goals``, two agents.

    python benchmarks/goals.py --output runs/goals

The data: teams that walk to places of their own, a fifth of their actions random, whatever their goals are
(``GoalController("elsewhere")``), 1,000 episodes of at most 20 steps, about 20,000 transitions. A team is at both of
its goals by chance: the 36 * 35 pairs of cells make it 1 in 1,260 where a team stands, and it visits few pairs in 20
steps and stays at the last; 9 of the 1,000 episodes were seen to reach their goals. So 9 rewards are all that the
data pays. With hindsight four fifths of the steps get what was achieved later in their episode as their goal, all of
which are reached.

Each method is trained on the same data with the goals that were recorded and with hindsight (cloning: with hindsight in
all steps; on goals that were recorded it learns a walk to anywhere). Reported is the share of 200 episodes with drawn
goals that reach them within 20 steps, by sampled actions and by the mode; and the mean and the worst over 12 given
goals, 20 episodes each. The scripted team that knows its goals reaches all of them. Writes ``results.jsonl`` and
prints the table.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from arguments import as_count, as_few, as_folder, as_size, run_script, script_parser
from common import machine, run_jobs, table

from torchrl_marl_offline import OfflineDataset, Trainer, collect, evaluate, make_env, make_loss
from torchrl_marl_offline.data import hindsight_buffer
from torchrl_marl_offline.envs import GoalController
from torchrl_marl_offline.evaluation import evaluate_goals
from torchrl_marl_offline.training import Learner

TASK = "games/grid_goals"
METHODS: dict[str, dict[str, Any]] = {
    "cloning": {"algorithm": "cloning"},
    "recipe": {"algorithm": "recipe", "gamma": 0.95, "temperature": 10.0},
}
FUTURE = {"cloning": 1.0, "recipe": 0.8}
EPISODES = 200


def wandering(episodes: int) -> OfflineDataset:
    """Record teams that go elsewhere."""
    env = make_env(TASK, num_envs=100, seed=0, max_steps=20)
    return collect(env, GoalController(env, "elsewhere", noise=0.2, seed=0), episodes=episodes, seed=0)


def goals(
    method: str, seed: int, hindsight: bool, steps: int, batch_size: int, width: int, data: int
) -> dict[str, Any]:
    """Train one method with one seed; returns shares of goals that are reached."""
    torch.manual_seed(seed)
    dataset, env = wandering(data), make_env(TASK, num_envs=EPISODES, max_steps=20)
    loss = make_loss(dataset.spec, hidden=(width, width), **METHODS[method])
    options = {"batch_size": batch_size, "seed": seed, "keys": loss.in_keys}
    buffer = (
        hindsight_buffer(dataset, env.outcome, future=FUTURE[method], **options)
        if hindsight
        else dataset.replay_buffer(**options)
    )
    start = time.perf_counter()
    Trainer(Learner(loss, lr=1e-3, tau=0.01, compile="off"), buffer, steps=steps, progress=False).train()
    seconds, actor = time.perf_counter() - start, loss.actor_network
    found: dict[str, Any] = {
        name: evaluate(actor, env, episodes=EPISODES, seed=seed, mode=mode).success_rate
        for name, mode in (("sampled", "sample"), ("by mode", "mode"))
    }
    given = make_env(TASK, num_envs=12, seed=100).reset()["agents", "goal"]
    over = evaluate_goals(actor, env, goals=given, episodes=20, seed=seed, mode="sample")
    in_data = dataset.success().double().mean().item()
    return found | {"12 goals": over.mean, "worst goal": over.worst, "in the data": in_data, "seconds": seconds}


def main() -> None:
    """Run the study."""
    parser = script_parser(__doc__)
    parser.add_argument("--output", type=as_folder, default=Path("runs/goals"))
    parser.add_argument("--seeds", type=as_few, default=3)
    parser.add_argument("--steps", type=as_count, default=600)
    parser.add_argument("--batch-size", type=as_size, default=256)
    parser.add_argument("--width", type=as_size, default=64)
    parser.add_argument("--data", type=as_size, default=1000, help="episodes")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--workers", type=as_few, default=1)
    args = parser.parse_args()
    common = {name: getattr(args, name) for name in ("steps", "batch_size", "width", "data")}
    jobs = [
        {"method": method, "hindsight": hindsight, "seed": seed} | common
        for seed in range(args.seeds)
        for method in args.methods
        for hindsight in (True, False)
    ]
    rows = run_jobs(goals, jobs, workers=args.workers, results=args.output / "results.jsonl")
    print(machine())
    columns = ["sampled", "by mode", "12 goals", "worst goal", "in the data"]
    print(table(rows, by=["method", "hindsight"], columns=columns))


if __name__ == "__main__":
    run_script(main)
