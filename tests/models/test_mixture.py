"""The fit against what it must do, the prior against closed-form posteriors.

False-alarm rate of every statistical check: 1e-6.
"""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import chi2, norm
from torch import Tensor
from torch.distributions import MultivariateNormal

import bayesgen as bg
from bayesgen.errors import DataError, DtypeError, OptionError, ShapeError
from bayesgen.inference.checks import moment_report
from bayesgen.models import mixture as module
from bayesgen.models.mixture import Mixture, choose_components, fit_mixture, mixture

float64 = torch.float64


def overlapping() -> Mixture:
    """Three components, close enough for chains to travel between them."""
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=float64)
    means = torch.tensor([[0.0, 0.0], [2.0, 1.0], [-1.0, 2.5]], dtype=float64)
    scale_tril = torch.tensor(
        [[[1.0, 0.0], [0.5, 0.6]], [[0.7, 0.0], [-0.4, 0.8]], [[0.9, 0.0], [0.2, 0.5]]],
        dtype=float64,
    )
    return Mixture(weights.log(), means, scale_tril)


def draw(parameters: Mixture, num: int, rng: torch.Generator) -> Tensor:
    log_weights, means, scale_tril = parameters
    which = torch.multinomial(log_weights.exp(), num, replacement=True, generator=rng)
    noise = torch.randn(num, means.shape[1], 1, generator=rng, dtype=means.dtype)
    return means[which] + (scale_tril[which] @ noise).squeeze(-1)


# ---------------------------------------------------------------------------- the fit


@pytest.mark.parametrize("floor", [1e-4, 0.3])
def test_every_step_raises_the_likelihood(floor: float, rng: torch.Generator) -> None:
    """Also where components meet the floor, which they do at 0.3."""
    z, _, _ = module._whiten(draw(overlapping(), 300, rng))
    state = module._start(z, 6, 4, rng, floor)
    if floor == 0.3:
        assert (state.variances == floor).any()
    _, heights = module._climb(z, state, floor, -1.0, 200)
    rises = torch.stack(heights).diff(dim=0)
    assert rises.min() > -1e-12 and (rises[0] > 1e-3).all()


