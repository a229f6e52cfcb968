"""Each agent's own policy as a program: one agent's observation in, its action out, nothing of the others in the file.

Execution is decentralized, so that a team's policy is as many policies as it has agents. One agent's is built by the
same function for a team of one, with the agent's share of the parameters: its own where agents share none, and where
they do, the row of its one-hot id. That it acts as the team's does is tried before anything is written.

A file maps ``observation`` ``[B, o]`` float32, and ``action_mask`` ``[B, A]`` bool where the task has one, to
``action``: ``[B, a]`` float32 within the agent's bounds, or ``[B]`` int64, a legal one. With memory it also takes its
``memory`` ``[B, S]`` and ``is_init`` ``[B, 1]`` bool, behind the observation, and also returns ``next_memory``, as the
team's does (:mod:`~.policy_export`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import numpy as np
import torch
from tensordict import TensorDict, unravel_key
from torch import Tensor
from torchrl.envs.utils import set_exploration_type

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.exploration import EXPLORATION, Mode
from torchrl_marl_offline.core.files import write_json_atomic
from torchrl_marl_offline.core.layout import ACTION, ACTION_MASK, OBSERVATION, TaskSpec, joined
from torchrl_marl_offline.core.paths import user_path
from torchrl_marl_offline.core.put_back import evaluation_mode, preserved_rng
from torchrl_marl_offline.core.ranges import OPSET, SEED
from torchrl_marl_offline.evaluation.policy_export import (
    KEYS,
    ONNX_OPSET,
    SUFFIXES,
    ExecutedAction,
    Format,
    RememberingAction,
    example_inputs,
    loaded_with_metadata,
    memory_size_of,
    require_onnx,
    write_program,
)
from torchrl_marl_offline.modules.actors import DRAWN, NOISE
from torchrl_marl_offline.modules.history import encoder_of
from torchrl_marl_offline.training.run.saved_policies import BUILDERS

if TYPE_CHECKING:
    from tensordict.nn import TensorDictModuleBase

TRIED = 64
"""Random joint observations on which an agent's own policy is compared with the team's."""
TOLERANCE = 1e-5
"""Largest difference from the team's policy that is taken for rounding, times the size of what is compared."""


class OwnAction(ExecutedAction):
    """A policy of a team of one as a function of that agent's tensors.

    Shape:
        ``[B, o]`` (and a mask ``[B, A]``) to ``[B, a]`` or ``[B]``.
    """

    def forward(self, observation: Tensor, action_mask: Tensor | None = None) -> Tensor:
        """Return the agent's action."""
        mask = None if action_mask is None else action_mask.unsqueeze(1)
        return super().forward(observation.unsqueeze(1), mask).squeeze(1)


