"""A normal law around an optimum: a quick map of uncertainty, and no more than that."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from bayesgen.errors import OptionError, ResultError
from bayesgen.inference import MAP, run_optimiser
from bayesgen.log_density import LogDensity
from bayesgen.posterior import Posterior
from bayesgen.types import check_count

# Unknowns up to which a matrix of their number squared is computed column by column.
MOST_UNKNOWNS = 1000


def laplace(posterior: Posterior, *, draws: int = 500, seed: int = 0) -> Posterior:
    """Draw from the Laplace approximation; see `bayesgen.Posterior.laplace`."""
    if not posterior.is_point_estimate:
        raise ResultError("laplace: this result holds draws already; expected the optima of MAP")
    check_count("draws", draws)
    check_count("seed", seed, minimum=0)
    log_density = posterior.model
    if log_density.num_dims > MOST_UNKNOWNS:
        raise OptionError(
            f"laplace: the model has {log_density.num_dims} unknowns; expected at most "
            f"{MOST_UNKNOWNS}; sample instead"
        )
    if log_density.proximal:
        raise OptionError(
            f"laplace: the priors of {sorted(log_density.proximal)} have kinks, where no normal "
            "law fits; sample instead"
        )
    rng = torch.Generator().manual_seed(seed)
    mode, arrived = _mode(posterior, rng)
    if not bool(arrived.all()):
        warnings.warn(
            "laplace: the optimum has not converged, so that the normal law is not where the "
            "density is highest; raise max_iterations of MAP",
            RuntimeWarning,
            stacklevel=3,
        )
    precision, kind = _precision(log_density, mode)
    scale = log_density.scale if isinstance(log_density.scale, Tensor) else mode.new_ones(())
    # In prior standard deviations, where magnitudes are alike.
    units = scale.expand(mode.shape) if scale.ndim < 2 else scale[..., 0, :].expand(mode.shape)
    precision = precision * units.unsqueeze(-1) * units.unsqueeze(-2)
    factor, failed = torch.linalg.cholesky_ex(precision)
    if bool(failed.any()):
        which = "" if mode.ndim == 1 else f" of problems {failed.nonzero()[:, 0].tolist()}"
        raise ResultError(
            f"laplace: the optimum{which} is not a strict maximum (the Hessian is not positive "
            "definite); raise max_iterations or lower the tolerance of MAP, or sample"
        )
    chains = 4
    shape = (*mode.shape[:-1], chains * draws, mode.shape[-1])
    noise = torch.randn(shape, generator=rng, dtype=mode.dtype).to(mode.device)
    steps = torch.linalg.solve_triangular(factor.mT, noise.mT, upper=True).mT
    v = (mode.unsqueeze(-2) + units.unsqueeze(-2) * steps).unflatten(-2, (chains, draws))
    log_prob = log_density.value_and_grad(v)[0]
    return Posterior(
        latent=log_density.constrain(v),
        log_prob=log_prob,
        stats={},
        log_density=log_density,
        attributes=_attributes(posterior, kind, seed),
    )


def _mode(posterior: Posterior, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """The best optimum ``(*problems, n)`` of the density of unconstrained coordinates.

    And whether it has converged, ``(*problems,)``.
    """
    log_density = posterior.model
    best = posterior.log_prob.nan_to_num(-torch.inf)[..., 0].argmax(-1)
    v = log_density.unconstrain(posterior.last_draws())
    v = torch.take_along_dim(v, best[..., None, None], dim=-2)
    arrived = torch.take_along_dim(posterior.stats["converged"][..., 0], best[..., None], -1)
    if log_density.has_jacobian:
        # The optimum is of the density of the sites themselves: a little further on.
        method = MAP(solver="lbfgs")
        run = run_optimiser(method, _Unconstrained(log_density), v, rng)
        v, arrived = run.position[..., 0, :], run.stats["converged"][..., 0]
    return v[..., 0, :], arrived[..., 0]


class _Unconstrained:
    """A log density whose Jacobian always counts."""

    def __init__(self, log_density: LogDensity) -> None:
        self.log_density = log_density
        self.num_dims, self.scale = log_density.num_dims, log_density.scale

    def value_and_grad(self, v: Tensor, *, jacobian: bool = True) -> tuple[Tensor, Tensor]:
        return self.log_density.value_and_grad(v)


def _precision(log_density: LogDensity, mode: Tensor) -> tuple[Tensor, str]:
    """Curvature ``(*problems, n, n)`` of minus the log density, and what it was computed by."""
    least_squares = None if log_density.has_jacobian else log_density.least_squares
    if least_squares is not None:
        return least_squares.linearise(mode.unsqueeze(-2))[2][..., 0, :, :], "Gauss-Newton"

    def one(v: Tensor, problem: int | None) -> Tensor:
        every = mode.unsqueeze(-2)

        def minus(part: Tensor) -> Tensor:
            # The other problems stay where they are.
            whole = (
                part[None]
                if problem is None
                else every.index_put((torch.tensor(problem), torch.tensor(0)), part)
            )
            total: Tensor = -log_density.log_prob(whole).sum()
            return total

        hessian: Any = torch.autograd.functional.hessian(minus, v)
        return hessian

    if log_density.num_problems is None:
        return one(mode, None), "Hessian"
    return torch.stack([one(v, i) for i, v in enumerate(mode)]), "Hessian"


def _attributes(posterior: Posterior, kind: str, seed: int) -> dict[str, Any]:
    attributes = dict(posterior.attributes)
    attributes.update(
        kind="draws",
        method="laplace",
        settings=f"Laplace approximation ({kind}) at the optimum of {attributes.get('settings')}",
        reference="MacKay (2003), Information Theory, Inference, and Learning Algorithms, 27",
        exact=False,
        seed=seed,
    )
    return attributes
