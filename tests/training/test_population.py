"""Each member of a population is the run alone: numbers, noise, files, what it does when it fails."""

from __future__ import annotations

import itertools
import math
import multiprocessing
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from population_toys import (
    SEEDS,
    SlotEnv,
    eager_and_traced,
    everything,
    largest_difference,
    lone_tensors,
    make_alone,
    make_data,
    make_member,
    make_population,
    member_tensors,
)
from selection import some_of, thorough
from torchrl.modules import PopArtValueNorm
from torchrl.objectives import SoftUpdate

from torchrl_marl_offline.core.functional_parameters import tensors_of
from torchrl_marl_offline.data.transitions.buffers import make_replay_buffer
from torchrl_marl_offline.envs import make_env
from torchrl_marl_offline.evaluation import evaluate, evaluate_population
from torchrl_marl_offline.modules import make_actor, make_critic, make_value
from torchrl_marl_offline.objectives import AWR, IQL, AWRLoss, OfflineMARLLoss
from torchrl_marl_offline.objectives.functional import expectile_weighted_square
from torchrl_marl_offline.training import (
    Population,
    PopulationBuffer,
    PopulationLearner,
    Trainer,
    TrainingFinished,
    TrainingInterrupted,
    load_policy,
    read_csv,
    split_population,
)
from torchrl_marl_offline.training.populations.population import PopulationGradients

MIXER = {"decomposition": "mixer", "value_learning": "iql", "extraction": "awr"}
NOISY = {"decomposition": "vdn", "value_learning": "td", "extraction": "brac"}
COMBINATIONS = [
    {"decomposition": decomposition, "value_learning": learning, "extraction": extraction}
    for decomposition, learning, extraction in itertools.product(
        ("centralized", "mixer", "vdn", "independent"), ("td", "sarsa", "iql"), ("awr", "brac")
    )
]


FIRST_BIAS = "actor_network_params.module.0.module.mlp.layers.0.bias"
WATCHED = "actor_network_params.module.0.module.log_scale"


def name_of(rules: dict) -> str:
    return "-".join(rules.values())


@pytest.fixture(scope="module")
def data():
    return make_data()


@pytest.fixture(scope="module")
def discrete():
    return make_data(discrete=True)


def assert_members_are_lone_runs(dataset, rules, tolerance: float, members=(0, 1, 2), alone=None, **options) -> None:
    population = make_population(dataset, members, rules=rules, **options)
    start = {member: member_tensors(population, member) for member in members}
    population.train()
    for member in alone or members:
        run = make_alone(dataset, member, rules=rules, **options)
        assert largest_difference(lone_tensors(run), start[member]) == 0
        run.train()
        found = member_tensors(population, member)
        assert largest_difference(found, lone_tensors(run)) <= tolerance
        assert largest_difference(found, start[member]) > 1e-3
    finals = [member_tensors(population, member) for member in members]
    assert all(largest_difference(*pair) > 1e-2 for pair in itertools.combinations(finals, 2))


@dataclass(frozen=True)
class Attribute(IQL):
    """A rule that computes with its own attribute, in the place of the loss's coefficient."""

    def value_elements(self, batch):
        difference = batch.target.total_min - batch.state.total
        return expectile_weighted_square(difference, torch.tensor(self.expectile)).squeeze(-1)


@pytest.mark.parametrize("compile", [False, True])
def test_a_rule_that_reads_its_attribute_is_refused_where_members_differ_in_it(data, compile):
    def make(*expectiles: float) -> PopulationGradients:
        losses = {}
        for number, expectile in enumerate(expectiles):
            torch.manual_seed(number)
            critic, value = (build(data.spec, decomposition="vdn", hidden=(4,)) for build in (make_critic, make_value))
            actor = make_actor(data.spec, hidden=(4,))
            losses[f"m{number}"] = OfflineMARLLoss(actor, critic, value, value_learning=Attribute(expectile))
            SoftUpdate(losses[f"m{number}"], tau=0.1)
        generators = [torch.Generator().manual_seed(number) for number in range(len(losses))]
        return PopulationGradients(Population(losses), compiled=compile, backend=None, generators=generators)

    batch = PopulationBuffer(data.data, batch_size=4, seeds=(0, 1)).sample()
    with pytest.raises(
        ValueError, match=r"Attribute reads its attribute 'expectile'.*batch.coefficient\('expectile'\)"
    ):
        make(0.6, 0.9)(batch)
    alike = make(0.9, 0.9)
    assert alike(batch)["loss_value"].isfinite().all()
    assert type(alike.population.template.value_learning) is Attribute


