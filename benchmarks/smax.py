"""Environment steps per second of SMAX: our environment beside pure JAX.

    python benchmarks/smax.py --json smax.json

Both play uniformly random legal actions and begin anew where a battle ends, in alternation in one process. Pure JAX is
JaxMARL's own ``step`` (with its auto-reset) and the choice of actions, vmapped and jitted together: one call per step,
or ``jax.lax.scan`` over 16 steps. Ours is TorchRL's ``rand_action`` and ``step_and_maybe_reset``.
"""

from __future__ import annotations

import torch
from arguments import as_amount, as_device, as_few, as_size
from measuring import Play, alternate, benchmark_parser, rates, report, with_spread

from torchrl_marl_offline.envs import make_env

SCAN = 16


def ours(scenario: str, num_envs: int, device: str) -> Play:
    """Our environment, through TorchRL."""
    env = make_env(f"smax/{scenario}", num_envs=num_envs, seed=0, device=device)
    now = {"td": env.reset()}

    def play(steps: int) -> None:
        td = now["td"]
        for _ in range(steps):
            td = env.step_and_maybe_reset(env.rand_action(td))[1]
        now["td"] = td
        if td.device.type == "cuda":
            torch.cuda.synchronize()

    return play


def pure(scenario: str, num_envs: int, *, scan: bool) -> Play:
    """JaxMARL alone, on JAX's default device."""
    import jax
    from jaxmarl.environments.smax import HeuristicEnemySMAX, map_name_to_scenario

    game = HeuristicEnemySMAX(scenario=map_name_to_scenario(scenario))

    def one(key, state, legal):
        key, for_actions, for_step = jax.random.split(key, 3)
        keys = jax.random.split(for_actions, len(game.agents))
        actions = {
            agent: jax.random.categorical(keys[i], jax.numpy.log(legal[agent])) for i, agent in enumerate(game.agents)
        }
        seen, state, rewards, dones, _ = game.step(for_step, state, actions)
        return (key, state, game.get_avail_actions(state)), (seen, rewards, dones)

    step = jax.vmap(one)
    keys = jax.random.split(jax.random.PRNGKey(0), num_envs)
    _, state = jax.jit(jax.vmap(game.reset))(keys)
    now = {"carry": (keys, state, jax.vmap(game.get_avail_actions)(state))}
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
    parser = benchmark_parser(__doc__)
    parser.add_argument("--scenario", default="2s3z")
    parser.add_argument("--device", type=as_device, default="cpu", help="of our environment; JAX has its own default")
    parser.add_argument("--num-envs", type=as_size, nargs="+", default=[64, 1024])
    parser.add_argument("--seconds", type=as_amount, default=1.0, help="of one measurement")
    parser.add_argument("--repeats", type=as_few, default=5)
    args = parser.parse_args()
    if args.quick:
        args.seconds, args.repeats, args.num_envs = 0.1, 2, [4]
    torch.set_num_threads(1)
    print(f"smax/{args.scenario}; {args.device}")
    results = []
    for num_envs in args.num_envs:
        plays = {
            "make_env": ours(args.scenario, num_envs, args.device),
            "pure JAX, a call per step": pure(args.scenario, num_envs, scan=False),
            f"pure JAX, {SCAN} steps per call": pure(args.scenario, num_envs, scan=True),
        }
        for play in plays.values():
            play(64)  # spreads the ends of the battles
        found = alternate(plays, repeats=args.repeats, seconds=args.seconds, multiple=SCAN)
        steps = {name: rates(seconds, num_envs) for name, seconds in found.items()}
        best = max(each["median"] for name, each in steps.items() if name != "make_env")
        for name, each in steps.items():
            share = f"{100 * each['median'] / best:4.0f} % of the faster pure JAX"
            print(f"{num_envs:6} envs  {name:28} {with_spread(each)} /s  {share}", flush=True)
        results.append({"num_envs": num_envs, "env_steps_per_second": steps})
    settings = {"scenario": args.scenario, "device": args.device}
    report(args.json, results, libraries=("jax", "jaxmarl"), **settings)


if __name__ == "__main__":
    main()
