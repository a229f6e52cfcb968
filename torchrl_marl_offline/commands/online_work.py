"""What ``marl-offline train --online`` does: offline steps, or another start, then experience of its own."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchrl_marl_offline.commands.script_settings import SettingsError
from torchrl_marl_offline.commands.training_plan import INPUTS_FILE
from torchrl_marl_offline.core.layout import TaskSpec
from torchrl_marl_offline.core.regular_files import lies_at
from torchrl_marl_offline.data import load_dataset
from torchrl_marl_offline.envs import make_env
from torchrl_marl_offline.evaluation import evaluate, plot_learning_curves
from torchrl_marl_offline.modules.history import encoder_of
from torchrl_marl_offline.recording import record_mixed_skill
from torchrl_marl_offline.training import (
    CheckpointManager,
    CollectorSource,
    ComposedPolicy,
    Learner,
    OnlineReplay,
    RunLogger,
    Trainer,
    import_policy,
    load_policy,
    read_csv,
    save_policy,
)
from torchrl_marl_offline.training.run.saved_policies import POLICY_FILE, policy_file

if TYPE_CHECKING:
    from tensordict.nn import TensorDictModuleBase

    from torchrl_marl_offline.commands.train import TrainSettings
    from torchrl_marl_offline.commands.training_plan import TrainingPlan
    from torchrl_marl_offline.data import OfflineDataset
    from torchrl_marl_offline.objectives import OfflineMARLLoss

START = "start.pt"
"""The policy that a run began from, in the run's folder: it goes on without the file that --from named."""
KEPT = "kept.pt"
"""The policy at the beginning of the stage online, in that stage's folder, where joint actions are composed with it."""
EXPLORES = {
    "mode": "none, the policy's mode acts",
    "sample": "actions are drawn from the policy's distribution",
    "composed": "the best joint action by the critic of what this policy draws, and the one that the stage began with",
}


def checkpoints_of(folder: Path) -> CheckpointManager | None:
    """Return the checkpoints of a run's folder, those of its last stage, or ``None`` where it has none."""
    for place in (folder / "online", folder):
        if (place / "checkpoints").is_dir() and CheckpointManager(place / "checkpoints").latest() is not None:
            return CheckpointManager(place / "checkpoints")
    return None


def starting_policy(source: Path, spec: TaskSpec, device: str) -> TensorDictModuleBase:
    """Return the policy of a run's folder, of a file of ours, or of the state of a TorchRL policy.

    Raises:
        SettingsError: it was made for another task.
        ValueError: there is none in the file.
    """
    file = policy_file(source)
    try:
        saved = load_policy(file, device=device)
    except ValueError:
        return import_policy(file, spec).to(device)
    _check_task(saved.spec, spec, file)
    return saved.policy


def _check_task(of_policy: TaskSpec, spec: TaskSpec, file: Path) -> None:
    if not of_policy.fits(spec):
        raise SettingsError(f"--from {file} was made for {of_policy}, but the task has {spec}; name another policy.")


def _check_memory(actor: TensorDictModuleBase, plan: TrainingPlan) -> None:
    """Refuse a policy with memory for a run whose batches are single transitions.

    Raises:
        SettingsError: no memory was asked for.
    """
    encoder = encoder_of(actor)
    if encoder is not None and not plan.sampling(plan.algorithm):
        raise SettingsError(
            f"--from {plan.run.from_} has a memory, {encoder.kind}; give --memory {encoder.kind}, so that critics have "
            "one and batches are slices of episodes."
        )


def whole_loss(plan: TrainingPlan) -> CheckpointManager | None:
    """Return the checkpoints of a run of the same algorithm, all of whose networks a run goes on with."""
    start = plan.run.from_
    if start is None or not start.is_dir() or plan.started_with != plan.algorithm:
        return None
    return checkpoints_of(start)


