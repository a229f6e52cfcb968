from __future__ import annotations

import math

import pytest

from torchrl_marl_offline.evaluation import Interval
from torchrl_marl_offline.evaluation.pictures import (
    COLOURS,
    TRAINING_PANELS,
    _shifted,
    plot_learning_curves,
    plot_methods,
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
    runs = {"offline": make_run(tmp_path / "offline", 1.0), "online": make_run(tmp_path / "online", 2.0)}
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
