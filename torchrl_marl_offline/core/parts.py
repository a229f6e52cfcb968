"""Names of the parts of a training step, for a profiler that listens; where none does, they are next to nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

Listener = Callable[[str], AbstractContextManager]

COMPILED = "compiled loss and gradients"
WHOLE = "the step as one CUDA graph"

_listener: Listener | None = None


def part(name: str) -> AbstractContextManager:
    """Return a context within which the part ``name`` runs."""
    return nullcontext() if _listener is None else _listener(name)


@contextmanager
def heard_by(listener: Listener | None) -> Iterator[None]:
    """Within the block, ask ``listener`` for the context of every part; ``None`` for what is traced or compiled."""
    global _listener
    outer, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = outer