# --------------------------------------------------------------------------- the run alone


@pytest.mark.parametrize("rules", some_of(COMBINATIONS, every=8), ids=name_of)
def test_a_member_is_the_run_alone(data, rules):
    """Seeds, coefficients, discounts, learning rates and clipping of its own, in single precision."""
    assert_members_are_lone_runs(data, rules, 1e-6, alone=(1, 2), clip_grad_norm=0.7)


@pytest.mark.parametrize(
    "rules",
    [NOISY, {"decomposition": "centralized", "value_learning": "sarsa", "extraction": "brac"}, MIXER],
    ids=name_of,
)
def test_discrete_actions_and_their_noise(discrete, rules):
    """BRAC samples: a member's noise is that of a lone run under its seed."""
    assert_members_are_lone_runs(discrete, rules, 1e-6, alone=(0, 2))


@pytest.mark.parametrize(
    ("rules", "is_discrete"),
    [thorough((MIXER | {"heads": "min"}, False)), thorough((NOISY | {"svn": False}, True))],
    ids=["mixer", "noisy"],
)
def test_in_double_precision_they_agree_to_the_last_digits(rules, is_discrete):
    dataset = make_data(discrete=is_discrete, dtype=torch.float64)
    assert_members_are_lone_runs(dataset, rules, 1e-9, members=(1, 2), alone=(2,), steps=200, clip_grad_norm=0.7)


@pytest.mark.parametrize(
    "options",
    [{"scale": "state_dependent"}, {"frozen": True}, {"share_params": False}, {"team_reward": "sum"}],
    ids=lambda options: next(iter(options)),
)
def test_other_networks_and_rules(data, options):
    assert_members_are_lone_runs(data, MIXER | options, 1e-6, members=(0, 1), steps=10, rates=(1e-3,) * 3)


def test_slices_of_episodes(data):
    rules = {"decomposition": "mixer", "value_learning": "sarsa", "extraction": "awr"}
    assert_members_are_lone_runs(data, rules, 1e-6, members=(0, 2), slice_len=4)


def test_cloning(data):
    rules = {"algorithm": "cloning"}
    population = make_population(data, (0, 1), rules=rules)
    population.train()
    alone = make_alone(data, 1, rules=rules)
    alone.train()
    assert largest_difference(member_tensors(population, 1), lone_tensors(alone)) <= 1e-6


def test_a_policy_loss_over_networks_that_it_does_not_train(tmp_path, data):
    """The critic is held still, has no moments, and is handed to the run alone as it was."""
    losses = {}
    for member in (0, 1):
        whole = make_member(data, member, **NOISY | {"extraction": "awr", "value_learning": "iql"})
        losses[f"m{member}"] = AWRLoss(*actor_and_critic(whole), rule=AWR(2.0))
    buffer = PopulationBuffer(data.data, batch_size=12, seeds=SEEDS[:2])
    trainer = Trainer(PopulationLearner(losses), buffer, steps=5, output=tmp_path, progress=False)
    start = member_tensors(trainer, 1)
    trainer.train()
    moved = {name for name, tensor in member_tensors(trainer, 1).items() if not torch.equal(tensor, start[name])}
    assert moved == {name for name in start if name.startswith("actor_network_params")}
    assert trainer.learner.optimizer.parameters.keys() == moved
    assert split_population(trainer)["m1"].exists()


def test_bf16(data):
    """Autocast inside of a population rounds as it does for a lone run: to 8 bits, not to the same ones."""
    population = make_population(data, (0, 1), rules=MIXER, steps=5, precision="bf16")
    population.train()
    full = make_population(data, (0, 1), rules=MIXER, steps=5)
    full.train()
    difference = largest_difference(member_tensors(population, 1), member_tensors(full, 1))
    assert 1e-6 < difference < 2e-2
    assert {tensor.dtype for tensor in population.learner.population.tensors().values()} == {torch.float32}


def test_companions_do_not_matter(discrete):
    """Equal bit for bit, on one thread."""
    two, four = (make_population(discrete, members, rules=NOISY) for members in ((1, 3), (0, 1, 2, 3)))
    for population in (two, four):
        population.train()
    for member in (1, 3):
        assert largest_difference(member_tensors(two, member), member_tensors(four, member)) == 0


