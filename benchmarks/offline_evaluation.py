"""Can a team's policies be judged by logs alone? Estimates against the truth by simulation.

    python benchmarks/offline_evaluation.py --output runs/offline_evaluation
    python benchmarks/offline_evaluation.py --report

Nine cases: in each, half of the episodes train policies (algorithms, settings, two lengths), the other half judge them.
The truth is the mean discounted return of 1,000 simulated episodes. ``cn2`` and ``bridge`` are recordings that must lie
in the folder ``TORCHRL_MARL_OFFLINE_DATA`` (``pymarl/cn-2-medium.h5``, ``bridge/mix.npz``); the others are recorded by
the command itself with scripted teams of mixed skill.

Stages, each resumable; a job is a case (and a decomposition), and none is done twice:

- ``policies``: train them and simulate them; files in ``--output``, drawn again where they are missing;
- ``budget``: fitted Q evaluation of 8 policies of two cases, by updates and batch;
- ``decompositions``: of 8 policies of each case, by each decomposition;
- ``all``: of every policy, by ``--best``; where policies draw, by importance sampling and doubly robust as well;
- ``models``: of every policy, by play in learned models;
- ``ranking``: of the recorded StarCraft battles ``3m`` (``pymarl/smac-3m-medium.h5``), whose game is not here: policies
  without a truth.

Arithmetic, in updates of a critic (2 x 64, batches of 64, 4,000 each; about half an update of a whole algorithm):

    policies        9 cases x 11 to 15 trainings x 1,000 updates           120,000 (whole updates, batches of 128)
    budget          2 cases x 9 policies x 5 resamples x 22,000          1,980,000
    decompositions  9 cases x 4 x 9 policies x 5 resamples x 4,000       6,480,000
    all             9 cases x 23 to 31 policies x 5 resamples x 4,000    4,860,000
    models          9 cases x 5 models x 4,000                             180,000 (2 networks of 2 x 128, 256 rows)
    ranking         1 x 23 policies x 5 resamples x 4,000                  460,000

Compiled, centralized critics of all policies of a case took 2 minutes of one core, mixers 3 to 4 times as long; so all
of it takes about three hours. ``--cases`` and ``--stages`` choose a part; what is there is reported.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from arguments import as_few, as_file, as_folder, run_script, script_parser
from common import machine, read_rows, run_jobs
from instability import CHEETAH, Gait, as_policy, best_gait
from measuring import markdown
from tensordict.nn import TensorDictModule
from torch import Tensor
from torchrl.envs import EnvBase

from torchrl_marl_offline import (
    OfflineDataset,
    OfflineMARLLoss,
    TaskSpec,
    Trainer,
    collect,
    compare_offline,
    from_arrays,
    load_dataset,
    make_env,
    make_loss,
)
from torchrl_marl_offline.algorithms import settings_of
from torchrl_marl_offline.core.layout import ACTION, OBSERVATION
from torchrl_marl_offline.envs import GridController, MixedSkill, SpreadController
from torchrl_marl_offline.envs.vmas_heuristics import VmasHeuristic
from torchrl_marl_offline.evaluation import (
    FittedQSettings,
    LearnedModelSettings,
    mean_confidence_interval,
    simulated_value,
)
from torchrl_marl_offline.training import Learner
from torchrl_marl_offline.training.run.saved_policies import load_policy, save_policy

FOLDER = "TORCHRL_MARL_OFFLINE_DATA"
RESULTS = Path(__file__).parent / "results" / "offline_evaluation.jsonl"
LENGTHS = (200, 1000)
"""Updates after which a policy is kept."""
SIMULATED = 1000
DECOMPOSITIONS = ("mixer", "centralized", "vdn", "independent")
BUDGETS: list[dict[str, Any]] = [
    *({"batch_size": 64, "steps": steps} for steps in (500, 1000, 2000, 4000, 8000)),
    {"batch_size": 256, "steps": 500},
    {"batch_size": 256, "steps": 2000},
    {"batch_size": 64, "steps": 2000, "tau": 0.2},
    {"batch_size": 64, "steps": 2000, "lr": 3e-3},
]
STAGES = ("policies", "budget", "decompositions", "all", "models", "ranking")

TRAININGS: dict[str, dict[str, Any]] = {
    "recipe": {},
    "recipe, TD + BRAC": {"algorithm": "recipe", "value_learning": "td", "extraction": "brac"},
    "recipe, SARSA": {"algorithm": "recipe", "value_learning": "sarsa"},
    "recipe, VDN, temperature 10": {"algorithm": "recipe", "decomposition": "vdn", "temperature": 10.0},
    "cloning": {},
    "td3_bc": {},
    "cql": {},
    "omar": {},
    "icq": {},
    "omac": {},
    "omiga": {},
    "omsd": {},
    "bcq": {"behaviour_hidden": (64, 64)},
    "mac_flow": {},
    "mac_flow_discrete": {},
}
"""Name -> settings; those that a task has no answer for are left out."""

Row = dict[str, Any]


# --------------------------------------------------------------------------------------------- cases


class Case(NamedTuple):
    """A dataset with its simulator.

    Attributes:
        task: of :func:`make_env`.
        options: of the environment.
        gamma: discount.
        mode: what is judged: the policies' deterministic action, or what they draw.
        record: makes the dataset.
        num_envs: environments of a simulation.
    """

    task: str
    options: dict[str, Any]
    gamma: float
    mode: str
    record: Callable[[Case], OfflineDataset]
    num_envs: int = 1000

    def env(self, num_envs: int | None = None, seed: int = 0) -> EnvBase:
        """Return its simulator."""
        return make_env(self.task, num_envs=num_envs or self.num_envs, seed=seed, **self.options)


def _published(path: str) -> Path:
    if FOLDER not in os.environ:
        raise SystemExit(f"error: set {FOLDER} to the folder that has {path}, or leave its case out (--cases).")
    return Path(os.environ[FOLDER]) / path


def recorded_grid(_: Case) -> OfflineDataset:
    """2,000 recorded episodes of a medium team."""
    return load_dataset(f"pymarl:{_published('pymarl/cn-2-medium.h5')}")


def recorded_bridge(case: Case) -> OfflineDataset:
    """1,000 recorded episodes of mixed teams; the time limit, which the recording calls an end, is a limit here."""
    with _published("bridge/mix.npz").open("rb") as stream:
        recorded = dict(np.lib.npyio.NpzFile(stream, allow_pickle=False))
    ended = recorded["terminated"][:, :-1, 0].astype(bool)
    played = np.cumsum(ended, 1) - ended == 0
    limit = np.broadcast_to(np.arange(played.shape[1]) == played.shape[1] - 1, played.shape)
    state, following = recorded["state"][:, :-1][played], recorded["state"][:, 1:][played]
    position, goal = following.reshape(-1, 2, 2, 2)[:, :, 0], following.reshape(-1, 2, 2, 2)[:, :, 1]
    distance = np.linalg.norm(goal - position, axis=-1).mean(1)
    reward = np.where(limit[played], -0.1 * distance, recorded["reward"][:, :-1, 0][played])  # the limit's was left out
    return from_arrays(
        observations=np.repeat(state[:, None], 2, 1),
        next_observations=np.repeat(following[:, None], 2, 1),
        state=state,
        next_state=following,
        actions=recorded["actions"][:, :-1, :, 0][played],
        rewards=reward.astype(np.float32),
        terminals=(ended & ~limit)[played],
        truncations=limit[played],
        spec=case.env(1).task_spec,
    )


def mixed(case: Case, policies: Sequence[Any], shares: Sequence[float], episodes: int) -> OfflineDataset:
    """Record episodes of one of the policies each."""
    policy = MixedSkill(policies, probabilities=shares, seed=9)
    return collect(case.env(min(case.num_envs, episodes)), policy, episodes=episodes, seed=0)


def grid(case: Case) -> OfflineDataset:
    """Walkers: optimal with a third of the actions random, greedy, random."""
    kinds = [("optimal", 0.33), ("greedy", 0.1), ("random", 0.0)]
    policies = [GridController(kind, epsilon=epsilon, seed=i) for i, (kind, epsilon) in enumerate(kinds)]
    return mixed(case, policies, (0.4, 0.3, 0.3), 2000)


def spread(case: Case) -> OfflineDataset:
    """To fixed landmarks, straight or blown off course, with noise."""
    offsets = [(0.0, 0.0), (0.6, 0.3), (0.6, -0.3)]
    policies = [SpreadController("fixed_assignment", noise=0.3, offset=o, seed=i) for i, o in enumerate(offsets)]
    return mixed(case, policies, (0.34, 0.33, 0.33), 2000)


class Hunter:
    """Predators that run at the prey, and at where it will be."""

    def __init__(self, ahead: float, noise: float) -> None:
        self.ahead, self.noise = ahead, noise

    def __call__(self, observation: Tensor) -> Tensor:
        """Return thrusts for observations whose columns 12 to 16 are the prey's place and velocity."""
        aim = observation[..., 12:14] + self.ahead * (observation[..., 14:16] - observation[..., :2])
        thrust = aim / aim.norm(dim=-1, keepdim=True).clamp_min(1e-6)
        return (thrust + self.noise * torch.randn_like(thrust)).clamp(-1, 1)


