"""Suites: benchmarks that one command makes, each dataset with what is known of its optimum, and studies over them."""

from torchrl_marl_offline.suites.entries import Suite, SuiteEntry, SuiteError
from torchrl_marl_offline.suites.known_suites import SUITES, suite_of
from torchrl_marl_offline.suites.making import MadeSuite, make_suite
from torchrl_marl_offline.suites.running import run_suite
from torchrl_marl_offline.suites.suite_report import SuiteReport, write_suite_report

__all__ = [
    "SUITES",
    "MadeSuite",
    "Suite",
    "SuiteEntry",
    "SuiteError",
    "SuiteReport",
    "make_suite",
    "run_suite",
    "suite_of",
    "write_suite_report",
]
