"""Studies of strangers: names that look like markup, names that lead elsewhere, files that are none."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from torchrl_marl_offline.commands.script_settings import SettingsError, read_config
from torchrl_marl_offline.core.document import Heading, Picture, Table, Text, to_html, to_markdown
from torchrl_marl_offline.study import StudyError, read_results, read_study
from torchrl_marl_offline.study.jobs import RESULT, job_result
from torchrl_marl_offline.study.plan import PLAN_FILE, Plan
from torchrl_marl_offline.study.report_content import Report
from torchrl_marl_offline.training.run.logging import read_csv

NAMES = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[text](javascript:alert(1))",
    "![picture](http://evil/x.png)",
    "[ref][1]",
    "[1]: http://evil",
    "`code`",
    "*stars*",
    "_lines_",
    "a | b",
    "back\\|slash",
    "two\nlines\n# heading",
    "\x1b[31mred",
    "&lt;b&gt;",
    "www.evil.com",
    "~~gone~~",
    "$x$",
)


@pytest.mark.fault("1.3")
@pytest.mark.parametrize("name", NAMES)
def test_a_report_shows_names_as_they_are(tmp_path, name):
    markdown_it = pytest.importorskip("markdown_it")
    picture = tmp_path / "report" / "a.png"
    picture.parent.mkdir()
    picture.write_bytes(b"")
    blocks = [Heading(name), Text(f"Data: {name}."), Text(name, warning=True), Picture(picture, name)]
    blocks.append(Table(["method", name], [[name, "[0.4, 0.6]"]]))
    text = to_markdown(blocks, tmp_path)
    tokens = markdown_it.MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(text)
    inner = [child for token in tokens for child in (token.children or [])]
    kinds = {child.type for child in inner} | {token.type for token in tokens}
    assert not kinds & {"link_open", "html_inline", "html_block", "code_inline", "em_open", "s_open"}
    assert [child.attrs["src"] for child in inner if child.type == "image"] == ["report/a.png"]
    assert "\x1b" not in text and "\x1b" not in to_html(blocks, name)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 3 and text.count("\n#") == 0


@pytest.mark.fault("1.3")
def test_markdown_of_a_name_has_no_markup_of_its_own(tmp_path):
    def markdown(text):
        return to_markdown([Text(text)], tmp_path).strip()

    assert markdown("<b>") == "\\<b>" and markdown("a < b") == "a < b"
    assert markdown("[a](b)") == "[a]\\(b)" and markdown("0.5 [0.4, 0.6]") == "0.5 [0.4, 0.6]"
    assert markdown("&amp;") == "\\&amp;" and markdown("a & b") == "a & b"
    assert markdown("`x` *y* _z_ a_b") == "\\`x\\` \\*y\\* \\_z\\_ a_b"
    assert markdown("two\nlines\x1b") == "two lines"
    cell = to_markdown([Table(["a\\|b"], [["c|d"]])], tmp_path)
    assert cell == "| a\\\\\\|b |\n| --- |\n| c\\|d |\n"
    picture = Picture(tmp_path / "a b).png", "x](evil) [y")
    assert to_markdown([picture], tmp_path) == "![x\\]\\(evil) \\[y](a%20b%29.png)\n"


@pytest.mark.fault("1.3")
def test_pictures_of_odd_names_lie_in_the_reports_folder(tmp_path):
    report = Report(None, tmp_path, None, {}, [], {})
    assert report.picture("methods spread mode") == tmp_path / "report" / "methods-spread-mode.png"
    names = ["curves a\n", "curves a<b>", "curves a>b<", "curves ../../x", "curves " + "x" * 300, "curves a`b"]
    paths = {report.picture(name) for name in names}
    assert len(paths) == len(names) and {path.parent for path in paths} == {tmp_path / "report"}
    assert all(len(path.name) < 200 for path in paths)


@pytest.mark.fault("1.3")
def test_a_plan_names_folders_of_its_own_study(tmp_path):
    run = {"name": "a--b--seed=0", "dataset": "a", "method": "b", "seed": 0, "grid": {}, "settings": {}}
    plan = {"name": "x", "datasets": {}, "evaluation": {"modes": ["mode"]}}
    for name in ("a--b--00", "../../etc", "/etc", "..", "a/b", "", "a\nb"):
        populations = [{"name": name, "runs": [run]}]
        (tmp_path / PLAN_FILE).write_text(json.dumps(plan | {"populations": populations}))
        if name == "a--b--00":
            assert Plan.load(tmp_path).populations[0].name == name
        else:
            with pytest.raises(StudyError, match="damaged"):
                Plan.load(tmp_path)


@pytest.mark.fault("1.3")
@pytest.mark.timeout(60)
def test_a_pipe_in_the_place_of_a_studys_or_a_runs_file_is_refused_at_once(tmp_path):
    readers = {
        "study.toml": (read_study, StudyError),
        PLAN_FILE: (lambda file: Plan.load(file.parent), StudyError),
        RESULT: (lambda file: job_result(file.parent), ValueError),
        "results.parquet": (lambda file: read_results(file.parent), ValueError),
        "eval.csv": (read_csv, ValueError),
        "config.json": (lambda file: read_config(Path, file.parent), SettingsError),
    }
    for name, (read, error) in readers.items():
        os.mkfifo(tmp_path / name)
        with pytest.raises(error):
            read(tmp_path / name)
    (tmp_path / "deep.toml").write_text("a = " + "[" * 100_000)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    (tmp_path / "device.toml").symlink_to("/dev/zero")
    for name in ("deep.toml", "binary.toml", "device.toml"):
        with pytest.raises(StudyError, match=name):
            read_study(tmp_path / name)
