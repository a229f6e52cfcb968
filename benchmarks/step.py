"""Milliseconds of a whole update: sampling, loss, backward, gradient norms, Adam, targets; as it stands and compiled.

    python benchmarks/step.py --json step.json
    python benchmarks/step.py --sizes paper --precisions fp32 bf16
    python benchmarks/step.py --combinations        # all 24 of the axes, as they stand and compiled
    python benchmarks/step.py --device cuda --precisions fp32 tf32 bf16

The forms of one size alternate in one process: the library's step as it stands and compiled, the same mathematics
written by hand (``hand_written.py``; checked to give the same losses before the clock starts), and that compiled. On a
GPU, compiled steps are one CUDA graph each; beside them stands one that is compiled but not captured. FLOP are those of
the matrix products; their share is of what a large product of the same precision reaches in the same run.
"""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from arguments import as_device, as_few, as_threads, run_script
from hand_written import HandWritten, gather
from measuring import alternate, benchmark_parser, markdown, report, spread, times, wait_for_gpu, with_spread
from sizes import SIZES, Size, random_transitions
from torch.utils.flop_counter import FlopCounterMode

from torchrl_marl_offline import OfflineDataset, OfflineMARLLoss, Trainer
from torchrl_marl_offline.algorithms import make_loss
from torchrl_marl_offline.training import BufferState, Learner, PopulationBuffer
from torchrl_marl_offline.training.step.gradients import PRECISIONS, CompiledGradients, Precision, in_precision

SETTINGS = {"temperature": 3.0, "weights": "clipped", "expectile": 0.7, "gamma": 0.95, "advantage": "joint"}
TRANSITIONS = 20_000
DECOMPOSITIONS = ("centralized", "mixer", "vdn", "independent")  # the recipe's
RULES = ("td", "sarsa", "iql")
EXTRACTIONS = ("awr", "brac")


@dataclass(frozen=True)
class Form:
    """How the library takes a step."""

    label: str
    compile: str
    precision: Precision
    captured: bool = True


def build_loss(
    size: Size, *, algorithm: str = "recipe", seed: int = 0, device: str = "cpu", **settings: Any
) -> OfflineMARLLoss:
    """Return an algorithm's loss with networks of this size, always the same; the recipe with ``SETTINGS``."""
    torch.manual_seed(seed)
    shared = SETTINGS if algorithm == "recipe" else {}
    return make_loss(size.spec, algorithm=algorithm, hidden=size.hidden, **{**shared, **settings}).to(device)


def make_trainer(
    size: Size,
    data: OfflineDataset,
    *,
    compile: str,
    precision: str = "fp32",
    device: str = "cpu",
    captured: bool = True,
    slices: Mapping[str, int] | None = None,
    **settings: Any,
) -> Trainer:
    """Return a trainer of the loss.

    Args:
        size: of the task and the batch.
        data: what to train on.
        compile: as in :class:`Learner`.
        precision: as there.
        device: where.
        captured: on a GPU, compiled, the step is one CUDA graph.
        slices: ``slice_len`` and ``burn_in`` of networks with memory.
        **settings: of :func:`build_loss`.
    """
    loss = build_loss(size, device=device, **settings)
    options = {"batch_size": size.batch_size, "device": device, "keys": loss.in_keys} | dict(slices or {})
    buffer = data.replay_buffer(seed=0, **options)
    trainer = Trainer(Learner(loss, compile=compile, precision=precision), buffer, steps=10**9, progress=False)
    if captured:
        prepare(trainer)
    return trainer


def prepare(trainer: Trainer) -> None:
    """Let a trainer's learner choose its form, as the first step of a run would."""
    state = BufferState(trainer.buffer) if not isinstance(trainer.buffer, PopulationBuffer) else trainer.buffer
    trainer.learner.prepare(trainer.buffer, state=state, steps=trainer.steps, processes=trainer.processes)


def update(trainer: Trainer) -> None:
    """Make one update of what a trainer trains."""
    trainer.learner.step(trainer.buffer.sample())


