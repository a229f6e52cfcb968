"""The settings of marl-offline train that say how a run goes on online."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from torchrl_marl_offline.core import ranges
from torchrl_marl_offline.core.relevance import ReadWith

WITH_ONLINE = ReadWith("online", given=True)


@dataclass(frozen=True)
class OnlineSettings:
    """What going on online takes: after the offline steps, or from a run, a policy or a module's state."""

    online: str | None = None
    """family/task in which the same loss goes on with experience of its own, for instance vmas/balance."""
    from_: Annotated[Path | None, WITH_ONLINE] = None
    """Folder of a run, or file of a policy (ours, or the state of TorchRL's or BenchMARL's), to begin from without
    offline steps."""
    online_steps: Annotated[int, ranges.COUNT, WITH_ONLINE] = 1500
    """Updates on experience of its own."""
    num_envs: Annotated[int, ranges.SIZE, WITH_ONLINE] = 256
    """Environments that play at once."""
    steps_per_round: Annotated[int, ranges.SIZE, WITH_ONLINE] = 10
    """Steps of every environment between two bouts of learning."""
    updates_per_round: Annotated[int, ranges.COUNT, WITH_ONLINE] = 40
    """Updates between two rounds."""
    capacity: Annotated[int, ranges.CAPACITY, WITH_ONLINE] = 200_000
    """Transitions of its own that are kept for sampling."""
    offline_fraction: Annotated[float, ranges.SHARE, WITH_ONLINE] = 0.0
    """Share of recorded data in the batches; 0 is experience of its own alone."""
    anneal: Annotated[bool, WITH_ONLINE, ReadWith("offline_fraction", above=0)] = True
    """Let that share fall to 0 over the first half of the updates."""
    exploration: Annotated[Literal["mode", "sample", "composed"], WITH_ONLINE] = "sample"
    """sample: actions are drawn from the policy's distribution; mode: no exploration, on which AWR stands still;
    composed: every agent's action is drawn from the policy's distribution or from that of the policy that this stage
    began with, whichever joint action the team's critic values most (Sim2O)."""


CARRIED = ("preset", "lr", "tau", "batch_size", "clip_grad_norm", "actor_every", "precision")
"""Settings that a run which goes on from another has of it, unless they are given."""


def check_online(settings: OnlineSettings, given: Collection[str]) -> None:
    """Refuse settings of going on online that do not fit together, before anything is done.

    Args:
        settings: of a run.
        given: names of those that were given explicitly.

    Raises:
        ValueError: they do not.
    """
    if settings.online is None:
        return
    if settings.capacity < settings.steps_per_round * settings.num_envs:
        raise ValueError("--capacity must hold a round, --steps-per-round times --num-envs; raise it.")
    if settings.from_ is not None and not settings.from_.exists():
        raise ValueError(f"--from {settings.from_}: there is no such file or folder; name a run or a policy.")
    unused = [name for name in ("dataset", "task", "episodes") if name in given]
    if unused and settings.from_ is not None and settings.offline_fraction == 0:
        raise ValueError(
            f"--{unused[0]} is read with --from only where --offline-fraction mixes it in; give that, or leave it out."
        )
