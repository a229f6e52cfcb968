"""Draw the pictures of docs: one for each page, from the library's own functions and from benchmarks/results/*.md.

``python docs/pictures/make_pictures.py`` writes all of them beside this file, ``make_pictures.py svn rules`` some.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from torchrl_marl_offline import AWR
from torchrl_marl_offline.commands import main
from torchrl_marl_offline.core.figure_style import COLOURS, DASHES, new_figure, save_figure
from torchrl_marl_offline.objectives.functional import expectile_weighted_square

FOLDER = Path(__file__).parent
RESULTS = FOLDER.parents[1] / "benchmarks" / "results"
BLUE, RED, GREEN, PINK, SKY, ORANGE, BLACK = COLOURS
NUMBER = r"-?\d+(?:\.\d+)?"


def table_after(start: str, columns: int) -> list[list[str]]:
    """Return the rows of the first table of ``columns`` columns behind a text in the results, without its header."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in sorted(RESULTS.glob("*.md")))
    if start not in text:
        raise ValueError(f"No page of results says {start!r} any more; point make_pictures.py to where the table is.")
    rows: list[list[str]] = []
    for line in text.partition(start)[2].splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("|") and len(cells) == columns:
            rows.append(cells)
        elif rows:
            break
    return rows[2:]


def interval(cell: str) -> tuple[float, float, float]:
    """Read ``mean [low, high]``."""
    mean, low, high = (float(number) for number in re.findall(NUMBER, cell.replace("*", "")))
    return mean, low, high


def write(figure, name: str) -> None:
    """Write a picture in at most 64 colours, which keeps it small."""
    path = save_figure(figure, FOLDER / f"{name}.png")
    _smaller(path, path)


def _smaller(source: Path, target: Path, width: int | None = None) -> None:
    from PIL import Image  # comes with matplotlib

    image = Image.open(source).convert("RGB")
    image = image if width is None else image.resize((width, round(image.height * width / image.width)))
    image.quantize(64, dither=Image.Dither.NONE).save(target, optimize=True)


def bars(axis, names, cells, colours, *, log=False):
    """Draw a bar for each ``mean [low, high]``, the first on top."""
    means, lows, highs = zip(*map(interval, cells))
    places = np.arange(len(names))
    around = [np.subtract(means, lows), np.subtract(highs, means)]
    axis.barh(places, means, xerr=around, color=colours, height=0.65, ecolor=BLACK, capsize=2.5)
    axis.set_yticks(places, names)
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    if log:
        axis.set_xscale("log")


def layout() -> None:
    """Two episodes of a team of three: which rows count, and where values go on."""
    figure, axes = new_figure(2, size=(8.6, 2.9))
    for axis, ended in zip(axes, ("terminated", "truncated")):
        dead_from, steps = 3, 5
        for agent in range(3):
            for step in range(steps):
                dead = agent == 2 and step >= dead_from
                colour = "white" if dead else (SKY, GREEN, ORANGE)[agent]
                axis.add_patch(_box(step, 2 - agent, colour, dashes=":" if dead else "-"))
                axis.text(step + 0.5, 2.5 - agent, "dead" if dead else "o, u, r", ha="center", va="center", fontsize=9)
        last = "done, terminated\ny = r" if ended == "terminated" else "done, truncated\ny = r + γ · value(s′)"
        axis.add_patch(_box(steps, 0, "white", height=3, dashes="--"))
        axis.text(steps + 0.5, 1.5, "the final\nnext\nstate", ha="center", va="center", fontsize=8)
        for step in range(steps):
            axis.text(step + 0.5, -0.25, f"row {step}", ha="center", va="top", fontsize=8)
        axis.text(steps - 0.05, 3.2, last, ha="right", va="bottom", fontsize=9, color=RED)
        axis.set_title(f"ends: {ended}", loc="left", fontsize=10)
        axis.set(xlim=(-0.1, steps + 1.2), ylim=(-0.7, 4.2))
        axis.set_yticks([2.5, 1.5, 0.5], ["agent 0", "agent 1", "agent 2"])
        axis.set_xticks([])
        axis.grid(visible=False)
        axis.tick_params(length=0)
        for side in ("left", "bottom"):
            axis.spines[side].set_visible(False)
    write(figure, "layout")


def _box(x, y, colour, *, height=1, dashes="-"):
    from matplotlib.patches import Rectangle

    return Rectangle((x + 0.04, y + 0.05), 0.92, height - 0.1, fc=colour, ec=BLACK, lw=0.8, ls=dashes)


def decompositions() -> None:
    """The two-step game: what a sum of local values makes of its payoffs, and what each decomposition plays for."""
    figure, axes = new_figure(3, size=(10.4, 3.3))
    payoff = np.array([[0.0, 1.0], [1.0, 8.0]])
    design = np.array([[1, 0, 1, 0], [1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 0, 1]], dtype=float)
    best_sum = (design @ np.linalg.lstsq(design, payoff.ravel(), rcond=None)[0]).reshape(2, 2)
    for axis, values, title in (
        (axes[0], payoff, "payoffs of the second step"),
        (axes[1], best_sum, "best fit by a sum, Q₁ + Q₂"),
    ):
        axis.imshow(values, cmap="cividis", vmin=-2, vmax=9)
        for (row, column), value in np.ndenumerate(values):
            colour = "white" if value < 4 else BLACK
            axis.text(column, row, f"{value:g}", ha="center", va="center", fontsize=15, color=colour)
        axis.set_xticks([0, 1], ["agent 2: 0", "1"])
        axis.set_yticks([0, 1], ["agent 1: 0", "1"])
        axis.set_title(title, loc="left", fontsize=10)
        axis.grid(visible=False)
    rows = table_after("All decompositions, `python benchmarks/two_step.py", 3)
    names, cells = [row[0] for row in rows], [row[1] for row in rows]
    bars(axes[2], names, cells, [BLUE if interval(cell)[0] > 7 else ORANGE for cell in cells])
    axes[2].set(xlim=(6, 8.2), xlabel="return, 10 seeds (7 is safe, 8 is best)")
    axes[2].tick_params(axis="y", labelsize=8)
    write(figure, "decompositions")


