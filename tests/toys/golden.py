"""What every algorithm computes, written down: a file of numbers that must stay when code moves.

    python tests/toys/golden.py            # compare with the file; on the machine that wrote it, bit for bit
    python tests/toys/golden.py --write    # after a change that is meant to change numbers, in a commit of its own

Of each algorithm, decomposition and kind of action: terms and metrics, and weighted sums of all parameters and
gradients, before the first and after the twentieth update, in float64. A combination that is refused is one, too.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from objective_toys import CONTINUOUS, DISCRETE, make_batch
from torchrl.objectives import SoftUpdate

from torchrl_marl_offline import make_loss
from torchrl_marl_offline.algorithms import ALGORITHMS, is_read, settings_of
from torchrl_marl_offline.core.relevance import DISCRETE as OF_TASK
from torchrl_marl_offline.modules import DECOMPOSITIONS

FILE = Path(__file__).parents[1] / "files" / "golden.json"
UPDATES = 20
SMALL = {"hidden": (4,), "embed_size": 4, "mixer_hidden_size": 4, "attention_heads": 2, "behaviour_hidden": (4,)}
SMALL |= {"num_random": 2, "num_policy": 2, "samples": 4, "iterations": 2, "diffusion_steps": 2, "flow_steps": 2}
RULES = [(learning, extraction) for learning in ("td", "sarsa", "iql") for extraction in ("awr", "brac")]


@dataclass(frozen=True)
class Golden:
    """One combination."""

    algorithm: str
    decomposition: str | None
    discrete: bool
    settings: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        kind = "discrete" if self.discrete else "continuous"
        words = [self.algorithm, self.decomposition or "-", kind, *(str(value) for _, value in self.settings)]
        return " ".join(words)


def cases() -> Iterator[Golden]:
    """Yield every algorithm with every decomposition that it could have, and the recipe's axes."""
    for discrete in (False, True):
        for algorithm in ALGORITHMS:
            names = DECOMPOSITIONS if "decomposition" in settings_of(algorithm) else [None]
            for decomposition in names:
                combinations = RULES if algorithm == "recipe" else [()]
                for rules in combinations:
                    settings = tuple(zip(("value_learning", "extraction"), rules))
                    yield Golden(algorithm, decomposition, discrete, settings)


@contextmanager
def in_double_precision() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def weighted_sum(tensors: dict[str, torch.Tensor]) -> float:
    """Return one number that any moved, renamed or changed entry changes; names count by their order alone."""
    total, count = 0.0, 0
    for _, value in sorted(tensors.items()):
        flat = value.detach().flatten().double()
        total += (flat * torch.cos(torch.arange(count, count + len(flat)))).sum().item()
        count += len(flat)
    return total


def figures(case: Golden, *, updates: int = UPDATES) -> dict[str, Any]:
    """Train a combination and return its numbers; {"refused": kind} where it cannot be made or trained."""
    with in_double_precision():
        torch.manual_seed(1)
        known = settings_of(case.algorithm)
        settings = {name: value for name, value in SMALL.items() if name in known} | dict(case.settings)
        if case.discrete:  # without what continuous actions alone read
            read = {name for name in settings if is_read(case.algorithm, name, {OF_TASK: True})}
            settings = {name: value for name, value in settings.items() if name in read | dict(case.settings).keys()}
        if case.decomposition is not None:
            settings["decomposition"] = case.decomposition
        if case.algorithm == "b3c":
            settings["max_next_value"] = 10.0
        spec = DISCRETE if case.discrete else CONTINUOUS
        try:
            loss = make_loss(spec, algorithm=case.algorithm, **settings)
            updater = SoftUpdate(loss, tau=0.1) if any("target" in name for name, _ in loss.named_buffers()) else None
            loss(batch_of(case, 0))
        except (ValueError, NotImplementedError) as error:
            return {"refused": type(error).__name__}
        return trained(loss, updater, case, updates)


def batch_of(case: Golden, step: int) -> Any:
    """Return the batch of a step: agents that are dead, rows that do not count, and the next actions."""
    batch = make_batch(DISCRETE if case.discrete else CONTINUOUS, 6, seed=step)
    batch["next", "agents", "action"] = batch["agents", "action"].roll(1, 0)
    batch["collector", "mask"] = torch.arange(6) != 4
    alive = torch.ones(6, 3, dtype=torch.bool)
    alive[2, 1] = False
    batch["agents", "mask"], batch["next", "agents", "mask"] = alive, alive.clone()
    return batch


def trained(loss: Any, updater: SoftUpdate | None, case: Golden, updates: int) -> dict[str, Any]:
    parameters = {name: value for name, value in loss.named_parameters() if value.requires_grad}
    optimizer = torch.optim.Adam(parameters.values(), lr=1e-2)
    found = {}
    for step in range(updates + 1):
        optimizer.zero_grad()
        output = loss(batch_of(case, step))
        sum(output[key] for key in output.keys() if key.startswith("loss")).backward()  # noqa: SIM118
        if step in (0, UPDATES):
            gradients = {name: value.grad for name, value in parameters.items() if value.grad is not None}
            numbers = {str(key): value.double().mean().item() for key, value in output.items()}
            sums = {"parameters": weighted_sum(parameters), "gradients": weighted_sum(gradients)}
            counts = {"tensors": len(parameters), "with gradients": len(gradients)}
            found[str(step)] = dict(sorted(numbers.items())) | sums | counts
        optimizer.step()
        if updater is not None:
            updater.step()
    return found


def differences(found: dict[str, Any], expected: dict[str, Any], *, relative: float = 0.0) -> list[str]:
    """Return in words what differs by more than a relative error (of 0: at all)."""
    if "refused" in found or "refused" in expected:
        return [] if found == expected else [f"{found} for {expected}"]
    differ = []
    for step in expected:
        here, there = found[step], expected[step]
        for name in sorted({*here, *there}):
            a, b = here.get(name), there.get(name)
            close = a is not None and b is not None and math.isclose(a, b, rel_tol=relative, abs_tol=relative)
            if not (close or a == b):
                differ.append(f"after {step} updates {name} is {a}, was {b}")
    return differ


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = {str(case): figures(case) for case in cases()}
    if args.write:
        content = {"torch": torch.__version__, "machine": platform.processor() or platform.machine()}
        FILE.write_text(json.dumps(content | {"cases": found}, indent=0, allow_nan=False) + "\n")
        print(f"{len(found)} combinations, {sum('refused' in each for each in found.values())} of them refused")
        return 0
    expected = json.loads(FILE.read_text())["cases"]
    differ = {name: differences(found[name], expected[name]) for name in expected}
    for name, lines in differ.items():
        if lines:
            print(name, *lines[:3], sep="\n  ")
    print(f"{len(expected)} combinations, {sum(map(bool, differ.values()))} differ")
    return int(any(differ.values()))


if __name__ == "__main__":
    sys.exit(main())
