"""What the diagnosis that every run logs costs, beside the updates between two of them.

    python benchmarks/diagnosis.py --json diagnosis.json
    python benchmarks/diagnosis.py --sizes small

An update of the recipe and a diagnosis alternate in one process, on one thread; the share is that of one diagnosis in
as many updates as lie between two (:data:`~torchrl_marl_offline.training.run.logged_diagnosis.EVERY`).
"""

from __future__ import annotations

from typing import Any

import torch
from arguments import as_few, run_script
from measuring import CLOCKS, alternate, benchmark_parser, markdown, report, spread, times, with_spread
from sizes import SIZES, random_transitions
from step import TRANSITIONS, build_loss, make_trainer, prepare, update

from torchrl_marl_offline import Trainer
from torchrl_marl_offline.training import PopulationBuffer, PopulationLearner
from torchrl_marl_offline.training.run.logged_diagnosis import EVERY, LoggedDiagnosis

MEMBERS = 8


def population(size: str, compile: str) -> Trainer:
    """Return a run of several members of the recipe."""
    losses = {f"m{seed}": build_loss(SIZES[size], seed=seed) for seed in range(MEMBERS)}
    data, keys = random_transitions(SIZES[size].spec, TRANSITIONS), losses["m0"].in_keys
    buffer = PopulationBuffer(data, batch_size=SIZES[size].batch_size, seeds=range(MEMBERS), keys=keys)
    trainer = Trainer(PopulationLearner(losses, compile=compile), buffer, steps=10**9, progress=False)
    prepare(trainer)
    return trainer


def shares(name: str, trainer: Trainer, repeats: int, clock: str) -> dict[str, Any]:
    """Measure an update and a diagnosis in turns."""
    update(trainer)
    batch = trainer.buffer.sample()
    diagnosis = LoggedDiagnosis(trainer.learner, EVERY)
    plays = {"update": lambda: update(trainer), "diagnosis": lambda: diagnosis.check(EVERY, batch)}
    assert diagnosis.check(EVERY, batch), "there is nothing to measure"
    found = alternate(
        {key: times(play) for key, play in plays.items()}, repeats=repeats, seconds=0.5, clock=CLOCKS[clock]
    )
    share = [b / (EVERY * a) for a, b in zip(found["update"], found["diagnosis"])]
    of_each = {key: spread([1000 * each for each in values]) for key, values in found.items()}
    return {"run": name, "ms": of_each, "share": spread([100 * each for each in share])}


def main() -> None:
    """Measure, print, and write ``--json``."""
    parser = benchmark_parser(__doc__, clock=True)
    parser.add_argument("--repeats", type=as_few, default=9)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    args = parser.parse_args()
    torch.set_num_threads(1)
    sizes, forms = (["small"], ["off"]) if args.quick else (args.sizes, ["off", "on"])
    results = []
    for size in sizes:
        data = random_transitions(SIZES[size].spec, TRANSITIONS)
        for compile in forms:
            how = "compiled" if compile == "on" else "as it stands"
            results.append(
                shares(f"{size}, {how}", make_trainer(SIZES[size], data, compile=compile), args.repeats, args.clock)
            )
            if size == "small":
                results.append(
                    shares(f"{size}, {MEMBERS} members, {how}", population(size, compile), args.repeats, args.clock)
                )
    lines = [
        [
            row["run"],
            *(with_spread(row["ms"][key], ".3g") for key in ("update", "diagnosis")),
            with_spread(row["share"], ".2f"),
        ]
        for row in results
    ]
    print(markdown(["run", "update, ms", "diagnosis, ms", f"share of {EVERY} updates, %"], lines))
    report(args.json, results, every=EVERY)


if __name__ == "__main__":
    run_script(main)
