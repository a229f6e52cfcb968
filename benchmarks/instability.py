"""Does the mixer diverge, and what cures it? (the recipe's Figs 3 to 6)

    python benchmarks/instability.py --output runs/instability

Expert data of ``mpe/simple_spread``; temporal differences and behaviour-regularized actor-critic (the coupled pair that
the paper analyses), with a trained mixer: no normalization, actor-side normalization (eq. 4), and that with SVN (eqs 5
and 6), each with both choices of ``heads``; and VDN and independent critics without normalization beside them.
Recorded: mean |Q|, the critic's loss in the unit of returns, the gradient's norm, and the return. No policy can earn
more than ``30 / (1 - gamma)``, so a larger |Q| is an error, whatever the policy.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from arguments import as_amount, as_count, as_few, as_share, script_parser
from common import draw_seeds, machine, make_loss, run_jobs, table

from torchrl_marl_offline import BRAC, TD, OfflineDataset, Trainer, collect, evaluate, make_env
from torchrl_marl_offline.core.figure_style import GREY, figure_style, legend_beside, new_figure, save_figure
from torchrl_marl_offline.envs import SpreadController
from torchrl_marl_offline.training import Learner, read_csv

VARIANTS = {
    "mixer, no normalization": ("mixer without SVN", False),
    "mixer, actor-side": ("mixer without SVN", True),
    "mixer, SVN": ("mixer", True),
    "VDN, no normalization": ("vdn without SVN", False),
    "independent, no normalization": ("independent without SVN", False),
}
CURVES = ("qvalue_abs", "td_error_abs", "grad_norm")


def expert_data(episodes: int = 4000) -> OfflineDataset:
    """Record the optimal controller with slight noise (return about 585)."""
    env = make_env("mpe/simple_spread", num_envs=500, seed=0)
    return collect(env, SpreadController("optimal", noise=0.1, seed=0), episodes=episodes, seed=0)


def instability(
    variant: str, heads: str, seed: int, steps: int, gamma: float, lr: float, alpha: float
) -> dict[str, Any]:
    """Train one variant with one seed and return its curves."""
    torch.manual_seed(seed)
    data = expert_data()
    method, normalize = VARIANTS[variant]
    rules = {"value_learning": TD(), "extraction": BRAC(alpha=alpha, normalize=normalize)}
    loss = make_loss(data.spec, method, gamma=gamma, heads=heads, scale=1.0, **rules)
    buffer = data.replay_buffer(batch_size=128, seed=seed, keys=loss.in_keys)
    with tempfile.TemporaryDirectory() as folder:
        every = max(steps // 50, 1)
        Trainer(
            Learner(loss, lr=lr, compile="on"), buffer, steps=steps, log_every=every, output=folder, progress=False
        ).train()
        rows = read_csv(Path(folder) / "train.csv")
    curves = {name: [float(row[name]) for row in rows] for name in ("step", *CURVES)}
    env = make_env("mpe/simple_spread", num_envs=500)
    score = evaluate(loss.actor_network, env, episodes=500, seed=1000 + seed).mean
    ceiling = 30.0 / (1.0 - gamma)
    return {
        "curves": curves,
        "return": score,
        "final abs Q": curves["qvalue_abs"][-1],
        "largest abs Q": max(curves["qvalue_abs"]),
        "impossible": float(max(curves["qvalue_abs"]) > ceiling),
        "largest gradient norm": max(curves["grad_norm"]),
        "final abs TD error": curves["td_error_abs"][-1],
    }


@figure_style()
def picture(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the curves, mean and range over seeds, a line per variant and choice of heads."""
    labels = {"qvalue_abs": "mean |Q|", "td_error_abs": "mean |TD error|", "grad_norm": "gradient norm"}
    figure, axes = new_figure(3, size=(15, 4.2))
    for axis, name in zip(axes, CURVES):
        for i, (variant, heads) in enumerate(dict.fromkeys((row["variant"], row["heads"]) for row in rows)):
            members = [row["curves"] for row in rows if (row["variant"], row["heads"]) == (variant, heads)]
            curves = [member[name] for member in members]
            draw_seeds(axis, members[0]["step"], curves, index=i, label=f"{variant}, heads={heads}")
        axis.set(xlabel="updates", ylabel=labels[name], yscale="log")
    axes[0].axhline(30.0 / (1.0 - rows[0]["gamma"]), color=GREY, linewidth=1.2)
    legend_beside(figure, axes[0])
    title = "mpe/simple_spread, expert data, TD + BRAC: mean and range over seeds (line: largest possible |Q|)"
    figure.suptitle(title, x=0.01, ha="left")
    save_figure(figure, path)


def main() -> None:
    """Run the study."""
    parser = script_parser(__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/instability"))
    parser.add_argument("--seeds", type=as_few, default=5)
    parser.add_argument("--steps", type=as_count, default=5000)
    parser.add_argument("--gamma", type=as_share, default=0.95)
    parser.add_argument("--lr", type=as_amount, default=1e-3)
    parser.add_argument("--alpha", type=as_amount, default=1.0)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS))
    parser.add_argument("--heads", nargs="+", default=["all", "min"])
    parser.add_argument("--workers", type=as_few, default=2)
    args = parser.parse_args()
    settings = {name: getattr(args, name) for name in ("steps", "gamma", "lr", "alpha")}
    pairs = [(variant, heads) for variant in args.variants for heads in args.heads]
    pairs = [(variant, heads) for variant, heads in pairs if heads == "all" or variant.startswith("mixer")]
    jobs = [{"variant": v, "heads": h, "seed": seed} | settings for seed in range(args.seeds) for v, h in pairs]
    rows = run_jobs(instability, jobs, workers=args.workers, results=args.output / "results.jsonl")
    columns = ["largest abs Q", "final abs Q", "impossible", "largest gradient norm", "final abs TD error", "return"]
    print(machine(), settings)
    print(table(rows, by=["variant", "heads"], columns=columns))
    picture(rows, args.output / "instability.png")


if __name__ == "__main__":
    main()
