"""What an additive critic makes of joint actions that were not recorded, and what the stitchable share says of data.

    python benchmarks/stitchable.py --json stitchable.json
    python benchmarks/stitchable.py pymarl:FOLDER/pymarl/cn-2-medium.h5

First, in ``games/stitch``, for every payoff and coverage: what the best recorded joint action pays, and what the joint
action pays that an additive critic prefers. The critic is fitted by exact least squares to the recorded joint actions
of a context, each weighted alike (the smallest solution, where there are several); the best joint action pays 1. Means
over contexts, with 95 % intervals. Then the stitchable share of data of random play, or of the SOURCEs that are given,
with the process's time of counting it.
"""

from __future__ import annotations

import time
from typing import get_args

import torch
from arguments import as_count, run_script
from measuring import benchmark_parser, markdown, report

from torchrl_marl_offline.data import collect, load_dataset, stitchable_share
from torchrl_marl_offline.envs import StitchController, make_env
from torchrl_marl_offline.envs.stitch import PayoffKind, Stitch, as_joint_action
from torchrl_marl_offline.evaluation.statistics import mean_confidence_interval

COVERAGES = ("full", "best_left_out", "two_teams", "bridged_1", "star", "share_0.3")
RANDOM_PLAY = ("games/bridge", "games/grid_navigation", "mpe/simple_spread")


def pay(env: Stitch, recorded: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return, ``[C]`` each, what the best recorded joint action pays, and what the one that the critic prefers pays.

    Args:
        env: the game.
        recorded: its recorded joint actions, bool ``[C, K, ..., K]``.
    """
    sizes = {"agents": env.task_spec.n_agents, "actions": env.task_spec.action_size}
    payoffs, recorded = env.payoffs.flatten(1).double(), recorded.flatten(1)  # [C, K^n]
    joint = as_joint_action(torch.arange(payoffs.shape[1]), **sizes)
    indicators = torch.nn.functional.one_hot(joint, sizes["actions"]).flatten(1).double()  # [K^n, n K]
    known, preferred = payoffs.masked_fill(~recorded, -torch.inf).amax(1), []
    for own, there in zip(payoffs, recorded):
        fitted = torch.linalg.pinv(indicators[there]) @ own[there]
        preferred.append(own[(indicators @ fitted).argmax()])
    return known, torch.stack(preferred)


def told(values: torch.Tensor) -> str:
    """Return a mean with its 95 % interval as a cell has it."""
    mean, low, high = mean_confidence_interval(values)
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def main() -> None:
    """Measure, print, and write ``--json``."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("sources", nargs="*", metavar="SOURCE", help="datasets, as load_dataset takes them")
    parser.add_argument("--contexts", type=as_count, default=500, help="of every game")
    parser.add_argument("--rows", type=as_count, default=100_000, help="of random play")
    args = parser.parse_args()
    if args.quick:
        args.contexts, args.rows = 3, 2000
    torch.set_num_threads(1)
    rows = []
    for payoff in get_args(PayoffKind):
        env = make_env("games/stitch", payoff=payoff, contexts=args.contexts)
        for coverage in COVERAGES:
            known, preferred = pay(env, StitchController(env, coverage).recorded)
            rows.append([payoff, coverage, told(known), told(preferred)])
    print(markdown(["payoff", "coverage", "best recorded", "preferred by the additive critic"], rows))
    found = []
    for source in args.sources or RANDOM_PLAY:
        if args.sources:
            data = load_dataset(source)
        else:
            data = collect(make_env(source, num_envs=min(args.rows, 500), seed=0), steps=args.rows, seed=0)
        begin = time.process_time()
        share = stitchable_share(data)
        seconds = time.process_time() - begin
        numbers = ("all recorded" if share.share is None else f"{share.share:.3f}", f"{share.recorded:.3f}")
        found.append([source, f"{len(data):,}", *numbers, f"{share.components:.2f}", share.how, f"{seconds:.2f}"])
    print(markdown(["data", "rows", "share", "recorded", "components", "counted", "seconds"], found))
    report(args.json, {"critic": rows, "shares": found}, contexts=args.contexts)


if __name__ == "__main__":
    run_script(main)
