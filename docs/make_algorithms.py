"""Make docs/algorithms.md of the algorithms' docstrings and settings, and of docs/figures.json.

    python docs/make_algorithms.py                       # writes the page
    python docs/make_algorithms.py --check               # fails if the page is stale
    python docs/make_algorithms.py --study runs/systems-spread   # takes a study's scores into figures.json first

Every name of :data:`torchrl_marl_offline.algorithms.ALGORITHMS` gets a section, the docstring of its class.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markup import DASH, inline, simple_table, table, to_markdown

from torchrl_marl_offline.algorithms import ALGORITHMS, settings_of
from torchrl_marl_offline.modules.critics import make_critic

HERE = Path(__file__).parent
PAGE, FIGURES = HERE / "algorithms.md", HERE / "figures.json"
COMMAND = "marl-offline train {}"
METRICS = {"normalized score": "normalized", "return": "return", "success": "success"}
"""The unit of a table of figures -> the metric of studies whose scores it takes."""
MORE_ARGUMENTS = {"b3c": "--max-next-value 220"}
"""What an algorithm's command needs beside its name."""
NOT_RUN = (
    "<!-- not run: takes minutes; tests/docs/test_algorithms.py::test_the_command_of_a_section_trains_what_it_names -->"
)

OPENING = """# Algorithms

Every system below is a value-learning rule and an extraction rule on the same parts: data, networks, evaluation,
populations and studies are shared. `marl-offline train NAME`, `algorithm = "NAME"` in a study
and `make_loss(spec, algorithm="NAME", ...)` take the names of the sections, and each with any decomposition that its
section does not rule out.

This page is made of the docstrings by `python docs/make_algorithms.py`: change those.
"""


def page(figures: Mapping[str, Any]) -> str:
    """Return the whole page.

    Args:
        figures: what ``figures.json`` holds.
    """
    sections = [section(name) for name in ALGORITHMS]
    names = ", ".join(f"[`{name}`](#{name})" for name in ALGORITHMS)
    parts = [OPENING, f"Sections: {names}; [decompositions](#decompositions); [figures](#figures).\n", *sections]
    return "\n".join([*parts, decompositions(), figure_tables(figures)])


def section(name: str) -> str:
    """Return the section of one algorithm.

    Args:
        name: the algorithm's.
    """
    kind = ALGORITHMS[name]
    text = to_markdown(vars(kind)["__doc__"])
    base = next((other.name for other in kind.__mro__[1:] if getattr(other, "name", "") in ALGORITHMS), None)
    if "$$" not in text and base is not None:
        text += f"\nEquations and paper: [`{base}`](#{base}).\n"
    command = " ".join([COMMAND.format(name), *([MORE_ARGUMENTS[name]] if name in MORE_ARGUMENTS else [])])
    rows = [[f"`{key}`", f"`{_literal(value)}`"] for key, value in settings_of(name).items()]
    return f"## {name}\n\n{text}\n{NOT_RUN}\n```bash\n{command}\n```\n\n{table(['setting', 'default'], rows)}\n"


def decompositions() -> str:
    """Return the table of decompositions, from the docstring of ``make_critic``."""
    lines = inspect.cleandoc(make_critic.__doc__).splitlines()
    header, *rows = simple_table(lines)
    cells = [[inline(cell).replace("|", r"\vert ") for cell in row] for row in rows]
    return f'## Decompositions\n\n`make_critic(spec, decomposition="NAME")`:\n\n{table(header, cells)}\n'


def figure_tables(figures: Mapping[str, Any]) -> str:
    """Return measured scores beside published ones, a table for each task."""
    algorithms = figures["algorithms"]
    text = "## Figures\n\nPublished / measured here, with the 95 % interval over seeds; a dash where there is none.\n\n"
    for task, about in figures["tasks"].items():
        qualities = list(about["data"])
        head = [about["unit"], *qualities]
        rows = [["the data", *(_number(about["data"][quality]) for quality in qualities)]]
        sources: dict[str, list[str]] = {}
        for name, found in algorithms.items():
            cells = [found.get(f"{task}-{quality}", {}) for quality in qualities]
            if any(cells):
                rows.append([f"`{name}`", *map(_figure, cells)])
            for source in dict.fromkeys(cell["published"][1] for cell in cells if cell.get("published")):
                sources.setdefault(source, []).append(f"`{name}`")
        origins = "; ".join(f"{', '.join(names)}: {source}" for source, names in sources.items()) or DASH
        text += f"### {about['title']}\n\n{about['text']}\n\n{table(head, rows)}\n\nPublished: {origins}.\n\n"
    return text.rstrip() + "\n"


