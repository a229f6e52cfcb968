"""Memory: what an agent has seen so far in its episode as one vector, in the place of its observation."""

from __future__ import annotations

import copy
from typing import Annotated, Literal

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictModuleBase, TensorDictSequential
from torch import Tensor, nn

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.layout import GROUP, IS_INIT, OBSERVATION, TaskSpec
from torchrl_marl_offline.core.ranges import WIDTHS, OneOf
from torchrl_marl_offline.core.relevance import ReadWith
from torchrl_marl_offline.modules.networks import StackedLinear, project_agents
from torchrl_marl_offline.modules.recurrence import unroll_gru, unroll_lstm

MEMORIES = OneOf(("gru", "lstm", "window:K"), r"gru|lstm|window:[1-9]\d{0,3}")
"""The kinds of memory: recurrent networks, or the last ``K`` observations side by side."""
Memory = Annotated[str | None, MEMORIES]
MemorySize = Annotated[int, WIDTHS, ReadWith("memory", "gru", "lstm")]

Role = Literal["policy", "critic", "value"]


class _Cell(nn.Module):
    """One step of memory, of rows: all agents' of all environments, or those of each agent that has its own weights.

    Attributes:
        features: width of what a network behind reads, the first of the memory.
        size: width of the memory.
        stack: ``(n,)`` where agents have weights of their own; else empty.
    """

    features: int
    size: int
    stack: tuple[int, ...] = ()

    def rows(self, x: Tensor, leading: int = 0) -> Tensor:
        """Map ``[*leading, *B, n, c]`` to ``[*leading, *stack, rows, c]``."""
        if self.stack:
            return x.flatten(leading, -3).transpose(-3, -2) if x.ndim > leading + 2 else x.unsqueeze(-2)
        return x.flatten(leading, -2)

    def agents(self, rows: Tensor, batch: torch.Size, leading: int = 0) -> Tensor:
        """Undo :meth:`rows`; ``batch`` is ``[*B, n]``."""
        rows = rows.transpose(-3, -2) if self.stack else rows
        return rows.reshape(*rows.shape[:leading], *batch, rows.shape[-1])

    def observe(self, x: Tensor, leading: int = 0) -> Tensor:
        """Return what :meth:`step` takes of inputs ``[*leading, *B, n, in]``, in rows."""
        return self.rows(x, leading)

    def step(self, inputs: Tensor, memory: Tensor) -> Tensor:
        """Return the memory after one more input, rows of each."""
        raise NotImplementedError

    def unroll(self, inputs: Tensor, begins: Tensor) -> Tensor:
        """Return the memory after each of ``T`` inputs, ``[T, *stack, rows, S]``.

        Args:
            inputs: what :meth:`observe` returned, ``[T, *stack, rows, c]``.
            begins: ``[T, *stack, rows, 1]`` bool, where the memory before is zero; nowhere before the first step.
        """
        raise NotImplementedError


class _Window(_Cell):
    """The last ``length`` observations side by side, the newest last, zeros before the episode's beginning."""

    def __init__(self, in_features: int, length: int) -> None:
        super().__init__()
        self.in_features, self.size, self.features = in_features, in_features * length, in_features * length

    def step(self, inputs: Tensor, memory: Tensor) -> Tensor:
        return torch.cat([memory[..., self.in_features :], inputs], -1)

    def unroll(self, inputs: Tensor, begins: Tensor) -> Tensor:
        memory = inputs.new_zeros(*inputs.shape[1:-1], self.size)
        found = []
        for seen, anew in zip(inputs.unbind(0), begins.unbind(0)):
            memory = self.step(seen, memory.masked_fill(anew, 0.0) if found else memory)
            found.append(memory)
        return torch.stack(found)


class _Recurrent(_Cell):
    """A recurrent cell for every agent, with the products of its inputs taken for all steps at once.

    The equations are those of :class:`torch.nn.GRUCell` and :class:`torch.nn.LSTMCell`. TorchRL's Python forms of them
    have one set of weights and take the products step by step; here weights are stacked for agents that share none, and
    a one-hot id of the agent is a bias of its own, as in
    :class:`~torchrl_marl_offline.modules.AgentNetwork`. A pass over time is one operation
    (:mod:`~torchrl_marl_offline.modules.recurrence`); :meth:`step` is the same of a single one, for policies that act.
    """

    gates: int

    def __init__(self, in_features: int, features: int, n_agents: int, share_params: bool) -> None:
        super().__init__()
        self.features, self.size = features, features
        self.n_agents, self.share_params = n_agents, share_params
        self.has_ids = share_params and n_agents > 1
        self.stack = () if share_params else (n_agents,)
        width = in_features + (n_agents if self.has_ids else 0)
        self.of_input = StackedLinear(width, self.gates * features, self.stack)
        self.of_memory = StackedLinear(features, self.gates * features, self.stack)

    def observe(self, x: Tensor, leading: int = 0) -> Tensor:
        """Return the products of the inputs, in the precision of these also where products are in a lower one."""
        first = self.of_input
        if self.has_ids:
            weight, of_agent = first.weight.split([first.in_features - self.n_agents, self.n_agents], -2)
            found = project_agents(x, weight, first.bias + of_agent)  # [B, n, gates * features]
            return self.rows(found.view(*x.shape[:-1], found.shape[-1]).to(x.dtype), leading)
        if not self.stack:
            return self.rows(first(x.flatten(0, -2)).view(*x.shape[:-1], -1).to(x.dtype), leading)
        found = first(self.rows(x)).transpose(-3, -2).reshape(*x.shape[:-1], first.out_features)
        return self.rows(found.to(x.dtype), leading)


