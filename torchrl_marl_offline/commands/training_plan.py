"""What marl-offline train is asked for: read from the command line or from a run's folder, and checked."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from torchrl_marl_offline.algorithms.algorithm import (
    ALGORITHMS,
    algorithm_named,
    is_read,
    make_algorithm,
    members_settings,
    settings_of,
    settings_under,
)
from torchrl_marl_offline.commands.grid import expand_grid, word_of_grid
from torchrl_marl_offline.commands.online_settings import CARRIED, OnlineSettings, check_online
from torchrl_marl_offline.commands.options import flag
from torchrl_marl_offline.commands.script_settings import (
    SettingsError,
    check_settings,
    read_config_file,
    with_full_paths,
    with_tuples,
    words_read,
    write_config_file,
)
from torchrl_marl_offline.commands.train import PRESETS, TrainSettings, algorithm_of
from torchrl_marl_offline.core.annotations import fields_of
from torchrl_marl_offline.core.input_statistics import InputStatistics
from torchrl_marl_offline.core.ranges import check_all
from torchrl_marl_offline.core.regular_files import lies_at
from torchrl_marl_offline.core.relevance import check_read
from torchrl_marl_offline.evaluation import add_videos
from torchrl_marl_offline.evaluation.run_hindsight import goal_outcome, hindsight_options
from torchrl_marl_offline.evaluation.video import check_drawn, check_video_path
from torchrl_marl_offline.training.run.experiment_loggers import check_loggers
from torchrl_marl_offline.training.run.run_lock import claim_folder
from torchrl_marl_offline.training.run.run_settings import CONFIG_FILE

if TYPE_CHECKING:
    from tensordict.nn import TensorDictModuleBase
    from torchrl.envs import EnvBase

    from torchrl_marl_offline.core.layout import TaskSpec
    from torchrl_marl_offline.data import OfflineDataset
    from torchrl_marl_offline.objectives import OfflineMARLLoss
    from torchrl_marl_offline.training import Trainer


@dataclass(frozen=True)
class TrainingPlan:
    """What is to be trained.

    Attributes:
        algorithm: its name.
        settings: of the algorithm, those that were given.
        run: the settings beside the algorithm's.
        started_with: the algorithm of the run that this one begins from.
    """

    algorithm: str
    settings: Mapping[str, Any]
    run: TrainSettings
    started_with: str | None = None

    def of_method(self, name: str) -> dict[str, Any]:
        """Return the settings of a method: those that were given, and the preset's."""
        return settings_under(name, self.run.preset, self.settings)

    def loss(
        self,
        name: str,
        spec: TaskSpec,
        *,
        actor: TensorDictModuleBase | None = None,
        inputs: InputStatistics | None = None,
    ) -> OfflineMARLLoss:
        """Draw the networks of a method under the run's seed, all but ``actor``, and return their loss."""
        torch.manual_seed(self.run.seed)
        loss = make_algorithm(name, **self.of_method(name)).build(spec, actor=actor, inputs=inputs)
        return loss.to(self.run.device)

    def within(self, data: OfflineDataset) -> OfflineDataset:
        """Return the data with the bounds that were asked for."""
        return data.with_bounds("data") if self.run.bounds == "data" else data

    def inputs(self, data: OfflineDataset | None, folder: Path) -> InputStatistics | None:
        """Return what inputs are normalized by: what the run in the folder has, or what the data says."""
        if lies_at(folder / INPUTS_FILE):
            return InputStatistics.load(folder / INPUTS_FILE)
        if data is None or self.run.resume is not None:
            return None
        return data.statistics_where(self.run.normalize_inputs)

    def sampling(self, name: str) -> dict[str, Any]:
        """Return what the buffer of a method's run is told beside its rows and seed.

        Raises:
            ValueError: batches of this size cannot be drawn.
        """
        return make_algorithm(name, **self.of_method(name)).sampling(self.run.batch_size)

    def hindsight(self, data: OfflineDataset) -> dict[str, Any] | None:
        """Return how samples of the data get their goals in hindsight, or ``None`` where they do not.

        Raises:
            SettingsError: the data has no goals.
        """
        run = self.run
        try:
            return hindsight_options(data, run.hindsight, run.hindsight_share, run.hindsight_per)
        except ValueError as error:
            raise SettingsError(f"--{error}") from None

    def check_goals(self, env: EnvBase) -> None:
        """Refuse hindsight in a task without goals.

        Raises:
            SettingsError: it has none.
        """
        if self.run.hindsight != "off":
            try:
                goal_outcome(env, f"data of {env.task_spec.task}")
            except ValueError as error:
                raise SettingsError(f"--{error}") from None

    def write(self, folder: Path) -> None:
        """Write the plan of a new run to its folder, which must be new; one that goes on has it there."""
        if self.run.resume is None:
            stored = asdict(replace(self.run, output=folder, device=self.run.device.partition(":")[0]))
            more = {"algorithm": self.algorithm, "settings": dict(self.settings), "started_with": self.started_with}
            write_config_file(folder, stored | more)

    def check_videos(self, make: Callable[[], EnvBase | None]) -> None:
        """Refuse videos that cannot be had: of a task that cannot be played or drawn, or without the library of MP4.

        Args:
            make: makes the environment, where videos were asked for, or returns ``None`` where there is none.

        Raises:
            SettingsError: there is no environment.
            NotImplementedError: it has nothing to draw.
            ImportError: an MP4 without its library.
        """
        if self.run.video_every is None:
            return
        check_video_path(Path(f"video.{self.run.video_format}"), "--video-format")
        env = make()
        if env is None:
            raise SettingsError(
                "--video-every needs a simulator, and there is none of this dataset here; leave it out."
            )
        check_drawn(env)

    def add_videos(self, trainer: Trainer, make: Callable[[], EnvBase]) -> None:
        """Let a run record episodes while it is trained, if that was asked for, in an environment of its own."""
        if self.run.video_every is not None:
            options = {"every": self.run.video_every, "size": self.run.video_size, "seed": 1000 + self.run.seed}
            add_videos(trainer, make(), video_format=self.run.video_format, **options)

    def with_values(self, values: Mapping[str, Any]) -> TrainingPlan:
        """Return the plan of a member: other values of the run's or of the algorithm's settings."""
        own = {name: value for name, value in values.items() if name in OF_RUN}
        rest = {name: value for name, value in values.items() if name not in OF_RUN}
        return replace(self, settings={**self.settings, **rest}, run=replace(self.run, **own))


