"""The notebooks run, at a small size, and are committed as they were run at theirs."""

from __future__ import annotations

import json
from pathlib import Path

import page_toys
import pytest
from selection import thorough

FOLDER = Path(__file__).parents[2] / "examples" / "notebooks"
SMALL = {
    "main_job": "EPISODES, STEPS, EVALUATED = 20, 6, 8",
    "own_data": "STEPS = 4",
}


def cells_of(name: str) -> list[dict]:
    return json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]


def test_every_notebook_is_here():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == SMALL.keys()


@pytest.mark.parametrize("name", [thorough("main_job"), "own_data"])
def test_its_cells_run_in_order(name, tmp_path):
    folder = tmp_path / "place"
    folder.mkdir()
    interpreter = page_toys.Interpreter(folder)
    try:
        for number, cell in enumerate(cell for cell in cells_of(name) if cell["cell_type"] == "code"):
            code = "".join(cell["source"])
            if "parameters" in cell["metadata"].get("tags", []):
                code += f"\n{SMALL[name]}\n"
            interpreter.run(page_toys.Block(f"{name}.ipynb cell {number}", 1, "python", None, code, None))
    finally:
        interpreter.close()
    assert any(folder.rglob("*.png")) and any(folder.rglob("policy.pt"))


@pytest.mark.parametrize("name", SMALL)
def test_it_is_committed_with_what_it_printed_and_drew(name):
    cells = [cell for cell in cells_of(name) if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 400_000
    text = (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")
    assert str(Path.home()) not in text and "/tmp/" not in text, "a folder of the machine that ran it"
