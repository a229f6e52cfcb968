"""What a step of each algorithm costs: all of ``methods.ALGORITHMS``, with continuous and with discrete actions.

    python benchmarks/systems.py --json systems.json
    python benchmarks/systems.py --sizes paper --threads 2 --compiled

A step is a whole update: sampling, loss, backward, gradient norms, Adam, targets. All networks of every algorithm,
those of behaviour models among them, have the widths of the size, and its batch; all else are published settings, of
the recipe those of ``step.py``. Algorithms and forms of one size and kind of action take turns in one process, so that
whatever else runs on the machine meets all alike: their ratios stand where milliseconds do not. FLOP are those of the
matrix products.

An algorithm that cannot be built for a kind of action is left out and its reason printed.
"""

from __future__ import annotations

import gc
import itertools
import time
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from arguments import as_few, as_threads, run_script
from measuring import alternate, benchmark_parser, markdown, report, spread, times, with_spread
from sizes import SIZES, random_transitions, with_discrete_actions
from step import TRANSITIONS, build_loss, flop_of, make_trainer, update

from torchrl_marl_offline import OfflineDataset, Trainer
from torchrl_marl_offline.algorithms import ALGORITHMS, settings_of

KINDS = ("continuous", "discrete")
FORMS = {"as it stands": False, "compiled": True}
NEEDED = {"b3c": {"max_next_value": 20.0}}
"""Settings without which an algorithm is not built; their values do not change what a step costs."""


def step_of(trainer: Trainer, *, compiled: bool) -> Any:
    """Return a step of a trainer in one of its forms; the forms share its networks and its optimizer."""
    gradients = trainer.learner._make_gradients(compiled=compiled)

    def step() -> None:
        trainer.learner.gradients = gradients
        update(trainer)

    return step


def possible(size: Any, algorithms: Sequence[str]) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Return the settings of the algorithms that can be built, and why the others cannot."""
    settings, reasons = {}, {}
    for algorithm in algorithms:
        others = [name for name in settings_of(algorithm) if name.endswith("_hidden")]  # of a behaviour model, say
        chosen = {"algorithm": algorithm} | dict.fromkeys(others, size.hidden) | NEEDED.get(algorithm, {})
        try:
            build_loss(size, **chosen)
        except ValueError as error:
            reasons[algorithm] = str(error)
        else:
            settings[algorithm] = chosen
    return settings, reasons


def prepare(size: Any, data: OfflineDataset, settings: dict[str, Any], forms: Sequence[str]) -> dict[str, Any]:
    """Return the steps of one algorithm by form, the seconds of the first of each, and its FLOP."""
    flop = flop_of(size, data, **settings)
    trainer = make_trainer(size, data, compile="off", **settings)
    steps, first = {}, {}
    for form in forms:
        steps[form] = step_of(trainer, compiled=FORMS[form])
        began = time.perf_counter()
        steps[form]()
        first[form] = time.perf_counter() - began
    took = ", ".join(f"{form} {seconds:.1f} s" for form, seconds in first.items())
    print(f"first step of {settings['algorithm']}: {took}", flush=True)
    return {"steps": steps, "first": first, "flop": flop}


def compare(
    name: str, kind: str, algorithms: Sequence[str], forms: Sequence[str], **turns: int
) -> list[dict[str, Any]]:
    """Measure the algorithms of one size and kind of action in turns."""
    size = SIZES[name] if kind == "continuous" else with_discrete_actions(SIZES[name])
    data = random_transitions(size.spec, TRANSITIONS)
    settings, reasons = possible(size, algorithms)
    for algorithm, reason in reasons.items():
        print(f"{name}, {kind}: {algorithm} is left out: {reason}", flush=True)
    ready = {algorithm: prepare(size, data, chosen, forms) for algorithm, chosen in settings.items()}
    plays = {(a, form): times(step) for a, parts in ready.items() for form, step in parts["steps"].items()}
    found = alternate(plays, **turns)
    rows = []
    for algorithm, parts in ready.items():
        ms = {form: spread([1e3 * s for s in found[algorithm, form]]) for form in forms}
        row = {"size": name, "actions": kind, "algorithm": algorithm, "gflop": parts["flop"] / 1e9}
        rows.append(row | {"ms": ms, "first_seconds": parts["first"]})
    return rows


def table(rows: Sequence[dict[str, Any]], forms: Sequence[str]) -> str:
    """Return a Markdown table: each form's milliseconds, and their ratio to the recipe's in the same form."""
    base = next((row["ms"] for row in rows if row["algorithm"] == "recipe"), None)
    cells = []
    for row in rows:
        cells.append([row["algorithm"], f"{row['gflop']:.2f}"])
        for form in forms:
            ms = row["ms"][form]
            ratio = "" if base is None else f"{ms['median'] / base[form]['median']:.2f}"
            cells[-1] += [with_spread(ms, ".2f"), ratio]
    header = itertools.chain(["algorithm", "GFLOP"], *([f"{form}, ms", "× recipe"] for form in forms))
    return markdown(list(header), cells)


def main() -> None:
    """Measure, print, and write ``--json``."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS, help="of actions")
    parser.add_argument("--algorithms", nargs="+", default=list(ALGORITHMS), choices=list(ALGORITHMS))
    parser.add_argument("--threads", type=as_threads, default=2)
    parser.add_argument("--compiled", action="store_true", help="compiled, too (half a minute each)")
    parser.add_argument("--repeats", type=as_few, default=20, help="turns of each")
    args = parser.parse_args()
    if args.quick:
        args.sizes, args.threads, args.repeats = ["small"], 1, 2
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    forms = list(FORMS) if args.compiled else ["as it stands"]
    rows = []
    for name, kind in itertools.product(args.sizes, args.kinds):
        count = 1 if name == "paper" or args.quick else 5
        found = compare(name, kind, args.algorithms, forms, repeats=args.repeats, count=count)
        if not found:
            continue
        print(f"\n{name}, {kind} actions, {args.threads} threads\n\n{table(found, forms)}\n", flush=True)
        rows += found
        torch.compiler.reset()  # a process may compile a function only a few times over
        gc.collect()
    if not rows:
        parser.error(f"none of {', '.join(args.algorithms)} takes {' or '.join(args.kinds)} actions; name others")
    report(args.json, rows, threads=args.threads, repeats=args.repeats)


if __name__ == "__main__":
    run_script(main)
