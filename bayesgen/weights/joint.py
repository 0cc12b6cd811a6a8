"""A log density as a function of its hyper-parameters too."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from bayesgen.errors import ModelError, ShapeError
from bayesgen.inference.standardised import Standardised
from bayesgen.log_density import LogDensity
from bayesgen.model_sites import Model, isolated, read_model
from bayesgen.traces import log_prob_of_sites


class Joint:
    """log p(y, v | theta), at a theta that can be set."""

    def __init__(self, model: Model, args: tuple[Any, ...], start: dict[str, float]) -> None:
        # The log density keeps tensors that share the memory of these, so that its graphs, of which
        # they are inputs, need not be recorded again for other values.
        self.names = list(start)
        self.hyper = [_like(args).new_tensor(value) for value in start.values()]
        named: dict[str, Any] = dict(zip(start, self.hyper, strict=True))
        near: dict[str, Any] = {name: 1.001 * value for name, value in named.items()}
        try:
            # What the model looks like elsewhere: a support that moves is refused.
            read_model(model, args, named, others=[(args, near)])
            self.density = LogDensity(model, *args, **named)
        except ShapeError as error:
            hint = "for several problems at once set batched=True"
            instead = "empirical_bayes takes one data set"
            raise ShapeError(str(error).replace(hint, instead)) from error
        self._check_dependence()
        # In units of the start's priors throughout: chains go on when theta moves.
        self.standardised = Standardised(self.density)

    def set(self, log_values: Tensor) -> None:
        """Move to other hyper-parameters."""
        for tensor, value in zip(self.hyper, log_values.exp(), strict=True):
            tensor.fill_(float(value))

    def derivatives(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients in log theta, ``(chains, K)``, and the mean information, ``(K, K)``."""
        v = position * self.standardised.scale
        gradients, information = self.density.evaluate("log theta", self._differentiate, v)
        return gradients.double().cpu(), information.mean(0).double().cpu()

    def _differentiate(self, rows: Tensor, *data: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            places, log_prob = self._log_prob(rows, *data)
            # The gradient of a weighted sum of chains; its gradients in the weights are each
            # chain's own.
            weights = torch.ones_like(log_prob, requires_grad=True)
            total = _gradients((weights * log_prob).sum(), places)
            each = [_gradients(part, [weights])[0].detach() for part in total]
            second = [torch.stack(_gradients(part, places)).detach() for part in total]
        information = -torch.stack(second) / len(rows)
        return torch.stack(each, -1), information.expand(len(rows), *information.shape)

    def _log_prob(self, rows: Tensor, *data: Tensor) -> tuple[list[Tensor], Tensor]:
        """Logarithms of the hyper-parameters, as variables, and the chains' log densities.

        Transforms to the unconstrained space do not depend on them, nor do their Jacobians.
        """

        def total(trace: Any) -> Tensor:
            return functools.reduce(torch.add, (term for _, term in log_prob_of_sites(trace)))

        known, hyper = data[: -len(self.hyper)], data[-len(self.hyper) :]
        places = [tensor.log().detach().requires_grad_() for tensor in hyper]
        log_prob: Tensor = self.density.map_traces(
            total, rows.detach(), [*known, *(place.exp() for place in places)]
        )
        return places, log_prob

    def _check_dependence(self) -> None:
        rows = self.density.prior_draws(1, torch.Generator().manual_seed(0))
        with isolated(0), torch.enable_grad():
            places, log_prob = self._log_prob(rows, *self.density.data)
            found: Any = [None] * len(places)
            if log_prob.requires_grad:
                found = torch.autograd.grad(log_prob.sum(), places, allow_unused=True)
        unused = [name for name, part in zip(self.names, found, strict=True) if part is None]
        if unused:
            raise ModelError(
                f"start: the model does not depend on {unused[0]!r}, or not by operations on "
                "tensors (float() hides it)"
            )


def _gradients(value: Tensor, variables: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(value, variables, create_graph=True, materialize_grads=True))


def _like(args: tuple[Any, ...]) -> Tensor:
    """A real number of the data's precision and device."""
    for leaf in tree_leaves(args):
        if isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex()):
            return torch.zeros((), dtype=leaf.dtype.to_real(), device=leaf.device)
    return torch.zeros(())
