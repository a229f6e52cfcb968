"""Evaluation: in environments, on held-out episodes; diagnoses, intervals, tables, pictures, videos, exports."""

from torchrl_marl_offline.core.files import write_json_atomic
from torchrl_marl_offline.evaluation.agent_export import export_agent_policies
from torchrl_marl_offline.evaluation.diagnostics import Diagnosis, diagnose, diagnose_run, save_diagnoses
from torchrl_marl_offline.evaluation.export_check import ExportCheck, verify_export
from torchrl_marl_offline.evaluation.held_out import Calibration, HeldOutEvaluation, evaluate_held_out
from torchrl_marl_offline.evaluation.hub_policies import pull_policy, push_policy
from torchrl_marl_offline.evaluation.in_environments import (
    Evaluation,
    IllegalActionError,
    evaluate,
    evaluate_population,
)
from torchrl_marl_offline.evaluation.offline import (
    CloningSettings,
    FittedQSettings,
    LearnedModelSettings,
    LoggedCalibration,
    OfflineComparison,
    OfflineEstimate,
    OfflineSelection,
    ValueDifference,
    compare_offline,
    select_offline,
    simulated_value,
)
from torchrl_marl_offline.evaluation.over_goals import GoalEvaluation, evaluate_goals
from torchrl_marl_offline.evaluation.pictures import plot_learning_curves, plot_methods
from torchrl_marl_offline.evaluation.policy_export import export_policy
from torchrl_marl_offline.evaluation.policy_strategies import policy_regret, strategies_of
from torchrl_marl_offline.evaluation.run_report import format_table, write_population_report, write_report
from torchrl_marl_offline.evaluation.simulator import make_simulator
from torchrl_marl_offline.evaluation.statistics import (
    Interval,
    bootstrap_confidence_interval,
    mean_confidence_interval,
)
from torchrl_marl_offline.evaluation.summary import summarize_evaluations
from torchrl_marl_offline.evaluation.training_videos import add_videos
from torchrl_marl_offline.evaluation.video import record_video

__all__ = [
    "Calibration",
    "CloningSettings",
    "Diagnosis",
    "Evaluation",
    "ExportCheck",
    "FittedQSettings",
    "GoalEvaluation",
    "HeldOutEvaluation",
    "IllegalActionError",
    "Interval",
    "LearnedModelSettings",
    "LoggedCalibration",
    "OfflineComparison",
    "OfflineEstimate",
    "OfflineSelection",
    "ValueDifference",
    "add_videos",
    "bootstrap_confidence_interval",
    "compare_offline",
    "diagnose",
    "diagnose_run",
    "evaluate",
    "evaluate_goals",
    "evaluate_held_out",
    "evaluate_population",
    "export_agent_policies",
    "export_policy",
    "format_table",
    "make_simulator",
    "mean_confidence_interval",
    "plot_learning_curves",
    "plot_methods",
    "policy_regret",
    "pull_policy",
    "push_policy",
    "record_video",
    "save_diagnoses",
    "select_offline",
    "simulated_value",
    "strategies_of",
    "summarize_evaluations",
    "verify_export",
    "write_json_atomic",
    "write_population_report",
    "write_report",
]
