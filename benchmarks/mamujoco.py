"""Environment steps per second of MA-MuJoCo: ours, gymnasium-robotics, and TorchRL's wrapper around it.

    python benchmarks/mamujoco.py --json mamujoco.json

All of them play the same task with given uniform actions and begin anew where an episode ends; they alternate in one
process. gymnasium-robotics has one environment. TorchRL's ``PettingZooWrapper`` takes neither its info nor its
observations of unequal sizes, so a thin layer drops the former and pads the latter. ``mujoco.rollout`` is the simulator
alone: no observations, no rewards, no ends and no warm starts.
With ``--device cuda`` ours runs on MuJoCo Warp, at more environments.
"""

from __future__ import annotations

import numpy as np
import torch
from arguments import as_amount, as_device, as_few, as_size, as_threads, run_script
from measuring import Play, alternate, benchmark_parser, rates, report, with_spread

from torchrl_marl_offline.envs import make_env
from torchrl_marl_offline.envs.mamujoco.names import split_name
from torchrl_marl_offline.envs.mamujoco.reference import make_reference

ACTION = ("agents", "action")
KINDS = 16  # different actions, drawn beforehand


def batched(task: str, num_envs: int, **options) -> Play:
    """Our environment, through TorchRL's ``step_and_maybe_reset``."""
    env = make_env(f"mamujoco/{task}", num_envs=num_envs, seed=0, **options)
    env.set_seed(0)
    return _through_torchrl(env)


def wrapped(task: str) -> Play:
    """TorchRL's wrapper around gymnasium-robotics."""
    import gymnasium
    from pettingzoo.utils import BaseParallelWrapper
    from torchrl.envs.libs.pettingzoo import PettingZooWrapper

    class Padded(BaseParallelWrapper):
        def __init__(self, env) -> None:
            super().__init__(env)
            self.width = max(env.observation_space(agent).shape[0] for agent in env.possible_agents)

        def observation_space(self, agent: str):
            return gymnasium.spaces.Box(-np.inf, np.inf, (self.width,), np.float64)

        def padded(self, observations: dict) -> dict:
            return {name: np.pad(each, (0, self.width - len(each))) for name, each in observations.items()}

        def reset(self, seed=None, options=None):
            return self.padded(self.env.reset(seed=seed, options=options)[0]), {name: {} for name in self.agents}

        def step(self, actions):
            observations, *rest, _ = self.env.step(actions)
            return self.padded(observations), *rest, {name: {} for name in self.possible_agents}

    reference = Padded(make_reference(*split_name(task)))
    env = PettingZooWrapper(reference, group_map={"agents": list(reference.possible_agents)}, return_state=True)
    return _through_torchrl(env)


def _through_torchrl(env) -> Play:
    actions = [env.full_action_spec[ACTION].rand() for _ in range(KINDS)]
    state = {"td": env.reset()}

    def play(steps: int) -> None:
        td = state["td"]
        for i in range(steps):
            td = env.step_and_maybe_reset(td.set(ACTION, actions[i % KINDS]))[1]
        state["td"] = td

    return play


def raw(task: str) -> Play:
    """gymnasium-robotics."""
    env = make_reference(*split_name(task))
    actions = [{name: env.action_space(name).sample() for name in env.possible_agents} for _ in range(KINDS)]
    env.reset(seed=0)

    def play(steps: int) -> None:
        for i in range(steps):
            *_, terminated, truncated, _ = env.step(actions[i % KINDS])
            env.state()
            if any(terminated.values()) or any(truncated.values()):
                env.reset()

    return play


def simulator(task: str, num_envs: int, threads: int) -> Play:
    """``mujoco.rollout``, from state to state."""
    import mujoco
    from mujoco.rollout import Rollout

    base = make_reference(*split_name(task)).single_agent_env.unwrapped
    base.reset(seed=0)
    kind = mujoco.mjtState.mjSTATE_FULLPHYSICS.value
    start = np.empty(mujoco.mj_stateSize(base.model, kind))
    mujoco.mj_getState(base.model, base.data, start, kind)
    datas = [mujoco.MjData(base.model) for _ in range(threads)]
    pool = Rollout(nthread=threads if threads > 1 else 0)
    actions = np.random.default_rng(0).uniform(-1, 1, (KINDS, num_envs, 1, base.model.nu)) * base.action_space.high
    actions = actions.repeat(base.frame_skip, axis=2)
    state = {"now": np.tile(start, (num_envs, 1))}

    def play(steps: int) -> None:
        for i in range(steps):
            state["now"] = pool.rollout(base.model, datas, state["now"], actions[i % KINDS])[0][:, -1]

    return play


def main() -> None:
    """Measure, print, and write ``--json``."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--task", default="6halfcheetah")
    parser.add_argument("--device", type=as_device, default="cpu", help="where our environments run")
    parser.add_argument("--threads", type=as_threads, default=2, help="of the simulator on the CPU; torch has one")
    parser.add_argument("--seconds", type=as_amount, default=2.0, help="of one measurement")
    parser.add_argument("--repeats", type=as_few, default=5)
    parser.add_argument("--num-envs", type=as_size, nargs="+", help="by default 1, 64 and 1,024, on a GPU up to 32,768")
    args = parser.parse_args()
    if args.quick:
        args.seconds, args.repeats, args.num_envs = 0.05, 2, args.num_envs or [4]
    torch.set_num_threads(1)
    cpu = torch.device(args.device).type == "cpu"
    sizes = args.num_envs or ((1, 64, 1024) if cpu else (1024, 8192, 32768))
    plays = {"gymnasium-robotics": (raw(args.task), 1), "PettingZooWrapper": (wrapped(args.task), 1)}
    for size in sizes:
        options = {"threads": args.threads} if cpu else {"device": args.device}
        plays[f"make_env, {size}"] = (batched(args.task, size, **options), size)
        if cpu:
            plays[f"mujoco.rollout alone, {size}"] = (simulator(args.task, size, args.threads), size)
    found = alternate(
        {name: play for name, (play, _) in plays.items()}, repeats=args.repeats, seconds=args.seconds, multiple=3
    )
    steps = {name: rates(seconds, plays[name][1]) for name, seconds in found.items()}
    print(f"mamujoco/{args.task}; {args.threads} threads; {args.device}")
    baseline = steps["PettingZooWrapper"]["median"]
    for name, each in steps.items():
        print(f"{name:28} {with_spread(each)} /s  {each['median'] / baseline:6.1f} x wrapper")
    results = {"task": args.task, "device": args.device, "threads": args.threads, "env_steps_per_second": steps}
    report(args.json, results, libraries=("mujoco", "gymnasium-robotics"))


if __name__ == "__main__":
    run_script(main)
