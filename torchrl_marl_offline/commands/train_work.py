"""What ``marl-offline train`` does."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from torchrl_marl_offline.algorithms.algorithm import (
    ALGORITHMS,
    algorithm_named,
    is_read,
    make_loss,
    members_settings,
    settings_of,
)
from torchrl_marl_offline.commands.grid import expand_grid, word_of_grid
from torchrl_marl_offline.commands.options import flag
from torchrl_marl_offline.commands.script_settings import (
    CONFIG_FILE,
    SettingsError,
    check_settings,
    read_config_file,
    with_full_paths,
    with_tuples,
    words_read,
    write_config_file,
)
from torchrl_marl_offline.commands.train import PRESETS, TrainSettings, preset_of
from torchrl_marl_offline.core.annotations import fields_of
from torchrl_marl_offline.core.ranges import check_all
from torchrl_marl_offline.core.relevance import check_read
from torchrl_marl_offline.data import load_dataset
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
from torchrl_marl_offline.training.run.run_lock import claim_folder

if TYPE_CHECKING:
    from torchrl.envs import EnvBase

    from torchrl_marl_offline.core.layout import TaskSpec
    from torchrl_marl_offline.data import OfflineDataset
    from torchrl_marl_offline.objectives import OfflineMARLLoss
    from torchrl_marl_offline.training import SingleProcess

OF_TRAINER = ("steps", "eval_every", "checkpoint_every", "profile")
OF_LEARNER = ("tau", "actor_every", "clip_grad_norm", "compile", "precision")


@dataclass(frozen=True)
class TrainingPlan:
    """What is to be trained.

    Attributes:
        algorithm: its name.
        settings: of the algorithm, those that were given.
        run: the settings beside the algorithm's.
    """

    algorithm: str
    settings: Mapping[str, Any]
    run: TrainSettings

    def of_method(self, name: str) -> dict[str, Any]:
        """Return the settings of a method: those that were given, and the preset's."""
        asked = preset_of(self.run.preset, name) | dict(self.settings)
        asked = {key: value for key, value in asked.items() if key in settings_of(name)}
        return {key: value for key, value in asked.items() if is_read(name, key, asked)}

    def loss(self, name: str, spec: TaskSpec) -> OfflineMARLLoss:
        """Draw the networks of a method under the run's seed and return their loss."""
        torch.manual_seed(self.run.seed)
        return make_loss(spec, algorithm=name, **self.of_method(name)).to(self.run.device)

    def with_values(self, values: Mapping[str, Any]) -> TrainingPlan:
        """Return the plan of a member: other values of the run's or of the algorithm's settings."""
        own = {name: value for name, value in values.items() if name in _RUN}
        rest = {name: value for name, value in values.items() if name not in _RUN}
        return replace(self, settings={**self.settings, **rest}, run=replace(self.run, **own))


_RUN = frozenset(f.name for f in fields(TrainSettings))
_OF_EVERY_VERSION = _RUN - {"resume", "output", "cloning", "tau", "actor_every", "clip_grad_norm", "figures"}
"""What each file of settings has, those of the example's earlier version too."""


def run(parsed: argparse.Namespace) -> None:
    """Train both methods and compare them."""
    plan = resumed_plan(parsed) if getattr(parsed, "resume", None) is not None else new_plan(parsed)
    train(plan)


# ------------------------------------------------------------------ settings


def new_plan(parsed: argparse.Namespace) -> TrainingPlan:
    """Return what was asked for, checked before anything is done.

    Raises:
        SettingsError: a setting outside its range, or one that changes nothing.
    """
    if parsed.algorithm is None:
        raise SettingsError(f"Name an algorithm: {', '.join(ALGORITHMS)}; or --resume FOLDER.")
    given = {name: value for name, value in vars(parsed).items() if name in _RUN}
    if parsed.algorithm == "cloning" and "cloning" in given:
        raise SettingsError("--cloning is for what is trained beside cloning; leave it out.")
    given |= {"grid": [word_of_grid(word) for word in given["grid"]]} if "grid" in given else {}
    preset = given.get("preset", "quick")
    settings = with_full_paths(TrainSettings(**{**PRESETS[preset], **with_tuples(given)}))
    check_settings(TrainSettings, settings, list(given))
    prefix = "setting:"
    words = {name.removeprefix(prefix): each for name, each in vars(parsed).items() if name.startswith(prefix)}
    kind = algorithm_named(parsed.algorithm)
    hints = {name: hint for name, (hint, _) in fields_of(kind).items()}
    asked = {name: words_read(flag(name), hints[name], each) for name, each in words.items()}
    plan = TrainingPlan(parsed.algorithm, asked, settings)
    values = settings_of(parsed.algorithm) | plan.of_method(parsed.algorithm) | asked
    try:
        check_all(kind, values, name=flag)
        check_read(kind, list(asked), values, name=flag)
    except ValueError as error:
        raise SettingsError(str(error)) from None
    if twice := sorted({word.partition("=")[0] for word in settings.grid} & {*asked, *given}):
        raise SettingsError(
            f"{flag(twice[0])} is given beside --grid {twice[0]}=..., which has its values; leave it out."
        )
    members(plan, settings.grid)
    return plan


