from __future__ import annotations

import importlib.util
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas
import processes
import pytest
import torch
from study_toys import (
    STUDY,
    Inline,
    quietly,
    train_and_always_die,
    train_and_die,
    train_and_fail,
    train_toy,
    write_study,
)

from torchrl_marl_offline.algorithms.algorithm import ALGORITHMS
from torchrl_marl_offline.commands.study import main
from torchrl_marl_offline.study import Machine, StudyError, read_results, read_study, run_study, runner
from torchrl_marl_offline.study.classes_of_main import check_workers_know_classes
from torchrl_marl_offline.study.jobs import Job, job_state, run_job
from torchrl_marl_offline.study.plan import Plan
from torchrl_marl_offline.study.progress import StudyProgress, duration
from torchrl_marl_offline.study.runner import make_jobs, make_plan
from torchrl_marl_offline.study.study_report import write_study_report

HERE = Path(__file__).parents[1] / "toys"
SCRIPT = """
import sys
from pathlib import Path
from study_toys import train_slowly
from torchrl_marl_offline.study import Machine, run_study
if __name__ == "__main__":
    outcome = run_study(sys.argv[1], machine=Machine(workers=2, threads=1), train=train_slowly)
    sys.exit(130 if outcome.interrupted else 0)
"""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> pandas.DataFrame:
    outcome = quietly(write_study(tmp_path_factory.mktemp("undisturbed")))
    assert (outcome.finished, outcome.remaining, outcome.failed, outcome.interrupted) == (5, 0, {}, False)
    return read_results(outcome.table.parent)


def same(table: pandas.DataFrame, other: pandas.DataFrame) -> None:
    pandas.testing.assert_frame_equal(table, other, check_exact=True)


def jobs_of(file: Path) -> list[Job]:
    study = read_study(file)
    return make_jobs(study, make_plan(study, Machine()), Machine())


def test_the_table_has_a_row_for_each_evaluation(undisturbed):
    assert len(undisturbed) == 15 * 4 and set(undisturbed["step"]) == {10, 20, 30, 40}
    keys = ["dataset", "method", "run", "evaluator", "step"]
    assert undisturbed.equals(undisturbed.sort_values(keys, ignore_index=True))
    assert not undisturbed.duplicated(keys).any()
    row = undisturbed[undisturbed["run"] == "spread--mix-vdn--temperature=3--seed=2"].iloc[-1]
    expected = {"study": "toys", "dataset": "spread", "method": "mix-vdn", "seed": 2, "temperature": 3.0, "step": 40}
    assert expected.items() <= row.to_dict().items()
    assert row["hidden"] == "16" and row["finished"] and not row["diverged"] and pandas.isna(row["diverged_step"])
    assert [name for name in undisturbed.columns if "second" in name or "time" in name] == ["time_limits"]
    cloning = undisturbed[undisturbed["method"] == "cloning"]
    assert cloning["temperature"].isna().all() and cloning["decomposition"].isna().all()


def test_a_study_goes_on_where_it_was_left(tmp_path, undisturbed):
    file = write_study(tmp_path)
    first, second = Inline(most=2), Inline()
    outcome = quietly(file, backend=first)
    assert (outcome.finished, outcome.remaining) == (2, 3)
    partial = read_results(tmp_path / "out")
    assert len(partial) == 2 * 3 * 4
    assert quietly(file, backend=second).remaining == 0
    assert set(first.seen).isdisjoint(second.seen) and len(first.seen + second.seen) == 5
    same(read_results(tmp_path / "out"), undisturbed)
    assert quietly(file, backend=second).finished == 5 and len(second.seen) == 3  # nothing is done twice
    same(read_results(tmp_path / "out"), undisturbed)


@pytest.mark.fault("3.14")
@pytest.mark.parametrize(
    ("cores", "torch_has", "workers", "asked", "expected"),
    [(16, 1, 1, 0, 1), (16, 16, 1, 0, 16), (16, 16, 4, 0, 4), (16, 2, 4, 0, 2), (2, 2, 8, 0, 1), (16, 1, 4, 3, 3)],
)
def test_a_worker_has_its_share_of_the_cores_and_no_more_threads_than_torch_has_here(
    tmp_path, monkeypatch, cores, torch_has, workers, asked, expected
):
    monkeypatch.setattr(runner, "_cores", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: torch_has)  # what OMP_NUM_THREADS says, or the user
    study, machine = read_study(write_study(tmp_path)), Machine(workers=workers, threads=asked)
    assert {job.threads for job in make_jobs(study, make_plan(study, machine), machine)} == {expected}


