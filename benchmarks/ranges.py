"""How numbers outside their range are met, and what is no bool, word or function, everywhere it can be given.

    python benchmarks/ranges.py            # a minute; the table of RESULTS.md

Every number parameter of the public functions and classes, of the environments and readers, every setting of
``make_loss``, every key of a study file and every option of the commands and examples is given -1, 0, NaN, infinity, a
huge number, a string, a bool and NumPy's NaN. A number parameter has a range or stands in :data:`WITHOUT_RANGE`. What
its range does not hold must be refused by a sentence that names it, before anything else is looked at. So must be a
string or a number in the place of a bool, another word than those of a ``Literal``, and what cannot be called.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import inspect
import io
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import numpy as np
from arguments import run_script, script_parser
from measuring import markdown

import torchrl_marl_offline as marl
from torchrl_marl_offline.algorithms import ALGORITHMS
from torchrl_marl_offline.commands import COMMANDS
from torchrl_marl_offline.core import ranges
from torchrl_marl_offline.core.annotations import parameters_of
from torchrl_marl_offline.core.ranges import OneOf, kinds_in, range_of

NAN, INF = float("nan"), float("inf")
KINDS: dict[str, Any] = {
    "-1": -1,
    "0": 0,
    "NaN": NAN,
    "infinity": INF,
    "huge": 10**18,
    "a string": "nope",
    "a bool": True,
    "NumPy's NaN": np.float64("nan"),
}
NO_WORDS: dict[Any, dict[str, Any]] = {
    bool: {"a string": "no", "a number": 2},
    Literal: {"another word": "no", "a number": 2, "a bool": True},
    OneOf: {"another word": "no", "a number": 2, "a bool": True},
    Callable: {"a number": 3},
}
"""What a bool, one of some words and a function must not be."""
NEVER = ("NaN", "infinity", "huge", "NumPy's NaN")
"""Kinds that no parameter takes."""

PACKAGES = ("data", "envs", "modules", "objectives", "recording", "study", "training")
EXAMPLES = ("from_logs", "offline_mix_awr", "omar_mpe", "vmas_finetune")

SPEC = marl.TaskSpec(n_agents=2, observation_size=3, state_size=6, action_size=2)

NOT_RISING = {
    "action_bounds": "low is to be below high, which is checked where a TaskSpec is made of them",
    "bounds": "of actions, which may be equal where a component is a constant",
    "offset": "a place in the plane",
    "reference_returns": "of random play and of the best, which may be equal",
}
"""Pairs of numbers whose first may be above the second, or that are compared elsewhere."""

_RESULT = "filled in by the library, as a result"
_STEP = "made in every step, of numbers that were checked where the step was"
WITHOUT_RANGE: dict[str, str] = {
    **dict.fromkeys(
        (
            "Calibration",
            "DatasetCard",
            "Evaluation",
            "Evaluation.of",
            "Finding",
            "HeldOutEvaluation",
            "ImpossibleValueError",
            "NonFiniteLossError",
            "Plan",
            "Run",
            "OnlineLearner",
            "StudyOutcome",
            "TrainingFinished",
            "TrainingInterrupted",
        ),
        _RESULT,
    ),
    "AWR.weight": _STEP,
    **dict.fromkeys(
        (f"{name}.rules" for name in ("Algorithm", *(kind.__name__ for kind in ALGORITHMS.values()))),
        "asked by the library alone, of a task's spec",
    ),
    "setting": "declares a field where a class is written",
    **dict.fromkeys(("BoundedNormal", "OneStep", "OneStepCategorical", "TanhNormal"), _STEP),
    **dict.fromkeys(("ActionSampler.propose", "CEMSampler.propose", "RandomSampler.propose"), _STEP),
    **dict.fromkeys(("GaussianSampler.propose", "SoftmaxSampler.propose"), _STEP),
    "BatchNorm.before": "handed on to BatchNorm",
    "CheckpointManager.save": "the trainer's own count",
    "CheckpointManager.save_best": "the trainer's own count",
    "CsvTable.truncate": "the trainer's own count",
    "OfflineMARLLoss.action_spec": "bounds of any size; low is to be below high, which is checked where they are read",
    "OfflineMARLLoss.named_parameters": "torch's own",
    "OfflineDataset.select_episodes": "compared with the number of episodes",
    "RunLogger.log_eval": "results, which may be infinite",
    "RunLogger.log_train": "results, which may be infinite",
    "RunLogger.log_video": "the trainer's own count",
    "RunLogger.truncate": "the trainer's own count",
    "SingleProcess": "torchrun's numbers",
    **dict.fromkeys(
        ("SingleProcess.any_wants_to_stop", "SingleProcess.averaged", "SingleProcess.start_alike"), "the trainer's own"
    ),
    "bootstrap_confidence_interval.values": "results; those that are not finite are refused",
    "mean_confidence_interval.values": "results; those that are not finite are refused",
    "plot_methods": "results, which may be infinite",
    "student_t_quantile.degrees": "counted from the results",
    "write_population_report": "results",
    "write_report": "results",
}


@dataclass
class Place:
    """What was found in one place.

    Attributes:
        parameters: number parameters with a range.
        words: parameters that are bools, words or functions.
        tried: values that were given.
        refused: those that were refused in one sentence.
        bare: number parameters without a range.
        taken: values that should have been refused and were not.
        tracebacks: what else was raised.
        signed: parameters that take -1.
    """

    parameters: int = 0
    words: int = 0
    tried: int = 0
    refused: int = 0
    bare: list[str] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)
    tracebacks: list[str] = field(default_factory=list)
    signed: set[str] = field(default_factory=set)

    def meet(self, label: str, hint: Any, default: Any, give: Callable[[Any], Any], *, as_text: bool = False) -> None:
        """Give a parameter every kind of value that its annotation does not hold."""
        name = label.rpartition(".")[2]
        self._meet_words(label, name, hint, give, as_text=as_text)
        if number_in(hint) is None:
            return
        if range_of(hint) is None:
            if not {label, label.rpartition(".")[0]} & WITHOUT_RANGE.keys():
                self.bare.append(label)
            return
        self.parameters += 1
        if is_pair(hint) and name not in NOT_RISING:
            for kind, pair in (("reversed", (0.75, 0.25)), ("equal", (0.5, 0.5))):
                self._try(f"{label} = {kind}", name, pair, give)
        for kind, value in KINDS.items():
            if as_text and kind in ("a bool", "NumPy's NaN"):
                continue
            planted = value if kind == "a string" else in_form(hint, value)
            if kind not in NEVER and is_legal(name, planted, hint):
                self.signed |= {name} if kind == "-1" else set()
                continue
            self._try(f"{label} = {kind}", name, planted, give)

    def _meet_words(
        self, label: str, name: str, hint: Any, give: Callable[[Any], Any], *, as_text: bool = False
    ) -> None:
        if {label, label.rpartition(".")[0]} & WITHOUT_RANGE.keys():
            return
        kinds = kinds_in(hint)
        self.words += bool(kinds)
        for kind, value in {what: value for each in kinds for what, value in NO_WORDS[each].items()}.items():
            planted = word_in_form(hint, value)
            if not is_legal(name, planted, hint) and not (as_text and kind == "a bool"):
                self._try(f"{label} = {kind}", name, planted, give)

    def _try(self, what: str, name: str, planted: Any, give: Callable[[Any], Any]) -> None:
        self.tried += 1
        try:
            give(planted)
        except (ValueError, TypeError) as error:
            self._judge(what, str(error), name)
        except Exception as error:
            self.tracebacks.append(f"{what}: {type(error).__name__}: {error}")
        else:
            self.taken.append(what)

    def _judge(self, what: str, said: str, name: str) -> None:
        names = (name, name.replace("_", "-"))
        if "\n" not in said.strip() and any(each in said for each in names) and "argument" not in said.split(name)[0]:
            self.refused += 1
        else:
            self.taken.append(f"{what}: {said}")


def number_in(hint: Any) -> type | None:
    """Return int or float where a value of this annotation may hold one."""
    if hint in (int, float):
        return hint
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return number_in(parts[0])
    is_container = isinstance(origin, type) and issubclass(origin, tuple | Sequence | Mapping)
    if origin in (Union, UnionType) or is_container:
        return next((found for found in map(number_in, parts) if found), None)
    return None


def in_form(hint: Any, value: Any) -> Any:
    """Put a value where an annotation has its number."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return in_form(parts[0], value)
    if origin in (Union, UnionType):
        options = [part for part in parts if number_in(part)]
        return in_form(next((part for part in options if part in (int, float)), options[0]), value)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {"a": in_form(parts[1], value)}
    if isinstance(origin, type) and issubclass(origin, tuple) and Ellipsis not in parts:
        return tuple(in_form(part, value) for part in parts)
    if isinstance(origin, type):
        return [in_form(parts[0], value)]
    return value


