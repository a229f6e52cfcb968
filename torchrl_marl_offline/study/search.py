"""Successive halving: which runs a search asks for next, by what has been trained.

Nothing but the plan and the files of finished jobs decides, so that a search that was killed goes on as it would have,
and what the plan holds already is never decided again.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torchrl_marl_offline.study.checking import StudyError
from torchrl_marl_offline.study.choosing import SearchSettings
from torchrl_marl_offline.study.runs import Case, Run, cases, check_names, expand, resolve
from torchrl_marl_offline.study.search_space import draw_points
from torchrl_marl_offline.study.settings import Study, run_hints

TrialScores = Callable[[Sequence[Run]], Mapping[str, float] | None]
"""Of a rung's runs: name -> what it is ranked by, NaN where it has none; ``None`` until all have finished."""

MOST_DRAWS = 200
"""Draws for each trial, until so many differ."""


@dataclass(frozen=True)
class Trial:
    """A setting that a search has drawn.

    Attributes:
        number: by which it is known.
        given: the settings that were drawn.
        settings: all settings of a run, as long as the study trains.
    """

    number: int
    given: Mapping[str, Any]
    settings: Mapping[str, Any]


def runs_so_far(study: Study, kept: Sequence[Run], score: TrialScores) -> list[Run]:
    """Return every run that is known by now: those of the file, and of searches the rungs that can be decided.

    Args:
        study: what :func:`~.settings.read_study` read.
        kept: the runs of the plan in the study's folder.
        score: what trials have come to.
    """
    runs = expand(study)
    for case in cases(study):
        if case.ranges:
            own = [run for run in kept if (run.dataset, run.method) == (case.dataset, case.method)]
            runs += _searched(study, case, own, score)
    check_names(runs)
    return runs


def _searched(study: Study, case: Case, kept: Sequence[Run], score: TrialScores) -> Iterator[Run]:
    """Yield the runs of one method on one dataset: rungs, and at the end the chosen setting by the study's seeds."""
    search = study.search
    drawn = draw_trials(case, search)
    by_number, alive = {trial.number: trial for trial in drawn}, [trial.number for trial in drawn]
    sizes, steps = search.sizes(), search.steps(drawn[0].settings["steps"])
    for rung, length in enumerate(steps):
        tried = [_tried(case, by_number[number], rung, length, search) for number in alive]
        yield from itertools.chain(*tried)
        following = rung + 1 if rung + 1 < len(sizes) else None
        decided = list(dict.fromkeys(run.trial for run in kept if run.trial is not None and run.rung == following))
        if not decided:
            found = score([run for runs in tried for run in runs])
            if found is None:
                return
            best = ranked(dict(zip(alive, tried)), found)
            decided = best[: 1 if following is None else sizes[following]]
        alive = decided
        if not alive:
            return
    (chosen,) = alive
    settings = by_number[chosen].settings
    yield from (case.run(settings, case.ranges, seed, trial=chosen, rung=None) for seed in study.settings.seeds)


def _tried(case: Case, trial: Trial, rung: int, steps: int, search: SearchSettings) -> list[Run]:
    try:
        settings = resolve({**case.given, **trial.given, "steps": steps}, case)
    except StudyError as error:
        raise StudyError(f"Rung {rung} of [search] trains for {steps} updates: {error}") from None
    return [case.run(settings, case.ranges, seed, trial=trial.number, rung=rung) for seed in search.seeds]


def draw_trials(case: Case, search: SearchSettings) -> list[Trial]:
    """Return the trials of a method, all of which differ; the same on every dataset.

    Raises:
        StudyError: the ranges do not hold so many.
    """
    points = draw_points(case.ranges, run_hints(), seed=search.seed, name=case.method)
    trials: dict[str, Trial] = {}
    for given in itertools.islice(points, MOST_DRAWS * search.trials):
        settings = resolve({**case.given, **given}, case)
        key = repr(sorted((name, str(settings[name])) for name in case.ranges if name in settings))
        trials.setdefault(key, Trial(len(trials), given, settings))
        if len(trials) == search.trials:
            return list(trials.values())
    remedy = f"ask for {len(trials)}, or try them all in a [grid]" if len(trials) > 1 else "give them more values"
    raise StudyError(
        f"The ranges of {case.method} on {case.dataset} hold {len(trials)} settings, [search] asks for {search.trials} "
        f"trials; {remedy}."
    )


def ranked(trials: Mapping[int, Sequence[Run]], found: Mapping[str, float]) -> list[int]:
    """Return the numbers of the trials, best first: by the mean over their seeds, of equal ones the one drawn first.

    One whose runs have not all a finite value is left out.
    """
    means = {number: sum(found[run.name] for run in runs) / len(runs) for number, runs in trials.items()}
    return sorted((number for number, mean in means.items() if math.isfinite(mean)), key=lambda n: (-means[n], n))


def search_lines(study: Study) -> list[str]:
    """Say of every search of a study how many trials its rungs have, and what they cost."""
    lines = []
    for case in cases(study) if study.search is not None else ():
        if case.ranges:
            sizes, whole = study.search.sizes(), resolve(case.given, case)["steps"]
            steps, seeds = study.search.steps(whole), len(study.search.seeds)
            rungs = ", ".join(f"{size} for {length:,} updates" for size, length in zip(sizes, steps))
            total = seeds * sum(size * length for size, length in zip(sizes, steps))
            lines.append(
                f"search of {case.method} on {case.dataset}: trials {rungs}; {total:,} updates with {seeds} seed(s), "
                f"then {len(study.settings.seeds) * whole:,} of the chosen one"
            )
    return lines