def test_a_step_that_adds_the_floor_may_lower_the_likelihood(
    rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = module._maximise

    def adds(*sums: Tensor | float) -> Any:
        state = right(*sums[:3], 0.0)  # type: ignore[arg-type]
        return state._replace(variances=state.variances + sums[3])

    monkeypatch.setattr(module, "_maximise", adds)
    z, _, _ = module._whiten(draw(overlapping(), 300, rng))
    _, heights = module._climb(z, module._start(z, 6, 4, rng, 0.3), 0.3, -1.0, 200)
    assert torch.stack(heights).diff(dim=0).min() < -1e-6


def test_one_component_is_the_sample_mean_and_covariance(rng: torch.Generator) -> None:
    z = 1e3 + draw(overlapping(), 100, rng) * torch.tensor([1.0, 1e-4], dtype=float64)
    log_weights, means, scale_tril = fit_mixture(z, 1)
    assert torch.equal(log_weights, torch.zeros(1, dtype=float64))
    torch.testing.assert_close(means[0], z.mean(0), rtol=1e-14, atol=0)
    covariance = scale_tril[0] @ scale_tril[0].T
    torch.testing.assert_close(covariance, torch.cov(z.T, correction=0), rtol=1e-8, atol=0)


def test_a_known_mixture_is_recovered(rng: torch.Generator) -> None:
    """The likelihood-ratio statistic against the truth is chi-square with 17 parameters."""
    truth = overlapping()
    z = draw(truth, 20_000, rng)
    fitted = fit_mixture(z, 3, tolerance=1e-9)
    above = mixture(*fitted).log_prob(z) - mixture(*truth).log_prob(z)
    least, most = chi2.isf(1 - 0.5e-6, 17), chi2.isf(0.5e-6, 17)
    assert least < 2 * float(above.sum()) < most
    torch.testing.assert_close(fitted.means, truth.means, rtol=0, atol=0.15)
    # Wrong weights, right components.
    wrong = mixture(torch.zeros(3, dtype=float64), fitted.means, fitted.scale_tril)
    assert 2 * float((wrong.log_prob(z) - mixture(*truth).log_prob(z)).sum()) < least


def test_well_separated_components_get_the_moments_of_their_vectors(rng: torch.Generator) -> None:
    near, far = torch.randn(2, 300, 3, generator=rng, dtype=float64)
    far = 20 + 3 * far[:200]
    fitted = fit_mixture(torch.cat([far, near]), 2)
    torch.testing.assert_close(fitted.log_weights.exp(), torch.tensor([0.6, 0.4]).double())
    for index, part in enumerate((near, far)):
        torch.testing.assert_close(fitted.means[index], part.mean(0))
        covariance = fitted.scale_tril[index] @ fitted.scale_tril[index].T
        torch.testing.assert_close(covariance, torch.cov(part.T, correction=0))


def test_the_fit_turns_shifts_and_stretches_with_the_vectors(rng: torch.Generator) -> None:
    z = draw(overlapping(), 400, rng)
    matrix = torch.tensor([[1e3, 2.0], [-5.0, 1e-2]], dtype=float64)
    one, other = fit_mixture(z, 3), fit_mixture(z @ matrix.T + 7, 3)
    torch.testing.assert_close(other.means, one.means @ matrix.T + 7, rtol=1e-6, atol=1e-6)
    shift = torch.linalg.slogdet(matrix).logabsdet
    torch.testing.assert_close(
        mixture(*other).log_prob(z @ matrix.T + 7), mixture(*one).log_prob(z) - shift
    )


def test_the_likeliest_start_goes_on(rng: torch.Generator) -> None:
    z = draw(overlapping(), 300, rng)
    white, _, scale = module._whiten(z)
    seeded = torch.Generator().manual_seed(0)
    few = white[torch.randperm(300, generator=seeded)]
    state, heights = module._climb(few, module._start(few, 6, 8, seeded, 1e-4), 1e-4, -1.0, 20)
    ends = []
    for index in (int(heights[-1].argmax()), int(heights[-1].argmin())):
        one = module._State(*(part[index : index + 1] for part in state))
        _, way = module._climb(white, one, 1e-4, 1e-5, 1000)
        ends.append(way[-1][0] - scale.diagonal().log().sum())
    height = mixture(*fit_mixture(z, 6)).log_prob(z).mean()
    torch.testing.assert_close(height, ends[0], rtol=1e-8, atol=0)
    assert (height - ends[1]).abs() > 1e-3


def test_no_component_is_narrower_than_the_floor(rng: torch.Generator) -> None:
    """Copies of one vector would have infinite likelihood."""
    z = torch.cat(
        [torch.zeros(50, 2, dtype=float64), torch.randn(50, 2, generator=rng, dtype=float64)]
    )
    fitted = fit_mixture(z, 2, floor=0.01)
    whole = torch.cov(z.T, correction=0)
    for factor in fitted.scale_tril:
        inner = torch.linalg.solve(torch.linalg.cholesky(whole), factor)
        assert torch.linalg.svdvals(inner)[-1] ** 2 > 0.01 * (1 - 1e-9)
    assert mixture(*fitted).log_prob(z).isfinite().all()


def test_empty_components_become_copies(rng: torch.Generator) -> None:
    """Three different vectors cannot fill five cells."""
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=float64)
    z = corners.repeat(20, 1)
    fitted = fit_mixture(z, 5)
    assert fitted.means.shape == (5, 2) and fitted.log_weights.isfinite().all()
    torch.testing.assert_close(fitted.log_weights.exp().sum(), torch.ones((), dtype=float64))
    three = fit_mixture(z, 3)
    torch.testing.assert_close(mixture(*fitted).log_prob(z), mixture(*three).log_prob(z))


def test_the_same_seed_gives_the_same_mixture_in_either_dtype(rng: torch.Generator) -> None:
    z = draw(overlapping(), 200, rng).float()
    one, same, double = fit_mixture(z, 3), fit_mixture(z, 3), fit_mixture(z.double(), 3)
    for a, b, c in zip(one, same, double, strict=True):
        assert a.dtype == torch.float32 and c.dtype == float64
        assert torch.equal(a, b) and torch.equal(a, c.float())
    assert (one.log_weights.diff() <= 0).all()


