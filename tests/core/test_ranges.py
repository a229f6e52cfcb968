"""Legal ranges: written once at the parameter, refused in one sentence wherever the number comes from."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pytest
import torch

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.ranges import (
    COUNT,
    INCREASING,
    LEARNING_RATE,
    OPEN_UNIT,
    POSITIVE,
    REAL,
    SEED,
    UNIT,
    WIDTHS,
    AtMost,
    Range,
    argument,
    option_of,
)

if TYPE_CHECKING:
    from nowhere import Unknown

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SIGNED = {
    *(
        "action_bounds",
        "action_high",
        "action_low",
        "bounds",
        "centre",
        "loc",
        "sampler_loc",
        "offset",
        "observation_norm",
        "state_norm",
    ),  # places
    *("data_mean", "levels", "max_next_value", "random_return"),  # returns and values
    "goals",  # places in the plane
    *("deadline", "exponent_range"),
}
"""Parameters that may be below 0."""

NAN, INF = float("nan"), float("inf")


@checked
def play(
    steps: Annotated[int, COUNT] = 1,
    *,
    hidden: Annotated[Sequence[int], WIDTHS] = (8,),
    lr: Annotated[float | Sequence[float], LEARNING_RATE] = 0.1,
    scale: Annotated[float | Literal["learned"], POSITIVE] = "learned",
    pair: Annotated[tuple[float, float], UNIT] = (0.0, 1.0),
    threads: Annotated[int | None, COUNT] = None,
    profile: bool | Annotated[int, COUNT] = False,
    chances: Annotated[dict[str, float], UNIT] | None = None,
    policy: Callable[[int], int] | Annotated[int, COUNT] = len,
    other: Unknown | None = None,
    anything: dict[str, Any] | Literal["auto"] = "auto",
    signed: Annotated[float, REAL] = 0.0,
    flag: bool = False,
    word: Literal["a", "b", "c"] = "a",
    rising: Annotated[tuple[float, float] | None, REAL, INCREASING] = None,
    warmup: Annotated[int, COUNT, AtMost("steps")] = 1,
) -> str:
    return "played"


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0."),
        ({"steps": True}, "steps must be a whole number, got True."),
        ({"steps": 2.0}, "steps must be a whole number, got 2.0."),
        ({"steps": NAN}, "steps must be a whole number, got nan."),
        ({"steps": None}, "steps must be a whole number, got None."),
        ({"steps": 10**5000}, "steps must be at most 1,000,000,000,000, got a number of 16610 bits."),
        ({"steps": np.int64(0)}, "steps must be at least 1, got 0."),
        ({"steps": np.bool_(True)}, "steps must be a whole number, got np.True_."),
        ({"hidden": [8, 0]}, "hidden must be at least 1, got 0."),
        ({"hidden": 8}, "hidden must be a list of numbers, got 8."),
        ({"hidden": "88"}, "hidden must be a list of numbers, got '88'."),
        ({"hidden": [10**6]}, "hidden must be at most 16,384, got 1000000."),
        ({"lr": [0.1, NAN]}, "lr must be above 0, got nan."),
        ({"lr": INF}, "lr must be finite, got inf."),
        ({"lr": "0.1"}, "lr must be a number or a list of numbers, got '0.1'."),
        ({"lr": torch.tensor(-1.0)}, "lr must be above 0, got -1.0."),
        ({"scale": 0}, "scale must be above 0, got 0."),
        ({"scale": "soft"}, "scale must be a number or 'learned', got 'soft'."),
        ({"pair": (0.0, 2.0)}, "pair must lie between 0 and 1, got 2.0."),
        ({"pair": (0.0,)}, "pair must be a list of 2 values, got (0.0,)."),
        ({"profile": 0}, "profile must be at least 1, got 0."),
        ({"chances": {"a": 3}}, "chances must lie between 0 and 1, got 3."),
        ({"policy": 0}, "policy must be at least 1, got 0."),
        ({"flag": "no"}, "flag must be True or False, got 'no'."),
        ({"flag": 1}, "flag must be True or False, got 1."),
        ({"flag": None}, "flag must be True or False, got None."),
        ({"word": "d"}, "word must be 'a', 'b' or 'c', got 'd'."),
        ({"policy": "len"}, "policy must be a function or a whole number, got 'len'."),
        ({"rising": (1, 0)}, "rising must be two rising numbers, got (1, 0)."),
        ({"rising": (1.0, 1.0)}, "rising must be two rising numbers, got (1.0, 1.0)."),
        ({"steps": 3, "warmup": 4}, "warmup must be at most steps (3), got 4."),
        ({"warmup": 2}, "warmup must be at most steps (1), got 2."),
        ({"signed": -1e300}, "signed must be at least -1,000,000,000,000, got -1e+300."),
    ],
)
@pytest.mark.fault("3.6")
def test_a_number_outside_its_range_is_refused_in_one_sentence(given, sentence):
    with pytest.raises(ValueError) as error:
        play(**given)
    assert str(error.value) == sentence


@pytest.mark.parametrize(
    "given",
    [
        {"steps": np.int64(3), "lr": np.float32(0.1)},
        {"steps": torch.tensor(3), "lr": [1, 0.5], "hidden": np.array([4, 4])},
        {"scale": "learned", "threads": None, "profile": True, "chances": {"a": 0}, "other": "anything"},
        {"flag": np.bool_(True), "word": "c", "rising": (-1, 1), "steps": 4, "warmup": 4},
        {"flag": torch.tensor(True), "rising": None},
        {"hidden": (), "signed": -3, "policy": print, "anything": {"a": 1, "b": None}},
    ],
)
def test_every_legal_form_of_a_number_is_taken(given):
    assert play(**given) == "played"


def test_a_wrong_call_keeps_python_s_own_sentence():
    with pytest.raises(TypeError, match="unexpected keyword argument 'nope'"):
        play(nope=1)


def test_a_dataclass_and_a_subclass_of_it_are_checked():
    @checked
    @dataclass(frozen=True)
    class Rule:
        expectile: Annotated[float, OPEN_UNIT] = 0.5

    class Other(Rule):
        pass

    for kind in (Rule, Other):
        with pytest.raises(ValueError, match=r"expectile must lie between 0 and 1, both excluded, got 1\."):
            kind(1)
    assert Rule(0.3) == Rule(expectile=0.3)


@pytest.mark.parametrize(
    ("legal", "words"),
    [
        (REAL, "finite"),
        (POSITIVE, "above 0"),
        (COUNT, "at least 1"),
        (UNIT, "between 0 and 1"),
        (OPEN_UNIT, "between 0 and 1, both excluded"),
        (Range(0, 1, above=True), "above 0 and at most 1"),
        (Range(high=3, below=True), "below 3"),
    ],
)
def test_a_range_says_itself_in_words(legal, words):
    assert str(legal) == words


@pytest.mark.fault("3.6")
def test_every_number_of_the_library_is_refused_outside_its_range_in_one_sentence(tmp_path, monkeypatch):
    """Functions, classes, environments, readers, settings of methods, study files, commands and examples."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    places = importlib.import_module("ranges").walk(tmp_path, through_parser=("NaN", "a string"))
    for name, found in places.items():
        assert (found.bare, found.taken, found.tracebacks) == ([], [], []), name
        assert found.refused == found.tried > 0
    assert sum(found.parameters for found in places.values()) > 500
    assert sum(found.words for found in places.values()) > 300
    signed = set().union(*(found.signed for found in places.values()))
    assert signed <= SIGNED, f"say why these may be below 0: {signed - SIGNED}"


