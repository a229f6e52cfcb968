"""Datasets of graded quality by the field's protocol: train a behaviour policy online, record it at several levels."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.files import write_json_atomic
from torchrl_marl_offline.core.layout import STATE, TaskSpec
from torchrl_marl_offline.core.paths import user_path
from torchrl_marl_offline.core.ranges import COUNT, POSITIVE, RATE, REAL, RUN_SEED, SIZE, SIZE_OR_NONE
from torchrl_marl_offline.core.regular_files import read_json
from torchrl_marl_offline.core.relevance import ReadWith
from torchrl_marl_offline.data.collection import collect
from torchrl_marl_offline.data.published.cards import list_datasets
from torchrl_marl_offline.data.quality.inspected_writing import save_inspected
from torchrl_marl_offline.data.transitions.buffers import check_slices
from torchrl_marl_offline.data.transitions.dataset import OfflineDataset
from torchrl_marl_offline.data.transitions.dataset_errors import DatasetError
from torchrl_marl_offline.data.transitions.storage import is_dataset_folder
from torchrl_marl_offline.data.transitions.subsets import mixture
from torchrl_marl_offline.envs.base import facts_of
from torchrl_marl_offline.envs.factory import make_env
from torchrl_marl_offline.envs.grid_navigation import SIDES
from torchrl_marl_offline.envs.scripted import role_team
from torchrl_marl_offline.envs.stitch import StitchController, parse_coverage
from torchrl_marl_offline.evaluation.in_environments import evaluate
from torchrl_marl_offline.modules.history import Memory, MemorySize
from torchrl_marl_offline.recording.laser_teams import check_laser_quality, laser_team
from torchrl_marl_offline.recording.learners import OnlineLearner, make_online_learner, with_team_reward
from torchrl_marl_offline.recording.mixed_skill import plain_options
from torchrl_marl_offline.training.online import OnlineReplay
from torchrl_marl_offline.training.run.logging import read_csv
from torchrl_marl_offline.training.run.run_lock import COMMAND_FILE, RunLock
from torchrl_marl_offline.training.run.saved_policies import load_policy, save_policy
from torchrl_marl_offline.training.step.learner import Learner
from torchrl_marl_offline.training.trainer import Trainer, TrainingInterrupted

QUALITIES = ("random", "medium-replay", "medium", "expert")
UNTRAINED = "untrained"
LEARNER_OPTIONS: dict[str, dict[str, Any]] = {"mpe/simple_spread": {"gamma": 0.85}}
"""Options of the learner that were found to suit a task better than the defaults."""

_STRIDE = 1_000_003  # between the seeds of two rounds' environments, so that those of neighbouring seeds differ


@dataclass(frozen=True)
@checked
class RecordSettings:
    """What a recording depends on; the same settings give equal files.

    Attributes:
        task: ``"family/task"``.
        seed: of networks, environments and exploration.
        updates: gradient steps of the behaviour's training, at most.
        num_envs: environments that run at once; a round is one episode of each.
        transitions_per_update: environment steps for each gradient step.
        batch_size: rows of an update.
        tau: rate of the target networks.
        eval_every: gradient steps between two snapshots of the policy.
        eval_episodes: episodes that measure a snapshot.
        levels: mean returns that ``"medium"`` and ``"expert"`` should have, or empty: then the expert is the best
            snapshot and medium the first that gains a third of the way from random play to it.
        compile: run the loss through :func:`torch.compile`; with memory, ``record`` leaves it off by default, since the
            whole loop over a slice would be compiled.
        task_options: of ``make_env``.
        learner: options of :func:`~torchrl_marl_offline.recording.learners.make_matd3` or
            :func:`~torchrl_marl_offline.recording.learners.make_qmix`.
        normalize_state: let QMIX's mixer see the state by its mean and deviation in random play; where components of it
            are much larger than 1, as in ``smax/*``, it learns sooner.
        reward_scale: what rewards are multiplied by for the behaviour's training; recorded are those of the task.
            Values begin as noise of about 1, in which rewards that are much smaller drown.
        memory: what the recorded team remembers of an episode: gru, lstm, or window:K, the last K observations; by
            default nothing.
        memory_size: width of a recurrent memory.
        slice_len: rows of the slices of episodes that training with memory takes, their burn-in included.
        burn_in: rows of a slice that memory alone sees, and that count in no loss.
    """

    task: str
    seed: Annotated[int, RUN_SEED] = 0
    updates: Annotated[int, COUNT] = 40_000
    num_envs: Annotated[int, SIZE] = 64
    transitions_per_update: Annotated[int, SIZE] = 32
    batch_size: Annotated[int, SIZE] = 256
    tau: Annotated[float, RATE] = 0.02
    eval_every: Annotated[int, COUNT] = 500
    eval_episodes: Annotated[int, SIZE] = 320
    levels: Annotated[Mapping[str, float], REAL] = field(default_factory=dict)
    compile: bool = True
    task_options: Mapping[str, Any] = field(default_factory=dict)
    learner: Mapping[str, Any] = field(default_factory=dict)
    normalize_state: bool = False
    reward_scale: Annotated[float, POSITIVE] = 1.0
    memory: Memory = None
    memory_size: MemorySize = 64
    slice_len: Annotated[int, SIZE, ReadWith("memory", given=True)] = 32
    burn_in: Annotated[int, SIZE_OR_NONE, ReadWith("memory", given=True)] = 8

    def __post_init__(self) -> None:
        if taken := sorted({"memory", "memory_size"} & set(self.learner)):
            raise ValueError(f"{taken[0]} is a setting of the recording, not of its learner; give it beside updates.")
        if "state_norm" in self.learner:
            raise ValueError("state_norm is found by the recording; give it normalize_state=True instead.")
        if self.memory is not None:
            check_slices(self.batch_size, self.slice_len, self.burn_in)

    @property
    def remembered(self) -> dict[str, Any]:
        """What the learner is told of memory."""
        if self.memory is None:
            return {}
        return {"memory": self.memory} | ({} if self.memory.startswith("window") else {"memory_size": self.memory_size})

    @property
    def sampling(self) -> dict[str, Any]:
        """What the replay is told of memory."""
        return {} if self.memory is None else {"slice_len": self.slice_len, "burn_in": self.burn_in}


@checked
def record(
    task: str,
    folder: str | Path,
    *,
    qualities: Sequence[str] = QUALITIES,
    transitions: Annotated[int, COUNT] = 100_000,
    levels: Annotated[Mapping[str, float] | None, REAL] = None,
    progress: bool = True,
    **settings: Any,
) -> dict[str, OfflineDataset]:
    """Train a behaviour policy on ``task`` and record datasets of several qualities.

    ====================  =========================================================================================
    quality               policy
    ====================  =========================================================================================
    ``random``            uniform over the (legal) actions
    ``untrained``         the learner's at its initial parameters, with its exploration: what some published sets, such
                          as OMAR's, call random
    ``medium``            the training's snapshot at a medium level, with its exploration
    ``medium-replay``     no policy: everything that the training gathered up to that snapshot
    ``expert``            the snapshot at the expert level, with its exploration
    ``A-B``               equal numbers of episodes of the qualities ``A`` and ``B``, e.g. ``medium-expert``
    a coverage            of ``games/stitch``: :class:`~torchrl_marl_offline.envs.StitchController`, which plays the
                          joint actions of ``full``, ``best_left_out``, ``two_teams``, ``bridged_2``, ``star`` or
                          ``share_0.3`` in turn
    a script              of ``lle/*``: ``plan``, ``noisy_0.1``, ``dropped`` or ``mixed``, by the solver's shortest plan
                          (:class:`~torchrl_marl_offline.envs.LaserController`); ``outnumbered`` or ``parted``, of
                          which most teams are short-sighted (:class:`~torchrl_marl_offline.envs.LaserWalker`)
    a team of roles       of ``games/grid_navigation``: :func:`~torchrl_marl_offline.envs.scripted.role_team`:
                          ``strong_0``, ``strong_1``, ... each with one agent that plays its part well. The score of the
                          team of all of these agents, ``strong_all``, stands in the metadata as ``"held_out"``
    ====================  =========================================================================================

    MATD3 trains continuous tasks and QMIX discrete ones (:mod:`~torchrl_marl_offline.recording.learners`); with
    ``memory`` they act and learn by histories, and the data is of a team that remembers. The folder holds a dataset per
    quality, ``behaviour/`` with the training's curves (``eval.csv``), checkpoints, experience and snapshots,
    ``policies/`` with the two that were recorded, and ``recording.json``. Called again it goes on where it was
    interrupted or killed; what is there already is loaded.

    Args:
        task: ``"family/task"``, as for ``make_env``.
        folder: of this recording; one per task and seed.
        qualities: which datasets to record.
        transitions: of every dataset but ``medium-replay`` (whole episodes: at least that many).
        levels: see :class:`RecordSettings`; by default those of the published sets of this task, where there are any.
        progress: show bars and a line per snapshot.
        settings: the other fields of :class:`RecordSettings`.

    Returns:
        the datasets by quality.

    Raises:
        ValueError: an unknown quality or setting, or none; or too few transitions for all joint actions of a coverage.
        DatasetError: the folder holds a recording with other settings.
        TrainingInterrupted: the training was asked to stop; it has saved itself.
        RunInUseError: another process is recording there.
    """
    if isinstance(qualities, str) or not qualities or not all(isinstance(each, str) for each in qualities):
        raise ValueError(f"qualities must be a list of names, as ['medium', 'expert'], got {qualities!r:.60}.")
    plain_options(settings.get("task_options", {}))
    base = [part for quality in qualities for part in parts_of(quality)]
    for quality in qualities:
        check_quality(task, quality, settings.get("task_options"))
    levels = published_levels(task, settings.get("task_options")) if levels is None else dict(levels)
    known = [field.name for field in fields(RecordSettings) if field.name not in ("task", "levels")]
    if unknown := [name for name in settings if name not in known]:
        raise ValueError(f"record has no setting {unknown[0]!r}; it has {', '.join(known)}.")
    settings.setdefault("compile", settings.get("memory") is None)
    learner = settings.get("learner", {})
    if not isinstance(learner, Mapping):
        raise ValueError(f"learner must be a mapping, as {{'gamma': 0.9}}, got {learner!r:.60}.")
    settings["learner"] = LEARNER_OPTIONS.get(task, {}) | dict(learner)
    recording = _Recording(RecordSettings(task, levels=levels, **settings), user_path(folder), transitions, progress)
    learned = [quality for quality in base if quality in QUALITIES and quality != "random"]
    if not all(is_dataset_folder(user_path(folder) / quality) for quality in learned):
        recording.train()
    found = {quality: recording.dataset(quality) for quality in dict.fromkeys(base)}
    for quality in qualities:
        if quality not in found:
            found[quality] = recording.mixture(quality, [found[part] for part in parts_of(quality)])
    return {quality: found[quality] for quality in qualities}


def parts_of(quality: str) -> list[str]:
    """Return what a quality is recorded from: itself, or of a mixture ``"A-B"`` both parts."""
    return [quality] if quality in QUALITIES else quality.split("-")


def check_quality(task: str, quality: str, task_options: Mapping[str, Any] | None = None) -> None:
    """Refuse a quality, or a mixture of them, that :func:`record` does not know in a task with these options.

    Raises:
        ValueError: so; or a mixture has a quality twice.
    """
    parts = parts_of(quality)
    for part in parts:
        _check_part(task, part, task_options)
    if twice := [part for part in parts if parts.count(part) > 1]:
        raise ValueError(
            f"quality {quality!r} would hold every episode of {twice[0]} twice; name it alone, or mix it with another."
        )


def _check_part(task: str, quality: str, task_options: Mapping[str, Any] | None) -> None:
    if quality in (*QUALITIES, UNTRAINED):
        return
    if task == "games/stitch":
        parse_coverage(quality)
    elif task.startswith("lle/"):
        check_laser_quality(quality)
    elif task == "games/grid_navigation" and quality.startswith(("strong_", "weak_")):
        role_team(quality, agents=(task_options or {}).get("agents", min(SIDES)))
    else:
        known = ", ".join((*QUALITIES, UNTRAINED))
        raise ValueError(f"quality must be one of {known} or two as 'A-B', got {quality!r}.")


def check_all_are_held(recorded: OfflineDataset, policy: StitchController) -> None:
    """Refuse a recording that does not hold every joint action of its coverage in every context.

    Raises:
        ValueError: so.
    """
    visits, wanted = recorded.data.get(STATE).sum(0), policy.counts.cpu()
    if (visits < wanted).any():
        raise ValueError(
            f"{len(recorded)} transitions do not hold all {int(wanted.sum())} joint actions of {policy.coverage!r} in "
            f"the {len(wanted)} contexts that are drawn by chance; record more."
        )


def published_levels(task: str, task_options: Mapping[str, Any] | None = None) -> dict[str, float]:
    """Return the mean returns of the published ``"medium"`` and ``"expert"`` sets of a task, or an empty mapping.

    Sets that another environment recorded count where the task has published reference returns with these options, as
    ``mpe/simple_tag`` has against the published prey alone.
    """
    cards = [card for card in list_datasets().values() if card.quality.lower() in ("medium", "expert")]
    own = [card for card in cards if card.env == task]
    if not own and any(card.task == task for card in cards):
        env = make_env(task, num_envs=1, **(task_options or {}))
        own = [] if env.reference_returns is None else [card for card in cards if card.task == task]
    levels = {}
    for card in own:
        levels.setdefault(card.quality.lower(), card.returns[0])
    return levels if len(levels) == 2 else {}


_DEFAULTS = {each.name: each.default for each in fields(RecordSettings) if each.default is not MISSING}


class _Recording:
    """One folder: the training, its snapshots, and the datasets that come from them."""

    def __init__(self, settings: RecordSettings, folder: Path, transitions: int, progress: bool) -> None:
        self.settings, self.folder, self.transitions, self.progress = settings, folder, transitions, progress
        self.behaviour, self.policies = folder / "behaviour", folder / "behaviour" / "snapshots"
        torch.manual_seed(settings.seed)
        self.env = make_env(settings.task, num_envs=settings.num_envs, **settings.task_options)
        self.warm_up = math.ceil(5000 / (settings.num_envs * self.env.max_episode_steps))  # rounds of random play
        self.learner: OnlineLearner = make_online_learner(
            self.env, **settings.learner, **settings.remembered, **self._normalization()
        )
        self.replay: OnlineReplay | None = None
        self._claim()  # after everything that could be refused

    def _normalization(self) -> dict[str, Any]:
        """What the learner is told of the scale of the state, which is that of the first round."""
        if not self.settings.normalize_state:
            return {}
        if not TaskSpec.from_env(self.env).discrete:
            raise ValueError(
                f"normalize_state is for QMIX's mixer, but {self.settings.task} has continuous actions, which MATD3 "
                "learns; leave it out."
            )
        played = collect(self.env, None, episodes=self.settings.num_envs, seed=self._round_seed(0))
        return {"state_norm": played.input_statistics().state}

    # Training

    def train(self) -> None:
        """Train to the end, from the newest checkpoint if there is one."""
        settings = self.settings
        torch.manual_seed(settings.seed)
        round_size = settings.num_envs * self.env.max_episode_steps
        self.replay = OnlineReplay(
            self._round,
            capacity=min(1_000_000, max(round_size, settings.updates * settings.transitions_per_update + round_size)),
            batch_size=settings.batch_size,
            update_to_data=1 / settings.transitions_per_update,
            journal=self.behaviour / "experience",
            prepare=partial(with_team_reward, scale=settings.reward_scale),
            keys=self.learner.keys,
            device=self.env.device,
            seed=settings.seed,
            **settings.sampling,
        )
        trainer = Trainer(
            Learner(
                self.learner.loss,
                optimizer=self.learner.optimizer,
                tau=settings.tau,
                compile={} if settings.compile else "off",
            ),
            self.replay,
            steps=settings.updates,
            evaluators={"behaviour": self._snapshot},
            eval_every=settings.eval_every,
            checkpoint_every=4 * settings.eval_every,
            keep_checkpoints=2,
            output=self.behaviour,
            progress=self.progress,
        )
        self.trainer = trainer
        if trainer.checkpoints.latest() is not None:
            trainer.resume()
            if self.learner.delay is not None:
                self.learner.delay.count = trainer.step
        try:
            trainer.train()
        except TrainingInterrupted as stopped:
            raise TrainingInterrupted(
                stopped.step,
                stopped.checkpoint,
                f"Interrupted at update {stopped.step} of {settings.updates}, saved; call record() again to go on.",
            ) from None

    def _round(self, number: int) -> OfflineDataset:
        """Gather one episode of every environment."""
        self.learner.set_exploration(number / max(1, 10 * self.warm_up))
        policy = None if number < self.warm_up else self.learner.explorer
        return collect(self.env, policy, episodes=self.settings.num_envs, seed=self._round_seed(number))

    def _round_seed(self, number: int) -> int:
        # after those of the datasets, but for "untrained", whose episodes begin as those of round 0 do
        return _STRIDE * (number + len(QUALITIES)) + self.settings.seed

    def _snapshot(self) -> dict[str, float]:
        """Measure the policy as it would be recorded, and keep it."""
        self.learner.set_exploration(1.0)
        seed = self.settings.seed
        result = evaluate(
            self.learner.explorer, self.env, episodes=self.settings.eval_episodes, seed=seed, mode="sample"
        )
        save_policy(self._snapshot_file(self.trainer.step), self.learner.actor)
        if result.mean >= self.settings.levels.get("expert", math.inf):
            self.trainer.finish()
        return result.summary() | {"transitions": float(self.replay.transitions)}

    def _history(self) -> list[dict[str, Any]]:
        return [row for row in read_csv(self.behaviour / "eval.csv") if row["evaluator"] == "behaviour"]

    # Datasets

    def dataset(self, quality: str) -> OfflineDataset:
        """Load the dataset of a quality, recorded first if it is not there."""
        special = {"random": self._random, UNTRAINED: self._untrained, "medium-replay": self._medium_replay}
        make = special.get(quality, self._level if quality in QUALITIES else self._scripted)
        return self._kept(quality, lambda: make(quality))

    def mixture(self, name: str, parts: list[OfflineDataset]) -> OfflineDataset:
        """Load a mixture of equal numbers of episodes, made first if it is not there."""

        def make() -> OfflineDataset:
            mixed = mixture(parts, [1.0] * len(parts), seed=self.settings.seed)
            mixed.metadata |= {"quality": name} | self._task_facts()
            return mixed

        return self._kept(name, make)

    def _kept(self, name: str, make: Callable[[], OfflineDataset]) -> OfflineDataset:
        path = self.folder / name
        if not is_dataset_folder(path):
            save_inspected(make(), path)
        return OfflineDataset.load(path)

    def _random(self, quality: str) -> OfflineDataset:
        facts = self._facts(quality) | {"behaviour": "uniform over the legal actions"}
        return self._collect(None, facts)

    def _untrained(self, quality: str) -> OfflineDataset:
        torch.manual_seed(self.settings.seed)
        learner = make_online_learner(self.env, **self.settings.learner, **self.settings.remembered)
        learner.set_exploration(1.0)
        words = f"{learner.name} at its initial parameters, with its exploration"
        return self._collect(learner.explorer, self._facts(quality) | {"behaviour": words, "behaviour_updates": 0})

    def _level(self, quality: str) -> OfflineDataset:
        row = choose_level(self._history(), quality, self.settings.levels, self._random_return())
        facts = self._facts(quality) | self._policy_facts(row)
        saved = load_policy(self._snapshot_file(row["step"]), device=self.env.device)
        self.learner.actor.load_state_dict(saved.policy.state_dict())
        self.learner.set_exploration(1.0)
        save_policy(self.folder / "policies" / f"{quality}.pt", saved.policy, facts)
        return self._collect(self.learner.explorer, facts)

    def _medium_replay(self, quality: str) -> OfflineDataset:
        row = choose_level(self._history(), "medium", self.settings.levels, self._random_return())
        gathered = self.replay.experience(int(row["transitions"]))
        facts = self._facts(quality) | self._policy_facts(row) | {"source": "record", "task": self.settings.task}
        return OfflineDataset(gathered.data, gathered.spec, facts, check=False)

    def _scripted(self, quality: str) -> OfflineDataset:
        if self.settings.task == "games/stitch":
            return self._coverage(quality)
        if self.settings.task == "games/grid_navigation":
            return self._roles(quality)
        words, policy = laser_team(self.env, quality, self.settings.seed)
        return self._collect(policy, self._facts(quality) | {"behaviour": words})

    def _coverage(self, quality: str) -> OfflineDataset:
        policy = StitchController(self.env, quality, seed=self.settings.seed)
        words = f"all joint actions of the coverage {quality} in turn"
        recorded = self._collect(policy, self._facts(quality) | {"behaviour": words})
        check_all_are_held(recorded, policy)
        return recorded

    def _roles(self, quality: str) -> OfflineDataset:
        seed, agents = self.settings.seed, self.env.task_spec.n_agents
        policy, best = (role_team(name, agents=agents, seed=seed) for name in (quality, "strong_all"))
        found = evaluate(best, self.env, episodes=self.settings.eval_episodes, seed=seed)
        held_out = {"team": "strong_all", "episodes": self.settings.eval_episodes, "return": found.mean}
        held_out |= {"success": found.success_rate, "length": found.lengths.double().mean().item()}
        words = f"the scripted team {quality}: others than the strong take nine of ten actions at random"
        return self._collect(policy, self._facts(quality) | {"behaviour": words, "held_out": held_out})

    def _collect(self, policy: Any, facts: dict[str, Any]) -> OfflineDataset:
        places = (*QUALITIES, UNTRAINED)
        place = places.index(facts["quality"]) if facts["quality"] in places else 0
        seed = _STRIDE * place + self.settings.seed
        env = make_env(self.settings.task, num_envs=self.settings.num_envs, **self.settings.task_options)
        return collect(env, policy, steps=self.transitions, seed=seed, metadata=facts, progress=self.progress)

    def _facts(self, quality: str) -> dict[str, Any]:
        method = self.learner.name if quality in (*QUALITIES, UNTRAINED) else "script"
        method = "uniform actions" if quality == "random" else method
        facts = {"quality": quality, "recorded_with": {"seed": self.settings.seed, "method": method}}
        return facts | self._task_facts()

    def _task_facts(self) -> dict[str, Any]:
        options = dict(self.settings.task_options)
        return ({"task_options": options} if options else {}) | facts_of(self.env)

    def _policy_facts(self, row: Mapping[str, Any]) -> dict[str, Any]:
        words = f"{self.learner.name} after {row['step']} updates, with its exploration"
        return {"behaviour": words, "behaviour_updates": row["step"], "behaviour_return": row["return"]}

    def _random_return(self) -> float:
        return self.dataset("random").episode_returns().mean().item()

    def _snapshot_file(self, step: int) -> Path:
        return self.policies / f"step-{step:08d}.pt"

    def _claim(self) -> None:
        """Write the settings, or compare them with those of the recording that is there."""
        self._lock = RunLock(self.folder, COMMAND_FILE)
        self._lock.acquire()
        path = self.folder / "recording.json"
        told = json.loads(json.dumps({**asdict(self.settings), "transitions": self.transitions}))
        if not path.exists():
            self.policies.mkdir(parents=True, exist_ok=True)
            write_json_atomic(path, told)
        elif (there := _DEFAULTS | read_json(path)) != told:  # earlier versions had fewer settings
            differing = sorted(key for key in told | there if told.get(key) != there.get(key))
            raise DatasetError(
                f"{self.folder} holds a recording with another {', '.join(differing)} "
                f"({', '.join(str(there.get(key)) for key in differing)}); choose another folder or the same settings."
            )


@checked
def choose_level(
    history: Sequence[Mapping[str, Any]],
    quality: str,
    levels: Annotated[Mapping[str, float], REAL],
    random_return: Annotated[float, REAL],
) -> Mapping[str, Any]:
    """Return the snapshot of a quality.

    With a level, the first snapshot that reaches it or the one before, whichever is nearer; if none does, the best.
    Without, the best snapshot is the expert, and medium's level lies a third of the way from random play to it.

    Args:
        history: snapshots in order of time, each with its ``"return"``.
        quality: ``"medium"`` or ``"expert"``.
        levels: mean returns by quality.
        random_return: of uniformly random play.
    """
    best = max(history, key=lambda row: row["return"])
    level = levels.get(quality)
    if level is None:
        if quality == "expert":
            return best
        level = random_return + (best["return"] - random_return) / 3
    for before, row in zip([None, *history], history):
        if row["return"] >= level:
            nearer = before is not None and level - before["return"] < row["return"] - level
            return before if nearer else row
    return best
