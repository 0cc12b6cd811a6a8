"""From one posterior to that given further data, by degrees."""

from __future__ import annotations

import torch
from torch import Tensor

from bayesgen._batching import shared_calls
from bayesgen.inference.standardised import Standardised
from bayesgen.log_density import LogDensity, is_identity
from bayesgen.traces import log_prob_of_trace
from bayesgen.types import Split, SplitDensity


class Bridge(Standardised):
    r"""The posterior given new data, with the posterior given the old data in place of a prior.

    .. math::
        \pi_\beta(v) \propto (p_{old}(v) \, p(y_{old} | v))^{1 - \beta}
        (p_{new}(v) \, p(y_{new} | v))^\beta

    Tempered by beta it leads particles that follow the old posterior to the new one; where the new
    data are the old ones and a few more, one step is often all it takes. Data and priors may be
    any two: nothing asks that likelihoods factorise.

    Parameters
    ----------
    before, after
        Densities of the same coordinates given the old and the new data.
    evidence_before
        Log evidence of the old data, ``(*problems, chains)``, if known: that of the new data is
        counted from there.

    References
    ----------
    Chopin (2002), A sequential particle filter method for static models.

    Examples
    --------
    `bayesgen.infer` makes one of an earlier posterior:

    >>> import pyro, torch, bayesgen as bg
    >>> import pyro.distributions as dist
    >>> def model(y):
    ...     z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
    ...     pyro.sample("y", dist.Normal(z, 1.0).expand(y.shape).to_event(1), obs=y)
    >>> y = torch.tensor([1.0, 3.0, 2.0])
    >>> first = bg.infer(model, y[:2], method="smc", progress=False)
    >>> both = bg.infer(model, y, method="smc", start=first, progress=False)
    >>> abs(float(both.mean("z")) - 1.5) < 0.1  # exact: 6 / (1 + 3)
    True
    """

    def __init__(
        self, before: SplitDensity, after: SplitDensity, evidence_before: Tensor | None = None
    ) -> None:
        super().__init__(after)
        self.evidence_before = evidence_before
        ends = (before, after)
        models = [end for end in ends if isinstance(end, LogDensity) and end.vectorised]
        self._ends = _Together(*models) if len(models) == 2 else _Apart(*ends)

    def between(self, v: Tensor, beta: Tensor, *, where: Tensor | None = None) -> Split:
        """The old posterior, unnormalised, and what the new one has more.

        Parameters
        ----------
        v, where
            As for `split`, which is that of the new posterior, with its prior.
        beta
            Where on the way, ``v.shape[:-1]`` or what broadcasts to it. The gradients hold there
            only, where their tempered sum is the gradient: they are not told apart.
        """
        self.count += self._ends.evaluations
        units = self.units(v)
        beta = beta.to(v).expand(v.shape[:-1])
        old, new, gradient = self._ends.values(v * units, beta, where)
        return Split(old, new - old, gradient * units, torch.zeros_like(gradient))

    def release(self) -> None:
        """Forget what was recorded; the densities may outlive the bridge between them."""
        self._ends.release()


class _Apart:
    """Two densities, one after the other."""

    evaluations = 2

    def __init__(self, before: SplitDensity, after: SplitDensity) -> None:
        self._densities = before, after

    def values(self, v: Tensor, beta: Tensor, where: Tensor | None) -> tuple[Tensor, ...]:
        """Log densities before and after, and the gradient of the tempered one."""
        old, new = (density.split(v, where=where) for density in self._densities)
        down, up = (part.prior_gradient + part.likelihood_gradient for part in (old, new))
        gradient = torch.lerp(down, up, beta[..., None])
        return old.prior + old.likelihood, new.prior + new.likelihood, gradient

    def release(self) -> None:
        """Nothing was recorded."""


class _Together:
    """Two models of the same latent sites: both at the price of one, if they share a generator.

    What is expensive, from the latent vector to the image and back, is done once for both.
    """

    evaluations = 1

    def __init__(self, before: LogDensity, after: LogDensity) -> None:
        self._before, self._after = before, after
        # Graphs are kept under this name; no two bridges may have the same.
        self._name = object()

    def values(self, v: Tensor, beta: Tensor, where: Tensor | None) -> tuple[Tensor, ...]:
        """Log densities before and after, and the gradient of the tempered one."""
        rows, more = torch.cat([v, beta[..., None]], -1), self._before.data
        return self._after.evaluate(self._name, self._values, rows, where, extra=1, more=more)

    def release(self) -> None:
        """Forget the graphs."""
        self._after.forget(self._name)

    def _values(self, rows: Tensor, *data: Tensor) -> tuple[Tensor, ...]:
        v, beta = rows[..., :-1], rows[..., -1]
        with torch.enable_grad():
            v = v.detach().requires_grad_()
            old, new = self._after.map_rows(self._log_probs, v, data)
            if self._after.has_jacobian:
                log_det = self._after.log_abs_det(v)
                old, new = old + log_det, new + log_det
            (gradient,) = torch.autograd.grad((old + beta * (new - old)).sum(), v)
        return old.detach(), new.detach(), gradient

    def _log_probs(self, v: Tensor, *data: Tensor) -> tuple[Tensor, Tensor]:
        count, sites = len(self._after.data), self._after.sites.latent.values()
        values, again = self._after.constrain(v), self._after.constrain(v)
        # Torch lets no model change these in place.
        leaves = {site.name: values[site.name] for site in sites if is_identity(site.transform)}
        with shared_calls(list(leaves.values())):
            old = log_prob_of_trace(self._before.trace(values, data[count:]))
            new = log_prob_of_trace(self._after.trace(again | leaves, data[:count]))
        return old, new
