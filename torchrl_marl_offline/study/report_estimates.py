"""What held-out episodes say of a study's runs: estimates, calibration, the regret of choosing by them; as files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torchrl_marl_offline.core.document import Block, Heading, Table, Text
from torchrl_marl_offline.evaluation.statistics import Interval, mean_confidence_interval
from torchrl_marl_offline.study.report_tables import cell_of, latex_interval, latex_text, tabular
from torchrl_marl_offline.study.run_estimates import EstimatedChoice, EstimatedSetting, JobEstimates, RunEstimate
from torchrl_marl_offline.study.scores import RunScore

MOST_WARNINGS = 8
"""Of a dataset that are shown on the page; all are in the JSON file."""


@dataclass(frozen=True)
class Regret:
    """What choosing by estimates costs, by the simulator.

    Attributes:
        best: the setting with the highest score.
        best_score: its mean over seeds.
        chosen_score: that of the setting that the estimates chose.
        regret: the first minus the second, with Student's 95 % interval over seeds; of width 0 where there is one.
    """

    best: str
    best_score: float
    chosen_score: float
    regret: Interval


def regret_of(chosen: str, scores: Iterable[RunScore]) -> Regret | None:
    """Return what a choice costs, from the scores of all settings of one method, dataset and evaluator.

    Settings with fewer seeds than another do not compete; ``None`` where the chosen one is such, or has none.
    """
    groups: dict[str, dict[int, float]] = {}
    for score in scores:
        groups.setdefault(score.setting, {})[score.run.seed] = score.average_of_last
    most = max(map(len, groups.values()), default=0)
    complete = {setting: by_seed for setting, by_seed in groups.items() if len(by_seed) == most}
    if chosen not in complete:
        return None
    means = {setting: sum(by_seed.values()) / most for setting, by_seed in complete.items()}
    best = max(means, key=means.get)
    differences = [value - complete[chosen].get(seed, value) for seed, value in complete[best].items()]
    mean = sum(differences) / most
    interval = mean_confidence_interval(differences) if most > 1 else Interval(mean, mean, mean)
    return Regret(best, means[best], means[chosen], interval)


@dataclass(frozen=True)
class StudyEstimates:
    """All that a study has estimated.

    Attributes:
        by: the word of the estimate; ``None`` where there is none.
        jobs: dataset -> what its jobs found.
        choices: (dataset, method) -> what is chosen.
        runs: name -> estimate.
    """

    by: str | None = None
    jobs: Mapping[str, Sequence[JobEstimates]] = field(default_factory=dict)
    choices: Mapping[tuple[str, str], EstimatedChoice] = field(default_factory=dict)
    runs: Mapping[str, RunEstimate] = field(default_factory=dict)

    def of(self, dataset: str) -> dict[str, EstimatedChoice]:
        """Return method -> choice on a dataset."""
        return {method: choice for (name, method), choice in self.choices.items() if name == dataset}

    def settings(self) -> dict[tuple[str, str], str]:
        """Return (dataset, method) -> the setting that is chosen, in words."""
        return {key: choice.best.setting for key, choice in self.choices.items()}

    def judged(self, dataset: str) -> JobEstimates:
        """Return the job whose calibration stands for the dataset: one that failed, where there is one."""
        jobs = self.jobs[dataset]
        return next((job for job in jobs if job.is_calibrated is False), jobs[0])

    def warnings(self, dataset: str) -> list[str]:
        """Return what speaks against the estimates of a dataset: of all of them, and of the runs that are chosen."""
        told = [warning for job in self.jobs[dataset] for warning in job.warnings]
        for choice in self.of(dataset).values():
            told += [warning for estimate in choice.best.estimates for warning in estimate.warnings]
        return list(dict.fromkeys(told))


def estimates_section(
    found: StudyEstimates, dataset: str, scores: Sequence[RunScore], evaluators: Sequence[str]
) -> list[Block]:
    """Return what a report says of the estimates on a dataset.

    Args:
        found: of the study.
        dataset: its name.
        scores: of all finished runs, by a simulator.
        evaluators: of the scores.
    """
    if not found.jobs.get(dataset):
        return []
    job = found.judged(dataset)
    low, high = job.logged[1:]
    blocks: list[Block] = [Heading(f"Estimated by {found.by} on held-out episodes", 3)]
    blocks.append(
        Text(
            f"Discounted return of an episode (gamma {job.gamma:g}), estimated on episodes that no run is trained on. "
            f"The logged team earned {cell_of(Interval(job.logged[0], low, high))} there; its best held-out episode "
            f"{job.best_of_data:.4g}. Intervals (95 %) are over resamples of the episodes, for the mean of these runs; "
            "the spread of training is beside it, over seeds. Each estimate is of a run's last policy."
        )
    )
    if job.verdict:
        blocks.append(Text(job.verdict, warning=not job.is_calibrated))
    told = found.warnings(dataset)
    blocks += [Text(warning, warning=True) for warning in told[:MOST_WARNINGS]]
    if len(told) > MOST_WARNINGS:
        blocks.append(Text(f"And {len(told) - MOST_WARNINGS} more, in {FILES['json']}.", warning=True))
    choices = found.of(dataset)
    header = ["method", "setting", "seeds", "estimate", "over seeds", "better than logged by", "P(better)"]
    blocks.append(Table(header, [[method, *_cells(choice.best)] for method, choice in choices.items()]))
    blocks += _unclear(choices)
    if any(len(choice.ranking) + len(choice.excluded) > 1 for choice in choices.values()):
        rows = [[method, *_cells(each)] for method, choice in choices.items() for each in choice.ranking]
        rows += [
            [m, each, "", "too few runs that compete", "", "", ""] for m, c in choices.items() for each in c.excluded
        ]
        blocks.append(Table(header, rows, summary="Every setting: estimates, best first"))
    return blocks + _regrets(found, dataset, scores, evaluators)


def _cells(setting: EstimatedSetting) -> list[str]:
    interval, better = setting.pooled()
    gained = cell_of(Interval(better.mean, better.low, better.high))
    over_seeds = cell_of(setting.over_seeds()) if len(setting.runs) > 1 else ""
    cells = [setting.setting, str(len(setting.runs)), cell_of(interval), over_seeds, gained]
    return [*cells, f"{better.probability:.2f}"]


def _unclear(choices: Mapping[str, EstimatedChoice]) -> list[Text]:
    """Say where the best two settings of a method cannot be told apart."""
    told = []
    for method, choice in choices.items():
        if len(choice.ranking) > 1:
            lead = choice.best.lead(choice.ranking[1])
            if not lead.low > 0:
                pair = f"{choice.best.setting} and {choice.ranking[1].setting}"
                told.append(f"{method}: {pair} (the first is better with probability {lead.probability:.2f})")
    return [Text(f"Not to be told apart by these episodes: {'; '.join(told)}.", warning=True)] if told else []


def regrets(
    found: StudyEstimates, dataset: str, scores: Sequence[RunScore], evaluators: Sequence[str]
) -> dict[tuple[str, str], Regret]:
    """Return (evaluator, method) -> what the choice costs, where the simulator knows all settings."""
    result = {}
    for evaluator in evaluators:
        for method, choice in found.of(dataset).items():
            own = [s for s in scores if (s.run.dataset, s.evaluator, s.run.method) == (dataset, evaluator, method)]
            regret = regret_of(choice.best.setting, own) if len({score.setting for score in own}) > 1 else None
            if regret is not None:
                result[evaluator, method] = regret
    return result


def _regrets(found: StudyEstimates, dataset: str, scores: Sequence[RunScore], evaluators: Sequence[str]) -> list[Block]:
    rows = []
    for (evaluator, method), regret in regrets(found, dataset, scores, evaluators).items():
        chosen = found.choices[dataset, method].best.setting
        numbers = f"{regret.chosen_score:.4g}", f"{regret.best_score:.4g}", cell_of(regret.regret)
        rows.append([method, evaluator, chosen, regret.best, *numbers])
    if not rows:
        return []
    text = (
        "The simulator knows what the choice costs. Regret: the score of its best setting minus that of the chosen, by "
        "the average of the last evaluations; intervals are Student's, over seeds. The best setting is chosen by the "
        "very scores that it is shown with, so that the regret is rather too large than too small."
    )
    header = ["method", "played by", f"chosen by {found.by}", "best setting", "score", "best score", "regret"]
    return [Text(text), Table(header, rows)]


# ------------------------------------------------------------------------ files

FILES = {"csv": "estimates.csv", "latex": "estimates.tex", "json": "estimates.json"}


def estimate_rows(found: StudyEstimates) -> list[dict[str, Any]]:
    """Return one row for each dataset and method, of the chosen settings; numbers with all of their digits."""
    rows = []
    for (dataset, method), choice in found.choices.items():
        row = {"dataset": dataset, "method": method, "setting": choice.best.setting, "by": found.by}
        rows.append(row | {"gamma": found.jobs[dataset][0].gamma} | _numbers(choice.best))
        rows[-1]["calibrated"] = found.judged(dataset).is_calibrated
    return rows


def _numbers(setting: EstimatedSetting) -> dict[str, Any]:
    interval, better = setting.pooled()
    row: dict[str, Any] = {"seeds": len(setting.runs)}
    series = {"estimate": interval, "over_seeds": setting.over_seeds(), "gain": better[:3]}
    for name, numbers in series.items():
        row |= {f"{name}{end}": number for end, number in zip(("", "_low", "_high"), numbers)}
    return row | {"improvement": better.probability}


def estimates_latex(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a ``tabular`` for booktabs: a block for each dataset, the best estimate bold."""
    blocks: dict[str, list[list[str]]] = {}
    best = {row["dataset"]: max(r["estimate"] for r in rows if r["dataset"] == row["dataset"]) for row in rows}
    for row in rows:
        failed = " (calibration failed)" if row["calibrated"] is False else ""
        title = f"{row['dataset']}, {row['by']}, gamma {row['gamma']:g}{failed}"
        cells = [latex_interval(row, name) for name in ("estimate", "gain")]
        if row["estimate"] == best[row["dataset"]]:
            cells[0] = f"\\textbf{{{cells[0]}}}"
        words = [latex_text(row["method"]), latex_text(row["setting"]), str(row["seeds"])]
        blocks.setdefault(title, []).append([*words, *cells, f"{row['improvement']:.2f}"])
    told = "estimates from held-out episodes, 95 % intervals over resampled episodes; gain: over the logged team"
    return tabular(told, "llrrrr", ["method", "setting", "seeds", "estimate", "gain", "P(better)"], blocks)


def estimates_form(found: StudyEstimates, scores: Sequence[RunScore], evaluators: Sequence[str]) -> dict[str, Any]:
    """Return all of it, JSON-ready: every dataset with its logged team, calibration, warnings, methods and regrets."""
    form: dict[str, Any] = {"by": found.by, "datasets": {}}
    for dataset in found.jobs:
        job = found.judged(dataset)
        names = ("gamma", "logged", "best_of_data", "verdict", "is_calibrated")
        told = {name: getattr(job, name) for name in names} | {"warnings": found.warnings(dataset)}
        methods = {
            method: {
                "chosen": choice.best.setting,
                "settings": [{"setting": each.setting} | _numbers(each) for each in choice.ranking],
                "excluded": list(choice.excluded),
            }
            for method, choice in found.of(dataset).items()
        }
        for (evaluator, method), regret in regrets(found, dataset, scores, evaluators).items():
            methods[method].setdefault("regret", {})[evaluator] = vars(regret) | {"regret": regret.regret._asdict()}
        form["datasets"][dataset] = told | {"methods": methods}
    return form