def test_a_part_of_a_study(tmp_path):
    outcome = quietly(write_study(tmp_path), only=["cloning"])
    assert (outcome.finished, outcome.remaining) == (1, 0)
    assert set(read_results(tmp_path / "out")["method"]) == {"cloning"}


def test_the_deadline_saves_and_says_what_remains(tmp_path, undisturbed):
    file, said = write_study(tmp_path), []
    outcome = quietly(file, machine=Machine(hours=1e-9), say=said.append)
    assert (outcome.finished, outcome.remaining, outcome.interrupted) == (0, 5, False)
    assert "The time is over, everything is saved: 0 of 15 runs, 0 of 600 updates; go on with" in said[1]
    late = replace(jobs_of(file)[0], deadline=time.time() - 1)
    assert run_job(late, train_toy).state == "begun" and job_state(late.folder) == "begun"
    assert quietly(file).remaining == 0
    same(read_results(tmp_path / "out"), undisturbed)


def test_a_failure_does_not_stop_the_others(tmp_path, capsys, undisturbed):
    file, said = write_study(tmp_path), []
    outcome = quietly(file, train=train_and_fail, say=said.append)
    assert set(outcome.failed) == {"spread--mix-vdn--00", "spread--mix-vdn--01"} and outcome.finished == 3
    traceback = tmp_path / "out/jobs/spread--mix-vdn--00/failure.txt"
    assert "ValueError: this one cannot work" in traceback.read_text() and "train_and_fail" in traceback.read_text()
    assert f"ValueError: this one cannot work (traceback: {traceback})" in capsys.readouterr().out
    assert said[1].startswith("2 populations failed: spread--mix-vdn--00, spread--mix-vdn--01")
    assert job_state(traceback.parent) == "failed"
    assert quietly(file).failed == {} and not traceback.exists()  # the next run tries again
    same(read_results(tmp_path / "out"), undisturbed)


def test_one_runner_at_a_time(tmp_path):
    file = write_study(tmp_path)

    class Another(Inline):
        def run(self, jobs, train, *, tick):
            with pytest.raises(StudyError, match="Another process is running the study"):
                quietly(file)
            return super().run(jobs, train, tick=tick)

    assert quietly(file, backend=Another()).remaining == 0


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced(tmp_path, undisturbed):
    file = write_study(tmp_path)
    outcome = run_study(file, machine=Machine(workers=2, threads=1), train=train_and_die, progress=False)
    assert (outcome.remaining, outcome.failed) == (0, {})
    assert (tmp_path / "out/jobs/spread--mix-mixer--00/died").exists()
    same(read_results(tmp_path / "out"), undisturbed)


@pytest.mark.slow
def test_ctrl_c_and_a_kill_of_the_runner_lose_nothing(tmp_path, undisturbed):
    file = write_study(tmp_path)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    jobs = jobs_of(file)

    def start() -> processes.Process:
        environment = os.environ | {"PYTHONPATH": str(HERE), "PYTHONWARNINGS": "error"}
        return processes.start(script, file, env=environment, stderr=None)

    def wait_for(condition) -> None:
        until = time.monotonic() + 120
        while not condition():
            assert time.monotonic() < until
            time.sleep(0.05)

    runner = start()
    wait_for(lambda: job_state(jobs[0].folder) == "begun")
    runner.send_signal(signal.SIGINT)
    told, _ = runner.communicate(timeout=120)
    assert runner.returncode == 130
    assert "Interrupted, everything is saved: " in told and "go on with the same command" in told
    states = [job_state(job.folder) for job in jobs]
    assert "begun" in states and "new" in states and "failed" not in states

    runner = start()
    finished = states.count("finished")
    wait_for(lambda: [job_state(job.folder) for job in jobs].count("finished") > finished)
    runner.kill()
    runner.communicate()
    assert quietly(file).remaining == 0  # waits for orphaned workers, which save themselves
    same(read_results(tmp_path / "out"), undisturbed)


def test_progress_counts_what_files_tell(tmp_path):
    jobs = jobs_of(write_study(tmp_path))
    run_job(jobs[0], train_toy)
    run_job(replace(jobs[1], deadline=0.0), train_toy)
    progress = StudyProgress(jobs, show=False)
    assert (progress.start, progress.total, progress.finished_runs, progress.runs) == (3 * 40, 15 * 40, 3, 15)
    assert progress.line() == "3 of 15 runs, 120 of 600 updates"
    run_job(jobs[1], train_toy)
    progress.look(now=True)
    assert progress.finished_runs == 6 and progress.rate > 0 and " updates/s, about " in progress.line()
    progress.close()


