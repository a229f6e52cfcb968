"""What the studies share: named methods, jobs over processes with resumable results, tables."""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from arguments import ScriptError, as_amount, as_count, as_few, as_folder, as_share, script_parser
from filelock import FileLock, Timeout
from measuring import machine as machine
from measuring import markdown
from tqdm import tqdm

from torchrl_marl_offline import (
    IQL,
    BehaviourCloning,
    OfflineDataset,
    OfflineMARLLoss,
    ScaleInvariantValueNorm,
    TaskSpec,
    Trainer,
    make_actor,
    make_critic,
    make_value,
)
from torchrl_marl_offline.core.figure_style import (
    GREY,
    draw_curve,
    figure_style,
    legend_beside,
    new_figure,
    save_figure,
)
from torchrl_marl_offline.evaluation import mean_confidence_interval
from torchrl_marl_offline.modules import DECOMPOSITIONS
from torchrl_marl_offline.training import Learner

METHODS: dict[str, dict[str, Any]] = {
    "cloning": {},
    **{name: {"decomposition": name} for name in DECOMPOSITIONS},
    "frozen mixer": {"decomposition": "mixer", "frozen": True},
    "mixer without SVN": {"decomposition": "mixer", "svn": False},
    "vdn without SVN": {"decomposition": "vdn", "svn": False},
    "independent without SVN": {"decomposition": "independent", "svn": False},
}


def make_loss(
    spec: TaskSpec,
    method: str,
    *,
    value_learning: Any,
    extraction: Any,
    gamma: float,
    hidden: Sequence[int] = (64, 64),
    scale: float | str = "learned",
    heads: str = "all",
) -> OfflineMARLLoss:
    """Build the loss of a method named in ``METHODS``."""
    options = dict(METHODS[method])
    actor = make_actor(spec, hidden=hidden, scale=scale)
    if not options:
        return BehaviourCloning(actor)
    svn = options.pop("svn", True)
    critic = make_critic(spec, hidden=hidden, **options)
    needs_value = isinstance(value_learning, IQL)
    value = make_value(spec, decomposition=options["decomposition"], hidden=hidden) if needs_value else None
    return OfflineMARLLoss(
        actor,
        critic,
        value,
        value_learning=value_learning,
        extraction=extraction,
        value_norm=ScaleInvariantValueNorm() if svn else None,
        heads=heads,
    ).make_value_estimator(gamma=gamma)


