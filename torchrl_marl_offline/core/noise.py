"""Random numbers of the losses, drawn here so that a caller can bring its own.

A loss that samples asks :func:`exponential_like`, :func:`normal_like` or :func:`uniform_like`. Alone they draw from
torch's global generator. Where a step is compiled, or many runs are one computation, the numbers are drawn before, from
each run's generator, and :func:`given_noise` hands them in, in the same order: the losses are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from torchrl_marl_offline.core.synchronized import joined_shape, own_rows

Kind = Literal["exponential", "normal", "uniform"]


@dataclass(frozen=True)
class NoiseRequest:
    """What a loss asked for: numbers of a distribution, their shape and dtype."""

    kind: Kind
    shape: torch.Size
    dtype: torch.dtype

    def draw(self, device: torch.device | str, generator: torch.Generator | None = None) -> Tensor:
        """Draw the numbers; of a joined batch every process draws all, and takes its own."""
        shape, options = joined_shape(self.shape), {"dtype": self.dtype, "device": device}
        if self.kind == "exponential":
            return own_rows(torch.empty(shape, **options).exponential_(generator=generator))
        # under torch.vmap these can draw for each member, which filling a tensor cannot
        draw = torch.randn if self.kind == "normal" else torch.rand
        options |= {} if generator is None else {"generator": generator}  # its overload cannot be exported
        return own_rows(draw(shape, **options))


_requests: list[NoiseRequest] | None = None
_given: list[Tensor] | None = None


def exponential_like(x: Tensor) -> Tensor:
    """Numbers of the exponential distribution with rate 1, in the shape of ``x``."""
    return _noise("exponential", x)


def normal_like(x: Tensor) -> Tensor:
    """Numbers of the standard normal distribution, in the shape of ``x``."""
    return _noise("normal", x)


def uniform_like(x: Tensor) -> Tensor:
    """Numbers uniform in [0, 1), in the shape of ``x``."""
    return _noise("uniform", x)


def _noise(kind: Kind, x: Tensor) -> Tensor:
    request = NoiseRequest(kind, x.shape, x.dtype)
    if _requests is not None:
        _requests.append(request)
        return torch.full_like(x, 0.5)
    if _given is None:
        return request.draw(x.device)
    if not _given:
        raise RuntimeError(f"The loss asks for more noise than it was given: {request}.")
    return _given.pop(0)


@contextmanager
def recorded_noise() -> Iterator[list[NoiseRequest]]:
    """Within the block, list what is asked for; the numbers handed out mean nothing."""
    global _requests
    outer, _requests = _requests, []
    try:
        yield _requests
    finally:
        _requests = outer


@contextmanager
def given_noise(noise: Sequence[Tensor]) -> Iterator[None]:
    """Within the block, hand out ``noise`` in the order in which it is asked for."""
    global _given
    outer, _given = _given, list(noise)
    try:
        yield
    finally:
        _given = outer