def tag(case: Case) -> OfflineDataset:
    """Hunters of three skills."""
    return mixed(case, [as_policy(Hunter(*skill)) for skill in ((0.3, 0.3), (0.0, 0.6), (-0.5, 1.0))], (1, 1, 1), 2000)


def balance(case: Case) -> OfflineDataset:
    """The scenario's heuristic with noise, and uniform actions."""
    env = case.env(400)
    uniform = TensorDictModule(lambda o: 2 * torch.rand(*o.shape[:-1], 2) - 1, in_keys=[OBSERVATION], out_keys=[ACTION])
    policy = MixedSkill([VmasHeuristic(env, noise=0.3), uniform], probabilities=(0.6, 0.4), seed=9)
    return collect(env, policy, episodes=400, seed=0)


def cheetah(case: Case) -> OfflineDataset:
    """A gait, the same with half of its swing, and noise around standing still; all episodes start together."""
    gait = best_gait()
    slower = Gait(0.5 * gait.amplitude, gait.phase, gait.frequency, noise=0.15)
    still = Gait(0.0 * gait.amplitude, gait.phase, gait.frequency, noise=0.3)
    return mixed(case, [as_policy(each) for each in (gait, slower, still)], (0.4, 0.3, 0.3), 256)


GRID = "games/grid_navigation"
CASES: dict[str, Case] = {
    "cn2": Case(GRID, {"agents": 2}, 0.97, "sample", recorded_grid),
    "grid3": Case(GRID, {"agents": 3}, 0.97, "sample", grid),
    "grid4": Case(GRID, {"agents": 4}, 0.97, "sample", grid),
    "bridge": Case("games/bridge", {}, 0.97, "sample", recorded_bridge),
    "spread": Case("mpe/simple_spread", {}, 0.95, "mode", spread),
    "spread, drawn": Case("mpe/simple_spread", {}, 0.95, "sample", spread),
    "tag": Case("mpe/simple_tag", {}, 0.95, "mode", tag),
    "balance": Case("vmas/balance", {}, 0.97, "mode", balance, 250),
    "cheetah": Case(CHEETAH, {"max_steps": 200}, 0.97, "mode", cheetah, 256),
}