def test_each_member_has_statistics_clipping_and_metrics_of_its_own(tmp_path, data):
    options = {"steps": 10, "log_every": 5, "clip_grad_norm": 0.7}
    population = make_population(data, (0, 1, 2), tmp_path, rules=MIXER, **options)
    population.train()
    norms, seen = set(), set()
    for member in (0, 1, 2):
        alone = make_alone(data, member, rules=MIXER, **options)
        alone.train()
        rows = read_csv(tmp_path / f"members/m{member}/train.csv")
        assert [row["step"] for row in rows] == [5, 10]
        for row, expected in zip(rows, alone.logger.train.rows):
            assert list(row) == list(expected)
            assert {**row, "seconds": 0} == pytest.approx({**expected, "seconds": 0}, rel=1e-4, abs=1e-6)
        norms.add(rows[0]["grad_norm"])
        seen.add(member_tensors(population, member)["value_norm.loc"].item())
        assert rows[0]["grad_norm"] > 0.7, "clipping has nothing to do"
    assert len(norms) == len(seen) == 3


def test_running_statistics_of_torchrls(data):
    """Buffers that accumulate move once a step, for each member by its own values."""

    def popart(member: int) -> OfflineMARLLoss:
        loss = make_member(data, member, **MIXER)
        loss.value_norm = PopArtValueNorm(shape=1)
        return loss

    losses = {f"m{member}": popart(member) for member in (0, 1)}
    buffer = PopulationBuffer(data.data, batch_size=12, seeds=SEEDS[:2])
    population = Trainer(PopulationLearner(losses, lr=1e-3, tau=0.05), buffer, steps=6, progress=False)
    population.train()
    for member in (0, 1):
        alone = make_alone(data, member, rules=MIXER, steps=6, rates=(1e-3,) * 2)
        alone.loss.value_norm = PopArtValueNorm(shape=1)
        alone.train()
        assert largest_difference(member_tensors(population, member), lone_tensors(alone)) <= 1e-6
        assert alone.loss.value_norm.debiasing_term > 0


def test_compiled_equals_eager(discrete):
    """The traced operations one by one, with noise, against the population as it stands: bit for bit."""
    trainers = eager_and_traced(lambda: make_population(discrete, (0, 1, 2), rules=NOISY))
    assert torch.equal(*map(everything, trainers))
    assert len(trainers[1].learner.gradients._traced) == 1


# --------------------------------------------------------------------------- minibatches


@pytest.mark.parametrize("slice_len", [None, 4])
def test_the_buffer_draws_what_the_members_would(data, slice_len):
    population = PopulationBuffer(data.data, batch_size=12, seeds=SEEDS[:3], slice_len=slice_len)
    alone = [make_replay_buffer(data.data, batch_size=12, seed=seed, slice_len=slice_len) for seed in SEEDS[:3]]
    keys = list(population.storage._storage.keys(True, True))
    for _ in range(3):
        drawn = population.sample()
        assert drawn.batch_size == (3, 12)
        for index, buffer in enumerate(alone):
            expected = buffer.sample()
            for key in keys:
                assert torch.equal(drawn[index].get(key), expected.get(key)), key
    assert not torch.equal(drawn[0]["state"], drawn[1]["state"])


@pytest.mark.parametrize("slice_len", [None, 4])
def test_members_buffers_go_on_alone_and_apart(data, slice_len):
    population = PopulationBuffer(data.data, batch_size=12, seeds=SEEDS[:2], slice_len=slice_len)
    population.sample()
    members = [population.member(index) for index in (0, 1)]
    for _ in range(3):
        own = [buffer.sample() for buffer in members]
        drawn = population.sample()
        for index in (0, 1):
            assert torch.equal(own[index]["state"], drawn[index]["state"])


def test_the_buffers_state_brings_its_batches_back(data):
    buffer = PopulationBuffer(data.data, batch_size=12, seeds=SEEDS[:2])
    buffer.sample()
    state = buffer.state_dict()
    expected = [buffer.sample() for _ in range(2)]
    again = PopulationBuffer(data.data, batch_size=12, seeds=(0, 0))
    again.load_state_dict(state)
    assert all((again.sample() == batch).all() for batch in expected)
    smaller = PopulationBuffer(data.data[:50], batch_size=12, seeds=SEEDS[:2])
    with pytest.raises(ValueError, match="trained on 84 rows, this buffer has 50"):
        smaller.load_state_dict(state)