def train_online(plan: TrainingPlan, folder: Path) -> None:
    """Train offline, unless the run begins elsewhere; then online; draw the curves of both.

    Args:
        plan: what is to be trained; ``plan.run.online`` names the task.
        folder: of the results.
    """
    settings = plan.run
    if plan.of_method(plan.algorithm).get("time_limits") == "terminal":
        raise SettingsError(
            "--time-limits terminal would take the end of every round of --online for the end of its episodes; leave "
            "it out, or train offline alone."
        )
    spec = task = make_env(settings.online).task_spec
    begins = settings.from_ is not None and checkpoints_of(folder) is None
    actor, earlier = None, whole_loss(plan) if begins else None
    if lies_at(folder / START):
        actor = load_policy(folder / START, device=settings.device).policy
    elif begins and earlier is None:
        actor = starting_policy(settings.from_, spec, settings.device)
    begun = folder if earlier is None else earlier.directory.parent
    if actor is not None:
        _check_memory(actor, plan)
        spec = spec.with_bounds_of(TaskSpec(**actor.build["spec"]))
    elif settings.from_ is not None:
        spec = _bounded(spec, begun if earlier is not None else folder / "online")
    inputs = plan.inputs(None, _run_of(begun))
    loss = plan.loss(plan.algorithm, spec, actor=actor, inputs=inputs)
    if settings.exploration == "composed":
        ComposedPolicy(loss.actor_network, loss)  # refuses what it cannot compose before anything is recorded
    if earlier is not None and actor is None:
        _load(earlier, loss, settings, task)
    data = _data(plan, task, folder) if settings.from_ is None or settings.offline_fraction > 0 else None
    if settings.from_ is None and data is not None:
        told = spec.with_bounds_of(data.spec), plan.inputs(data, folder)
        if told != (spec, inputs):
            spec, inputs = told
            loss = plan.loss(plan.algorithm, spec, inputs=inputs)
    plan.write(folder)
    if inputs is not None:
        inputs.save(folder / INPUTS_FILE)
    if actor is not None and not lies_at(folder / START):
        save_policy(folder / START, actor)
    stages = Stages(plan, loss, folder)
    if settings.from_ is None:
        stages.offline(data)
    stages.online(data)
    stages.report(data)


def _run_of(folder: Path) -> Path:
    """Return the folder of a run, given it or that of its last stage."""
    return folder.parent if folder.name == "online" and lies_at(folder.parent / INPUTS_FILE) else folder


def _bounded(task: TaskSpec, folder: Path) -> TaskSpec:
    """Return a task with the bounds of a run's policy, where its folder has one.

    Raises:
        SettingsError: it was made for another task.
    """
    if not lies_at(folder / POLICY_FILE):
        return task
    of_policy = load_policy(folder / POLICY_FILE).spec
    _check_task(of_policy, task, folder / POLICY_FILE)
    return task.with_bounds_of(of_policy)


def _load(checkpoints: CheckpointManager, loss: OfflineMARLLoss, settings: TrainSettings, spec: TaskSpec) -> None:
    """Fill a loss from a run's newest checkpoint.

    Raises:
        SettingsError: the run has networks of other sizes.
    """
    policy = checkpoints.directory.parent / POLICY_FILE
    if lies_at(policy):
        _check_task(load_policy(policy).spec, spec, policy)
    try:
        step = checkpoints.load(loss=loss)
    except RuntimeError as error:
        raise SettingsError(
            f"--from {settings.from_}: its networks do not fit --online {settings.online} and the settings given here; "
            "name the task it was trained in, and leave the settings of networks out, or take its policy.pt alone."
        ) from error
    print(f"begins from {settings.from_} after {step} updates: policies, critics and targets")


def _data(plan: TrainingPlan, spec: TaskSpec, folder: Path) -> OfflineDataset:
    settings = plan.run
    if settings.dataset is not None:
        data = load_dataset(settings.dataset, bounds="data" if settings.bounds == "data" else None)
    else:
        task = settings.task or settings.online
        options = {"episodes": settings.episodes, "seed": settings.seed, "progress": True}
        data = record_mixed_skill(task, folder.parent / "data", **options)
    data = plan.within(data)
    if not data.task_spec.fits(spec):
        raise SettingsError(
            f"The dataset is of {data.spec}, but --online {settings.online} has {spec}; name the recording's task."
        )
    print(data.summary())
    return data


