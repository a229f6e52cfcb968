"""The picture of a dataset's card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from torchrl_marl_offline.core.figure_style import (
    COLOURS,
    LIGHT_GREY,
    SHADE,
    FigureFormat,
    figure_style,
    make_figure,
    save_figure,
)
from torchrl_marl_offline.core.layout import ACTION

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from torchrl_marl_offline.data.transitions.dataset import OfflineDataset
    from torchrl_marl_offline.data.transitions.findings import Inspection

_COLOUR, _MARK = COLOURS[:2]
_STYLE = {"font.size": 9, "axes.titlesize": 10, "axes.labelsize": 9, "axes.grid": False, "figure.dpi": 120}
_WIDEST = 150


@figure_style(_STYLE)
def draw_card(
    dataset: OfflineDataset,
    facts: dict[str, Any],
    inspection: Inspection,
    path: str | Path,
    formats: Sequence[FigureFormat] = (),
) -> Path:
    """Write one page: returns, lengths, actions, rewards of the agents, coverage, findings.

    Args:
        dataset: what is drawn.
        facts: of its card.
        inspection: its findings.
        path: the PNG (or PDF, SVG) to write.
        formats: further formats, written beside ``path``.

    Returns:
        ``path``.
    """
    figure = make_figure((10.5, 7.2))
    panels = figure.subplot_mosaic(
        [["return", "length", "saco"], ["action", "action", "reward"], ["text"] * 3],
        height_ratios=[1.0, 1.0, 0.4],
    )
    figure.suptitle(f"{facts['task'] or 'unnamed task'}, {_shortened(str(facts['source']))}", x=0.01, ha="left")
    _histogram(panels["return"], dataset.episode_returns(), "Return of an episode", "team return")
    _histogram(panels["length"], dataset.episode_lengths, "Length of an episode", "steps")
    _draw_actions(panels["action"], dataset)
    _draw_rewards(panels["reward"], dataset)
    _draw_coverage(panels["saco"], facts["joint_saco"])
    _write_findings(panels["text"], facts, inspection)
    return save_figure(figure, path, formats)


def _histogram(axis: Axes, values: torch.Tensor, title: str, label: str) -> None:
    values = values.double()
    mean, low, high = float(values.mean()), float(values.min()), float(values.max())
    whole = bool((values == values.round()).all()) and high - low <= 60
    if whole:
        edges = torch.arange(low - 0.5, high + 1.0).numpy()
    else:
        edges = torch.linspace(low, high, 41).numpy() if high > low else 1
    axis.hist(values.numpy(), bins=edges, color=_COLOUR)
    if whole and high - low < 1.5:  # one or two bars: leave room, and name them only
        axis.set_xlim(low - 1.5, high + 1.5)
        axis.set_xticks(sorted({low, high}))
    axis.axvline(mean, color=_MARK, lw=1.5)
    axis.set(title=f"{title}, mean {mean:.4g}", xlabel=f"{label} (line: mean)", ylabel="episodes")


def _draw_actions(axis: Axes, dataset: OfflineDataset) -> None:
    spec, action = dataset.spec, dataset.data.get(ACTION).cpu()
    if spec.discrete:
        share = torch.stack([torch.bincount(agent, minlength=spec.action_size) for agent in action.T]) / len(action)
        image = axis.imshow(share.numpy(), cmap=SHADE, vmin=0, vmax=float(share.max()), aspect="auto")
        if share.numel() <= 120:
            for (agent, index), value in _entries(share):
                colour = "white" if value > 0.6 * float(share.max()) else "black"
                axis.text(index, agent, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=8)
        axis.set(title="Share of each action", xlabel="action", ylabel="agent")
        axis.set_xticks(range(0, spec.action_size, max(1, spec.action_size // 20)))
    else:
        bins = 40
        lowest, highest, label = spec.action_low, spec.action_high, "value"
        if spec.has_component_bounds:  # each in halves of its own range
            low, high = spec.bounds_like(action)
            half = ((high - low) / 2).where(low < high, 1.0)
            action, lowest, highest, label = (action - (low + high) / 2) / half, -1.0, 1.0, "place between its bounds"
        columns = action.flatten(1)  # [T, n * a]
        counts = [torch.histc(column, bins, lowest, highest) for column in columns.T]
        density = torch.stack(counts) / len(action)
        extent = (lowest, highest, len(columns.T) - 0.5, -0.5)
        image = axis.imshow(density.numpy(), cmap=SHADE, vmin=0, aspect="auto", extent=extent)
        axis.set(title="Share of the values of each action", xlabel=label, ylabel="agent, component")
        names = [f"{agent}, {part}" for agent in range(spec.n_agents) for part in range(spec.action_size)]
        shown = range(0, len(names), max(1, len(names) // 16))
        axis.set_yticks(list(shown), [names[index] for index in shown])
    if spec.discrete:
        axis.set_yticks(range(spec.n_agents))
    for spine in axis.spines.values():
        spine.set_visible(False)
    axis.figure.colorbar(image, ax=axis, pad=0.01)


def _entries(table: torch.Tensor) -> list[tuple[tuple[int, int], float]]:
    return [((i, j), float(table[i, j])) for i in range(table.shape[0]) for j in range(table.shape[1])]


def _draw_rewards(axis: Axes, dataset: OfflineDataset) -> None:
    """Draw the mean over episodes of each agent's return, with the standard deviation across episodes."""
    returns = dataset.agent_returns().T  # [n, E]
    agents = range(len(returns))
    axis.bar(agents, returns.mean(1).numpy(), yerr=returns.std(1, correction=0).numpy(), color=_COLOUR, width=0.6)
    axis.axhline(0.0, color="black", lw=0.8)
    axis.set(title="Return of each agent", xlabel="agent", ylabel="mean ± std across episodes")
    axis.set_xticks(list(agents))
    axis.set_xlim(-0.6, max(len(returns) - 0.4, 1.6))


def _draw_coverage(axis: Axes, saco: float) -> None:
    axis.barh([0], [1.0], color=LIGHT_GREY, height=0.5)
    axis.barh([0], [saco], color=_COLOUR, height=0.5)
    axis.set(title="Joint SACo", xlim=(0, 1), ylim=(-1.2, 1.2), yticks=[])
    axis.set_xlabel("distinct (state, joint action) pairs\nper transition")
    axis.text(0.5, 0.6, f"{saco:.3f}", ha="center", va="center", fontsize=16)
    axis.spines["left"].set_visible(False)


def _write_findings(axis: Axes, facts: dict[str, Any], inspection: Inspection) -> None:
    lines = [
        f"{facts['transitions']:,} transitions, {facts['episodes']:,} episodes, {facts['agents']} agents; observation "
        f"{facts['observation_size']}, state {facts['state_size']}"
        + ("" if facts["success"] is None else f"; success {facts['success']:.4f}")
    ]
    lines += [
        _shortened(f"{finding.severity}: {finding.what}" + (f" ({finding.rows:,} rows)" if finding.rows else ""))
        for finding in inspection.findings[:5]
    ]
    if more := len(inspection.findings) - 5:
        lines += [f"and {more} more"] if more > 0 else []
    axis.text(0.0, 1.0, "\n".join(lines), va="top", transform=axis.transAxes, linespacing=1.5)
    axis.axis("off")


def _shortened(text: str) -> str:
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 2]} …"
