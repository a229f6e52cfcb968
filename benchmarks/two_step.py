"""The two-step game (the recipe's Fig. 2): VDN plays it safe, a trained mixer takes the risk, and the frozen one.

    python benchmarks/two_step.py --output runs/two_step
    python benchmarks/two_step.py --output runs/two_step_all --decompositions all

All methods learn by temporal differences (eq. 2) and advantage-weighted regression from the dataset of all 16 joint
trajectories, each once. Batches are drawn at random, or with ``--whole`` every update sees the whole dataset. With
``--decompositions``, it is those named, or ``all``, instead of the four methods of the figure. Writes
``results.jsonl``, the table (what the policies play for, and the root mean square error of the second step's values,
where the team has any), and the value tables as a picture.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from arguments import as_count, as_few, as_folder, as_size, run_script, script_parser
from common import machine, make_loss, run_jobs, table
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, SamplerWithoutReplacement, TensorDictReplayBuffer

from torchrl_marl_offline import AWR, TD, OfflineDataset, Trainer, collect, evaluate, make_env
from torchrl_marl_offline.core.figure_style import figure_style, make_figure, save_figure
from torchrl_marl_offline.envs.games import TwoStep
from torchrl_marl_offline.modules import DECOMPOSITIONS
from torchrl_marl_offline.training import Learner

METHODS = ("vdn without SVN", "vdn", "mixer", "frozen mixer")
STATES = ("s1", "s2-1", "s2-2")


def uniform_dataset() -> OfflineDataset:
    """Every joint trajectory once: slot ``k`` plays the two joint actions that the bits of ``k`` spell."""
    slots = torch.arange(16)
    bits = torch.stack([slots >> 3 & 1, slots >> 2 & 1, slots >> 1 & 1, slots & 1], -1)  # [16, 4]

    def policy(td: TensorDict) -> TensorDict:
        late = td["step_count"].bool()  # [16, 1]
        return td.set(("agents", "action"), torch.where(late, bits[:, 2:], bits[:, :2]))

    return collect(make_env("games/two_step", num_envs=16), policy, episodes=16)


def value_tables(loss) -> torch.Tensor:
    """Return Q_tot ``[3 states, 2, 2]``."""
    state = torch.eye(3).repeat_interleave(4, 0)
    action = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]]).repeat(3, 1)
    observation = state.unsqueeze(1).expand(-1, 2, -1)
    td = TensorDict({"agents": {"observation": observation, "action": action}, "state": state}, [12])
    return loss.qvalue(td).view(3, 2, 2)


def two_step(method: str, seed: int, steps: int, batch_size: int | None) -> dict[str, Any]:
    """Train one method with one seed."""
    torch.manual_seed(seed)
    data = uniform_dataset()
    rules = {"value_learning": TD(), "extraction": AWR(temperature=3.0, weights="clipped")}
    loss = make_loss(data.spec, method, gamma=0.99, hidden=(32, 32), **rules)
    if batch_size is None:
        buffer = TensorDictReplayBuffer(
            storage=LazyTensorStorage(len(data)), sampler=SamplerWithoutReplacement(), batch_size=len(data)
        )
        buffer.extend(data.data)
    else:
        buffer = data.replay_buffer(batch_size=batch_size, seed=seed)
    Trainer(Learner(loss, lr=1e-3, tau=0.01), buffer, steps=steps, progress=False).train()
    env = make_env("games/two_step", num_envs=1)
    score = evaluate(loss.actor_network, env, episodes=1, seed=0).mean
    if not loss.is_team:
        return {"return": score, "error": float("nan"), "values": None}
    values = value_tables(loss)
    truth = torch.tensor(TwoStep.payoffs)
    return {"return": score, "error": (values[1:] - truth).pow(2).mean().sqrt().item(), "values": values.tolist()}


@figure_style({"axes.grid": False})
def picture(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the mean value tables (± 2 standard deviations over seeds) of every method."""
    methods = list(dict.fromkeys(row["method"] for row in rows if row["values"] is not None))
    figure = make_figure((8, 2.6 * len(methods)))
    axes = figure.subplots(len(methods), 3, squeeze=False)
    for line, method in zip(axes, methods):
        values = torch.tensor([row["values"] for row in rows if row["method"] == method])
        returns = [row["return"] for row in rows if row["method"] == method]
        for i, (axis, state) in enumerate(zip(line, STATES)):
            mean, spread = values[:, i].mean(0), 2 * values[:, i].std(0)
            axis.imshow(mean, vmin=0, vmax=8, cmap="viridis")
            for a in range(2):
                for b in range(2):
                    text, colour = f"{mean[a, b]:.2f}\n±{spread[a, b]:.2f}", "black" if mean[a, b] > 5 else "white"
                    axis.text(b, a, text, ha="center", va="center", color=colour)
            axis.set(xticks=(0, 1), yticks=(0, 1), xlabel="action of agent B", ylabel="action of agent A")
            played = f"  (plays for {sum(returns) / len(returns):.2f})" if i == 0 else ""
            axis.set_title(f"{method}: {state}{played}")
    figure.suptitle("Two-step game: learned joint values, mean ± 2 standard deviations over seeds", x=0.01, ha="left")
    save_figure(figure, path)


def main() -> None:
    """Run the study."""
    parser = script_parser(__doc__)
    parser.add_argument("--output", type=as_folder, default=Path("runs/two_step"))
    parser.add_argument("--seeds", type=as_few, default=10)
    parser.add_argument("--steps", type=as_count, default=1000)
    parser.add_argument("--batch-size", type=as_size, default=64)
    parser.add_argument("--whole", action="store_true", help="every update on the whole dataset")
    parser.add_argument("--workers", type=as_few, default=2)
    parser.add_argument(
        "--decompositions", nargs="+", choices=("all", *DECOMPOSITIONS), help="instead of the four methods"
    )
    args = parser.parse_args()
    methods = args.decompositions or METHODS
    methods = tuple(DECOMPOSITIONS) if "all" in methods else methods
    jobs = [
        {"method": method, "seed": seed, "steps": args.steps, "batch_size": None if args.whole else args.batch_size}
        for method in methods
        for seed in range(args.seeds)
    ]
    rows = run_jobs(two_step, jobs, workers=args.workers, results=args.output / "results.jsonl")
    print(machine())
    print(table(rows, by=["method"], columns=["return", "error"]))
    picture(rows, args.output / "two_step.png")


if __name__ == "__main__":
    run_script(main)