@pytest.mark.parametrize(("seconds", "words"), [(5, "5 s"), (89, "89 s"), (600, "10 min"), (12_000, "3 h 20 min")])
def test_durations_in_words(seconds, words):
    assert duration(seconds) == words


def test_the_command_line(tmp_path, capsys):
    file = write_study(tmp_path)
    assert main(["plan", str(file)]) == 0
    told = capsys.readouterr().out
    assert "15 runs (3 methods, 1 datasets) in 5 populations, 600 updates" in told and told.count("new") == 5
    assert main(["list", str(file)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 15
    assert Plan.load(tmp_path / "out") is None  # nothing is written by looking
    quietly(file)
    assert main(["list", str(file)]) == 0
    assert capsys.readouterr().out.count("finished  ") == 15
    assert main(["run", str(file)]) == 0  # there is nothing left to train
    assert "All 15 runs are done." in capsys.readouterr().out
    assert main(["report", str(tmp_path)]) == 1
    assert "has no plan.json; name the output folder" in capsys.readouterr().err
    sets = ["omar:mpe/simple_spread/Random", "og_marl:smac_v1/3m/Good"]
    file.write_text(f"datasets = {sets}\n[study]\nseeds = 2\n[methods.mix]\n")
    assert main(["plan", str(file), "--recorded"]) == 0
    told = capsys.readouterr()
    assert "2 runs (1 methods, 1 datasets)" in told.out and "-recorded" in told.out
    assert told.err == "left out, for no such data can be recorded: smac_v1-3m-Good\n"
    file.write_text("[study]\nstep = 3")
    assert main(["run", str(file)]) == 1
    assert capsys.readouterr().err == "error: [study] has an unknown key 'step'; did you mean 'steps'?\n"


@pytest.mark.slow
def test_a_job_that_kills_its_workers_fails_and_the_others_go_on(tmp_path):
    file = write_study(tmp_path)
    machine = Machine(workers=1, threads=1)
    outcome = run_study(file, machine=machine, train=train_and_always_die, only=["cloning", "mix-vdn"], progress=False)
    assert list(outcome.failed) == ["spread--cloning--00"] and outcome.finished == 2
    assert "its worker died 3 times (exit code -9)" in outcome.failed["spread--cloning--00"]
    assert job_state(tmp_path / "out/jobs/spread--cloning--00") == "failed"


def test_a_cluster_with_gpus_that_this_machine_lacks(tmp_path):
    file = write_study(tmp_path, STUDY.replace('device = "cpu"', 'device = "cuda"'))
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(StudyError, match="needs an NVIDIA GPU and a CUDA build of torch"):
        make_plan(read_study(file), Machine())
    with pytest.raises(StudyError, match="say so by --memory"):
        make_plan(read_study(file), Machine(ray="auto"))
    machine = Machine(ray="auto", memory=2**30)
    assert make_jobs(read_study(file), make_plan(read_study(file), machine), machine)[0].device == "cuda:0"


def test_without_its_libraries_a_study_says_so_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "rliable" else object())
    file = write_study(tmp_path)
    for command in (lambda: run_study(file), lambda: write_study_report(tmp_path)):
        with pytest.raises(ImportError, match=r"need rliable; install the extra: pip install .*\[study\]"):
            command()
    assert list(tmp_path.iterdir()) == [file]


def test_an_algorithm_of_main_that_workers_do_not_define_is_refused(tmp_path, monkeypatch):
    jobs = jobs_of(write_study(tmp_path))
    check_workers_know_classes(jobs, import_main=False)
    monkeypatch.setattr(ALGORITHMS["cloning"], "__module__", "__main__")
    name = ALGORITHMS["cloning"].__name__
    with pytest.raises(StudyError, match=f"'cloning' is the class {name} of __main__, which worker .* --import"):
        run_study(tmp_path / "study.toml", progress=False)
    assert not (tmp_path / "out").exists()
    script = tmp_path / "script.py"
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(script), raising=False)
    script.write_text(f"class {name}: pass")
    check_workers_know_classes(jobs, import_main=True)
    script.write_text(f"if __name__ == '__main__':\n    class {name}: pass")
    for import_main in (True, False):
        with pytest.raises(StudyError, match="of __main__"):
            check_workers_know_classes(jobs, import_main=import_main)