class Stages:
    """The two stages of one loss."""

    def __init__(self, plan: TrainingPlan, loss: OfflineMARLLoss, folder: Path) -> None:
        self.plan, self.loss, self.folder, self.settings = plan, loss, folder, plan.run
        settings = plan.run
        env = make_env(settings.online, num_envs=settings.eval_episodes, device=settings.device)
        play = partial(evaluate, loss.actor_network, env, episodes=settings.eval_episodes, seed=1000 + settings.seed)
        self.evaluators = {"mode": partial(play, mode="mode"), "sampled": partial(play, mode="sample")}

    def offline(self, data: OfflineDataset) -> None:
        """Make the updates on recorded data."""
        settings = self.settings
        options = {"device": settings.device, "seed": settings.seed, "keys": self.loss.in_keys} | self._sampling()
        self._train("offline", data.replay_buffer(batch_size=settings.batch_size, **options), settings.steps)

    def online(self, data: OfflineDataset | None) -> None:
        """Make the updates on experience of the loss's own policy."""
        settings = self.settings
        source = CollectorSource(
            make_env(settings.online, num_envs=settings.num_envs, device=settings.device),
            self._exploring(),
            steps_per_round=settings.steps_per_round,
            exploration="mode" if settings.exploration == "mode" else "sample",
            seed=settings.seed,
        )
        replay = OnlineReplay(
            source,
            capacity=settings.capacity,
            batch_size=settings.batch_size,
            update_to_data=settings.updates_per_round / (settings.steps_per_round * settings.num_envs),
            journal=self.folder / "online" / "experience",
            **self._share(data),
            keys=self.loss.in_keys,
            keep_all=False,
            device=settings.device,
            seed=settings.seed,
            **self._sampling(),
        )
        print(f"\nexploration: {EXPLORES[settings.exploration]}")
        began = time.perf_counter()
        trainer, before = self._train("online", replay, settings.online_steps)
        seconds = time.perf_counter() - began
        print(
            f"online, evaluations included: {(replay.transitions - before[1]) / seconds:,.0f} environment steps and "
            f"{(trainer.step - before[0]) / seconds:,.1f} updates a second"
        )

    def _exploring(self) -> TensorDictModuleBase:
        """Return the policy that plays."""
        if self.settings.exploration != "composed":
            return self.loss.actor_network
        file = self.folder / "online" / KEPT
        if not lies_at(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            save_policy(file, self.loss.actor_network)
        return ComposedPolicy(load_policy(file, device=self.settings.device).policy, self.loss)

    def _train(self, stage: str, buffer: Any, steps: int) -> tuple[Trainer, tuple[int, int]]:
        """Train, from the newest checkpoint if there is one; returns how far it was before, too."""
        settings, place = self.settings, self.folder / stage
        of_learner = {name: getattr(settings, name) for name in ("tau", "clip_grad_norm", "compile", "precision")}
        if stage == "offline":
            of_learner["critic_first"] = settings.critic_first
            of_learner["anneal_over"] = steps if settings.lr_schedule == "cosine" else None
        learner = Learner(self.loss, lr=settings.lr, actor_every=min(settings.actor_every, steps), **of_learner)
        logger = RunLogger.named(settings.logger, place, name=f"{self.folder.name}-{stage}", group=self.folder.name)
        logger.log_config({**vars(settings), "algorithm": self.plan.algorithm, "stage": stage, **self._own_settings()})
        trainer = Trainer(
            learner,
            buffer,
            steps=steps,
            evaluators=self.evaluators,
            eval_every=settings.eval_every,
            eval_at_start=True,
            checkpoint_every=settings.checkpoint_every,
            output=place,
            logger=logger,
            profile=settings.profile,
        )
        self.plan.add_videos(trainer, partial(make_env, settings.online, device=settings.device))
        if trainer.checkpoints.checkpoints():
            trainer.resume()
        before = trainer.step, getattr(buffer, "transitions", 0)
        print(f"\n{stage}: updates {trainer.step} to {trainer.steps}, results in {trainer.output}")
        trainer.train()
        logger.close()
        return trainer, before

    def _share(self, data: OfflineDataset | None) -> dict[str, Any]:
        """Return what the replay is told of the offline data in its batches: nothing where they have no share."""
        settings = self.settings
        if settings.offline_fraction == 0:
            return {}
        until = settings.online_steps // 2 if settings.anneal else None
        return {"offline": data, "offline_fraction": settings.offline_fraction, "offline_until": until}

    def _sampling(self) -> dict[str, Any]:
        return self.plan.sampling(self.plan.algorithm)

    def _own_settings(self) -> Mapping[str, Any]:
        return self.plan.of_method(self.plan.algorithm)

    def report(self, data: OfflineDataset | None) -> None:
        """Print the curves and draw them."""
        stages = {stage: self.folder / stage for stage in ("offline", "online")}
        stages = {stage: place for stage, place in stages.items() if (place / "eval.csv").exists()}
        for stage, place in stages.items():
            table = read_csv(place / "eval.csv")
            for evaluator in self.evaluators:
                curve = [f"{row['return']:.3g}" for row in table if row["evaluator"] == evaluator]
                print(f"{stage:8} {evaluator:8} return by step: {' '.join(curve)}")
        mean = None if data is None else data.episode_returns().mean().item()
        plot_learning_curves(
            stages,
            self.folder / "learning_curves.png",
            data_mean=mean,
            starts={"online": self.settings.steps} if "offline" in stages else None,
            title=self.settings.online,
            formats=self.settings.figures,
        )
        told = "" if mean is None else f"the recorded data: {mean:.3g}; "
        print(f"{told}curves in {self.folder}, checkpoints and policy.pt in {self.folder / 'online'}")