def recorded_battles(_: Case) -> OfflineDataset:
    """2,000 recorded episodes of a medium team, without the game."""
    return load_dataset(f"pymarl:{_published('pymarl/smac-3m-medium.h5')}")


WITHOUT_TRUTH: dict[str, Case] = {"3m": Case("smac/3m", {}, 0.99, "sample", recorded_battles)}


def halves(case: Case) -> tuple[OfflineDataset, OfflineDataset]:
    """Return the episodes that policies learn from, and those that judge them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        data = case.record(case)
    order = torch.randperm(data.n_episodes, generator=torch.Generator().manual_seed(0))
    half = data.n_episodes // 2
    return data.select_episodes(order[:half].sort().values), data.select_episodes(order[half:].sort().values)


# ---------------------------------------------------------------------------------------------- jobs


def build(spec: TaskSpec, name: str, gamma: float) -> OfflineMARLLoss | None:
    """Return a loss of :data:`TRAININGS`, or ``None`` where the task has no answer for it."""
    settings = {"algorithm": name, "hidden": (64, 64), "gamma": gamma} | TRAININGS[name]
    known = settings_of(settings["algorithm"])
    torch.manual_seed(0)
    try:
        return make_loss(spec, **{key: value for key, value in settings.items() if key in ("algorithm", *known)})
    except (ValueError, TypeError):
        return None


def policy_files(folder: Path, name: str) -> dict[str, Path]:
    """Return the files of a case's policies, trained where they are missing."""
    case, path = (CASES | WITHOUT_TRUTH)[name], folder / "policies" / name.replace(", ", "_")
    if not (path / "complete").exists():
        path.mkdir(parents=True, exist_ok=True)
        data, _ = halves(case)
        for training in TRAININGS:
            _train(data, case, training, path)
        (path / "complete").touch()
    found = sorted(path.glob("*.pt"))
    return {file.stem: file for file in found}


