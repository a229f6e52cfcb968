"""Certificates of laser worlds beside a search of all states, and the worlds of the seeds."""

from __future__ import annotations

import hashlib
import itertools
import json

import pytest
from selection import some_of

from torchrl_marl_offline.envs import CORE_WORLDS, certify_world, generate_world, make_env
from torchrl_marl_offline.envs.laser_worlds import parsed

lle = pytest.importorskip("lle")


class Searched:
    """Every state of a world that can be come to without a death, by the rules of the package alone."""

    def __init__(self, text: str) -> None:
        self.world = parsed(text)
        self.exits = set(self.world.exit_pos)
        self.beams = [(beam.pos, beam.colour) for beam in self.world.lasers]
        self.start = self._state()
        self._following = {}

    def _state(self):
        state = self.world.get_state()
        return tuple(state.agents_positions), tuple(state.gems_collected)

    def following(self, state):
        """Return what each joint action leads to: the state and what is paid; a death ends it, as ``None``."""
        if state not in self._following:
            self._put(state)
            found = []
            for joint in itertools.product(*self.world.available_actions()):
                self._put(state)
                events = [event.event_type for event in self.world.step(joint)]
                died = events.count(lle.EventType.AGENT_DIED)
                paid = events.count(lle.EventType.GEM_COLLECTED) + events.count(lle.EventType.AGENT_EXIT) - died
                after = None if died else self._state()
                found.append((after, paid + (after is not None and self.is_over(after))))
            self._following[state] = set(found)
        return self._following[state]

    def _put(self, state):
        self.world.reset()  # the package refuses some positions otherwise, as if agents came there one after another
        self.world.set_state(lle.WorldState(list(state[0]), list(state[1]), [True] * len(state[0])))

    def is_over(self, state):
        return all(cell in self.exits for cell in state[0])

    def helped(self, state):
        """Return (who helps, who is helped): in a beam of another colour an agent lives only behind a block."""
        cells = enumerate(state[0])
        return {(colour, agent) for agent, cell in cells for place, colour in self.beams if place == cell != agent}

    def shortest(self, horizon, *, allows=lambda pairs: True, gems=False):
        """Return the fewest steps to the end, where ``allows`` says which sets of help may have come about."""
        first = self.start, frozenset(pair for pair in self.helped(self.start) if pair[0] != pair[1])
        seen, now = {first}, [first]
        for steps in range(1, horizon + 1):
            after = []
            for state, pairs in now:
                for following, _ in self.following(state):
                    if following is None:
                        continue
                    gone = pairs | {pair for pair in self.helped(following) if pair[0] != pair[1]}
                    node = following, gone
                    if node in seen or not allows(gone):
                        continue
                    if self.is_over(following):
                        if not gems or all(following[1]):
                            return steps
                        continue
                    seen.add(node)
                    after.append(node)
            now = after
        return None

    def best_return(self, horizon, gamma, pays):
        """Return the best discounted return by dynamic programming, with ``pays(paid, is_over)`` a step's reward."""
        states, waiting = {self.start}, [self.start]
        while waiting:
            for after, _ in self.following(waiting.pop()):
                if after is not None and after not in states and not self.is_over(after):
                    states.add(after)
                    waiting.append(after)
        value = dict.fromkeys(states, 0.0)
        for _ in range(horizon):
            value = {
                state: max(
                    pays(paid, after is not None and self.is_over(after)) + gamma * value.get(after, 0.0)
                    for after, paid in self.following(state)
                )
                for state in states
            }
        return value[self.start]


def tiny(seed: int, lasers: int = 2) -> str:
    layouts = lle.generate(width=4, height=4, n_agents=2).lanes().lasers(lasers).gems(1)
    return layouts.build(seed=seed).world_string


HAND = {  # kind and steps of the shortest plan
    "S0 . X\nS1 . X": ("none", 2),
    "S1 . . X\n. . . L0W\n. . . .\nS0 . . X": ("none", 3),
    "S0 S1 .\n. . L0W\n. . .\nX . X": ("one_sided", 6),
    "S1 . S0\n. . .\n. . L0W\nX X .": ("one_sided", 4),
}
WORLDS = [*HAND, *(tiny(seed) for seed in range(4)), *(generate_world(kind, 5, size=4).world for kind in ("mutual",))]


@pytest.mark.parametrize("text", WORLDS)
def test_certificates_agree_with_a_search_of_all_states(text):
    horizon, searched = 12, Searched(text)
    found = certify_world(text, horizon=horizon)
    assert found.shortest == searched.shortest(horizon)
    assert found.shortest_with_gems == searched.shortest(horizon, gems=True)
    assert found.shortest_without_help == searched.shortest(horizon, allows=lambda pairs: not pairs)
    mutual = searched.shortest(horizon, allows=lambda pairs: not any((j, i) in pairs for i, j in pairs))
    assert found.shortest_without_mutual == mutual
    if text in HAND:
        kind, steps = HAND[text]
        assert (found.kind, found.shortest) == (kind, steps)


