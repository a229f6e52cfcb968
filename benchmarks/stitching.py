"""Which decomposition and which extraction stitch joint actions that were never recorded? ``games/stitch``.

    python benchmarks/stitching.py --results runs/stitching.jsonl --compiled on
    python benchmarks/stitching.py --agents 3 --critics vdn mixer centralized --extractions "AWR, joint" "AWR, local"
    python benchmarks/stitching.py --report

One step, eight contexts, five actions of each of two agents. For every payoff and coverage the recorded joint actions
of each context are the data, each as often as the others; a job trains one decomposition with one extraction on all of
them at once, as one population of 5 payoffs x 6 coverages x 5 seeds, each member on its own rows (``PopulationBuffer``,
``rows=``). Then

- *error*: mean distance of the critic's values to the payoffs, over joint actions that were not recorded;
- *score*: (what the policies' deterministic joint action pays - the best recorded) / (the best - the best recorded);
  0 is the best recorded team, 1 the optimum, which no data but ``full`` has; of ``full``, what it pays of the optimum;
- *greedy*: the same of the joint action that the critic values most: what an extraction could have had.

Beside it, what the data alone tell of an additive critic: the share of unrecorded joint actions that it can determine
(``stitchable_share``), in how many contexts the best joint action is among them, which is the score that is predicted,
and the score of an additive critic fitted by exact least squares (the smallest solution, where there are several).

Arithmetic: 150 members x 2,000 updates (networks 1 x 32, batches of 64) = 300,000 member updates a job, small ones,
40 jobs of 10 critics x 4 extractions. A compiled job of 2,000 updates took 60 to 150 s of a core; 500 updates are too
few for mixers. Intervals are 95 % t intervals over seeds. Jobs that are there are not done again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from arguments import as_amount, as_count, as_few, as_file, run_script, script_parser
from common import machine, read_rows, run_jobs
from measuring import markdown
from stitchable import pay
from tensordict import TensorDict
from torch import Tensor
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_marl_offline import OfflineDataset, OfflineMARLLoss, PopulationLearner, Trainer, from_arrays, make_loss
from torchrl_marl_offline.core.functional_parameters import tensors_in
from torchrl_marl_offline.core.layout import ACTION, OBSERVATION, STATE
from torchrl_marl_offline.envs.stitch import Stitch, as_joint_action, recorded_joint_actions
from torchrl_marl_offline.evaluation import mean_confidence_interval
from torchrl_marl_offline.training import PopulationBuffer

RESULTS = Path(__file__).parent / "results" / "stitching.jsonl"
ACTIONS, CONTEXTS = 5, 8
PAYOFFS = ("additive", "monotonic", "weakest_link", "matching", "climbing")
COVERAGES = ("full", "best_left_out", "two_teams", "bridged_1", "star", "share_0.5")
DECOMPOSITIONS: dict[str, dict[str, Any]] = {
    "centralized": {"decomposition": "centralized"},
    "vdn": {"decomposition": "vdn"},
    "linear": {"decomposition": "linear"},
    "mixer": {"decomposition": "mixer"},
    "frozen mixer": {"decomposition": "mixer", "frozen": True},
    "nonmonotonic": {"decomposition": "nonmonotonic"},
    "qatten": {"decomposition": "qatten"},
    "qplex": {"decomposition": "qplex"},
    "graph": {"decomposition": "graph"},
    "independent": {"decomposition": "independent"},
}
EXTRACTIONS: dict[str, dict[str, Any]] = {
    "AWR, joint": {"extraction": "awr", "advantage": "joint"},
    "AWR, local": {"extraction": "awr", "advantage": "local"},
    "AWR, local, temperature 10": {"extraction": "awr", "advantage": "local", "temperature": 10.0},
    "BRAC": {"extraction": "brac", "alpha": 0.1},
    "weighted BRAC": {"extraction": "weighted_brac", "alpha": 1.0},
}
LR = 5e-3
COPIES = 4
"""Of each recorded joint action of a context."""

Row = dict[str, Any]


def games(agents: int) -> Iterator[tuple[str, str, Stitch, Tensor]]:
    """Yield every payoff and coverage, with the game and which joint actions are recorded, ``[C, K^n]`` bool."""
    for payoff in PAYOFFS:
        game = Stitch(agents=agents, actions=ACTIONS, contexts=CONTEXTS, payoff=payoff)
        for coverage in COVERAGES:
            yield payoff, coverage, game, recorded_joint_actions(game, coverage).flatten(1)


def recorded(agents: int) -> tuple[OfflineDataset, dict[str, Tensor]]:
    """Return all data, one after another, and which rows are of which payoff and coverage."""
    contexts, actions, rewards, rows, count = [], [], [], {}, 0
    for payoff, coverage, game, there in games(agents):
        context, cell = there.nonzero(as_tuple=True)
        context, cell = context.repeat(COPIES), cell.repeat(COPIES)
        contexts.append(context)
        actions.append(as_joint_action(cell, agents=agents, actions=ACTIONS))
        rewards.append(game.payoffs.flatten(1)[context, cell])
        rows[f"{payoff}/{coverage}"] = torch.arange(count, count + len(cell))
        count += len(cell)
    state = torch.nn.functional.one_hot(torch.cat(contexts), CONTEXTS).float()
    data = from_arrays(
        observations=state.unsqueeze(1).expand(-1, agents, -1),
        state=state,
        actions=torch.cat(actions),
        rewards=torch.cat(rewards),
        terminals=torch.ones(count, dtype=torch.bool),
        n_actions=ACTIONS,
    )
    return data, rows


def train(
    decomposition: str, extraction: str, *, steps: int, seeds: int, compiled: str, agents: int = 2, lr: float = LR
) -> Row:
    """Train one decomposition with one extraction on all data, and measure every member."""
    data, rows = recorded(agents)
    options = {"hidden": (32,), "value_learning": "td", "svn": False, "gamma": 0.99}
    options |= DECOMPOSITIONS[decomposition] | EXTRACTIONS[extraction]
    losses, seeds_of, rows_of = {}, [], []
    for name, own in rows.items():
        for seed in range(seeds):
            torch.manual_seed(seed)
            losses[f"{name}/{seed}"] = make_loss(data.spec, **options)
            seeds_of.append(seed)
            rows_of.append(own)
    learner = PopulationLearner(losses, lr=lr, tau=0.05, compile=compiled)
    keys = learner.template.in_keys
    buffer = PopulationBuffer(data.data, batch_size=64, seeds=seeds_of, keys=keys, rows=rows_of)
    Trainer(learner, buffer, steps=steps, log_every=steps, on_impossible_values="ignore", progress=False).train()
    found: dict[str, list[Row]] = {}
    for payoff, coverage, game, there in games(agents):
        name = f"{payoff}/{coverage}"
        found[name] = [measured(learner, f"{name}/{seed}", game, there) for seed in range(seeds)]
    return {"found": found}


@torch.no_grad()
def measured(learner: PopulationLearner, member: str, game: Stitch, there: Tensor) -> Row:
    """Return a member's error on joint actions that were not recorded, its score, and that of its critic."""
    loss, payoffs, agents = learner.template, game.payoffs.flatten(1), game.task_spec.n_agents
    state = torch.eye(CONTEXTS)
    seen = TensorDict({OBSERVATION: state.unsqueeze(1).expand(-1, agents, -1), STATE: state}, [CONTEXTS])
    with tensors_in(loss, learner.population.member_tensors(member)):
        values = joint_values(loss, seen, agents)
        with (
            loss.actor_network_params.data.to_module(loss.actor_network),
            set_exploration_type(ExplorationType.DETERMINISTIC),
        ):
            action = loss.actor_network(seen.clone()).get(ACTION)
    cell = (action * torch.tensor([ACTIONS**i for i in reversed(range(agents))])).sum(-1, keepdim=True)
    missing = ~there
    error = (values - payoffs).abs()[missing].mean().item() if missing.any() else None
    played, preferred = (payoffs.gather(1, each).squeeze(1) for each in (cell, values.argmax(1, keepdim=True)))
    return {"error": error, "score": score(payoffs, there, played), "greedy": score(payoffs, there, preferred)}


