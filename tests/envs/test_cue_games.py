"""The games of memory: rules by hand, exact values by going through every policy of tiny games."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch

from torchrl_marl_offline.core.layout import ACTION, OBSERVATION, REWARD, STATE
from torchrl_marl_offline.envs import make_env
from torchrl_marl_offline.envs.cue_games import groups_told_apart
from torchrl_marl_offline.evaluation.statistics import mean_confidence_interval


def test_recall_by_hand():
    env = make_env("games/recall", num_envs=4, cues=2, actions=3, delay=2)
    td = env.set_state(torch.tensor([0, 1, 1, 1]))
    assert td[OBSERVATION].tolist() == [[[1, 0, 0]] * 2] + [[[0, 1, 0]] * 2] * 3
    assert td[STATE][:2].tolist() == [[1, 0, 0], [0, 1, 0]]
    for time in (1, 2):
        td = env.step(td.set(ACTION, torch.full((4, 2), 2 - time)))["next"]
        assert td[OBSERVATION].tolist() == [[[0, 0, float(time == 2)]] * 2] * 4
        torch.testing.assert_close(td[STATE][1], torch.tensor([0, 1, time / 3]))
        assert not td["done"].any() and (td[REWARD] == 0).all() and not td["success"].any()
    td = env.step(td.set(ACTION, torch.tensor([[0, 0], [0, 1], [1, 1], [2, 2]])))["next"]
    assert td[REWARD].squeeze(-1).tolist() == [[1, 1], [0, 0], [1, 1], [0, 0]]
    assert td["success"].flatten().tolist() == [True, False, True, False]
    assert td["terminated"].all() and not td["truncated"].any()
    assert (td[OBSERVATION] == 0).all()


def test_telephone_by_hand():
    env = make_env("games/telephone", num_envs=2, agents=3, cues=3, actions=4, words=2, delay=2)
    td = env.set_state(torch.tensor([2, 0]))
    nothing = [0.0] * 6
    assert td[OBSERVATION].tolist() == [[[0, 0, 1, 0, 0, 0], nothing, nothing], [[1, 0, 0, 0, 0, 0], nothing, nothing]]
    assert td[STATE][0].tolist() == [0, 0, 1] + [0] * 6 + [0]
    td = env.step(td.set(ACTION, torch.tensor([[3, 2, 0], [0, 1, 1]])))["next"]
    # 3 and 1 are the second of two words, 0 and 2 the first
    assert td[OBSERVATION][0].tolist() == [nothing, [0, 0, 0, 0, 1, 0], [0, 0, 0, 1, 0, 0]]
    assert td[OBSERVATION][1].tolist() == [nothing, [0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 1, 0]]
    torch.testing.assert_close(td[STATE][0], torch.tensor([0, 0, 1, 0, 1, 1, 0, 1, 0, 1 / 3]))
    td = env.step(td.set(ACTION, torch.tensor([[0, 1, 2], [0, 0, 0]])))["next"]
    assert td[OBSERVATION][0].tolist() == [[0, 0, 0, 0, 0, 1], [0, 0, 0, 1, 0, 1], [0, 0, 0, 0, 1, 1]]
    assert (td[REWARD] == 0).all() and not td["done"].any()
    td = env.step(td.set(ACTION, torch.tensor([[1, 1, 2], [0, 0, 3]])))["next"]  # the last agent's alone counts
    assert td[REWARD].squeeze(-1).tolist() == [[1, 1, 1], [0, 0, 0]]
    assert td["terminated"].all()


@pytest.mark.parametrize(
    ("agents", "cues", "words", "steps", "with_memory", "without"),
    [
        (2, 9, 2, 1, 2, 2),  # one word
        (2, 9, 2, 3, 8, 1),  # three words; without memory the first agent has nothing to say in the last
        (2, 9, 2, 4, 9, 1),  # sixteen messages for nine cues
        (3, 9, 3, 2, 3, 3),
        (3, 9, 3, 3, 9, 1),
        (4, 9, 2, 4, 4, 1),
        (4, 9, 2, 2, 1, 1),  # too far
    ],
)
def test_groups_that_can_be_told_apart(agents, cues, words, steps, with_memory, without):
    line = {"agents": agents, "cues": cues, "words": words, "steps": steps}
    assert groups_told_apart(**line, memory=True) == with_memory
    assert groups_told_apart(**line, memory=False) == without


PRIOR = (1.0, 3.0, 2.0)
TINY = [
    ("games/recall", {"agents": 2, "cues": 2, "actions": 3, "delay": 2, "prior": (1.0, 3.0)}),
    ("games/recall", {"agents": 2, "cues": 3, "delay": 1, "prior": PRIOR}),
    ("games/telephone", {"cues": 3, "words": 2, "delay": 1, "prior": PRIOR}),
    ("games/telephone", {"cues": 3, "words": 2, "delay": 2, "prior": PRIOR}),
    ("games/telephone", {"cues": 3, "delay": 2, "prior": PRIOR}),
    ("games/telephone", {"agents": 3, "cues": 3, "words": 2, "delay": 2, "prior": PRIOR}),
]


class EveryPlay:
    """All plays of a tiny game: which cue, what each agent did in each step, what it had seen, what all earned."""

    def __init__(self, task, options):
        env = make_env(task, **options)
        n, steps, self.actions = env.task_spec.n_agents, env.max_episode_steps, env.task_spec.action_size
        # actions that can neither pay nor be heard in time would multiply the policies, and nothing else
        acting = range(n) if task == "games/recall" else [n - 1]
        heard = [] if task == "games/recall" else [(i, t) for i in range(n - 1) for t in range(i, steps - n + 1 + i)]
        self.matter = sorted({*heard, *((i, steps - 1) for i in acting)})
        choices = product(range(env.cues), *[range(self.actions)] * len(self.matter))
        table = torch.tensor(list(choices))
        env = make_env(task, num_envs=len(table), **options)
        self.weight = torch.tensor(env.prior, dtype=torch.float64)[table[:, 0]]
        self.chosen = {key: table[:, 1 + column] for column, key in enumerate(self.matter)}
        td, self.seen = env.set_state(table[:, 0]), {}
        for time in range(steps):
            self.seen |= {(i, time): td[OBSERVATION][:, i] for i in range(n)}
            action = torch.zeros(len(table), n, dtype=torch.int64)
            for i in range(n):
                action[:, i] = self.chosen.get((i, time), action[:, i])
            td = env.step(td.set(ACTION, action))["next"]
        self.earned = td[REWARD].mean((1, 2)).double() * self.weight
        self.env = env

    def known(self, memory):
        """Return, for each action that matters, the number of what its agent knows then, and how many there are."""
        numbers, counts = {}, {}
        for agent in sorted({i for i, _ in self.matter}):
            times = [t for i, t in self.matter if i == agent]
            past = {t: [self.seen[agent, u] for u in (range(t + 1) if memory else [t])] for t in times}
            rows = [tuple(map(tuple, seen)) for t in times for seen in torch.stack(past[t], 1).tolist()]
            names = {known: number for number, known in enumerate(dict.fromkeys(rows))}
            ids = torch.tensor([names[known] for known in rows]).view(len(times), -1)
            numbers |= {(agent, t): ids[place] for place, t in enumerate(times)}
            counts[agent] = len(names)
        return numbers, counts

    def best_deterministic(self, memory):
        """Return the largest mean return of all joint deterministic policies."""
        numbers, counts = self.known(memory)
        # every play of a deterministic team has one row for each cue: the last agent's best answer to the others'
        # policies is found for each of them
        *others, last = sorted(counts)
        tables = [torch.tensor(list(product(range(self.actions), repeat=counts[i]))) for i in others]
        best = 0.0
        own = [key for key in self.matter if key[0] == last]
        for policies in product(*tables):
            fits = torch.ones(len(self.weight), dtype=torch.bool)
            for policy, agent in zip(policies, others):
                for key in (key for key in self.matter if key[0] == agent):
                    fits &= self.chosen[key] == policy[numbers[key]]
            (key,) = own  # it acts once
            answers = torch.zeros(counts[last], self.actions, dtype=torch.float64)
            answers.index_put_((numbers[key][fits], self.chosen[key][fits]), self.earned[fits], accumulate=True)
            best = max(best, float(answers.amax(1).sum()))
        return best

    def value(self, policies, memory):
        """Return the mean returns of stochastic teams: for each agent ``[P, known, actions]`` probabilities."""
        numbers, _ = self.known(memory)
        probability = self.earned.expand(len(next(iter(policies.values()))), -1)
        for key in self.matter:
            probability = probability * policies[key[0]][:, numbers[key], self.chosen[key]]
        return probability.sum(1)


@pytest.mark.parametrize(("task", "options"), TINY)
def test_exact_values_are_the_best_of_all_policies(task, options):
    plays = EveryPlay(task, options)
    assert plays.best_deterministic(memory=True) == pytest.approx(plays.env.best_return)
    assert plays.best_deterministic(memory=False) == pytest.approx(plays.env.best_memoryless_return)
    uniform = {
        i: torch.full((1, count, plays.actions), 1 / plays.actions) for i, count in plays.known(False)[1].items()
    }
    assert plays.value(uniform, memory=False).item() == pytest.approx(plays.env.reference_returns[0])
    assert plays.env.reference_returns[1] == plays.env.best_return


@pytest.mark.parametrize(("task", "options"), TINY)
def test_chance_does_not_help_a_team_without_memory(task, options):
    """Ascent on the exact value of stochastic teams from many starts comes up to the bound, never beyond."""
    plays = EveryPlay(task, options)
    torch.manual_seed(0)
    logits = {
        i: torch.randn(50, count, plays.actions, dtype=torch.float64) for i, count in plays.known(False)[1].items()
    }
    optimizer = torch.optim.Adam([each.requires_grad_() for each in logits.values()], lr=0.3)
    for _ in range(40):
        value = plays.value({i: each.softmax(-1) for i, each in logits.items()}, memory=False)
        assert value.max() <= plays.env.best_memoryless_return + 1e-9
        optimizer.zero_grad()
        (-value.sum()).backward()
        optimizer.step()
    assert value.max() > plays.env.best_memoryless_return - 0.02


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("games/recall", {"cues": 3, "delay": 1}),
        ("games/recall", {"agents": 1, "delay": 20}),
        ("games/telephone", {"agents": 3, "prior": (5, 1, 1, 1), "delay": 3}),
        ("games/telephone", {"actions": 5, "words": 3}),
    ],
)
def test_uniform_play_earns_what_is_said(task, options):
    env = make_env(task, num_envs=20_000, seed=0, **options)
    torch.manual_seed(0)
    earned = env.rollout(env.max_episode_steps)["next", *REWARD].mean((2, 3)).sum(1)
    _, low, high = mean_confidence_interval(earned, 0.999)
    assert low < env.reference_returns[0] < high


def test_cues_come_as_the_prior_says():
    count, prior = 50_000, (0.0, 3.0, 1.0, 0.0)
    env = make_env("games/recall", num_envs=count, seed=1, prior=prior)
    assert env.prior == (0, 0.75, 0.25, 0)
    assert (env.best_return, env.best_memoryless_return) == (1.0, 0.75)
    share = env.reset()[STATE][:, :4].mean(0)
    assert share[0] == share[3] == 0
    assert abs(share[1] - 0.75) < 4 * math.sqrt(0.75 * 0.25 / count)


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("games/recall", {"actions": 3}, "actions must be at least as many as the cues in games/recall, got 3 and 4"),
        ("games/recall", {"cues": 1}, "cues must be at least 2"),
        ("games/recall", {"delay": 0}, "delay must be at least 1"),
        ("games/recall", {"prior": (1, 2)}, "prior must be 4 numbers, one a cue and not all 0"),
        ("games/recall", {"prior": (0, 0, 0, 0)}, "prior must be 4 numbers"),
        ("games/recall", {"prior": (1, 1, 1, -1)}, "prior must be at least 0"),
        ("games/recall", {"words": 2}, "games/recall has no option 'words'"),
        ("games/telephone", {"agents": 1}, "agents must be at least 2"),
        ("games/telephone", {"words": 5}, "words must be at most one for each of the 4 actions, got 5"),
        ("games/telephone", {"agents": 4, "delay": 2}, "delay must be at least 3 for 4 agents, a step from each"),
        ("games/telephone", {"cues": 5, "actions": 4}, "actions must be at least as many as the cues"),
    ],
)
def test_bad_options_of_cue_games(task, options, message):
    with pytest.raises(ValueError, match=message):
        make_env(task, **options)
