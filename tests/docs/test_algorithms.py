"""The page of algorithms: made of the docstrings as they are, and what it says can be run."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import make_algorithms as program
import markup
import pytest
from study_toys import STUDY, quietly, write_study

from torchrl_marl_offline import TaskSpec
from torchrl_marl_offline.algorithms import ALGORITHMS, make_algorithm
from torchrl_marl_offline.commands.train import make_parser
from torchrl_marl_offline.commands.training_plan import new_plan
from torchrl_marl_offline.modules.critics import DECOMPOSITIONS
from torchrl_marl_offline.study import StudyError

ROOT = Path(__file__).parents[2]
FIGURES = json.loads((ROOT / "docs/figures.json").read_text())


def sections() -> dict[str, str]:
    parts = re.split(r"^## (.*)\n", (ROOT / "docs/algorithms.md").read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2]))


def test_the_page_is_not_stale(capsys):
    assert program.main(["--check"]) == 0, capsys.readouterr().err


def test_a_stale_page_fails_the_check(tmp_path, capsys):
    page = tmp_path / "page.md"
    assert program.main(["--check", "--page", str(page)]) == 1
    assert program.main(["--page", str(page)]) == 0
    assert program.main(["--check", "--page", str(page)]) == 0
    page.write_text(page.read_text().replace("$$", "$", 1))
    assert program.main(["--check", "--page", str(page)]) == 1
    assert f"{page} is stale; run python docs/make_algorithms.py" in capsys.readouterr().err


def test_every_algorithm_and_decomposition_has_its_place():
    found = sections()
    assert list(found) == [*ALGORITHMS, "Decompositions", "Figures"]
    for name in ALGORITHMS:
        text = found[name]
        if name != "cloning":
            assert "https://arxiv.org/abs/" in text or "Equations and paper: [" in text, name
            assert text.count("$$") % 2 == 0 and ("$$\n" in text or "Equations and paper: [" in text), name
        for mark in (":class:", ":math:", ".. math", "``", "Build "):
            assert mark not in text.replace("```", "") or (mark == "Build " and name in ("b3c", "mac_flow_discrete")), (
                name,
                mark,
            )
    rows = re.findall(r"^\| `(\w+)` \|", found["Decompositions"], flags=re.MULTILINE)
    assert sorted(rows) == sorted(DECOMPOSITIONS)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_command_of_a_section_trains_what_it_names(name):
    (command,) = re.findall(r"```bash\n(.*)\n```", sections()[name])
    program, part, *arguments = shlex.split(command)
    assert (program, part) == ("marl-offline", "train")
    plan = new_plan(make_parser().parse_args(arguments))
    loss = plan.loss(name, TaskSpec(3, 18, 54, 2, task="mpe/simple_spread"))
    assert plan.algorithm == name
    rules = make_algorithm(name, **plan.of_method(name)).rules(discrete=False)
    assert {rule: getattr(loss, rule) for rule in rules} == rules


def test_markup_by_hand():
    text = r"""First line, arXiv:2106.06860.

    .. math::
        a\,b,
        \|c\|

    (:class:`TD`, :func:`~torchrl_marl_offline.make_critic`, :math:`\alpha`, ``x=1``.)

    Published (table 1): two.

    Args:
        x: left out.

    Still left out no more.
    """
    assert markup.to_markdown(text) == (
        "First line, [arXiv:2106.06860](https://arxiv.org/abs/2106.06860).\n\n"
        "$$\na\\thinspace b, \\Vert c\\Vert \n$$\n\n"
        "(`TD`, `make_critic`, $`\\alpha`$, `x=1`.)\n\n"
        "**Published** (table 1): two.\n\n"
        "Still left out no more.\n"
    )
    with pytest.raises(ValueError, match="add it to WORDS"):
        markup.safe_math(r"a \\ b")
    rows = markup.simple_table(["text", "==  =====", "a   b", "==  =====", "c   d e", "    f", "g", "==  ====="])
    assert rows == [["a", "b"], ["c", "d e f"], ["g", ""]]


def test_figures_that_are_not_measured_are_dashes():
    text = program.figure_tables(FIGURES | {"algorithms": {"omar": {"spread-random": {"published": [34.4, "them"]}}}})
    assert "| `omar` | 34.4 / – | – / – | – / – | – / – |" in text
    assert "Published: `omar`: them." in text
    cell = {"published": [34.4, "them"], "ours": [30.04, 28.0, 1234.5, 5]}
    text = program.figure_tables(FIGURES | {"algorithms": {"omar": {"spread-random": cell}}})
    assert "| 34.4 / **30** [28, 1,234], 5 seeds | – / –" in text
    assert program.figures_text(FIGURES) == (ROOT / "docs/figures.json").read_text()
    for name, found in FIGURES["algorithms"].items():
        for cell in found.values():
            assert name and set(cell) <= {"published", "ours"} and len(cell.get("published", "ab")) == 2


def test_a_studys_scores_stand_beside_the_published(tmp_path):
    file = write_study(tmp_path, STUDY.replace("[datasets.spread]", "[datasets.spread-medium]"))
    quietly(file)
    empty = {"tasks": FIGURES["tasks"], "algorithms": {"cloning": {"spread-medium": {"published": [31.8, "them"]}}}}
    found = program.take_study(empty, tmp_path / "out")["algorithms"]
    mean, low, high, seeds = found["cloning"]["spread-medium"]["ours"]
    assert seeds == 3 and low < mean < high
    assert found["cloning"]["spread-medium"]["published"] == [31.8, "them"]
    assert set(found) == {"cloning"}  # the others are no algorithms, nor rows that are there
    rows = {"tasks": FIGURES["tasks"], "algorithms": {"mix-vdn": {}}}
    assert set(program.take_study(rows, tmp_path / "out")["algorithms"]) == {"cloning", "mix-vdn"}
    with pytest.raises(StudyError, match="not the folder of a study"):
        program.take_study(empty, tmp_path / "nowhere")
    quietly(write_study(tmp_path / "other"))
    with pytest.raises(StudyError, match="has no dataset 'spread'; it knows spread-random"):
        program.take_study(empty, tmp_path / "other/out")
    quietly(write_study(tmp_path / "short", STUDY.replace("[datasets.spread]", "[datasets.expert]")))
    found = program.take_study(empty, tmp_path / "short/out", task="spread")["algorithms"]
    assert found["cloning"]["spread-expert"]["ours"][3] == 3


def test_scores_in_another_unit_or_of_one_seed_are_not_taken(tmp_path):
    empty = {"tasks": FIGURES["tasks"], "algorithms": {}}
    text = STUDY.replace("[datasets.spread]", "[datasets.spread-medium]")
    quietly(write_study(tmp_path / "one", text, seeds=1))
    with pytest.raises(StudyError, match="no algorithm's score by mode with two seeds or more; nothing was taken"):
        program.take_study(empty, tmp_path / "one/out")
    quietly(write_study(tmp_path / "returns", text.replace("steps = 40", 'steps = 40\nmetric = "return"')))
    with pytest.raises(StudyError, match="has spread-medium as return, and its table is in 'normalized score'; take"):
        program.take_study(empty, tmp_path / "returns/out")
    assert empty["algorithms"] == {}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--check", "--study", "x"], "--check writes nothing, and --study takes scores"),
        (["--study", "nowhere"], "nowhere is not the folder of a study"),
        (["--page", "/nowhere/at/all.md"], "--page /nowhere/at/all.md cannot be written"),
    ],
)
def test_what_cannot_be_done_is_told_before_the_figures_change(arguments, told, capsys):
    before = (ROOT / "docs/figures.json").read_text()
    with pytest.raises(SystemExit):
        program.main(arguments)
    assert told in capsys.readouterr().err and (ROOT / "docs/figures.json").read_text() == before