def _train(data: OfflineDataset, case: Case, training: str, path: Path) -> None:
    loss = build(data.spec, training, case.gamma)
    if loss is None or (case.mode == "sample" and not _draws(loss, data)):
        return

    def keep() -> None:
        if trainer.step in LENGTHS:
            with loss.actor_network_params.data.to_module(loss.actor_network):
                save_policy(path / f"{training} @{trainer.step}.pt", loss.actor_network)

    buffer = data.replay_buffer(batch_size=128, seed=0, keys=loss.in_keys)
    trainer = Trainer(
        Learner(loss, lr=1e-3),
        buffer,
        steps=max(LENGTHS),
        evaluators={"kept": keep},
        eval_every=min(LENGTHS),
        progress=False,
    )
    trainer.train()


def _draws(loss: OfflineMARLLoss, data: OfflineDataset) -> bool:
    """Return whether a policy has a density, which importance weights need."""
    get_dist = getattr(loss.actor_network, "get_dist", None)
    if get_dist is None:
        return False
    with torch.no_grad(), loss.actor_network_params.to_module(loss.actor_network):
        policy = get_dist(data.data[:2].clone())
    try:
        policy.log_prob(data.data[:2].get(ACTION))
    except (NotImplementedError, AttributeError, TypeError):
        return False
    return type(policy).__name__ != "Delta"


def chosen_few(truths: Mapping[str, float], count: int = 8) -> list[str]:
    """Return policies spread evenly over the ranks of their truths."""
    ranked = sorted(truths, key=lambda name: truths[name])
    places = torch.linspace(0, len(ranked) - 1, min(count, len(ranked))).round().int().tolist()
    return [ranked[place] for place in places]


def simulate(folder: str, case: str) -> Row:
    """Train a case's policies and simulate them."""
    here, began = CASES[case], time.perf_counter()
    files, (_, logs) = policy_files(Path(folder), case), halves(CASES[case])
    trained = time.perf_counter() - began
    found = {}
    for name, file in files.items():
        policy = load_policy(file).policy
        value = simulated_value(policy, here.env(), episodes=SIMULATED, gamma=here.gamma, mode=here.mode, seed=1)
        found[name] = [value.mean, *value.interval]
    return {
        "truth": found,
        "episodes": logs.n_episodes,
        "rows": len(logs),
        "seconds training": trained,
        "seconds": time.perf_counter() - began,
    }


