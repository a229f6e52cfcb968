"""What a suite is: a table of entries, each of which says how a dataset is recorded and what its optimum is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from torchrl_marl_offline.core.tables import check_keys
from torchrl_marl_offline.data.collection import Policy, collect
from torchrl_marl_offline.data.transitions.dataset import OfflineDataset
from torchrl_marl_offline.envs.base import facts_of
from torchrl_marl_offline.envs.factory import make_env
from torchrl_marl_offline.envs.scripted import MixedSkill
from torchrl_marl_offline.evaluation.in_environments import evaluate

if TYPE_CHECKING:
    from torchrl.envs import EnvBase

Proof = Literal["enumeration", "dynamic programming", "proof", "bound", "best known"]
"""How an optimum is known: all but the last two are exact; a bound is not below it, a best known score not above."""

REFERENCE_EPISODES = 1000
"""Episodes by which a reference score is measured that is not computed."""


class SuiteError(ValueError):
    """A suite, or its folder, is not what it should be; the message names the remedy."""


class BestReturn(NamedTuple):
    """The best mean return of a task.

    Attributes:
        value: mean over agents of the undiscounted return.
        kind: how it is known.
        how: the same in words.
    """

    value: float
    kind: Proof
    how: str


class Reference(NamedTuple):
    """A score that others are held against.

    Attributes:
        value: mean over agents of the undiscounted return.
        how: computed or measured, from what.
    """

    value: float
    how: str


class Recorded(NamedTuple):
    """What the recording of an entry gives.

    Attributes:
        dataset: what was recorded.
        best: the best of what was recorded, where the data do not tell it themselves (:func:`best_recorded`).
    """

    dataset: OfflineDataset
    best: Reference | None = None


@dataclass(frozen=True)
class Making:
    """What the recording of an entry may depend on.

    Attributes:
        seed: of all that is drawn.
        recordings: a folder with recordings by others, or ``None``.
    """

    seed: int = 0
    recordings: Path | None = None


@dataclass(frozen=True)
class SuiteEntry:
    """One dataset of a suite.

    Attributes:
        name: of the dataset and its folder.
        group: entries that belong together in tables.
        task: ``"family/task"``.
        record: makes the dataset.
        optimum: computes, or measures, what is the best that can be earned.
        options: of ``make_env``.
        random: what a uniformly random team earns, computed; ``None`` measures it.
        core: whether it is made without ``--more``.
        about: what is hard in it, in one sentence.
    """

    name: str
    group: str
    task: str
    record: Callable[[SuiteEntry, Making], Recorded]
    optimum: Callable[[SuiteEntry, Making], BestReturn]
    options: Mapping[str, Any] = field(default_factory=dict)
    random: Callable[[EnvBase], float] | None = None
    core: bool = True
    about: str = ""

    def make_env(self, num_envs: int, seed: int | None = None) -> EnvBase:
        """Make the entry's environment."""
        return make_env(self.task, num_envs=num_envs, seed=seed, **self.options)

    def collect(
        self, env: EnvBase, policy: Policy | None, behaviour: str, making: Making, **amount: int
    ) -> OfflineDataset:
        """Record whole episodes of a policy in the entry's environment, ``episodes=`` or ``steps=``."""
        options = {"task_options": dict(self.options)} if self.options else {}
        facts = {"quality": self.name, "behaviour": behaviour} | options | facts_of(env)
        return collect(env, policy, seed=making.seed, metadata=facts, **amount)


@dataclass(frozen=True)
class Suite:
    """A named table of entries.

    Attributes:
        name: of the suite.
        version: of its datasets: another version has other data.
        entries: in order; names differ.
        about: in one sentence.
    """

    name: str
    version: int
    entries: tuple[SuiteEntry, ...]
    about: str

    def chosen(self, *, more: bool = False, only: Sequence[str] = ()) -> list[SuiteEntry]:
        """Return the entries that are asked for, in the table's order.

        Args:
            more: those beyond the core too.
            only: of these names or groups alone; they may be beyond the core.

        Raises:
            SuiteError: a name that is none.
        """
        try:
            known = [word for entry in self.entries for word in (entry.name, entry.group)]
            check_keys(dict.fromkeys(only), known, f"The suite {self.name}")
        except ValueError as error:
            raise SuiteError(str(error).replace("unknown key", "unknown dataset")) from None
        if only:
            return [entry for entry in self.entries if {entry.name, entry.group} & set(only)]
        return [entry for entry in self.entries if entry.core or more]


def played(
    policy: Callable[[EnvBase, int], Policy], *, episodes: int, num_envs: int = 500, behaviour: str
) -> Callable[[SuiteEntry, Making], Recorded]:
    """Return what records an entry by one policy.

    Args:
        policy: environment and seed -> the policy.
        episodes: to record.
        num_envs: environments at once.
        behaviour: the policy in words.
    """

    def record(entry: SuiteEntry, making: Making) -> Recorded:
        env = entry.make_env(min(num_envs, episodes), making.seed)
        acting = policy(env, making.seed)
        return Recorded(entry.collect(env, acting, behaviour, making, episodes=episodes))

    return record


def played_by_teams(
    teams: Callable[[EnvBase, int], Mapping[str, Policy]],
    *,
    episodes: int,
    num_envs: int = 500,
    behaviour: str,
) -> Callable[[SuiteEntry, Making], Recorded]:
    """Return what records an entry by teams, one drawn for each episode; the best of them is measured.

    Args:
        teams: environment and seed -> the teams by name, each as often as the others.
        episodes: to record.
        num_envs: environments at once.
        behaviour: the teams in words.
    """

    def record(entry: SuiteEntry, making: Making) -> Recorded:
        env = entry.make_env(min(num_envs, episodes), making.seed)
        mixed = MixedSkill(list(teams(env, making.seed).values()), seed=making.seed)
        dataset = entry.collect(env, mixed, behaviour, making, episodes=episodes)
        env = entry.make_env(REFERENCE_EPISODES)
        scores = {name: measured(env, team, making.seed) for name, team in teams(env, making.seed).items()}
        best = max(scores, key=scores.__getitem__)
        return Recorded(dataset, Reference(scores[best], f"{best}, {REFERENCE_EPISODES} episodes"))

    return record


def best_known(policy: Callable[[EnvBase, int], Policy], words: str) -> Callable[[SuiteEntry, Making], BestReturn]:
    """Return what measures the best policy that is known: an optimum that is not proven.

    Args:
        policy: environment and seed -> the policy.
        words: which it is.
    """

    def optimum(entry: SuiteEntry, making: Making) -> BestReturn:
        env = entry.make_env(REFERENCE_EPISODES)
        value = measured(env, policy(env, making.seed), making.seed)
        return BestReturn(value, "best known", f"{words}, {REFERENCE_EPISODES} episodes")

    return optimum


def measured(env: EnvBase, policy: Policy, seed: int) -> float:
    """Return the mean return of a policy over :data:`REFERENCE_EPISODES` episodes."""
    return evaluate(policy, env, episodes=REFERENCE_EPISODES, seed=seed, mode="sample").mean