class _GRU(_Recurrent):
    gates = 3

    def step(self, inputs: Tensor, memory: Tensor) -> Tensor:
        of_memory = self.of_memory(memory).to(memory.dtype)
        reset, update, new = inputs.chunk(3, -1)
        reset_m, update_m, new_m = of_memory.chunk(3, -1)
        new = torch.tanh(new + torch.sigmoid(reset + reset_m) * new_m)
        return torch.lerp(new, memory, torch.sigmoid(update + update_m))

    def unroll(self, inputs: Tensor, begins: Tensor) -> Tensor:
        return unroll_gru(inputs, begins, self.of_memory.weight, self.of_memory.bias)


class _LSTM(_Recurrent):
    gates = 4

    def __init__(self, in_features: int, features: int, n_agents: int, share_params: bool) -> None:
        super().__init__(in_features, features, n_agents, share_params)
        self.size = 2 * features  # hidden state, then cell state

    def step(self, inputs: Tensor, memory: Tensor) -> Tensor:
        hidden, cell = memory.chunk(2, -1)
        let_in, forget, new, out = (inputs + self.of_memory(hidden).to(memory.dtype)).chunk(4, -1)
        cell = torch.sigmoid(forget) * cell + torch.sigmoid(let_in) * torch.tanh(new)
        return torch.cat([torch.sigmoid(out) * torch.tanh(cell), cell], -1)

    def unroll(self, inputs: Tensor, begins: Tensor) -> Tensor:
        return unroll_lstm(inputs, begins, self.of_memory.weight, self.of_memory.bias)


