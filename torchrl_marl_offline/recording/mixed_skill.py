"""Datasets of mixed skill, recorded once with scripted policies."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tensordict.nn import TensorDictModule

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.layout import ACTION, OBSERVATION
from torchrl_marl_offline.core.paths import mixed_skill_name, user_path
from torchrl_marl_offline.core.ranges import COUNT, SEED, SIZE
from torchrl_marl_offline.data.collection import collect
from torchrl_marl_offline.data.quality.inspected_writing import save_inspected
from torchrl_marl_offline.data.transitions.dataset import OfflineDataset
from torchrl_marl_offline.data.transitions.dataset_errors import DatasetError
from torchrl_marl_offline.data.transitions.storage import is_dataset_folder
from torchrl_marl_offline.envs.base import facts_of
from torchrl_marl_offline.envs.cue_controller import CueController
from torchrl_marl_offline.envs.cue_games import CueGame
from torchrl_marl_offline.envs.factory import make_env
from torchrl_marl_offline.envs.foraging_controller import ForagingController
from torchrl_marl_offline.envs.goal_controller import GoalController
from torchrl_marl_offline.envs.goal_tasks import GoalTask
from torchrl_marl_offline.envs.laser_controller import LaserController
from torchrl_marl_offline.envs.laser_grid import LaserGrid
from torchrl_marl_offline.envs.overcooked import Overcooked
from torchrl_marl_offline.envs.overcooked_controller import OvercookedController
from torchrl_marl_offline.envs.scripted import GridController, MixedSkill, SpreadController
from torchrl_marl_offline.envs.vmas_heuristics import SCENARIOS, VmasHeuristic
from torchrl_marl_offline.envs.vmas_sparse import SparseVmas
from torchrl_marl_offline.envs.vmas_steering import STEERING, SteeringController

if TYPE_CHECKING:
    from torchrl.envs import EnvBase

    from torchrl_marl_offline.data.collection import Policy


@checked
def record_mixed_skill(
    task: str,
    folder: str | Path,
    *,
    episodes: Annotated[int, COUNT] = 4000,
    seed: Annotated[int, SEED] = 0,
    num_envs: Annotated[int, SIZE] = 1000,
    progress: bool = False,
    task_options: Mapping[str, Any] | None = None,
) -> OfflineDataset:
    """Record ``task`` with policies of mixed skill, one drawn per episode; a dataset that is there already is loaded.

    ==========================  ==============================================================================
    task                        policies
    ==========================  ==============================================================================
    ``mpe/simple_spread``       to fixed landmarks: one straight there (.34), two blown off course by a wind (.33
                                each), all with action noise .3
    ``games/grid_navigation``   optimal with a third of its actions random (.4), greedy (.3), random (.3); all of them
                                know the state, whatever ``sight`` is
    ``games/foraging``          as a team with a third of its actions random (.4), each for itself (.3), random (.3);
                                all of them know the state, whatever ``sight`` is
    ``games/recall``,           the best team with memory, with a tenth of its actions random (.3), the best without
    ``games/telephone``         memory (.4), random (.3)
    ``lle/*``                   along a shortest plan with a twentieth of the actions random (.3), along it until a
                                step drawn for each episode and then random (.4), random (.3)
    ``overcooked/*``            two cooks that share the work (.4), two that each work alone (.3), both with a tenth of
                                their actions random; random (.3)
    ``games/grid_goals``,       to other places than the goals with noise .2 (.8), to the goals (.1), random (.1)
    ``mpe/spread_goals``
    ``vmas/*_sparse``           each kind of :class:`~torchrl_marl_offline.envs.SteeringController` with noise .3 and
                                random play, equally often; ``passage_sparse``, which has none, as others
    ``vmas/*``                  VMAS's heuristic with noise .3 (.5), where there is one, and random (.5)
    others                      uniform over the legal actions
    ==========================  ==============================================================================

    Args:
        task: ``"family/task"``, as for ``make_env``.
        folder: where datasets of all tasks lie; this one's name tells task, number of episodes and seed.
        episodes: how many to record.
        seed: of the environment and the policies.
        num_envs: environments stepped at once (at most ``episodes``).
        progress: show a bar on a terminal.
        task_options: of ``make_env``, as ``{"delay": 20}``, JSON-ready; the dataset's simulator gets them, too.

    Raises:
        DatasetError: if the dataset that is there is damaged, or of the policies of another version.
        ValueError: if there is no such task, or it has no such option, or its options are not JSON-ready.
    """
    options = plain_options({} if task_options is None else task_options)
    name = mixed_skill_name(task, episodes, seed, options)
    env = make_env(task, num_envs=min(num_envs, episodes), seed=seed, **options)
    behaviour, policy = mixed_team(env, seed)
    path = user_path(folder) / name
    if not is_dataset_folder(path):
        facts = {"quality": "mixed", "behaviour": behaviour} | ({"task_options": options} if options else {})
        facts |= facts_of(env)
        recorded = collect(env, policy, episodes=episodes, seed=seed, metadata=facts, progress=progress)
        with suppress(FileExistsError):  # another process was faster, with the same seed
            save_inspected(recorded, path)
    dataset = OfflineDataset.load(path)
    if dataset.metadata.get("behaviour") != behaviour:
        raise DatasetError(f"{path} was recorded by other policies than those of this version; delete it.")
    return dataset


def plain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a task as what the file of a recording will hold.

    Raises:
        ValueError: they are no mapping, name what a recording has itself, or are not JSON-ready.
    """
    if not isinstance(options, Mapping):
        raise ValueError(f"task_options must be a mapping, as {{'max_steps': 20}}, got {options!r:.60}.")
    if taken := sorted({"num_envs", "seed", "device"} & set(options)):
        raise ValueError(f"{taken[0]} is none of task_options; a recording has its own, and so has each simulator.")
    try:
        return json.loads(json.dumps(dict(options), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"task_options of a recording must be JSON-ready, got {options!r:.60}.") from error


def mixed_team(env: EnvBase, seed: int) -> tuple[str, Policy | None]:
    """Return the policies in words, which tell one version's data from another's, and the policy to record with.

    Args:
        env: the task.
        seed: of the policies' chance.
    """
    family, _, name = env.task_spec.task.partition("/")
    seeds = iter(range(1000 * seed, 1000 * seed + 10))
    if name == "simple_spread":
        offsets, shares = [(0.0, 0.0), (0.6, 0.3), (0.6, -0.3)], [0.34, 0.33, 0.33]
        policies = [
            SpreadController("fixed_assignment", noise=0.3, offset=offset, seed=next(seeds)) for offset in offsets
        ]
        words = f"fixed_assignment, noise 0.3, offsets {offsets}, shares {shares}"
    elif name == "grid_navigation":
        shares = [0.4, 0.3, 0.3]
        words, policies = _kinds(GridController, seeds, 0.33, ("optimal", "greedy", "random"), shares)
    elif name == "foraging":
        shares = [0.4, 0.3, 0.3]
        words, policies = _kinds(ForagingController, seeds, 0.33, ("team", "greedy", "random"), shares)
    elif isinstance(env, CueGame):
        shares = [0.3, 0.4, 0.3]
        controller = functools.partial(CueController, env)
        words, policies = _kinds(controller, seeds, 0.1, ("optimal", "memoryless", "random"), shares)
    elif isinstance(env, LaserGrid):
        shares = [0.3, 0.4, 0.3]
        controller = functools.partial(LaserController, env)
        words, policies = _kinds(controller, seeds, 0.05, ("expert", "dropped", "random"), shares)
    elif isinstance(env, Overcooked):
        shares = [0.4, 0.3, 0.3]
        controller = functools.partial(OvercookedController, env)
        words, policies = _kinds(controller, seeds, 0.1, ("team", "alone", "random"), shares)
    elif isinstance(env, GoalTask) and family != "ogbench":
        shares = [0.8, 0.1, 0.1]
        policies = [GoalController(env, "elsewhere", noise=0.2, seed=next(seeds))]
        policies += [GoalController(env, kind, seed=next(seeds)) for kind in ("goal", "random")]
        words = f"elsewhere with noise 0.2, goal, random, shares {shares}"
    elif isinstance(env, SparseVmas) and env.scenario in STEERING:
        kinds = STEERING[env.scenario]
        policies = [SteeringController(env, kind, noise=0.3, seed=next(seeds)) for kind in kinds]
        policies.append(_uniform(env))
        shares = [1.0] * len(policies)
        words = f"{', '.join(kinds)} with noise 0.3, random, equally often"
    elif family == "vmas" and name in SCENARIOS:
        shares = [0.5, 0.5]
        policies = [VmasHeuristic(env, noise=0.3), _uniform(env)]
        words = f"heuristic with noise 0.3, random, shares {shares}"
    else:
        return "uniform over the legal actions", None
    return words, MixedSkill(policies, probabilities=shares, seed=next(seeds))


def _uniform(env: EnvBase) -> TensorDictModule:
    draw = env.full_action_spec[ACTION].rand
    return TensorDictModule(lambda _: draw(), in_keys=[OBSERVATION], out_keys=[ACTION])


def _kinds(
    controller: Callable[..., Policy], seeds: Iterator[int], epsilon: float, kinds: Sequence[str], shares: list[float]
) -> tuple[str, list[Policy]]:
    """Return teams of each kind in words, and themselves; the first explores."""
    first, *others = kinds
    policies = [controller(first, epsilon=epsilon, seed=next(seeds))]
    policies += [controller(kind, seed=next(seeds)) for kind in others]
    return f"{first} with epsilon {epsilon:g}, {', '.join(others)}, shares {shares}", policies
