"""What scripts of ``benchmarks/`` compute beside times; each script's ``--quick`` says whether it runs at all."""

from __future__ import annotations

import itertools
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas
import pytest
import torch
from study_toys import Inline
from tensordict import TensorDict

from torchrl_marl_offline import collect, make_env
from torchrl_marl_offline.algorithms import ALGORITHMS
from torchrl_marl_offline.core.layout import ACTION, ACTION_MASK, OBSERVATION, next_key
from torchrl_marl_offline.envs import LaserWalker, MixedSkill
from torchrl_marl_offline.modules.greedy_actors import make_greedy_actor
from torchrl_marl_offline.study import Machine, run_study
from torchrl_marl_offline.study.runs import Run
from torchrl_marl_offline.study.scores import RunScore
from torchrl_marl_offline.training.run.saved_policies import save_policy

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_the_costs_of_all_algorithms_are_measured_or_the_reason_is_told(script):
    systems = script("systems")
    settings, reasons = systems.possible(systems.SIZES["small"], list(ALGORITHMS))
    assert list(settings) == list(ALGORITHMS) and reasons == {}
    settings, reasons = systems.possible(systems.with_discrete_actions(systems.SIZES["small"]), list(ALGORITHMS))
    assert {*settings, *reasons} == {*ALGORITHMS} and {"recipe", "omar"} <= settings.keys()
    assert reasons["td3_bc"].startswith("td3_bc is for continuous actions")


def test_a_table_of_costs_stands_beside_the_recipe(script):
    systems = script("systems")
    facts = {"algorithm": "recipe", "gflop": 1.0}, {"algorithm": "omar", "gflop": 2.5}
    times = ({"median": 4.0, "p10": 3.0, "p90": 5.0}, {"median": 6.0, "p10": 6.0, "p90": 7.0})
    rows = [row | {"ms": {"as it stands": ms}} for row, ms in zip(facts, times)]
    assert systems.table(rows, ["as it stands"]).splitlines()[2:] == [
        "| recipe | 1.00 | 4.00 (3.00 to 5.00) | 1.00 |",
        "| omar | 2.50 | 6.00 (6.00 to 7.00) | 1.50 |",
    ]
    assert systems.table(rows[1:], ["as it stands"]).endswith("| 6.00 (6.00 to 7.00) |  |")


def test_random_discrete_actions_are_legal(script):
    sizes = script("sizes")
    data = sizes.random_transitions(sizes.with_discrete_actions(sizes.SMALL).spec, 50).data
    assert data[ACTION_MASK].gather(-1, data[ACTION].unsqueeze(-1)).all()
    assert data[ACTION_MASK].shape == (50, 3, 9) and not data[ACTION_MASK].all()
    assert data[next_key(ACTION_MASK)][:-1].equal(data[ACTION_MASK][1:])


def test_the_difference_of_two_runs_by_hand(script):
    one = {"a": torch.tensor([2.0, -4.0]), "b": torch.tensor([[0.25]])}
    other = {"a": torch.tensor([2.5, -4.0]), "b": torch.tensor([[0.125]])}
    assert script("population_equality").difference(one, other) == (0.5, 0.5)  # 0.5 in a; 0.125 / 0.25 in b


def test_the_control_starts_one_ulp_away_in_every_trained_number(script):
    equality = script("population_equality")
    loss = equality.build_loss(equality.SMALL)
    before = {name: p.detach().clone() for name, p in loss.named_parameters()}
    equality.move_by_one_ulp(loss, seed=0)
    above = below = 0
    for name, p in loss.named_parameters():
        if not p.requires_grad:
            assert p.equal(before[name])
            continue
        up, down = (before[name].nextafter(torch.tensor(end)) for end in (torch.inf, -torch.inf))
        assert ((p == up) | (p == down)).all()
        above, below = above + (p == up).sum().item(), below + (p == down).sum().item()
    assert above / (above + below) == pytest.approx(0.5, abs=0.02)