def run_jobs(
    function: Callable[..., dict[str, Any]], jobs: Sequence[dict[str, Any]], *, workers: int, results: Path
) -> list[dict[str, Any]]:
    """Run ``function(**job)`` for every job in processes of one thread each.

    Each result is appended to ``results`` (JSON lines) as soon as it is there, and jobs found there are not run again.

    Returns:
        A row for each job, in their order.

    Raises:
        ScriptError: the file is none of results, or another process is writing it.
    """
    results.parent.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    with _only_writer(results):
        found = {_key(row["job"]): row["result"] for row in read_rows(results, mend=True)}
        open_jobs = {_key(job): job for job in jobs if _key(job) not in found}
        with (
            ProcessPoolExecutor(workers, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool,
            results.open("a") as file,
        ):
            futures = {pool.submit(_alone, function, job): key for key, job in open_jobs.items()}
            for future in tqdm(as_completed(futures), total=len(futures), desc=function.__name__):
                key = futures[future]
                found[key] = future.result()
                file.write(json.dumps({"job": open_jobs[key], "result": found[key]}) + "\n")
                file.flush()
    return [job | found[_key(job)] for job in jobs]


def read_rows(results: Path, *, mend: bool = False) -> list[dict[str, Any]]:
    """Return what :func:`run_jobs` wrote: ``job`` and ``result`` of each line, of a job's lines the last.

    Args:
        results: the file.
        mend: whether to take off a last line that was cut while it was written.

    Raises:
        ScriptError: the file holds something else.
    """
    text = results.read_text() if results.exists() else ""
    whole, _, cut = text.rpartition("\n")
    if cut and mend:
        results.write_text(f"{whole}\n" if whole else "")
    rows: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            row = json.loads(line)
            rows[_key(row["job"])] = {"job": dict(row["job"]), "result": dict(row["result"])}
        except (ValueError, TypeError, KeyError) as error:
            raise ScriptError(f"{results}, line {number}: no result of such a script; name another file.") from error
    return list(rows.values())


def _key(job: dict[str, Any]) -> str:
    return json.dumps(job, sort_keys=True)


@contextmanager
def _only_writer(results: Path) -> Iterator[None]:
    lock = FileLock(results.with_name(f".{results.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ScriptError(f"Another process writes {results}; wait until it has ended, or name another file.") from None
    try:
        yield
    finally:
        lock.release()


def _alone(function: Callable[..., dict[str, Any]], job: dict[str, Any]) -> dict[str, Any]:
    torch.compiler.reset()  # a process may compile a function only a few times over
    return function(**job)


def table(rows: Sequence[dict[str, Any]], *, by: Sequence[str], columns: Sequence[str]) -> str:
    """Return a Markdown table: mean and 95 % confidence interval over the seeds of each group."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in by), []).append(row)
    lines = []
    for group, members in groups.items():
        cells = [str(part) for part in group] + [str(len(members))]
        for column in columns:
            values = [float(row[column]) for row in members]
            if all(math.isnan(value) for value in values):
                cells.append("")
            elif len(values) > 1:
                interval = mean_confidence_interval(values)
                cells.append(f"{interval.mean:.4g} [{interval.low:.4g}, {interval.high:.4g}]")
            else:
                cells.append(f"{values[0]:.4g}")
        lines.append(cells)
    return markdown([*by, "seeds", *columns], lines)


def train_with_curves(
    loss: OfflineMARLLoss,
    data: OfflineDataset,
    *,
    steps: int,
    lr: float,
    seed: int,
    play: Callable[[str], float],
    compile: str = "on",
) -> dict[str, Any]:
    """Train on batches of 256 and return the curves of ``play(mode)``, by mode and sampled, and their last points."""
    curve: dict[str, list[float]] = {"step": [], "mode": [], "sampled": []}

    def measure() -> None:
        curve["step"].append(trainer.step)
        curve["mode"].append(play("mode"))
        curve["sampled"].append(play("sample"))

    trainer = Trainer(
        Learner(loss, lr=lr, compile=compile),
        data.replay_buffer(batch_size=256, seed=seed, keys=loss.in_keys),
        steps=steps,
        evaluators={"played": measure},
        eval_every=steps // 6,
        progress=False,
    )
    trainer.train()
    return {"curve": curve, "mode": curve["mode"][-1], "sampled": curve["sampled"][-1]}


def parse_method_study(
    description: str, *, output: str, methods: Sequence[str], **settings: float
) -> tuple[argparse.Namespace, list[dict[str, Any]], dict[str, Any]]:
    """Read the command line of a study of methods; returns the arguments, its jobs and their common settings."""
    parser = script_parser(description)
    parser.add_argument("--output", type=as_folder, default=Path(output))
    parser.add_argument("--seeds", type=as_few, default=5)
    parser.add_argument("--methods", nargs="+", default=list(methods))
    parser.add_argument("--workers", type=as_few, default=2)
    for name, default in settings.items():
        parser.add_argument(
            f"--{name}",
            type=as_count if isinstance(default, int) else as_share if name == "gamma" else as_amount,
            default=default,
        )
    args = parser.parse_args()
    chosen = {name: getattr(args, name) for name in settings}
    jobs = [{"method": method, "seed": seed} | chosen for seed in range(args.seeds) for method in args.methods]
    return args, jobs, chosen


def draw_seeds(axis: Any, steps: Sequence[float], curves: Sequence[Sequence[float]], *, index: int, label: str) -> None:
    """Draw the mean of a method's curves and the range over its seeds, in the look of the method at ``index``."""
    values = torch.tensor(curves)
    band = (values.amin(0).tolist(), values.amax(0).tolist())
    draw_curve(axis, steps, values.mean(0).tolist(), index=index, label=label, band=band)


@figure_style()
def plot_execution_curves(
    rows: Sequence[dict[str, Any]], path: Path, *, levels: dict[str, float], ylabel: str, title: str
) -> None:
    """Draw the curves of every method, by both kinds of policy: mean and range over seeds, and constant levels."""
    figure, axes = new_figure(2, size=(12, 4.2))
    ways = {"mode": "deterministic policy", "sampled": "stochastic policy"}
    for axis, (how, words) in zip(axes, ways.items()):
        for index, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
            members = [row["curve"] for row in rows if row["method"] == method]
            draw_seeds(axis, members[0]["step"], [curve[how] for curve in members], index=index, label=method)
        for style, (name, level) in zip(("--", ":"), levels.items()):
            axis.axhline(level, color=GREY, linestyle=style, label=name)
        axis.set(title=words, xlabel="updates", ylabel=ylabel)
    axes[1].sharey(axes[0])
    legend_beside(figure, axes[1])
    figure.suptitle(title, x=0.01, ha="left")
    save_figure(figure, path)