class HistoryEncoder(TensorDictModuleBase):
    r"""What every agent remembers of its episode, :math:`h_t = f(h_{t-1}, o_t)`, with :math:`h = 0` before it begins.

    Called as a module it acts: one step. It reads ``("agents", "observation")``, ``"is_init"`` ``[*B, 1]`` (true where
    an episode begins) and its memory, and writes what the network behind it reads, the features, and its memory after
    the step under ``"next"``, as TorchRL's :class:`~torchrl.modules.GRUModule` does. Losses unroll it over time instead
    (:meth:`unroll`), once for each network.

    Args:
        spec: the task's sizes.
        memory: ``"gru"``, ``"lstm"``, or ``"window:K"``, the last ``K`` observations side by side, zeros before the
            episode's beginning.
        size: width of a recurrent network's features; a window has ``K`` observations.
        role: of the network behind it, in the keys: ``("agents", "policy_history")`` for the features, ``("agents",
            "policy_memory")`` for the memory.
        share_params: agents share parameters and are told apart by a one-hot id.
        joint: remember the joint observation, for one value of the team.
        inputs: applied to every observation, such as a normalization by fixed numbers.

    Attributes:
        feature_size: width ``F`` of the features ``[*B, n, F]``, or ``[*B, F]`` of the joint observation.
        memory_size: width ``S`` of the memory ``[*B, n, S]``, or ``[*B, 1, S]``.
    """

    @checked
    def __init__(
        self,
        spec: TaskSpec,
        memory: Annotated[str, MEMORIES] = "gru",
        size: Annotated[int, WIDTHS, ReadWith("memory", "gru", "lstm")] = 64,
        *,
        role: Role = "policy",
        share_params: bool = True,
        joint: bool = False,
        inputs: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.joint, self.kind = joint, memory
        self.inputs = nn.Identity() if inputs is None else inputs
        n_agents, width = spec.n_agents, spec.observation_size
        if joint:
            n_agents, width = 1, n_agents * width
        if memory.startswith("window:"):
            self.cell = _Window(width, int(memory.partition(":")[2]))
        else:
            self.cell = {"gru": _GRU, "lstm": _LSTM}[memory](width, size, n_agents, share_params)
        self.feature_size, self.memory_size, self.n_agents = self.cell.features, self.cell.size, n_agents
        self.history_key: NestedKey = f"{role}_history" if joint else (GROUP, f"{role}_history")
        self.memory_key: NestedKey = f"{role}_memory" if joint else (GROUP, f"{role}_memory")
        self.in_keys = [OBSERVATION, IS_INIT, self.memory_key]
        self.out_keys = [self.history_key, ("next", *self._path)]

    @property
    def _path(self) -> tuple[str, ...]:
        return (self.memory_key,) if isinstance(self.memory_key, str) else self.memory_key

    def _observed(self, observation: Tensor) -> Tensor:
        """Return what the cell observes of observations ``[*B, n, o]``."""
        seen = self.inputs(observation)
        return seen.flatten(-2).unsqueeze(-2) if self.joint else seen

    def features(self, memory: Tensor) -> Tensor:
        """Return what the network behind reads of memories ``[*B, n, S]``."""
        found = memory[..., : self.feature_size]
        return found.squeeze(-2) if self.joint else found

    def beginning(self, observation: Tensor) -> Tensor:
        """Return the memory before an episode, zeros ``[*B, n, S]``, for observations ``[*B, n, o]``."""
        return observation.new_zeros(*observation.shape[:-2], self.n_agents, self.memory_size)

    def advance(self, observation: Tensor, memory: Tensor) -> Tensor:
        """Return the memory ``[*B, n, S]`` after one more observation ``[*B, n, o]``; each row is for itself."""
        cell, inputs = self.cell, self._observed(observation)
        return cell.agents(cell.step(cell.observe(inputs), cell.rows(memory)), memory.shape[:-1])

    def unroll(self, observation: Tensor, is_init: Tensor) -> Tensor:
        """Return the memory after each of the observations, which are steps one after another.

        Args:
            observation: ``[*B, T, n, o]``.
            is_init: ``[*B, T, 1]`` bool, where nothing before is remembered; nowhere before the first step.

        Returns:
            ``[*B, T, n, S]``.
        """
        cell, batch = self.cell, (*observation.shape[:-3], self.n_agents)
        inputs = cell.observe(self._observed(observation).movedim(-3, 0), 1)
        begins = cell.rows(is_init.movedim(-2, 0).unsqueeze(-1).expand(-1, *batch, 1), 1)
        return cell.agents(cell.unroll(inputs, begins), torch.Size(batch), 1).movedim(0, -3)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Take one step.

        Raises:
            ValueError: it is not told where episodes begin, or has no memory in the middle of one, or either has
                another shape.
        """
        observation, begins = tensordict.get(OBSERVATION), tensordict.get(IS_INIT, None)
        memory = tensordict.get(self.memory_key, None)
        if begins is None:
            raise ValueError(
                f"A network with memory must be told where episodes begin; set {IS_INIT!r} [*B, 1], as evaluate, "
                "collect and TorchRL's InitTracker do."
            )
        of_rows = observation.shape[:-2]
        if begins.dtype != torch.bool or begins.shape != (*of_rows, 1):
            raise ValueError(
                f"{IS_INIT!r} must be bools {[*of_rows, 1]}, true where an episode begins; got {list(begins.shape)} of "
                f"{begins.dtype}."
            )
        wanted = (*of_rows, self.n_agents, self.memory_size)
        if memory is not None and memory.shape != wanted:
            raise ValueError(
                f"The memory at {self.memory_key!r} must be {list(wanted)}, what this network wrote under 'next' in "
                f"the step before; got {list(memory.shape)}."
            )
        if memory is None:
            if not torch._C._functorch.is_functorch_wrapped_tensor(begins) and not bool(begins.all()):
                raise ValueError(
                    f"A network with memory was given none in the middle of an episode; carry {('next', *self._path)} "
                    f"of each step to {self.memory_key!r} of the next one, as evaluate, collect and TorchRL's "
                    "TensorDictPrimer do."
                )
            memory = self.beginning(observation)
        memory = self.advance(observation, torch.where(begins.unsqueeze(-1), torch.zeros_like(memory), memory))
        tensordict.set(self.history_key, self.features(memory))
        return tensordict.set(("next", *self._path), memory)


def remembering(
    spec: TaskSpec, memory: str | None, size: int, **options
) -> tuple[HistoryEncoder | None, NestedKey, TaskSpec]:
    """Return what stands before a network, what that network reads, and the sizes that it is built for.

    Without memory: None, the observation and the task's own sizes.
    """
    if memory is None:
        return None, OBSERVATION, spec
    encoder = HistoryEncoder(spec, memory, size, **options)
    return encoder, encoder.history_key, _seeing(spec, encoder.feature_size)


def _seeing(spec: TaskSpec, size: int) -> TaskSpec:
    """Return the same task with observations of another size, and these very bounds: networks are built by them."""
    other = copy.copy(spec)
    object.__setattr__(other, "observation_size", size)
    return other


def behind(
    encoder: HistoryEncoder | None, network: TensorDictModuleBase, *others: TensorDictModule
) -> TensorDictModuleBase:
    """Return a network behind what remembers for it, where there is any, and others behind both."""
    parts = [part for part in (encoder, network, *others) if part is not None]
    return parts[0] if len(parts) == 1 else TensorDictSequential(*parts)


def encoder_of(network: TensorDictModuleBase | None) -> HistoryEncoder | None:
    """Return what remembers for a network, or None."""
    return next(iter(encoders_of(network)), None)


def encoders_of(network: TensorDictModuleBase | None) -> list[HistoryEncoder]:
    """Return all that remembers in a network."""
    modules = () if network is None else network.modules()
    return [module for module in modules if isinstance(module, HistoryEncoder)]
