"""Algorithms: one file says what each is, as a frozen dataclass of its settings."""

# In the order of the documentation, which is that of their registration.
# isort: off
from torchrl_marl_offline.algorithms.algorithm import (
    ALGORITHMS,
    ActorCritic,
    Algorithm,
    is_read,
    make_algorithm,
    make_loss,
    members_settings,
    setting,
    settings_of,
)
from torchrl_marl_offline.algorithms.recipe import Recipe
from torchrl_marl_offline.algorithms.brac import MABRAC
from torchrl_marl_offline.algorithms.cloning import CloningBaseline
from torchrl_marl_offline.algorithms.td3_bc import MATD3BC
from torchrl_marl_offline.algorithms.b3c import B3C
from torchrl_marl_offline.algorithms.cql import MACQL
from torchrl_marl_offline.algorithms.omar import OMAR
from torchrl_marl_offline.algorithms.cfcql import MACFCQL
from torchrl_marl_offline.algorithms.spacql import SPaCQL
from torchrl_marl_offline.algorithms.icq import MAICQ
from torchrl_marl_offline.algorithms.omac import OMAC
from torchrl_marl_offline.algorithms.omiga import OMIGA
from torchrl_marl_offline.algorithms.omsd import OMSD
from torchrl_marl_offline.algorithms.bcq import MABCQ
from torchrl_marl_offline.algorithms.mac_flow import MACFlow, MACFlowDiscrete

# isort: on
from torchrl_marl_offline.core.extensions import import_room

import_room(__name__)

__all__ = [
    "ALGORITHMS",
    "B3C",
    "MABCQ",
    "MABRAC",
    "MACFCQL",
    "MACQL",
    "MAICQ",
    "MATD3BC",
    "OMAC",
    "OMAR",
    "OMIGA",
    "OMSD",
    "ActorCritic",
    "Algorithm",
    "CloningBaseline",
    "MACFlow",
    "MACFlowDiscrete",
    "Recipe",
    "SPaCQL",
    "is_read",
    "make_algorithm",
    "make_loss",
    "members_settings",
    "setting",
    "settings_of",
]
