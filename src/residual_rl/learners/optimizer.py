"""Adam over one flat parameter, with gradient clipping, that never steps on a gradient that is not finite."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from residual_rl.errors import CheckpointError, NonFiniteError
from residual_rl.types import State


class FlatAdam:
    """Fused Adam. The parameters become views of one flat tensor, so that a step is a few kernels however many layers there are.

    Source: Kingma & Ba, "Adam", 2015, with epsilon 1e-5 as PPO implementations have it; clipping is by the norm of all gradients.
    Where that norm is not finite, weights and moments stay as they are, and so do they in all later steps: the bad gradient is kept
    until `check` names it, so that a GPU need not be waited for after each step.
    """

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], learning_rate: float, max_grad_norm: float, epsilon: float = 1e-5):
        self.named = dict(parameters)
        self.parameters = list(self.named.values())
        self.max_grad_norm = max_grad_norm
        self._sizes = [p.numel() for p in self.parameters]
        self._flat = torch.cat([p.detach().flatten() for p in self.parameters])
        for p, view in zip(self.parameters, self._flat.split(self._sizes), strict=True):
            p.data = view.view_as(p)
        self._grad = torch.zeros_like(self._flat)
        self._flat.grad = self._grad
        self._bad = torch.zeros((), device=self._flat.device)
        self.learning_rate = torch.tensor(learning_rate, device=self._flat.device)
        self._adam = torch.optim.Adam([self._flat], lr=self.learning_rate, eps=epsilon, fused=True)
        self._state = {name: torch.zeros_like(self._flat) for name in ("exp_avg", "exp_avg_sq")}
        self._state["step"] = torch.zeros((), device=self._flat.device)
        self._adam.state[self._flat] = self._state
        self._adam.found_inf = self._bad  # type: ignore[attr-defined]  # torch's own hook for GradScaler: skips on the device

    def step(self, gradients: Sequence[Tensor]) -> None:
        """One step along `gradients`, in the order of `parameters`."""
        flat = torch.cat([g.flatten() for g in gradients])
        torch.addcmul(flat, self._grad, self._bad, out=self._grad)  # once bad, always bad: NaN stays in its place
        norm = torch.linalg.vector_norm(self._grad)
        self._bad.copy_(~torch.isfinite(norm))
        self._adam.grad_scale = (norm / self.max_grad_norm).clamp_(min=1.0)  # type: ignore[attr-defined]  # divides the gradient
        self._adam.step()

    def check(self) -> None:
        """Raise `NonFiniteError` naming the parameters whose gradient was not finite. Waits for the device."""
        if self._bad.item() == 0.0:
            return
        pieces = zip(self.named, self._grad.split(self._sizes), strict=True)
        names = [name for name, piece in pieces if not torch.isfinite(piece).all()]
        raise NonFiniteError(f"the gradient of {', '.join(names) or 'the loss'} is not finite; the weights were left as they were")

    def state_dict(self) -> State:
        moments = {
            kind: {name: m.view_as(p).clone() for (name, p), m in zip(self.named.items(), self._state[kind].split(self._sizes), strict=True)}
            for kind in ("exp_avg", "exp_avg_sq")
        }
        return {"step": self._state["step"].clone(), **moments}

    def load_state_dict(self, state: State) -> None:
        for kind in ("exp_avg", "exp_avg_sq"):
            if state[kind].keys() != self.named.keys():
                raise CheckpointError(f"the optimiser's state is of other parameters: {sorted(state[kind].keys() ^ self.named.keys())}")
            self._state[kind].copy_(torch.cat([state[kind][name].flatten() for name in self.named]))
        self._state["step"].copy_(state["step"])
        self._grad.zero_()
        self._bad.zero_()