def is_pair(hint: Any) -> bool:
    """Say whether an annotation wants two numbers."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is tuple:
        return len(parts) == 2 and all(number_in(part) for part in parts) and Ellipsis not in parts
    return origin in (Annotated, Union, UnionType) and any(map(is_pair, parts))


def word_in_form(hint: Any, value: Any) -> Any:
    """Put a value where an annotation has its bool, word or function: in a list or mapping, where all of it is one."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return word_in_form(parts[0], value)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {"a": value}
    if isinstance(origin, type) and issubclass(origin, tuple | Sequence):
        return [value]
    return value


def is_legal(name: str, value: Any, hint: Any) -> bool:
    """Say whether the range of an annotation holds a value."""
    try:
        ranges.check(name, value, hint)
    except ValueError:
        return False
    return True


def public_callables() -> Iterator[tuple[str, Any, Callable[[dict[str, Any]], Any]]]:
    """Yield every public function, class and method: name, callable and how to call it with one argument."""
    seen = set()
    modules = ["torchrl_marl_offline", *(f"torchrl_marl_offline.{name}" for name in PACKAGES)]
    for module in map(importlib.import_module, modules):
        for name in getattr(module, "__all__", dir(module)):
            thing = getattr(module, name)
            home = str(getattr(thing, "__module__", ""))
            if name.startswith("_") or not callable(thing) or id(thing) in seen or not home.startswith(marl.__name__):
                continue
            seen.add(id(thing))
            if not inspect.isabstract(thing):
                yield thing.__qualname__, thing, calling(thing)
            if isinstance(thing, type):
                yield from _methods_of(thing)


