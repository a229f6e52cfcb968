"""Losses of the algorithms over networks that a test made, with the rules that it wants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torchrl_marl_offline import OfflineMARLLoss, RectifiedGradient, make_algorithm, settings_of

OF_LOSS = ("heads", "team_reward", "max_next_value")  # settings that are options of the loss itself, too


def loss_of(name: str) -> Callable[..., OfflineMARLLoss]:
    """Return a function (actor, critic, further networks, settings of the algorithm and options of the loss)."""

    def build(actor: Any, critic: Any, *networks: Any, **options: Any) -> OfflineMARLLoss:
        known = settings_of(name)
        given = dict(zip(("behaviour",) if name in ("bcq", "mac_flow") else ("value", "behaviour"), networks))
        if "learning" in options:
            given["value_learning"] = options.pop("learning")
        searched = {"sampler", "others"} & options.keys()
        if name == "omar" and searched:
            searched = {*searched, "rectification"} & options.keys()
            given["extraction"] = RectifiedGradient(**{key: options.pop(key) for key in searched})
        settings = {key: options.pop(key) for key in list(options) if key in known and key not in OF_LOSS}
        return make_algorithm(name, **settings).loss(actor, critic, **given, **options)

    return build


td3_bc_loss, cql_loss, omar_loss, icq_loss, omac_loss, omiga_loss, omsd_loss, bcq_loss, mac_flow_loss = map(
    loss_of, ("td3_bc", "cql", "omar", "icq", "omac", "omiga", "omsd", "bcq", "mac_flow")
)
