"""Environment steps per second, through TorchRL's ``step`` and ``step_and_maybe_reset``.

    python benchmarks/envs.py --json envs.json

Actions are given (drawn beforehand), so that the environment alone is measured. Each figure is the median of
``--repeats`` turns, with the 10th and 90th percentile beside it. The last rows compare raw VMAS with
``make_env("vmas/...")``, alternating in one process. ``--clock cpu`` counts the process's CPU time, not the wall's:
on one thread of a busy machine that is what an idle one would show. ``games/hanabi`` also has a row for the rules
alone: legal actions, the first of which is taken, and the step, with new decks every 40 turns; in the environment most
drawn actions are illegal and taken as playing the oldest card, so that games are short and resets many. Where
``lbforaging``, ``rware``, ``lle`` and ``overcooked`` are installed, the games ``--packaged`` are played by these, one
game with resets in the same process, and by ``games/foraging``, ``rware/*``, ``lle/*`` and ``overcooked/*``. Of
``overcooked`` these are the rules and the encoding of states, without its own environment's planner.
"""

from __future__ import annotations

import re
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from arguments import as_count, as_device, as_few, as_size, as_threads, run_script
from measuring import CLOCKS, Play, alternate, benchmark_parser, rates, report, with_spread

from torchrl_marl_offline.envs import make_env
from torchrl_marl_offline.envs.foraging import foraging_options
from torchrl_marl_offline.envs.hanabi_rules import HanabiRules

ACTION = ("agents", "action")
TASKS = (
    "mpe/simple_spread",
    "mpe/simple_tag",
    "mpe/simple_world",
    "games/grid_navigation",
    "games/bridge",
    "games/hanabi",
    "games/foraging",
)


PACKAGES = {
    "lbforaging": "lbforaging",
    "rware": "rware",
    "lle": "laser-learning-environment",
    "overcooked": "overcooked",
}
"""Module -> distribution."""
PACKAGE_STEPS = 16
"""Steps of one game of a package that count as one: it plays one game, where others play many."""


def stepper(task: str, num_envs: int, device: str, *, reset: bool, **options) -> Play:
    """Return a function that plays a number of steps with given actions."""
    env = make_env(task, num_envs=num_envs, device=device, seed=0, **options)
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


def hanabi_rules(num_envs: int, device: str) -> Play:
    """Return a function that plays turns of Hanabi by the rules alone."""
    rules, order = HanabiRules(2, device=device), torch.rand(num_envs, 50, device=device)
    state = {"table": rules.start(rules.shuffled(order)), "turn": 0}

    def play(steps: int) -> None:
        table = state["table"]
        for _ in range(steps):
            state["turn"] += 1
            if state["turn"] % 40 == 0:
                table = rules.start(rules.shuffled(order))
            table = rules.step(table, rules.legal(table).to(torch.uint8).argmax(-1)).table
        state["table"] = table

    return play


def raw_vmas(scenario: str, num_envs: int, device: str, *, reset: bool) -> Play:
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


def of_package(name: str) -> tuple[str, str, dict[str, Any]]:
    """Return the package of a game's name, and our task and its options for it."""
    if name.startswith("Foraging"):
        return "lbforaging", "games/foraging", foraging_options(name)
    if name.startswith(("lle/", "overcooked/")):
        return name.partition("/")[0], name, {}
    layout, agents, difficulty = re.fullmatch(r"rware-(\w+)-(\d+)ag(?:-(easy|hard))?-v2", name).groups()
    return "rware", f"rware/{layout}", {"agents": int(agents), "difficulty": difficulty or "normal"}


def packaged(name: str) -> Play:
    """Return a function that plays one game of a package with given actions, and begins anew at its end."""
    if name.startswith("lle/"):
        return packaged_lasers(name)
    if name.startswith("overcooked/"):
        return packaged_kitchen(name)
    import gymnasium

    import_module(of_package(name)[0])  # registers its games
    game = gymnasium.make(name, disable_env_checker=True).unwrapped
    game.reset(seed=0)
    kinds, generator = game.action_space, torch.Generator().manual_seed(0)
    actions = torch.randint(int(kinds[0].n), (997, len(kinds)), generator=generator).tolist()
    state = {"step": 0}

    def play(steps: int) -> None:
        for _ in range(PACKAGE_STEPS * steps):
            state["step"] += 1
            if game.step(actions[state["step"] % 997])[2]:
                game.reset()

    return play


def packaged_lasers(name: str) -> Play:
    """Return a function that plays one world of ``lle`` with given actions; to stay, where they are illegal."""
    import lle

    made = make_env(name)
    game = lle.LLE.from_str(made.world).obs_type("flattened").state_type("normalized-state").build()
    game.reset()
    generator = torch.Generator().manual_seed(0)
    actions = torch.randint(game.n_actions, (997, game.n_agents), generator=generator).numpy()
    state = {"step": 0, "began": 0}

    def play(steps: int) -> None:
        for _ in range(PACKAGE_STEPS * steps):
            state["step"] += 1
            drawn, legal = actions[state["step"] % 997], game.available_actions()
            joint = [each if own[each] else lle.Action.STAY.value for each, own in zip(drawn, legal)]
            if game.step(joint).done or state["step"] - state["began"] >= made.max_episode_steps:
                state["began"] = state["step"]
                game.reset()

    return play


