"""Environment steps per second, through TorchRL's ``step`` and ``step_and_maybe_reset``.

    python benchmarks/envs.py --json envs.json

Actions are given (drawn beforehand), so that the environment alone is measured. Each figure is the median of
``--repeats`` runs, with the fastest and the slowest beside it. The last rows compare raw VMAS with
``make_env("vmas/...")``, alternating in one process. ``--clock cpu`` counts the process's CPU time, not the wall's:
on one thread of a busy machine that is what an idle one would show.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch

from torchrl_marl_offline.envs import make_env

ACTION = ("agents", "action")
TASKS = ("mpe/simple_spread", "mpe/simple_tag", "mpe/simple_world", "games/grid_navigation", "games/bridge")


def stepper(task: str, num_envs: int, device: str, *, reset: bool) -> Callable[[int], None]:
    """Return a function that plays a number of steps with given actions."""
    env = make_env(task, num_envs=num_envs, device=device, seed=0)
    env.set_seed(0)
    actions = [env.full_action_spec[ACTION].rand() for _ in range(16)]
    state = {"td": env.reset()}

    def play(steps: int) -> None:
        td = state["td"]
        for i in range(steps):
            td.set(ACTION, actions[i % 16])
            td = env.step_and_maybe_reset(td)[1] if reset else env.step(td)["next"]
        state["td"] = td

    return play


def raw_vmas(scenario: str, num_envs: int, device: str, *, reset: bool) -> Callable[[int], None]:
    """Return a function that plays raw VMAS with given actions; ``reset`` begins anew what is done, one by one."""
    import vmas

    env = vmas.make_env(scenario, num_envs=num_envs, device=device, continuous_actions=True, seed=0, max_steps=100)
    actions = [env.get_random_actions() for _ in range(16)]
    env.reset()

    def play(steps: int) -> None:
        for i in range(steps):
            done = env.step(actions[i % 16])[2]
            if reset and done.any():
                if done.all():
                    env.reset()
                else:
                    for index in done.nonzero().flatten().tolist():
                        env.reset_at(index, return_observations=False)

    return play


def measure(
    plays: dict[str, Callable[[int], None]],
    *,
    num_envs: int,
    steps: int,
    repeats: int,
    device: str,
    clock: Callable[[], float],
) -> dict:
    """Return environment steps per second of each, measured in alternation."""
    rates: dict[str, list[float]] = {name: [] for name in plays}
    for repeat in range(repeats + 1):  # the first is a warm-up
        for name, play in plays.items():
            started = clock()
            play(steps)
            if device != "cpu":
                torch.cuda.synchronize()
            if repeat:
                rates[name].append(steps * num_envs / (clock() - started))
    return {
        name: {"median": statistics.median(each), "lowest": min(each), "highest": max(each), "repeats": repeats}
        for name, each in rates.items()
    }


def machine(device: str) -> dict:
    """Return where this ran."""
    cpu = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), cpu)
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "device": device if device == "cpu" else torch.cuda.get_device_name(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "torchrl", "tensordict", "vmas")},
    }


def main() -> None:
    """Measure, print, and write ``--json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file to write the results to")
    parser.add_argument("--device", default="cpu", help="where the environments run")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each figure")
    parser.add_argument("--steps", type=int, default=200, help="steps of one measurement (a quarter of it for VMAS)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch's CPU threads")
    parser.add_argument(
        "--vmas", nargs="*", default=["balance", "simple_spread"], help="scenarios to compare with raw VMAS"
    )
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="which time is counted")
    parser.add_argument("--tasks", nargs="*", default=TASKS, help="tasks to measure alone")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results = []

    def record(task: str, num_envs: int, steps: int, plays: dict[str, Callable[[int], None]]) -> None:
        clock = time.process_time if args.clock == "cpu" else time.perf_counter
        settings = {"steps": steps, "repeats": args.repeats, "device": args.device, "clock": clock}
        rates = measure(plays, num_envs=num_envs, **settings)
        for what, rate in rates.items():
            results.append({"task": task, "num_envs": num_envs, "what": what, "env_steps_per_second": rate})
            spread = f"{rate['lowest']:>11,.0f} to {rate['highest']:>11,.0f}"
            print(f"{task:24} {num_envs:5} envs  {what:22} {rate['median']:>11,.0f} /s  ({spread})", flush=True)

    for task in args.tasks:
        for num_envs in (1, 64, 1024):
            plays = {
                "step": stepper(task, num_envs, args.device, reset=False),
                "step_and_maybe_reset": stepper(task, num_envs, args.device, reset=True),
            }
            record(task, num_envs, args.steps, plays)
    for scenario in args.vmas:
        plays = {
            "raw VMAS": raw_vmas(scenario, 1024, args.device, reset=False),
            "step": stepper(f"vmas/{scenario}", 1024, args.device, reset=False),
            "raw VMAS with resets": raw_vmas(scenario, 1024, args.device, reset=True),
            "step_and_maybe_reset": stepper(f"vmas/{scenario}", 1024, args.device, reset=True),
        }
        record(f"vmas/{scenario}", 1024, max(args.steps // 4, 1), plays)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        report = {"command": sys.argv, "machine": machine(args.device), "results": results}
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
