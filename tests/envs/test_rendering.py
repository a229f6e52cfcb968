"""Pictures and videos without a display."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from torchrl.envs import RewardSum, TransformedEnv

from torchrl_marl_offline.core.layout import ACTION, REWARD
from torchrl_marl_offline.envs import GridController, SpreadController, make_env
from torchrl_marl_offline.envs.drawing import Scene, Shape, board, discs, draw, on_board
from torchrl_marl_offline.evaluation import evaluate
from torchrl_marl_offline.evaluation.video import record_video

RED, GREEN, WHITE = (255, 0, 0), (0, 128, 0), (255, 255, 255)


def test_shapes_are_drawn_where_they_lie():
    square = [(0.5, -1.5), (1.5, -1.5), (1.5, -0.5), (0.5, -0.5)]
    shapes = [Shape([(-1.0, 1.0)], radius=0.5, colour="red"), Shape(square, colour="green")]
    shapes += [Shape([(-2.0, -1.0), (0.0, -1.0)], colour="red"), Shape([(1.0, 1.0)], radius=0.5, filled=False)]
    frame = draw(Scene((-2, -2), (2, 2), shapes), size=100)
    assert (frame.shape, frame.dtype) == ((100, 100, 3), np.uint8)
    colour = {(x, y): tuple(frame[round(50 - 25 * y), round(50 + 25 * x)]) for x in (-1, 0, 1) for y in (-1, 0, 1)}
    assert colour[-1, 1] == RED
    assert colour[1, -1] == GREEN
    assert colour[0, 0] == colour[1, 1] == WHITE
    assert colour[-1, -1] != WHITE
    wide = draw(Scene((-4, -2), (4, 2)), size=60)
    assert wide.shape == (60, 120, 3)


def test_boards_have_row_0_on_top():
    assert on_board(torch.tensor([[0, 0], [2, 1]])).tolist() == [[0, 0], [1, -2]]
    cells = on_board(torch.tensor([[0, 3], [1, 0]]))
    frame = draw(board(2, 4, discs(cells, 0.3, ["red", "green"])), size=220)
    side = 220 / 2.2
    centre = {(r, c): tuple(frame[round((r + 0.6) * side), round((c + 0.6) * side)]) for r in (0, 1) for c in (0, 3)}
    assert centre == {(0, 3): RED, (1, 0): GREEN, (0, 0): WHITE, (1, 3): WHITE}


@pytest.mark.parametrize(
    "task",
    [
        *("mpe/simple_spread", "mpe/simple_tag", "mpe/simple_world"),
        *("games/grid_navigation", "games/bridge", "games/recall", "games/telephone"),
        "lle/level6",
    ],
)
def test_pictures_show_the_game(task):
    env = make_env(task, num_envs=3, seed=0)
    env.rollout(4)
    frames = [env.render(index, size=96) for index in range(3)]
    assert all(frame.shape == frames[0].shape and frame.shape[0] == 96 for frame in frames)
    assert all(len(np.unique(frame.reshape(-1, 3), axis=0)) > 3 for frame in frames)
    assert not np.array_equal(frames[0], frames[1])
    assert np.array_equal(frames[0], env.render(0, size=96))
    assert np.array_equal(frames[0], TransformedEnv(env, RewardSum(in_keys=[REWARD])).render(size=96))


def test_the_picture_of_a_cue_fades_and_shows_the_last_actions():
    env = make_env("games/recall", num_envs=2)
    td = env.set_state(torch.tensor([1, 3]))
    columns, side = 5, 200 / 3.2

    def colour(row, column):
        frame = env.render(1, size=200)
        assert frame.shape == (200, round(200 * (columns + 0.2) / 3.2), 3)
        return tuple(int(each) for each in frame[round((row + 0.6) * side), round((column + 0.6) * side)])

    shown = colour(0, 3)
    assert max(shown) < 60 and colour(1, 2) == colour(0, 1) == WHITE
    env.step(td.set(ACTION, torch.tensor([[0, 0], [2, 1]])))
    assert min(colour(0, 3)) > max(shown), "paler"
    assert WHITE not in (colour(1, 2), colour(2, 1)) and colour(1, 2) != colour(2, 1) and colour(1, 1) == WHITE


def test_a_matrix_game_has_no_picture():
    env = make_env("games/xor")
    env.reset()
    with pytest.raises(NotImplementedError, match="games/xor has nothing to draw"):
        env.render()


def test_a_video_shows_the_episode_that_is_evaluated(tmp_path):
    env = make_env("games/grid_navigation", num_envs=3)
    policy = GridController("optimal", seed=0)
    evaluation = evaluate(policy, env, episodes=3, seed=4)
    state = torch.get_rng_state()
    path = record_video(env, policy, tmp_path / "new" / "walk.gif", seed=4, index=1, frames_per_second=4, caption=False)
    assert torch.equal(state, torch.get_rng_state())
    with Image.open(path) as video:
        assert video.n_frames == evaluation.lengths[1] + 1
        assert video.size == (256, 256)
        assert video.info["duration"] == 250
        video.seek(video.n_frames - 1)
        last = np.asarray(video.convert("RGB"))
    env.set_seed(4)
    td = env.reset()
    for _ in range(int(evaluation.lengths[1])):
        td = env.step(policy(td))
        shown = env.render(1)
        td = env.maybe_reset(env.step_mdp(td))
    assert np.abs(last.astype(int) - shown).mean() < 3  # a GIF has 256 colours


def test_video_arguments(tmp_path):
    env = make_env("mpe/simple_spread", num_envs=2)
    path = record_video(env, SpreadController("greedy_nearest"), tmp_path / "short.gif", max_frames=5)
    with Image.open(path) as video:
        assert video.n_frames == 5
    with pytest.raises(ValueError, match=r"must end in \.gif or \.mp4, the formats of a video, got video\.avi"):
        record_video(env, SpreadController(), "video.avi")
    with pytest.raises(ValueError, match="index must be below the environment's 2 slots, got 2"):
        record_video(env, SpreadController(), tmp_path / "x.gif", index=2)
    with pytest.raises(ValueError, match=r"frames_per_second must be at least 0\.01"):
        record_video(env, SpreadController(), tmp_path / "x.gif", frames_per_second=1e-9)
    with pytest.raises(NotImplementedError, match="nothing to draw"):
        record_video(make_env("games/xor"), lambda td: td.set(ACTION, torch.zeros(1, 2).long()), tmp_path / "x.gif")
    assert not (tmp_path / "x.gif").exists()


def frames_of(path):
    with Image.open(path) as video:
        frames = []
        for number in range(video.n_frames):
            video.seek(number)
            frames.append(np.asarray(video.convert("L")))
    return np.stack(frames)


def test_the_step_and_the_return_are_written_above_the_picture(tmp_path):
    env = make_env("games/grid_navigation", num_envs=2)
    options = {"seed": 4, "max_frames": 4, "size": 120}
    plain, told = (
        frames_of(
            record_video(
                env, GridController("optimal", seed=0), tmp_path / f"{caption}.gif", caption=caption, **options
            )
        )
        for caption in (False, True)
    )
    strip = told[:, : told.shape[1] - plain.shape[1]]
    assert plain.shape[1] == 120 and strip.shape[1] > 9
    assert (strip.min((1, 2)) < 60).all() and strip.mean() > 180, "black letters on white"
    assert all((one != two).any() for one, two in itertools.pairwise(strip)), "the number of the step"
    env.set_seed(4)  # the same picture below it, in the 256 colours of a GIF
    env.reset()
    assert (
        np.abs(told[0, -120:].astype(int) - np.asarray(Image.fromarray(env.render(0, size=120)).convert("L"))).mean()
        < 3
    )


def test_an_mp4_holds_the_same_pictures(tmp_path):
    av = pytest.importorskip("av")
    env = make_env("games/grid_navigation", num_envs=2)
    options = {"max_frames": 4, "size": 101, "caption": False}
    path = record_video(env, GridController("optimal", seed=0), tmp_path / "walk.mp4", **options)
    with av.open(str(path)) as video:
        assert video.streams.video[0].average_rate == 10
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) == 4
    assert frames[0].shape[:2] == (102, 102), "H.264 takes even sizes"
    env.set_seed(0)
    env.reset()
    assert np.abs(frames[0][:101, :101].astype(int) - env.render(0, size=101)).mean() < 5


def test_without_its_library_an_mp4_is_refused_before_an_episode_is_played(monkeypatch, tmp_path):
    monkeypatch.setattr("torchrl_marl_offline.evaluation.video.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"extra video.*ends in \.gif"):
        record_video(None, lambda tensordict: 1 / 0, tmp_path / "video.mp4")