def test_members_and_controls_are_compared_with_the_run_alone(script):
    equality = script("population_equality")
    options = {"episodes": 40, "algorithm": "recipe", "lr": 3e-4, "compile": "off"}
    rows = equality.compare("float64", 2, [1, 2], **options)
    assert len(rows) == 2 * 2 * 2 and {row["seed"] for row in rows} == {0, 1}
    assert all(row["absolute"] < 1e-12 for row in rows)
    assert all(row["absolute"] > 0 for row in rows if row["what"] == equality.CONTROL)
    assert equality.table(rows, [1, 2]).count("\n") == 3


def test_a_population_is_measured_in_groups(script):
    population = script("population")
    rows = population.compare_groups("small", 3, [1, 2, 3], ["off"], seconds=0.01, repeats=1)
    assert [(row["at_once"], row["computations"]) for row in rows] == [(1, 3), (2, 2), (3, 1)]
    assert all(row["ms"]["median"] > 0 for row in rows)


@pytest.mark.thorough
def test_the_hours_of_a_study_count_every_run_once(script):
    study_hours = script("study_hours")
    runs = study_hours.expand(study_hours.read_study(study_hours.FIGURE_7))
    kinds = study_hours.kinds_of(runs)
    assert len(kinds) == 24 and sum(len(kind) for kind in kinds) == len(runs) == 16_384
    assert {kind[0].method for kind in kinds} == {run.method for run in runs}
    for kind in kinds:
        assert len({run.name for run in kind}) == len(kind) and len({run.method for run in kind}) == 1
        assert len(kind) == (1_024 if "iql" in kind[0].method else 512)  # two expectiles
    assert "temperature" in study_hours.settings_of(kinds[0][0]) and "hidden" not in study_hours.settings_of(
        kinds[0][0]
    )
    assert study_hours.hours(512 * 500_000, 1_000.0) == pytest.approx(71.1, abs=0.02)


def test_the_first_step_that_is_timed_is_one_of_the_run(script):
    step = script("step")
    trainer = step.make_trainer(
        step.SIZES["small"], step.random_transitions(step.SIZES["small"].spec, 500), compile="off"
    )
    before = {name: p.detach().clone() for name, p in trainer.loss.named_parameters() if p.requires_grad}
    assert step.first_seconds(lambda: step.update(trainer)) > 0
    assert all(not p.equal(before[name]) for name, p in trainer.loss.named_parameters() if name in before)
    assert trainer.learner.updates == (5 if torch.cuda.is_initialized() else 1)
    assert step.matrix_peak("cpu", "fp32", products=1) > 0


def test_which_wheels_a_python_takes_by_hand(script, monkeypatch):
    pythons = script("pythons")
    files = [
        ("p-1.0-cp313-cp313-manylinux_2_17_x86_64.manylinux2014_x86_64.whl", ">=3.10"),
        ("p-1.0-cp314-cp314-manylinux_2_34_x86_64.whl", None),  # for a newer glibc
        ("p-1.0.tar.gz", ">=3.10"),
        ("p-0.9-cp311-abi3-manylinux_2_28_x86_64.whl", "<3.15"),
        ("p-0.8-cp314-cp314-macosx_11_0_arm64.whl", None),
        ("p-2.0-cp314-cp314t-win_amd64.whl", None),  # without the lock
        ("nonsense.whl", None),
    ]
    monkeypatch.setattr(pythons, "index_of", lambda name: files)
    linux = [pythons.Target(version, "linux") for version in ("3.9", "3.13", "3.14")]
    others = [pythons.Target("3.14", system) for system in ("macos", "windows")]

    def states(version: str) -> list[str]:
        package = pythons.Package("p-that-nobody-has", version, {target: {""} for target in (*linux, *others)})
        return [pythons.state(package, target) for target in (*linux, *others)]

    assert states("1.0") == ["missing", "there", "source", "source", "source"]
    assert states("0.9") == ["missing", "there", "there", "0.8", "missing"]
    assert states("") == ["missing", "there", "there", "there", "missing"]  # whichever version