# --------------------------------------------------------------------------- members that fail


def test_a_member_that_diverges_is_left_out_and_the_others_go_on(tmp_path, data, capsys):
    rates = (1e-3, 1e17, 5e-4)
    healthy = make_population(data, (0, 1, 2), rules=MIXER, steps=30)
    healthy.train()
    trainer = make_population(
        data, (0, 1, 2), tmp_path, rules=MIXER, steps=30, rates=rates, progress=True, eval_every=10, checkpoint_every=9
    )
    trainer.evaluators["parameters"] = lambda: {
        name: {"size": float(trainer.learner.population.member_tensors(name)[WATCHED].abs().double().sum())}
        for name in trainer.learner.members
    }
    assert type(trainer.train()) is TrainingFinished
    (at,) = trainer.left_out.values()
    assert trainer.left_out.keys() == {"m1"}
    assert 1 < at <= 3
    frozen = {name: t for name, t in member_tensors(trainer, 1).items() if not name.startswith("value_norm")}
    assert all(tensor.isfinite().all() for tensor in frozen.values())
    assert trainer.learner.optimizer.step_count.tolist() == [30, at - 1, 30]
    stopped = make_population(data, (0, 1, 2), rules=MIXER, steps=at - 1, rates=rates)
    stopped.train()
    expected = {name: tensor for name, tensor in member_tensors(stopped, 1).items() if name in frozen}
    assert largest_difference(frozen, expected) == 0
    other = make_population(data, (0, 1, 2), rules=MIXER, steps=30, rates=(1e-3, 1e-3, 5e-4))
    other.train()
    for member in (0, 2):
        assert largest_difference(member_tensors(trainer, member), member_tensors(other, member)) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "not finite" in line]
    assert len(said) == 1
    assert f"m1 is not finite since step {at}: it keeps its last finite parameters, the others go on" in said[0]
    assert [row["step"] for row in read_csv(tmp_path / "members/m0/train.csv")] == [7, 14, 21, 28, 30]
    assert not (tmp_path / "members/m1/train.csv").exists()
    sizes = [row["size"] for row in read_csv(tmp_path / "members/m1/eval.csv")]
    assert len(sizes) == 3
    assert not math.isnan(sizes[0])
    assert sizes[0] == sizes[1] == sizes[2]


def poisoned(data, **options) -> Trainer:
    """The second member's temperature is not a number, from the first step."""
    trainer = make_population(data, (0, 1, 2), rules=MIXER, **options)
    trainer.learner.population.member_tensors("m1")["temperature"].fill_(float("nan"))
    return trainer


def test_a_member_that_never_was_finite_keeps_what_it_was_drawn_with(data):
    trainer, clean = poisoned(data), make_population(data, (0, 1, 2), rules=MIXER)
    start = member_tensors(trainer, 1)
    for each in (trainer, clean):
        each.train()
    assert trainer.left_out == {"m1": 1}
    for name, tensor in member_tensors(trainer, 1).items():
        if name not in ("temperature", "value_norm.loc", "value_norm.deviation"):
            assert torch.equal(tensor, start[name]), name
    assert trainer.learner.optimizer.exp_avg_sq["actor_network_params.module.0.module.log_scale"][1].abs().max() == 0
    for member in (0, 2):
        assert largest_difference(member_tensors(trainer, member), member_tensors(clean, member)) == 0


def test_a_member_that_fell_before_a_kill_is_still_reported_after_it(tmp_path, data, capsys):
    poisoned(data, output=tmp_path, steps=5, log_every=100, progress=True, checkpoint_every=2).train()
    assert "m1 is not finite since step 1" in capsys.readouterr().out, "reported at the end"
    again = poisoned(data, output=tmp_path, steps=20, log_every=10, progress=True)
    assert again.resume(tmp_path / "checkpoints/checkpoint-000000000004.torchrl") == 4
    assert again.left_out == {"m1": 1}
    again.train()
    assert capsys.readouterr().out.count("m1 is not finite since step 1") == 1
    third = poisoned(data, output=tmp_path, steps=30, progress=True)
    third.resume()
    third.train()
    assert "not finite" not in capsys.readouterr().out, "reported before the last checkpoint"


# --------------------------------------------------------------------------- checkpoints


def draws():
    return {name: {"return": torch.rand(()).item()} for name in ("m0", "m1", "m2")}  # a careless evaluator


