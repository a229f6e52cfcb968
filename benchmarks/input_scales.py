"""Where normalized inputs help: ``mpe/simple_spread`` with single components of the observations rescaled.

    python benchmarks/input_scales.py --output runs/input-scales

The same recorded data, whose components all have deviations near 1, as they are and with one component (an agent's own
velocity) times 1000, another (the way to a landmark) divided by 1000, or both. Policies play in the environment with
its observations rescaled alike. Cloning and the recipe, each with and without the normalization of
``make_loss(inputs=dataset.input_statistics())``. Writes ``results.jsonl`` and prints the table.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from arguments import as_amount, as_count, as_few, as_folder, as_size, run_script, script_parser
from common import machine, run_jobs, table
from tensordict import TensorDictBase

from torchrl_marl_offline import OfflineDataset, Trainer, evaluate, make_env, make_loss
from torchrl_marl_offline.core.layout import OBSERVATION, STATE, next_key
from torchrl_marl_offline.recording import record_mixed_skill
from torchrl_marl_offline.training import Learner

TASK = "mpe/simple_spread"
SCALES: dict[str, dict[int, float]] = {
    "as recorded": {},
    "one times 10": {0: 10.0},
    "one times 30": {0: 30.0},
    "one times 100": {0: 100.0},
    "one times 1000": {0: 1e3},
    "one divided by 1000": {4: 1e-3},
    "both": {0: 1e3, 4: 1e-3},
}
"""What components of an observation are multiplied by."""


def rescaled(dataset: OfflineDataset, factors: dict[int, float]) -> OfflineDataset:
    """Return the data with observations and states, which are joint observations, in other units."""
    factor = _factor(factors, dataset.spec.observation_size)
    data = dataset.data.clone()
    for key in (OBSERVATION, next_key(OBSERVATION)):
        data.set(key, data.get(key) * factor)
    for key in (STATE, next_key(STATE)):
        data.set(key, data.get(key) * factor.repeat(dataset.spec.n_agents))
    return OfflineDataset(data, dataset.spec, dataset.metadata)


def _factor(factors: dict[int, float], size: int) -> torch.Tensor:
    factor = torch.ones(size)
    for component, number in factors.items():
        factor[component] = number
    return factor


def trained(scales: str, normalize: bool, algorithm: str, seed: int, data: str, **options: Any) -> dict[str, Any]:
    """Train one method with one seed; returns its mean return."""
    dataset = rescaled(OfflineDataset.load(data), SCALES[scales])
    torch.manual_seed(seed)
    inputs = dataset.input_statistics() if normalize else None
    loss = make_loss(dataset.spec, algorithm=algorithm, inputs=inputs, hidden=(64, 64))
    buffer = dataset.replay_buffer(batch_size=options["batch_size"], seed=seed, keys=loss.in_keys)
    learner = Learner(loss, lr=options["lr"], compile="off")
    Trainer(learner, buffer, steps=options["steps"], progress=False).train()
    factor, actor = _factor(SCALES[scales], dataset.spec.observation_size), loss.actor_network

    def act(td: TensorDictBase) -> TensorDictBase:
        return td.set(
            ("agents", "action"), actor(td.copy().set(OBSERVATION, td.get(OBSERVATION) * factor))["agents", "action"]
        )

    env = make_env(TASK, num_envs=options["episodes"])
    return {"return": evaluate(act, env, episodes=options["episodes"], seed=1000 + seed).mean}


def main() -> None:
    """Run the study."""
    parser = script_parser(__doc__)
    parser.add_argument("--output", type=as_folder, default=Path("runs/input-scales"))
    parser.add_argument("--seeds", type=as_few, default=3)
    parser.add_argument("--steps", type=as_count, default=500)
    parser.add_argument("--batch-size", type=as_size, default=256)
    parser.add_argument("--lr", type=as_amount, default=2e-3)
    parser.add_argument("--recorded", type=as_count, default=400, help="episodes of the data")
    parser.add_argument("--episodes", type=as_size, default=100, help="episodes of an evaluation")
    parser.add_argument("--scales", nargs="+", choices=list(SCALES), default=list(SCALES))
    parser.add_argument("--workers", type=as_few, default=1)
    args = parser.parse_args()
    dataset = record_mixed_skill(TASK, args.output / "data", episodes=args.recorded, seed=0, progress=False)
    folder = args.output / "recorded"
    if not folder.exists():
        dataset.save(folder)
    common = {name: getattr(args, name) for name in ("steps", "batch_size", "lr", "episodes")} | {"data": str(folder)}
    jobs = [
        {"scales": scales, "normalize": normalize, "algorithm": algorithm, "seed": seed} | common
        for algorithm in ("cloning", "recipe")
        for scales in args.scales
        for normalize in (False, True)
        for seed in range(args.seeds)
    ]
    rows = run_jobs(trained, jobs, workers=args.workers, results=args.output / "results.jsonl")
    print(machine())
    print(f"data: {dataset.episode_returns().mean():.1f}")
    print(table(rows, by=["algorithm", "scales", "normalize"], columns=["return"]))


if __name__ == "__main__":
    run_script(main)
