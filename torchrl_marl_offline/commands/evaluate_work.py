"""What ``marl-offline evaluate`` does."""

from __future__ import annotations

import argparse
import json

from torchrl_marl_offline.commands.script_settings import check_device
from torchrl_marl_offline.data.policy_fit import PolicyError, misfit
from torchrl_marl_offline.envs import make_env
from torchrl_marl_offline.evaluation.in_environments import Evaluation, evaluate
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
    print(json.dumps(facts | result.summary(), indent=1) if parsed.json else _sentence(task, result))
    if parsed.video is not None:
        options = {"seed": parsed.seed, "mode": parsed.mode, "size": parsed.video_size or 256}
        print(f"video: {record_video(env, saved.policy, parsed.video, **options)}")


def _sentence(task: str, result: Evaluation) -> str:
    lines = [f"{task}, {len(result.returns)} episodes, {'the mode' if result.mode == 'mode' else 'sampled'}:"]
    interval = ""
    if len(result.returns) > 1:
        _, low, high = result.confidence_interval()
        interval = f" [{low:.4g}, {high:.4g}] (95 % interval of the mean)"
    lines.append(f"return {result.mean:.4g}{interval}, standard deviation {result.std:.4g}")
    if result.normalized is not None:
        lines.append(f"normalized score {result.normalized:.4g}")
    if result.success is not None:
        row = result.summary()
        bounds = f" [{row['success_low']:.3f}, {row['success_high']:.3f}]" if "success_low" in row else ""
        lines.append(f"success {row['success']:.3f}{bounds}")
    lines.append(f"length {result.lengths.double().mean().item():.1f}")
    return "\n".join(lines)