def population_run(output, *, resume: bool = False, **options) -> Trainer:
    options = {"steps": 60, "checkpoint_every": 5, "eval_every": 15, "evaluators": {"a": draws}} | options
    trainer = make_population(make_data(discrete=True), (0, 1, 2), output, rules=NOISY, **options)
    torch.manual_seed(99)  # whatever a new process starts with must not matter
    if resume:
        trainer.resume()
    trainer.train()
    return trainer


def without_timing(path: Path) -> list[dict]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in read_csv(path)]


def assert_same_run(trainer: Trainer, reference: Trainer) -> None:
    assert torch.equal(everything(trainer), everything(reference))
    for name in reference.learner.members:
        assert without_timing(trainer.output / f"members/{name}/train.csv") == without_timing(
            reference.output / f"members/{name}/train.csv"
        )
        rows = [read_csv(each.output / f"members/{name}/eval.csv") for each in (trainer, reference)]
        assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Trainer:
    return population_run(tmp_path_factory.mktemp("reference"))


@pytest.mark.thorough
def test_the_comparison_depends_on_everything_that_is_saved(reference, tmp_path):
    for left_out in ("population", "optimizer", "buffer"):
        output = tmp_path / left_out
        population_run(output, steps=30, checkpoint_every=30)
        trainer = make_population(make_data(discrete=True), (0, 1, 2), output, rules=NOISY, steps=60)
        components = {name: part for name, part in trainer.components().items() if name != left_out}
        trainer.step = trainer._saved_step = trainer.checkpoints.load(**components)
        trainer.train()
        assert not torch.equal(everything(trainer), everything(reference)), left_out


def test_resume_is_bit_for_bit(reference, tmp_path):
    population_run(tmp_path, checkpoint_every=23)
    again = make_population(
        make_data(discrete=True), (0, 1, 2), tmp_path, rules=NOISY, steps=60, eval_every=15, evaluators={"a": draws}
    )
    torch.manual_seed(99)
    assert again.resume(tmp_path / "checkpoints/checkpoint-000000000023.torchrl") == 23
    assert [row["step"] for row in read_csv(tmp_path / "members/m2/train.csv")] == [7, 14, 21]
    again.train()
    assert_same_run(again, reference)


def run_in_child(output: Path) -> None:
    """Start the run, or go on with it. Must be importable by the child."""
    torch.set_num_threads(1)
    population_run(output, resume=any((output / "checkpoints").glob("checkpoint-*")), steps=60, checkpoint_every=2)


@pytest.mark.thorough
@pytest.mark.slow
def test_killed_it_ends_with_the_same_numbers(tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "torchrl.data", "torchrl.envs", "torchrl_marl_offline.training"])
    expected = population_run(tmp_path / "whole", steps=60, checkpoint_every=2)
    output = tmp_path / "killed"
    for _ in range(2):
        newest = lambda: max((output / "checkpoints").glob("checkpoint-*"), default=None)  # noqa: E731
        before, deadline = newest(), time.monotonic() + 60
        process = context.Process(target=run_in_child, args=(output,))
        process.start()
        while newest() == before and process.is_alive():
            assert time.monotonic() < deadline, "the child made no progress"
            time.sleep(0.001)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "finished before it was killed: make the run longer"
    assert_same_run(population_run(output, resume=True, steps=60, checkpoint_every=2), expected)


def test_a_deadline_stops_and_the_run_goes_on(reference, tmp_path):
    def stop() -> None:
        trainer.deadline = time.time()

    trainer = make_population(
        make_data(discrete=True), (0, 1, 2), tmp_path, rules=NOISY, steps=60, eval_every=26, evaluators={"stop": stop}
    )
    result = trainer.train(on_interrupt="return")
    assert type(result) is TrainingInterrupted
    assert (result.step, result.checkpoint.name) == (26, "checkpoint-000000000026.torchrl")
    resumed = make_population(make_data(discrete=True), (0, 1, 2), tmp_path, rules=NOISY, steps=60)
    assert resumed.resume() == 26
    assert type(resumed.train()) is TrainingFinished
    assert torch.equal(everything(resumed), everything(reference))
    over = make_population(make_data(), (0,), rules=MIXER, deadline=time.time() - 1)
    with pytest.raises(TrainingInterrupted) as stopped:
        over.train()
    assert stopped.value.step == 0