INPUTS_FILE = "inputs.json"
"""What a run's networks normalize their inputs by, in its folder; without it they see them as they are."""
OF_RUN = frozenset(f.name for f in fields(TrainSettings))
_SINCE = {f.name for f in fields(OnlineSettings)} | {
    "cloning",
    "tau",
    "actor_every",
    "critic_first",
    "lr_schedule",
    "clip_grad_norm",
    "bounds",
    "normalize_inputs",
    "logger",
    "hindsight",
    "hindsight_share",
    "hindsight_per",
    "video_every",
    "video_size",
    "video_format",
    "figures",
}
_OF_EVERY_VERSION = OF_RUN - {"resume", "output"} - _SINCE
"""What each file of settings has, those of the example's earlier version too."""


def new_plan(parsed: argparse.Namespace) -> TrainingPlan:
    """Return what was asked for, checked before anything is done.

    Raises:
        SettingsError: a setting outside its range, or one that changes nothing.
    """
    if parsed.algorithm is None:
        raise SettingsError(f"Name an algorithm: {', '.join(ALGORITHMS)}; or --resume FOLDER.")
    given = {name: value for name, value in vars(parsed).items() if name in OF_RUN}
    if parsed.algorithm == "cloning" and "cloning" in given:
        raise SettingsError("--cloning is for what is trained beside cloning; leave it out.")
    for name, option in (("critic_first", "--critic-first"), ("tau", "--tau")):
        if given.get(name) and not ALGORITHMS[parsed.algorithm].has_critic:
            raise SettingsError(
                f"{option} is for algorithms with a critic, which {parsed.algorithm} has not; leave it out."
            )
    given |= {"grid": [word_of_grid(word) for word in given["grid"]]} if "grid" in given else {}
    start = given.get("from_")
    earlier = _plan_to_go_on_with(start) if start is not None and algorithm_of(start) == parsed.algorithm else None
    carried = {} if earlier is None else {name: getattr(earlier.run, name) for name in CARRIED}
    preset = given.get("preset", carried.get("preset", "quick"))
    settings = with_full_paths(TrainSettings(**{**PRESETS[preset], **with_tuples(carried | given)}))
    check_settings(TrainSettings, settings, list(given))
    try:
        check_online(settings, given)
    except ValueError as error:
        raise SettingsError(str(error)) from None
    check_loggers(settings.logger, "--logger")
    prefix = "setting:"
    words = {name.removeprefix(prefix): each for name, each in vars(parsed).items() if name.startswith(prefix)}
    kind = algorithm_named(parsed.algorithm)
    hints = {name: hint for name, (hint, _) in fields_of(kind).items()}
    asked = {name: words_read(flag(name), hints[name], each) for name, each in words.items()}
    of_start = {} if earlier is None else dict(earlier.settings)
    started_with = None if start is None else algorithm_of(start)
    plan = TrainingPlan(parsed.algorithm, of_start | asked, settings, started_with)
    values = settings_of(parsed.algorithm) | plan.of_method(parsed.algorithm) | asked
    try:
        check_all(kind, values, name=flag)
        check_read(kind, list(asked), values, name=flag)
        if values.get("memory") is not None:
            plan.sampling(parsed.algorithm)
    except ValueError as error:
        raise SettingsError(str(error)) from None
    if values.get("memory") is not None and settings.online is not None:
        _check_ring(settings, values["burn_in"])
    if twice := sorted({word.partition("=")[0] for word in settings.grid} & {*asked, *given}):
        raise SettingsError(
            f"{flag(twice[0])} is given beside --grid {twice[0]}=..., which has its values; leave it out."
        )
    members(plan, settings.grid)
    return plan