def packaged_kitchen(name: str) -> Play:
    """Return a function that plays one kitchen of ``overcooked`` with given actions, and begins anew after 400."""
    from overcooked.mdp import Action, OvercookedGridworld

    rules = OvercookedGridworld.from_layout_name(name.partition("/")[2])
    drawn = torch.randint(len(Action.ALL_ACTIONS), (997, 2), generator=torch.Generator().manual_seed(0)).tolist()
    actions = [[Action.ALL_ACTIONS[each] for each in joint] for joint in drawn]
    state = {"step": 0, "kitchen": rules.get_standard_start_state()}

    def play(steps: int) -> None:
        for _ in range(PACKAGE_STEPS * steps):
            state["step"] += 1
            state["kitchen"] = rules.get_state_transition(state["kitchen"], actions[state["step"] % 997])[0]
            if state["step"] % 400 == 0:
                state["kitchen"] = rules.get_standard_start_state()
            rules.lossless_state_encoding(state["kitchen"])

    return play


def main() -> None:
    """Measure, print, and write ``--json``."""
    parser = benchmark_parser(__doc__, clock=True)
    parser.add_argument("--device", type=as_device, default="cpu", help="where the environments run")
    parser.add_argument("--repeats", type=as_few, default=5, help="measurements of each figure")
    parser.add_argument(
        "--steps", type=as_count, default=200, help="steps of one measurement (a quarter of it for VMAS)"
    )
    parser.add_argument("--threads", type=as_threads, default=torch.get_num_threads(), help="torch's CPU threads")
    parser.add_argument("--num-envs", type=as_size, nargs="+", default=[1, 64, 1024])
    parser.add_argument(
        "--vmas", nargs="*", default=["balance", "simple_spread"], help="scenarios to compare with raw VMAS"
    )
    parser.add_argument(
        "--packaged",
        nargs="*",
        default=[
            "Foraging-8x8-2p-1f-v3",
            "Foraging-2s-8x8-2p-2f-coop-v3",
            "Foraging-2s-10x10-3p-3f-v3",
            "rware-tiny-2ag-v2",
            "rware-small-4ag-v2",
            "lle/mutual-0",
            "lle/level6",
            "overcooked/cramped_room",
            "overcooked/counter_circuit",
        ],
        help="games of lbforaging, rware, lle and overcooked to compare with these, where they are installed",
    )
    parser.add_argument("--tasks", nargs="*", default=TASKS, help="tasks to measure alone")
    args = parser.parse_args()
    if args.quick:
        args.repeats, args.steps, args.num_envs = 2, 8, [4]
    torch.set_num_threads(args.threads)
    results = []

    def record(task: str, num_envs: int, steps: int, plays: dict[str, Play]) -> None:
        for what, seconds in alternate(plays, repeats=args.repeats, count=steps, clock=CLOCKS[args.clock]).items():
            rate = rates(seconds, PACKAGE_STEPS if what in PACKAGES else num_envs)
            results.append({"task": task, "num_envs": num_envs, "what": what, "env_steps_per_second": rate})
            print(f"{task:30} {num_envs:5} envs  {what:22} {with_spread(rate)} /s", flush=True)

    for task in args.tasks:
        for num_envs in args.num_envs:
            plays = {
                "step": stepper(task, num_envs, args.device, reset=False),
                "step_and_maybe_reset": stepper(task, num_envs, args.device, reset=True),
            }
            if task == "games/hanabi":
                plays["rules alone"] = hanabi_rules(num_envs, args.device)
            record(task, num_envs, args.steps, plays)
    for scenario in args.vmas:
        num_envs = args.num_envs[-1]
        plays = {
            "raw VMAS": raw_vmas(scenario, num_envs, args.device, reset=False),
            "step": stepper(f"vmas/{scenario}", num_envs, args.device, reset=False),
            "raw VMAS with resets": raw_vmas(scenario, num_envs, args.device, reset=True),
            "step_and_maybe_reset": stepper(f"vmas/{scenario}", num_envs, args.device, reset=True),
        }
        record(f"vmas/{scenario}", num_envs, max(args.steps // 4, 1), plays)
    for name in args.packaged:
        (package, task, options), num_envs = of_package(name), args.num_envs[-1]
        if find_spec(package):
            plays = {
                package: packaged(name),
                "step": stepper(task, num_envs, args.device, reset=False, **options),
                "step_and_maybe_reset": stepper(task, num_envs, args.device, reset=True, **options),
            }
            if package == "lle":  # a world in which an agent has died stands still until it is reset
                del plays["step"]
            record(name, num_envs, args.steps, plays)
    settings = {"device": args.device, "torch_threads": args.threads, "clock": args.clock}
    report(
        args.json, results, libraries=("vmas", *(PACKAGES[name] for name in PACKAGES if find_spec(name))), **settings
    )


if __name__ == "__main__":
    run_script(main)