def judge(folder: str, case: str, policies: list[str], methods: list[str], **settings: Any) -> Row:
    """Estimate policies of a case from its second half, by critics or by models."""
    here, files = (CASES | WITHOUT_TRUTH)[case], policy_files(Path(folder), case)
    _, logs = halves(here)
    began = time.process_time()
    chosen = {name: files[name] for name in policies or files}
    by_models = methods == ["model"]
    options = {"modelling": LearnedModelSettings(**settings)} if by_models else {"fitting": FittedQSettings(**settings)}
    found = compare_offline(chosen, logs, by=methods, gamma=here.gamma, mode=here.mode, **options)
    return {"found": found.to_dict(), "seconds": time.process_time() - began}


# ---------------------------------------------------------------------------------------------- report


def ranks(values: Sequence[float]) -> Tensor:
    """Return ranks from 0, ties their mean."""
    given = torch.tensor(values, dtype=torch.float64)
    return (given[:, None] > given).sum(1) + 0.5 * ((given[:, None] == given).sum(1) - 1)


def spearman(truth: Sequence[float], estimates: Sequence[float]) -> float:
    """Return the rank correlation."""
    first, second = (each - each.mean() for each in (ranks(truth), ranks(estimates)))
    return float((first * second).sum() / (first.square().sum() * second.square().sum()).sqrt())


def kendall(truth: Sequence[float], estimates: Sequence[float]) -> float:
    """Return the share of pairs in the same order minus that of those in the other."""
    pairs = [torch.tensor(each, dtype=torch.float64) for each in (truth, estimates)]
    signs = [(each[:, None] - each).sign() for each in pairs]
    return float((signs[0] * signs[1]).sum() / (len(truth) * (len(truth) - 1)))


def quality(truth: Mapping[str, Sequence[float]], estimates: Mapping[str, Any], logged: Mapping[str, float]) -> Row:
    """Return how an estimator did on the policies of a case."""
    names = list(estimates)
    true, found = [truth[name][0] for name in names], [estimates[name]["value"] for name in names]
    width = max(true) - min(true)
    order = sorted(range(len(names)), key=lambda i: -found[i])
    ends = [(estimates[name]["value_low"], estimates[name]["value_high"]) for name in names]
    better = [estimates[name]["better"] for name in names]
    gains = [value - logged["value"] for value in true]
    return {
        "policies": len(names),
        "spearman": spearman(true, found),
        "kendall": kendall(true, found),
        "error": sum(abs(a - b) for a, b in zip(true, found)) / len(names) / width,
        "bias": sum(b - a for a, b in zip(true, found)) / len(names) / width,
        "regret@1": (max(true) - true[order[0]]) / width,
        "regret@5": (max(true) - max(true[i] for i in order[:5])) / width,
        "covered": sum(low <= value <= high for value, (low, high) in zip(true, ends)) / len(names),
        "difference covered": sum(b["low"] <= g <= b["high"] for g, b in zip(gains, better)) / len(names),
        "supported": sum(estimates[name].get("unsupported", 0.0) <= 0.3 for name in names) / len(names),
    }


MEASURES = ("spearman", "kendall", "error", "bias", "regret@1", "regret@5", "covered", "difference covered")


def report(rows: Sequence[Row]) -> None:
    """Print the tables."""
    truths = {row["case"]: row for row in rows if row["stage"] == "policies"}
    print(machine())
    print("\nCases\n" + cases_table(truths))
    for stage, by in (
        ("budget", ("case", "batch_size", "steps", "tau", "lr")),
        ("decompositions", ("case", "decomposition")),
    ):
        chosen = [row for row in rows if row["stage"] == stage]
        if chosen:
            print(f"\n{stage}\n{quality_table(chosen, truths, by)}\n{means_table(chosen, truths, by[1:])}")
    ranked = [row for row in rows if row["stage"] == "ranking"]
    if ranked:
        print(f"\nranking\n{ranking_table(ranked)}")
    chosen = [row for row in rows if row["stage"] in ("all", "models")]
    if chosen:
        chosen.sort(key=lambda row: list(CASES).index(row["case"]))
        print(f"\nall\n{quality_table(chosen, truths, ('case',))}\n{means_table(chosen, truths, ())}")
        print(f"\nwarnings\n{warnings_table([row for row in chosen if row['stage'] == 'all'], truths)}")


