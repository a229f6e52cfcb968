"""What a preset of ``marl-offline train`` makes of an algorithm's settings."""

from __future__ import annotations

from typing import Any

QUICK_SIZES = {"hidden": (64, 64)}
RECIPE = {
    "quick": {"advantage": "joint", "expectile": 0.7, "gamma": 0.95},
    "paper": {"advantage": "local", "expectile": 0.9, "gamma": 0.99},
}
"""The recipe's settings by preset; other algorithms have those that were published with them."""


def preset_of(preset: str, algorithm: str) -> dict[str, Any]:
    """Return what a preset makes of an algorithm's settings."""
    return (QUICK_SIZES if preset == "quick" else {}) | (RECIPE[preset] if algorithm == "recipe" else {})
