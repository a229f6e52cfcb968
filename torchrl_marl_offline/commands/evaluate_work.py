"""What ``marl-offline evaluate`` does."""

from __future__ import annotations

import argparse
import json

from torchrl_marl_offline.commands.script_settings import check_device
from torchrl_marl_offline.data.policy_fit import PolicyError, misfit
from torchrl_marl_offline.envs import make_env
from torchrl_marl_offline.evaluation.in_environments import Evaluation, evaluate
from torchrl_marl_offline.evaluation.run_report import format_table
from torchrl_marl_offline.evaluation.video import check_video_path, record_video
from torchrl_marl_offline.training.run.saved_policies import load_policy


def run(parsed: argparse.Namespace) -> None:
    """Play, and print what was measured."""
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
    differing = [name for name, size in saved.spec.to_dict().items() if getattr(env.task_spec, name) != size]
    if set(differing) - {"task"}:
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
