"""The environment that a dataset came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.ranges import SIZE
from torchrl_marl_offline.data.transitions.dataset import OfflineDataset
from torchrl_marl_offline.data.transitions.dataset_errors import DatasetError
from torchrl_marl_offline.envs.factory import has_environment, make_env

if TYPE_CHECKING:
    import torch
    from torchrl.envs import EnvBase


@checked
def make_simulator(
    dataset: OfflineDataset, *, num_envs: Annotated[int, SIZE], device: torch.device | str = "cpu"
) -> EnvBase | None:
    """Make the environment that a dataset came from, or return ``None`` where there is none.

    None is what there is for tasks that are neither this library's nor named by
    :func:`~torchrl_marl_offline.envs.register_environment`, and for StarCraft II where the game is not installed:
    its recordings are trained on without it.

    Raises:
        ModuleNotFoundError: if there is one, but its library is not installed.
        DatasetError: if its sizes are not the dataset's.
    """
    # A published set is named after its publication; its card tells the environment.
    task = dataset.metadata.get("env") or dataset.spec.task
    options, spec = dataset.metadata.get("task_options", {}), dataset.task_spec
    env = find_environment(task, options, num_envs=num_envs, device=device)
    if env is None:
        return None
    if env.scales_actions and spec.has_component_bounds:  # recorded in their own units
        env = make_env(task, num_envs=num_envs, device=device, **options | {"own_bounds": True})
    if env.task_spec.with_bounds_of(spec) != replace(spec, task=env.task_spec.task) or not spec.fits(env.task_spec):
        raise DatasetError(f"{task} has {env.task_spec}, but the dataset {spec}; give it its true task's name.")
    return env


def find_environment(
    task: str | None, options: Mapping[str, Any], *, num_envs: int, device: torch.device | str = "cpu"
) -> EnvBase | None:
    """Make a task's environment, or return ``None`` where there is none, as :func:`make_simulator` does."""
    if not has_environment(task):
        return None
    try:
        return make_env(task, num_envs=num_envs, device=device, **options)
    except (ModuleNotFoundError, FileNotFoundError):
        if task.startswith(("smac/", "smacv2/")):
            return None
        raise
