"""Adam on one flat parameter vector, with gradient clipping, that skips non-finite gradients."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from residual_rl.errors import CheckpointError, NonFiniteError
from residual_rl.types import State


class FlatAdam:
    """Fused Adam. The parameters become views of one flat tensor, so that a step takes a few kernels for any
    number of layers.

    Source: Kingma & Ba, "Adam", 2015, with the epsilon of 1e-5 that is common in PPO implementations;
    gradients are clipped by their global norm. If that norm is not finite, this step and all later ones leave
    weights and moments unchanged, and the gradient is kept until `raise_if_nonfinite` reports it. This avoids
    synchronising with the GPU after each step.

    It calls the function below `torch.optim.Adam`, whose constructor imports `torch._dynamo` (about a
    second).

    Args:
        parameters: named parameters.
        learning_rate: initial learning rate; assign to the tensor `learning_rate` to change it.
        max_grad_norm: bound of the global gradient norm.
        epsilon: added to the denominator.
        weight_decay: decoupled weight decay (Loshchilov & Hutter, "Decoupled weight decay regularization",
            2019): before each step all parameters are multiplied by 1 − learning rate · `weight_decay`,
            without effect on gradients and moments.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        learning_rate: float,
        max_grad_norm: float,
        epsilon: float = 1e-5,
        weight_decay: float = 0.0,
    ):
        self.named = dict(parameters)
        self.parameters = list(self.named.values())
        self.max_grad_norm = max_grad_norm
        self._sizes = [p.numel() for p in self.parameters]
        self._flat = torch.cat([p.detach().flatten() for p in self.parameters])
        for p, view in zip(self.parameters, self._flat.split(self._sizes), strict=True):
            p.data = view.view_as(p)
        self._grad = torch.zeros_like(self._flat)
        self._bad = torch.zeros((), device=self._flat.device)
        self.learning_rate = torch.tensor(learning_rate, device=self._flat.device)
        self._epsilon = epsilon
        self._weight_decay = weight_decay
        self._state = {name: torch.zeros_like(self._flat) for name in ("exp_avg", "exp_avg_sq")}
        self._state["step"] = torch.zeros((), device=self._flat.device)

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor]) -> None:
        """One step along `gradients`, in the order of `parameters`."""
        flat = torch.cat([g.flatten() for g in gradients])
        torch.addcmul(flat, self._grad, self._bad, out=self._grad)  # a NaN of an earlier step is preserved
        norm = torch.linalg.vector_norm(self._grad)
        torch.logical_not(norm < math.inf, out=self._bad)
        adam(
            [self._flat],
            [self._grad],
            [self._state["exp_avg"]],
            [self._state["exp_avg_sq"]],
            [],
            [self._state["step"]],
            fused=True,
            capturable=self._flat.is_cuda,
            grad_scale=(norm / self.max_grad_norm).clamp_(min=1.0),  # divides the gradient
            found_inf=self._bad,  # where it is 1, the step is skipped on the device
            decoupled_weight_decay=self._weight_decay > 0.0,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=self.learning_rate,
            weight_decay=self._weight_decay,
            eps=self._epsilon,
            maximize=False,
        )

    def raise_if_nonfinite(self) -> None:
        """Raise `NonFiniteError` with the names of the parameters whose gradient was not finite. Synchronises
        with the device."""
        if self._bad.item() == 0.0:
            return
        pieces = zip(self.named, self._grad.split(self._sizes), strict=True)
        names = [name for name, piece in pieces if not torch.isfinite(piece).all()]
        source = f"the gradient of {', '.join(names)}" if names else "the norm of the gradient"
        raise NonFiniteError(f"{source} is not finite; the weights were not changed")

    def state_dict(self) -> State:
        """Step count and both moments, by parameter."""
        return {
            "step": self._state["step"].clone(),
            "exp_avg": self._by_name("exp_avg"),
            "exp_avg_sq": self._by_name("exp_avg_sq"),
        }

    def load_state_dict(self, state: State) -> None:
        """Restore a state returned by `state_dict`. Raises `CheckpointError` if it has other parameters."""
        for moment in ("exp_avg", "exp_avg_sq"):
            if state[moment].keys() != self.named.keys():
                different = sorted(state[moment].keys() ^ self.named.keys())
                raise CheckpointError(f"the optimiser's state has other parameters: {different}")
            self._state[moment].copy_(torch.cat([state[moment][name].flatten() for name in self.named]))
        self._state["step"].copy_(state["step"])
        self._grad.zero_()
        self._bad.zero_()

    def _by_name(self, moment: str) -> dict[str, Tensor]:
        pieces = self._state[moment].split(self._sizes)
        return {
            name: piece.view_as(p).clone()
            for (name, p), piece in zip(self.named.items(), pieces, strict=True)
        }