def test_blocks_do_not_matter(rng: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    z = draw(overlapping(), 200, rng)
    whole = fit_mixture(z, 3)
    monkeypatch.setattr(module, "_BLOCK", 7 * 2 * 8 * 3)
    for a, b in zip(fit_mixture(z, 3), whole, strict=True):
        torch.testing.assert_close(a, b)


def test_a_fit_that_has_not_converged_says_so(rng: torch.Generator) -> None:
    with pytest.warns(RuntimeWarning, match=r"still rose by .* after 2 steps"):
        fit_mixture(draw(overlapping(), 200, rng), 5, max_steps=2, tolerance=1e-12)


def test_as_many_components_are_chosen_as_there_are(rng: torch.Generator) -> None:
    z = 4 * torch.eye(4, dtype=float64).repeat(150, 1)
    z = z + torch.randn(600, 4, generator=rng, dtype=float64)
    assert choose_components(z, [8, 1, 4, 2]) == 4
    assert choose_components(torch.randn(300, 4, generator=rng), (1, 2, 4, 8)) == 1


@pytest.mark.parametrize(
    ("z", "options", "kind", "message"),
    [
        ([[1.0]], {}, DtypeError, "z: expected a floating-point tensor, got list"),
        (torch.ones(5, 2).long(), {}, DtypeError, "got torch.int64"),
        (torch.ones(5), {}, ShapeError, r"z: expected latent vectors \(N, d\), got shape \(5,\)"),
        (torch.ones(0, 2), {}, ShapeError, "z"),
        (torch.full((5, 2), torch.nan), {}, DataError, "z: an entry is NaN or infinite"),
        (torch.rand(2, 2), {}, DataError, "z: 2 vectors for 3 components"),
        (torch.ones(9, 2) * 0.3, {}, DataError, "z: the 9 vectors lie in a plane of less than 2"),
        (torch.arange(18.0).reshape(9, 2), {}, DataError, "combination of others"),
        (torch.eye(9)[:6], {}, DataError, "expected more vectors"),
        (torch.eye(9), {"components": 0}, OptionError, "components: got 0"),
        (torch.eye(9), {"restarts": 0}, OptionError, "restarts: got 0"),
        (torch.eye(9), {"max_steps": 1}, OptionError, "max_steps: got 1"),
        (torch.eye(9), {"floor": 0.0}, OptionError, "floor: got 0.0; .* between 0 and 1"),
        (torch.eye(9), {"tolerance": -1.0}, OptionError, "tolerance: got -1.0"),
    ],
    ids=str,
)
def test_bad_vectors_and_settings(
    z: Any, options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        fit_mixture(z, **{"components": 3, **options})


def test_bad_candidates(rng: torch.Generator) -> None:
    z = torch.randn(20, 2, generator=rng)
    with pytest.raises(OptionError, match="candidates: got none"):
        choose_components(z, [])
    with pytest.raises(OptionError, match="held_out: got 1.0"):
        choose_components(z, [1], held_out=1.0)
    with pytest.raises(DataError, match="20 vectors for 21 components"):
        choose_components(z, [1, 21])


# ---------------------------------------------------------------------------- the prior


def test_log_prob_and_its_gradient_are_those_of_the_sum(rng: torch.Generator) -> None:
    log_weights, means, scale_tril = overlapping()
    z = (3 * torch.randn(2, 5, 2, generator=rng, dtype=float64)).requires_grad_()
    densities = torch.stack(
        [
            (weight + MultivariateNormal(mean, scale_tril=factor).log_prob(z)).exp()
            for weight, mean, factor in zip(log_weights, means, scale_tril, strict=True)
        ]
    )
    prior = mixture(log_weights + 1.0, means, scale_tril)  # weights need not sum to one
    assert prior.event_shape == (2,) and prior.batch_shape == ()
    found, expected = prior.log_prob(z), densities.sum(0).log()
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found.sum(), z, retain_graph=True)
    (truth,) = torch.autograd.grad(expected.sum(), z)
    torch.testing.assert_close(gradient, truth)
    mapped = torch.func.vmap(torch.func.vmap(torch.func.grad(prior.log_prob)))(z.detach())
    torch.testing.assert_close(mapped, truth)


def test_far_away_the_gradient_is_still_finite() -> None:
    prior = mixture(*(part.float() for part in overlapping()))
    z = torch.tensor([1e4, -1e4], requires_grad=True)
    (gradient,) = torch.autograd.grad(prior.log_prob(z), z)
    assert gradient.isfinite().all() and gradient[0] < 0 < gradient[1]


def test_mixtures_that_do_not_fit_are_refused() -> None:
    log_weights, means, scale_tril = overlapping()
    for wrong in (
        (log_weights[:2], means, scale_tril),
        (log_weights, means[0], scale_tril),
        (log_weights, means, scale_tril[0]),
    ):
        with pytest.raises(ShapeError, match=r"expected log_weights \(K,\), means \(K, d\)"):
            mixture(*wrong)


MATRIX = torch.tensor([[1.0, -0.5]], dtype=float64)
DATA = torch.tensor([0.6], dtype=float64)


def posterior_moments(parameters: Mixture, sigma: float) -> tuple[Tensor, Tensor]:
    """Mean and covariance of z given ``y = MATRIX z + noise``: a mixture again."""
    log_weights, means, scale_tril = parameters
    prior = scale_tril @ scale_tril.mT
    variance = (MATRIX @ prior @ MATRIX.T).squeeze() + sigma**2
    rest = DATA - (means @ MATRIX.T).squeeze(-1)
    weights = (log_weights - 0.5 * rest.square() / variance - 0.5 * variance.log()).softmax(0)
    gain = (prior @ MATRIX.T).squeeze(-1) / variance.unsqueeze(-1)
    centres = means + gain * rest.unsqueeze(-1)
    covariances = prior - gain.unsqueeze(-1) * (MATRIX @ prior)
    mean = weights @ centres
    offset = centres - mean
    spread = covariances + offset.unsqueeze(-1) * offset.unsqueeze(-2)
    return mean, (weights[:, None, None] * spread).sum(0)


def test_inference_with_the_prior_gives_the_closed_form_posterior() -> None:
    parameters = overlapping()

    def model(y: Tensor) -> None:
        z = pyro.sample("z", mixture(*parameters))
        pyro.sample("y", dist.Normal(z @ MATRIX.T, 0.5).to_event(1), obs=y)

    posterior = bg.infer(model, DATA, chains=256, draws=50, warmup=60, progress=False)
    draws = posterior.draws("z")
    assert draws.shape == (256, 50, 2)
    moment_report("mixture", draws, *posterior_moments(parameters, 0.5)).raise_if_failed()
    # The checks tell apart: mixtures with equal weights, another noise, a single Gaussian.
    equal = parameters._replace(log_weights=torch.zeros(3, dtype=float64))
    heavy = draw(parameters, 1_000_000, torch.Generator().manual_seed(0))
    one = fit_mixture(heavy, 1)
    for wrong in (
        posterior_moments(equal, 0.5),
        posterior_moments(parameters, 0.6),
        posterior_moments(one, 0.5),
    ):
        assert not moment_report("mutant", draws, *wrong).passed


def test_prior_draws_have_the_moments_of_the_mixture() -> None:
    parameters = overlapping()
    prior = mixture(*parameters)

    def model(y: Tensor) -> None:
        z = pyro.sample("z", prior)
        pyro.sample("y", dist.Normal(z @ MATRIX.T, 0.5).to_event(1), obs=y)

    log_density = bg.LogDensity(model, DATA)
    assert log_density.vectorised and log_density.sites.prior_is_static
    torch.testing.assert_close(log_density.scale, prior.stddev)
    z = log_density.prior_draws(100_000, torch.Generator().manual_seed(3))
    again = log_density.prior_draws(100_000, torch.Generator().manual_seed(3))
    assert torch.equal(z, again)
    score = (z.mean(0) - prior.mean) / prior.stddev * len(z) ** 0.5
    assert score.abs().max() < norm.isf(0.25e-6)
    square = (z - prior.mean).square()
    score = (square.mean(0) - prior.variance) / square.std(0) * len(z) ** 0.5
    assert score.abs().max() < norm.isf(0.25e-6)
