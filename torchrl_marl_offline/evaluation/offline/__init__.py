"""Evaluation and choice of policies from logged data alone: fitted Q evaluation, weights, doubly robust, models."""

from torchrl_marl_offline.evaluation.offline.behaviour_model import CloningSettings
from torchrl_marl_offline.evaluation.offline.checks import LoggedCalibration
from torchrl_marl_offline.evaluation.offline.comparison import OfflineComparison, compare_offline
from torchrl_marl_offline.evaluation.offline.estimates import Measured, OfflineEstimate, ValueDifference
from torchrl_marl_offline.evaluation.offline.fitted_q import FittedQSettings, PolicyEvaluation
from torchrl_marl_offline.evaluation.offline.learned_model import LearnedModelSettings
from torchrl_marl_offline.evaluation.offline.selection import OfflineSelection, select_offline, simulated_value

__all__ = [
    "CloningSettings",
    "FittedQSettings",
    "LearnedModelSettings",
    "LoggedCalibration",
    "Measured",
    "OfflineComparison",
    "OfflineEstimate",
    "OfflineSelection",
    "PolicyEvaluation",
    "ValueDifference",
    "compare_offline",
    "select_offline",
    "simulated_value",
]