def test_what_a_package_needs_is_followed_with_the_markers_of_the_other_python(script, monkeypatch):
    pythons = script("pythons")

    class Fact:
        def __init__(self, version, *requires):
            self.version, self.requires = version, list(requires)

    extras = {"more": ["b"], "no": ["d"]}
    monkeypatch.setattr(
        pythons,
        "project",
        lambda: {"dependencies": ["a>=1", 'c; python_version >= "3.14"'], "optional-dependencies": extras},
    )
    facts = {
        "a": Fact("1.5+cpu", "e[fast]", 'f; sys_platform == "win32"'),
        "e": Fact("2.0", 'g; extra == "fast"', 'h; extra == "slow"', "a"),
    }
    monkeypatch.setattr(pythons, "installed", facts.get)
    linux = pythons.Target("3.13", "linux").environment
    assert pythons.closure(pythons.PROJECT, set(), linux) == {"a": "1.5", "e": "2.0", "g": ""}
    windows = pythons.Target("3.14", "windows").environment
    assert pythons.closure(pythons.PROJECT, {"more"}, windows).keys() == {"a", "b", "c", "e", "f", "g"}


def test_the_table_of_pythons_looked_at_what_is_pinned(script):
    pythons = script("pythons")
    text = (BENCHMARKS / "results" / "pythons.csv").read_text().splitlines()
    table = {line.split(",")[0]: line.split(",")[1] for line in text[1:]}
    pins = pythons.pinned(BENCHMARKS.parent / "constraints.txt")
    assert {name: pins[name] for name in table.keys() & pins.keys()} == {
        name: table[name] for name in table.keys() & pins.keys()
    }
    assert {"torch", "torchrl", "tensordict", "numpy", "ray", "mujoco"} <= table.keys() & pins.keys()


def test_the_pictures_of_results_show_the_tables_of_results(script):
    redraw = script("redraw")
    text = redraw.results_text()
    found = redraw.pictures(text)
    shown = {path.stem for path in (BENCHMARKS / "results").glob("*.png")}
    curves = redraw.curves(text)
    assert shown - found.keys() - curves.keys() == {"two_step", "two_step_all", "instability"}
    assert found.keys() | curves.keys() <= shown
    (tables, _) = curves["length_spread"]
    assert "60,000" in tables["spread-expert"][0] and "recipe" in {
        row["spread-random"] for row in tables["spread-random"]
    }
    ((panel,), _) = found["spread"]
    row = next(line for line in text.splitlines() if line.startswith("| mixer without SVN | 5 | 277.9"))
    assert redraw.interval(row.split("|")[4]) == panel.series["deterministic policy"]["mixer without SVN"]
    ((panel,), _) = found["systems_spread_expert"]
    assert set(panel.series["published"]) == {"td3_bc", "cql", "omar", "icq", "omsd"}
    assert redraw.published("**1.5** [1, 2] (3.25)").mean == 3.25 and redraw.published("1.5 [1, 2]") is None
    with pytest.raises(ValueError, match=r"have no table with a column 'x' below 'Nowhere'"):
        redraw.table_under(text, "Nowhere", "x")


def test_histories_by_hand_are_the_library_s_and_others_are_not(script, monkeypatch):
    recurrent = script("recurrent")
    size = recurrent.replace(recurrent.SIZE, hidden=(8, 8), batch_size=20)
    data = recurrent.random_transitions(size.spec, 50)
    run = recurrent.by_hand(size, data, 5)  # compares losses and gradients
    assert run.memories.keys() == {"actor", "qvalue", "value", "target_qvalue"}
    assert len(run.targets) == len(run.sources)
    before = [tensor.clone() for tensor in run.targets]
    run.step(recurrent.gather(data.data, torch.arange(20)))
    assert all(not torch.equal(one, other) for one, other in zip(before, run.targets))
    begin = torch.nn.GRU.forward
    monkeypatch.setattr(torch.nn.GRU, "forward", lambda self, x: begin(self, x * 1.1))
    with pytest.raises(AssertionError, match="not close"):
        recurrent.by_hand(size, data, 5)


def test_a_table_of_recurrent_steps_stands_beside_the_loop_by_hand(script):
    rows = [
        {"form": form, "ms": {"median": ms, "p10": ms, "p90": ms}, "first_seconds": 2.0}
        for form, ms in (("by hand", 4.0), ("compiled", 3.0))
    ]
    assert script("recurrent").table(rows).endswith("| compiled | 3.0 (3.0 to 3.0) | 0.75 | 2 s |")