def _check_ring(settings: TrainSettings, burn_in: int) -> None:
    """Refuse a ring in which no row of an episode that has lost its beginning has the burn-in's rows before it."""
    if settings.capacity <= burn_in * settings.num_envs:
        raise SettingsError(
            f"--capacity {settings.capacity} holds no more than --burn-in {burn_in} rows of each of --num-envs "
            f"{settings.num_envs} environments, behind which none would count; raise it."
        )


def _plan_to_go_on_with(folder: Path) -> TrainingPlan:
    """Return the plan of the run that a new one begins from.

    Raises:
        SettingsError: its file of settings is damaged.
    """
    stored = read_config_file(folder) | {"device": "cpu"}  # whichever it ran on
    with _damage_told(
        f"--from {folder}: its {CONFIG_FILE} is damaged, or of another version{{}}; take its policy.pt alone."
    ):
        return _plan_of(folder, stored)


@contextmanager
def _damage_told(sentence: str) -> Iterator[None]:
    """Turn whatever a damaged file of settings raises into a sentence, in whose braces the reason stands."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        said = f" ({' '.join(str(error).split())})" if isinstance(error, ValueError) else ""
        raise SettingsError(sentence.replace("{}", said)) from error


def resumed_plan(parsed: argparse.Namespace) -> TrainingPlan:
    """Return the plan of an earlier run.

    Raises:
        SettingsError: there is none.
    """
    folder = parsed.resume
    stored = read_config_file(folder)
    claim_folder(folder)
    with _damage_told(f"{folder / CONFIG_FILE} is damaged, or of another script or version{{}}; start a new run."):
        return _plan_of(folder, stored)


def _plan_of(folder: Path, stored: dict[str, Any]) -> TrainingPlan:
    """Return the plan that a run's file of settings holds.

    Raises:
        ValueError, KeyError, TypeError: it is none.
    """
    is_of_example = "settings" not in stored
    stored = _with_weights(stored) if is_of_example else stored
    if stored.pop("wandb", False):  # what --logger wandb was
        stored["logger"] = ["csv", "wandb"]
    name = stored.pop("algorithm")
    known = settings_of(name)
    asked = stored.pop("settings", {})
    started_with = stored.pop("started_with", None)
    if is_of_example:  # until algorithms had options of their own, theirs stood among the others
        asked = {key: value for key, value in stored.items() if key in known and value is not None}
        asked = {key: value for key, value in asked.items() if is_read(name, key, asked)}
    own = {key: value for key, value in stored.items() if key in OF_RUN}
    missing = sorted(_OF_EVERY_VERSION - own.keys())
    strange = sorted((set() if is_of_example else stored.keys() - own.keys()) | (asked.keys() - known.keys()))
    if missing or strange:
        raise ValueError(f"it lacks {missing[0]}" if missing else f"there is no setting {strange[0]!r}")
    for key in ("dataset", "task", "device", "online", "from_"):
        if not isinstance(own.get(key), str | None):
            raise ValueError(f"{flag(key)} must be a word, got {own[key]!r}")
    own["from_"] = None if own.get("from_") is None else Path(own["from_"])
    settings = TrainSettings(**with_tuples(own | {"output": folder, "resume": folder}))
    check_settings(TrainSettings, settings)
    plan = TrainingPlan(name, with_tuples(asked), settings, started_with)
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
