"""The 93 published sets: what each holds, how it scores, and which environment can judge a policy trained on it.

``published_sets.csv`` and ``published_tasks.csv`` beside this file hold the facts: sizes, returns and joint-action
coverage (SACo) as OG-MARL's dataset cards state them; time limits of the games; reference returns with their source.
``published_sources.csv`` holds the license, who states it, and the paper of those who recorded the data.
Nine sets have no such card: their sizes are those of the environments in OG-MARL's code, and what else there is to know
stands in the cache folder once somebody has loaded them (:func:`keep_figures`). Of three of them not even the qualities
are published: they are named without one, and the archive tells.
"""

from __future__ import annotations

import csv
import difflib
import json
import os
import re
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchrl_marl_offline.core.layout import TaskSpec
from torchrl_marl_offline.core.regular_files import read_json
from torchrl_marl_offline.data.published.cache_folder import cache_folder
from torchrl_marl_offline.data.transitions.dataset_errors import DatasetError

if TYPE_CHECKING:
    from torchrl_marl_offline.data.transitions.dataset import OfflineDataset

COLLECTION = (
    "Formanek, Beyers, Tilbury, Shock and Pretorius 2024, Putting Data at the Centre of Offline Multi-Agent "
    "Reinforcement Learning, arXiv:2409.12001"
)
"""The paper of the collection that all of them are published in."""
SOURCES = ("og_marl", "omiga", "omar", "cfcql", "alberdice")
_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class DatasetCard:
    """What is published about one dataset.

    Args:
        source: who published it first.
        task: environment and scenario, ``"smac_v1/3m"``.
        quality: as named there, ``"Good"``; ``""`` where that is not published.
        seeds: independent recordings in it.
        transitions: rows of each of them, as the card counts; ``None``, like the figures below, where nothing is
            published and nobody has loaded the set here.
        episodes: episodes of each of them.
        n_agents: number of agents ``n``.
        observation_size: width of an observation, or ``None``.
        state_size: width of the state, or ``None``.
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
        license: of the data, an SPDX identifier.
        license_source: who states it, and who does not.
        citation: the paper of those who recorded the data: authors, year, title, arXiv identifier.
        paper: its arXiv identifier.
        env_options: what ``make_env`` needs besides the name.
    """

    source: str
    task: str
    quality: str
    seeds: int
    transitions: int | None
    episodes: int | None
    n_agents: int
    observation_size: int | None
    state_size: int | None
    action_size: int
    discrete: bool
    returns: tuple[float, float, float, float] | None
    joint_saco: float | None
    archive: str
    env: str | None
    why_no_env: str | None
    time_limit: int | None
    episode_length: int | None
    reference_returns: tuple[float, float] | None
    reference_source: str | None
    license: str
    license_source: str
    citation: str
    paper: str
    env_options: dict[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """What ``load_dataset`` takes, ``"og_marl:smac_v1/3m/Good"``."""
        return f"{self.source}:{self.task}/{self.quality}".rstrip("/")

    @property
    def rights(self) -> dict[str, str]:
        """License and citations, as a dataset's metadata keep them."""
        citation = f"{self.citation}; collected by {COLLECTION}"
        return {"license": self.license, "license_source": self.license_source, "citation": citation}

    @property
    def is_known(self) -> bool:
        """Whether its figures are published, or were found out by loading it."""
        return self.transitions is not None

    @property
    def normalized_score(self) -> float | None:
        """The data's own mean return on the scale of the reference returns, 0 to 100."""
        if self.reference_returns is None or self.returns is None:
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
            if getattr(self, name) is not None
        }
        if self.state_size is not None:
            copies = (self.state_size, self.n_agents * self.state_size)
            sizes["state_size"] = (spec.state_size, spec.state_size if spec.state_size in copies else self.state_size)
        if self.is_known:
            sizes["transitions"] = (len(dataset), seeds * self.transitions)
        found = [f"{name} is {here}, its card says {there}" for name, (here, there) in sizes.items() if here != there]
        return found + (self._other_figures(dataset, seeds) if self.is_known else [])

    def _other_figures(self, dataset: OfflineDataset, seeds: int) -> list[str]:
        found = []
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
    papers = {row["source"]: row for row in rows("published_sources.csv")}
    cards = {}
    integers = ("seeds", "transitions", "episodes", "n_agents", "observation_size", "state_size", "action_size")
    for row in rows("published_sets.csv"):
        task, paper = tasks[row["source"], row["task"]], papers[row["source"]]
        returns = [row[f"return_{name}"] for name in ("mean", "std", "min", "max")]
        card = DatasetCard(
            source=row["source"],
            task=row["task"],
            quality=row["quality"],
            **{name: number(row[name]) for name in integers},
            discrete=row["discrete"] == "1",
            returns=tuple(map(float, returns)) if returns[0] else None,
            joint_saco=float(row["joint_saco"]) if row["joint_saco"] else None,
            archive=task["archive"],
            env=task["env"] or None,
            why_no_env=task["why_no_env"] or None,
            time_limit=number(task["time_limit"]),
            episode_length=number(task["episode_length"]),
            reference_returns=(float(task["score_min"]), float(task["score_max"])) if task["score_min"] else None,
            reference_source=task["score_source"] or None,
            license=paper["license"],
            license_source=paper["license_source"],
            citation=f"{paper['authors']} {paper['year']}, {paper['title']}, arXiv:{paper['arxiv']}",
            paper=paper["arxiv"],
            env_options=json.loads(task["env_options"] or "{}"),
        )
        cards[card.id] = card
    return cards


