"""What is known to be wrong is refused before the first file and the first step."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest
import torch
from trainers import trainer_for
from training_toys import RegressionLoss, make_buffer, make_trainer

from torchrl_marl_offline.algorithms import ALGORITHMS, make_loss
from torchrl_marl_offline.commands import data as data_command
from torchrl_marl_offline.core.annotations import parameters_of
from torchrl_marl_offline.core.layout import TaskSpec
from torchrl_marl_offline.core.relevance import OF_CONTINUOUS, conditions_of
from torchrl_marl_offline.data import list_datasets
from torchrl_marl_offline.objectives import AWR, BRAC, TD, GlobalToLocal
from torchrl_marl_offline.recording import record
from torchrl_marl_offline.study.checking import StudyError
from torchrl_marl_offline.study.runner import run_study
from torchrl_marl_offline.study.settings import read_study
from torchrl_marl_offline.training import Trainer

SPEC = TaskSpec(n_agents=2, observation_size=3, state_size=6, action_size=2)
NAN = float("nan")


@pytest.mark.fault("3.6")
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"clip_grad_norm": -1}, "clip_grad_norm must be above 0, got -1."),
        ({"clip_grad_norm": 0}, "clip_grad_norm must be above 0, got 0."),
        ({"clip_grad_norm": NAN}, "clip_grad_norm must be above 0, got nan."),
        ({"lr": -1}, "lr must be above 0, got -1."),
        ({"steps": 0}, "steps must be at least 1, got 0."),
        ({"eval_every": 0}, "eval_every must be at least 1, got 0."),
        ({"tau": 2}, "tau must be above 0 and at most 1, got 2."),
    ],
)
def test_a_trainer_takes_no_number_that_would_train_nothing_or_ascend(tmp_path, options, sentence):
    with pytest.raises(ValueError) as error:
        make_trainer(tmp_path / "run", **options)
    assert str(error.value) == sentence and not (tmp_path / "run").exists()


@pytest.mark.fault("3.6")
@pytest.mark.parametrize("gamma", [2, -1, NAN, "0.9", True])
def test_a_discount_lies_between_0_and_1(gamma):
    with pytest.raises(ValueError, match="gamma must"):
        make_loss(SPEC, hidden=(4,), gamma=gamma)
    loss = make_loss(SPEC, hidden=(4,))
    with pytest.raises(ValueError, match="gamma must"):
        loss.make_value_estimator(gamma=gamma)


@pytest.mark.fault("3.7")
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"keep_best": ("nope", "return")}, "keep_best names the evaluator 'nope'; there is 'a'."),
        ({"keep_best": ("a", "return"), "output": None}, "keep_best is read only with output"),
        ({"eval_every": None}, "The evaluators would never be asked; give eval_every, or leave them out."),
        ({"evaluators": None}, "eval_every and eval_at_start are read only with evaluators"),
        ({"optimizer": "given", "lr": 0.1}, "lr is read only with no optimizer"),
        ({"checkpoint_every": 3, "output": None}, "checkpoint_every is read only with output"),
    ],
)
def test_a_trainer_refuses_what_would_change_nothing(tmp_path, options, sentence):
    loss = RegressionLoss()
    given = {"steps": 4, "eval_every": 2, "evaluators": {"a": dict}, "output": tmp_path / "run", "progress": False}
    given |= options
    if "optimizer" in given:
        given["optimizer"] = torch.optim.SGD(loss.parameters(), lr=0.1)
    with pytest.raises(ValueError) as error:
        trainer_for(loss, make_buffer(), **given).train()
    assert str(error.value).startswith(sentence) and not (tmp_path / "run").exists()


def test_a_best_checkpoint_by_what_is_not_measured_is_refused_in_a_sentence(tmp_path):
    trainer = make_trainer(
        tmp_path, steps=2, evaluators={"a": lambda: {"return": 1.0}}, eval_every=1, keep_best=("a", "score")
    )
    with pytest.raises(ValueError, match="keep_best names 'score', which 'a' does not measure; it has return"):
        trainer.train()


CONDITIONAL = [
    (algorithm, name)
    for algorithm, builder in ALGORITHMS.items()
    for name, (hint, _) in parameters_of(builder).items()
    if set(conditions_of(hint)) - {OF_CONTINUOUS}
    and (algorithm, name) not in (("cfcql", "team_reward"), ("spacql", "team_reward"))  # theirs are teams' in any case
]
OTHERS = {
    "distribution": "one_step",
    "extraction": "brac",
    "value_learning": "td",
    "decomposition": "independent",
    "num_heads": 1,
    "noise": 0.0,
}
VALUES = {"frozen": True, "heads": "min", "team_reward": "sum", "advantage": "local", "expectile": 0.6}
VALUES |= {"weights": "softmax", "online_advantage": True, "sampler_centre": "updated"}


@pytest.mark.fault("3.7")
@pytest.mark.parametrize(("algorithm", "name"), CONDITIONAL)
def test_a_setting_of_a_method_that_changes_nothing_is_refused(algorithm, name):
    (condition,) = set(conditions_of(parameters_of(ALGORITHMS[algorithm])[name][0])) - {OF_CONTINUOUS}
    other = {"sampler": "random"}.get(condition.other, OTHERS.get(condition.other))
    if name == "alpha":
        other = "awr"
    if algorithm in ("cfcql", "spacql") and condition.other == "decomposition":
        other = "vdn"  # independent critics are refused before
    settings = {condition.other: other, name: VALUES.get(name, 4)}
    with pytest.raises(ValueError, match=f"{name} is read only with {condition.other}.*; leave {name} out"):
        make_loss(SPEC, algorithm=algorithm, **settings)


@pytest.mark.fault("3.7")
def test_conditions_name_options_that_are_there():
    for builder in ALGORITHMS.values():
        known = parameters_of(builder)
        conditions = [each for hint, _ in known.values() for each in conditions_of(hint) if each is not OF_CONTINUOUS]
        assert all(each.other in known for each in conditions)
    for kind in (Trainer,):
        known = inspect.signature(kind).parameters
        assert all(c.other in known for hint, _ in parameters_of(kind).values() for c in conditions_of(hint))


@pytest.mark.fault("3.7")
def test_a_published_task_that_is_not_there_is_refused(capsys):
    with pytest.raises(ValueError, match=r"There is no published task 'smac_v1/3n'; near are smac_v1/3m"):
        list_datasets("og_marl", "smac_v1/3n")
    assert data_command.main(["list", "og_marl", "nope"]) == 1
    assert capsys.readouterr().err.startswith("error: There is no published task 'nope'; near are ")


@pytest.mark.fault("3.7")
def test_an_opset_is_read_by_onnx_alone(capsys, tmp_path):
    main = importlib.import_module("torchrl_marl_offline.commands.export").main
    for arguments, sentence in (
        (["--opset", "18"], "--opset is read only with --format onnx"),
        (["--opset", "0", "--format", "onnx"], "--opset must be at least 7, got 0"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main([str(tmp_path), *arguments])
        assert sentence in capsys.readouterr().err
    from torchrl_marl_offline.evaluation import export_policy

    with pytest.raises(ValueError, match="opset is read only with format 'onnx', and format is 'torch' here"):
        export_policy(tmp_path, tmp_path / "x.pt2", opset=17)


@pytest.mark.fault("2.2")
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"transitions": 0}, "transitions must be at least 1, got 0."),
        ({"updates": 0}, "updates must be at least 1, got 0."),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0."),
        ({"num_envs": NAN}, "num_envs must be a whole number, got nan."),
        ({"seed": -1}, "seed must be at least 0, got -1."),
        ({"learner": {"gamma": 5}}, "gamma must lie between 0 and 1, got 5."),
        ({"learner": {"hidden": (0,)}}, "hidden must be at least 1, got 0."),
        ({"levels": {"medium": NAN}}, "levels must be finite, got nan."),
    ],
)
def test_a_recording_is_refused_before_its_folder_is_claimed(tmp_path, options, sentence):
    with pytest.raises(ValueError) as error:
        record("games/grid_navigation", tmp_path / "rec", progress=False, **options)
    assert str(error.value) == sentence and not (tmp_path / "rec").exists()


@pytest.mark.fault("2.2")
def test_the_command_that_records_leaves_nothing_behind_what_it_refuses(tmp_path, capsys):
    folder = tmp_path / "rec"
    assert data_command.main(["record", "games/xor", str(folder), "--option", "updates=0"]) == 1
    assert capsys.readouterr().err == "error: updates must be at least 1, got 0.\n" and not folder.exists()
    with pytest.raises(SystemExit, match="2"):
        data_command.main(["record", "games/xor", str(folder), "--transitions", "0"])
    assert not folder.exists()


STUDY = '[study]\nname = "x"\n{study}\n[evaluation]\n{evaluation}\n[methods.mix]\n{mix}\n[datasets.d]\n{d}\n'


def study_file(folder: Path, *, study="", evaluation="", mix="", d='task = "games/xor"') -> Path:
    (folder / "study.toml").write_text(STUDY.format(study=study, evaluation=evaluation, mix=mix, d=d))
    return folder / "study.toml"


@pytest.mark.fault("3.6")
@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ({"study": "steps = 0"}, r"\[study\] steps must be at least 1, got 0\."),
        ({"study": "gamma = 5"}, r"\[study\] gamma must lie between 0 and 1, got 5\.0\."),
        ({"study": 'metric = "speed"'}, r"\[study\] metric must be one of auto, normalized, .*, got 'speed'\."),
        ({"study": "lr = nan"}, r"\[study\] lr must be above 0, got nan\."),
        ({"study": "last_k = 0"}, r"\[study\] last_k must be at least 1, got 0\."),
        ({"study": "members = -1"}, r"\[study\] members must be at least 1, got -1\."),
        ({"study": "seeds = [-1]"}, r"\[study\] seeds must be at least 0, got -1\."),
        ({"study": "hidden = [0]"}, r"\[study\] hidden must be at least 1, got 0\."),
        ({"evaluation": "every = 0"}, r"\[evaluation\] every must be at least 1, got 0\."),
        (
            {"evaluation": "held_out = 1.0"},
            r"\[evaluation\] held_out must lie between 0 and 1, both excluded, got 1\.0",
        ),
        ({"mix": "temperature = inf"}, r"\[methods.mix\] temperature must be finite, got inf\."),
        ({"mix": "grid.lr = [0.1, -0.1]"}, r"lr must be above 0, got -0\.1\."),
        ({"d": 'task = "games/xor"\nepisodes = 0'}, r"\[datasets.d\] episodes must be at least 1, got 0\."),
        (
            {"d": 'task = "games/xor"\nquality = "perfect"'},
            r"\[datasets.d\] quality must be one of random, medium-replay",
        ),
        (
            {"d": 'task = "games/stitch"\nquality = "bridged_0"'},
            r"\[datasets.d\] coverage must be one of full.* got 'bridged_0'\.",
        ),
        (
            {"d": 'task = "games/xor"\nquality = "expert"\noptions.updates = 0'},
            r"\[datasets.d\] options: updates must be at least 1, got 0\.",
        ),
        (
            {"d": 'task = "games/xor"\nquality = "expert"\noptions.update = 1'},
            r"\[datasets.d\] options: got an unexpected keyword argument 'update'\.",
        ),
    ],
)
def test_a_study_file_takes_no_number_outside_its_range(tmp_path, parts, sentence):
    with pytest.raises(StudyError, match=sentence):
        read_study(study_file(tmp_path, **parts))


@pytest.mark.fault("2.2")
def test_a_study_refuses_what_it_cannot_run_before_it_makes_its_folder(tmp_path):
    file = study_file(tmp_path, study="steps = 3\nhidden = [4]\noutput = 'out'")
    with pytest.raises(StudyError, match="--only has an unknown key 'nope'"):
        run_study(file, only=["nope"], say=print)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: TD(noise=0.0, noise_clip=0.1), "noise_clip is read only with noise above 0"),
        (lambda: AWR(weights="clipped", exponent_range=(5.0, -5.0)), "exponent_range must be two rising numbers"),
        (lambda: GlobalToLocal(exponent_range=(5.0, 5.0)), "exponent_range must be two rising numbers"),
        (lambda: AWR(standardize="no"), "standardize must be True or False, got 'no'"),
        (lambda: BRAC(normalize="no"), "normalize must be True or False, got 'no'"),
        (lambda: make_loss(SPEC, share_params="no"), "share_params must be True or False, got 'no'"),
        (lambda: make_loss(SPEC, svn="yes"), "svn must be True or False, got 'yes'"),
    ],
)
def test_rules_take_no_word_for_a_bool_and_no_option_without_effect(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
