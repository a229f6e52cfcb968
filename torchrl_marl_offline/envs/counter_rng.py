"""Random starts that depend on (seed, environment index, episode) and on nothing else."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Shift int64 bit patterns right and fill with zeros (``>>`` would copy the sign)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


class CounterRandom:
    """A counter-based generator: SplitMix64 hashes of (seed, environment, episode, draw).

    A start never depends on how many environments run beside it, on which of them were reset together, or on
    the device, so environment 3 of 10 and environment 3 of 1,000 play the same episodes. The source of the
    mixing function is Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014).

    Args:
        seed: any integer that fits into 64 bits.
        num_envs: number of environments ``B``.
        device: where the numbers are made.
    """

    def __init__(self, seed: int, *, num_envs: int, device: torch.device) -> None:
        index = torch.arange(1, num_envs + 1, device=device)
        self._environment = _mix(_mix(index * _GOLDEN) + int(seed))
        self.episode = torch.zeros(num_envs, dtype=torch.int64, device=device)

    def state_dict(self) -> dict[str, Tensor]:
        """Return what all numbers to come depend on."""
        return {"environment": self._environment.clone(), "episode": self.episode.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what :meth:`state_dict` returned."""
        device = self.episode.device
        self._environment = state["environment"].to(device, copy=True)
        self.episode = state["episode"].to(device, copy=True)

    def advance(self, reset: Tensor | None) -> None:
        """Begin the next episode in the environments ``reset`` (bool ``[B]``; ``None``: all of them)."""
        self.episode = self.episode + (1 if reset is None else reset.to(torch.int64))

    def uniform(self, draws: int, *, rows: Tensor | None = None, stream: int = 0, first: Tensor | int = 0) -> Tensor:
        """Return float64 numbers in [0, 1), ``[R, draws]``.

        ``rows`` (int64 ``[R]``) are the environments that want them, by default all; another ``stream`` gives
        independent numbers. ``first`` (or int64 ``[R, 1]``) of the episode's numbers are skipped, as by a game that
        draws some in every step.
        """
        environment, episode = self._environment, self.episode
        if rows is not None:
            environment, episode = environment[rows], episode[rows]
        key = _mix(environment + (episode * 256 + stream) * _GOLDEN)
        counter = torch.arange(1, draws + 1, device=key.device) + first
        bits = _mix(key.unsqueeze(-1) + counter * _GOLDEN)
        return _shift_right(bits, 11).to(torch.float64) * 2.0**-53
