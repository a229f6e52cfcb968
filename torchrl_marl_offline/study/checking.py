"""What is wrong with a study, in one sentence."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

from torchrl_marl_offline.training.run.metrics import DIAGNOSES


class StudyError(ValueError):
    """A study file, or the folder of a study, is not what it should be; the message names the remedy."""


@contextmanager
def study_errors() -> Iterator[None]:
    """Make a :class:`StudyError` of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise error if isinstance(error, StudyError) else StudyError(str(error)) from None


def check_installed() -> None:
    """Raise for a library of the extra ``study`` that is missing, before anything is trained.

    Raises:
        ImportError: there is one.
    """
    missing = [name for name in ("pandas", "pyarrow", "rliable") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"A study's table and report need {' and '.join(missing)}; install the extra: pip install "
            "'torchrl-marl-offline[study]'."
        )


def check_metric(name: str) -> None:
    """Raise for a metric that must not be compared.

    Raises:
        StudyError: it says how like the data policies are, not what they earn.
    """
    if name in DIAGNOSES:
        raise StudyError(
            f"[study] metric {name!r} says how like the recorded data a policy is, not what it earns: cloning has the "
            "best by construction. It is reported as a diagnosis; leave metric out, or name one of a simulator."
        )
