from __future__ import annotations

import math

import pytest

from torchrl_marl_offline.core.figure_style import COLOURS, DASHES, FORMATS, MARKERS, look, make_figure, new_figure
from torchrl_marl_offline.evaluation import Interval
from torchrl_marl_offline.evaluation.pictures import (
    METRIC_LABELS,
    TRAINING_PANELS,
    _shifted,
    plot_learning_curves,
    plot_methods,
    title_of,
)
from torchrl_marl_offline.training import RunLogger

pytest.importorskip("matplotlib")


def make_run(folder, level: float, *, diverges: bool = False, evaluations: bool = True):
    logger = RunLogger(folder)
    for step in range(100, 5100, 100):
        rise = 1 - math.exp(-step / 1500)
        logger.log_train(
            step,
            {
                "loss_qvalue": 1.0 / step,
                "qvalue_abs": 20 * math.exp(step / 600) if diverges else 40 * rise,
                "value_norm_scale": 3 + rise,
                "effective_sample_size": 0.6 - 0.2 * rise,
                "grad_norm": 2 + math.sin(step / 300),
            },
        )
        if evaluations and step % 500 == 0:
            for evaluator, shift in (("mode", 0.0), ("sampled", -25.0)):
                value = 160 + level * rise + shift
                logger.log_eval(step, evaluator, {"return": value, "return_low": value - 12, "return_high": value + 12})
    return folder


def pixels(path):
    from matplotlib.image import imread

    return imread(path)


def distinct_colours(path) -> int:
    import numpy as np

    red, green, blue = (pixels(path)[..., channel] * 255 for channel in range(3))
    return len(np.unique(((red.astype(int) * 256) + green.astype(int)) * 256 + blue.astype(int)))


def test_learning_curves_of_one_run_and_of_several(tmp_path):
    recipe = make_run(tmp_path / "recipe", 380.0)
    cloning = make_run(tmp_path / "cloning", 250.0, diverges=True)
    one = plot_learning_curves(recipe, tmp_path / "one.png", data_mean=457.0, title="mpe/simple_spread")
    two = plot_learning_curves({"recipe": recipe, "cloning": cloning}, tmp_path / "two.png", data_mean=457.0)
    for path in (one, two):
        assert pixels(path).shape[1] > 1000  # three panels to a row
        assert distinct_colours(path) > 50
    assert not (pixels(one) == pixels(two)).all()
    assert sorted(p.name for p in tmp_path.glob("*.png")) == ["one.png", "two.png"]


def test_a_run_can_go_on_where_another_ended(tmp_path):
    runs = {"offline": make_run(tmp_path / "offline", 1.0), "online": str(make_run(tmp_path / "online", 2.0))}
    side_by_side = plot_learning_curves(runs, tmp_path / "a.png")
    one_after_the_other = plot_learning_curves(runs, tmp_path / "b.png", starts={"online": 500})
    assert not (pixels(side_by_side) == pixels(one_after_the_other)).all()
    assert _shifted([{"step": 3, "return": 1.0}], 500) == [{"step": 503, "return": 1.0}]


def test_only_the_columns_that_exist_get_a_panel(tmp_path):
    folder = make_run(tmp_path / "run", 1.0, evaluations=False)
    wide = plot_learning_curves(folder, tmp_path / "a.png")
    narrow = plot_learning_curves(folder, tmp_path / "b.png", panels={"value_norm_scale": "σ", "absent": "x"})
    assert pixels(wide).shape[1] == pytest.approx(3 * pixels(narrow).shape[1], rel=0.01)
    assert len(TRAINING_PANELS) == 4
    with pytest.raises(FileNotFoundError):
        plot_learning_curves(tmp_path / "nowhere", tmp_path / "c.png")
    assert not (tmp_path / "c.png").exists()


@pytest.mark.fault("6.3")
def test_curves_of_one_point_can_be_seen(tmp_path):
    """A run that has been logged once, and evaluated once: each panel shows a dot."""
    from matplotlib.colors import to_rgb

    for logged in (1, 2):
        logger = RunLogger(tmp_path / str(logged))
        for step in range(100, 100 * logged + 1, 100):
            logger.log_train(step, dict.fromkeys(TRAINING_PANELS, 3.0))
            logger.log_eval(step, "mode", {"return": 2.0})
        image = pixels(plot_learning_curves(tmp_path / str(logged), tmp_path / f"{logged}.png"))[..., :3]
        blue = abs(image - to_rgb(COLOURS[0])).max(-1) < 0.1
        panels = len(TRAINING_PANELS) + 1
        rows, columns = -(-panels // 3), 3
        height, width = image.shape[0] // rows, image.shape[1] // columns
        for panel in range(panels):
            y, x = (panel // columns) * height, (panel % columns) * width
            assert blue[y : y + height, x : x + width].sum() > 10, (logged, panel)


def test_methods_with_intervals(tmp_path):
    methods = {
        "data": Interval(457.0, 450.0, 464.0),
        "behaviour cloning": (392.0, 371.0, 413.0),
        "recipe (Mix + SVN + IQL + AWR)": (486.0, 470.0, 502.0),
        "losses": (-40.0, -60.0, -20.0),
    }
    path = plot_methods(methods, tmp_path / "methods.png", title="mpe/simple_spread, 5 seeds")
    assert distinct_colours(path) > 50
    single = plot_methods({"data": Interval(0.0, 0.0, 0.0)}, tmp_path / "single.png")
    assert pixels(single).shape[0] < pixels(path).shape[0]
    with pytest.raises(ValueError, match="at least one method"):
        plot_methods({}, path)


# ------------------------------------------------------------------- the one style


def figure_of(monkeypatch, draw):
    """Return the figure that a function would write."""
    from matplotlib.figure import Figure

    seen = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (seen.append(self), save(self, *a, **k))[1])
    draw()
    return seen[0]


def test_methods_are_told_apart_without_colour():
    looks = [look(index) for index in range(56)]
    assert len({str(one) for one in looks}) == 56
    assert len({(one["marker"], str(one["ls"])) for one in looks[:8]}) == 8
    assert len(set(COLOURS)) == len(DASHES) == 7 and len(set(MARKERS)) == 8


def seen_by(colour: str, matrix: list[list[float]]):
    """Return a colour as somebody sees it who lacks a kind of cones (Machado et al. 2009, severity 1)."""
    import numpy as np
    from matplotlib.colors import to_rgb

    linear = np.array([(c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4) for c in to_rgb(colour)])
    return np.clip(np.array(matrix) @ linear, 0, 1) ** (1 / 2.2)


@pytest.mark.parametrize(
    "matrix",
    [
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    ],
    ids=["no red cones", "no green cones"],
)
def test_colours_differ_for_the_colour_blind(matrix):
    import itertools

    import numpy as np

    def nearest(colours):
        seen = [seen_by(colour, matrix) for colour in colours]
        return min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(seen, 2))

    assert nearest(COLOURS) > 0.12
    common = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2")
    assert nearest(common) < 0.12  # a palette that is not safe is found


