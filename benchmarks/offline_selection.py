"""What is lost by choosing a study's policy from its data alone, instead of by what it earns in the simulator?

    python benchmarks/offline_selection.py examples/studies/recipe_fig7_small.toml

Of a study that was run, and on each dataset and for each training seed apart: all methods and settings compete with
their last policies. Estimators (learned models, fitted Q evaluation) see the dataset and no simulator; the truth is the
mean of the study's own evaluation. *Lost* is how much less the first choice earns than the best of the same seed earns,
in normalized units where the data has them (else returns); beside it stands what is lost by a choice at random (the
mean of all), and by choosing the setting that is best by the simulator with the *other* seeds.

The policies learned from all episodes of the data, so the estimators judge on episodes that policies have seen.

Arithmetic, for each dataset and seed: by models 5 models of 4,000 updates of 256 rows, about a minute of one core for
60 policies; by fitted Q evaluation 5 resamples x 4,000 updates of 64 rows of each policy's critics, about 5 minutes.
Resumable: finished jobs lie in ``--results``.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas
from arguments import ScriptError, as_count, as_few, as_file, run_script, script_parser
from common import machine, run_jobs
from measuring import markdown, with_interval
from offline_evaluation import spearman
from studies import as_study, finished_results, over_seeds

from torchrl_marl_offline import compare_offline
from torchrl_marl_offline.study import Plan, read_study
from torchrl_marl_offline.study.table import DATA
from torchrl_marl_offline.suites.suite_scores import policy_of

METHODS = ("model", "fqe")
Row = dict[str, Any]


def judge(study: str, dataset: str, by: str, gamma: float, policies: Mapping[str, str], content: str) -> Row:
    """Return the estimated discounted return of every policy, by name; ``content`` tells equal paths apart."""
    read = read_study(Path(study))
    source = next(source for source in read.datasets if source.name == dataset)
    data = source.load(read.settings.output / DATA)
    began = time.process_time()
    found = compare_offline(dict(policies), data, by=[by], gamma=gamma)
    check = found.calibration if by == "fqe" else found.model_calibration
    return {
        "estimates": {name: estimate.mean for name, estimate in found.estimates[by].items()},
        "passed": None if check is None else bool(check.passed),
        "seconds": time.process_time() - began,
    }


def discount_of(plan: Plan, dataset: str) -> float:
    """Return the discount that the runs on a dataset have.

    Raises:
        ScriptError: they have none, or several.
    """
    gammas = {run.settings["gamma"] for run in plan.runs if run.dataset == dataset and "gamma" in run.settings}
    if len(gammas) != 1:
        has = f"have several discounts, {sorted(gammas)}" if gammas else "have no discount, as imitation has none"
        raise ScriptError(f"The runs on {dataset} {has}; returns are estimated with one that runs on the data share.")
    return gammas.pop()


def checksum(files: Mapping[str, str]) -> str:
    """Return what the files of policies hold, in a word."""
    found = hashlib.sha256()
    for name, file in sorted(files.items()):
        found.update(name.encode() + b"\0" + Path(file).read_bytes())
    return found.hexdigest()[:16]


def last_policies(frame: pandas.DataFrame, output: Path) -> pandas.DataFrame:
    """Return the last evaluation of every finished run that kept its policy: a row a run, with its file.

    Args:
        frame: the study's table.
        output: its folder.
    """
    frame = frame[frame["finished"] & (frame["evaluator"] == "mode")].sort_values("step")
    last = frame.groupby("run", as_index=False, sort=True).tail(1).copy()
    last["file"] = [policy_of(output, row) for row in last.to_dict("records")]
    is_normalized = "normalized" in last and last["normalized"].notna().all()
    last["score"] = last["normalized"] if is_normalized else last["return"]
    last["setting"] = [run.rpartition("--seed=")[0].partition("--")[2] for run in last["run"]]
    return last[last["file"].notna() & last["score"].notna()]


def losses(scores: Mapping[str, Mapping[int, float]], seed: int, estimates: Mapping[str, float]) -> Row:
    """Return what choices lose to the best policy of a training seed.

    Args:
        scores: setting -> training seed -> what its policy earns.
        seed: whose policies compete.
        estimates: setting -> estimate, of those policies.
    """
    own = {name: scores[name][seed] for name in estimates}
    best = max(own.values())
    first = max(estimates, key=lambda name: estimates[name])
    others = {name: [value for other, value in scores[name].items() if other != seed] for name in own}
    known = {name: sum(values) / len(values) for name, values in others.items() if values}
    row = {
        "best": best,
        "chosen": first,
        "lost": best - own[first],
        "lost at random": best - sum(own.values()) / len(own),
        "spearman": spearman([own[name] for name in estimates], list(estimates.values())),
    }
    return row | ({"lost by other seeds": best - own[max(known, key=lambda name: known[name])]} if known else {})


def report(rows: Sequence[Row]) -> str:
    """Return a table with a row for each dataset and estimator, and their means."""
    lines = []
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["dataset"], row["by"]), []).append(row)
        groups.setdefault(("all", row["by"]), []).append(row)
    for (dataset, by), found in sorted(groups.items(), key=lambda item: (item[0][0] == "all", item[0])):
        cells = []
        for name in ("best", "lost", "lost at random", "lost by other seeds", "spearman"):
            # policies that all earn the same have no ranks
            cells.append(_interval([row[name] for row in found if math.isfinite(row.get(name, math.nan))]))
        checks = [row["passed"] for row in found if row["passed"] is not None]
        lines.append([dataset, by, len(found), *cells, f"{sum(checks)} of {len(checks)}" if checks else ""])
    header = ["dataset", "by", "cases", "best", "lost", "at random", "by other seeds", "rank correlation", "check"]
    return markdown(header, lines)


def _interval(values: Sequence[float]) -> str:
    return with_interval(over_seeds(values), 2) if values else ""


def main() -> None:
    """Judge what a study trained, and print what choosing by the data loses."""
    parser = script_parser(__doc__)
    parser.add_argument("study", type=as_study, help="a study file whose runs are finished")
    parser.add_argument("--by", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=as_count, nargs="+", help="training seeds; by default all")
    parser.add_argument("--workers", type=as_few, default=1)
    parser.add_argument("--results", type=as_file, default=Path("runs/offline_selection.jsonl"))
    args = parser.parse_args()
    output = args.study.settings.output
    plan, frame = finished_results(parser, args.study)
    last = last_policies(frame, output)
    if last.empty:
        parser.error(f"no finished run in {output} has a policy and an evaluation by mode; such are compared.")
    if unknown := sorted(set(args.seeds or ()) - set(last["seed"])):
        parser.error(f"--seeds {unknown[0]}: no finished run has it; there are {sorted(map(int, set(last['seed'])))}.")
    jobs, cases = [], []
    scores: dict[str, dict[str, dict[int, float]]] = {}
    for dataset, of_dataset in last.groupby("dataset", sort=True):
        own_scores = scores.setdefault(dataset, {})
        for row in of_dataset.to_dict("records"):
            own_scores.setdefault(row["setting"], {})[int(row["seed"])] = row["score"]
        for seed, own in of_dataset.groupby("seed", sort=True):
            if args.seeds is not None and seed not in args.seeds:
                continue
            files = {row["setting"]: str(row["file"]) for row in own.to_dict("records")}
            about = {"study": str(args.study.file), "dataset": dataset, "gamma": discount_of(plan, dataset)}
            about |= {"policies": files, "content": checksum(files)}
            for by in dict.fromkeys(args.by):
                jobs.append(about | {"by": by})
                cases.append((dataset, int(seed), by))
    rows = []
    finished = run_jobs(judge, jobs, workers=args.workers, results=args.results)
    for (dataset, seed, by), found in zip(cases, finished):
        lost = losses(scores[dataset], seed, found["estimates"])
        rows.append({"dataset": dataset, "by": by, "passed": found["passed"]} | lost)
    print(machine())
    print(report(rows))
    for row in rows:
        print(f"- {row['dataset']}, {row['by']}: chose {row['chosen']}")


if __name__ == "__main__":
    run_script(main)