def resumed_plan(parsed: argparse.Namespace) -> TrainingPlan:
    """Return the plan of an earlier run.

    Raises:
        SettingsError: there is none, or more was given.
    """
    if parsed.algorithm is not None:
        raise SettingsError("--resume goes on with the settings of the run; leave all others out.")
    folder = parsed.resume
    stored = read_config_file(folder)
    claim_folder(folder)
    try:
        return _plan_of(folder, stored)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        said = f" ({' '.join(str(error).split())})" if isinstance(error, ValueError) else ""
        raise SettingsError(
            f"{folder / CONFIG_FILE} is damaged, or of another script or version{said}; start a new run."
        ) from error


def _plan_of(folder: Path, stored: dict[str, Any]) -> TrainingPlan:
    """Return the plan that a run's file of settings holds.

    Raises:
        ValueError, KeyError, TypeError: it is none.
    """
    is_of_example = "settings" not in stored
    stored = _with_weights(stored) if is_of_example else stored
    name = stored.pop("algorithm")
    known = settings_of(name)
    asked = stored.pop("settings", {})
    if is_of_example:  # until algorithms had options of their own, theirs stood among the others
        asked = {key: value for key, value in stored.items() if key in known and value is not None}
        asked = {key: value for key, value in asked.items() if is_read(name, key, asked)}
    own = {key: value for key, value in stored.items() if key in _RUN}
    missing = sorted(_OF_EVERY_VERSION - own.keys())
    strange = sorted((set() if is_of_example else stored.keys() - own.keys()) | (asked.keys() - known.keys()))
    if missing or strange:
        raise ValueError(f"it lacks {missing[0]}" if missing else f"there is no setting {strange[0]!r}")
    for key in ("dataset", "task", "device"):
        if not isinstance(own[key], str | None):
            raise ValueError(f"{flag(key)} must be a word, got {own[key]!r}")
    settings = TrainSettings(**with_tuples(own | {"output": folder, "resume": folder}))
    check_settings(TrainSettings, settings)
    plan = TrainingPlan(name, with_tuples(asked), settings)
    check_all(ALGORITHMS[name], known | plan.of_method(name))
    members(plan, settings.grid)
    return plan