def score(payoffs: Tensor, there: Tensor, paid: Tensor) -> float:
    """Return the score of joint actions that pay so much ``[C]`` in every context, the mean over them."""
    best, known = payoffs.amax(1), payoffs.masked_fill(~there, -torch.inf).amax(1)
    gap = torch.where(best > known, best - known, torch.ones(()))
    return torch.where(best > known, (paid - known) / gap, paid / best).mean().item()


def told_by_data(game: Stitch, there: Tensor) -> Row:
    """Return what the recorded joint actions tell of an additive critic before one is trained."""
    payoffs, agents = game.payoffs.flatten(1).double(), game.task_spec.n_agents
    joint = as_joint_action(torch.arange(payoffs.shape[1]), agents=agents, actions=ACTIONS)
    indicators = torch.nn.functional.one_hot(joint, ACTIONS).flatten(1).double()  # [K^n, n K]
    shares, among = [], []
    for own, row in zip(payoffs, there):
        projected = indicators @ torch.linalg.pinv(indicators[row]) @ indicators[row]
        known = (indicators - projected).abs().amax(1) < 1e-9
        shares.append(known[~row].double().mean().nan_to_num(1.0))
        among.append(known[own.argmax()].double())
    found = score(payoffs, there, pay(game, there)[1])
    return {"share": torch.stack(shares).mean().item(), "predicted": torch.stack(among).mean().item(), "fitted": found}


def joint_values(loss: OfflineMARLLoss, seen: TensorDict, agents: int) -> Tensor:
    """Return the team's value of every joint action in every context, ``[C, K^n]``; of no team the agents' mean."""
    joint = as_joint_action(torch.arange(ACTIONS**agents), agents=agents, actions=ACTIONS)
    found = []
    for action in joint:
        value = loss.team.action_value(seen, action.expand(CONTEXTS, -1)).total_min
        found.append(value.reshape(CONTEXTS, -1).mean(-1))
    return torch.stack(found, 1)