def list_datasets(
    source: str | None = None, task: str | None = None, *, cache: str | Path | None = None
) -> dict[str, DatasetCard]:
    """Return the published sets: id -> card.

    Args:
        source: only of this source: ``"og_marl"``, ``"omiga"``, ``"omar"``, ``"cfcql"`` or ``"alberdice"``.
        task: only of tasks that start with this, ``"smac_v1"`` or ``"smac_v1/3m"``.
        cache: the cache folder, which tells of sets that have no published card; see :func:`~.caching.cache_folder`.

    Raises:
        ValueError: there is no such source or task.

    Example:
        >>> from torchrl_marl_offline.data import list_datasets
        >>> list(list_datasets("omiga", "mamujoco/2ant"))[0]
        'omiga:mamujoco/2ant/Medium-Replay'
    """
    if source is not None and source not in SOURCES:
        raise ValueError(f"There is no source {source!r}; choose one of {', '.join(SOURCES)}.")
    found: dict[str, DatasetCard] = {}
    for card in _cards().values():
        if source in (None, card.source) and (task is None or f"{card.task}/".startswith(f"{task.rstrip('/')}/")):
            found |= {known.id: known for known in _filled(card, cache)}
    if not found:
        tasks = sorted({card.task for card in _cards().values() if source in (None, card.source)})
        near = difflib.get_close_matches(task, tasks, n=3, cutoff=0.3) or tasks[:3]
        raise ValueError(f"There is no published task {task!r}; near are {', '.join(near)}.")
    return found


def card_of(name: str, *, cache: str | Path | None = None) -> DatasetCard:
    """Return the card of an id such as ``"og_marl:smac_v1/3m/Good"``; upper and lower case do not matter.

    Args:
        name: the id. Where the qualities of a task are not published, the id without one, or with any.
        cache: see :func:`list_datasets`.
    """
    card = published_card(name)
    filled = _filled(card, cache)
    return filled[0] if len(filled) == 1 else card


def published_card(name: str) -> DatasetCard:
    """Return the card of an id as it is published, without what the cache folder tells."""
    by_name = {known.lower(): card for known, card in _cards().items()}
    card = by_name.get(name.lower())
    if card is None:
        task, _, quality = name.rpartition("/")
        card = by_name.get(task.lower())
        if card is None or card.quality or not is_quality(quality):
            near = difflib.get_close_matches(name.lower(), by_name, n=3, cutoff=0.4)
            names = " or ".join(repr(by_name[known].id) for known in near) or "one that list_datasets() names"
            raise DatasetError(f"{name!r} is no published set; did you mean {names}?")
        card = replace(card, quality=quality)
    return card


def is_quality(name: str) -> bool:
    """Say whether a name can be a quality's, and so a folder's in the cache."""
    return re.fullmatch(r"\w[\w.-]*", name) is not None


# Figures of sets without a published card


def keep_figures(card: DatasetCard, dataset: OfflineDataset, cache: str | Path | None = None) -> None:
    """Keep what a loaded set holds in the cache folder, where its card has no figures.

    Args:
        card: of the set, with its quality.
        dataset: what was loaded.
        cache: the cache folder.
    """
    file = _figures_file(card, cache)
    if card.is_known or file.is_file():
        return
    returns = dataset.episode_returns().double()
    moments = [returns.mean(), returns.std(correction=0), returns.min(), returns.max()]
    inspection = dataset.inspection
    figures = {
        "transitions": len(dataset),
        "episodes": dataset.n_episodes,
        "observation_size": dataset.spec.observation_size,
        "state_size": dataset.spec.state_size,
        "returns": [round(float(moment), 2) for moment in moments],
        "joint_saco": None if inspection is None else round(inspection.facts["joint_saco"], 2),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{os.getpid()}")
    part.write_text(json.dumps(figures), encoding="utf-8")
    part.replace(file)


def _filled(card: DatasetCard, cache: str | Path | None) -> list[DatasetCard]:
    """Return the card with the figures that the cache holds, one for each quality of a card without one."""
    if card.is_known:
        return [card]
    files = [_figures_file(card, cache)] if card.quality else sorted(_figures_folder(card, cache).glob("*.json"))
    filled = [_with_figures(replace(card, quality=file.stem), file) for file in files]
    return [known for known in filled if known is not None] or [card]


def _with_figures(card: DatasetCard, file: Path) -> DatasetCard | None:
    try:
        figures = read_json(file)
        figures["returns"] = tuple(map(float, figures["returns"]))
        return replace(card, **{name: figures[name] for name in asdict(card) if name in figures})
    except (OSError, ValueError, TypeError, KeyError):
        return None  # not loaded yet, or somebody else's file: then nothing is known of the set


def _figures_folder(card: DatasetCard, cache: str | Path | None) -> Path:
    return cache_folder(cache) / "figures" / card.source / card.task


def _figures_file(card: DatasetCard, cache: str | Path | None) -> Path:
    return _figures_folder(card, cache) / f"{card.quality}.json"
