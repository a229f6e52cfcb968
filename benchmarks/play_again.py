"""The last policies of a study's finished runs, played anew in more episodes: narrower intervals without training.

    python benchmarks/play_again.py examples/studies/systems_mpe.toml --episodes 1000

In each run's folder the rows of the last evaluation in ``eval.csv`` are replaced; what the study wrote is kept beside
it as ``eval.first.csv``. Runs of one seed play the same episodes, runs of other seeds others. Runs that diverged stay
as they are. Interrupted, go on with the same command: runs that were played in so many episodes are passed over. The
study's table, ``results.parquet``, is written anew; the scripts that print tables, and ``study report``, show the new
figures. A study that averages its last evaluations (``last_k``) is refused: policies before the last are gone.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from arguments import ScriptError, as_count, run_script, script_parser
from studies import as_study, finished_results
from tqdm import tqdm

from torchrl_marl_offline.evaluation import evaluate, make_simulator
from torchrl_marl_offline.study import Study
from torchrl_marl_offline.study.jobs import job_result
from torchrl_marl_offline.study.plan import job_folder
from torchrl_marl_offline.study.runs import Run
from torchrl_marl_offline.study.table import write_results
from torchrl_marl_offline.study.training import seed_of_evaluation
from torchrl_marl_offline.training import load_policy
from torchrl_marl_offline.training.run.logging import CsvTable

FIRST = "eval.first.csv"
"""The evaluations as the study wrote them."""
AT_ONCE = 500
"""Environments; the episodes depend on their number."""


class Simulators:
    """The environments of a study's datasets, each task's made once."""

    def __init__(self, study: Study, episodes: int) -> None:
        self.study, self.episodes = study, episodes
        self._sources = {source.name: source for source in study.datasets}
        self._known: dict[str, object] = {}

    def of(self, dataset: str):
        """Return the simulator of a dataset's task."""
        source = self._sources[dataset]
        key = json.dumps([source.task, source.source, source.options.get("task_options")])
        if key not in self._known:
            data = source.load(self.study.settings.output / "data")
            self._known[key] = make_simulator(data, num_envs=min(self.episodes, AT_ONCE))
        if self._known[key] is None:
            raise ScriptError(f"{dataset} has no simulator to play in.")
        return self._known[key]


def play(study: Study, run: Run, folder: Path, simulators: Simulators) -> bool:
    """Replace a run's last evaluation; returns whether there was anything to do.

    Args:
        study: of the run.
        run: a finished one.
        folder: of the run.
        simulators: to play in.
    """
    table, steps = CsvTable(folder / "eval.csv"), run.settings["steps"]
    last = [row for row in table.rows if row["step"] == steps]
    if all(row.get("episodes") == simulators.episodes for row in last):  # without a simulator there is no such column
        return False
    policy = load_policy(folder / "policy.pt").policy
    options = {"episodes": simulators.episodes, "seed": seed_of_evaluation(study.evaluation, run)}
    for row in last:
        found = evaluate(policy, simulators.of(run.dataset), mode=row["evaluator"], **options).summary()
        row.update({name: found[name] for name in row if name in found})
    if not (folder / FIRST).exists():
        shutil.copyfile(table.path, folder / FIRST)
    table.truncate(steps)  # which writes the whole table
    return True


def main() -> None:
    """Play what is finished."""
    parser = script_parser(__doc__)
    parser.add_argument("study", type=as_study, help="a study file of which runs are finished")
    parser.add_argument("--episodes", type=as_count, default=1000, help="of each run")
    settings = parser.parse_args()
    study, simulators = settings.study, Simulators(settings.study, settings.episodes)
    plan, _ = finished_results(parser, study)
    if plan.last_k > 1:
        raise ScriptError(
            f"{study.file} averages the last {plan.last_k} evaluations, of which the last policy's alone can be played "
            "again; set [study] last_k = 1."
        )
    todo = []
    for population in plan.populations:
        folder = job_folder(study.settings.output, population)
        result = job_result(folder)
        if result is not None:
            todo += [
                (run, folder / "members" / run.name) for run in population.runs if run.name not in result["diverged"]
            ]
    played = sum(play(study, run, folder, simulators) for run, folder in tqdm(todo, desc="play again", unit="run"))
    write_results(plan, study.settings.output)
    print(f"{played} of {len(todo)} finished runs were played anew, {settings.episodes:,} episodes each")


if __name__ == "__main__":
    run_script(main)
