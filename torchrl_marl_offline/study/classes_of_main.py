"""Algorithms and rules that are defined where the program begins: do worker processes define them, too?"""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from pathlib import Path

from torchrl_marl_offline.algorithms.algorithm import ALGORITHMS
from torchrl_marl_offline.objectives.extraction import EXTRACTIONS
from torchrl_marl_offline.objectives.value_learning import VALUE_LEARNINGS
from torchrl_marl_offline.study.checking import StudyError
from torchrl_marl_offline.study.jobs import Job


def check_workers_know_classes(jobs: Sequence[Job], *, import_main: bool) -> None:
    """Refuse jobs with an algorithm or a rule that no worker process would know.

    Args:
        jobs: what the workers are to do.
        import_main: whether workers import the script that was started, as processes of multiprocessing do: what it
            defines outside ``if __name__ == "__main__":`` is then there.

    Raises:
        StudyError: it names the class and says where to put it.
    """
    settings = [value for job in jobs for run in job.population.runs for value in run.settings.values()]
    used = {value for value in settings if isinstance(value, str)}
    for names in (ALGORITHMS, VALUE_LEARNINGS, EXTRACTIONS):
        for name, kind in names.items():
            if name in used and kind.__module__ == "__main__" and not (import_main and _is_imported(kind)):
                raise StudyError(
                    f"{name!r} is the class {kind.__name__} of __main__, which worker processes do not define; put it "
                    "into a file of its own, and pass that to torchrl_marl_offline.core.extensions.import_extensions, "
                    "or to the command by --import."
                )


def _is_imported(kind: type) -> bool:
    """Say whether a class stands at the top of the script that was started."""
    file = getattr(sys.modules["__main__"], "__file__", None)
    if file is None or not Path(file).is_file():
        return False
    statements = ast.parse(Path(file).read_text(encoding="utf-8")).body
    return any(isinstance(each, ast.ClassDef) and each.name == kind.__qualname__ for each in statements)