def rules() -> None:
    """One next state: at which action, or at what of the recorded ones, each rule reads the value."""
    figure, (axis,) = new_figure(1, size=(7.2, 3.6))
    actions = np.linspace(-1, 1, 400)
    recorded = np.array([-0.75, -0.6, -0.5, -0.35, -0.2, -0.05, 0.05])
    truth = 4 - 3 * (recorded - 0.1) ** 2
    known = 4 - 3 * (actions - 0.1) ** 2
    critic = known + 9 * np.clip(actions - 0.15, 0, None) ** 1.5
    axis.plot(actions, critic, color=BLUE, label="the critic Q(s′, ·)")
    axis.plot(actions, known, color=BLACK, ls=DASHES[3], label="the true value")
    axis.plot(recorded, truth, "o", color=BLACK, ms=5, label="actions that were recorded")
    policy = 0.8
    height = float(np.interp(policy, actions, critic))
    axis.plot([policy], [height], "X", color=RED, ms=10, label="TD: at the policy's action")
    axis.plot(
        [recorded[2]], [truth[2]], "s", color=GREEN, ms=10, mfc="none", mew=2, label="SARSA: at the recorded next one"
    )
    values = torch.tensor(truth)
    grid = torch.linspace(float(values.min()), float(values.max()), 2000, dtype=values.dtype)
    cost = expectile_weighted_square(values - grid[:, None], torch.tensor(0.9, dtype=values.dtype)).sum(-1)
    expectile = float(grid[cost.argmin()])
    axis.axhline(expectile, color=ORANGE, ls=DASHES[1], label="IQL: expectile 0.9 of those recorded")
    axis.set(xlabel="action in s′", ylabel="value", xlim=(-1, 1), ylim=(0, 9))
    axis.legend(frameon=False, fontsize=8, loc="upper left")
    write(figure, "rules")


def svn() -> None:
    """What was measured on expert data: the largest gradient, and the return."""
    rows = [row for row in table_after("`python benchmarks/instability.py`", 9) if row[1] == "all"]
    names = [row[0] for row in rows]
    colours = [SKY if "mixer" in name else ORANGE for name in names]
    figure, axes = new_figure(2, size=(9.6, 2.9))
    bars(axes[0], names, [row[6] for row in rows], colours, log=True)
    axes[0].set_xlabel("largest gradient norm")
    bars(axes[1], names, [row[8] for row in rows], colours)
    axes[1].set(xlabel="return after 5,000 updates", yticklabels=[])
    write(figure, "svn")


def extraction() -> None:
    """The weights of AWR by advantage, and how much of the batch they leave to learn from."""
    figure, axes = new_figure(2, size=(9.2, 3.3))
    advantage = torch.randn(8192, 1, generator=torch.Generator().manual_seed(0)).sort(0).values
    advantage = (advantage - advantage.mean()) / advantage.std()
    strengths = np.geomspace(0.1, 100, 40)
    for index, form in enumerate(("bounded", "clipped", "softmax")):
        rule, look = AWR(3.0, weights=form), {"color": COLOURS[index], "ls": DASHES[index], "label": form}
        weight = rule.weight(advantage, 3.0)
        axes[0].plot(advantage, weight / weight.mean(), **look)
        shares = []
        for strength in strengths:
            weight = rule.weight(advantage, float(strength)).double()
            shares.append(float(weight.mean() ** 2 / (weight**2).mean()))
        axes[1].plot(strengths, shares, **look)
    axes[0].set(xlabel="standardized advantage", ylabel="weight (1 is the mean)", yscale="log", ylim=(1e-3, 200))
    axes[0].set_title("temperature 3", loc="left", fontsize=10)
    axes[1].set(xlabel="temperature", ylabel="share of the batch that counts", xscale="log", yscale="log")
    axes[1].set_ylim(1e-3, 1.1)
    axes[0].legend(frameon=False)
    write(figure, "extraction")


def diagnosis() -> None:
    """What ``marl-offline diagnose`` draws of two small runs, which are trained here: minutes."""
    runs = {"td-brac": ("td", "brac"), "iql-awr": ("iql", "awr")}
    with tempfile.TemporaryDirectory() as place:
        folders = [str(Path(place) / name) for name in runs]
        for folder, (learning, extraction) in zip(folders, runs.values()):
            words = ["train", "recipe", "--no-cloning", "--output", folder, "--episodes", "400", "--steps", "1500"]
            words += ["--value-learning", learning, "--extraction", extraction]
            if main([*words, "--eval-every", "1500", "--eval-episodes", "20"]):
                sys.exit(1)
        if main(["diagnose", *folders, "--output", place]):
            sys.exit(1)
        _smaller(Path(place) / "diagnosis.png", FOLDER / "diagnosis.png", width=860)


PICTURES = {each.__name__: each for each in (layout, decompositions, rules, svn, extraction, diagnosis)}

if __name__ == "__main__":
    if unknown := set(sys.argv[1:]) - PICTURES.keys():
        sys.exit(f"error: There is no picture {', '.join(sorted(unknown))}; choose of {', '.join(PICTURES)}.")
    for name in sys.argv[1:] or PICTURES:
        PICTURES[name]()