def _with_weights(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run, with the weights that AWR had before they could be chosen, if it is so old."""
    has_awr = stored.get("algorithm", "recipe") == "recipe" and stored.get("extraction") == "awr"
    if "settings" in stored or "weights" in stored or not has_awr:
        return {"algorithm": "recipe", **stored}
    temperature = stored["temperature"] or {"quick": 3.0, "paper": 10.0}[stored["preset"]]
    return {"algorithm": "recipe", **stored, "weights": "clipped", "temperature": temperature}


def members(plan: TrainingPlan, grid: Sequence[str]) -> dict[str, TrainingPlan]:
    """Return the plan of every run of a population, by its name."""
    asked = plan.of_method(plan.algorithm)
    differing = ["lr", *(n for n in sorted(members_settings(plan.algorithm)) if is_read(plan.algorithm, n, asked))]
    defaults = settings_of(plan.algorithm) | asked | {"lr": plan.run.lr, "seed": plan.run.seed}
    hints = {n: h for kind in (TrainSettings, ALGORITHMS[plan.algorithm]) for n, (h, _) in fields_of(kind).items()}
    points = expand_grid(defaults, hints, seeds=plan.run.seeds, grid=grid, may_differ=differing)
    return {name: plan.with_values(values) for name, values in points.items()}


# ------------------------------------------------------------------ training


def train(plan: TrainingPlan) -> None:
    """Get the data, train each method, compare them."""
    settings = plan.run
    torch.set_num_threads(settings.threads or torch.get_num_threads())
    processes = distributed_from_environment(settings.device)  # one, unless torchrun started several
    if processes.count > 1 and _are_many(settings):
        raise SettingsError("Several processes share one run; leave --seeds and --grid out.")
    plan = replace(plan, run=replace(settings, device=str(processes.device)))
    source = settings.dataset or settings.task or "mpe/simple_spread"
    folder = settings.output or Path("runs") / f"{Path(source).stem}-{datetime.now():%Y%m%d-%H%M%S}"
    folder = processes.from_main(folder)
    methods = (["cloning"] if settings.cloning and plan.algorithm != "cloning" else []) + [plan.algorithm]
    if settings.dataset is None:  # before anything is recorded: wrong settings are found here
        _check_methods(plan, methods, make_env(source).task_spec)
    data = _data(plan.run, source, folder.parent / "data", processes)
    _check_methods(plan, methods, data.spec)  # before anything is written
    if settings.resume is None and processes.is_main:
        stored = asdict(replace(settings, output=folder, device=processes.device.type))
        write_config_file(folder, stored | {"algorithm": plan.algorithm, "settings": dict(plan.settings)})
    Comparison(plan, methods, folder, data, processes).run()


def _are_many(settings: TrainSettings) -> bool:
    return settings.seeds > 1 or bool(settings.grid)


def _check_methods(plan: TrainingPlan, methods: Sequence[str], spec: TaskSpec) -> None:
    """Make every method's loss and forget it: wrong settings are found here."""
    for name in methods:
        plan.loss(name, spec)


def _data(settings: TrainSettings, source: str, place: Path, processes: SingleProcess) -> OfflineDataset:
    with processes.main_first():
        if settings.dataset is None:
            options = {"episodes": settings.episodes, "seed": settings.seed, "progress": processes.is_main}
            data = record_mixed_skill(source, place, **options)
        else:
            data = load_dataset(source)
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
        loss = self.plan.loss(name, self.data.spec)
        env = make_simulator(self.data, num_envs=settings.eval_episodes, device=settings.device)
        torch.manual_seed(settings.seed)
        ways = partial(self._evaluators, name, loss, self.plan, env)
        evaluators = ways(episodes=settings.eval_episodes, seed=1000 + settings.seed)
        logger = RunLogger(place, name=f"{self.folder.name}-{name}", wandb=settings.wandb and self.processes.is_main)
        logger.log_config(asdict(settings) | {"algorithm": name} | self.plan.of_method(name))
        options = {"device": settings.device, "seed": settings.seed, "keys": loss.in_keys}
        trainer = Trainer(
            Learner(loss, lr=settings.lr, **self._of_learner(name)),
            self.data.replay_buffer(batch_size=settings.batch_size, **options),
            evaluators={**evaluators, "picture": self._draw},
            keep_best=None if env is None else ("mode", "return"),
            output=place,
            logger=logger,
            distributed=self.processes,
            **{option: getattr(settings, option) for option in OF_TRAINER},
        )
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
        losses = {member: own.loss(name, self.data.spec) for member, own in runs.items()}
        keys, seeds = next(iter(losses.values())).in_keys, [own.run.seed for own in runs.values()]
        options = {"seeds": seeds, "device": settings.device, "keys": keys}
        buffer = PopulationBuffer(self.data.data, batch_size=settings.batch_size, **options)
        rates = [own.run.lr for own in runs.values()]
        learner = PopulationLearner(losses, lr=rates, **self._of_learner(name))
        trainer = Trainer(
            learner,
            buffer,
            output=self.folders[name],
            **{option: getattr(settings, option) for option in OF_TRAINER},
        )
        slots = max(1, min(settings.eval_episodes, 4096 // len(runs)))  # of each member, in one batched environment
        env = make_simulator(self.data, num_envs=slots * len(runs), device=settings.device)

        def evaluators(episodes: int, seed: int) -> dict[str, Callable[[], Mapping[str, Any]]]:
            if env is not None:
                play = partial(evaluate_population, learner.population, env, episodes=episodes, seed=seed)
                return {"mode": partial(play, mode="mode"), "sampled": partial(play, mode="sample")}

            def look() -> dict[str, Any]:
                members_looks = {
                    m: self._evaluators(name, loss, runs[m], None, episodes=0, seed=0)
                    for m, loss in learner.member_losses()
                }
                return {member: measure() for member, looks in members_looks.items() for measure in looks.values()}

            return {"held-out episodes": look}

        trainer.evaluators |= evaluators(settings.eval_episodes, 1000 + settings.seed)
        self._go_on(trainer, f"{name}, {len(runs)} members at once")
        split_population(trainer)  # each member's folder can be resumed alone
        final = evaluators(5 * settings.eval_episodes, 2000 + settings.seed)
        finals = {f"{name}, {way}": measure() for way, measure in final.items()}
        return finals, {f"{name}/{member}": at for member, at in trainer.left_out.items()}

    def _of_learner(self, name: str) -> dict[str, Any]:
        """Return the options of a method's step; cloning has no critic whose actor could wait for it."""
        options = {each: getattr(self.plan.run, each) for each in OF_LEARNER}
        return options | {"actor_every": 1} if name == "cloning" != self.plan.algorithm else options

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