def test_each_curve_has_its_marker_and_titles_and_axes_say_what_is_shown(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", 1.0)
    options = {"title": "mpe/simple_spread, data of collect"}
    figure = figure_of(monkeypatch, lambda: plot_learning_curves(run, tmp_path / "a.png", **options))
    assert figure.get_suptitle() == options["title"] and len(figure.axes) == 1 + len(TRAINING_PANELS)
    first = figure.axes[0]
    assert first.get_ylabel() == METRIC_LABELS["return"] and {axis.get_xlabel() for axis in figure.axes} == {"updates"}
    assert [line.get_marker() for line in first.get_lines()] == ["o", "s"]
    assert all(axis.lines for axis in figure.axes)


def test_a_run_has_one_colour_and_marker_in_all_panels_and_its_evaluators_differ_in_dashes(tmp_path, monkeypatch):
    runs = {name: make_run(tmp_path / name, 1.0) for name in ("cloning", "recipe")}
    figure = figure_of(monkeypatch, lambda: plot_learning_curves(runs, tmp_path / "a.png"))
    evaluated, *training = (axis.get_lines() for axis in figure.axes)
    for lines in training:
        for line, (mode, sampled) in zip(lines, (evaluated[:2], evaluated[2:])):
            for way in (mode, sampled):
                assert (way.get_color(), way.get_marker()) == (line.get_color(), line.get_marker())
            assert (mode.get_linestyle(), sampled.get_linestyle()) == ("-", "--")
            assert sampled.get_markerfacecolor() == "white"


def test_a_panel_without_a_finite_number_is_not_drawn(tmp_path, monkeypatch):
    logger = RunLogger(tmp_path / "run")
    logger.log_train(1, {"qvalue_abs": math.nan, "grad_norm": 1.0, "value_norm_scale": math.inf})
    figure = figure_of(monkeypatch, lambda: plot_learning_curves(tmp_path / "run", tmp_path / "a.png"))
    assert [axis.get_ylabel() for axis in figure.axes] == ["gradient norm"]
    logger = RunLogger(tmp_path / "empty")
    logger.log_train(1, {"qvalue_abs": math.nan})
    with pytest.raises(ValueError, match="There is nothing to draw yet: no run has 'return' or any of qvalue_abs"):
        plot_learning_curves(tmp_path / "empty", tmp_path / "b.png")
    assert not (tmp_path / "b.png").exists()


def test_figures_are_written_in_further_formats_and_equal_ones_are_equal_files(tmp_path):
    methods = {"data": (1.0, 0.5, 1.5), "a name that is far too long for the room beside the bars": (2.0, 1.0, 3.0)}
    for name in ("a", "b"):
        assert plot_methods(methods, tmp_path / f"{name}.png", formats=FORMATS) == tmp_path / f"{name}.png"
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{n}.{f}" for n in "ab" for f in sorted(FORMATS)]
    for kind, start in (("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")):
        one, other = ((tmp_path / f"{name}.{kind}").read_bytes() for name in "ab")
        assert one.startswith(start) and one == other
    assert plot_methods(methods, tmp_path / "c.pdf").read_bytes().startswith(b"%PDF")
    with pytest.raises(ValueError, match="formats must be 'png', 'pdf' or 'svg', got 'gif'"):
        plot_learning_curves(make_run(tmp_path / "run", 1.0), tmp_path / "d.png", formats=["gif"])


def test_a_figure_has_no_empty_panel():
    figure, axes = new_figure(4)
    assert len(axes) == len(figure.axes) == 4
    assert make_figure((2, 1)).axes == []


def test_titles_name_the_task_and_the_data():
    from data_toys import episodes

    data = episodes((3, 5))
    data.metadata["source"] = "pymarl:" + "/very/long/path" * 10
    assert title_of(data).startswith(f"{data.spec.task or 'unnamed task'}, data of … ") and len(title_of(data)) < 100
