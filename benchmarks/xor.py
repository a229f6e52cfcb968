"""Which systems keep coordination that only the joint data shows: ``games/xor``, one system after the other.

    python benchmarks/xor.py --output runs/xor
    python benchmarks/xor.py --output runs/xor-whole --whole

The data are the two good joint actions, (0, 1) and (1, 0), in equal parts: each pays 1 a step, (0, 0) pays 0 and (1, 1)
-2. Each agent alone has seen both of its actions, equally often and equally well paid. Played 50 steps, a coordinated
team earns 50; agents that each draw at random, as independent cloning does, earn 0 in expectation. Executed by mode, a
team that has not decided is at the mercy of what breaks the tie: 50, 0 or -100.

One step is all there is to value (``gamma`` 0), so that what is measured is the extraction and the decomposition. Every
algorithm has its own settings but for networks, batches and steps; those that do not take discrete actions are left
out, and their reason printed. Batches are drawn at random, or with ``--whole`` every update sees both joint actions
equally often. Writes ``results.jsonl`` and prints the table.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from arguments import as_amount, as_count, as_few, as_folder, as_size, run_script, script_parser
from common import machine, run_jobs, table
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, SamplerWithoutReplacement, TensorDictReplayBuffer

from torchrl_marl_offline import OfflineDataset, Trainer, collect, evaluate, make_env, make_loss
from torchrl_marl_offline.algorithms import ALGORITHMS, settings_of
from torchrl_marl_offline.training import Learner

VARIANTS: dict[str, dict[str, Any]] = {
    "recipe, local advantages": {"algorithm": "recipe", "advantage": "local"},
    "recipe, brac": {"algorithm": "recipe", "extraction": "brac"},
    "recipe, brac, centralized": {"algorithm": "recipe", "extraction": "brac", "decomposition": "centralized"},
    "omar, centralized": {"algorithm": "omar", "decomposition": "centralized"},
}
"""Beside every algorithm with its own settings."""

METHODS = {name: {"algorithm": name} for name in ALGORITHMS} | VARIANTS
EPISODES = 100
ROWS = 64
"""Of the dataset: half of each joint action."""


def two_good_joint_actions() -> OfflineDataset:
    """Half of the rows play (0, 1), half (1, 0)."""
    first = torch.arange(ROWS) % 2
    policy = torch.stack([first, 1 - first], -1)

    def act(td: TensorDict) -> TensorDict:
        return td.set(("agents", "action"), policy)

    return collect(make_env("games/xor", num_envs=ROWS, max_steps=1), act, episodes=ROWS)


def build(method: str, spec: Any, width: int) -> Any:
    """Build the loss of a method."""
    settings = {"gamma": 0.0, "hidden": (width, width)} | METHODS[method]
    known = settings_of(settings["algorithm"])
    return make_loss(spec, **{name: v for name, v in settings.items() if name in known or name == "algorithm"})


def xor(method: str, seed: int, steps: int, batch_size: int, width: int, lr: float, whole: bool) -> dict[str, Any]:
    """Train one method with one seed; returns its mean returns and each agent's probability of action 1."""
    torch.manual_seed(seed)
    data = two_good_joint_actions()
    loss = build(method, data.spec, width)
    if whole:
        buffer = TensorDictReplayBuffer(
            storage=LazyTensorStorage(ROWS), sampler=SamplerWithoutReplacement(), batch_size=ROWS
        )
        buffer.extend(data.data)
    else:
        buffer = data.replay_buffer(batch_size=batch_size, seed=seed, keys=loss.in_keys)
    Trainer(Learner(loss, lr=lr, tau=0.01), buffer, steps=steps, progress=False).train()
    env, actor = make_env("games/xor", num_envs=EPISODES), loss.actor_network
    played = {
        name: evaluate(actor, env, episodes=EPISODES, seed=seed, mode=mode).mean
        for name, mode in (("by mode", "mode"), ("sampled", "sample"))
    }
    return played | {"decided": float(played["by mode"] == 50 and played["sampled"] > 45)}


def possible(width: int) -> tuple[list[str], dict[str, str]]:
    """Return the methods that take discrete actions, and why the others do not."""
    found, reasons = [], {}
    spec = two_good_joint_actions().spec
    for method in METHODS:
        try:
            build(method, spec, width)
        except ValueError as error:
            reasons[method] = str(error)
        else:
            found.append(method)
    return found, reasons


def main() -> None:
    """Run the study."""
    parser = script_parser(__doc__)
    parser.add_argument("--output", type=as_folder, default=Path("runs/xor"))
    parser.add_argument("--seeds", type=as_few, default=5)
    parser.add_argument("--steps", type=as_count, default=300)
    parser.add_argument("--batch-size", type=as_size, default=32)
    parser.add_argument("--width", type=as_size, default=32)
    parser.add_argument("--lr", type=as_amount, default=3e-3)
    parser.add_argument("--whole", action="store_true", help="every update on the whole dataset")
    parser.add_argument("--methods", nargs="+", default=None)
    parser.add_argument("--workers", type=as_few, default=1)
    args = parser.parse_args()
    methods, reasons = possible(args.width)
    common = {name: getattr(args, name) for name in ("steps", "batch_size", "width", "lr", "whole")}
    chosen = methods if args.methods is None else args.methods
    jobs = [{"method": method, "seed": seed} | common for method in chosen for seed in range(args.seeds)]
    rows = run_jobs(xor, jobs, workers=args.workers, results=args.output / "results.jsonl")
    print(machine())
    print(table(rows, by=["method"], columns=["by mode", "sampled", "decided"]))
    for method, reason in reasons.items():
        print(f"{method}: {reason}")


if __name__ == "__main__":
    run_script(main)
