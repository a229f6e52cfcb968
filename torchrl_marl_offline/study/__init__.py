"""Studies: methods × datasets × grids × seeds in one file, trained as populations, in one table and one report."""

from torchrl_marl_offline.study.checking import StudyError
from torchrl_marl_offline.study.choosing import OfflineSettings, SearchSettings
from torchrl_marl_offline.study.plan import Plan, PlannedPopulation, plan_study
from torchrl_marl_offline.study.runner import Machine, StudyOutcome, run_study
from torchrl_marl_offline.study.runs import Run
from torchrl_marl_offline.study.schema import study_schema
from torchrl_marl_offline.study.settings import (
    EvaluationSettings,
    Study,
    StudySettings,
    TrainingSettings,
    read_study,
    with_recordings,
)
from torchrl_marl_offline.study.sources import DatasetSource
from torchrl_marl_offline.study.table import read_results

__all__ = [
    "DatasetSource",
    "EvaluationSettings",
    "Machine",
    "OfflineSettings",
    "Plan",
    "PlannedPopulation",
    "Run",
    "SearchSettings",
    "Study",
    "StudyError",
    "StudyOutcome",
    "StudySettings",
    "TrainingSettings",
    "plan_study",
    "read_results",
    "read_study",
    "run_study",
    "study_schema",
    "with_recordings",
]
