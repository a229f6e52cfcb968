"""Are the discrete actions of a loss's first batch among those that its networks have?

A critic's one-hot code of any other index would be zeros, and its value a number that means nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tensordict import unravel_key
from torch import Tensor

from torchrl_marl_offline.core.layout import joined
from torchrl_marl_offline.objectives.first_batch import FirstBatch

if TYPE_CHECKING:
    from torchrl_marl_offline.objectives.batch import Batch
    from torchrl_marl_offline.objectives.team import TeamNetworks

SEEN = FirstBatch()
"""The networks of losses whose first batch has actions of the task."""


def check_first_actions(batch: Batch) -> None:
    """Refuse a loss's first batch where an action that counts is none of the task's.

    To look waits for the device, so that later batches are believed.

    Raises:
        ValueError: it names the entry, the index, its row and the remedy.
    """
    networks, keys = batch.networks, batch.networks.loss.tensor_keys
    action = batch.get(keys.action)
    if action is None or action.is_floating_point() or not SEEN.is_due(networks, action):
        return
    mask = batch.action_mask
    size = number_of_actions(networks) if mask is None else mask.shape[-1]
    _check(keys.action, action, batch.counts(action), size)
    is_read = ("next", *unravel_key(keys.action)) in networks.loss.in_keys
    following = batch.get(("next", keys.action)) if is_read else None
    if following is not None:
        counts = ~batch.terminated(following)
        for mask in (batch.rows, batch.has_next_action):
            counts = counts if mask is None else counts & mask.unsqueeze(-1)
        _check(("next", keys.action), following, counts, size)
    SEEN.passed(networks)


def number_of_actions(networks: TeamNetworks) -> int | None:
    """Return how many actions each agent has by the networks that this library made; None where there is none."""
    for network in (networks.actor, networks.critic):
        build = getattr(network, "build", None)
        if isinstance(build, dict) and build["spec"]["discrete"]:
            return build["spec"]["action_size"]
    return None


def _check(key: object, action: Tensor, counts: Tensor | None, size: int | None) -> None:
    others = action < 0 if size is None else (action < 0) | (action >= size)
    found = (others if counts is None else others & counts).nonzero()
    if len(found):
        *row, agent = found[0].tolist()
        known = "0 or above" if size is None else f"0 to {size - 1}"
        where = f"row {', '.join(map(str, row))} of agent {agent}"
        raise ValueError(
            f"{joined(unravel_key(key))} has {action[tuple(found[0])].item()} at {where}, and the task's actions are "
            f"{known}; mend the data, mask the row, or build networks for more actions."
        )
