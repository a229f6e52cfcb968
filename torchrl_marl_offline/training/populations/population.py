"""Many runs as one computation: members stacked in front of every tensor, each with its own data and coefficients."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase, unravel_key
from tensordict.nn import (
    ProbabilisticTensorDictModule,
    TensorDictModule,
    TensorDictModuleBase,
    TensorDictSequential,
)
from torch import Tensor, nn
from torchrl.data import ImmutableDatasetWriter, TensorDictReplayBuffer

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.functional_parameters import (
    GivenTensors,
    named_tensors,
    parameters_in,
    tensors_in,
    tensors_of,
)
from torchrl_marl_offline.core.noise import NoiseRequest, recorded_noise
from torchrl_marl_offline.core.parts import COMPILED, heard_by, part
from torchrl_marl_offline.core.put_back import preserved_rng
from torchrl_marl_offline.core.ranges import COUNT_OR_NONE, SEED, SIZE, SIZE_OR_NONE
from torchrl_marl_offline.core.relevance import ReadWith
from torchrl_marl_offline.data.hindsight import HindsightGoals, RelabelledBuffer
from torchrl_marl_offline.data.transitions.buffers import DatasetStorage, RowSampler, make_replay_buffer
from torchrl_marl_offline.data.transitions.fingerprints import spread_checksums
from torchrl_marl_offline.objectives.loss import OfflineMARLLoss
from torchrl_marl_offline.training.populations.alike import first_difference
from torchrl_marl_offline.training.populations.own_coefficients import attributes_refused
from torchrl_marl_offline.training.run.checkpoints import (
    check_content,
    check_generator,
    content_of,
    restore_generator,
    slices_of,
    words_of_hindsight,
)
from torchrl_marl_offline.training.step.gradients import (
    Differentiated,
    GradientFunction,
    Precision,
    TracedFunction,
    copies_of,
    in_precision,
    leaf_device,
    noise_given,
    set_gradients,
    signature_of,
    total_loss,
)

if TYPE_CHECKING:
    from torchrl.data import ReplayBuffer
    from torchrl.data.replay_buffers.samplers import Sampler
    from torchrl.objectives import LossModule

    from torchrl_marl_offline.data.transitions.dataset import OfflineDataset


AT_ONCE_ON_CPU = 8
"""Most members of one computation on a CPU; see ``benchmarks/results/speed.md``."""
CACHE = 4 * 2**20
"""Bytes that the largest tensor of one compiled computation on a CPU may have; see there."""


class Population(nn.Module):
    """The tensors of ``P`` losses of one structure, stacked to ``[P, ...]``.

    The losses may differ in every tensor: parameters (seeds), coefficients such as the temperature, the discount. All
    else must be the same, since the first loss serves as the form into which members' tensors are put: every class and
    every attribute of networks, rules, norms and value estimator; see
    :func:`~torchrl_marl_offline.training.populations.alike.first_difference`.

    Args:
        losses: member name -> loss.

    Raises:
        ValueError: the losses differ in more than the values of their tensors, or two train the same tensor; it names
            the attribute and both members.
    """

    def __init__(self, losses: Mapping[str, LossModule]) -> None:
        super().__init__()
        if not isinstance(losses, Mapping) or not all(isinstance(name, str) for name in losses):
            raise TypeError("A population is a mapping from members' names, strings, to their losses.")
        if not losses:
            raise ValueError("A population needs at least one member.")
        self.members = list(losses)
        for loss in losses.values():
            if getattr(loss, "value_learning", None) is not None:
                _ = loss.value_estimator  # the default one, where none was chosen
        self._check_without_memory(losses)
        self._check_apart(losses)
        tensors = [tensors_of(loss) for loss in losses.values()]
        self._check_alike(losses, tensors)
        # Not registered as a child: its own tensors are the first member's start, not the population's.
        self.__dict__["template"] = next(iter(losses.values()))
        self._slots: dict[str, str] = {}
        trained = dict(self.template.named_parameters())  # without networks that another loss trains
        for name, first in tensors[0].items():
            stacked = torch.stack([member[name].detach() for member in tensors])
            self._slots[name] = slot = name.replace(".", "|")  # a dot would be a path
            if name in trained and first.requires_grad:
                self.register_parameter(slot, nn.Parameter(stacked))
            else:
                self.register_buffer(slot, stacked)

    @staticmethod
    def _check_without_memory(losses: Mapping[str, LossModule]) -> None:
        """Refuse TorchRL's networks with memory, which look at where episodes begin: no map over members can."""
        for member, loss in losses.items():
            if isinstance(loss, OfflineMARLLoss) and loss.team.has_torchrl_memory:
                raise ValueError(
                    f"{member} has a network with memory of TorchRL (an LSTMModule or a GRUModule), which cannot be "
                    "trained in a population; build it with memory='gru' or 'lstm', or train its losses one by one, "
                    "with Trainer."
                )

    @staticmethod
    def _check_apart(losses: Mapping[str, LossModule]) -> None:
        """Refuse members that train the same tensors: stacked, each would go its own way."""
        owner: dict[int, tuple[str, str]] = {}
        for member, loss in losses.items():
            for name, parameter in loss.named_parameters():
                if not parameter.requires_grad or not parameter.numel():
                    continue
                before = owner.setdefault(parameter.data_ptr(), (member, name))
                if before[0] != member:
                    raise ValueError(
                        f"{before[0]} and {member} share {name}; members of a population have networks of their own: "
                        "build a loss for each."
                    )

    @staticmethod
    def _check_alike(losses: Mapping[str, LossModule], tensors: Sequence[Mapping[str, Tensor]]) -> None:
        first_name, first = next(iter(losses.items()))
        for name, loss, own in zip(losses, losses.values(), tensors):
            found = first_difference(first, loss)
            if found is not None:
                raise ValueError(
                    f"{found.path} is {found.first} in {first_name} and {found.other} in {name}; members of a "
                    "population may differ in coefficients and seeds only. Train them in two populations."
                )
            for key in dict.fromkeys([*tensors[0], *own]):
                forms = [_form(t.get(key)) for t in (tensors[0], own)]
                if forms[0] != forms[1]:
                    raise ValueError(
                        f"{key} is {forms[0]} in {first_name} and {forms[1]} in {name}; members of a population must "
                        "have the same networks and rules. Train them in two populations."
                    )
                if tensors[0][key].requires_grad != own[key].requires_grad:
                    trained = (first_name, name) if tensors[0][key].requires_grad else (name, first_name)
                    raise ValueError(
                        f"{key} is trained in {trained[0]} and not in {trained[1]}. Train them in two populations."
                    )

    def __len__(self) -> int:
        return len(self.members)

    def tensors(self) -> dict[str, Tensor]:
        """Return the stacked tensors ``[P, ...]`` by the names of a member's ``state_dict()``."""
        return {name: getattr(self, slot) for name, slot in self._slots.items()}

    def member_tensors(self, member: str) -> dict[str, Tensor]:
        """Return one member's tensors, sharing memory with the population."""
        index = self.members.index(member)
        return {name: tensor.detach()[index] for name, tensor in self.tensors().items()}

    @torch.no_grad()
    def write_member(self, member: str, loss: LossModule) -> LossModule:
        """Copy a member's tensors into an ordinary loss of the same structure, and return it."""
        own = tensors_of(loss)
        for name, tensor in self.member_tensors(member).items():
            own[name].copy_(tensor)
        return loss

    def act(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Let every member act on its share of ``[P * k]`` rows, by the exploration type in force."""
        head, choose = _head_and_choice(self.template.actor_network)
        params = self.template.actor_network_params
        names = dict(named_tensors(params, "actor_network_params"))
        tensors = {name: tensor.detach() for name, tensor in self.tensors().items() if name in names}
        # at an episode's beginning there is no memory yet
        given = {key: tensordict.get(key, None) for key in map(unravel_key, head.in_keys)}
        keys = [key for key, value in given.items() if value is not None]
        inputs = [given[key].unflatten(0, (len(self), -1)) for key in keys]

        def one(tensors: dict[str, Tensor], inputs: list[Tensor]) -> list[Tensor]:
            own = GivenTensors.like(params, {id(names[name]): tensor for name, tensor in tensors.items()})
            with parameters_in(self.template.actor_network, own):
                out = head(TensorDict(dict(zip(keys, inputs)), [inputs[0].shape[0]]))
            return [out.get(key) for key in head.out_keys]

        found = torch.vmap(one, randomness="different")(tensors, inputs)  # of policies that are functions of noise
        return choose(tensordict.update({key: value.flatten(0, 1) for key, value in zip(head.out_keys, found)}))

    def target_pairs(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return the target networks' tensors and those that they follow: as TorchRL has it, those that are trained."""
        tensors = self.tensors()
        targets = {name: tensor for name, tensor in tensors.items() if name.startswith("target_")}
        pairs = [(target.data, tensors[name.removeprefix("target_")]) for name, target in targets.items()]
        trained = [(target, source.data) for target, source in pairs if source.requires_grad]
        return [target for target, _ in trained], [source for _, source in trained]


def _form(tensor: Tensor | None) -> str:
    return "not there" if tensor is None else f"{tuple(tensor.shape)} {tensor.dtype} on {tensor.device}"


def _head_and_choice(actor: TensorDictModuleBase) -> tuple[TensorDictModuleBase, TensorDictModuleBase]:
    """Split an actor into what has parameters and what draws, which has none and takes the rows of all at once."""
    if not isinstance(actor, TensorDictSequential) or not isinstance(actor.module[-1], ProbabilisticTensorDictModule):
        return actor, TensorDictModule(nn.Identity(), in_keys=actor.out_keys[:1], out_keys=actor.out_keys[:1])
    *heads, choice = actor.module
    return (heads[0] if len(heads) == 1 else TensorDictSequential(*heads)), choice


class PopulationGradients:
    """Differentiate every member's loss at once; see :class:`~torchrl_marl_offline.training.Population`.

    Args:
        population: the members.
        precision: of the matrix products.
        compiled: trace the computation and compile it.
        backend: of :func:`torch.compile`.
        generators: one per member, from which its noise is drawn.
        members_at_once: how many members are one computation; the population is gone through in groups of at most as
            many. By default all on a GPU, on a CPU at most 8, and compiled only as many as share tensors of at most
            4 MiB, one at least, so that what they compute stays in its caches.
    """

    def __init__(
        self,
        population: Population,
        *,
        precision: Precision = "fp32",
        compiled: bool = False,
        backend: str | None = "inductor",
        generators: Sequence[torch.Generator],
        members_at_once: int | None = None,
    ) -> None:
        self.population, self.compiled, self.backend = population, compiled, backend
        self._function = population_gradients(population, precision)
        self._generators = generators
        self._traced: dict[tuple, TracedFunction] = {}
        self._noise: dict[tuple, list[NoiseRequest]] = {}
        self._at_once = members_at_once
        self._groups: list[slice] = []
        self._where: list[int] | None = None
        self._slices: list[dict[str, Tensor]] = []
        self._stacked: dict[str, Tensor] = {}

    def __call__(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Set the ``grad`` of every stacked parameter; ``batch`` is ``[P, B]``; returns metrics ``[P]``."""
        tensors = self.population.tensors()
        if not self._groups:
            largest = self._look(tensors, batch)
            self._groups = equal_groups(len(self.population), self._at_once or self._sensible_number(largest, batch))
        if len(self._groups) == 1:
            metrics, gradients = self._differentiate(tensors, batch, self._groups[0])
            set_gradients(tensors, gradients)
            return metrics
        found = []
        for group, own in zip(self._groups, self._shares(tensors)):
            metrics, gradients = self._differentiate(own, batch[group], group)
            found.append(metrics)
            self._keep(tensors, gradients, group)  # while they are in the caches
        for name, tensor in tensors.items():
            tensor.grad = self._stacked.get(name)
        return {name: torch.cat([metrics[name] for metrics in found]) for name in found[0]}

    def _look(self, tensors: Mapping[str, Tensor], batch: TensorDictBase) -> int:
        """Let a loss look at the first batch, as in a run of its own: mapped over members, values cannot be read.

        Returns:
            The bytes of the largest tensor that a member keeps for its backward pass.
        """
        loss = self.population.template
        first = copies_of({name: tensor[0] for name, tensor in tensors.items()})
        with preserved_rng(), heard_by(None), tensors_in(loss, first), _kept_for_backward() as kept:
            if isinstance(loss, OfflineMARLLoss):
                loss.batch(batch)
            loss(batch[0])
        return max(kept, default=0)

    def _sensible_number(self, largest: int, batch: TensorDictBase) -> int:
        """Return how many members are one computation, whose largest tensors have so many bytes each."""
        if leaf_device(batch).type == "cuda":
            return len(self.population)
        return max(1, min(AT_ONCE_ON_CPU, CACHE // max(largest, 1))) if self.compiled else AT_ONCE_ON_CPU

    def _shares(self, tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """Return every group's slices of the stacked tensors; they stay the same memory."""
        where = [tensor.data_ptr() for tensor in tensors.values()]
        if self._where != where:
            self._where, self._stacked = where, {}
            self._slices = [
                {name: t.detach()[group].requires_grad_(t.requires_grad) for name, t in tensors.items()}
                for group in self._groups
            ]
        return self._slices

    def _keep(self, tensors: Mapping[str, Tensor], gradients: Mapping[str, Tensor], group: slice) -> None:
        for name, gradient in gradients.items():
            if name not in self._stacked:
                self._stacked[name] = torch.empty_like(tensors[name], requires_grad=False)
            self._stacked[name][group].copy_(gradient)

    def _differentiate(self, own: Mapping[str, Tensor], batch: TensorDictBase, group: slice) -> Differentiated:
        signature = signature_of(batch)
        if signature not in self._noise:
            with attributes_refused(self.population.template, self.population.tensors()):
                self._prepare(signature, own, batch)
        device, generators = leaf_device(batch), self._generators[group]
        noise = [torch.stack([r.draw(device, g) for g in generators]) for r in self._noise[signature]]
        with part(COMPILED if self.compiled else "loss arithmetic"):
            return (self._traced[signature] if self.compiled else self._function)(own, batch, noise)

    def _prepare(self, signature: tuple, own: Mapping[str, Tensor], batch: TensorDictBase) -> None:
        if self.compiled:
            draw = _drawn_for(len(batch))
            self._traced[signature] = TracedFunction(self._function, own, batch, backend=self.backend, draw=draw)
            self._noise[signature] = self._traced[signature].noise
        else:
            self._noise[signature] = self._requests(own, batch)

    def _requests(self, tensors: Mapping[str, Tensor], batch: TensorDictBase) -> list[NoiseRequest]:
        with preserved_rng(), recorded_noise() as requests:
            try:
                self._function(copies_of(tensors), batch, None)
            except RuntimeError as error:
                if not str(error).startswith("vmap: "):
                    raise
                raise ValueError(
                    f"The loss cannot be mapped over members ({str(error).splitlines()[0].rstrip('.')}): a rule of a "
                    "population draws by torchrl_marl_offline.core.noise.normal_like or sampled_action of "
                    "objectives.action_distributions, and chooses by torch.where; or train its losses one by one."
                ) from error
        return requests


@contextmanager
def _kept_for_backward() -> Iterator[list[int]]:
    """Collect the bytes of every tensor that autograd keeps for the backward pass."""
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.nbytes)  # a batch's row lies in the memory of the whole batch
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield kept


def _drawn_for(members: int) -> Callable[[NoiseRequest, torch.device], Tensor]:
    return lambda request, device: torch.stack([request.draw(device) for _ in range(members)])


def equal_groups(count: int, largest: int) -> list[slice]:
    """Cut ``count`` members into as few groups of at most ``largest`` as will do, whose sizes differ by one at most."""
    number = -(-count // largest)
    ends = [count * i // number for i in range(number + 1)]
    return [slice(*ends) for ends in itertools.pairwise(ends)]


def population_gradients(population: Population, precision: Precision) -> GradientFunction:
    """Return the function from stacked tensors, batches ``[P, B]`` and noise ``[P, ...]`` to metrics and gradients."""
    loss = population.template
    keys: list[str] = []
    rows: list[int] = []  # of a member's batch, [B], or [S, T] of sequences

    def member(tensors: dict[str, Tensor], leaves: dict[NestedKey, Tensor], noise: list[Tensor] | None):
        with tensors_in(loss, tensors), noise_given(noise):
            output = loss(TensorDict(leaves, rows[:]))
        metrics = {k: v for k, v in output.items() if v.numel() == 1}
        keys[:] = metrics
        return total_loss(output), [value.detach().reshape(()) for value in metrics.values()]

    def function(tensors: Mapping[str, Tensor], batch: TensorDictBase, noise: list[Tensor] | None) -> Differentiated:
        trainable = {name: t.detach().requires_grad_() for name, t in tensors.items() if t.requires_grad}
        leaves = {key: batch.get(key) for key in batch.keys(True, True)}
        rows[:] = batch.batch_size[1:]
        in_dims = (0, 0, None if noise is None else 0)
        with in_precision(precision, batch.device):
            total, values = torch.vmap(member, in_dims, randomness="different")({**tensors, **trainable}, leaves, noise)
        with part("backward"):
            gradients = torch.autograd.grad(total.sum(), list(trainable.values()), allow_unused=True)
        found = {name: gradient for name, gradient in zip(trainable, gradients) if gradient is not None}
        return dict(zip(keys, values)), found

    return function


class PopulationBuffer:
    """The minibatches of ``P`` runs over one dataset: one generator for each, one gather for all.

    Member ``k`` draws what ``make_replay_buffer(data, batch_size=, seed=seeds[k])`` would.

    Args:
        data: transitions ``[T]``, or a dataset.
        batch_size: rows ``B`` of each member's batch.
        seeds: one per member.
        device: put the data there once.
        keys: leaves to keep; see :func:`make_replay_buffer`.
        slice_len: rows of a slice of an episode; see :func:`make_replay_buffer`.
        burn_in: rows of it that memory alone sees; see there. Samples are then ``[P, B // slice_len, slice_len]``.
        rows: for each member the numbers ``[R]`` of the rows from which it draws, any of them more than once: those of
            episodes drawn with replacement, for instance. By default all rows. Not with ``slice_len``.
        episodes: with ``slice_len``, for each member the numbers ``[R]`` of the episodes of which it draws slices, any
            of them more than once. By default all episodes.
        own: for each member further leaves ``[T]`` that it alone sees, in the place of the data's where these have
            them; members may share one tensordict. The same leaves for all.
        hindsight: gives samples other goals, as :func:`~torchrl_marl_offline.data.hindsight_buffer` of each seed does;
            over the same data, on the same device. Not with ``own``.

    Raises:
        ValueError: ``rows``, ``episodes`` or ``own`` does not fit the data or the number of members.
    """

    is_of_population = True

    @checked
    def __init__(
        self,
        data: TensorDictBase | OfflineDataset,
        *,
        batch_size: Annotated[int, SIZE],
        seeds: Annotated[Sequence[int], SEED],
        device: torch.device | str | None = None,
        keys: Sequence[NestedKey] | None = None,
        slice_len: Annotated[int | None, SIZE] = None,
        burn_in: Annotated[int | None, SIZE_OR_NONE, ReadWith("slice_len", given=True)] = None,
        rows: Sequence[Tensor] | None = None,
        episodes: Annotated[Sequence[Tensor] | None, ReadWith("slice_len", given=True)] = None,
        own: Sequence[TensorDictBase] | None = None,
        hindsight: HindsightGoals | None = None,
    ) -> None:
        options = {"batch_size": batch_size, "keys": keys, "slice_len": slice_len, "burn_in": burn_in}
        first = make_replay_buffer(data, seed=seeds[0], device=device, **options)
        storage, device = first.storage, first.storage.device
        self.storage, self.batch_size = storage, batch_size
        if rows is not None and slice_len is not None:
            raise ValueError("rows= are drawn one by one; leave out slice_len=, or rows=.")
        limits = {"rows": (rows, len(storage)), "episodes": (episodes, len(getattr(first.sampler, "starts", ())))}
        self._numbers: dict[str, list[Tensor]] = {}
        for name, (numbers, limit) in limits.items():
            if numbers is not None:
                _check_numbers(name, numbers, len(seeds), limit)
                self._numbers[name] = [each.to(device) for each in numbers]
        _check_own(own, len(seeds), len(storage))
        self.hindsight = _checked_hindsight(hindsight, storage, own, None if burn_in is not None else slice_len)
        self._own = None if own is None else _moved(own, device)
        self._samplers: list[Any] = [first.sampler] * len(seeds)
        if rows is not None:
            self._samplers = [RowSampler(each) for each in self._numbers["rows"]]
        elif episodes is not None:
            self._samplers = [first.sampler.of_episodes(each) for each in self._numbers["episodes"]]
        self.generators = [torch.Generator(device=device).manual_seed(seed) for seed in seeds]
        # A run alone draws its noise from the global generator, seeded as the run.
        self.noise_generators = [torch.Generator(device=device).manual_seed(seed) for seed in seeds]

    def __len__(self) -> int:
        return len(self.storage)

    @property
    def member_sampler(self) -> Any:
        """The first member's sampler; all are of one kind."""
        return self._samplers[0]

    def sample(self) -> TensorDictBase:
        """Return ``[P, B]``, or sequences ``[P, S, slice_len]``."""
        drawn = [self._draw(*each) for each in zip(self._samplers, self.generators)]
        numbers = torch.cat([index for index, _ in drawn])
        rows = self.storage.get(numbers)
        for key in drawn[0][1]:
            rows.set(key, torch.cat([info[key] for _, info in drawn]))
        if self.hindsight is not None:
            goals = [self.hindsight.numbers(index, g) for (index, _), g in zip(drawn, self.generators)]
            self.hindsight.relabel(rows, numbers, torch.cat(goals, 1))
        if self._own is not None:
            for key in self._own[0].keys(True, True):
                parts = [leaves.get(key)[index] for leaves, (index, _) in zip(self._own, drawn)]
                rows.set(key, torch.cat(parts))
        return rows.reshape(len(self.generators), -1, *rows.batch_size[1:])

    def _draw(self, sampler: Sampler, generator: torch.Generator) -> tuple[Tensor, dict]:
        self.storage._rng = sampler._rng = generator  # the two places where samplers of TorchRL look
        index, info = sampler.sample(self.storage, self.batch_size)
        return index, {k: v for k, v in info.items() if isinstance(v, Tensor) and k != "index"}

    def state_dict(self) -> dict[str, Any]:
        """Return the generators' states, and what tells the data from other data."""
        states = [[generator.get_state() for generator in each] for each in (self.generators, self.noise_generators)]
        facts = {"size": len(self), "batch_size": self.batch_size, "content": content_of(self)}
        facts["hindsight"] = words_of_hindsight(self)
        facts["slices"] = slices_of(self)
        return {"generators": states[0], "noise_generators": states[1]} | facts | self._of_members()

    def _of_members(self) -> dict[str, Any]:
        """Return checksums of what members have alone, for a checkpoint to be held against."""
        found: dict[str, Any] = {}
        for name, numbers in self._numbers.items():
            rows = [TensorDict({"rows": each}, [len(each)]) for each in numbers]
            found[name] = [spread_checksums(each.__getitem__, len(each)) for each in rows]
        if self._own is not None:
            once = {id(each): spread_checksums(each.__getitem__, len(each)) for each in self._own}
            found["own"] = [once[id(each)] for each in self._own]
        return found

    def check_state_dict(self, state: Mapping[str, Any]) -> None:
        """Refuse what :meth:`load_state_dict` refuses, and change nothing."""
        check_content(self, state)
        members = self._of_members()
        for name, what in (("rows", "rows"), ("episodes", "episodes"), ("own", "leaves of members")):
            if state.get(name) != members.get(name):
                raise ValueError(
                    f"the checkpoint was trained on other {what} than this buffer's {name}=; go on with those of the "
                    "run, or start a new run"
                )
        for name in ("generators", "noise_generators"):
            for generator, saved in zip(getattr(self, name), state[name], strict=True):
                check_generator(generator, saved)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.check_state_dict(state)
        for name in ("generators", "noise_generators"):
            for generator, saved in zip(getattr(self, name), state[name], strict=True):
                restore_generator(generator, saved)

    @checked
    def member(self, index: Annotated[int, COUNT_OR_NONE]) -> ReplayBuffer:
        """Return an ordinary buffer over the same data that goes on with a member's minibatches."""
        generator = torch.Generator(device=self.storage.device)
        generator.set_state(self.generators[index].get_state())
        data = self.storage._storage
        if self._own is not None:
            leaves = self._own[index]
            data = data.copy().update({key: leaves.get(key) for key in leaves.keys(True, True)})
        kind = TensorDictReplayBuffer if self.hindsight is None else RelabelledBuffer
        buffer = kind(
            storage=DatasetStorage(data, device=self.storage.device),  # it holds the generator, too
            sampler=copy.copy(self._samplers[index]),
            writer=ImmutableDatasetWriter(),
            batch_size=self.batch_size,
            generator=generator,
        )
        if self.hindsight is not None:
            buffer.hindsight = copy.copy(self.hindsight)
        return buffer


def _checked_hindsight(
    hindsight: HindsightGoals | None, storage: DatasetStorage, own: Any, slice_len: int | None
) -> HindsightGoals | None:
    """Refuse hindsight of other data than the storage's, or of slices of another length."""
    if hindsight is None:
        return None
    if own is not None:
        raise ValueError("own= and hindsight= both say what members see of a row; leave one of them out.")
    if hindsight.rows != len(storage) or hindsight.slice_len != slice_len:
        raise ValueError(
            f"hindsight is of {hindsight.rows} rows and slice_len={hindsight.slice_len}, the buffer of {len(storage)} "
            f"and slice_len={slice_len}; make it of the same data, and for the same slices (sequences need none)."
        )
    return hindsight


def _check_numbers(name: str, numbers: Sequence[Tensor], members: int, limit: int) -> None:
    if len(numbers) != members:
        raise ValueError(f"{name} has {len(numbers)} tensors for {members} seeds; give one for each member.")
    for number, each in enumerate(numbers):
        is_index = isinstance(each, Tensor) and each.dtype == torch.int64 and each.ndim == 1 and len(each)
        if not is_index or each.min() < 0 or each.max() >= limit:
            raise ValueError(f"{name}[{number}] must be numbers of {name}, [R] int64 between 0 and {limit - 1}.")


def _check_own(own: Sequence[TensorDictBase] | None, members: int, length: int) -> None:
    if own is None:
        return
    if len(own) != members:
        raise ValueError(f"own has {len(own)} tensordicts for {members} seeds; give one for each member.")
    first = _leaf_forms(own[0])
    for number, each in enumerate(own):
        if tuple(each.batch_size) != (length,) or _leaf_forms(each) != first:
            raise ValueError(
                f"own[{number}] must be a tensordict [{length}], as the data, with the leaves of own[0]; it has the "
                f"batch size {list(each.batch_size)}."
            )


def _leaf_forms(leaves: TensorDictBase) -> dict[NestedKey, tuple]:
    return {key: (leaf.shape, leaf.dtype) for key, leaf in leaves.items(True, True)}


def _moved(own: Sequence[TensorDictBase], device: torch.device) -> list[TensorDictBase]:
    """Return the leaves on a device, each tensordict that members share once."""
    there = {id(each): each.to(device) for each in own}
    return [there[id(each)] for each in own]