def _methods_of(kind: type) -> Iterator[tuple[str, Any, Callable[[dict[str, Any]], Any]]]:
    for name, member in vars(kind).items():
        function = inspect.unwrap(getattr(member, "__func__", member))
        if not name.startswith("_") and inspect.isfunction(function):
            bound = getattr(kind, name)
            first = () if isinstance(member, classmethod | staticmethod) else (None,)
            call = functools.partial(bound, *first)
            yield f"{kind.__qualname__}.{name}", function, lambda given, call=call: _with_positions(call, given)


def calling(thing: Any) -> Callable[[dict[str, Any]], Any]:
    """Return what calls a function or makes a class; fields that a dataclass must have are filled in."""
    if not (isinstance(thing, type) and is_dataclass(thing)):
        return lambda given: _with_positions(thing, given)
    needed = [f for f in fields(thing) if f.init and f.default is MISSING and f.default_factory is MISSING]
    legal = {f.name: _legal_value(parameters_of(thing)[f.name][0]) for f in needed}
    return lambda given: thing(**(legal | given))


def _with_positions(thing: Any, given: dict[str, Any]) -> Any:
    target = thing.__init__ if isinstance(thing, type) else thing
    needed = {p.name for p in inspect.signature(target).parameters.values() if p.default is p.empty}
    given = ({"spec": SPEC} if "spec" in needed else {}) | given
    many = {p.name for p in inspect.signature(target).parameters.values() if p.kind is p.VAR_POSITIONAL}
    return (
        thing(*(each for name in many & given.keys() for each in given[name]))
        if many & given.keys()
        else thing(**given)
    )


def _legal_value(hint: Any) -> Any:
    return in_form(hint, 1) if number_in(hint) else "x"


def meet_callables(place: Place, things: Iterator[tuple[str, Any, Callable[[dict[str, Any]], Any]]]) -> None:
    """Give every parameter of callables every kind of value."""
    for label, thing, call in things:
        for name, (hint, default) in parameters_of(thing).items():
            place.meet(f"{label}.{name}", hint, default, lambda value, name=name, call=call: call({name: value}))


