"""From one posterior to that given further data, by degrees."""

from __future__ import annotations

from torch import Tensor

from bayesgen.inference.standardised import Standardised
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
        self._before = Standardised(before)
        # Both in the units of one of them.
        self._before.scale = self.scale

    def split(self, v: Tensor, *, where: Tensor | None = None) -> Split:
        """The old posterior, unnormalised, and what the new one has more."""
        old = self._before.split(v, where=where)
        self.count += 1
        new = self.end(v, where=where)
        prior, gradient = _sums(old)
        posterior, slope = _sums(new)
        return Split(prior, posterior - prior, gradient, slope - gradient)

    def end(self, v: Tensor, *, where: Tensor | None = None) -> Split:
        """Prior and likelihood given the new data: the parts add up to what `split`'s do."""
        return super().split(v, where=where)


def _sums(split: Split) -> tuple[Tensor, Tensor]:
    """Log posterior density, unnormalised, and its gradient."""
    gradient = split.prior_gradient + split.likelihood_gradient
    return split.prior + split.likelihood, gradient