@pytest.mark.parametrize("text", [WORLDS[2], WORLDS[5], WORLDS[-1]])
def test_the_optimum_agrees_with_dynamic_programming(text):
    searched, horizon = Searched(text), 12
    found = certify_world(text, horizon=horizon)
    for gamma in (1.0, 0.9):
        low, high = found.optimum(gamma=gamma)
        best = searched.best_return(horizon, gamma, lambda paid, _: paid)
        assert low - 1e-9 <= best <= high + 1e-9
        assert gamma < 1 or low == high or found.shortest_with_gems is None
        done = searched.best_return(horizon, gamma, lambda _, is_over: float(is_over))
        assert found.optimum(reward="done", gamma=gamma) == (pytest.approx(done), pytest.approx(done))


def test_a_limit_below_the_plan_leaves_nothing_to_be_done():
    found = certify_world("S0 . X\nS1 . X", horizon=6)
    assert found.optimum(max_steps=1, reward="done") == (0, 0) and found.optimum(max_steps=1) == (0, 1)
    with pytest.raises(ValueError, match=r"of up to 6 steps; certify the world for 7"):
        found.optimum(max_steps=7)
    assert certify_world("S0 @ X\n@ . .\nS1 . X", horizon=9).to_dict()["kind"] is None
    assert make_env("lle/custom", map="S0 @ X\n@ . .\nS1 . X").best_return is None


LEVELS = [("level1", "none", 10), ("level2", "none", 10), ("level3", "one_sided", 10), ("level5", "one_sided", 19)]


@pytest.mark.parametrize(("level", "kind", "steps"), some_of(LEVELS, every=2))
def test_kinds_of_the_levels(level, kind, steps):
    found = make_env(f"lle/{level}", max_steps=30).certificate
    assert (found.kind, found.shortest, found.horizon) == (kind, steps, 78)


@pytest.mark.thorough
@pytest.mark.parametrize(("level", "steps"), [("level4", 10), ("level6", 21)])
def test_levels_of_mutual_help(level, steps):
    found = make_env(f"lle/{level}").certificate
    assert (found.kind, found.shortest, found.horizon) == ("mutual", steps, 78)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def test_the_core_worlds_are_always_the_same():
    found = [make_env(task).certificate for task in CORE_WORLDS]
    assert [each.kind for each in found] == ["none", "none", "one_sided", "one_sided", "mutual", "mutual"]
    assert [each.shortest for each in found] == [7, 6, 8, 10, 9, 8]
    assert [digest(each.world) for each in found] == DIGESTS
    assert [digest(json.dumps(each.plan)) for each in found] == PLANS


DIGESTS = ["b7fec9312dcc", "075e0221470a", "05c57814484d", "9ec12554e428", "fac2adf1deb5", "aa2e9fda505b"]
PLANS = ["7d8395bf398c", "6475fce6774c", "39a3435438d6", "23afc1b77a64", "144da3d60e9e", "5042e8b44248"]


@pytest.mark.parametrize("options", [{}, {"size": 6, "agents": 3, "gems": 2}])
@pytest.mark.parametrize("kind", ["none", "one_sided", "mutual"])
def test_worlds_are_of_their_kind_and_of_their_seed(kind, options):
    made = generate_world(kind, 11, **options)
    generate_world.cache_clear()
    assert generate_world(kind, 11, **options) == made != generate_world(kind, 12, **options)
    assert made.kind == kind and made.agents == options.get("agents", 2) and made.gems == options.get("gems", 0)
    size = options.get("size", 5)
    assert made.horizon == size**2 and made.shortest >= size
    if kind == "one_sided":
        assert made.shortest == made.shortest_without_mutual and made.shortest_without_help is None
    assert json.loads(json.dumps(made.to_dict()))["shortest"] == made.shortest


def test_a_longer_limit_is_certified_too():
    world = generate_world("one_sided", 0)
    env = make_env("lle/one_sided-0", max_steps=40)
    assert env.horizon == 40 and env.certificate.horizon == 40 and env.certificate.shortest == world.shortest
    assert make_env("lle/one_sided-0", max_steps=10).certificate == world


def test_sizes_that_the_solver_would_not_survive_are_refused():
    """The package ends the process where its memory is not enough."""
    for limit in (10_001, 10**9):
        with pytest.raises(ValueError, match="max_steps must be at most 10,000"):
            make_env("lle/none-0", max_steps=limit)
        with pytest.raises(ValueError, match="horizon must be at most 10,000"):
            certify_world("S0 . X", horizon=limit)
        with pytest.raises(ValueError, match="max_steps must be at most 10,000"):
            certify_world("S0 . X", horizon=5).optimum(max_steps=limit)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kind": "selfish"}, "kind must be 'none', 'one_sided' or 'mutual', got 'selfish'"),
        ({"kind": None}, "kind must be"),
        ({"kind": "none", "size": 4, "agents": 4, "lasers": 4, "gems": 8}, "No world of the kind none was found"),
    ],
)
def test_what_cannot_be_generated_is_said(options, said):
    with pytest.raises(ValueError, match=said):
        generate_world(**options)