@pytest.mark.parametrize("rules", [MIXER, thorough(NOISY)], ids=name_of)
def test_split_members_go_on_as_the_runs_alone(tmp_path, rules):
    """In double precision, so that what goes on differently is not hidden behind rounding."""
    dataset = make_data(discrete=rules is NOISY, dtype=torch.float64)
    trainer = make_population(dataset, (0, 1, 2), tmp_path, rules=rules, steps=23, clip_grad_norm=0.7)
    trainer.train()
    rng, before = torch.get_rng_state(), everything(trainer)
    paths = split_population(trainer)
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.equal(everything(trainer), before)
    for member in (0, 2):
        assert paths[f"m{member}"] == tmp_path / f"members/m{member}/checkpoints/checkpoint-000000000023.torchrl"
        options = {"rules": rules, "steps": 46, "clip_grad_norm": 0.7}
        alone = make_alone(dataset, member, **options)
        alone.train()
        resumed = make_alone(dataset, member, tmp_path / f"members/m{member}", **options)
        torch.manual_seed(99)
        assert resumed.resume() == 23
        assert largest_difference(lone_tensors(resumed), member_tensors(trainer, member)) == 0
        resumed.train()
        assert largest_difference(lone_tensors(resumed), lone_tensors(alone)) < 1e-9
        state, expected = (each.learner.optimizer.state_dict() for each in (resumed, alone))
        assert state["state"].keys() == expected["state"].keys()
        for index, moments in expected["state"].items():
            torch.testing.assert_close(state["state"][index], moments, rtol=1e-9, atol=1e-9)
        assert state["param_groups"] == expected["param_groups"]
        generators = [each.buffer._rng.get_state() for each in (resumed, alone)]
        assert torch.equal(*generators)
        rows = without_timing(tmp_path / f"members/m{member}/train.csv")
        assert [row["step"] for row in rows] == [7, 14, 21, 23, 28, 35, 42, 46]
        by_step = {row["step"]: row for row in alone.logger.train.rows}
        for row in rows:
            if row["step"] not in (23, 28):  # a row closes at the end of each part
                by_step[row["step"]].pop("seconds")
                assert row == pytest.approx(by_step[row["step"]], rel=1e-9, abs=1e-12)


def test_a_split_member_goes_on_with_the_window_of_the_population(tmp_path, data):
    trainer = make_population(data, (0, 1), tmp_path, rules=MIXER, steps=20, log_every=8, checkpoint_every=4)
    trainer.deadline, trainer.evaluators = math.inf, {"stop": lambda: trainer.finish() if trainer.step == 12 else None}
    trainer.eval_every = 4
    trainer.train()
    assert trainer.step == 12
    trainer.finished = False
    split_population(trainer)
    options = {"rules": MIXER, "steps": 20, "log_every": 8}
    resumed, alone = make_alone(data, 1, tmp_path / "members/m1", **options), make_alone(data, 1, **options)
    for each in (resumed, alone):
        if each is resumed:
            each.resume()
        else:
            torch.manual_seed(SEEDS[1])
        each.train()
    rows = [row["loss_actor"] for row in read_csv(tmp_path / "members/m1/train.csv")]
    assert rows == pytest.approx([row["loss_actor"] for row in alone.logger.train.rows], rel=1e-4)


def test_policies_are_written_for_each_member(tmp_path, discrete):
    trainer = make_population(discrete, (0, 1), tmp_path, rules=NOISY)
    trainer.train()
    batch = discrete.data[:20].select(("agents", "observation"), ("agents", "action_mask"))
    logits = []
    for name, loss in trainer.learner.member_losses():
        saved = load_policy(tmp_path / "members" / name)
        assert saved.metadata["step"] == 20
        logits.append(saved.policy(batch.clone())["agents", "logits"])
        assert torch.equal(saved.policy.state_dict()["module.0.module.mlp.layers.0.bias"], tensors_of(loss)[FIRST_BIAS])
        assert torch.equal(logits[-1], loss.actor_network(batch.clone())["agents", "logits"])
    assert not torch.equal(*logits)