def environments() -> Iterator[tuple[str, Any, Callable[[dict[str, Any]], Any]]]:
    """Yield what makes each environment whose library is installed."""
    from torchrl_marl_offline.envs import list_tasks
    from torchrl_marl_offline.envs.factory import FAMILIES, _tasks_of

    paths = {}
    for task, status in list_tasks().items():
        family, _, name = task.partition("/")
        if status == "installed" and family in FAMILIES:  # not those that somebody registered
            paths.setdefault(_tasks_of(FAMILIES[family])[name], task)
    for path in paths:
        module, _, attribute = path.partition(":")
        thing = getattr(importlib.import_module(f"torchrl_marl_offline.envs.{module}"), attribute)
        yield thing.__qualname__, thing, lambda given, thing=thing: thing(**given)


def readers() -> Iterator[tuple[str, Any, Callable[[dict[str, Any]], Any]]]:
    """Yield the readers of formats."""
    from torchrl_marl_offline.data.formats.readers import READERS

    for thing in [each for reader in READERS.values() for each in (reader.read, reader.open) if each is not None]:
        yield thing.__qualname__, thing, lambda given, thing=thing: thing(**given)


def meet_methods(place: Place) -> None:
    """Give every setting of every algorithm every kind of value."""
    from torchrl_marl_offline.algorithms import ALGORITHMS

    for algorithm, builder in ALGORITHMS.items():
        for name, (hint, default) in parameters_of(builder).items():
            place.meet(
                f"{algorithm}.{name}",
                hint,
                default,
                lambda value, name=name, algorithm=algorithm: marl.make_loss(
                    SPEC, algorithm=algorithm, **{name: value}
                ),
            )


def meet_studies(place: Place, folder: Path) -> None:
    """Give every key of a study file every kind of value."""
    from torchrl_marl_offline.algorithms import ALGORITHMS, settings_of
    from torchrl_marl_offline.study.runs import expand
    from torchrl_marl_offline.study.settings import (
        EvaluationSettings,
        StudySettings,
        read_study,
        run_hints,
    )
    from torchrl_marl_offline.study.sources import DatasetSource

    file = folder / "study.toml"

    def read(table: str, name: str, value: Any, algorithm: str = "recipe") -> None:
        own = {
            "study": "",
            "evaluation": "",
            "datasets.a": 'task = "games/xor"\n',
            "methods.m": f'algorithm = "{algorithm}"\n',
        }
        own[table] = own[table] * (name != "algorithm") + f"{name} = {toml(value)}\n"
        file.write_text("".join(f"[{key}]\n{text}" for key, text in own.items()))
        expand(read_study(file))

    tables = {"study": StudySettings, "evaluation": EvaluationSettings, "datasets.a": DatasetSource}
    for table, kind in tables.items():
        for name, (hint, default) in parameters_of(kind).items():
            place.meet(f"[{table}].{name}", hint, default, lambda value, t=table, n=name: read(t, n, value))
    for name, hint in run_hints().items():
        algorithm = next((key for key in ALGORITHMS if name in settings_of(key)), "recipe")
        hint = parameters_of(ALGORITHMS[algorithm]).get(name, (hint,))[0]
        place.meet(f"[methods.m].{name}", hint, None, lambda value, n=name, a=algorithm: read("methods.m", n, value, a))


def toml(value: Any) -> str:
    """Write a value as TOML has it."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, float | np.floating):
        return "nan" if np.isnan(value) else "inf"
    return json.dumps(value)


class Refused(ValueError):
    """What a command said before it ended."""


def said_by(run: Callable[[], Any]) -> None:
    """Run a command and raise what it said on stderr where its status is 1 or 2.

    Raises:
        Refused: the command refused its arguments.
        RuntimeError: it ended otherwise.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            status = run()
    except SystemExit as end:
        status = end.code
    if status not in (1, 2):
        raise RuntimeError(f"status {status}")
    raise Refused(said.getvalue().strip())