def test_a_game_of_memory_is_held_against_its_optimum(script, monkeypatch, tmp_path):
    games = script("games_of_memory")
    monkeypatch.setattr(games, "EPISODES", 40)
    jobs = games.all_jobs()
    assert len(jobs) == len({str(job) for job in jobs}) == 30
    for memory in games.MEMORIES:
        job = games.job("games/recall", {"delay": 2}, "cloning", memory) | {"steps": 2}
        row = job | games.play_for(**job, folder=str(tmp_path), seeds=2)
        assert (row["best"], row["best_memoryless"]) == (1.0, 0.25)
        assert row["curve"]["step"][-1] == 2 and len(row["mode"]) == len(row["sample"]) == 2
        assert games.table([row]).splitlines()[-1].startswith(f"| recall, delay 2 | cloning | {memory} |  | ")


def test_what_stitches_is_told_by_payoffs(script, monkeypatch):
    """With the payoffs themselves as values the critic's choice is the optimum, whatever was recorded: 1."""
    stitching = script("stitching")
    monkeypatch.setattr(stitching, "PAYOFFS", ("additive",))
    monkeypatch.setattr(stitching, "COVERAGES", ("full", "two_teams"))
    (_, _, game, _), _ = stitching.games(2)
    monkeypatch.setattr(stitching, "joint_values", lambda loss, seen, agents: game.payoffs.flatten(1))
    found = stitching.train("vdn", "AWR, local", steps=2, seeds=2, compiled="off")["found"]
    assert list(found) == ["additive/full", "additive/two_teams"]
    for name, members in found.items():
        for member in members:
            assert member["greedy"] == pytest.approx(1.0) and member["score"] <= 1.0
            assert member["error"] is None if name.endswith("full") else member["error"] == 0.0


@pytest.mark.parametrize("memory", [None, "gru"])
def test_a_policy_that_draws_legal_actions_evenly_is_surprised_by_their_number(script, memory):
    sizes, study = script("sizes"), script("memory_3m")
    data = sizes.random_transitions(sizes.with_discrete_actions(sizes.SMALL).spec, 50)
    loss = study.make_loss(data.spec, algorithm="cloning", memory=memory, hidden=(4,))
    loss.actor_network_params.data.zero_()
    legal = data.data[ACTION_MASK].sum(-1).double()
    assert study.surprise(loss, data) == pytest.approx(legal[legal > 1].log().mean().item(), rel=1e-5)


def test_shooters_shoot_the_nearest_or_the_weakest_or_walk(script):
    """Three agents: two enemies in range; one in sight, north of east; nothing in sight. The fourth is dead."""
    smax = script("memory_smax")
    observation, legal = torch.zeros(4, 5 * 13 + 10), torch.zeros(4, 8, dtype=torch.bool)
    enemies = observation[:, :65].view(4, 5, 13)[:, 2:]
    enemies[0, :, :3] = torch.tensor([[1.0, 0.0, 0.1], [0.4, 0.3, 0.0], [0.0, 0.0, 0.0]])
    enemies[1, 2, :3] = torch.tensor([1.0, 0.5, 0.6])
    legal[:3, :5] = True
    legal[0, 5:7] = True
    legal[3, 4] = True
    rows = TensorDict({OBSERVATION: observation, ACTION_MASK: legal}, [])
    assert smax.Shooters("nearest")(rows)[ACTION].tolist() == [5, 0, 1, 4]
    assert smax.Shooters("weakest")(rows)[ACTION].tolist() == [6, 0, 1, 4]
    legal[2, 1] = False  # east
    assert smax.Shooters("weakest")(rows)[ACTION][2].item() in (0, 2)


