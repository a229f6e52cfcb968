"""By what a study chooses: what policies earn in a simulator, or an estimate from episodes that are held out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.exploration import Mode
from torchrl_marl_offline.core.ranges import (
    COUNT,
    COUNT_OR_NONE,
    DISCOUNT,
    FEW_OR_NONE,
    OPEN_UNIT,
    POSITIVE,
    RUN_SEED,
    SEED,
    SEVERAL,
)
from torchrl_marl_offline.core.tables import ONCE
from torchrl_marl_offline.evaluation.offline import CloningSettings, FittedQSettings, LearnedModelSettings
from torchrl_marl_offline.evaluation.offline.estimates import BY_CRITICS, BY_MODELS, BY_WEIGHTS
from torchrl_marl_offline.evaluation.offline.horizon import Horizon
from torchrl_marl_offline.study.checking import StudyError

SelectBy = Literal["return", "fqe", "wis", "dr", "model"]
"""The words of :func:`~torchrl_marl_offline.select_offline`."""

ESTIMATES = ("fqe", "wis", "dr", "model")
"""Those that need no simulator."""

PARTS: dict[str, type] = {"fitting": FittedQSettings, "cloning": CloningSettings, "modelling": LearnedModelSettings}
"""Tables of ``[offline]``."""

_WEIGHED = tuple(word for word in ESTIMATES if word in BY_WEIGHTS)
READ_BY = {"weights": _WEIGHED, "clip": _WEIGHED, "fitting": BY_CRITICS, "modelling": BY_MODELS}
"""By which of them a key of ``[offline]`` is read; all others by all."""


@dataclass(frozen=True)
@checked
class OfflineSettings:
    """The table ``[offline]``: how runs are estimated from held-out episodes; see ``compare_offline``.

    Attributes:
        held_out: share of a dataset's episodes that no run is trained on, for the estimates alone; it takes the place
            of the ``held_out`` of ``[evaluation]``.
        scored: share of these over whose first steps values are averaged, and on which weights are formed; critics and
            clones learn on the others.
        seed: of both splits, the resamples, the critics and the draws.
        gamma: discount of the estimates, one for all runs, whatever they were trained with.
        mode: estimate the policies' deterministic actions, or what they draw.
        horizon: whether time limits are ends.
        team_reward: the team's reward is the mean or the sum of the agents'.
        weights: of the joint action, or of each agent for its own reward.
        clip: largest importance weight.
        fitting: of the critics, ``[offline.fitting]``.
        cloning: of the logged team, ``[offline.cloning]``; see :func:`~torchrl_marl_offline.compare_offline`.
        modelling: of the task, ``[offline.modelling]``.
    """

    held_out: Annotated[float, OPEN_UNIT] = 0.3
    scored: Annotated[float, OPEN_UNIT] = 0.25
    seed: Annotated[int, SEED] = 0
    gamma: Annotated[float, DISCOUNT] = 0.99
    mode: Mode = "mode"
    horizon: Horizon = "episode"
    team_reward: Literal["mean", "sum"] = "mean"
    weights: Literal["joint", "agent"] = "joint"
    clip: Annotated[float | None, POSITIVE] = None
    fitting: FittedQSettings = FittedQSettings()  # noqa: RUF009
    cloning: CloningSettings = CloningSettings()  # noqa: RUF009
    modelling: LearnedModelSettings = LearnedModelSettings()  # noqa: RUF009

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> OfflineSettings:
        """Return the settings that a table of a file says."""
        parts = {name: kind(**with_tuples(table.get(name, {}))) for name, kind in PARTS.items()}
        return cls(**{**table, **parts})

    def comparison(self) -> dict[str, Any]:
        """Return the options of :func:`~torchrl_marl_offline.compare_offline`."""
        names = ("seed", "gamma", "mode", "horizon", "team_reward", "weights", "clip", *PARTS)
        return {name: getattr(self, name) for name in names} | {"held_out": self.scored}


@dataclass(frozen=True)
@checked
class SearchSettings:
    r"""The table ``[search]``: settings drawn from the ranges of methods, by successive halving.

    Every method that has ranges is searched on each dataset by itself. Rung :math:`k = 0, 1, \dots` trains the best
    :math:`n_k = \lfloor trials / eta^k \rfloor` trials, as long as there are two; then the best trial of the last rung
    is trained by the study's seeds. Without a budget rung :math:`k` of :math:`K` trains for
    :math:`\lceil steps / eta^{K - 1 - k} \rceil` updates, so that the last one trains to the end; with one every rung
    has an equal share of it (Jamieson and Talwalkar 2016, *Non-stochastic Best Arm Identification and Hyperparameter
    Optimization*).

    Attributes:
        trials: how many settings are drawn for each method.
        by: what trials are ranked by at the end of a rung, as ``select`` of ``[study]``.
        eta: one trial in so many goes on.
        rungs: how many; 0 for as many as leave two trials on the last.
        updates: of all trials of a method on a dataset together, over all rungs; 0 for no budget.
        seeds: of the trials' runs. They should be none of the study's: what a seed has chosen is too good on it.
        seed: of the drawing.
    """

    trials: Annotated[int, SEVERAL] = 32
    by: SelectBy = "return"
    eta: Annotated[int, SEVERAL] = 3
    rungs: Annotated[int, FEW_OR_NONE] = 0
    updates: Annotated[int, COUNT_OR_NONE] = 0
    seeds: Annotated[tuple[int, ...], RUN_SEED, ONCE] = (1000,)
    seed: Annotated[int, SEED] = 0

    def __post_init__(self) -> None:
        if self.rungs > len(self.sizes()):
            raise StudyError(
                f"[search] trials = {self.trials} are too few for rungs = {self.rungs} with eta = {self.eta}, whose "
                f"last has to have two; take {len(self.sizes())} or fewer rungs, or more trials."
            )

    def sizes(self) -> list[int]:
        """Return how many trials each rung has."""
        sizes = [self.trials]
        while sizes[-1] // self.eta >= 2 and len(sizes) != self.rungs:
            sizes.append(self.trials // self.eta ** len(sizes))
        return sizes

    @checked
    def steps(self, whole: Annotated[int, COUNT]) -> list[int]:
        """Return how many updates a run of each rung has, where a run has ``whole``.

        Raises:
            StudyError: the budget is too small for a single one of each trial.
        """
        sizes = self.sizes()
        if not self.updates:
            return [-(-whole // self.eta ** (len(sizes) - 1 - rung)) for rung in range(len(sizes))]
        found = [min(whole, self.updates // (len(sizes) * size * len(self.seeds))) for size in sizes]
        if found[0] < 1:
            least = len(sizes) * sizes[0] * len(self.seeds)
            raise StudyError(
                f"[search] updates = {self.updates:,} are too few for {len(sizes)} rungs; give {least:,} or more."
            )
        return found


def with_tuples(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table whose lists are tuples, as settings have them."""
    return {name: tuple(value) if isinstance(value, list | range) else value for name, value in table.items()}


def estimated_by(select: str, search: SearchSettings | None) -> str | None:
    """Return the word by which the runs of a study are estimated, or ``None`` where nothing is.

    Raises:
        StudyError: two words.
    """
    words = dict.fromkeys(word for word in (select, search and search.by) if word in ESTIMATES)
    if len(words) > 1:
        raise StudyError(f"[study] select = {select!r} and [search] by = {search.by!r} are two estimates; name one.")
    return next(iter(words), None)
