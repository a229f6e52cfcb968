"""Win rates in SMAX with memory and without it, on data of a recurrent QMIX.

    python benchmarks/memory_smax.py --output runs/memory_smax
    python benchmarks/memory_smax.py --report

``record`` trains QMIX with a recurrent memory in ``smax/3m``, and records its first snapshot that returns 1, with 5 %
of random actions. Cloning, the recipe, OMAR and ICQ with memory and without it then learn from this data, three seeds
of a method as one population, and play 200 battles each by the mode of their policies. Two scripted teams stand beside
them: who is in range shoots the nearest enemy, as the opponent does, or the weakest; the others walk towards the
nearest in sight, or east.

A batch is 256 rows without memory, and 16 slices of 20 rows with it, which hold 97 % of the battles whole.

Arithmetic, on one thread: QMIX reaches its level after 1,750 updates with 64 environment steps for each, about 45 ms of
CPU together, so 80 s. CPU seconds of a member's 1,000 updates, without memory and with it: cloning 3 and 8, recipe 15
and 35, OMAR 30 and 57, ICQ 19 and 35; three members of each are 10 minutes. A job is one population, and those that are
in ``--results`` are not done again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from arguments import as_count, as_few, as_file, as_folder, run_script, script_parser
from common import machine, run_jobs, table
from memory_3m import GAMMA, trained
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from torchrl_marl_offline import OfflineDataset, evaluate, load_policy, make_env
from torchrl_marl_offline.core.layout import ACTION, ACTION_MASK, OBSERVATION
from torchrl_marl_offline.evaluation import evaluate_population
from torchrl_marl_offline.recording import record

RESULTS = Path(__file__).parent / "results" / "memory_smax.jsonl"
TASK = "smax/3m"
SLICES = {"slice_len": 20}
RECORDING: dict[str, Any] = {
    "levels": {"medium": 1.0, "expert": 1.0},  # at the second the training ends
    "memory": "gru",
    "memory_size": 64,
    **SLICES,
    "burn_in": 0,
    "normalize_state": True,
    "reward_scale": 5.0,
    "transitions": 30_000,
    "num_envs": 256,
    "transitions_per_update": 64,
    "batch_size": 400,
    "eval_every": 250,
    "eval_episodes": 256,
    "learner": {"hidden": (64,), "gamma": 0.97, "lr": 1e-3},
}
TRAININGS: dict[str, dict[str, Any]] = {"cloning": {}, **{name: {"tau": 0.05} for name in ("recipe", "omar", "icq")}}
METHODS = {f"{a}, {m or 'none'}": (a, m) for a in TRAININGS for m in (None, "gru")}
"""Name -> algorithm and memory."""
BATTLES = 200
MEASURES = ("win rate", "return", "CPU seconds")
Row = dict[str, Any]


class Shooters(TensorDictModuleBase):
    """Shoot who is in range, or walk towards the nearest enemy in sight, or east; for ``smax/3m``.

    An observation holds 13 numbers of each other unit, allies first: its health, its place from here in ranges of
    sight, and more, or zeros where it is out of sight or dead. Actions are north, east, south, west, stop, and to shoot
    each enemy, which is legal in range.

    Args:
        kind: whom to shoot: the ``"nearest"``, or the ``"weakest"``, of several the nearest.
    """

    features, allies, moves = 13, 2, 4

    def __init__(self, kind: str) -> None:
        self.in_keys, self.out_keys = [OBSERVATION, ACTION_MASK], [ACTION]
        super().__init__()
        self.kind = kind

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the actions."""
        observation, legal = tensordict.get(OBSERVATION), tensordict.get(ACTION_MASK)
        targets = legal[..., self.moves + 1 :]
        units = observation[..., : self.features * (self.allies + targets.shape[-1])].unflatten(-1, (-1, self.features))
        health, place = units[..., self.allies :, 0], units[..., self.allies :, 1:3]  # [*B, n, enemies(, 2)]
        far = place.norm(dim=-1)
        first = far if self.kind == "nearest" else health + far / 1000
        shot = first.masked_fill(~targets, torch.inf).argmin(-1) + self.moves + 1
        action = torch.where(targets.any(-1), shot, self._step(far, place, health > 0, legal[..., : self.moves]))
        dead = ~legal[..., : self.moves].any(-1)
        return tensordict.set(ACTION, torch.where(dead, self.moves, action))

    def _step(self, far: Tensor, place: Tensor, seen: Tensor, legal: Tensor) -> Tensor:
        nearest = far.masked_fill(~seen, torch.inf).argmin(-1, keepdim=True)
        ahead = place.take_along_dim(nearest.unsqueeze(-1), -2).squeeze(-2)  # [*B, n, 2]
        ahead = torch.where(seen.any(-1, keepdim=True), ahead, torch.tensor([1.0, 0.0]))
        ways = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, -1.0], [-1.0, 0.0]])
        return (ahead @ ways.T).masked_fill(~legal, -torch.inf).argmax(-1)


