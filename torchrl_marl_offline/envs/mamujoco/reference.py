"""gymnasium-robotics' own environment of a task: where sizes, constants, models and observations are read from."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gymnasium_robotics.envs.multiagent_mujoco.mujoco_multi import MultiAgentMujocoEnv

_MODULE = "gymnasium_robotics.envs.multiagent_mujoco"


def make_reference(
    scenario: str,
    partition: str | None,
    *,
    agent_obsk: int | None = 1,
    agent_factorization: dict[str, Any] | None = None,
    local_categories: Sequence[Sequence[str]] | None = None,
    global_categories: Sequence[str] | None = None,
    **options: Any,
) -> MultiAgentMujocoEnv:
    """Return the PettingZoo environment that defines the task, with physics and rewards of Gymnasium's v5.

    Args:
        scenario: such as ``"Ant"``.
        partition: such as ``"2x4"``, or ``None`` for one agent.
        agent_obsk: up to how many joints away an agent sees; ``None`` for one agent that sees and does everything.
        agent_factorization: a partition of one's own, as gymnasium-robotics documents it.
        local_categories: what is seen of a joint, by its distance; ``None`` for the scenario's.
        global_categories: what every agent sees of the root; ``None`` for positions and velocities.
        **options: of the Gymnasium environment, such as ``ctrl_cost_weight``.

    Raises:
        TypeError: for an option that the scenario does not have.
        ValueError: if ``local_categories`` ends before ``agent_obsk``.
    """
    import gymnasium

    if agent_obsk is not None and local_categories is not None and len(local_categories) <= agent_obsk:
        raise ValueError(
            f"local_categories must have a list for each distance from 0 to agent_obsk, {agent_obsk + 1} in all, got "
            f"{len(local_categories)}."
        )
    layout = {
        "agent_obsk": agent_obsk,
        "agent_factorization": agent_factorization,
        "local_categories": local_categories,
        "global_categories": global_categories,
    }
    make = import_module(f"{_MODULE}.mujoco_multi").MultiAgentMujocoEnv
    if scenario == "CoupledHalfCheetah" and options:
        raise TypeError(f"CoupledHalfCheetah has no options of its own, got {', '.join(options)}.")
    if not scenario.startswith("ManySegment"):
        return _ordered(make(scenario, partition, **layout, **options))
    kind = scenario.removeprefix("ManySegment")
    agents, _, segments = (partition or "").partition("x")
    # gymnasium-robotics would write the model into its own folder, where two processes get into each other's way.
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model.xml")
        generator = import_module(f"{_MODULE}.many_segment_{kind.lower()}")
        generator.gen_asset(n_segs=int(agents) * int(segments), asset_path=path)
        base = gymnasium.make(f"{kind}-v5", xml_file=path, **options)
    return _ordered(make(scenario, partition, gym_env=base, **layout))


def _ordered(environment: MultiAgentMujocoEnv) -> MultiAgentMujocoEnv:
    """Settle what is seen first of joints that bear the same label, as two of Pusher's do; it is chance there."""
    for depths in getattr(environment, "k_dicts", ()):
        for nodes in depths.values():
            nodes.sort(key=lambda node: (node.label, node.act_ids))
    return environment
