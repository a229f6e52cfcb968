"""The 84 published sets: what each holds, how it scores, and which environment can judge a policy trained on it.

``published_sets.csv`` and ``published_tasks.csv`` beside this file hold the facts: sizes, returns and joint-action
coverage (SACo) as OG-MARL's dataset cards state them; time limits of the games; reference returns with their source.
"""

from __future__ import annotations

import csv
import difflib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchrl_marl_offline.data.layout import TaskSpec
from torchrl_marl_offline.data.validation import DatasetError

if TYPE_CHECKING:
    from torchrl_marl_offline.data.dataset import OfflineDataset

SOURCES = ("og_marl", "omiga", "omar", "cfcql", "alberdice")
_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class DatasetCard:
    """What is published about one dataset.

    Args:
        source: who published it first.
        task: environment and scenario, ``"smac_v1/3m"``.
        quality: as named there, ``"Good"``.
        seeds: independent recordings in it.
        transitions: rows of each of them, as the card counts.
        episodes: episodes of each of them.
        n_agents: number of agents ``n``.
        observation_size: width of an observation.
        state_size: width of the state.
        action_size: width of a continuous action, or the number of discrete ones.
        discrete: whether actions are indices.
        returns: mean, standard deviation, minimum and maximum of the episodes' returns.
        joint_saco: joint state-action coverage, in (0, 1].
        archive: the zip file's path in the published repository.
        env: the task of ``make_env`` that evaluates a policy trained on it, or ``None``.
        why_no_env: why there is none.
        time_limit: rows after which the recording cuts an episode, or ``None`` where it is not known.
        episode_length: rows of every episode, where the recording may mark no end.
        reference_returns: the returns that score 0 and 100, or ``None`` where the field has none.
        reference_source: where they come from.
    """

    source: str
    task: str
    quality: str
    seeds: int
    transitions: int
    episodes: int
    n_agents: int
    observation_size: int
    state_size: int
    action_size: int
    discrete: bool
    returns: tuple[float, float, float, float]
    joint_saco: float
    archive: str
    env: str | None
    why_no_env: str | None
    time_limit: int | None
    episode_length: int | None
    reference_returns: tuple[float, float] | None
    reference_source: str | None

    @property
    def id(self) -> str:
        """What ``load_dataset`` takes, ``"og_marl:smac_v1/3m/Good"``."""
        return f"{self.source}:{self.task}/{self.quality}"

    @property
    def normalized_score(self) -> float | None:
        """The data's own mean return on the scale of the reference returns, 0 to 100."""
        if self.reference_returns is None:
            return None
        low, high = self.reference_returns
        return 100 * (self.returns[0] - low) / (high - low)

    def disagreements(self, dataset: OfflineDataset) -> list[str]:
        """Return a sentence, with both numbers, for each thing in which a dataset is not what the card says.

        Sizes and rows must be equal, episodes but for one a seed (a recording may be cut within one), and the mean
        return within 1 % of the card's range (5 % where it may be of another seed), agents averaged or summed.
        """
        seeds = len(dataset.metadata.get("vault", {}).get("seeds", range(self.seeds)))
        spec: TaskSpec = dataset.spec
        sizes: dict[str, tuple[Any, Any]] = {
            name: (getattr(spec, name), getattr(self, name))
            for name in ("n_agents", "observation_size", "action_size", "discrete")
        }
        copies = (self.state_size, self.n_agents * self.state_size)
        sizes["state_size"] = (spec.state_size, spec.state_size if spec.state_size in copies else self.state_size)
        sizes["transitions"] = (len(dataset), seeds * self.transitions)
        found = [f"{name} is {here}, its card says {there}" for name, (here, there) in sizes.items() if here != there]
        if abs(dataset.n_episodes - seeds * self.episodes) > seeds:
            found.append(f"it has {dataset.n_episodes} episodes, its card says {seeds * self.episodes}")
        mean, _, low, high = self.returns
        slack = (0.01 if self.seeds == 1 else 0.05) * (high - low) + 0.01
        means = [float(dataset.episode_returns(reduce).mean()) for reduce in ("mean", "sum")]
        if all(abs(value - mean) > slack for value in means):
            found.append(f"the mean return is {means[0]:.2f}, its card says {mean:.2f}")
        return found


@cache
def _cards() -> dict[str, DatasetCard]:
    def rows(name: str) -> list[dict[str, str]]:
        with (_FOLDER / name).open(newline="", encoding="utf-8") as stream:
            return list(csv.DictReader(stream))

    def number(text: str) -> int | None:
        return int(text) if text else None

    tasks = {(row["source"], row["task"]): row for row in rows("published_tasks.csv")}
    cards = {}
    for row in rows("published_sets.csv"):
        task = tasks[row["source"], row["task"]]
        integers = ("seeds", "transitions", "episodes", "n_agents", "observation_size", "state_size", "action_size")
        card = DatasetCard(
            source=row["source"],
            task=row["task"],
            quality=row["quality"],
            **{name: int(row[name]) for name in integers},
            discrete=row["discrete"] == "1",
            returns=tuple(float(row[f"return_{name}"]) for name in ("mean", "std", "min", "max")),
            joint_saco=float(row["joint_saco"]),
            archive=task["archive"],
            env=task["env"] or None,
            why_no_env=task["why_no_env"] or None,
            time_limit=number(task["time_limit"]),
            episode_length=number(task["episode_length"]),
            reference_returns=(float(task["score_min"]), float(task["score_max"])) if task["score_min"] else None,
            reference_source=task["score_source"] or None,
        )
        cards[card.id] = card
    return cards


def list_datasets(source: str | None = None, task: str | None = None) -> dict[str, DatasetCard]:
    """Return the published sets: id -> card.

    Args:
        source: only of this source: ``"og_marl"``, ``"omiga"``, ``"omar"``, ``"cfcql"`` or ``"alberdice"``.
        task: only of tasks that start with this, ``"smac_v1"`` or ``"smac_v1/3m"``.

    Example:
        >>> from torchrl_marl_offline.data import list_datasets
        >>> list(list_datasets("omiga", "mamujoco/2ant"))[0]
        'omiga:mamujoco/2ant/Medium-Replay'
    """
    if source is not None and source not in SOURCES:
        raise ValueError(f"There is no source {source!r}; choose one of {', '.join(SOURCES)}.")
    return {
        name: card
        for name, card in _cards().items()
        if source in (None, card.source) and (task is None or f"{card.task}/".startswith(f"{task.rstrip('/')}/"))
    }


def card_of(name: str) -> DatasetCard:
    """Return the card of an id such as ``"og_marl:smac_v1/3m/Good"``; upper and lower case do not matter."""
    by_name = {known.lower(): card for known, card in _cards().items()}
    card = by_name.get(name.lower())
    if card is None:
        near = difflib.get_close_matches(name.lower(), by_name, n=3, cutoff=0.4)
        names = " or ".join(repr(by_name[known].id) for known in near) or "one that list_datasets() names"
        raise DatasetError(f"{name!r} is no published set; did you mean {names}?")
    return card
