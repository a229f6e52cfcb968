"""Diagnoses of losses and runs: numbers, a verdict, and one page with the figures of Lee et al. 2026."""

from torchrl_marl_offline.evaluation.diagnostics.diagnosing import (
    Diagnosis,
    diagnose,
    diagnose_run,
    diagnoses_text,
    save_diagnoses,
)
from torchrl_marl_offline.evaluation.diagnostics.measuring import NUMBERS
from torchrl_marl_offline.evaluation.diagnostics.verdicts import Reason, Verdict

__all__ = ["NUMBERS", "Diagnosis", "Reason", "Verdict", "diagnose", "diagnose_run", "diagnoses_text", "save_diagnoses"]