def hand_written(size: Size, data: OfflineDataset, *, compiled: bool, device: str = "cpu") -> Any:
    """Return a step by hand that starts as the library's does."""
    loss = build_loss(size, device=device)
    settings = {name: SETTINGS[name] for name in ("gamma", "expectile", "temperature")}
    run = HandWritten(loss, size, **settings)
    batch = data.replay_buffer(batch_size=size.batch_size, seed=0, device=device).sample()
    ours = loss(batch)
    own = run.losses(gather(batch, torch.arange(size.batch_size, device=device)))
    for name, value in zip(("loss_qvalue", "loss_value", "loss_actor"), own):
        torch.testing.assert_close(value, ours[name], rtol=1e-4, atol=1e-5)
    if compiled:
        run.losses = torch.compile(run.losses, fullgraph=True)

    there = data.data.to(device)

    def step() -> None:
        run.step(gather(there, torch.randint(TRANSITIONS, (size.batch_size,), device=device)))

    return step


def flop_of(size: Size, data: OfflineDataset, **settings: Any) -> int:
    """Count the operations of the matrix products of one update."""
    loss = build_loss(size, **settings)
    batch = data.replay_buffer(batch_size=size.batch_size, seed=0, keys=loss.in_keys).sample()
    gradients = CompiledGradients(loss, backend=None)  # as it stands, torch's counter stumbles over tensordicts
    gradients(batch)
    with FlopCounterMode(display=False) as counter:
        gradients(batch)
    return counter.get_total_flops()


def matrix_peak(device: str = "cpu", precision: Precision = "fp32", *, products: int = 40) -> float:
    """Return the FLOP/s that a large product reaches."""
    side = 2048 if device == "cpu" else 8192
    a, b = torch.randn(side, side, device=device), torch.randn(side, side, device=device)
    if precision == "bf16":
        a, b = a.bfloat16(), b.bfloat16()
    best = float("inf")
    with in_precision(precision, a.device):
        for _ in range(products):  # the best of many: other jobs may run beside it
            wait_for_gpu()
            began = time.perf_counter()
            a @ b
            wait_for_gpu()
            best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best


def compare_forms(
    name: str, threads: int, precisions: list[Precision], repeats: int, quick: bool, device: str
) -> list[dict[str, Any]]:
    """Measure the recipe in every form at one size."""
    size, data = SIZES[name], random_transitions(SIZES[name].spec, TRANSITIONS)
    torch.set_num_threads(threads)
    steps: dict[str, Any] = {"hand-written": hand_written(size, data, compiled=False, device=device)}
    forms = [Form("as it stands", "off", "fp32")]
    if not quick:
        steps["hand-written, compiled"] = hand_written(size, data, compiled=True, device=device)
        if device != "cpu":
            forms.append(Form("compiled, not captured", "on", "fp32", captured=False))
        forms += [Form(f"compiled, {p}" if p != "fp32" else "compiled", "on", p) for p in precisions]
    for form in forms:
        options = {"compile": form.compile, "precision": form.precision, "captured": form.captured}
        trainer = make_trainer(size, data, device=device, **options)
        steps[form.label] = lambda trainer=trainer: update(trainer)
    warm = {label: first_seconds(step) for label, step in steps.items()}
    found = alternate(
        {label: times(step) for label, step in steps.items()}, repeats=repeats, count=1 if name == "paper" else 5
    )
    flop = flop_of(size, data)
    precision_of = dict.fromkeys(steps, "fp32") | {form.label: form.precision for form in forms}
    peaks = {precision: matrix_peak(device, precision) for precision in set(precision_of.values())}
    rows = []
    for label, seconds in found.items():
        ms = spread([1e3 * s for s in seconds])
        reached, peak = flop / (ms["median"] / 1e3), peaks[precision_of[label]]
        rows.append(
            {"size": name, "threads": threads, "form": label, "ms": ms, "first_seconds": warm[label]}
            | {"gflop": flop / 1e9, "gflop_per_second": reached / 1e9, "share_of_peak": reached / peak}
        )
    return rows


