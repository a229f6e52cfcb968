"""A dataset's card: what is in it, as text, as JSON and as one page of pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.figure_style import FigureFormat
from torchrl_marl_offline.core.layout import ACTION, MASK, REWARD, next_key
from torchrl_marl_offline.data.quality.card_picture import draw_card
from torchrl_marl_offline.data.quality.inspection import inspect
from torchrl_marl_offline.data.quality.stitchable import stitchable_share
from torchrl_marl_offline.data.transitions.findings import Inspection

if TYPE_CHECKING:
    from torchrl_marl_offline.data.transitions.dataset import OfflineDataset

_FACTS = (
    "quality",
    "behaviour",
    "seed",
    "time_limit",
    "team_reward",
    "best_return",
    "certificate",
    "provenance",
    "repairs",
)
NOT_STATED = "not stated"
"""What a card says of a license or a citation that nobody gave."""


@dataclass(frozen=True)
class Card:
    """The facts about a dataset.

    Args:
        dataset: what it describes; the picture is drawn from it.
        facts: JSON-ready, in the order in which they are shown.
        inspection: its findings.
    """

    dataset: OfflineDataset
    facts: dict[str, Any]
    inspection: Inspection

    def __str__(self) -> str:
        facts = self.facts
        lines = [
            f"{facts['task'] or 'unnamed task'} from {facts['source']}",
            f"transitions  {facts['transitions']} in {facts['episodes']} episodes of {_range(facts['length'], '.4g')}",
            f"agents       {facts['agents']}, observation {facts['observation_size']}, state {facts['state_size']}, "
            f"{'one of' if facts['discrete'] else 'continuous'} {facts['action_size']} actions",
            f"return       {_range(facts['return'], '.2f')}, quartiles "
            + ", ".join(f"{q:.2f}" for q in facts["return"]["quartiles"]),
        ]
        if facts["success"] is not None:
            lines.append(f"success      {facts['success']:.4f}")
        per_agent = ", ".join(f"{value:.4g}" for value in facts["reward_per_agent"]["mean"])
        lines += [f"reward       {per_agent} a step, by agent", f"joint SACo   {facts['joint_saco']:.4f}"]
        if facts["stitchable"] is not None:
            lines.append(f"stitchable   {_told(facts['stitchable'])}")
        lines += [f"{name:12} {_in_words(facts[name])}" for name in _FACTS if name in facts]
        source = f", {facts['license_source']}" if "license_source" in facts else ""
        lines += [f"license      {facts['license']}{source}", f"citation     {facts['citation']}"]
        return "\n".join([*lines, *map(str, self.inspection.findings)])

    def to_dict(self) -> dict[str, Any]:
        """Return the facts and findings, JSON-ready."""
        return {**self.facts, "findings": self.inspection.to_dict()["findings"]}

    def to_json(self) -> str:
        """Return JSON text; equal datasets give equal text."""
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False)

    @checked
    def save_picture(self, path: str | Path, formats: Sequence[FigureFormat] = ()) -> Path:
        """Draw returns, lengths, actions, rewards of the agents and coverage on one page.

        Args:
            path: the PNG (or PDF, SVG) to write.
            formats: further formats, written beside it: ``"png"``, ``"pdf"``, ``"svg"``.

        Returns:
            ``path``.
        """
        return draw_card(self.dataset, self.facts, self.inspection, path, formats)


def can_be_described(inspection: Inspection) -> bool:
    """Say whether the statistics of a card exist: not with actions that are none, nor with NaN."""
    return not any(
        code in inspection for code in ("not_finite", "not_finite_placeholder", "illegal_action", "episode_marks")
    )


def describe(dataset: OfflineDataset, inspection: Inspection | None = None) -> Card:
    """Make the card of a dataset.

    The action coverage is, for discrete actions, each action's share of an agent's actions, ``[n][A]``; for continuous
    ones mean, standard deviation and the share of values at a bound, each by agent and component ``[n][a]``. What can
    be stitched is :func:`~torchrl_marl_offline.data.stitchable_share` with its defaults, ``None`` with one agent.
    License and citation are the metadata's, ``"not stated"`` where they say nothing; of a dataset that was put
    together, those of its parts.

    Args:
        dataset: a valid dataset.
        inspection: its inspection; made here by default.
    """
    inspection = inspect(dataset) if inspection is None else inspection
    spec, metadata, success = dataset.spec, dataset.metadata, dataset.success()
    rewards = dataset.data.get(next_key(REWARD)).squeeze(-1).double()  # [T, n]
    facts: dict[str, Any] = {
        "task": spec.task,
        "source": metadata.get("source", "?"),
        "transitions": len(dataset),
        "episodes": dataset.n_episodes,
        "agents": spec.n_agents,
        "observation_size": spec.observation_size,
        "state_size": spec.state_size,
        "action_size": spec.action_size,
        "discrete": spec.discrete,
        "return": _moments(dataset.episode_returns()),
        "length": _moments(dataset.episode_lengths),
        "success": None if success is None else round(float(success.float().mean()), 6),
        "reward_per_agent": {"mean": _rounded(rewards.mean(0)), "std": _rounded(rewards.std(0, correction=0))},
        "actions": _action_coverage(dataset),
        "joint_saco": inspection.facts["joint_saco"],
        "stitchable": stitchable_share(dataset).to_dict() if _has_joint_actions(dataset) else None,
    }
    facts |= {name: metadata[name] for name in _FACTS if metadata.get(name) is not None}
    facts |= {name: _stated(metadata, name) for name in ("license", "citation")}
    if metadata.get("license_source"):
        facts["license_source"] = str(metadata["license_source"])
    return Card(dataset, facts, inspection)


def _has_joint_actions(dataset: OfflineDataset) -> bool:
    return dataset.spec.n_agents > 1 and bool(dataset.data.get(MASK).any())


def _told(stitchable: dict[str, Any]) -> str:
    share = stitchable["share"]
    known = "all joint actions recorded" if share is None else f"{share:.4f} of the unrecorded joint actions of a state"
    rest = f"{stitchable['recorded']:.4g} recorded, {stitchable['components']:.2f} components"
    return f"{known}; {rest} ({stitchable['how']})"


def _in_words(fact: Any) -> Any:
    return fact.get("words", fact) if isinstance(fact, dict) else fact


def _stated(metadata: dict[str, Any], name: str) -> str:
    """Return what the metadata say under a name, or all that the parts of the dataset say."""
    found, left = {}, [metadata]
    while left:
        each = left.pop(0)
        parts = each.get("parts")
        parts = [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
        if each.get(name) or not parts:
            found[str(each.get(name) or NOT_STATED)] = True
        else:
            left += parts
    return "; ".join(found)


def _action_coverage(dataset: OfflineDataset) -> dict[str, Any]:
    spec, action = dataset.spec, dataset.data.get(ACTION).cpu()
    if spec.discrete:
        shares = torch.stack([torch.bincount(agent, minlength=spec.action_size) for agent in action.T]) / len(action)
        return {"share": _rounded(shares)}
    low, high = spec.bounds_like(action)
    slack = 1e-5 * (high - low)
    at_bound = (action <= low + slack) | (action >= high - slack)
    values = action.double()
    return {
        "mean": _rounded(values.mean(0)),
        "std": _rounded(values.std(0, correction=0)),
        "at_bound": _rounded(at_bound.double().mean(0)),
    }


def _moments(values: torch.Tensor) -> dict[str, Any]:
    values = values.double()
    quartiles = torch.quantile(values, torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
    numbers = {"mean": values.mean(), "std": values.std(correction=0), "min": values.min(), "max": values.max()}
    return {name: round(float(value), 6) for name, value in numbers.items()} | {"quartiles": _rounded(quartiles)}


def _range(moments: dict[str, Any], form: str) -> str:
    mean, std, low, high = (format(moments[name], form) for name in ("mean", "std", "min", "max"))
    return f"{mean} ± {std} ({low} to {high})"


def _rounded(values: torch.Tensor) -> Any:
    """Nested lists with six decimals, so that text is equal wherever it is made."""
    return [_rounded(value) for value in values] if values.ndim else round(float(values), 6)
