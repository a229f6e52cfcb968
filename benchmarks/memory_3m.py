"""Does memory pay on recorded StarCraft battles? Cloning, the recipe and ICQ with memory and without it.

    TORCHRL_MARL_OFFLINE_DATA=data python benchmarks/memory_3m.py --output runs/memory_3m
    python benchmarks/memory_3m.py --report

2,000 recorded episodes of ``3m`` (``pymarl/smac-3m-medium.h5`` in the folder ``TORCHRL_MARL_OFFLINE_DATA``), without
the game: half of them train, the other half judges, by agreement, likelihood, the calibration of Q, and fitted Q
evaluation of what the policies draw. Nothing here is a win rate.

Three seeds of a method are one population. Without memory a batch is 256 rows. With memory it is 10 slices of 32
without a burn-in, which hold 97 % of the episodes whole: the mean episode has 25 rows, so that about 240 of 320 rows
count.

Arithmetic, in updates of one member (2 x 64, three agents, observations of 30):

    train       3 algorithms x 3 memories x 3 seeds x 1,500 updates          40,500
    estimates   27 policies and the logged team x 5 resamples x 4,000       560,000 (of a critic: 2 x 64, batches of 64)

Milliseconds of CPU for a member's update, eager, without memory, with a window and with a recurrent network, measured
over 20: cloning 1.6, 3.1, 7.4; recipe 12, 20, 33; ICQ 11, 20, 27. So the training takes 10 minutes of one core; the
critics take 2 to 3 more when compiled. Targets follow at a rate of 0.05, which so few updates need; rows of the results
without ``tau`` were trained at the default, 0.005. A job is one population, or all estimates; those that are in
``--results`` are not done again, and ``--methods`` and ``--steps`` choose a part.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from arguments import as_count, as_few, as_file, as_folder, run_script, script_parser
from common import machine, run_jobs, table
from measuring import markdown
from offline_evaluation import WITHOUT_TRUTH, halves

from torchrl_marl_offline import OfflineDataset, OfflineMARLLoss, Trainer, compare_offline, make_loss
from torchrl_marl_offline.core.layout import ACTION, ACTION_MASK
from torchrl_marl_offline.data.policy_fit import Carried
from torchrl_marl_offline.evaluation import FittedQSettings, evaluate_held_out
from torchrl_marl_offline.evaluation.along_episodes import with_memory
from torchrl_marl_offline.training import PopulationBuffer, PopulationLearner
from torchrl_marl_offline.training.run.saved_policies import save_policy

RESULTS = Path(__file__).parent / "results" / "memory_3m.jsonl"
TRAININGS: dict[str, dict[str, Any]] = {
    "cloning": {"updates": 1500},
    "recipe": {"updates": 1500, "tau": 0.05},
    "icq": {"updates": 1500, "tau": 0.05},
}
METHODS = {f"{a}, {m or 'none'}": (a, m) for a in TRAININGS for m in (None, "window:4", "gru")}
"""Name -> algorithm and memory."""
GAMMA = 0.99
MEASURES = ("agreement", "agreement_choice", "nll", "q_correlation", "q_slope", "q_bias", "CPU seconds")

Row = dict[str, Any]


def trained(
    data: OfflineDataset, seeds: int, *, updates: int, tau: float = 0.005, slice_len: int = 32, **settings: Any
) -> tuple[PopulationLearner, float]:
    """Train seeds of an algorithm as one population, with memory on slices; returns it, and a member's CPU seconds."""
    losses = {}
    for seed in range(seeds):
        torch.manual_seed(seed)
        losses[str(seed)] = make_loss(data.spec, hidden=(64, 64), **settings)
    slices = {"batch_size": 320, "slice_len": slice_len, "burn_in": 0}
    sampling = {"batch_size": 256} if settings["memory"] is None else slices
    buffer = PopulationBuffer(data.data, seeds=range(seeds), keys=losses["0"].in_keys, **sampling)
    learner = PopulationLearner(losses, lr=1e-3, tau=tau)
    began = time.process_time()
    Trainer(learner, buffer, steps=updates, progress=False).train()
    return learner, (time.process_time() - began) / seeds


def train(folder: str, algorithm: str, memory: str | None, seeds: int, updates: int, tau: float = 0.005) -> Row:
    """Train a population, keep its policies, and hold every member against the episodes that it has not seen."""
    data, held_out = halves(WITHOUT_TRUTH["3m"])
    settings: Row = {"algorithm": algorithm, "memory": memory} | ({} if algorithm == "cloning" else {"gamma": GAMMA})
    learner, took = trained(data, seeds, updates=updates, tau=tau, **settings)
    found = {}
    for seed, loss in learner.member_losses():
        values = loss.qvalue if loss.value_learning is not None else None
        judged = evaluate_held_out(loss, held_out, qvalue=values, gamma=GAMMA)
        with loss.actor_network_params.data.to_module(loss.actor_network):
            path = Path(folder) / f"{algorithm}, {memory or 'none'}, {seed}.pt"
            path.parent.mkdir(parents=True, exist_ok=True)
            save_policy(path, loss.actor_network)
        found[seed] = judged.summary() | {"nll": surprise(loss, held_out), "CPU seconds": took}
    return {"held out": found, "rows": len(held_out)}


