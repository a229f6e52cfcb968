"""Milliseconds of an update of networks with memory: by hand, as it stands, compiled, of populations, and without it.

    python benchmarks/recurrent.py --json recurrent.json --clock cpu

The recipe (Mix + SVN + IQL + AWR, trained mixer, both heads, 2 x 64) of ``mpe/simple_spread``'s shapes, on 32 slices of
20 rows of random episodes. By hand it is plain torch with a :class:`torch.nn.GRU` for each network
(``hand_written.py``), with the library's parameters and, checked before the clock starts, its losses on a batch and the
gradients of them. All forms take turns. Without memory, the rows of a batch are as many, drawn one by one.

A population's update is that of all its members; what is shown is its time for each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from arguments import as_few, as_size, run_script
from hand_written import HandWrittenRecurrent, gather
from measuring import CLOCKS, alternate, benchmark_parser, markdown, report, spread, times, with_spread
from population import population_trainer
from sizes import EPISODE, SMALL, Size, random_transitions
from step import SETTINGS, TRANSITIONS, build_loss, first_seconds, make_trainer, update
from torchrl.objectives import SoftUpdate

from torchrl_marl_offline import OfflineDataset

SLICES, LENGTH = 32, 20
SIZE = replace(SMALL, batch_size=SLICES * LENGTH)
COMPILED = (None, "gru")
KINDS: dict[str | None, dict[str, Any]] = {
    None: {},
    "gru": {"memory": "gru", "memory_size": 64},
    "lstm": {"memory": "lstm", "memory_size": 64},
}


def options_of(kind: str | None, length: int = LENGTH) -> dict[str, Any]:
    """Return the options of a trainer of networks with this memory."""
    return KINDS[kind] | ({} if kind is None else {"slices": {"slice_len": length, "burn_in": 0}})


def by_hand(size: Size, data: OfflineDataset, length: int) -> HandWrittenRecurrent:
    """Return a run by hand that starts as the library's does, after comparing its losses and their gradients."""
    loss = build_loss(size, **KINDS["gru"])
    SoftUpdate(loss, tau=0.005)  # a loss wants one, which this one does not need
    settings = {name: SETTINGS[name] for name in ("gamma", "expectile", "temperature")}
    run = HandWrittenRecurrent(loss, size, slice_len=length, **settings)
    batch = data.replay_buffer(batch_size=size.batch_size, seed=0, slice_len=length, burn_in=0).sample()
    ours = loss(batch)
    own = run.losses(gather(batch.reshape(-1), torch.arange(size.batch_size)))
    names = ("loss_qvalue", "loss_value", "loss_actor")
    for name, value in zip(names, own, strict=True):
        torch.testing.assert_close(value, ours[name], rtol=1e-4, atol=1e-5)
    sum(ours[name] for name in names).backward()
    sum(own).backward()
    for name, role in (("qvalue", "critic"), ("value", "value"), ("actor", "policy")):
        network = getattr(loss, f"{name}_network_params")
        expected = next(p for key, p in network.items(True, True) if "of_memory" in key and key[-1] == "weight").grad
        found = run.memories[name].weight_hh_l0.grad.T
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5, msg=f"the gradient of the {role}'s memory")
    run.optimizer.zero_grad()
    return run


def step_by_hand(size: Size, data: OfflineDataset, length: int, *, compiled: bool) -> Callable[[], None]:
    """Return a step of a run by hand, of slices drawn within episodes."""
    run, count = by_hand(size, data, length), size.batch_size // length
    if compiled:
        run.losses = torch.compile(run.losses)  # torch leaves its GRU out of the graph
    time = torch.arange(length)

    def step() -> None:
        start = EPISODE * torch.randint(TRANSITIONS // EPISODE, (count, 1))
        index = start + torch.randint(EPISODE - length + 1, (count, 1)) + time
        run.step(gather(data.data, index.flatten()))

    return step


def forms(compiled: bool) -> dict[str, str]:
    """Return how the library takes a step, by what :class:`Learner` calls it."""
    return {"off": "as it stands"} | ({"on": "compiled"} if compiled else {})


def single_steps(size: Size, data: OfflineDataset, length: int, *, quick: bool) -> dict[str, Callable[[], None]]:
    """Return the steps of single runs, by form."""
    steps = {"gru, by hand": step_by_hand(size, data, length, compiled=False)}
    if not quick:
        steps["gru, by hand, compiled"] = step_by_hand(size, data, length, compiled=True)
    for kind in KINDS:
        for compile, words in forms(kind in COMPILED and not quick).items():
            trainer = make_trainer(size, data, compile=compile, **options_of(kind, length))
            steps[f"{kind or 'no memory'}, {words}"] = partial(update, trainer)
    return steps


def population_steps(size: Size, members: int, length: int, *, compiled: bool) -> dict[str, Callable[[], None]]:
    """Return the steps of populations, by form."""
    found = {}
    for compile, words in forms(compiled).items():
        trainer = population_trainer(size, members, compile, **options_of("gru", length))
        found[f"gru, population of {members}, {words}"] = partial(update, trainer)
    return found


def measure(
    size: Size, members: int, length: int, *, repeats: int, count: int, quick: bool, compiled: bool, clock: str
) -> list[dict[str, Any]]:
    """Measure every form in turns; returns a row for each, with the milliseconds of an update of one run."""
    data = random_transitions(size.spec, TRANSITIONS)
    steps = single_steps(size, data, length, quick=quick)
    steps |= population_steps(size, members, length, compiled=compiled)
    warm = {form: first_seconds(step) for form, step in steps.items()}
    runs = {form: members if "population" in form else 1 for form in steps}
    found = alternate({f: times(step) for f, step in steps.items()}, repeats=repeats, count=count, clock=CLOCKS[clock])
    return [
        {"form": form, "ms": spread([1e3 * each / runs[form] for each in seconds]), "first_seconds": warm[form]}
        for form, seconds in found.items()
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table of what :func:`measure` returned, beside the loop by hand."""
    hand, cells = rows[0]["ms"]["median"], []
    for row in rows:
        ratio = row["ms"]["median"] / hand
        cells.append([row["form"], with_spread(row["ms"], ".1f"), f"{ratio:.2f}", f"{row['first_seconds']:.0f} s"])
    return markdown(["form", "ms an update of a run", "× by hand", "first step"], cells)


def main() -> None:
    """Measure, print, and write ``--json``."""
    parser = benchmark_parser(__doc__, clock=True)
    parser.add_argument("--members", type=as_size, default=16, help="of the population")
    parser.add_argument("--compiled", action="store_true", help="the population compiled, too")
    parser.add_argument("--repeats", type=as_few, default=12)
    parser.add_argument("--count", type=as_few, default=3, help="updates of a turn")
    args = parser.parse_args()
    torch.set_num_threads(1)
    size, length = (replace(SIZE, batch_size=20), 5) if args.quick else (SIZE, LENGTH)
    members, repeats, count = (2, 1, 1) if args.quick else (args.members, args.repeats, args.count)
    rows = measure(
        size, members, length, repeats=repeats, count=count, quick=args.quick, compiled=args.compiled, clock=args.clock
    )
    print(table(rows))
    report(
        args.json, rows, threads=1, clock=args.clock, members=members, slices=size.batch_size // length, length=length
    )


if __name__ == "__main__":
    run_script(main)