# --------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize("mode", ["mode", "sample"])
def test_every_member_plays_its_own_slots(tmp_path, discrete, mode):
    trainer = make_population(discrete, (0, 1, 2), tmp_path, rules=NOISY, rates=(0.1, 0.1, 0.1))
    trainer.train()
    rng = torch.get_rng_state()
    found = evaluate_population(trainer.learner.population, SlotEnv(6), episodes=3, seed=5, mode=mode)
    assert torch.equal(torch.get_rng_state(), rng)
    assert list(found) == ["m0", "m1", "m2"]
    for name in found:
        assert found[name].lengths.tolist() == [3, 5, 3]
        assert (found[name].mode, found[name].seed) == (mode, 5)
    repeated = evaluate_population(trainer.learner.population, SlotEnv(6), episodes=3, seed=5, mode=mode)
    assert all(torch.equal(found[name].returns, repeated[name].returns) for name in found)
    if mode == "mode":
        for name in found:
            policy = load_policy(tmp_path / "members" / name).policy
            assert torch.equal(found[name].returns, evaluate(policy, SlotEnv(2), episodes=3, seed=5).returns)
        assert len({tuple(evaluation.returns.tolist()) for evaluation in found.values()}) > 1
    else:
        other = evaluate_population(trainer.learner.population, SlotEnv(6), episodes=3, seed=6, mode=mode)
        assert any(not torch.equal(found[name].returns, other[name].returns) for name in found)


def test_samples_are_of_each_members_own_distribution(discrete):
    """Long play: the mean return of sampled actions is that of the member's actor alone, and differs between them."""
    trainer = make_population(discrete, (0, 1), rules=NOISY, rates=(0.05, 0.05), steps=40)
    trainer.train()
    found = evaluate_population(trainer.learner.population, SlotEnv(80), episodes=400, seed=0, mode="sample")
    for name, loss in trainer.learner.member_losses():
        alone = evaluate(loss.actor_network, SlotEnv(40), episodes=400, seed=1, mode="sample")
        error = math.hypot(found[name].std, alone.std) / math.sqrt(400)
        assert abs(found[name].mean - alone.mean) < 4 * error


def test_members_act_by_their_running_statistics(tmp_path, discrete):
    rules = {"algorithm": "cql", "batch_norm": True, "hidden": (8,)}
    trainer = make_population(discrete, (0, 1), tmp_path, rules=rules, rates=(0.01, 0.01))
    trainer.train()
    before = {name: tensor.clone() for name, tensor in trainer.learner.population.tensors().items()}
    found = evaluate_population(trainer.learner.population, SlotEnv(4), episodes=3, seed=5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.learner.population.tensors().items())
    for name, loss in trainer.learner.member_losses():
        assert loss.actor_network.training
        policy = load_policy(tmp_path / "members" / name).policy
        for actor in (policy, loss.actor_network):
            assert torch.equal(found[name].returns, evaluate(actor, SlotEnv(2), episodes=3, seed=5).returns)
    assert not torch.equal(found["m0"].returns, found["m1"].returns)


def test_evaluation_in_an_environment_of_the_library():
    env = make_env("mpe/simple_spread", num_envs=2)
    dataset = make_data()
    trainer = make_population(dataset, (0, 1), rules=MIXER, steps=1)
    with pytest.raises(ValueError, match="An environment of 3 slots cannot be shared by 2 members; make one of a"):
        evaluate_population(trainer.learner.population, make_env("mpe/simple_spread", num_envs=3), episodes=2, seed=0)
    with pytest.raises(ValueError, match="episodes must be at least 1, got 0"):
        evaluate_population(trainer.learner.population, env, episodes=0, seed=0)
    with pytest.raises(ValueError, match=r"mode must be .*, got 'best'"):
        evaluate_population(trainer.learner.population, env, episodes=2, seed=0, mode="best")


def test_evaluations_are_written_to_each_members_table(tmp_path, discrete):
    trainer = make_population(
        discrete, (0, 1), tmp_path, rules=NOISY, eval_every=10, eval_at_start=True, steps=20, rates=(0.1, 0.1)
    )
    env = SlotEnv(4)
    trainer.evaluators["mode"] = lambda: evaluate_population(trainer.learner.population, env, episodes=4, seed=5)
    trainer.train()
    last = evaluate_population(trainer.learner.population, env, episodes=4, seed=5)
    for name in trainer.learner.members:
        rows = read_csv(tmp_path / "members" / name / "eval.csv")
        assert [(row["step"], row["evaluator"]) for row in rows] == [(0, "mode"), (10, "mode"), (20, "mode")]
        assert rows[-1]["return"] == pytest.approx(last[name].mean)


# --------------------------------------------------------------------------- errors


