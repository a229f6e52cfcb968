"""Several actions of every agent, the candidates of a search or of a maximum, as pure functions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from torch import Tensor


def repeated(tensordict: TensorDictBase, keys: Sequence[NestedKey], *counts: int, first: bool = False) -> TensorDict:
    """Return those of the entries that there are, each row ``counts`` times: ``[*B]`` to ``[*B, *counts]``.

    With ``first``, to ``[*counts, *B]``.
    """
    batch = tensordict.batch_size
    shape = [*counts, *batch] if first else [*batch, *counts]
    entries = {}
    for key in dict.fromkeys(keys):
        entry = tensordict.get(key, None)
        if entry is not None:
            trailing = entry.shape[len(batch) :]
            entry = entry if first else entry.reshape(*batch, *(1,) * len(counts), *trailing)
            entry = entry.expand(*shape, *trailing)
            entries[key] = entry.contiguous() if first else entry  # networks of others may want to view it
    return TensorDict(entries, shape)


def best_candidate(actions: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return of each agent's candidates ``[*B, K, n, a]`` that of the highest value, and the value ``[*B, n]``."""
    value, index = values.max(-2, keepdim=True)  # [*B, 1, n]
    index = index.unsqueeze(-1).expand(*index.shape, actions.shape[-1])
    return actions.gather(-3, index).squeeze(-3), value.squeeze(-2)


def every_action(like: Tensor) -> Tensor:
    """Return all actions of a discrete task as candidates, one-hot ``[*B, A, n, A]``, as many as in ``[*B, n, A]``."""
    size = like.shape[-1]
    each = torch.eye(size, dtype=like.dtype, device=like.device).unsqueeze(-2)  # [A, 1, A]
    return each.expand(*like.shape[:-2], size, like.shape[-2], size)
