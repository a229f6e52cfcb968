"""Adam and the target update over stacked parameters, with a learning rate and a switch for each member."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torchrl_marl_offline.training.run.metrics import trained_by_network
from torchrl_marl_offline.training.step.rhythm import Rhythm

if TYPE_CHECKING:
    from torchrl_marl_offline.training.populations.population import Population

ACTOR = "actor_network_params."


class PopulationAdam:
    r"""Adam (Kingma and Ba 2015) over parameters ``[P, ...]``: each member's numbers are those of a run alone.

    Args:
        population: whose gradients are set.
        lr: learning rate, one for all or one for each member.
        betas: decay of the moments.
        eps: added to the root of the second moment.
        rhythm: which networks take a step when; gradients of the others are to be ``None``.

    Attributes:
        rate_factor: share of the learning rates at the next step.
    """

    def __init__(
        self,
        population: Population,
        *,
        lr: float | Sequence[float] = 3e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        rhythm: Rhythm | None = None,
    ) -> None:
        rates = [lr] * len(population) if isinstance(lr, int | float) else list(lr)
        if len(rates) != len(population):
            raise ValueError(f"{len(rates)} learning rates for {len(population)} members; give one for each.")
        self.parameters = {n: t for n, t in population.tensors().items() if t.requires_grad}
        device = next(iter(self.parameters.values())).device
        self.lr = torch.tensor(rates, dtype=torch.float64, device=device)
        self.betas, self.eps, self.rhythm, self.rate_factor = betas, eps, rhythm or Rhythm(), 1.0
        self.step_count = torch.zeros(len(population), dtype=torch.float64, device=device)
        self.exp_avg = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self.exp_avg_sq = {name: torch.zeros_like(p) for name, p in self.parameters.items()}

    @torch.no_grad()
    def step(self, active: Tensor) -> None:
        """Move the members of which ``active`` ``[P]`` is true; the others keep every number."""
        self.step_count += active
        update = self._fused_step if active.device.type == "cpu" else self._batched_step
        moved = [name for name, parameter in self.parameters.items() if parameter.grad is not None]
        for names in self._of_one_count(moved):
            update(names, active, self._steps(names[0]))

    def _of_one_count(self, names: Sequence[str]) -> list[list[str]]:
        """Return parameters that have taken equally many steps, together."""
        if self.rhythm.is_even:
            return [list(names)] if names else []
        actor = [name for name in names if name.startswith(ACTOR)]
        return [part for part in (actor, [name for name in names if name not in set(actor)]) if part]

    def _steps(self, name: str) -> Tensor:
        """Return how many steps ``[P]`` a parameter has taken."""
        steps = self.rhythm.actor_steps if name.startswith(ACTOR) else self.rhythm.other_steps
        return steps(self.step_count)

    def _fused_step(self, names: Sequence[str], active: Tensor, steps: Tensor) -> None:
        """Go once over memory, by torch's fused kernel, which takes one learning rate and one count at a time."""
        stacked = [[self.parameters[name].detach() for name in names], [self.parameters[name].grad for name in names]]
        stacked += [[moment[name] for name in names] for moment in (self.exp_avg, self.exp_avg_sq)]
        settings = list(zip((self.lr * self.rate_factor).tolist(), steps.tolist()))
        if active.all() and len(set(settings)) == 1:
            shares = [(slice(None), *settings[0])]
        else:
            shares = [(slice(i, i + 1), *settings[i]) for i, on in enumerate(active.tolist()) if on]
        for share, lr, count in shares:
            own = [[tensor[share] for tensor in tensors] for tensors in stacked]
            counts = [torch.tensor(count)] * len(names)
            options = {"amsgrad": False, "weight_decay": 0.0, "eps": self.eps, "maximize": False}
            torch._fused_adam_(*own, [], counts, lr=lr, beta1=self.betas[0], beta2=self.betas[1], **options)

    def _batched_step(self, names: Sequence[str], active: Tensor, steps: Tensor) -> None:
        """Update all members at once without reading a value back from the device."""
        beta1, beta2 = self.betas
        size = self.rate_factor * self.lr / (1 - beta1**steps)
        root_correction = (1 - beta2**steps).sqrt()
        for name in names:
            p, m, v = self.parameters[name], self.exp_avg[name], self.exp_avg_sq[name]
            on = _like(active, p)
            g = torch.where(on, p.grad, 0)
            m.copy_(torch.where(on, m.lerp(g, 1 - beta1), m))
            v.copy_(torch.where(on, (v * beta2).addcmul_(g, g, value=1 - beta2), v))
            denominator = (v.sqrt() / _like(root_correction, p)).add_(self.eps)
            p.sub_(torch.where(on, _like(size, p) * m / denominator, 0))

    def member_optimizer(self, index: int, optimizer: torch.optim.Adam) -> torch.optim.Adam:
        """Give an ordinary Adam over a member's parameters, in their order, the member's moments and learning rate."""
        for group in optimizer.param_groups:
            group.update(lr=self.lr[index].item(), betas=self.betas, eps=self.eps)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for parameter, name in zip(parameters, self.parameters, strict=True):
            optimizer.state[parameter] = {
                "step": self._steps(name)[index].float().clone(),
                "exp_avg": self.exp_avg[name][index].clone(),
                "exp_avg_sq": self.exp_avg_sq[name][index].clone(),
            }
        return optimizer

    def state_dict(self) -> dict[str, Any]:
        """Return moments, counts and rates."""
        return {"step": self.step_count, "lr": self.lr, "exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.step_count.copy_(state["step"])
        self.lr.copy_(state["lr"])
        for own, saved in ((self.exp_avg, state["exp_avg"]), (self.exp_avg_sq, state["exp_avg_sq"])):
            for name, tensor in own.items():
                tensor.copy_(saved[name])


class PopulationSoftUpdate:
    """Move every member's targets by ``tau`` towards their sources."""

    def __init__(self, population: Population, *, tau: float) -> None:
        self.tau = tau
        self._targets, self._sources = population.target_pairs()
        # or the form of all members would warn that nothing moves its targets
        associated = getattr(population.template, "_has_update_associated", {})
        associated.update(dict.fromkeys(associated, True))

    @torch.no_grad()
    def step(self, active: Tensor) -> None:
        """Move the targets of the members of which ``active`` is true."""
        for target, source in zip(self._targets, self._sources):
            target.lerp_(source, _like(active, target).to(target.dtype) * self.tau)


class PopulationGradientNorm:
    """Each member's gradient norm, of the whole and of each network, and its clipping."""

    def __init__(self, population: Population, clip: float | None = None) -> None:
        self.clip = clip
        self._networks = trained_by_network(population.tensors().items())

    @torch.no_grad()
    def __call__(self, resting: Collection[str] = ()) -> dict[str, Tensor]:
        """Return ``grad_norm`` and ``grad_norm_<network>``, each ``[P]``, measured before clipping.

        Args:
            resting: networks that take no step, whose gradients do not count in the clipping.
        """
        squares = {}
        for name, parameters in self._networks.items():
            gradients = [p.grad.reshape(len(p), -1) for p in parameters if p.grad is not None]
            if gradients:
                squares[name] = sum(torch.linalg.vector_norm(g, dim=1).square() for g in gradients)
        moving = [name for name in squares if name not in resting]
        if self.clip is not None and moving:
            factor = (self.clip / (sum(squares[name] for name in moving).sqrt() + 1e-6)).clamp(max=1.0)
            for p in (p for name in moving for p in self._networks[name]):
                if p.grad is not None:
                    p.grad.mul_(_like(factor, p))
        named = {f"grad_norm_{name}": value.sqrt() for name, value in squares.items()}
        return {"grad_norm": sum(squares.values()).sqrt()} | (named if len(named) > 1 else {})


def _like(values: Tensor, tensor: Tensor) -> Tensor:
    """Shape ``[P]`` to be broadcast against ``[P, ...]``, in its dtype where both are numbers."""
    values = values if values.dtype == torch.bool else values.to(tensor.dtype)
    return values.reshape(-1, *(1,) * (tensor.ndim - 1))
