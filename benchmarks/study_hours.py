"""How long all runs of a study would take here: a population of every kind of run is timed, and the hours are added.

    python benchmarks/study_hours.py                                      # the recipe's Fig. 7: 16,384 runs
    python benchmarks/study_hours.py --device cuda --members 64 --precision tf32 --json hours.json
    python benchmarks/study_hours.py examples/studies/quick.toml --size small --members 4 --compile off

Runs are of one kind that differ in nothing but their dataset, seed and grid. A kind is timed on random data of
``--size``'s shapes, whatever the study's datasets are; evaluations, loading and compilation are not counted.
"""

from __future__ import annotations

import gc
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from arguments import as_amount, as_device, as_size, as_threads, run_script
from measuring import benchmark_parser, markdown, report
from population import population_rate
from sizes import SIZES
from studies import as_study

from torchrl_marl_offline.study import Run
from torchrl_marl_offline.study.runs import expand
from torchrl_marl_offline.training.step.gradients import PRECISIONS

FIGURE_7 = Path(__file__).parents[1] / "examples" / "studies" / "recipe_fig7.toml"
OF_THE_SIZE = ("hidden",)
"""Settings that ``--size`` gives."""


def kinds_of(runs: list[Run]) -> list[list[Run]]:
    """Group runs that cost the same."""
    kinds: dict[str, list[Run]] = {}
    for run in runs:
        kinds.setdefault(json.dumps(settings_of(run, grid=False), sort_keys=True), []).append(run)
    return list(kinds.values())


def settings_of(run: Run, *, grid: bool = True) -> dict[str, Any]:
    """Return what its loss is built with, the size's settings and, unless wanted, the grid's left out."""
    left_out = {*OF_THE_SIZE, *(() if grid else run.grid)}
    return {name: value for name, value in run.loss_settings.items() if name not in left_out}


def hours(updates: float, rate: float) -> float:
    """Return the hours of so many updates at a rate of updates a second."""
    return updates / rate / 3600


def main() -> None:
    """Measure and print."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("study", type=as_study, nargs="?", default=str(FIGURE_7))
    parser.add_argument("--methods", nargs="+", help="of the study; by default all")
    parser.add_argument("--size", default="paper", choices=list(SIZES))
    parser.add_argument("--members", type=as_size, default=1, help="of the population that is timed")
    parser.add_argument("--device", type=as_device, default="cpu", help="cpu or cuda")
    parser.add_argument("--precision", default="fp32", choices=list(PRECISIONS))
    parser.add_argument("--compile", default="on", choices=["on", "off"])
    parser.add_argument("--seconds", type=as_amount, default=5.0, help="of each kind")
    parser.add_argument("--threads", type=as_threads, default=2)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    if args.quick:
        args.size, args.members, args.compile, args.seconds = "small", 2, "off", 0.2
    runs = [run for run in expand(args.study) if args.methods is None or run.method in args.methods]
    if not runs:
        parser.error(f"{args.study.file} has no runs of the methods {args.methods}.")
    kinds = kinds_of(runs)[: 2 if args.quick else None]
    where = {"device": args.device, "precision": args.precision}
    rows = []
    for number, kind in enumerate(kinds, start=1):
        first = kind[0]
        found = population_rate(args.size, args.members, args.compile, args.seconds, **where, **settings_of(first))
        updates = len(kind) * first.settings["steps"]
        row = {"kind": first.method, "runs": len(kind), "updates": updates, "rate": found["rate"]}
        rows.append(row | {"hours": hours(updates, found["rate"]), "settings": settings_of(first)})
        print(f"{number} of {len(kinds)}: {first.method}, {found['rate']:,.1f} updates a second", flush=True)
        torch.compiler.reset()
        gc.collect()
    cells = [[row["kind"], f"{row['runs']:,}", f"{row['rate']:,.1f}", f"{row['hours']:,.1f}"] for row in rows]
    total = sum(row["hours"] for row in rows)
    cells.append(["all", f"{sum(row['runs'] for row in rows):,}", "", f"{total:,.1f} ({total / 24:,.1f} days)"])
    print(markdown(["runs of", "", "updates a second, all members", "hours"], cells))
    settings = {"study": args.study.file.name, "size": args.size, "members": args.members, "compile": args.compile}
    report(args.json, rows, **settings, **where, hours=total, threads=args.threads)


if __name__ == "__main__":
    run_script(main)
