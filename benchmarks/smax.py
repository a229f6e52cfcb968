"""Environment steps per second of JaxMARL's games: our environments beside pure JAX.

    python benchmarks/smax.py --json smax.json
    python benchmarks/smax.py --tasks jaxmarl/overcooked_v2 jaxmarl/storm --num-envs 1024 --json jaxmarl.json

Both play uniformly random legal actions and begin anew where a game ends, in alternation in one process. Pure JAX is
JaxMARL's own ``step`` (with its auto-reset and its own time limits) and the choice of actions, vmapped and jitted
together: one call per step, or ``jax.lax.scan`` over 16 steps. Ours is TorchRL's ``rand_action`` and
``step_and_maybe_reset``. ``--clock cpu`` counts the process's CPU time, all its threads together.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from arguments import as_amount, as_count, as_device, as_few, as_size, run_script
from measuring import CLOCKS, Play, alternate, benchmark_parser, rates, report, with_spread

from torchrl_marl_offline.envs import make_env

SCAN = 16


def ours(task: str, num_envs: int, device: str) -> Play:
    """Our environment, through TorchRL."""
    env = make_env(task, num_envs=num_envs, seed=0, device=device)
    now = {"td": env.reset()}

    def play(steps: int) -> None:
        td = now["td"]
        for _ in range(steps):
            td = env.step_and_maybe_reset(env.rand_action(td))[1]
        now["td"] = td
        if td.device.type == "cuda":
            torch.cuda.synchronize()

    return play


def made(task: str) -> tuple[Any, Any]:
    """Return the game of JaxMARL that a task is, and what returns each agent's legal actions in a state."""
    import jax

    family, _, name = task.partition("/")
    if family == "smax":
        from jaxmarl.environments.smax import HeuristicEnemySMAX, map_name_to_scenario

        game = HeuristicEnemySMAX(scenario=map_name_to_scenario(name))
        return game, game.get_avail_actions
    from jaxmarl import make

    game = make(name)
    every = {agent: jax.numpy.ones(game.action_space(agent).n) for agent in game.agents}
    return game, getattr(game, "get_legal_moves", lambda state: every)


def pure(task: str, num_envs: int, *, scan: bool) -> Play:
    """JaxMARL alone, on JAX's default device."""
    import jax

    game, legal_of = made(task)

    def one(key, state):
        key, for_actions, for_step = jax.random.split(key, 3)
        keys, legal = jax.random.split(for_actions, len(game.agents)), legal_of(state)
        actions = {
            agent: jax.random.categorical(keys[i], jax.numpy.log(legal[agent])) for i, agent in enumerate(game.agents)
        }
        seen, state, rewards, dones, _ = game.step(for_step, state, actions)
        return (key, state), (seen, rewards, dones)

    step = jax.vmap(one)
    keys = jax.random.split(jax.random.PRNGKey(0), num_envs)
    _, state = jax.jit(jax.vmap(game.reset))(keys)
    now = {"carry": (keys, state)}
    if scan:
        # a digest of what is seen keeps the compiler from leaving it out
        def body(carry, _):
            carry, outcome = step(*carry)
            return carry, jax.tree.map(lambda leaf: leaf.sum(), outcome)

        advance = jax.jit(lambda *carry: jax.lax.scan(body, carry, None, length=SCAN))
    else:
        advance = jax.jit(step)

    def play(steps: int) -> None:
        carry = now["carry"]
        for _ in range(max(1, steps // SCAN) if scan else steps):
            carry, outcome = advance(*carry)
        jax.block_until_ready((carry, outcome))
        now["carry"] = carry

    return play


def main() -> None:
    """Measure, print, and write ``--json``."""
    parser = benchmark_parser(__doc__, clock=True)
    parser.add_argument("--tasks", nargs="+", default=["smax/2s3z"], help="below smax/ or jaxmarl/")
    parser.add_argument("--device", type=as_device, default="cpu", help="of our environment; JAX has its own default")
    parser.add_argument("--num-envs", type=as_size, nargs="+", default=[64, 1024])
    parser.add_argument("--seconds", type=as_amount, default=1.0, help="of one measurement")
    parser.add_argument("--before", type=as_count, default=64, help="steps that are not measured")
    parser.add_argument("--alone", action="store_true", help="leave pure JAX out, which has to be compiled as well")
    parser.add_argument("--repeats", type=as_few, default=5)
    args = parser.parse_args()
    if args.quick:
        args.seconds, args.repeats, args.num_envs, args.before = 0.1, 2, [4], 16
    torch.set_num_threads(1)
    results = []
    for task in args.tasks:
        print(f"{task}; {args.device}")
        for num_envs in args.num_envs:
            steps = measured(task, num_envs, args)
            results.append({"task": task, "num_envs": num_envs, "env_steps_per_second": steps})
    report(args.json, results, libraries=("jax", "jaxmarl"), device=args.device, clock=args.clock)


def measured(task: str, num_envs: int, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Measure one task and print what came out: environment steps a second of each way to play it."""
    plays = {"make_env": ours(task, num_envs, args.device)}
    if not args.alone:
        plays["pure JAX, a call per step"] = pure(task, num_envs, scan=False)
        plays[f"pure JAX, {SCAN} steps per call"] = pure(task, num_envs, scan=True)
    for play in plays.values():
        play(args.before)  # spreads the ends of the games
    multiple = 1 if args.alone else SCAN
    found = alternate(plays, repeats=args.repeats, seconds=args.seconds, multiple=multiple, clock=CLOCKS[args.clock])
    steps = {name: rates(seconds, num_envs) for name, seconds in found.items()}
    best = max(each["median"] for each in list(steps.values())[1:] or steps.values())
    for name, each in steps.items():
        share = "" if args.alone else f"{100 * each['median'] / best:4.0f} % of the faster pure JAX"
        print(f"{num_envs:6} envs  {name:28} {with_spread(each)} /s  {share}", flush=True)
    return steps


if __name__ == "__main__":
    run_script(main)
