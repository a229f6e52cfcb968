"""How long an episode of somebody else's environment may last."""

from __future__ import annotations

from typing import Any

_NAMES = ("max_episode_steps", "max_cycles", "max_steps", "_max_episode_steps", "episode_limit", "max_num_steps")
_INSIDE = ("unwrapped", "base_env", "aec_env", "par_env", "env", "_env")


def time_limit(env: Any, max_steps: int | None) -> int:
    """Return ``max_steps``, or the limit that ``env`` or something that it wraps carries as an attribute.

    Raises:
        ValueError: there is none.
    """
    if max_steps is not None:
        return max_steps
    waiting, seen = [env], set()
    while waiting:
        layer = waiting.pop(0)
        if id(layer) in seen:
            continue
        seen.add(id(layer))
        for name in _NAMES:
            limit = _attribute(layer, name)
            if isinstance(limit, int) and not isinstance(limit, bool) and limit > 0:
                return limit
        inside = (_attribute(layer, name) for name in _INSIDE)
        waiting += [each for each in inside if each is not None and hasattr(each, "step")]
    raise ValueError(f"{type(env).__name__} does not say how long an episode may last: give max_steps.")


def _attribute(layer: Any, name: str) -> Any:
    try:
        return getattr(layer, name, None)
    except Exception:  # a wrapper's property may raise anything where it does not apply
        return None
