"""What ``marl-offline evaluate`` does."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from torchrl_marl_offline.commands.evaluate import OF_DATA, OF_PLAYING
from torchrl_marl_offline.commands.options import flag
from torchrl_marl_offline.commands.script_settings import check_device
from torchrl_marl_offline.data.policy_fit import PolicyError, misfit
from torchrl_marl_offline.data.registry import load_dataset
from torchrl_marl_offline.envs import make_env
from torchrl_marl_offline.evaluation.in_environments import Evaluation, evaluate
from torchrl_marl_offline.evaluation.offline import FittedQSettings, compare_offline
from torchrl_marl_offline.evaluation.offline.answers import LOGGED
from torchrl_marl_offline.evaluation.offline.estimates import BY_CRITICS
from torchrl_marl_offline.evaluation.run_report import format_table
from torchrl_marl_offline.evaluation.video import check_video_path, record_video
from torchrl_marl_offline.training.run.saved_policies import load_policy


def run(parsed: argparse.Namespace) -> None:
    """Evaluate in an environment or from logged data, and print what was found.

    Raises:
        ValueError: options of the one that were given with the other.
    """
    from_data = parsed.dataset is not None
    strange = OF_PLAYING if from_data else OF_DATA
    for name in (name for name in strange if getattr(parsed, name) is not None):
        other = "plays, and --dataset does not" if from_data else "is of --dataset SOURCE"
        raise ValueError(f"{flag(name)} {other}; leave one of them out.")
    if from_data:
        _from_data(parsed)
        return
    for name, default in OF_PLAYING.items():
        setattr(parsed, name, default if getattr(parsed, name) is None else getattr(parsed, name))
    if len(parsed.policy) > 1:
        raise ValueError("One policy is played at a time; give one, or --dataset SOURCE to compare several.")
    parsed.policy = parsed.policy[0]
    _play(parsed)


def _from_data(parsed: argparse.Namespace) -> None:
    """Compare policies with the team that logged the data, and print what was found."""
    given = {name: getattr(parsed, name) for name in ("decomposition", "memory", "steps", "resamples")}
    given = {name: value for name, value in given.items() if value is not None}
    if given and parsed.by is not None and not set(BY_CRITICS) & set(parsed.by):
        raise ValueError(
            f"--{min(given)} is read by fqe and dr alone, and --by is {' '.join(parsed.by)}; leave it out."
        )
    fitting = replace(FittedQSettings(), **given)
    options: dict[str, Any] = {
        "mode": parsed.mode,
        "seed": parsed.seed,
        "progress": not parsed.json,
        "fitting": fitting,
    }
    options |= {name: getattr(parsed, name) for name in ("by", "gamma") if getattr(parsed, name) is not None}
    loaded = {name: load_policy(path) for name, path in named_policies(parsed.policy).items()}
    found = compare_offline(loaded, load_dataset(parsed.dataset), **options)
    facts = {"policies": list(map(str, parsed.policy)), "dataset": parsed.dataset, "mode": parsed.mode}
    print(json.dumps(facts | found.to_dict(), indent=1) if parsed.json else found.table())


def named_policies(paths: list[Path]) -> dict[str, Path]:
    """Return paths by their last part, or as they are where two have the same, or one that of the logged team.

    Raises:
        ValueError: a path is given twice.
    """
    if len(set(paths)) < len(paths):
        raise ValueError("A policy is given twice; give each once.")
    short = [Path(path).name.removesuffix(".pt") for path in paths]
    full = [f"./{path}" if str(path) == LOGGED else str(path) for path in paths]
    return dict(zip(short if len(set(short)) == len(paths) and LOGGED not in short else full, paths))


def _play(parsed: argparse.Namespace) -> None:
    check_device(parsed.device)
    if parsed.video is not None:
        check_video_path(parsed.video, "--video")
    elif parsed.video_size is not None:
        raise ValueError("--video-size is of the video; give --video FILE, or leave it out.")
    saved = load_policy(parsed.policy, device=parsed.device)
    task = parsed.env or saved.spec.task
    if task is None:
        raise ValueError(f"{parsed.policy} does not say which task it was made for; name one with --env.")
    options = saved.metadata.get("task_options", {}) if parsed.env is None else {}
    env = make_env(task, num_envs=min(parsed.num_envs, parsed.episodes), device=parsed.device, **options)
    if not saved.spec.fits(env.task_spec):
        raise PolicyError(misfit(saved.spec, env.task_spec))
    result = evaluate(saved.policy, env, episodes=parsed.episodes, seed=parsed.seed, mode=parsed.mode)
    facts = {"policy": str(parsed.policy), "env": task, "mode": parsed.mode, "seed": parsed.seed}
    print(json.dumps(facts | result.summary(), indent=1) if parsed.json else _table(task, result))
    if parsed.video is not None:
        options = {"seed": parsed.seed, "mode": parsed.mode, "size": parsed.video_size or 256}
        print(f"video: {record_video(env, saved.policy, parsed.video, **options)}")


def _table(task: str, result: Evaluation) -> str:
    """Return what was measured, in lines of a terminal's width."""
    row, way = result.summary(), "deterministic" if result.mode == "mode" else "stochastic"
    interval = ""
    if len(result.returns) > 1:
        _, low, high = result.confidence_interval()
        interval = f"[{low:.4g}, {high:.4g}]"
    rows = [["return of an episode", result.mean, interval, result.std]]
    if result.normalized is not None:
        rows.append(["normalized score", result.normalized, None, None])
    if result.success is not None:
        bounds = f"[{row['success_low']:.3f}, {row['success_high']:.3f}]" if "success_low" in row else ""
        rows.append(["success rate", row["success"], bounds, None])
    lengths = result.lengths.double()
    rows.append(["steps of an episode", lengths.mean().item(), None, lengths.std(correction=0).item()])
    header = ["", "mean", "95 % interval", "standard deviation"]
    return f"{task}, {len(result.returns)} episodes, {way} policy\n{format_table(rows, header=header)}"
