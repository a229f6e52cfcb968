"""What ``marl-offline train`` does."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from torchrl_marl_offline.algorithms.algorithm import (
    settings_of,
)
from torchrl_marl_offline.commands.online_work import train_online
from torchrl_marl_offline.commands.script_settings import (
    SettingsError,
)
from torchrl_marl_offline.commands.train import TrainSettings
from torchrl_marl_offline.commands.training_plan import INPUTS_FILE, TrainingPlan, members, new_plan, resumed_plan
from torchrl_marl_offline.data import HindsightGoals, hindsight_buffer, load_dataset
from torchrl_marl_offline.envs import make_env
from torchrl_marl_offline.evaluation import (
    evaluate,
    evaluate_held_out,
    evaluate_population,
    make_simulator,
    plot_learning_curves,
    summarize_evaluations,
    write_population_report,
    write_report,
)
from torchrl_marl_offline.evaluation.pictures import title_of
from torchrl_marl_offline.recording import record_mixed_skill
from torchrl_marl_offline.training import (
    Learner,
    PopulationBuffer,
    PopulationLearner,
    RunLogger,
    Trainer,
    distributed_from_environment,
    split_population,
)

if TYPE_CHECKING:
    from torchrl.envs import EnvBase

    from torchrl_marl_offline.core.layout import TaskSpec
    from torchrl_marl_offline.data import OfflineDataset
    from torchrl_marl_offline.objectives import OfflineMARLLoss
    from torchrl_marl_offline.training import SingleProcess

OF_TRAINER = ("steps", "eval_every", "checkpoint_every", "profile")
OF_LEARNER = ("tau", "actor_every", "critic_first", "clip_grad_norm", "compile", "precision")


def run(parsed: argparse.Namespace) -> None:
    """Train both methods and compare them."""
    plan = resumed_plan(parsed) if getattr(parsed, "resume", None) is not None else new_plan(parsed)
    train(plan)


def train(plan: TrainingPlan) -> None:
    """Get the data, train each method, compare them."""
    settings = plan.run
    torch.set_num_threads(settings.threads or torch.get_num_threads())
    processes = distributed_from_environment(settings.device)  # one, unless torchrun started several
    if processes.count > 1 and _are_many(settings):
        raise SettingsError("Several processes share one run; leave --seeds and --grid out.")
    plan = replace(plan, run=replace(settings, device=str(processes.device)))
    source = settings.online or settings.dataset or settings.task or "mpe/simple_spread"
    folder = settings.output or Path("runs") / f"{Path(source).stem}-{datetime.now():%Y%m%d-%H%M%S}"
    folder = processes.from_main(folder)
    if settings.online is not None:
        if processes.count > 1:
            raise SettingsError("--online is for one process; start it without torchrun.")
        plan.check_videos(partial(make_env, settings.online))
        return train_online(plan, folder)
    methods = (["cloning"] if settings.cloning and plan.algorithm != "cloning" else []) + [plan.algorithm]
    if settings.dataset is None:  # before anything is recorded: wrong settings are found here
        env = make_env(source)
        _check_methods(plan, methods, env.task_spec)
        plan.check_goals(env)
        plan.check_videos(lambda: env)
    data = _data(plan, source, folder.parent / "data", processes)
    _check_methods(plan, methods, data.spec)  # before anything is written
    plan.hindsight(data)
    plan.check_videos(partial(make_simulator, data, num_envs=1))
    if processes.is_main:
        plan.write(folder)
    Comparison(plan, methods, folder, data, processes).run()


def _are_many(settings: TrainSettings) -> bool:
    return settings.seeds > 1 or bool(settings.grid)


def _check_methods(plan: TrainingPlan, methods: Sequence[str], spec: TaskSpec) -> None:
    """Make every method's loss and forget it: wrong settings are found here."""
    for name in methods:
        plan.loss(name, spec)


def _data(plan: TrainingPlan, source: str, place: Path, processes: SingleProcess) -> OfflineDataset:
    settings = plan.run
    with processes.main_first():
        if settings.dataset is None:
            options = {"episodes": settings.episodes, "seed": settings.seed, "progress": processes.is_main}
            data = record_mixed_skill(source, place, **options)
        else:
            data = load_dataset(source, bounds="data" if settings.bounds == "data" else None)
    data = plan.within(data)
    if processes.is_main:
        print(data.summary())
    return data