def test_a_population_is_trained_on_a_recording_and_plays(script, monkeypatch, tmp_path):
    """In a game that needs no other package; whoever cannot see the cue again names it only with memory."""
    smax = script("memory_smax")
    monkeypatch.setattr(smax, "TASK", "games/recall")
    monkeypatch.setattr(smax, "BATTLES", 6)
    env = make_env("games/recall", num_envs=4)
    collect(env, None, episodes=40, seed=0).save(tmp_path / "medium")
    chosen = {"qualities": ["medium"], "methods": ["cloning, gru", "recipe, none"], "seeds": 2, "updates": 2}
    jobs = smax.jobs_of(tmp_path, **chosen)
    assert [job["stage"] for job in jobs] == ["play", "play", "play", "train", "train"]
    rows = [job | smax.work(**job) for job in jobs[3:]]
    assert all(len(row["members"]) == 2 and row["data"].keys() == {"win rate", "return"} for row in rows)
    rows.append(jobs[0] | {"members": [{"win rate": 0.5, "return": 1.25}]})
    save_policy(tmp_path / "policies" / "medium.pt", make_greedy_actor(env.task_spec, memory="gru"))
    rows.append(jobs[2] | smax.work(**jobs[2]))
    lines = smax.report(rows).splitlines()
    assert lines[2].startswith("| medium | cloning | gru | 2 | 2 |")
    assert lines[4] == "|  | scripted, nearest | none |  | 1 | 0.5 | 1.25 |  |"
    assert lines[5].startswith("| medium | QMIX, recorded here | gru |  | 1 | ")


def test_tables_say_what_laser_data_allow(script):
    pytest.importorskip("lle")
    laser_data = script("laser_data")
    env = make_env("lle/none-1", num_envs=20, seed=0, max_steps=25)
    found = laser_data.measure(collect(env, LaserWalker(env), episodes=20, seed=0))
    assert found == dict.fromkeys(["mode of cloning", "sampled cloning", "joint Q", "independent Q"], 3.0)
    aims = (("all_out", 0), ("one_out", 0), ("one_out", 1))
    walks = [LaserWalker(env, aim, agent=agent, epsilon=0.1, seed=agent) for aim, agent in aims]
    mixed = MixedSkill(walks, probabilities=[0.1, 0.45, 0.45], seed=0)
    found = laser_data.measure(collect(env, mixed, episodes=200, seed=0))
    assert found["joint Q"] == 3 and found["mode of cloning"] < 3 and found["sampled cloning"] < 2


def test_what_a_choice_without_a_simulator_loses(script, tmp_path):
    selection = script("offline_selection")
    scores = {"a": {0: 10.0, 1: 4.0}, "b": {0: 8.0, 1: 9.0}, "c": {0: 0.0, 1: 1.0}}
    row = selection.losses(scores, 0, {"a": 1.0, "b": 3.0, "c": 2.0})
    assert (row["chosen"], row["lost"], row["lost at random"]) == ("b", 2.0, 4.0)
    assert row["lost by other seeds"] == 2.0 and row["spearman"] == pytest.approx(-0.5)
    assert "lost by other seeds" not in selection.losses({"a": {0: 1.0}, "b": {0: 2.0}}, 0, {"a": 1.0, "b": 0.0})
    rows = [row | {"dataset": "one", "by": "model", "passed": True}]
    assert "| all | model | 1 | 10.00 | 2.00 | 4.00 | 2.00 | -0.50 | 1 of 1 |" in selection.report(rows)


def test_a_study_s_last_policies_are_those_of_its_finished_runs(script, tmp_path):
    selection = script("offline_selection")
    rows = [
        {
            "run": f"d--m--t=1--seed={seed}",
            "dataset": "d",
            "seed": seed,
            "step": step,
            "return": value,
            "normalized": value,
        }
        for seed, step, value in ((0, 1, 1.0), (0, 2, 2.0), (1, 1, 3.0))
    ]
    frame = pandas.DataFrame(rows).assign(finished=True, evaluator="mode")
    frame.loc[2, "finished"] = False
    file = tmp_path / "jobs" / "j" / "members" / "d--m--t=1--seed=0" / "policy.pt"
    file.parent.mkdir(parents=True)
    file.touch()
    last = selection.last_policies(frame, tmp_path)
    assert last[["setting", "score", "file"]].to_numpy().tolist() == [["m--t=1", 2.0, file]]


STUDY = """
[study]
name = "toy"
output = "out"
seeds = 2
steps = 2
batch_size = 4
hidden = [4]
gamma = 0.9
compile = "off"

[evaluation]
every = 2
episodes = 4

[methods.mix]
decomposition = "mixer"

[methods.vdn]
decomposition = "vdn"

[datasets.xor]
task = "games/xor"
episodes = 16
"""