def ranking_table(rows: Sequence[Row]) -> str:
    """Policies without a truth, the best estimate first, and what the calibration says."""
    text = []
    for row in rows:
        found = row["found"]
        ((method, estimates),) = found["methods"].items()
        estimates = sorted(estimates.items(), key=lambda each: -each[1]["value"])
        facts = ["unsupported", "unlikely"] if method == "fqe" else ["outside"]
        lines = []
        for name, each in estimates:
            better = each["better"]
            interval = f"{each['value']:.2f} [{each['value_low']:.2f}, {each['value_high']:.2f}]"
            gain = f"{better['mean']:+.2f} [{better['low']:+.2f}, {better['high']:+.2f}]"
            outside = [f"{each[fact]:.2f}" for fact in facts]
            lines.append([name, interval, gain, f"{better['probability']:.2f}", *outside])
        header = ["policy", "value", "better than logged by", "P(better)", *facts]
        calibration = found["calibration" if method == "fqe" else "model_calibration"]
        text.append(f"{row['case']}, {method}: logged {found['logged']['value']:.4g}; calibration {calibration}")
        text.append(markdown(header, lines))
    return "\n".join(text)


def cases_table(truths: Mapping[str, Row]) -> str:
    """What is judged: policies, the logged team, episodes."""
    lines = []
    for name, row in truths.items():
        values = [each[0] for each in row["truth"].values()]
        facts = [CASES[name].task, CASES[name].gamma, CASES[name].mode, row["episodes"], row["rows"]]
        shown = f"{min(values):.4g} to {max(values):.4g}"
        lines.append([name, *facts, len(values), shown, f"{row['seconds']:.0f}"])
    return markdown(["case", "task", "gamma", "mode", "episodes", "rows", "policies", "truth", "seconds"], lines)


def _qualities(rows: Sequence[Row], truths: Mapping[str, Row]) -> Iterator[tuple[Row, str, Row]]:
    for row in rows:
        found = row["found"]
        for method, estimates in found["methods"].items():
            yield row, method, quality(truths[row["case"]]["truth"], estimates, found["logged"])


def quality_table(rows: Sequence[Row], truths: Mapping[str, Row], by: Sequence[str]) -> str:
    """Every job by itself."""
    lines = []
    for row, method, found in _qualities(rows, truths):
        calibration = row["found"]["model_calibration" if method == "model" else "calibration"]
        passed = "" if calibration is None else "passed" if calibration["passed"] else "FAILED"
        numbers = [_short(found[name]) for name in MEASURES]
        lines.append(
            [*(row.get(name, "") for name in by), method, found["policies"], *numbers, passed, f"{row['seconds']:.0f}"]
        )
    return markdown([*by, "by", "policies", *MEASURES, "calibration", "CPU s"], lines)


def _short(number: float) -> str:
    return f"{number:.2f}" if abs(number) < 100 else f"{number:.0e}"


def means_table(rows: Sequence[Row], truths: Mapping[str, Row], by: Sequence[str]) -> str:
    """Means over cases with 95 % t intervals."""
    groups: dict[tuple, list[Row]] = {}
    for row, method, found in _qualities(rows, truths):
        groups.setdefault((*(row.get(name, "") for name in by), method), []).append(found)
    lines = []
    for key, found in groups.items():
        cells = []
        for name in MEASURES:
            values = [each[name] for each in found if not math.isnan(each[name])]
            interval = mean_confidence_interval(values) if len(values) > 1 else None
            cells.append(
                f"{_short(interval.mean)} [{_short(interval.low)}, {_short(interval.high)}]"
                if interval
                else _short(values[0])
            )
        lines.append([*key, len(found), *cells])
    return markdown([*by, "by", "cases", *MEASURES], lines)


