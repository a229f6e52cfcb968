"""The layouts of Overcooked that are tasks, known without importing the package."""

from __future__ import annotations

LAYOUTS: tuple[str, ...] = (
    *("asymmetric_advantages", "asymmetric_advantages_tomato", "bonus_order_test", "bottleneck", "centre_objects"),
    *("centre_pots", "coordination_ring", "corridor", "counter_circuit", "counter_circuit_o_1order"),
    *("cramped_corridor", "cramped_room", "cramped_room_o_3orders", "cramped_room_tomato", "five_by_five"),
    *("forced_coordination", "forced_coordination_tomato", "inverse_marshmallow_experiment", "large_room"),
    *("long_cook_time", "m_shaped_s", "marshmallow_experiment", "marshmallow_experiment_coordination", "mdp_test"),
    *("pipeline", "random0", "random3", "scenario1_s", "scenario2", "scenario2_s", "scenario3", "scenario4"),
    *("schelling", "schelling_s", "simple_o", "simple_o_t", "simple_tomato", "small_corridor", "soup_coordination"),
    *("tutorial_0", "tutorial_1", "tutorial_2", "unident", "you_shall_not_pass"),
)
"""Those of the package for two cooks, in which every soup pays a finite reward."""


def layout_names() -> dict[str, str]:
    """Return what :func:`~torchrl_marl_offline.make_env` finds below ``overcooked/``."""
    return dict.fromkeys(LAYOUTS, "overcooked:Overcooked")