def test_choosing_by_data_judges_the_policies_that_a_study_left(script, monkeypatch, tmp_path, capsys):
    selection = script("offline_selection")
    file = tmp_path / "study.toml"
    file.write_text(STUDY, encoding="utf-8")
    run_study(file, backend=Inline(), machine=Machine(workers=1, threads=1), progress=False, say=lambda _: None)
    asked = []

    def estimates(policies, data, *, by, gamma):
        asked.append((sorted(policies), data.n_episodes, gamma))
        assert all(Path(policy).is_file() for policy in policies.values())
        values = {name: SimpleNamespace(mean=float(name == "vdn")) for name in policies}
        return SimpleNamespace(estimates={by[0]: values}, model_calibration=SimpleNamespace(passed=True))

    def here(work, jobs, **_):
        return [job | work(**job) for job in jobs]

    monkeypatch.setattr(selection, "compare_offline", estimates)
    monkeypatch.setattr(selection, "run_jobs", here)
    monkeypatch.setattr(sys, "argv", ["offline_selection.py", str(file), "--by", "model"])
    selection.main()
    assert asked == [(["mix", "vdn"], 16, 0.9)] * 2
    out = capsys.readouterr().out
    assert "| xor | model | 2 |" in out and out.count("- xor, model: chose vdn") == 2


def test_which_choice_matters_by_quality(script):
    choices = script("choices")
    scores = []
    for critic, rule, seed, strength in itertools.product(
        ("vdn", "mixer", "frozen"), ("awr", "brac"), (0, 1, 2), (1, 2)
    ):
        own = {"decomposition": "mixer", "frozen": True} if critic == "frozen" else {"decomposition": critic}
        own |= {"algorithm": "recipe", "value_learning": "td", "extraction": rule}
        own |= {"temperature" if rule == "awr" else "alpha": float(strength)}
        value = {"vdn": 10.0, "mixer": 20.0, "frozen": 19.0}[critic] + (rule == "awr") * (critic == "vdn") * 15
        value += strength + seed - 1
        name = f"one--{critic}-{rule}--s={strength}--seed={seed}"
        run = Run(name, "one", f"{critic}-{rule}", seed, {"s": strength}, own)
        scores.append(RunScore(run, "mode", value, value, value, False))
    cells = choices.cells_of([replace(score, last=0.0) for score in scores])
    assert len(cells) == 12 and sorted(cells["vdn", "td", "awr", scores[0].setting]) == [25.0, 26.0, 27.0]
    best, first_two, of = choices.best_of_strengths(cells)
    assert (dict(best), dict(first_two), of) == ({"vdn": 1, "mixer": 1}, {"vdn": 2, "mixer": 2}, 2)
    assert choices.gains_of_training(cells) == [1.0] * 4
    text = choices.report("one", scores)
    assert "| frozen mixer, td | 20.0 [17.5, 22.5] |" in text
    assert "Trained above frozen by 1.00 on average, in 4 of 4." in text
    fixed = replace(scores[0], run=replace(scores[0].run, settings=scores[0].run.settings | {"scale": 0.2}))
    assert choices.critic_of(fixed) == "vdn, deviation 0.2"
    own = scores[0].run.settings | {"advantage": "local"}
    assert choices.critic_of(replace(fixed, run=replace(fixed.run, settings=own))) == "vdn, local advantage"
    scores = [replace(s, run=replace(s.run, settings=s.run.settings | {"lr": 0.2})) for s in scores]
    twins = [replace(s, run=replace(s.run, settings=s.run.settings | {"lr": 0.1})) for s in scores]
    cells = choices.cells_of([*scores, *twins])  # none of a method's runs is taken for a seed of another's
    assert choices.varied_in([*scores, *twins]) == ["lr"] and {len(values) for values in cells.values()} == {3}
    assert len(cells) == 24 and ("vdn, lr 0.1", "td", "awr", scores[0].setting) in cells