def jobs_of(
    folder: Path, *, qualities: Sequence[str], methods: Sequence[str], seeds: int, updates: int
) -> list[dict[str, Any]]:
    """Return a job for each scripted team, each policy that was recorded, and each population."""
    base = {"stage": "train", "folder": str(folder), "seeds": seeds, "updates": updates}
    scripted = [{"stage": "play", "kind": kind} for kind in ("nearest", "weakest")]
    recorded = [{"stage": "play", "kind": q, "folder": str(folder)} for q in qualities if q != "medium-replay"]
    return (
        scripted
        + recorded
        + [
            base | {"quality": quality, "algorithm": algorithm, "memory": memory} | TRAININGS[algorithm]
            for quality in qualities
            for algorithm, memory in (METHODS[name] for name in methods)
        ]
    )


def work(stage: str, **options: Any) -> Row:
    """Do a job: train a population, or let a team play."""
    return train(**options) if stage == "train" else play(**options)


def play(kind: str, folder: str = "") -> Row:
    """Let a team play as many battles, from the same seed: a scripted one, or QMIX's of a quality, without noise."""
    team = load_policy(Path(folder) / "policies" / f"{kind}.pt") if folder else Shooters(kind)
    found = evaluate(team, make_env(TASK, num_envs=50), episodes=BATTLES, seed=1)
    return {"members": [{"win rate": found.success_rate, "return": found.mean}]}


def train(folder: str, quality: str, algorithm: str, memory: str | None, seeds: int, updates: int, **more: Any) -> Row:
    """Train a population on a level and play; inputs are normalized, as positions in the state are up to 32."""
    data = OfflineDataset.load(Path(folder) / quality)
    settings: Row = {"algorithm": algorithm, "memory": memory, "inputs": data.input_statistics()}
    settings |= {} if algorithm == "cloning" else {"gamma": GAMMA}
    learner, took = trained(data, seeds, updates=updates, **SLICES, **more, **settings)
    env = make_env(TASK, num_envs=50 * seeds)
    played = evaluate_population(learner.population, env, episodes=BATTLES, seed=1)
    won = data.success()
    return {
        "members": [
            {"win rate": each.success_rate, "return": each.mean, "CPU seconds": took} for each in played.values()
        ],
        "data": {"win rate": won.double().mean().item(), "return": data.episode_returns().mean().item()},
    }


def report(rows: Sequence[Row]) -> str:
    """Return means over seeds with 95 % intervals."""
    members = [
        _named(row) | {name: member.get(name, float("nan")) for name in MEASURES}
        for row in rows
        for member in row["members"]
    ]
    return table(members, by=("quality", "algorithm", "memory", "updates"), columns=MEASURES)


def _named(row: Row) -> Row:
    if row["stage"] == "play":
        recorded = "folder" in row
        team = "QMIX, recorded here" if recorded else f"scripted, {row['kind']}"
        return {
            "quality": row["kind"] if recorded else "",
            "algorithm": team,
            "memory": RECORDING["memory"] if recorded else "none",
            "updates": "",
        }
    return {name: row[name] or "none" for name in ("quality", "algorithm", "memory", "updates")}


def main() -> None:
    """Record, train and play, or report what is there."""
    parser = script_parser(__doc__)
    parser.add_argument("--output", type=as_folder, default=Path("runs/memory_smax"), help="folder of the recording")
    parser.add_argument("--results", type=as_file, default=RESULTS)
    parser.add_argument("--seeds", type=as_few, default=3)
    parser.add_argument("--qmix", type=as_count, default=10_000, help="updates of QMIX, at most")
    parser.add_argument("--updates", type=as_count, default=1000, help="of each offline algorithm")
    parser.add_argument("--qualities", nargs="+", choices=("medium-replay", "medium", "expert"), default=["medium"])
    parser.add_argument("--methods", nargs="+", choices=[*METHODS], default=[*METHODS], help="algorithm and memory")
    parser.add_argument("--report", action="store_true", help="train nothing: report what is there")
    args = parser.parse_args()
    if not args.report:
        record(TASK, args.output, qualities=args.qualities, progress=False, updates=args.qmix, **RECORDING)
        chosen = {"qualities": args.qualities, "methods": args.methods}
        jobs = jobs_of(args.output, **chosen, seeds=args.seeds, updates=args.updates)
        run_jobs(work, jobs, workers=1, results=args.results)
    print(machine("jax", "jaxmarl"))
    print(report([each["job"] | each["result"] for each in map(json.loads, args.results.read_text().splitlines())]))


if __name__ == "__main__":
    run_script(main)
