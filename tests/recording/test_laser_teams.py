"""``record`` on lle/*: scripted qualities with the world's certificate, and what there is not."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from torchrl_marl_offline.data.quality.card import describe
from torchrl_marl_offline.envs import make_env
from torchrl_marl_offline.evaluation import make_simulator
from torchrl_marl_offline.recording import record, record_mixed_skill

pytest.importorskip("lle")

SIZES = {"transitions": 200, "num_envs": 20, "progress": False, "learner": {"hidden": (4,)}}


def test_scripted_qualities_carry_the_certificate(tmp_path):
    options = {"gems": 1, "reward": "exits"}
    names = ["plan", "noisy_0.1", "dropped", "mixed", "plan-random"]
    sets = record("lle/mutual-1", tmp_path / "a", qualities=names, task_options=options, **SIZES)
    again = record("lle/mutual-1", tmp_path / "b", qualities=names[2:4], task_options=options, **SIZES)
    assert list(sets) == names and all((again[name].data == sets[name].data).all() for name in again)
    assert not (tmp_path / "a" / "behaviour" / "eval.csv").exists()
    env = make_env("lle/mutual-1", **options)
    for name, dataset in sets.items():
        assert dataset.metadata["certificate"] == env.certificate.to_dict() and dataset.metadata["best_return"] == 3
        simulator = make_simulator(dataset, num_envs=2)
        assert simulator.world == env.world and simulator.reward_kind == "exits"
        assert dataset.metadata["quality"] == name
    card = str(describe(sets["noisy_0.1"]))
    assert "\nbest_return  3.0\n" in card and "\ncertificate  mutual; shortest plan " in card
    assert sets["plan"].success().all() and (sets["plan"].episode_returns() == 3).all()
    assert sets["mixed"].metadata["behaviour"] == "expert with epsilon 0.05, dropped, random, shares [0.3, 0.4, 0.3]"
    rates = [sets[name].success().float().mean() for name in ("plan", "noisy_0.1", "dropped")]
    assert rates == sorted(rates, reverse=True)


def test_teams_of_which_most_are_short_sighted(tmp_path):
    sizes = SIZES | {"transitions": 4000, "num_envs": 100}
    sets = record("lle/mutual-1", tmp_path / "a", qualities=["outnumbered", "parted"], **sizes)
    again = record("lle/mutual-1", tmp_path / "b", qualities=["parted"], **sizes)
    assert (again["parted"].data == sets["parted"].data).all()
    rates = {name: dataset.success().float().mean() for name, dataset in sets.items()}
    assert 0.04 < rates["outnumbered"] < 0.16 and rates["parted"] < 0.03
    assert sets["parted"].metadata["behaviour"] == (
        "together until a drawn step, then one agent alone as if the others came too (share 0.3), one agent out or one "
        "into a beam (share 0.7), with epsilon 0.1"
    )
    for dataset in sets.values():
        assert mode_of_cloning(dataset, make_env("lle/mutual-1")) < 2


def mode_of_cloning(dataset, env) -> float:
    """Return what a team earns of which each agent takes its most frequent recorded action in each state."""
    seen: dict[tuple[float, ...], list[Counter]] = {}
    for state, joint in zip(dataset.data["state"].tolist(), dataset.data["agents", "action"].tolist(), strict=True):
        counts = seen.setdefault(tuple(state), [Counter() for _ in joint])
        for count, action in zip(counts, joint, strict=True):
            count[action] += 1

    def most_frequent(td):
        counts = seen.get(tuple(td["state"][0].tolist()))
        joint = [0, 0] if counts is None else [count.most_common(1)[0][0] for count in counts]
        return td.set(("agents", "action"), torch.tensor([joint]))

    rollout = env.rollout(env.max_episode_steps, most_frequent)
    return rollout["next", "agents", "reward"].sum(1).mean().item()


def test_mixed_skill_is_recorded_alone_too(tmp_path):
    dataset = record_mixed_skill("lle/one_sided-0", tmp_path, episodes=60)
    assert dataset.metadata["certificate"]["kind"] == "one_sided" and dataset.n_episodes == 60
    assert 0 < dataset.success().float().mean() < 1


def test_the_best_return_of_other_games_is_carried_as_well(tmp_path):
    dataset = record_mixed_skill("games/recall", tmp_path, episodes=20)
    assert dataset.metadata["best_return"] == make_env("games/recall").best_return
    assert "best_return" not in record_mixed_skill("games/xor", tmp_path, episodes=20).metadata


@pytest.mark.parametrize("quality", ["plans", "noisy", "noisy_P", "noisy_0", "noisy_1.5", "noisy_nan", "full"])
def test_unknown_qualities_are_refused(quality, tmp_path):
    with pytest.raises(
        ValueError,
        match=r"quality must be one of random, .*, plan, noisy_P, dropped, mixed, outnumbered, parted, with P",
    ):
        record("lle/mutual-1", tmp_path, qualities=[quality], **SIZES)
    assert not (tmp_path / "recording.json").exists()