@torch.no_grad()
def surprise(loss: OfflineMARLLoss, data: OfflineDataset) -> float:
    """Return the mean negative log-likelihood of a recorded action, where more than one was legal, in nats."""
    actor = loss.actor_network
    with loss.actor_network_params.to_module(actor):
        carried = Carried(actor)
        rows = with_memory(actor, carried.states, data.data) if carried.needs_beginnings else data.data.copy()
        log_prob = actor.get_dist(rows).log_prob(data.data.get(ACTION))  # [T, n]
    choice = data.data.get(ACTION_MASK).sum(-1) > 1
    return -log_prob[choice].double().mean().item()


def estimate(folder: str, names: list[str], steps: int) -> Row:
    """Estimate what the policies' draws earn, by fitted Q evaluation."""
    _, logs = halves(WITHOUT_TRUTH["3m"])
    began = time.process_time()
    files = {name: Path(folder) / f"{name}.pt" for name in names}
    how = FittedQSettings(steps=steps)
    found = compare_offline(files, logs, by=("fqe",), gamma=GAMMA, mode="sample", fitting=how)
    return {"found": found.to_dict(), "verdict": found.verdict("fqe"), "CPU seconds": time.process_time() - began}


def work(stage: str, **options: Any) -> Row:
    """Do a job."""
    return train(**options) if stage == "train" else estimate(**options)


def report(rows: Sequence[Row]) -> None:
    """Print the tables: means over seeds with 95 % intervals, and the estimates."""
    print(machine())
    members = [
        {"algorithm": row["algorithm"], "memory": row["memory"] or "none"}
        | {"updates": row["updates"], "tau": row.get("tau", "")}
        | {name: member.get(name, float("nan")) for name in MEASURES}
        for row in rows
        if row["stage"] == "train"
        for member in row["held out"].values()
    ]
    print(table(members, by=("algorithm", "memory", "updates", "tau"), columns=MEASURES), end="\n\n")
    for row in rows:
        if row["stage"] == "estimates":
            print(estimates_table(row))


def estimates_table(row: Row) -> str:
    """What fitted Q evaluation says of every method, its seeds side by side, and what its own check says."""
    found, groups = row["found"], {}
    for name, each in found["methods"]["fqe"].items():
        groups.setdefault(name.rpartition(", ")[0], []).append(each)
    lines = []
    for name, group in groups.items():
        better = [each["better"] for each in group]
        values = ", ".join(f"{each['value']:.2f}" for each in group)
        gains = "; ".join(f"{each['mean']:+.2f} [{each['low']:+.2f}, {each['high']:+.2f}]" for each in better)
        facts = [" ".join(f"{each[fact]:.2f}" for each in group) for fact in ("unsupported", "unlikely")]
        lines.append([name, values, gains, *facts])
    logged = found["logged"]
    head = f"logged {logged['value']:.2f} [{logged['value_low']:.2f}, {logged['value_high']:.2f}]"
    told = "".join(f"\n- {warning}" for warning in found["warnings"])
    header = ["algorithm, memory", "value of each seed", "better than logged by", "unsupported", "unlikely"]
    return f"{head}; {row['verdict']}{told}\n{row['CPU seconds']:.0f} CPU seconds\n" + markdown(header, lines)


def main() -> None:
    """Run the comparison, or report what is there."""
    parser = script_parser(__doc__)
    parser.add_argument("--output", type=as_folder, default=Path("runs/memory_3m"), help="folder of the policies")
    parser.add_argument("--results", type=as_file, default=RESULTS)
    parser.add_argument("--seeds", type=as_few, default=3)
    parser.add_argument("--methods", nargs="+", choices=[*METHODS], default=[*METHODS], help="algorithm and memory")
    parser.add_argument("--steps", type=as_count, default=4000, help="of the critics of the estimates")
    parser.add_argument("--report", action="store_true", help="train nothing: report what is there")
    args = parser.parse_args()
    if not args.report:
        base, methods = {"folder": str(args.output)}, [METHODS[name] for name in args.methods]
        jobs = [
            base | {"stage": "train", "algorithm": a, "memory": m, "seeds": args.seeds} | TRAININGS[a]
            for a, m in methods
        ]
        run_jobs(work, jobs, workers=1, results=args.results)
        names = [f"{name}, {s}" for name in args.methods for s in range(args.seeds)]
        last = base | {"stage": "estimates", "names": names, "steps": args.steps}
        run_jobs(work, [last], workers=1, results=args.results)
    report([each["job"] | each["result"] for each in map(json.loads, args.results.read_text().splitlines())])


if __name__ == "__main__":
    run_script(main)
