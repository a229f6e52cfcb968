"""The tasks of the StarCraft Multi-Agent Challenge, known without the game, and what it needs."""

from __future__ import annotations

from typing import Any

INSTALL = (
    "pip install 'git+https://github.com/oxwhirl/smacv2', install StarCraft II 4.10 with the SMAC maps in "
    "Maps/SMAC_Maps, and set SC2PATH to its folder"
)

MAPS: tuple[str, ...] = (
    *("3m", "8m", "25m", "5m_vs_6m", "8m_vs_9m", "10m_vs_11m", "27m_vs_30m", "MMM", "MMM2", "2s3z", "3s5z"),
    *("3s5z_vs_3s6z", "3s_vs_3z", "3s_vs_4z", "3s_vs_5z", "1c3s5z", "2m_vs_1z", "corridor", "6h_vs_8z", "2s_vs_1sc"),
    *("so_many_baneling", "bane_vs_bane", "2c_vs_64zg"),
)
"""The maps of the first challenge (Samvelyan et al., 2019)."""

_TEAMS = {  # unit type -> how often; a team is never made of the exceptions alone
    "protoss": ({"stalker": 0.45, "zealot": 0.45, "colossus": 0.1}, ()),
    "terran": ({"marine": 0.45, "marauder": 0.45, "medivac": 0.1}, ("medivac",)),
    "zerg": ({"zergling": 0.45, "baneling": 0.1, "hydralisk": 0.45}, ("baneling",)),
}
_SIZES = ((5, 5), (10, 10), (10, 11), (20, 20), (20, 23))

SCENARIOS: dict[str, tuple[str, int, int]] = {
    f"{race}_{allies}_vs_{enemies}": (race, allies, enemies) for race in _TEAMS for allies, enemies in _SIZES
}
"""Scenario of SMACv2 (Ellis et al., 2023) -> race, allies and enemies."""


def smacv2_arguments(scenario: str) -> dict[str, Any]:
    """Return the published settings of a scenario, arguments of ``smacv2.env.StarCraftCapabilityEnvWrapper``."""
    race, allies, enemies = SCENARIOS[scenario]
    weights, exceptions = _TEAMS[race]
    team = {"dist_type": "weighted_teams", "unit_types": [*weights], "weights": [*weights.values()], "observe": True}
    if exceptions:
        team["exception_unit_types"] = [*exceptions]
    starts = {"dist_type": "surrounded_and_reflect", "p": 0.5, "map_x": 32, "map_y": 32}
    return {
        "map_name": f"10gen_{race}",
        "capability_config": {"n_units": allies, "n_enemies": enemies, "team_gen": team, "start_positions": starts},
        "conic_fov": False,
        "obs_own_pos": True,
        "use_unit_ranges": True,
        "min_attack_range": 2,
    }


def smac_names() -> dict[str, str]:
    """Return what :func:`~torchrl_marl_offline.make_env` finds below ``smac/``."""
    return dict.fromkeys(MAPS, "starcraft:smac")


def smacv2_names() -> dict[str, str]:
    """Return what :func:`~torchrl_marl_offline.make_env` finds below ``smacv2/``."""
    return dict.fromkeys(SCENARIOS, "starcraft:smacv2")
