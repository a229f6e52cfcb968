"""Evaluate a saved policy in an environment.

    marl-offline evaluate runs/my-run --episodes 1000
    marl-offline evaluate policies/expert.pt --env mpe/simple_spread --video episode.gif

The policy is a file of :func:`~torchrl_marl_offline.save_policy`, or a run's folder that holds ``policy.pt``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Annotated

from torchrl_marl_offline.commands.parser import OneSentenceParser
from torchrl_marl_offline.core.errors import exit_status
from torchrl_marl_offline.core.paths import user_path
from torchrl_marl_offline.core.ranges import SIZE, argument, option_of
from torchrl_marl_offline.data.policy_fit import PolicyError, misfit
from torchrl_marl_offline.envs import make_env
from torchrl_marl_offline.training.command_line import check_device
from torchrl_marl_offline.training.evaluation import Evaluation, evaluate
from torchrl_marl_offline.training.saved_policies import load_policy
from torchrl_marl_offline.training.video import record_video


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line, play, print what was measured, and return the exit status.

    Args:
        arguments: by default those of the process.
    """
    parsed = make_parser().parse_args(arguments)
    return exit_status(lambda: _run(parsed))


def _run(parsed: argparse.Namespace) -> None:
    check_device(parsed.device)
    if parsed.video is not None and parsed.video.suffix != ".gif":
        raise ValueError(f"--video writes a GIF; name a file *.gif, got {parsed.video}.")
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
        print(f"video: {record_video(env, saved.policy, parsed.video, seed=parsed.seed, mode=parsed.mode)}")


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


def make_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = OneSentenceParser(
        prog="marl-offline evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("policy", type=user_path, help="file of a policy, or folder of a run")
    parser.add_argument("--env", help="family/task; by default the one the policy was made for")
    parser.add_argument("--episodes", type=argument(option_of(evaluate, "episodes")), default=1000)
    parser.add_argument(
        "--num-envs", type=argument(Annotated[int, SIZE]), default=200, help="environments that run at once"
    )
    parser.add_argument("--mode", choices=["mode", "sample"], default="mode", help="how the policy chooses")
    parser.add_argument("--seed", type=argument(option_of(evaluate, "seed")), default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--video", type=user_path, help="also write a GIF of one episode")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser
