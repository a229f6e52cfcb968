"""Training and evaluation: the loop, its checkpoints, its logs, pictures and intervals."""

from torchrl_marl_offline.core.moved import moved
from torchrl_marl_offline.core.put_back import evaluation_mode, preserved_rng
from torchrl_marl_offline.training.checkpoints import BufferState, CheckpointManager
from torchrl_marl_offline.training.command_line import (
    SettingsError,
    expand_settings,
    parse_settings,
    plain_errors,
    write_config,
)
from torchrl_marl_offline.training.distributed import (
    ProcessFailedError,
    SingleProcess,
    distributed_from_environment,
)
from torchrl_marl_offline.training.evaluation import Evaluation, IllegalActionError, evaluate, evaluate_population
from torchrl_marl_offline.training.held_out import Calibration, HeldOutEvaluation, evaluate_held_out
from torchrl_marl_offline.training.learner import Learner
from torchrl_marl_offline.training.logging import CsvError, CsvTable, RunLogger, read_csv
from torchrl_marl_offline.training.metrics import NonFiniteLossError
from torchrl_marl_offline.training.online import CollectorSource, OnlineReplay
from torchrl_marl_offline.training.optimizer import default_optimizer
from torchrl_marl_offline.training.pictures import plot_learning_curves, plot_methods
from torchrl_marl_offline.training.policy_export import export_policy
from torchrl_marl_offline.training.population import Population, PopulationBuffer
from torchrl_marl_offline.training.population_learner import PopulationLearner
from torchrl_marl_offline.training.population_split import split_population
from torchrl_marl_offline.training.run_lock import RunInUseError
from torchrl_marl_offline.training.run_report import format_table, write_population_report, write_report
from torchrl_marl_offline.training.saved_policies import SavedPolicy, load_policy, save_policy
from torchrl_marl_offline.training.statistics import (
    Interval,
    bootstrap_confidence_interval,
    mean_confidence_interval,
)
from torchrl_marl_offline.training.summary import summarize_evaluations, write_json_atomic
from torchrl_marl_offline.training.target_update import ForeachSoftUpdate
from torchrl_marl_offline.training.trainer import Trainer, TrainingFinished, TrainingInterrupted
from torchrl_marl_offline.training.value_alarm import ImpossibleValueError, ImpossibleValueWarning
from torchrl_marl_offline.training.video import record_video

__all__ = [
    "BufferState",
    "Calibration",
    "CheckpointManager",
    "CollectorSource",
    "CsvError",
    "CsvTable",
    "Evaluation",
    "ForeachSoftUpdate",
    "HeldOutEvaluation",
    "IllegalActionError",
    "ImpossibleValueError",
    "ImpossibleValueWarning",
    "Interval",
    "Learner",
    "NonFiniteLossError",
    "OnlineReplay",
    "Population",
    "PopulationBuffer",
    "PopulationLearner",
    "ProcessFailedError",
    "RunInUseError",
    "RunLogger",
    "SavedPolicy",
    "SettingsError",
    "SingleProcess",
    "Trainer",
    "TrainingFinished",
    "TrainingInterrupted",
    "bootstrap_confidence_interval",
    "default_optimizer",
    "distributed_from_environment",
    "evaluate",
    "evaluate_held_out",
    "evaluate_population",
    "evaluation_mode",
    "expand_settings",
    "export_policy",
    "format_table",
    "load_policy",
    "mean_confidence_interval",
    "parse_settings",
    "plain_errors",
    "plot_learning_curves",
    "plot_methods",
    "preserved_rng",
    "read_csv",
    "record_video",
    "save_policy",
    "split_population",
    "summarize_evaluations",
    "write_config",
    "write_json_atomic",
    "write_population_report",
    "write_report",
]

__getattr__ = moved(
    __name__,
    dict.fromkeys(
        (
            "OnlineLearner",
            "RecordSettings",
            "choose_level",
            "make_matd3",
            "make_online_learner",
            "make_qmix",
            "published_levels",
            "record",
        ),
        "torchrl_marl_offline.recording",
    ),
)