def parsers() -> dict[str, tuple[Callable[[list[str]], Any], argparse.ArgumentParser, list[str]]]:
    """Return the commands: name -> what runs its arguments, its parser, and arguments that it must have."""
    found = {}
    for name in COMMANDS:
        module = importlib.import_module(f"torchrl_marl_offline.commands.{name}")
        parser = module.make_parser()
        branches = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        parts = {(c,): p for c, p in branches[0].choices.items()} if branches else {(): parser}
        if name == "train":  # whose options are those of every algorithm, and the settings of make_loss
            parts = {("recipe",): branches[0].choices["recipe"]}
        for words, branch in parts.items():
            needed = [*words, *("nowhere" for a in branch._actions if not a.option_strings and a.nargs != "?")]
            found[" ".join((name, *words))] = (module.main, branch, needed)
    return found


def meet_commands(place: Place) -> None:
    """Give every number option of every command every kind of value."""
    for command, (run, parser, needed) in parsers().items():
        for action in parser._actions:
            hint = getattr(action.type, "hint", None)
            if action.type in (int, float):
                place.bare.append(f"{command}.{action.dest}")
            if hint is not None:
                flag = action.option_strings[-1]
                place.meet(
                    f"{command}.{action.dest}",
                    hint,
                    action.default,
                    lambda value, run=run, flag=flag, needed=needed: said_by(lambda: run([*needed, f"{flag}={value}"])),
                    as_text=True,
                )


def meet_examples(place: Place, *, through_parser: Sequence[str]) -> None:
    """Give every number option of every example every kind of value.

    Args:
        place: where it is counted.
        through_parser: the kinds that are typed; others are given to what checks the settings that were parsed, which
            takes a hundredth of the time.
    """
    from torchrl_marl_offline.commands.script_settings import check_settings, parse_settings, plain_errors

    typed = [str(KINDS[kind]) for kind in through_parser]

    sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
    for script in EXAMPLES:
        kind = importlib.import_module(script).Args
        presets = {"quick": {}, "paper": {}}

        def give(name: str, value: Any, kind: type = kind, presets: dict = presets) -> None:
            with plain_errors():
                if words(value)[0] in typed:
                    flag = "--" + name.replace("_", "-")
                    parse_settings(kind, presets=presets, arguments=[flag, *words(value)])
                else:
                    check_settings(kind, replace(kind(), **{name: value}))

        for name, (hint, default) in parameters_of(kind).items():
            label = f"{script}.{name}"
            place.meet(label, hint, default, lambda v, n=name, g=give: said_by(lambda: g(n, v)), as_text=True)


def words(value: Any) -> list[str]:
    """Write a value as it stands on a command line."""
    return [str(each) for each in value] if isinstance(value, list | tuple) else [str(value)]


def walk(folder: Path, *, through_parser: Sequence[str] = tuple(KINDS)) -> dict[str, Place]:
    """Return what was found in every place.

    Args:
        folder: for study files.
        through_parser: see :func:`meet_examples`.
    """
    places: dict[str, Place] = {}

    def place(name: str) -> Place:
        return places.setdefault(name, Place())

    meet_callables(place("public functions and classes"), public_callables())
    meet_callables(place("environments"), environments())
    meet_callables(place("readers"), readers())
    meet_methods(place("settings of make_loss"))
    meet_studies(place("keys of study files"), folder)
    meet_commands(place("options of commands"))
    meet_examples(place("options of examples"), through_parser=through_parser)
    return places


def table(places: Mapping[str, Place]) -> str:
    """Return the table of RESULTS.md."""
    header = (
        "place",
        "numbers",
        "bools, words, functions",
        "wrong values",
        "refused",
        "taken",
        "tracebacks",
    )
    rows = [
        (name, p.parameters, p.words, p.tried, p.refused, len(p.taken), len(p.tracebacks)) for name, p in places.items()
    ]
    rows.append(("all", *(sum(row[index] for row in rows) for index in range(1, 7))))
    return markdown(header, rows)


def main() -> None:
    """Walk, and print the table and whatever is wrong."""
    script_parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        places = walk(Path(folder))
    print(table(places))
    for name, found in places.items():
        for word in ("bare", "taken", "tracebacks"):
            for line in getattr(found, word):
                print(f"{name}: {word}: {line}")
    signed = sorted(set().union(*(found.signed for found in places.values())))
    print(f"\nBelow 0 may be: {', '.join(signed)}.")


if __name__ == "__main__":
    run_script(main)