class Comparison:
    """Methods trained on one dataset, one after the other, and what they came to."""

    def __init__(
        self, plan: TrainingPlan, methods: Sequence[str], folder: Path, data: OfflineDataset, processes: SingleProcess
    ) -> None:
        self.plan, self.folder, self.processes = plan, folder, processes
        self.data, self.held_out = data, None
        has_env = make_simulator(data, num_envs=1) is not None
        if not has_env:
            self.data, self.held_out = data.split(fraction=0.1, seed=plan.run.seed)
            if processes.is_main:
                print(
                    f"No simulator of {data.spec.task} here: {self.held_out.n_episodes} episodes are held out instead."
                )
        self.inputs = plan.inputs(self.data, folder)
        self.hindsight = plan.hindsight(self.data)
        if self.inputs is not None and processes.is_main:
            print(f"Inputs are normalized; the largest root mean square of a component is {self.inputs.largest:.3g}.")
            self.inputs.save(folder / INPUTS_FILE)
        self.metric = "return" if has_env else "agreement" if data.spec.discrete else "action_error"
        self.folders = {name: folder if name == plan.algorithm else folder / name for name in methods}

    def run(self) -> None:
        """Train, and write the table and the pictures."""
        found, more, are_many = {}, {}, _are_many(self.plan.run)
        for name in self.folders:
            finals, notes = (self._train_population if are_many else self._train_one)(name)
            found, more = found | finals, more | notes
        if not self.processes.is_main:
            return
        options = {"data": self.data, "figures": self.plan.run.figures}
        if are_many:
            text = write_population_report(self.folder, finals=found, metric=self.metric, frozen=more, **options)
        else:
            text = write_report(self.folder, finals=found, curves=more, **options)
        print(f"\n{text}\nPictures, CSV files and checkpoints: {self.folder}")

    def _train_one(self, name: str) -> tuple[dict, dict]:
        """Train one run; returns its evaluations after training, and what its curves came to."""
        settings, place = self.plan.run, self.folders[name]
        loss = self.plan.loss(name, self.data.spec, inputs=self.inputs)
        env = make_simulator(self.data, num_envs=settings.eval_episodes, device=settings.device)
        torch.manual_seed(settings.seed)
        ways = partial(self._evaluators, name, loss, self.plan, env)
        evaluators = ways(episodes=settings.eval_episodes, seed=1000 + settings.seed)
        names = settings.logger if self.processes.is_main else ()
        logger = RunLogger.named(names, place, name=f"{self.folder.name}-{name}")
        logger.log_config(asdict(settings) | {"algorithm": name} | self.plan.of_method(name))
        options = {"device": settings.device, "seed": settings.seed, "keys": loss.in_keys}
        options |= self.plan.sampling(name) | {"batch_size": settings.batch_size}
        relabelled = self.hindsight is not None
        trainer = Trainer(
            Learner(loss, lr=settings.lr, **self._of_learner(name)),
            hindsight_buffer(self.data, **self.hindsight, **options)
            if relabelled
            else self.data.replay_buffer(**options),
            evaluators={**evaluators, "picture": self._draw},
            keep_best=None if env is None else ("mode", "return"),
            output=place,
            logger=logger,
            distributed=self.processes,
            **{option: getattr(settings, option) for option in OF_TRAINER},
        )
        self.plan.add_videos(trainer, partial(make_simulator, self.data, num_envs=1, device=settings.device))
        self._go_on(trainer, name)
        logger.close()
        if not self.processes.is_main:
            return {}, {}
        final = ways(episodes=5 * settings.eval_episodes, seed=2000 + settings.seed)
        finals = {f"{name}, {way}": measure() for way, measure in final.items()}
        summary = summarize_evaluations(logger.eval.rows, self.metric)
        return finals, {f"{name}, {way}": curve for way, curve in summary.items()}

    def _train_population(self, name: str) -> tuple[dict, dict]:
        """Train every seed and grid point at once; returns the members' evaluations, and who fell out when."""
        settings = self.plan.run
        differing = [word for word in settings.grid if word.partition("=")[0] in (*settings_of(name), "lr")]
        runs = members(self.plan, differing)
        losses = {member: own.loss(name, self.data.spec, inputs=self.inputs) for member, own in runs.items()}
        keys, seeds = next(iter(losses.values())).in_keys, [own.run.seed for own in runs.values()]
        sampling = self.plan.sampling(name)
        options = {"seeds": seeds, "device": settings.device, "keys": keys} | sampling
        if self.hindsight is not None:
            goals = HindsightGoals.drawn_with(self.data, sampling, device=settings.device, **self.hindsight)
            options["hindsight"] = goals
        buffer = PopulationBuffer(self.data.data, batch_size=settings.batch_size, **options)
        rates = [own.run.lr for own in runs.values()]
        learner = PopulationLearner(losses, lr=rates, **self._of_learner(name))
        trainer = Trainer(
            learner,
            buffer,
            output=self.folders[name],
            logger=settings.logger,
            **{option: getattr(settings, option) for option in OF_TRAINER},
        )
        slots = max(1, min(settings.eval_episodes, 4096 // len(runs)))  # of each member, in one batched environment
        env = make_simulator(self.data, num_envs=slots * len(runs), device=settings.device)

        def evaluators(episodes: int, seed: int) -> dict[str, Callable[[], Mapping[str, Any]]]:
            if env is not None:
                play = partial(evaluate_population, learner.population, env, episodes=episodes, seed=seed)
                return {"mode": partial(play, mode="mode"), "sampled": partial(play, mode="sample")}

            def look() -> dict[str, Any]:
                found = {}
                for member, loss in learner.member_losses():  # one object for all: each is looked at in its turn
                    (measure,) = self._evaluators(name, loss, runs[member], None, episodes=0, seed=0).values()
                    found[member] = measure()
                return found

            return {"held-out episodes": look}

        trainer.evaluators |= evaluators(settings.eval_episodes, 1000 + settings.seed)
        for member, logger in trainer.loggers.items():
            logger.log_config(asdict(runs[member].run) | {"algorithm": name} | runs[member].of_method(name))
        self.plan.add_videos(trainer, partial(make_simulator, self.data, num_envs=1, device=settings.device))
        self._go_on(trainer, f"{name}, {len(runs)} members at once")
        split_population(trainer)  # each member's folder can be resumed alone
        final = evaluators(5 * settings.eval_episodes, 2000 + settings.seed)
        finals = {f"{name}, {way}": measure() for way, measure in final.items()}
        return finals, {f"{name}/{member}": at for member, at in trainer.left_out.items()}

    def _of_learner(self, name: str) -> dict[str, Any]:
        """Return the options of a method's step; cloning has no critic whose actor could wait for it."""
        settings = self.plan.run
        options = {each: getattr(settings, each) for each in OF_LEARNER}
        options["anneal_over"] = settings.steps if settings.lr_schedule == "cosine" else None
        beside = name == "cloning" != self.plan.algorithm
        return options | {"actor_every": 1, "critic_first": 0} if beside else options

    def _evaluators(
        self, name: str, loss: OfflineMARLLoss, plan: TrainingPlan, env: EnvBase | None, *, episodes: int, seed: int
    ) -> dict[str, Callable[[], Any]]:
        """Play in the environment, by mode and sampled; without one, look at episodes kept out of training."""
        actor = loss.actor_network
        if env is not None:
            play = partial(evaluate, actor, env, episodes=episodes, seed=seed)
            return {"mode": partial(play, mode="mode"), "sampled": partial(play, mode="sample")}
        gamma = ({"gamma": 1.0} | settings_of(name) | plan.of_method(name))["gamma"]  # cloning has none
        qvalue = loss.qvalue if loss.value_learning else None
        options = {"gamma": gamma, "device": plan.run.device, "qvalue": qvalue}
        return {"held-out episodes": partial(evaluate_held_out, actor, self.held_out, **options)}

    def _draw(self) -> None:
        """Draw the curves of what has been trained so far."""
        runs = {name: place for name, place in self.folders.items() if (place / "train.csv").exists()}
        if not runs:  # nothing has been logged yet
            return
        options = {"title": title_of(self.data), "formats": self.plan.run.figures}
        if self.metric == "return":
            options["data_mean"] = self.data.episode_returns().mean().item()
        plot_learning_curves(runs, self.folder / "learning_curves.png", metric=self.metric, **options)

    def _go_on(self, trainer: Trainer, name: str) -> None:
        """Train to the end, from where an earlier run stopped; leave where this one is stopped."""
        if self.plan.run.resume is not None and trainer.checkpoints.checkpoints():
            trainer.resume()
        if self.processes.is_main:
            print(f"\n{name}: updates {trainer.step} to {trainer.steps}, results in {trainer.output}")
        trainer.train()
