"""How far a member of a population is from the run trained alone, beside what float32 and float64 permit.

    python benchmarks/population_equality.py --json population_equality.json
    python benchmarks/population_equality.py --algorithm omar --updates 1 10 100

Every seed is trained alone by :class:`Trainer`, once from its start and once, the control, from a start in which every
trained parameter is moved to the next number above or below, at random; and all seeds together by
:class:`Trainer`. Two runs that differ by rounding alone drift apart as the control does. Networks and batches
of the small size, on 4,000 transitions of random play in ``mpe/simple_spread``.

The difference of two runs is taken over all parameters, trained and target: the largest absolute one, and the largest
relative one, which is that of a tensor divided by its largest absolute number. Both are the largest over the seeds.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from arguments import as_amount, as_count, as_size, run_script
from measuring import benchmark_parser, markdown, report
from sizes import SMALL
from step import build_loss, prepare, update
from torch import Tensor

from torchrl_marl_offline import OfflineDataset, OfflineMARLLoss, Trainer, collect, make_env
from torchrl_marl_offline.algorithms import ALGORITHMS
from torchrl_marl_offline.core.functional_parameters import tensors_of
from torchrl_marl_offline.training import Learner, PopulationBuffer, PopulationLearner

DTYPES = {"float32": torch.float32, "float64": torch.float64}
MEMBER, CONTROL = "member of the population", "control: alone, from a start one ulp away"
Snapshots = dict[int, dict[str, Tensor]]
"""Parameters after so many updates."""


def recorded(episodes: int, dtype: torch.dtype) -> OfflineDataset:
    """Return random play in ``mpe/simple_spread``, with its numbers in ``dtype``."""
    dataset = collect(make_env("mpe/simple_spread", num_envs=40), episodes=episodes, seed=0, progress=False)
    dataset.data = dataset.data.apply(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)
    return dataset


def parameters(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies of the networks' parameters and their targets, without statistics and coefficients."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items() if "_params." in name}


@torch.no_grad()
def move_by_one_ulp(loss: OfflineMARLLoss, seed: int) -> None:
    """Move every trained number to its neighbour above or below."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in loss.parameters():
        if parameter.requires_grad:
            above = torch.rand(parameter.shape, generator=generator) < 0.5
            parameter.copy_(parameter.nextafter(torch.where(above, torch.inf, -torch.inf).to(parameter)))


def trained(trainer: Trainer, updates: Sequence[int], read: Any) -> list[Any]:
    """Train and return what ``read`` returned after each of these numbers of updates."""
    prepare(trainer)
    found = []
    for step in range(1, max(updates) + 1):
        update(trainer)
        if step in updates:
            found.append(read())
    return found


def alone(
    loss: OfflineMARLLoss, data: OfflineDataset, seed: int, updates: Sequence[int], *, lr: float, compile: str
) -> Snapshots:
    """Train one run."""
    buffer = data.replay_buffer(batch_size=SMALL.batch_size, seed=seed, keys=loss.in_keys)
    trainer = Trainer(Learner(loss, lr=lr, compile=compile), buffer, steps=max(updates), progress=False)
    torch.manual_seed(seed)  # its noise
    return dict(zip(updates, trained(trainer, updates, lambda: parameters(tensors_of(loss)))))


def together(
    losses: Mapping[str, OfflineMARLLoss], data: OfflineDataset, updates: Sequence[int], *, lr: float, compile: str
) -> list[Snapshots]:
    """Train a population of these losses, with seeds 0, 1, ...; return one for each member."""
    keys = next(iter(losses.values())).in_keys
    buffer = PopulationBuffer(data.data, batch_size=SMALL.batch_size, seeds=range(len(losses)), keys=keys)
    trainer = Trainer(PopulationLearner(losses, lr=lr, compile=compile), buffer, steps=max(updates), progress=False)
    population = trainer.learner.population
    found = trained(trainer, updates, lambda: [parameters(population.member_tensors(name)) for name in losses])
    return [dict(zip(updates, member)) for member in zip(*found)]


def difference(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> tuple[float, float]:
    """Return the largest absolute and the largest relative difference of two runs' parameters."""
    absolute, relative = 0.0, 0.0
    for name, tensor in one.items():
        largest = (tensor - other[name]).abs().max().item()
        absolute = max(absolute, largest)
        relative = max(relative, largest / max(tensor.abs().max().item(), torch.finfo(tensor.dtype).tiny))
    return absolute, relative


def compare(
    dtype: str, members: int, updates: Sequence[int], *, episodes: int, algorithm: str, **training: Any
) -> list[dict[str, Any]]:
    """Train every run in one precision and return the differences."""
    data = recorded(episodes, DTYPES[dtype])

    def build(seed: int) -> OfflineMARLLoss:
        return build_loss(SMALL, algorithm=algorithm, seed=seed).to(DTYPES[dtype])

    population = together({f"seed={seed}": build(seed) for seed in range(members)}, data, updates, **training)
    rows = []
    for seed, member in enumerate(population):
        run = alone(build(seed), data, seed, updates, **training)
        moved = build(seed)
        move_by_one_ulp(moved, seed)
        control = alone(moved, data, seed, updates, **training)
        for what, other in ((MEMBER, member), (CONTROL, control)):
            for step in updates:
                absolute, relative = difference(run[step], other[step])
                row = {"dtype": dtype, "seed": seed, "what": what, "updates": step}
                rows.append(row | {"absolute": absolute, "relative": relative})
    return rows


def table(rows: Sequence[dict[str, Any]], updates: Sequence[int]) -> str:
    """Return a Markdown table of the largest differences over the seeds, absolute / relative."""
    grouped: dict[tuple[str, str, int], list[tuple[float, float]]] = {}
    for row in rows:
        grouped.setdefault((row["dtype"], row["what"], row["updates"]), []).append((row["absolute"], row["relative"]))
    cells = []
    for dtype, what in dict.fromkeys((row["dtype"], row["what"]) for row in rows):
        largest = (map(max, zip(*grouped[dtype, what, step])) for step in updates)
        cells.append([dtype, what, *(" / ".join(f"{value:.1e}" for value in each) for each in largest)])
    return markdown(["", "", *(f"after {step:,}" for step in updates)], cells)


def main() -> None:
    """Measure, print, and write ``--json``."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--algorithm", default="recipe", choices=list(ALGORITHMS))
    parser.add_argument("--members", type=as_size, default=2)
    parser.add_argument(
        "--updates", type=as_count, nargs="+", default=[1, 10, 100, 300, 1000], help="after which to look"
    )
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument("--episodes", type=as_count, default=160, help="of recorded play, 25 transitions each")
    parser.add_argument("--lr", type=as_amount, default=3e-4)
    parser.add_argument("--compile", default="off", choices=["off", "on"])
    args = parser.parse_args()
    if args.quick:
        args.updates, args.episodes, args.compile = [1, 2], 40, "off"
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    updates = sorted(set(args.updates))
    settings = {"episodes": args.episodes, "algorithm": args.algorithm, "lr": args.lr, "compile": args.compile}
    rows = [row for dtype in args.dtypes for row in compare(dtype, args.members, updates, **settings)]
    print(f"largest difference from the run trained alone, absolute / relative, over {args.members} seeds\n")
    print(table(rows, updates))
    report(args.json, rows, members=args.members, **settings)


if __name__ == "__main__":
    run_script(main)
