"""Latent sites that are Gaussian given all the others: found in the model, then verified.

In standardised coordinates c, in which their prior is N(0, I), such sites enter everything else
through residuals r = r0(w) + B(w) c only, w being the other sites. Sites with a Laplace prior count
too, for a Laplace variable is a normal one of random variance.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from pyro import poutine
from torch import Tensor

from bayesgen.coloured_sites import Coloured, is_laplace, is_normal, kind_of, only, whiten
from bayesgen.model_sites import isolated
from bayesgen.traces import log_prob_of_sites, normalised_residuals

if TYPE_CHECKING:
    from bayesgen.log_density import LogDensity

# Numbers in the matrix B that is kept where B is constant: 64 MiB in single precision.
_MOST_ENTRIES = 2**24

# How far from the prior's centre residuals are tried, in standard deviations of the prior.
_SIZES = (1.0, 1.0, 10.0, 100.0)


@dataclass(frozen=True, eq=False)
class GaussianBlock:
    r"""Sites u whose law given the other sites w is Gaussian once the mixing variances are known.

    .. math::
        u = m(w) + C(w)\, c, \qquad
        \log p(w, c) = g(w) - \tfrac12 |r_0(w) + B(w)\, c|^2 + \log p(c)

    with independent standardised coordinates c, in the order of the sites: standard normal, or, of
    sites with a Laplace prior, Laplace with scale 1. In all methods v are points ``(*batch, n)`` of
    the log density, after an axis of problems if there are several; what they hold for the block
    matters to `whiten` only.

    Attributes
    ----------
    log_density
        The log density.
    sites
        Names of the sites.
    coordinates
        Where they are in v, ``(k,)``.
    mixed
        Which of the coordinates are Laplace, ``(k,)``.
    rows
        The other sites that depend on them, of which r consists.
    recorded
        Whether evaluations are recorded, which takes as long as some hundred of them.
    """

    log_density: LogDensity
    sites: tuple[str, ...]
    coordinates: Tensor
    mixed: Tensor
    rows: tuple[str, ...] = ()
    recorded: bool = True

    def whiten(self, v: Tensor) -> Tensor:
        """Standardised coordinates c ``(*batch, k)`` of the block."""

        def standardised(trace: poutine.Trace) -> Tensor:
            return torch.cat([whiten(trace, name) for name in self.sites])

        return self._evaluate(
            "whiten", lambda v, *data: self.log_density.map_traces(standardised, v, data), v
        )

    def colour(self, v: Tensor, c: Tensor) -> Tensor:
        """The points ``v`` with the block's sites at standardised coordinates ``c``."""

        def values(trace: poutine.Trace) -> Tensor:
            nodes: dict[str, Any] = trace.nodes
            return torch.cat([nodes[name]["value"].flatten() for name in self.sites])

        def fn(v: Tensor, c: Tensor, *data: Tensor) -> Tensor:
            return self._map(values, v, c, data)

        return v.index_copy(-1, self.coordinates, self._evaluate("colour", fn, v, c))

    def residual(self, v: Tensor, c: Tensor) -> Tensor:
        """r ``(*batch, m)``."""
        return self._evaluate("residual", self._residual, v, c)

    def forward(self, v: Tensor, c: Tensor) -> Tensor:
        """B c ``(*batch, m)``."""

        def fn(v: Tensor, c: Tensor, *data: Tensor) -> Tensor:
            # Everything but c is constant, so that no network is differentiated.
            found: Any = torch.func.jvp(
                lambda c: self._residual(v, c, *data), (torch.zeros_like(c),), (c,)
            )
            tangent: Tensor = found[1]
            return tangent

        with warnings.catch_warnings():
            # Torch's own, when it first loads its forward derivatives.
            warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
            return self._evaluate("forward", fn, v, c)

    def adjoint(self, v: Tensor, y: Tensor) -> Tensor:
        """B^T y ``(*batch, k)`` of ``y`` ``(*batch, m)``."""

        def fn(v: Tensor, y: Tensor, *data: Tensor) -> Tensor:
            with torch.enable_grad():
                c = v.new_zeros(*v.shape[:-1], len(self.coordinates)).requires_grad_()
                r = self._residual(v, c, *data)
                if not r.requires_grad:
                    return c.detach()
                return torch.autograd.grad(r, c, y)[0]

        return self._evaluate("adjoint", fn, v, y)

    def value_and_grad(self, v: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        r"""g(w) - |r|^2 / 2 at c, ``(*batch,)``, and its gradient ``(*batch, n)`` at fixed c.

        With the Jacobian of the other sites; the block's own part of the gradient is zero.
        """

        def total(trace: poutine.Trace) -> Tensor:
            terms = [term for name, term in log_prob_of_sites(trace) if name not in self.sites]
            return torch.stack(terms).sum()

        def fn(v: Tensor, c: Tensor, *data: Tensor) -> Tensor:
            with torch.enable_grad():
                v = v.detach().requires_grad_()
                value = self._map(total, v, c, data) + self.log_density.log_abs_det(v)
                (gradient,) = torch.autograd.grad(value.sum(), v)
            return torch.cat([value.detach().unsqueeze(-1), gradient], dim=-1)

        found = self._evaluate("value_and_grad", fn, v, c)
        return found[..., 0], found[..., 1:]

    @cached_property
    def is_constant(self) -> bool:
        """Whether B is the same whatever the values of the other sites."""
        v, rng = _points(self.log_density)
        c = _randn(rng, v[..., :1, self.coordinates]).expand_as(v[..., self.coordinates])
        images = replace(self, recorded=False).forward(v, c)
        return _close(images, images[..., :1, :], 1e3 * torch.finfo(v.dtype).eps)

    @cached_property
    def matrix(self) -> Tensor | None:
        """B ``(*problems, m, k)``, if it is constant and small enough to be kept."""
        once, size = replace(self, recorded=False), len(self.coordinates)
        v = _points(self.log_density)[0][..., :1, :]
        num_rows = once.residual(v, v[..., self.coordinates]).shape[-1]
        if num_rows * size > _MOST_ENTRIES or not self.is_constant:
            return None
        basis = torch.eye(min(num_rows, size), dtype=v.dtype, device=v.device)
        v = v.expand(*v.shape[:-2], len(basis), v.shape[-1])
        basis = basis.expand(*v.shape[:-1], len(basis))
        found = once.adjoint(v, basis) if num_rows < size else once.forward(v, basis).mT
        return found.contiguous()

    @cached_property
    def factor(self) -> Factor:
        """`cholesky_factor` of the matrix, for blocks without Laplace coordinates."""
        assert self.matrix is not None
        return cholesky_factor(self.matrix, torch.ones_like(self.matrix[..., :1, :]))

    def _map(self, fn: Callable[..., Any], v: Tensor, c: Tensor, data: tuple[Tensor, ...]) -> Any:
        """``fn`` of traces in which the block's sites are at standardised coordinates."""
        with Coloured(self.sites):
            return self.log_density.map_traces(fn, v.index_copy(-1, self.coordinates, c), data)

    def _residual(self, v: Tensor, c: Tensor, *data: Tensor) -> Tensor:
        def stacked(trace: poutine.Trace) -> Tensor:
            r = normalised_residuals(only(trace, self.rows)) if self.rows else None
            return c.new_zeros(0) if r is None else r

        found: Tensor = self._map(stacked, v, c, data)
        return found

    def _evaluate(self, name: str, fn: Callable[..., Tensor], v: Tensor, *more: Tensor) -> Tensor:
        """As `bayesgen.LogDensity.evaluate`, with more tensors ``(*batch, k)`` beside points."""
        rows = self.log_density._rows(v)
        data = [part.reshape(*rows.shape[:-1], part.shape[-1]).contiguous() for part in more]
        data = [*data, *self.log_density.data]
        name = f"{self.sites} {self.rows} {name}"
        with torch.no_grad():
            if self.recorded:
                fn = self.log_density._recorded(name, fn, rows, data)
            found = fn(rows, *data)
        return found.reshape(v.shape[:-1] + found.shape[-1:])


class Factor(NamedTuple):
    r"""Cholesky factor of one of two matrices, told apart even where both have the same size.

    Attributes
    ----------
    lower
        Lower triangular, ``(*problems, chains, p, p)``.
    of_rows
        Whether it is of :math:`I + B D^2 B^T`, with p = m; else of :math:`I + D B^T B D`, p = k.
    """

    lower: Tensor
    of_rows: bool


def cholesky_factor(matrix: Tensor, widths: Tensor) -> Factor:
    r"""Factor of :math:`I + B D^2 B^T` or :math:`I + D B^T B D`, D = diag(widths).

    Of the smaller one. In double precision, lest rounding of large eigenvalues hide the identity.

    Parameters
    ----------
    matrix
        B, ``(*problems, m, k)``.
    widths
        ``(*problems, chains, k)``.
    """
    of_rows, parts = matrix.shape[-2] < matrix.shape[-1], []
    for part in widths.double().split(max(_MOST_ENTRIES // matrix.numel(), 1), dim=-2):
        scaled = matrix.double().unsqueeze(-3) * part.unsqueeze(-2)
        gram = scaled @ scaled.mT if of_rows else scaled.mT @ scaled
        gram.diagonal(dim1=-2, dim2=-1).add_(1.0)
        parts.append(torch.linalg.cholesky(gram))
    return Factor(torch.cat(parts, dim=-3), of_rows)


class GaussianBlocks(dict[str, GaussianBlock]):
    """The block of each site that is in one; sites that are Gaussian together share theirs.

    Attributes
    ----------
    groups
        The blocks, each once.
    rest
        Where the coordinates are that are in no block.
    refused
        Why the other latent sites are in none, by name.
    """

    def __init__(self, groups: list[GaussianBlock], rest: Tensor, refused: dict[str, str]) -> None:
        super().__init__({name: block for block in groups for name in block.sites})
        self.groups, self.rest, self.refused = groups, rest, refused


def find_gaussian_blocks(log_density: LogDensity) -> GaussianBlocks:
    """Look for normal and Laplace sites whose law given the others is what `GaussianBlock` says.

    Nothing is trusted: residuals are compared with their linearisation, and the density with what
    the residuals explain of it, at random values of all sites.

    Examples
    --------
    >>> import pyro
    >>> import pyro.distributions as dist
    >>> from bayesgen import LogDensity
    >>> def model(y):
    ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...     u = pyro.sample("u", dist.Normal(0.0, 1.0))
    ...     pyro.sample("y", dist.Normal(z.exp() + u, 0.5), obs=y)
    >>> blocks = find_gaussian_blocks(LogDensity(model, torch.tensor(2.0)))
    >>> list(blocks), blocks.refused
    (['u'], {'z': "the residuals of ['y'] are not affine in it"})
    """
    groups: list[GaussianBlock] = []
    refused: dict[str, str] = {}
    sites = log_density.sites.latent
    for name in sorted(sites, key=lambda name: sites[name].start - sites[name].stop):
        alone = _verified(log_density, {name})
        if isinstance(alone, str):
            refused[name] = alone
            continue
        for number, block in enumerate(groups):
            together = _verified(log_density, {name, *block.sites})
            if isinstance(together, GaussianBlock):
                groups[number] = together
                break
        else:
            groups.append(alone)
    refused = {name: refused[name] for name in sites if name in refused}
    others = [torch.arange(sites[name].start, sites[name].stop) for name in refused]
    rest = torch.cat([torch.arange(0), *others]).to(log_density.device)
    return GaussianBlocks(groups, rest, refused)


def _verified(log_density: LogDensity, names: set[str]) -> GaussianBlock | str:
    """The block of these sites, or why they are none."""
    with isolated(0), torch.no_grad(), warnings.catch_warnings():
        # A model that cannot be recorded says so elsewhere.
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            block = _candidate(log_density, names)
            if isinstance(block, str):
                return block
            return _fault(block) or replace(block, recorded=True)
        except (RuntimeError, TypeError, AssertionError) as error:
            # What torch raises for operations without a forward derivative.
            return f"it cannot be differentiated: {(str(error).splitlines() or [''])[0]}"


def _candidate(log_density: LogDensity, names: set[str]) -> GaussianBlock | str:
    sites = [site for name, site in log_density.sites.latent.items() if name in names]
    (points, rng), data = _points(log_density), log_density.data_of_one()
    one = points.flatten(0, -2)[0]
    nodes: dict[str, Any] = log_density.trace(log_density.constrain(one), data).nodes
    for site in sites:
        node = nodes[site.name]
        if not is_laplace(node["fn"]) and not is_normal(node["fn"]):
            return f"its prior, {kind_of(node)}, is neither normal nor Laplace"
        if node["mask"] is not None:
            return "its prior is masked"
    mixed = [torch.full(site.shape, is_laplace(nodes[site.name]["fn"])) for site in sites]
    block = GaussianBlock(
        log_density,
        tuple(site.name for site in sites),
        torch.cat([torch.arange(site.start, site.stop) for site in sites]).to(one.device),
        torch.cat([part.flatten() for part in mixed]).to(one.device),
        recorded=False,
    )
    logs = []
    for _ in range(2):
        v = block.colour(points, _randn(rng, points[..., block.coordinates]))
        trace = log_density.trace(log_density.constrain(v.flatten(0, -2)[0]), data)
        logs.append(dict(log_prob_of_sites(trace)))
    rows = [n for n in logs[0] if n not in names and not torch.equal(logs[0][n], logs[1][n])]
    for name in rows:
        if normalised_residuals(only(trace, (name,))) is None:
            return f"{name!r} depends on it and is {kind_of(nodes[name])}, not normal"
    return replace(block, rows=tuple(rows))


def _fault(block: GaussianBlock) -> str | None:
    """What is wrong with a block, if something is."""
    v, rng = _points(block.log_density)
    tight, rows = 1e3 * torch.finfo(v.dtype).eps, list(block.rows)
    loose = tight**0.5 / 3.0
    sizes = torch.tensor(_SIZES, dtype=v.dtype, device=v.device).unsqueeze(-1)
    c, other = (sizes * _randn(rng, v[..., block.coordinates]) for _ in range(2))
    if not _close(block.whiten(block.colour(v, c)), c, loose):
        return "whiten and colour of its prior are not inverse"
    r, s, centre = (block.residual(v, c) for c in (c, other, 0 * c))
    image = block.forward(v, c)
    if not _close(r, centre + image, tight, centre.abs() + image.abs()):
        return f"the residuals of {rows} are not affine in it"
    y = _randn(rng, r)
    there, back = (image * y).sum(-1), (block.adjoint(v, y) * c).sum(-1)
    if not _close(there, back, loose, image.norm(dim=-1) * y.norm(dim=-1)):
        return f"the derivative of the residuals of {rows} and its adjoint do not agree"
    # Near the centre only: rounding of large values would hide much.
    first, second = (
        block.log_density.log_prob(block.colour(v, c), jacobian=False) - explained
        for c, explained in ((c, _explained(block, c, r)), (other, _explained(block, other, s)))
    )
    size = first.abs() + _explained(block, c, r).abs() + _explained(block, other, s).abs()
    if not _close(first[..., :2], second[..., :2], tight, size[..., :2]):
        return f"the scales of {rows} depend on it"
    return None


def _explained(block: GaussianBlock, c: Tensor, r: Tensor) -> Tensor:
    """What of the log density depends on c."""
    prior = torch.where(block.mixed, c.abs(), 0.5 * c.square()).sum(-1)
    return -0.5 * r.square().sum(-1) - prior


def _points(log_density: LogDensity) -> tuple[Tensor, torch.Generator]:
    """Points ``(*problems, 4, n)`` at which everything is tried, improper priors included."""
    rng = torch.Generator().manual_seed(0)
    v = log_density.prior_draws(len(_SIZES), rng)
    return v + log_density.scale * _randn(rng, v), rng


def _randn(rng: torch.Generator, like: Tensor) -> Tensor:
    return torch.randn(like.shape, generator=rng, dtype=like.dtype).to(like.device)


def _close(a: Tensor, b: Tensor, tolerance: float, size: Tensor | None = None) -> bool:
    """Equal up to the tolerance, relative to the largest ``size`` in each row."""
    if a.numel() == 0:
        return True
    size = b.abs() if size is None else size
    return bool(((a - b).abs() <= tolerance * (1.0 + size.amax(-1, keepdim=True))).all())