def test_an_option_of_a_command_has_the_range_of_the_parameter_that_it_becomes():
    read = argument(option_of(play, "steps"))
    assert read("3") == 3
    for text, sentence in (("0", "must be at least 1, got 0"), ("1.5", "must be a whole number, got '1.5'")):
        with pytest.raises(argparse.ArgumentTypeError, match=sentence):
            read(text)
    assert argument(Annotated[float, SEED])("1") == 1.0


@dataclass(frozen=True)
@checked
class Played:
    episodes: Annotated[int, COUNT] = 10
    rates: Annotated[tuple[float, ...], LEARNING_RATE] = (0.1,)


@checked
def played(episodes: Annotated[int, COUNT] = 10, *rates: Annotated[float, LEARNING_RATE], last: object = None) -> tuple:
    return episodes, rates, last


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.array])
def test_scalars_of_numpy_are_kept_as_numbers_of_python(kind: Callable) -> None:
    """As a checkpoint has to keep them: one with a scalar of NumPy could not be loaded."""
    made = Played(kind(3), rates=(np.float64(0.5), np.float32(0.25), 1.0))
    assert made == Played(3, (0.5, 0.25, 1.0))
    assert type(made.episodes) is int and {type(rate) for rate in made.rates} == {float}
    episodes, rates, last = played(kind(3), np.float64(0.5), last=kind(4))
    assert type(episodes) is int and [type(rate) for rate in rates] == [float]
    assert type(last) is type(kind(4))  # of which nothing is declared
    tensor = torch.tensor(3)
    assert played(episodes=tensor)[0] is tensor  # a learning rate that a graph captures stays one