# ---------------------------------------------------------------------------------------------- report


def told(values: Sequence[float]) -> str:
    """Return a mean with its interval as a cell has it."""
    mean, low, high = mean_confidence_interval(values)
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]"


def table(rows: Sequence[Row], measure: str) -> str:
    """Means over payoffs and coverages other than ``full``, by payoff; one line a job."""
    lines = []
    for row in rows:
        cells = []
        for payoff in PAYOFFS:
            seeds = _by_seed(row["found"], [f"{payoff}/{coverage}" for coverage in COVERAGES[1:]], measure)
            cells.append(told(seeds))
        whole = [f"{payoff}/{coverage}" for payoff in PAYOFFS for coverage in COVERAGES[1:]]
        lines.append(
            [
                row["decomposition"],
                row["extraction"],
                row["steps"],
                row.get("agents", 2),
                f"{row.get('lr', LR):g}",
                *cells,
                told(_by_seed(row["found"], whole, measure)),
            ]
        )
    return markdown(["critic", "extraction", "updates", "agents", "learning rate", *PAYOFFS, "all"], lines)


def predictions(rows: Sequence[Row], agents: int) -> str:
    """What the data alone tell of additive critics, beside what those that were trained prefer."""
    trained = [r for r in rows if r["decomposition"] == "vdn" and r.get("agents", 2) == agents and "lr" not in r]
    trained = {row["extraction"]: row["found"] for row in sorted(trained, key=lambda row: row["steps"])}
    lines = []
    for payoff, coverage, game, there in games(agents):
        told_of = told_by_data(game, there)
        name, numbers = f"{payoff}/{coverage}", [f"{told_of[key]:.2f}" for key in ("share", "predicted", "fitted")]
        own = [told([each["greedy"] for each in next(iter(trained.values()))[name]])] if trained else ["-"]
        own += [
            told([each["score"] for each in trained[rule][name]]) if rule in trained else "-"
            for rule in ("AWR, local", "AWR, joint", "BRAC")
        ]
        lines.append([payoff, coverage, *numbers, *own])
    head = ["stitchable share", "predicted", "least squares", "VDN prefers", "AWR, local", "AWR, joint", "BRAC"]
    return markdown(["payoff", "coverage", *head], lines)


def _by_seed(found: Mapping[str, Sequence[Row]], names: Sequence[str], measure: str) -> list[float]:
    """Return each seed's mean over payoffs and coverages."""
    seeds = range(len(found[names[0]]))
    return [sum(found[name][seed][measure] for name in names) / len(names) for seed in seeds]


def report(rows: Sequence[Row]) -> None:
    """Print the tables."""
    print(machine())
    for measure in ("score", "greedy", "error"):
        print(f"\n{measure}\n{table(rows, measure)}")
    for agents in sorted({row.get("agents", 2) for row in rows}):
        print(f"\nwhat the data tell of additive critics, {agents} agents\n{predictions(rows, agents)}")
    print("\nby coverage, score, additive payoffs")
    lines = [
        [row["decomposition"], row["extraction"], row["steps"], row.get("agents", 2)]
        + [told([each["score"] for each in row["found"][f"additive/{coverage}"]]) for coverage in COVERAGES]
        for row in rows
    ]
    print(markdown(["critic", "extraction", "updates", "agents", *COVERAGES], lines))


def work(decomposition: str, extraction: str, **options: Any) -> Row:
    """Do a job."""
    return train(decomposition, extraction, **options)


def main() -> None:
    """Run the study, or report what is there."""
    parser = script_parser(__doc__)
    parser.add_argument("--results", type=as_file, default=RESULTS)
    parser.add_argument("--critics", nargs="+", choices=list(DECOMPOSITIONS), default=list(DECOMPOSITIONS))
    parser.add_argument("--extractions", nargs="+", choices=list(EXTRACTIONS), default=list(EXTRACTIONS))
    parser.add_argument("--steps", type=as_count, default=2000)
    parser.add_argument("--seeds", type=as_few, default=5)
    parser.add_argument("--agents", type=as_few, default=2)
    parser.add_argument("--lr", type=as_amount, default=LR, help="at the default QPLEX diverges; 3e-4 keeps it")
    parser.add_argument("--compiled", choices=["off", "on", "auto"], default="off")
    parser.add_argument("--workers", type=as_few, default=1)
    parser.add_argument("--report", action="store_true", help="train nothing: report what is there")
    args = parser.parse_args()
    if not args.report:
        settings = {"steps": args.steps, "seeds": args.seeds, "compiled": args.compiled}
        settings |= {"agents": args.agents} if args.agents != 2 else {}
        settings |= {"lr": args.lr} if args.lr != LR else {}
        jobs = [
            {"decomposition": critic, "extraction": extraction} | settings
            for critic in args.critics
            for extraction in args.extractions
        ]
        run_jobs(work, jobs, workers=args.workers, results=args.results)
    report([each["job"] | each["result"] for each in read_rows(args.results)])


if __name__ == "__main__":
    run_script(main)