def losses_of(data, *changes: dict):
    return {f"m{i}": make_member(data, 0, **MIXER | change) for i, change in enumerate(changes)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ({}, {"hidden": (9,)}),
            "layers.0.out_features is 8 in m0 and 9 in m1; .* coefficients and seeds only. Train them in two",
        ),
        (({}, {"decomposition": "vdn"}), "mixer_network_params is TensorDictParams.* in m0 and not there in m1; "),
        (({}, {"value_learning": "sarsa"}), "value_learning is IQL.* in m0 and SARSA.* in m1"),
        (({}, {"extraction": "brac"}), "extraction is AWR.* in m0 and BRAC.* in m1"),
        (({}, {"heads": "min"}), "heads is all in m0 and min in m1; .*coefficients and seeds only"),
        (({}, {"team_reward": "sum"}), "team_reward is mean in m0 and sum in m1"),
        (({}, {"advantage": "local"}), "extraction.advantage is joint in m0 and local in m1"),
        (({}, {"svn": False}), "value_norm is .*Norm in m0 and None in m1"),
    ],
    ids=["hidden", "decomposition", "learning", "extraction", "heads", "reward", "advantage", "svn"],
)
def test_members_must_be_of_one_structure(data, changes, message):
    with pytest.raises(ValueError, match=message):
        Population(losses_of(data, *changes))


def test_other_structural_differences_are_refused(data):
    frozen = losses_of(data, {}, {"frozen": True})
    with pytest.raises(ValueError, match=r"mixer_network_params.* is trained in m0 and not in m1"):
        Population(frozen)
    lam = losses_of(data, {}, {})
    lam["m1"].make_value_estimator("tdlambda", gamma=0.9, lmbda=0.5)
    with pytest.raises(ValueError, match="m1"):
        Population(lam)
    standardized = losses_of(data, {}, {})
    standardized["m1"].extraction = AWR(1.0, advantage="joint", max_relative_weight=5.0)
    with pytest.raises(ValueError, match=r"extraction\.max_relative_weight is 30.0 in m0 and 5.0 in m1"):
        Population(standardized)
    kinds = losses_of(data, {}, {})
    kinds["m1"] = AWRLoss(*actor_and_critic(kinds["m1"]), rule=AWR())
    with pytest.raises(ValueError, match="the loss is OfflineMARLLoss in m0 and AWRLoss in m1"):
        Population(kinds)
    with pytest.raises(ValueError, match="at least one member"):
        Population({})


def actor_and_critic(loss):
    return loss.actor_network, loss.qvalue_network, loss.value_network


def test_as_many_seeds_and_rates_as_members(data):
    losses = {f"m{member}": make_member(data, member, **MIXER) for member in (0, 1)}
    buffer = PopulationBuffer(data.data, batch_size=12, seeds=(1, 2, 3))
    with pytest.raises(ValueError, match="The buffer has 3 seeds for 2 losses; give one for each member"):
        Trainer(PopulationLearner(losses), buffer, steps=1)
    buffer = PopulationBuffer(data.data, batch_size=12, seeds=(1, 2))
    with pytest.raises(ValueError, match="3 learning rates for 2 members; give one for each"):
        Trainer(PopulationLearner(losses, lr=[1e-3] * 3), buffer, steps=1)
    with pytest.raises(ValueError, match='compile must be "off", "on" or "auto" for a population'):
        Trainer(PopulationLearner(losses, compile={"backend": "eager"}), buffer, steps=1)
    with pytest.raises(ValueError, match="There are no files without an output folder"):
        split_population(Trainer(PopulationLearner(losses), buffer, steps=1))


def test_a_checkpoint_of_other_members_is_refused(tmp_path, data):
    make_population(data, (0, 1), tmp_path, rules=MIXER, steps=2).train()
    with pytest.raises(Exception, match="does not fit this run; resume it with the settings"):
        make_population(data, (0, 1, 2), tmp_path, rules=MIXER, steps=4).resume()
    with pytest.raises(Exception, match=r"does not fit this run.*gamma was"):
        make_population(data, (1, 0), tmp_path, rules=MIXER, steps=4).resume()


def test_the_losses_that_were_given_are_not_moved(data):
    trainer = make_population(data, (0, 1), rules=MIXER)
    template = {
        name: tensor.detach().clone() for name, tensor in tensors_of(trainer.learner.population.template).items()
    }
    trainer.train()
    after = {name: tensor.detach() for name, tensor in tensors_of(trainer.learner.population.template).items()}
    assert largest_difference(after, template) == 0
