"""Evaluation: the environment that a dataset came from."""

from torchrl_marl_offline.evaluation.simulator import make_simulator

__all__ = ["make_simulator"]