class OwnRememberingAction(RememberingAction):
    """A policy with memory of a team of one as a function of that agent's tensors, one step of it.

    Shape:
        observation ``[B, o]``, memory ``[B, S]`` and ``is_init`` ``[B, 1]`` (and a mask ``[B, A]``) to the action
        ``[B, a]`` or ``[B]`` and the memory after the step.
    """

    def forward(
        self, observation: Tensor, memory: Tensor, is_init: Tensor, action_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the agent's action and its next memory."""
        mask = None if action_mask is None else action_mask.unsqueeze(1)
        action, following = super().forward(observation.unsqueeze(1), memory.unsqueeze(1), is_init, mask)
        return action.squeeze(1), following.squeeze(1)


@checked
def export_agent_policies(
    policy: TensorDictModuleBase | str | Path,
    path: str | Path,
    *,
    formats: Sequence[Format] = ("torch", "onnx"),
    mode: Mode = "mode",
    opset: Annotated[int, OPSET] = ONNX_OPSET,
) -> Path:
    """Write each agent's own policy as a program of its own, and a list of them as JSON.

    Of ``"robots/policy"`` and two agents: ``policy_agent_0.pt2``, ``policy_agent_0.onnx``, ``policy_agent_1.pt2``,
    ``policy_agent_1.onnx`` and ``policy_agents.json``, all in ``robots``. The JSON has, for each agent, its files and
    the names, shapes and types of inputs, in their order, and of the output with its bounds.

    Args:
        policy: as for :func:`export_policy`.
        path: how the files' names begin; an ending ``.pt2`` or ``.onnx`` is left out.
        formats: of ``"torch"`` and ``"onnx"``.
        mode: ``"mode"`` executes the policy's deterministic action, as an evaluation does, ``"sample"`` draws from it.
        opset: of ONNX.

    Returns:
        The path of the JSON.

    Raises:
        FileNotFoundError: there is no policy at the path.
        ImportError: ONNX is asked for and not installed.
        TypeError: the policy does not say for which task it was built.
        ValueError: an unknown format or mode, a damaged file, or a policy that cannot be split: an agent's action
            depends on what others observe, or on the state.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> spec = TaskSpec(n_agents=3, observation_size=18, state_size=54, action_size=2)
        >>> actor = BUILDERS["make_actor"](spec, hidden=(8,))
        >>> with TemporaryDirectory() as folder:
        ...     listed = export_agent_policies(actor, f"{folder}/policy", formats=["torch"])
        ...     act = torch.export.load(f"{folder}/policy_agent_1.pt2").module()
        >>> act(torch.zeros(5, 18)).shape
        torch.Size([5, 2])
    """
    formats = list(dict.fromkeys(formats))
    if not formats or set(formats) - set(SUFFIXES):
        raise ValueError(f"formats must be some of {', '.join(SUFFIXES)}, got {formats!r}.")
    if mode not in get_args(Mode):
        raise ValueError(f'mode must be "mode" or "sample", got {mode!r}.')
    if "onnx" in formats:
        require_onnx()
    policy, told = loaded_with_metadata(policy)
    own = [agent_policy(policy, agent) for agent in range(policy.build["spec"]["n_agents"])]
    start, rows = _without_suffix(path), []
    for agent, each in enumerate(own):
        spec = TaskSpec(**each.build["spec"])
        arguments = of_agent(example_inputs(spec, 2, memory_size=memory_size_of(each)), 0)
        executed = (OwnAction if encoder_of(each) is None else OwnRememberingAction)(each, mode=mode)
        stem = start.with_name(f"{start.name}_agent_{agent}")
        files = {}
        for format in formats:
            file = stem.with_name(stem.name + SUFFIXES[format])
            options: dict[str, Any] = {"format": format, "opset": opset, "told": told, "agent": agent}
            files[format] = write_program(executed, arguments, file, **options).name
        rows.append({"agent": agent, "files": files} | signature(spec, arguments))
    listed = start.with_name(f"{start.name}_agents.json")
    write_json_atomic(listed, {"task": policy.build["spec"]["task"], "mode": mode, "agents": rows})
    return listed


def agent_policy(policy: TensorDictModuleBase, agent: int, *, seed: Annotated[int, SEED] = 0) -> TensorDictModuleBase:
    """Return one agent's own policy, a policy of a team of one; the team's is left as it is.

    Args:
        policy: built by one of :data:`~.saved_policies.BUILDERS`.
        agent: which.
        seed: of the observations on which both are compared.

    Raises:
        TypeError: another function built it.
        ValueError: the action depends on what other agents observe, or on the state.
    """
    build = policy.build
    if build["builder"] not in BUILDERS:
        raise TypeError(f"A policy of {build['builder']} cannot be split, only policies of {', '.join(BUILDERS)}.")
    encoder = encoder_of(policy)
    remembered = () if encoder is None else encoder.in_keys
    read = [key for key in map(unravel_key, policy.in_keys) if key not in (OBSERVATION, ACTION_MASK, *remembered)]
    if read:
        raise ValueError(
            f"The policy also reads {', '.join(map(joined, read))}, which an agent does not see by itself, so that it "
            "cannot be split; export it as a whole."
        )
    with preserved_rng():
        own = BUILDERS[build["builder"]](agent_spec(TaskSpec(**build["spec"]), agent), **build["options"])
        _fill(own, policy.state_dict(), agent, build["spec"]["n_agents"])
        own.train(policy.training)
        if not _acts_as(policy, own, agent, seed):
            raise ValueError(
                f"Agent {agent}'s action depends on what other agents observe, so that the policy cannot be split; "
                "export it as a whole."
            )
    return own


def agent_spec(spec: TaskSpec, agent: int) -> TaskSpec:
    """Return the task of a team of one agent, with its own bounds."""
    bounds = {name: _bound_of(getattr(spec, name), agent) for name in ("action_low", "action_high")}
    own = replace(spec, n_agents=1, **bounds)
    if any(np.ndim(bound) for bound in bounds.values()):
        # What networks are built depends on whether bounds are given for each component, even where these are equal.
        for name, bound in bounds.items():
            object.__setattr__(own, name, bound)
    return own


def _bound_of(bound: Any, agent: int) -> Any:
    """Return an agent's bound of one for all, of one for each component, or of one such tuple for each agent."""
    return bound if np.ndim(bound) < 2 else (tuple(bound[agent]),)


def _fill(own: TensorDictModuleBase, team: Mapping[str, Tensor], agent: int, n_agents: int) -> None:
    """Give a policy of one agent its share of the team's parameters and statistics.

    A dimension has one place for each agent, ``k + n`` against ``k + 1``, or is the same: one that only counts agents
    (k = 0) of stacked weights and statistics, and the inputs of a first layer, whose last n are the agents' ids. A
    memory of one agent has no id, ``k + n`` against ``k``: what it adds is a part of the bias.
    """
    share, of_ids = {}, {}
    for name, wanted in own.state_dict().items():
        value = team[name]
        for dim, (has, needs) in enumerate(zip(value.shape, wanted.shape, strict=True)):
            if has != needs:
                common = has - n_agents
                parts = [value.narrow(dim, 0, common), value.narrow(dim, common + agent, 1)]
                if needs == common:
                    of_ids[f"{name.removesuffix('weight')}bias"] = parts.pop()
                value = torch.cat(parts, dim)
        share[name] = value.to("cpu")
    for name, added in of_ids.items():
        share[name] = share[name] + added.to("cpu")
    own.load_state_dict(share)


@torch.no_grad()
def _acts_as(team: TensorDictModuleBase, own: TensorDictModuleBase, agent: int, seed: int) -> bool:
    """Say whether an agent's own policy acts as the team's does, whatever the others observe."""
    spec = TaskSpec(**team.build["spec"])
    generator = torch.Generator().manual_seed(seed)
    inputs = example_inputs(spec, TRIED, generator=generator, memory_size=memory_size_of(team))
    given = TensorDict({KEYS[name]: value for name, value in inputs.items()}, [TRIED])
    alone = TensorDict({KEYS[name]: value for name, value in of_agent(inputs, agent, keep=True).items()}, [TRIED])
    device = next((parameter.device for parameter in team.parameters()), torch.device("cpu"))
    with evaluation_mode(team), evaluation_mode(own), set_exploration_type(EXPLORATION["mode"]):
        together, apart = team(given.to(device)).to("cpu"), own(alone)
    written = [key for key in apart.keys(True, True) if key not in (DRAWN, NOISE, *KEYS.values())]
    compared = [key for key in written if apart[key].is_floating_point()] or [ACTION]
    return all(_is_close(together[key][:, agent].double(), apart[key][:, 0].double()) for key in compared)


def _is_close(found: Tensor, wanted: Tensor) -> bool:
    return bool(((found - wanted).abs() <= TOLERANCE * wanted.abs().clamp_min(1.0)).all())


def of_agent(inputs: Mapping[str, Tensor], agent: int, *, keep: bool = False) -> dict[str, Tensor]:
    """Return an agent's part of a policy's inputs ``[B, n, ...]``, by name; ``keep`` keeps the agents' dimension."""
    place = slice(agent, agent + 1) if keep else agent
    return {name: value if name == "is_init" else value[:, place].contiguous() for name, value in inputs.items()}


def signature(spec: TaskSpec, arguments: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return names, shapes and types of an agent's program, and its bounds or its number of actions, JSON-ready.

    Args:
        spec: of a team of one.
        arguments: example inputs by name, in their order.
    """
    inputs = [
        {"name": name, "shape": ["batch", *value.shape[1:]], "dtype": str(value.dtype).removeprefix("torch.")}
        for name, value in arguments.items()
    ]
    if spec.discrete:
        action = {"name": "action", "shape": ["batch"], "dtype": "int64", "n_actions": spec.action_size}
    else:
        low, high = list(spec.lows[0]), list(spec.highs[0])
        action = {"name": "action", "shape": ["batch", spec.action_size], "dtype": "float32", "low": low, "high": high}
    memory = [each | {"name": "next_memory"} for each in inputs if each["name"] == "memory"]
    return {"inputs": inputs, "outputs": [action, *memory]}


def _without_suffix(path: str | Path) -> Path:
    path = user_path(path)
    return path.with_suffix("") if path.suffix in SUFFIXES.values() else path