def _figure(cell: Mapping[str, Any]) -> str:
    published, ours = cell.get("published"), cell.get("ours")
    left = DASH if published is None else _number(published[0])
    if ours is None:
        return f"{left} / {DASH}"
    mean, low, high, seeds = ours
    return f"{left} / **{_number(mean)}** [{_number(low)}, {_number(high)}], {seeds} seeds"


def _number(value: float | None) -> str:
    if value is None:
        return DASH
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{round(value, 1 if abs(value) >= 2 else 2) + 0.0:g}"


def _literal(value: Any) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value)


# ---------------------------------------------------------------- figures


def take_study(figures: dict[str, Any], folder: Path, *, task: str | None = None) -> dict[str, Any]:
    """Return the figures with a study's scores of deterministic policies: the average of their last evaluations.

    Of finished runs alone, of algorithms and of systems that have a row already, with two seeds or more.

    Args:
        figures: what ``figures.json`` holds.
        folder: the study's.
        task: where the study's datasets are named by their qualities alone, the task that they belong to.

    Raises:
        StudyError: the folder is not a study's, or of nothing that the figures have.
    """
    from torchrl_marl_offline.evaluation.statistics import mean_confidence_interval
    from torchrl_marl_offline.study import Plan, StudyError
    from torchrl_marl_offline.study.study_report import make_report
    from torchrl_marl_offline.study.table import write_results

    plan = Plan.load(folder)
    if plan is None:
        raise StudyError(f"{folder} is not the folder of a study; name the output of one that was run.")
    units = {f"{of}-{quality}": about["unit"] for of, about in figures["tasks"].items() for quality in about["data"]}
    shown = {*ALGORITHMS, *figures["algorithms"]}
    write_results(plan, folder)
    report, taken = make_report(plan, folder), 0
    for (dataset, evaluator, method), choice in report.choices.items():
        name = dataset if task is None else f"{task}-{dataset}"
        if name not in units:
            raise StudyError(f"figures.json has no dataset {name!r}; it knows {', '.join(units)}.")
        if METRICS.get(units[name]) != report.metrics[dataset]:
            raise StudyError(
                f"{folder} has {name} as {report.metrics[dataset]}, and its table is in {units[name]!r}; take a study "
                "of the same metric (tag and world have normalized scores against the published prey alone)."
            )
        values = choice.values("average_of_last")
        if evaluator == "mode" and len(values) > 1 and method in shown:
            interval = mean_confidence_interval(values)
            ours = [round(number, 2) for number in (interval.mean, interval.low, interval.high)]
            figures["algorithms"].setdefault(method, {}).setdefault(name, {})["ours"] = [*ours, len(values)]
            taken += 1
    if not taken:
        raise StudyError(f"{folder} has no algorithm's score by mode with two seeds or more; nothing was taken.")
    return figures


def figures_text(figures: Mapping[str, Any]) -> str:
    """Return the file's text: one line a figure."""
    text = json.dumps(figures, indent=1, ensure_ascii=False)
    return re.sub(r"\[\s+([^\[\]]*?)\s+\]", lambda m: "[" + re.sub(r"\s*\n\s*", " ", m[1]) + "]", text) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the page, or check it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, fail if the page is stale")
    parser.add_argument("--study", type=Path, metavar="FOLDER", help="take its scores into figures.json")
    parser.add_argument("--task", help="of the study, where its datasets are named by their qualities alone")
    parser.add_argument("--page", type=Path, default=PAGE, help="another page")
    parsed = parser.parse_args(arguments)
    if parsed.check and parsed.study is not None:
        parser.error("--check writes nothing, and --study takes scores into figures.json; leave one of them out")
    figures = json.loads(FIGURES.read_text(encoding="utf-8"))
    if parsed.study is not None:
        from torchrl_marl_offline.study import StudyError
        from torchrl_marl_offline.training.run.logging import CsvError

        try:
            figures = take_study(figures, parsed.study, task=parsed.task)
        except (StudyError, CsvError, OSError) as error:
            parser.error(str(error).rstrip("."))
    text = page(figures)
    if not parsed.check:
        try:
            parsed.page.write_text(text, encoding="utf-8")
        except OSError as error:
            parser.error(f"--page {parsed.page} cannot be written ({error.strerror}); name another")
        if parsed.study is not None:
            FIGURES.write_text(figures_text(figures), encoding="utf-8")
    elif not parsed.page.exists() or parsed.page.read_text(encoding="utf-8") != text:
        print(f"error: {parsed.page} is stale; run python docs/make_algorithms.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
