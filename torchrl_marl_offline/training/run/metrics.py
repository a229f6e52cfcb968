"""What a training step reports, gathered without waiting for the device, and the check that it is finite."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from torchrl_marl_offline.training.run.remedies import AGAINST_NON_FINITE

OF_RECORDED_ACTIONS = ("agreement", "agreement_choice", "action_error")
"""Columns that say how like the recorded actions a policy's are: of a clone the best, whatever it earns."""

DIAGNOSES = (*OF_RECORDED_ACTIONS, "q_correlation", "q_slope", "q_bias", "illegal_actions", "rows")
"""All columns of an evaluation on held-out episodes; none says what a policy earns, so that none is selected by."""


class NonFiniteLossError(ArithmeticError):
    """A loss, its gradient or a parameter became NaN or infinite.

    Attributes:
        step: the update at which it was seen first.
        term: the name of the loss term, gradient norm or parameter.
        checkpoint: the last checkpoint, all of whose numbers are finite, or ``None``.
    """

    def __init__(self, step: int, term: str, checkpoint: Path | None) -> None:
        self.step, self.term, self.checkpoint = step, term, checkpoint
        good = "no checkpoint was written" if checkpoint is None else f"the last good checkpoint is {checkpoint}"
        super().__init__(f"{term} is not finite at step {step}, {good}. {AGAINST_NON_FINITE}")


def scalars(output: TensorDictBase) -> dict[str, Tensor]:
    """Return a loss's one-element outputs, detached, each of shape ``[]``; nested keys are joined by ``/``."""
    return {
        name if isinstance(name, str) else "/".join(name): _scalar(value)
        for name, value in output.items(include_nested=True, leaves_only=True)
        if value.numel() == 1
    }


def _scalar(value: Tensor) -> Tensor:
    value = value.detach() if value.requires_grad else value
    return value.reshape(()) if value.ndim else value


class MetricWindow:
    """The metrics of the steps since the last logging point: one row ``[m]`` per step, on the device.

    Of a population: a row ``[m, P]``.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self._rows: list[Tensor] = []
        self._restored = False

    def __len__(self) -> int:
        return len(self._rows)

    def append(self, metrics: dict[str, Tensor]) -> None:
        """Add one step; every step must report the same names."""
        names = list(metrics)
        if self._restored and names != self.names:
            self._rows = []  # of a version with other metrics: the window's means begin here
        self._restored = False
        if self._rows and names != self.names:
            raise ValueError(
                f"The loss reported {names} after {self.names}; a loss must report the same scalars every step."
            )
        self.names = names
        self._rows.append(torch.stack(list(metrics.values())))

    def means(self) -> dict[str, float]:
        """Return the mean (of a population: the means) of each metric over the window; here the host waits."""
        return dict(zip(self.names, torch.stack(self._rows).double().mean(0).tolist()))

    def first(self) -> dict[str, float]:
        """Return the metrics of the first step of the window; here the host waits."""
        return dict(zip(self.names, self._rows[0].double().tolist()))

    def first_non_finite(self) -> tuple[int, str] | None:
        """Return (row, name) of the first loss term or gradient norm that is not finite, or ``None``."""
        if not self._rows:
            return None
        watched = [i for i, name in enumerate(self.names) if name.startswith(("loss", "grad_norm"))]
        bad = ~torch.stack(self._rows)[:, watched].isfinite()
        if not bad.any():
            return None
        row, column = bad.nonzero()[0].tolist()
        return row, self.names[watched[column]]

    def clear(self) -> None:
        """Start a new window."""
        self._rows = []

    def state_dict(self) -> dict[str, object]:
        """Return the rows gathered so far, so that a resumed run logs the means of an uninterrupted one."""
        return {"names": self.names, "rows": torch.stack(self._rows) if self._rows else None}

    def load_state_dict(self, state: dict[str, object], device: torch.device) -> None:
        """Restore what :meth:`state_dict` returned."""
        rows = state["rows"]
        self.names = list(state["names"])
        self._rows = [] if rows is None else list(rows.to(device).unbind())
        self._restored = True


class GradientNorm:
    """The Euclidean norm of a loss's gradient, of the whole and of each network, and the clipping of the whole.

    Args:
        loss: the module after whose ``backward`` it is called.
        clip: the largest norm of the whole gradient, or ``None``.
    """

    def __init__(self, loss: nn.Module, clip: float | None = None) -> None:
        self.clip = clip
        self._networks = trained_by_network(loss.named_parameters())

    @torch.no_grad()
    def __call__(self, resting: Collection[str] = ()) -> dict[str, Tensor]:
        """Return ``grad_norm`` and ``grad_norm_<network>``, measured before clipping.

        Args:
            resting: networks that take no step, whose gradients do not count in the clipping.
        """
        per_network = {
            name: [p.grad for p in parameters if p.grad is not None] for name, parameters in self._networks.items()
        }
        per_network = {name: gradients for name, gradients in per_network.items() if gradients}
        gradients = [gradient for group in per_network.values() for gradient in group]
        norms = torch.stack(torch._foreach_norm(gradients))
        parts = norms.split([len(group) for group in per_network.values()])
        named = {name: torch.linalg.vector_norm(part) for name, part in zip(per_network, parts)}
        total = torch.linalg.vector_norm(norms)
        moving = [name for name in named if name not in resting]
        if self.clip is not None and moving:
            clipped = total if not resting else torch.linalg.vector_norm(torch.stack([named[each] for each in moving]))
            gradients = [gradient for name in moving for gradient in per_network[name]]
            torch._foreach_mul_(gradients, (self.clip / (clipped + 1e-6)).clamp(max=1.0))
        shown = {f"grad_norm_{name}": norm for name, norm in named.items()}
        return {"grad_norm": total} | (shown if len(shown) > 1 else {})


def trained_by_network(named: Iterable[tuple[str, Tensor]]) -> dict[str, list[Tensor]]:
    """Sort what requires gradients by its network: ``"qvalue"`` for names that start with ``qvalue_network_params.``"""
    networks: dict[str, list[Tensor]] = {}
    for name, tensor in named:
        if tensor.requires_grad:
            network = name.split(".")[0].removesuffix("_params").removesuffix("_network")
            networks.setdefault(network, []).append(tensor)
    return networks


def first_non_finite_parameter(module: nn.Module) -> str | None:
    """Return the name of the first parameter or buffer that holds a NaN or an infinity, or ``None``."""
    named = {
        name: value
        for name, value in module.state_dict().items()
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel()
    }
    if not named:
        return None
    finite = torch.stack([value.isfinite().all() for value in named.values()])
    return None if finite.all() else list(named)[int(finite.int().argmin())]