def first_seconds(step: Callable[[], None]) -> float:
    """Return how long the first step takes, which compiles; on a GPU, then, go on until a CUDA graph is captured."""
    began = time.perf_counter()
    step()
    wait_for_gpu()
    seconds = time.perf_counter() - began
    for _ in range(4 if torch.cuda.is_initialized() else 0):
        step()
    return seconds


def compare_combinations(name: str, threads: int, compiled: bool, repeats: int, device: str) -> list[dict[str, Any]]:
    """Measure all 24 combinations of the axes at one size."""
    size, data = SIZES[name], random_transitions(SIZES[name].spec, TRANSITIONS)
    torch.set_num_threads(threads)
    rows = []
    for decomposition, rule, extraction in itertools.product(DECOMPOSITIONS, RULES, EXTRACTIONS):
        axes = {"decomposition": decomposition, "value_learning": rule, "extraction": extraction}
        plays = {}
        for compile in ("off", "on") if compiled else ("off",):
            trainer = make_trainer(size, data, compile=compile, device=device, **axes)
            plays[compile] = times(lambda trainer=trainer: update(trainer))
        found = alternate(plays, repeats=repeats, count=1 if name == "paper" else 5)
        flop = flop_of(size, data, **axes)
        row = axes | {"size": name, "threads": threads, "gflop": flop / 1e9}
        rows.append(row | {form: spread([1e3 * s for s in seconds]) for form, seconds in found.items()})
        print(
            decomposition,
            rule,
            extraction,
            {k: round(v["median"], 2) for k, v in rows[-1].items() if k in plays},
            flush=True,
        )
        torch.compiler.reset()
    return rows


def main() -> None:
    """Measure and print."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--threads", type=as_threads, nargs="+", default=[2])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], choices=list(PRECISIONS))
    parser.add_argument("--device", type=as_device, default="cpu", help="cpu or cuda")
    parser.add_argument("--combinations", action="store_true")
    parser.add_argument("--compiled", action="store_true", help="combinations: compiled, too (half a minute each)")
    parser.add_argument("--repeats", type=as_few, default=40)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    repeats = 3 if args.quick else args.repeats
    rows = []
    for name, threads in itertools.product(args.sizes[:1] if args.quick else args.sizes, args.threads):
        if args.combinations:
            rows += compare_combinations(name, threads, args.compiled, repeats, args.device)
            continue
        found = compare_forms(name, threads, args.precisions, repeats, args.quick, args.device)
        rows += found
        hand = next(row["ms"]["median"] for row in found if row["form"] == "hand-written")
        cells = [
            [
                row["form"],
                with_spread(row["ms"], ".2f"),
                f"{row['ms']['median'] / hand:.2f}",
                f"{row['gflop_per_second']:.0f}",
                f"{row['share_of_peak']:.0%}",
                f"{row['first_seconds']:.1f} s",
            ]
            for row in found
        ]
        header = ["form", "ms a step", "× hand-written", "GFLOP/s", "of matrix peak", "first step"]
        title = f"{name}, {args.device}, {threads} threads, {found[0]['gflop']:.2f} GFLOP a step"
        print(f"\n{title}\n{markdown(header, cells)}", flush=True)
    if args.combinations:
        forms = ["off", "on"] if args.compiled else ["off"]
        cells = [
            [row["size"], row["decomposition"], row["value_learning"], row["extraction"], f"{row['gflop']:.2f}"]
            + [with_spread(row[form], ".2f") for form in forms]
            for row in rows
        ]
        header = ["size", "decomposition", "value learning", "extraction", "GFLOP", "as it stands, ms", "compiled, ms"]
        print(markdown(header[: 5 + len(forms)], cells))
    report(args.json, rows, device=args.device)


if __name__ == "__main__":
    run_script(main)
