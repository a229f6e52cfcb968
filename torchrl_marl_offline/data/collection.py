"""Records datasets: rolls a policy out in a batched environment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from tensordict import TensorDictBase
from tqdm import tqdm

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.layout import (
    ACHIEVED,
    ACTION,
    ACTION_MASK,
    AGENT_MASK,
    DONE,
    EPISODE,
    EPISODE_STEP,
    GOAL,
    OBSERVATION,
    REWARD,
    STATE,
    SUCCESS,
    TERMINATED,
    TRUNCATED,
    TaskSpec,
    next_key,
)
from torchrl_marl_offline.core.ranges import COUNT, SEED
from torchrl_marl_offline.core.usable_mask import usable_mask
from torchrl_marl_offline.data.policy_fit import Carried, fitted
from torchrl_marl_offline.data.transitions.assembly import assemble, open_masks_of_the_dead, open_unused_masks
from torchrl_marl_offline.data.transitions.dataset import OfflineDataset

if TYPE_CHECKING:
    from torchrl.envs import EnvBase

Policy = Callable[[TensorDictBase], TensorDictBase]

_HERE = (OBSERVATION, STATE, ACTION_MASK, AGENT_MASK)
_NEXT = (*_HERE, REWARD, TERMINATED, TRUNCATED, SUCCESS)
KEPT = (*_HERE, GOAL, ACTION, EPISODE, EPISODE_STEP, *map(next_key, (*_NEXT, ACHIEVED)))
"""What a dataset keeps of the steps of an environment, where they have it."""


@checked
def collect(
    env: EnvBase,
    policy: Policy | None = None,
    *,
    episodes: Annotated[int | None, COUNT] = None,
    steps: Annotated[int | None, COUNT] = None,
    seed: Annotated[int | None, SEED] = None,
    exploration: Literal["sample", "mode"] = "sample",
    metadata: dict[str, Any] | None = None,
    progress: bool = False,
) -> OfflineDataset:
    """Record whole episodes.

    Every slot of the batched environment contributes a share that is fixed before the first step, so that short
    episodes are not preferred, as they are where the first ones to finish are taken. Episodes lie slot by slot, in
    order of time.

    Args:
        env: an environment of :func:`~torchrl_marl_offline.make_env`, batch size ``[num_envs]``.
        policy: reads an observation and writes ``("agents", "action")``; by default uniform over the legal actions.
        episodes: record exactly that many, spread evenly over the slots.
        steps: record at least that many transitions: a slot stops with the episode in which it reaches its share.
        seed: of the environment and of torch's generators, which are put back afterwards. Equal seeds give equal data.
        exploration: ``"sample"`` from a stochastic policy or take its ``"mode"``.
        metadata: JSON-ready, e.g. ``{"quality": "medium"}``.
        progress: show a bar on a terminal.

    Raises:
        ValueError: not exactly one of ``episodes`` and ``steps`` is given, or it is not positive; or the policy was
            made for other sizes than the environment's; or an agent lives and its mask allows it no action.
        RuntimeError: an episode outlasts ``env.max_episode_steps``: the environment does not truncate.
    """
    if (episodes is None) == (steps is None):
        raise ValueError(f"Give either episodes or steps; got episodes={episodes} and steps={steps}.")
    from torchrl.envs.utils import ExplorationType, set_exploration_type  # slow to import
    from torchrl.modules import set_recurrent_mode

    kinds = {"sample": ExplorationType.RANDOM, "mode": ExplorationType.DETERMINISTIC}
    if exploration not in kinds:
        raise ValueError(f"exploration must be 'sample' or 'mode', got {exploration!r}.")
    spec = TaskSpec.from_env(env)
    devices = [env.device] if env.device is not None and env.device.type == "cuda" else []
    recording = _Recording(env, _shares(episodes or steps, env.batch_size[0]), by_episode=episodes is not None)
    acting = set_exploration_type(kinds[exploration]), set_recurrent_mode(False)
    with torch.random.fork_rng(devices=devices), torch.no_grad(), acting[0], acting[1]:
        if seed is not None:
            torch.manual_seed(seed)
            env.set_seed(seed)
        _roll_out(env, fitted(policy or random_policy(env), env), Carried(policy), recording, progress)
    facts = {"source": "collect", "task": spec.task, "seed": seed, "exploration": exploration}
    facts["num_envs"] = len(recording)
    facts["policy"] = "uniform" if policy is None else getattr(policy, "__name__", type(policy).__name__)
    return as_dataset(recording.rows(), spec, facts | (metadata or {}))


def as_dataset(
    steps: TensorDictBase, spec: TaskSpec, metadata: dict[str, Any], *, check: bool = True
) -> OfflineDataset:
    """Turn what an environment's steps returned into a dataset.

    Args:
        steps: ``[T]`` in time order, episode after episode; the last row of each is terminated or truncated.
        spec: the task's sizes.
        metadata: of the dataset.
        check: whether to look at every value.
    """
    rows = {key: steps.get(key) for key in KEPT if steps.get(key, None) is not None}
    terminated, truncated = (rows.pop(next_key(key)).squeeze(-1) for key in (TERMINATED, TRUNCATED))
    if STATE not in rows:  # the joint observation
        for key, source in ((STATE, OBSERVATION), (next_key(STATE), next_key(OBSERVATION))):
            rows[key] = rows[source].flatten(1)
    findings: list[str] = []
    if spec.has_action_mask:
        open_unused_masks(rows, terminated, findings)
        open_masks_of_the_dead(rows, findings)
    data = assemble(rows, terminated=terminated, truncated=truncated)
    return OfflineDataset(data, spec, {"findings": findings} | metadata, check=check)


def random_policy(env: EnvBase) -> Policy:
    """Return a policy that draws uniformly from the legal actions, or from the action space."""

    def act(tensordict: TensorDictBase) -> TensorDictBase:
        mask = tensordict.get(ACTION_MASK, None)
        if mask is None:
            return tensordict.set(ACTION, env.full_action_spec[ACTION].rand())
        mask = usable_mask(mask, tensordict.get(AGENT_MASK, None))
        drawn = torch.multinomial(mask.flatten(0, -2).float(), 1)  # [B * n, A] -> [B * n, 1]
        return tensordict.set(ACTION, drawn.reshape(mask.shape[:-1]))

    return act


def _shares(total: int, slots: int) -> torch.Tensor:
    return torch.tensor([total // slots + (slot < total % slots) for slot in range(slots)])


@dataclass
class _Recording:
    """The steps so far, and which slots still have to contribute."""

    env: EnvBase
    shares: torch.Tensor
    by_episode: bool
    steps: list[TensorDictBase] = field(default_factory=list)
    active: list[torch.Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.contributed = torch.zeros_like(self.shares)
        self.age = torch.zeros_like(self.shares)
        self.open = self.shares > 0
        self.limit = getattr(self.env, "max_episode_steps", None)

    def __len__(self) -> int:
        return len(self.shares)

    def add(self, step: TensorDictBase) -> int:
        """Keep one step of all slots; return the progress, in episodes or transitions."""
        before = int(self.contributed.sum())
        done = step.get(next_key(DONE)).reshape(-1).cpu()
        self.steps.append(step.select(*KEPT, strict=False).to("cpu").clone())
        self.active.append(self.open)
        self.age += 1
        if self.limit is not None and int(self.age.max()) >= self.limit and not done[self.age >= self.limit].all():
            raise RuntimeError(
                f"An episode outlasts max_episode_steps={self.limit} of {self.env}; add a StepCounter with max_steps."
            )
        self.contributed += self.open & (done if self.by_episode else torch.ones_like(done))
        self.age[done] = 0
        self.open = self.open & ~(done & (self.contributed >= self.shares))
        return int(self.contributed.sum()) - before

    def rows(self) -> TensorDictBase:
        """Return the kept rows ``[T]``, slot by slot."""
        active = torch.stack(self.active).T.reshape(-1)  # [time, slots] -> [slots * time]
        return torch.stack(self.steps).transpose(0, 1).reshape(-1)[active]


def _roll_out(env: EnvBase, policy: Policy, carried: Carried, recording: _Recording, progress: bool) -> None:
    with tqdm(
        total=int(recording.shares.sum()),
        disable=None if progress else True,  # None: no bar where the output is not a terminal
        unit="episode" if recording.by_episode else "step",
        desc="collect",
    ) as bar:
        tensordict = carried.begin(env.reset())
        while recording.open.any():
            step, tensordict = env.step_and_maybe_reset(policy(tensordict))
            tensordict = carried.onward(step, tensordict)
            bar.update(recording.add(step))


__all__ = ["collect", "random_policy"]