def test_systems_beside_the_data_and_published_scores(script):
    qualities = script("qualities")
    over_seeds = script("studies").over_seeds
    scores = []
    for system, base in {"omar": 10.0, "omsd": 60.0, "brac": 200.0}.items():
        for quality, seed in itertools.product(("random", "expert"), (0, 1, 2)):
            name = f"tag-{quality}"
            run = Run(f"{name}--{system}--seed={seed}", name, system, seed, {}, {})
            scores.append(RunScore(run, "mode", base + seed - 1, 0.0, 0.0, False))
    cells = qualities.cells_of(scores)
    assert cells["omar"] == {"tag-random": [9.0, 10.0, 11.0], "tag-expert": [9.0, 10.0, 11.0]}
    text = qualities.systems_table("tag", cells, {"tag-random": 0.04, "tag-expert": 101.0})
    assert "| *the data* | 0.0 |  |  | 101.0 |" in text
    assert "| brac | **200.0 [197.5, 202.5]** |  |  | **200.0 [197.5, 202.5]** |" in text
    assert "| *best published* | 133.9 | 98.8 | 137.1 | 168.8 |" in text
    figures = {
        "omar": {"tag-random": {"published": [11.1, "a"]}, "tag-expert": {"published": [116.2, "a"]}},
        "omsd": {"tag-random": {"published": [133.9, "b"]}, "tag-medium": {"published": [137.1, "b"]}},
    }
    text = qualities.published_table("tag", cells, figures)
    assert "| omar | 11.1: within |  |  | 116.2: below, by 106.2 |" in text
    assert "| omsd | 133.9: below, by 73.9 |  |  |  |" in text and "brac" not in text
    assert qualities.verdict(over_seeds([5.0]), 7.0) == "one seed, -2.0"
    single = {"omar, alpha 0.1": {"tag-random": [10.0]}}
    assert "| omar, alpha 0.1 | **10.0** |  |  |  |" in qualities.systems_table("tag", single, {})
    assert "| omar, alpha 0.1 | 11.1: one seed, -1.1 |" in qualities.published_table("tag", single, figures)
    text = qualities.best_table("tag", cells)
    assert "| random | brac 200.0, omsd 60.0, omar 10.0 | 133.9 | above, by 66.1 |" in text and "medium" not in text


def test_all_published_scores_of_particles_are_known_to_the_table_of_systems(script):
    qualities = script("qualities")
    figures = json.loads(qualities.FIGURES.read_text())["algorithms"]
    for of in figures.values():
        for name, cell in of.items():
            task, _, quality = name.partition("-")
            if task in qualities.BEST_PUBLISHED and "published" in cell:
                assert cell["published"][0] <= qualities.BEST_PUBLISHED[task][quality], (name, cell)


@pytest.mark.parametrize("name", ["choices", "offline_selection", "qualities", "study_hours"])
@pytest.mark.parametrize("what", ["nope.toml", "text.toml", "unknown.toml", "unrun.toml"])
def test_a_study_that_cannot_be_looked_at_ends_in_a_sentence(script, name, what, tmp_path, monkeypatch, capsys):
    (tmp_path / "text.toml").write_text("# A study\nor not\n")
    (tmp_path / "unknown.toml").write_text("[studdy]\n")
    least = '[study]\nseeds = 1\nsteps = 1\n[methods.recipe]\n[datasets.spread-random]\ntask = "mpe/simple_spread"\n'
    (tmp_path / "unrun.toml").write_text(least)
    program = script(name)
    monkeypatch.setattr(
        sys, "argv", [name, str(tmp_path / what), *(["--methods", "x"] if name == "study_hours" else [])]
    )
    with pytest.raises(SystemExit) as ended:
        program.main()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1
    sentences = {"nope.toml": "cannot be read", "text.toml": "is no TOML", "unknown.toml": "did you mean 'study'"}
    last = "has no runs of the methods" if name == "study_hours" else "there is no finished run in"
    assert sentences.get(what, last) in said


def test_a_study_of_other_data_has_no_published_scores(script, tmp_path, monkeypatch, capsys):
    text = '[study]\nseeds = 1\nsteps = 1\n[methods.recipe]\n[datasets.xor]\ntask = "games/xor"\n'
    (tmp_path / "study.toml").write_text(text)
    monkeypatch.setattr(sys, "argv", ["qualities", str(tmp_path / "study.toml")])
    with pytest.raises(SystemExit):
        script("qualities").main()
    assert "has no dataset named TASK-QUALITY, such as spread-expert; name another" in capsys.readouterr().err