def warnings_table(rows: Sequence[Row], truths: Mapping[str, Row]) -> str:
    """Whether what was warned of was worse: errors of estimates within and outside of the data's support."""
    lines = []
    for row in rows:
        truth, estimates = truths[row["case"]]["truth"], row["found"]["methods"]["fqe"]
        width = max(each[0] for each in truth.values()) - min(each[0] for each in truth.values())
        groups: dict[bool, list[float]] = {True: [], False: []}
        for name, estimate in estimates.items():
            groups[estimate["unsupported"] > 0.3].append(abs(estimate["value"] - truth[name][0]) / width)
        cells = [f"{sum(g) / len(g):.2f} ({len(g)})" if g else "" for g in (groups[False], groups[True])]
        calibration = row["found"]["calibration"]
        lines.append([row["case"], *cells, f"{calibration['bias'] / width:+.2f}", calibration["passed"]])
    return markdown(["case", "error, supported", "error, unsupported", "calibration's bias", "passed"], lines)


# ------------------------------------------------------------------------------------------------ main


def work(folder: str, stage: str, case: str, **options: Any) -> Row:
    """Do a job."""
    return simulate(folder, case) if stage == "policies" else judge(folder, case, **options)


def jobs_of(stage: str, case: str, truth: Mapping[str, Sequence[float]], best: str) -> Iterator[Row]:
    """Yield the jobs of a stage on a case."""
    few = chosen_few({name: value[0] for name, value in truth.items()})
    if stage == "budget" and case in ("cn2", "spread"):
        for budget in BUDGETS:
            yield {"policies": few, "methods": ["fqe"]} | budget
    elif stage == "decompositions":
        for decomposition in DECOMPOSITIONS:
            yield {"policies": few, "methods": ["fqe"], "decomposition": decomposition}
    elif stage == "all":
        methods = ["fqe", "is", "wis", "dr"] if CASES[case].mode == "sample" else ["fqe"]
        yield {"policies": sorted(truth), "methods": methods, "decomposition": best}
    elif stage == "models":
        yield {"policies": sorted(truth), "methods": ["model"]}


def main() -> None:
    """Run the study, or report what is there."""
    parser = script_parser(__doc__)
    parser.add_argument("--output", type=as_folder, default=Path("runs/offline_evaluation"))
    parser.add_argument("--results", type=as_file, default=RESULTS)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument(
        "--best", choices=DECOMPOSITIONS, default="centralized", help="decomposition of the stages all and ranking"
    )
    parser.add_argument("--workers", type=as_few, default=1)
    parser.add_argument("--report", action="store_true", help="train nothing: report what is there")
    args = parser.parse_args()
    if not args.report:
        base = {"folder": str(args.output)}
        if "ranking" in args.stages:
            ways = [{"methods": ["fqe"], "decomposition": args.best}, {"methods": ["model"]}]
            jobs = [base | {"stage": "ranking", "case": c, "policies": []} | way for c in WITHOUT_TRUTH for way in ways]
            run_jobs(work, jobs, workers=1, results=args.results)
        for stage in [stage for stage in args.stages if stage != "ranking"]:
            for case in args.cases:
                first = [base | {"stage": "policies", "case": case}]
                (made,) = run_jobs(work, first, workers=1, results=args.results)
                jobs = [
                    base | {"stage": stage, "case": case} | job
                    for job in jobs_of(stage, case, made["truth"], args.best)
                ]
                if stage != "policies":
                    run_jobs(work, jobs, workers=args.workers, results=args.results)
    report([each["job"] | each["result"] for each in read_rows(args.results)])


if __name__ == "__main__":
    run_script(main)
