"""Training: steps of one loss or of a population, and runs of them with logs and checkpoints."""

from torchrl_marl_offline.core.moved import moved
from torchrl_marl_offline.core.put_back import evaluation_mode, preserved_rng
from torchrl_marl_offline.training.composed_policy import ComposedPolicy
from torchrl_marl_offline.training.online import CollectorSource, OnlineReplay
from torchrl_marl_offline.training.population_split import split_population
from torchrl_marl_offline.training.populations.population import Population, PopulationBuffer
from torchrl_marl_offline.training.populations.population_learner import PopulationLearner
from torchrl_marl_offline.training.run.checkpoints import BufferState, CheckpointManager
from torchrl_marl_offline.training.run.distributed import (
    ProcessFailedError,
    SingleProcess,
    distributed_from_environment,
)
from torchrl_marl_offline.training.run.foreign_policies import import_policy
from torchrl_marl_offline.training.run.logging import CsvError, CsvTable, RunLogger, read_csv
from torchrl_marl_offline.training.run.metrics import NonFiniteLossError
from torchrl_marl_offline.training.run.run_lock import RunInUseError
from torchrl_marl_offline.training.run.saved_policies import SavedPolicy, load_policy, save_policy
from torchrl_marl_offline.training.run.value_alarm import ImpossibleValueError, ImpossibleValueWarning
from torchrl_marl_offline.training.step.learner import Learner
from torchrl_marl_offline.training.step.optimizer import default_optimizer
from torchrl_marl_offline.training.step.target_update import ForeachSoftUpdate
from torchrl_marl_offline.training.trainer import Trainer, TrainingFinished, TrainingInterrupted

__all__ = [
    "BufferState",
    "CheckpointManager",
    "CollectorSource",
    "ComposedPolicy",
    "CsvError",
    "CsvTable",
    "ForeachSoftUpdate",
    "ImpossibleValueError",
    "ImpossibleValueWarning",
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
    "SingleProcess",
    "Trainer",
    "TrainingFinished",
    "TrainingInterrupted",
    "default_optimizer",
    "distributed_from_environment",
    "evaluation_mode",
    "import_policy",
    "load_policy",
    "preserved_rng",
    "read_csv",
    "save_policy",
    "split_population",
]

_RECORDING = (
    "OnlineLearner",
    "RecordSettings",
    "choose_level",
    "make_matd3",
    "make_online_learner",
    "make_qmix",
    "published_levels",
    "record",
)
_EVALUATION = (
    "Calibration",
    "Evaluation",
    "HeldOutEvaluation",
    "IllegalActionError",
    "Interval",
    "bootstrap_confidence_interval",
    "evaluate",
    "evaluate_held_out",
    "evaluate_population",
    "export_policy",
    "format_table",
    "mean_confidence_interval",
    "plot_learning_curves",
    "plot_methods",
    "record_video",
    "summarize_evaluations",
    "write_json_atomic",
    "write_population_report",
    "write_report",
)
_SCRIPTS = ("SettingsError", "parse_settings", "plain_errors", "write_config")

__getattr__ = moved(
    __name__,
    dict.fromkeys(_RECORDING, "torchrl_marl_offline.recording")
    | dict.fromkeys(_EVALUATION, "torchrl_marl_offline.evaluation")
    | dict.fromkeys(_SCRIPTS, "torchrl_marl_offline.commands.script_settings"),
)
