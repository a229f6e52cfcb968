"""Recording: datasets of mixed skill by scripted policies, of graded quality by policies that are trained online."""

from torchrl_marl_offline.recording.graded import RecordSettings, choose_level, published_levels, record
from torchrl_marl_offline.recording.hanabi_games import read_hanabi_games
from torchrl_marl_offline.recording.learners import OnlineLearner, make_matd3, make_online_learner, make_qmix
from torchrl_marl_offline.recording.mixed_skill import record_mixed_skill

__all__ = [
    "OnlineLearner",
    "RecordSettings",
    "choose_level",
    "make_matd3",
    "make_online_learner",
    "make_qmix",
    "published_levels",
    "read_hanabi_games",
    "record",
    "record_mixed_skill",
]
