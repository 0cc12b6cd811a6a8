"""A normal law around an optimum: a quick map of uncertainty, and no more than that."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from bayesgen.errors import ResultError
from bayesgen.inference import MAP, run_optimiser
from bayesgen.inference.curvature import Unconstrained, check_normal_laws_fit, normals_at
from bayesgen.inference.standardised import Standardised
from bayesgen.posterior import Posterior
from bayesgen.types import check_count


def laplace(posterior: Posterior, *, draws: int = 500, seed: int = 0) -> Posterior:
    """Draw from the Laplace approximation; see `bayesgen.Posterior.laplace`."""
    if not posterior.is_point_estimate:
        raise ResultError("laplace: this result holds draws already; expected the optima of MAP")
    check_count("draws", draws)
    check_count("seed", seed, minimum=0)
    check_normal_laws_fit(posterior.model, "laplace")
    rng = torch.Generator().manual_seed(seed)
    mode, arrived = _mode(posterior, rng)
    if not bool(arrived.all()):
        warnings.warn(
            "laplace: the optimum has not converged, so that the normal law is not where the "
            "density is highest; raise max_iterations of MAP",
            RuntimeWarning,
            stacklevel=3,
        )
    # In prior standard deviations, where magnitudes are alike.
    log_density = Standardised(posterior.model)
    normals, fits, kind = normals_at(log_density, mode / log_density.units(mode))
    if not bool(fits.all()):
        which = "" if mode.ndim == 1 else f" of problems {(~fits).nonzero()[:, 0].tolist()}"
        raise ResultError(
            f"laplace: the optimum{which} is not a strict maximum (the Hessian is not positive "
            "definite); raise max_iterations or lower the tolerance of MAP, or sample"
        )
    chains = 4
    shape = (*mode.shape[:-1], chains * draws, mode.shape[-1])
    noise = torch.randn(shape, generator=rng, dtype=mode.dtype).to(mode.device)
    w = normals.spread(noise).unflatten(-2, (chains, draws))
    v = w * log_density.units(w)
    log_prob = posterior.model.value_and_grad(v)[0]
    return Posterior(
        latent=posterior.model.constrain(v),
        log_prob=log_prob,
        stats={},
        log_density=posterior.model,
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
        run = run_optimiser(method, Unconstrained(log_density), v, rng)
        v, arrived = run.position[..., 0, :], run.stats["converged"][..., 0]
    return v[..., 0, :], arrived[..., 0]


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
