"""``diagnosis.html``, ``diagnosis.png`` and ``diagnosis.json``."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from torchrl_marl_offline.core.document import Block, Heading, Picture, Table, Text, to_html
from torchrl_marl_offline.core.figure_style import FigureFormat
from torchrl_marl_offline.core.files import write_json_atomic, write_text_atomic
from torchrl_marl_offline.evaluation.diagnostics.diagnosed import Diagnosed
from torchrl_marl_offline.evaluation.diagnostics.diagnosis_figures import draw_all
from torchrl_marl_offline.evaluation.diagnostics.measuring import NUMBERS

PAGE, PICTURE, JSON = "diagnosis.html", "diagnosis.png", "diagnosis.json"


def write_page(diagnoses: Sequence[Diagnosed], folder: Path, formats: Sequence[FigureFormat]) -> Path:
    """Write all three; returns the page's path."""
    from PIL import Image  # comes with matplotlib

    figures = draw_all(diagnoses, folder / PICTURE, formats)
    write_json_atomic(folder / JSON, {"runs": [each.to_dict() for each in diagnoses]})
    blocks = [*_verdicts(diagnoses), *_numbers(diagnoses)]
    with tempfile.TemporaryDirectory() as place, Image.open(folder / PICTURE) as whole:
        for number, (caption, box) in enumerate(figures):
            part = Path(place) / f"{number}.png"
            whole.crop(box).save(part)
            blocks.append(Picture(part, caption))
        write_text_atomic(folder / PAGE, to_html(blocks, title_of_page(diagnoses)))
    return folder / PAGE


def title_of_page(diagnoses: Sequence[Diagnosed]) -> str:
    """Return what a page is called."""
    return f"Diagnosis of {', '.join(each.name for each in diagnoses)}"


def _verdicts(diagnoses: Sequence[Diagnosed]) -> list[Block]:
    blocks: list[Block] = [Heading(title_of_page(diagnoses), 1)]
    for each in diagnoses:
        at = "" if each.step is None else f", at step {each.step:,}"
        on = f", on {each.rows:,} rows" if each.rows else ""
        blocks.append(Text(f"{each.name}: {each.verdict.word}{at}{on}."))
        blocks += [Text(reason.text, warning=True) for reason in each.verdict.reasons]
    return blocks


def _numbers(diagnoses: Sequence[Diagnosed]) -> list[Block]:
    names = [name for name in NUMBERS if any(name in each.numbers for each in diagnoses)]
    blocks: list[Block] = []
    if names:
        rows = [[name, *(shown(each.numbers.get(name)) for each in diagnoses), NUMBERS[name]] for name in names]
        blocks += [Heading("Numbers"), Table(["number", *(each.name for each in diagnoses), "meaning"], rows)]
    agents = [(each, index, share) for each in diagnoses for index, share in enumerate(each.by_agent.get("credit", []))]
    if agents:
        rows = [[each.name, str(index), shown(share)] for each, index, share in agents]
        blocks.append(Table(["run", "agent", "share of the credit"], rows, summary="Credit by agent"))
    for each in diagnoses:
        matrix = each.by_agent.get("advantage_correlation")
        if matrix:
            rows = [[f"agent {index}", *map(shown, row)] for index, row in enumerate(matrix)]
            header = ["", *(f"agent {index}" for index in range(len(matrix)))]
            blocks.append(Table(header, rows, summary=f"Correlation of the agents' advantages, {each.name}"))
    missing = [(each.name, what) for each in diagnoses for what in each.missing]
    if missing:
        blocks.append(Table(["run", "left out"], missing, summary="What was left out, and why"))
    return blocks


def shown(value: float | None) -> str:
    """Return a number in four digits; nothing of none."""
    return "" if value is None else f"{value:.4g}"
