"""Goals in hindsight as a setting of runs: what the task of a dataset says of goals, and options for its samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torchrl_marl_offline.core.goal_choices import WITH_HINDSIGHT
from torchrl_marl_offline.core.layout import ACHIEVED, GOAL, next_key
from torchrl_marl_offline.evaluation.simulator import make_simulator

if TYPE_CHECKING:
    from torchrl.envs import EnvBase

    from torchrl_marl_offline.core.goal_choices import HindsightKind
    from torchrl_marl_offline.core.goals import GoalFunction
    from torchrl_marl_offline.data import OfflineDataset


def goal_outcome(env: EnvBase | None, what: str) -> GoalFunction:
    """Return what goals pay in an environment.

    Args:
        env: the task's, or ``None`` where there is none.
        what: of the data, for the message.

    Raises:
        ValueError: there is no such thing.
    """
    outcome = None if env is None else getattr(getattr(env, "base_env", env), "outcome", None)
    if callable(outcome):
        return outcome
    why = "has no simulator to say what reaching a goal pays" if env is None else "is of a task without goals"
    raise ValueError(
        f"hindsight gives recorded steps goals that were achieved, but {what} {why}; leave hindsight out, or take a "
        "task with goals, such as games/grid_goals."
    )


def hindsight_options(
    dataset: OfflineDataset, kind: HindsightKind, share: float = 0.8, per: str = "team"
) -> dict[str, Any] | None:
    """Return what :class:`~torchrl_marl_offline.data.HindsightGoals` of a dataset takes beside its rows.

    Args:
        dataset: with goals, of a task whose environment says what they pay.
        kind: which goals; ``"off"``: none.
        share: of the steps that get one.
        per: one draw for the ``"team"``, or for each ``"agent"``.

    Returns:
        The options, or ``None`` where hindsight is off.

    Raises:
        ValueError: the dataset has no goals, or no such environment.
    """
    if kind == "off":
        return None
    name = dataset.metadata.get("quality") or dataset.spec.task
    outcome = goal_outcome(make_simulator(dataset, num_envs=1), f"the dataset {name}")
    for key in (GOAL, next_key(ACHIEVED)):
        if dataset.data.get(key, None) is None:
            raise ValueError(
                f"hindsight needs {key!r}, which the dataset {name} has not; leave hindsight out, or record it anew."
            )
    return dict.fromkeys(WITH_HINDSIGHT.values, 0.0) | {kind: share, "outcome": outcome, "per": per}
