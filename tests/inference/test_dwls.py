"""Discriminator-weighted sampling: a quadratic discriminator, for which all is Gaussian.

False-alarm rate of the checks of moments: 1e-6.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import bayesgen as bg
from bayesgen.errors import DataError, DtypeError, ModelError, OptionError, ShapeError
from bayesgen.inference import HMC, MALA, MAP, Sampler, run_sampler
from bayesgen.inference.checks import moment_report
from bayesgen.inference.dwls import DWLS, discriminator_weighted
from bayesgen.inference.targets import GaussianTarget
from bayesgen.log_density import LogDensity
from bayesgen.models import GAN, WGAN

float64 = torch.float64


class Problem:
    """x = W z + b, y = x + noise, d(x) = -c |x - t|^2 / 2: the weighted posterior is Gaussian."""

    def __init__(self, dtype: torch.dtype = float64) -> None:
        rng = torch.Generator().manual_seed(0)
        self.W = torch.randn(4, 3, generator=rng, dtype=float64).to(dtype)
        self.b, self.t, self.y = torch.randn(3, 4, generator=rng, dtype=float64).to(dtype)
        # The data pull one way and the discriminator another, so that its weight matters.
        self.t = self.t + 4.0 * self.W[:, 0]
        self.c, self.sigma = 1.5, 0.7

    def model(self, y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(3, dtype=self.W.dtype), 1.0).to_event(1))
        x = pyro.deterministic("x", self.W @ z + self.b)
        pyro.sample("y", dist.Normal(x, self.sigma).to_event(1), obs=y)

    def discriminator(self, x: Tensor) -> Tensor:
        return -0.5 * self.c * (x - self.t).square().sum(-1)

    def posterior(self, weight: float = 1.0, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y = self.y if y is None else y
        gram, c = self.W.T @ self.W, weight * self.c
        precision = torch.eye(3, dtype=float64) + gram * (1 / self.sigma**2 + c)
        pull = self.W.T @ ((y - self.b) / self.sigma**2 + c * (self.t - self.b))
        covariance = torch.linalg.inv(precision)
        return covariance @ pull, covariance


@pytest.fixture
def problem() -> Problem:
    return Problem()


def sample(method: DWLS, problem: Problem) -> Tensor:
    log_density = LogDensity(method.extend(problem.model), problem.y)
    rng = torch.Generator().manual_seed(1)
    start = log_density.prior_draws(48, rng)
    draws = 200 if isinstance(method.sampler, MALA) else 80
    return run_sampler(method, log_density, start, rng, draws=draws, warmup=draws).position


@pytest.mark.parametrize("sampler", [HMC(), MALA()], ids=["hmc", "mala"])
def test_the_weighted_posterior_in_closed_form(sampler: Sampler, problem: Problem) -> None:
    method = DWLS(discriminator=problem.discriminator, sampler=sampler)
    moment_report("dwls", sample(method, problem), *problem.posterior()).raise_if_failed()


def test_a_weight_of_one_half_counts_half(problem: Problem) -> None:
    method = DWLS(discriminator=problem.discriminator, sampler=MALA(), weight=0.5)
    found = sample(method, problem)
    moment_report("dwls", found, *problem.posterior(0.5)).raise_if_failed()
    assert not moment_report("", found, *problem.posterior(1.0)).passed


@pytest.mark.parametrize("mutant", ["ignored", "twice", "of the opposite sign", "probabilities"])
def test_wrong_weights_are_rejected(mutant: str, problem: Problem) -> None:
    right = problem.discriminator
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "ignored": lambda x: 0.0 * right(x),
        "twice": lambda x: 2.0 * right(x),
        # Not -d itself, which no prior makes up for.
        "of the opposite sign": lambda x: -0.1 * right(x),
        "probabilities": lambda x: right(x).sigmoid(),
    }
    method = DWLS(discriminator=functions[mutant], sampler=MALA(), are_logits=True)
    assert not moment_report(mutant, sample(method, problem), *problem.posterior()).passed


def test_the_factor_is_the_only_difference(problem: Problem, rng: torch.Generator) -> None:
    """For every row of a batch; the model is evaluated as one, without a warning."""
    weighted = discriminator_weighted(problem.model, problem.discriminator, weight=0.3)
    with_factor, plain = LogDensity(weighted, problem.y), LogDensity(problem.model, problem.y)
    z = torch.randn(2, 5, 3, generator=rng, dtype=float64)
    x = z @ problem.W.T + problem.b
    difference = with_factor.value_and_grad(z)[0] - plain.value_and_grad(z)[0]
    torch.testing.assert_close(difference, 0.3 * problem.discriminator(x))
    assert with_factor.vectorised and with_factor.sites.deterministic.keys() == {"x"}


def test_problems_have_their_own_weighted_posteriors(problem: Problem) -> None:
    y = torch.stack([problem.y, problem.y + 1.0, -problem.y])
    point = bg.infer(
        discriminator_weighted(problem.model, problem.discriminator),
        y,
        method=MAP(tolerance=1e-8),
        batched=True,
        progress=False,
    )
    for number, data in enumerate(y):
        mean, _ = problem.posterior(y=data)
        torch.testing.assert_close(point.mode("z")[number], mean, rtol=1e-4, atol=1e-4)
    method = DWLS(discriminator=problem.discriminator)
    posterior = bg.infer(
        problem.model, y, method=method, batched=True, draws=5, warmup=5, progress=False
    )
    assert posterior.draws("x").shape == (3, 4, 5, 4)


@pytest.mark.parametrize("dtype", [torch.float32, float64])
def test_through_infer_with_one_chain(dtype: torch.dtype) -> None:
    problem = Problem(dtype)
    method = DWLS(discriminator=problem.discriminator, sampler=MALA())
    posterior = bg.infer(
        problem.model, problem.y, method=method, chains=1, draws=6, warmup=6, progress=False
    )
    assert posterior.draws("z").shape == (1, 6, 3) and posterior.draws("z").dtype == dtype
    assert posterior.attributes["method"] == "dwls" and posterior.attributes["exact"] is True
    assert "Problem.discriminator" in posterior.attributes["settings"]
    assert posterior.attributes["model"] == "model"
    assert "pyro.deterministic" in posterior.attributes["model_source"]


def test_chains_are_those_of_the_sampler(rng: torch.Generator) -> None:
    target = GaussianTarget.with_condition(3, 10.0)
    start = target.starts(4, rng)
    sampler = HMC(target_acceptance=0.9)
    runs = [
        run_sampler(method, target, start, rng.manual_seed(3), draws=10, warmup=30, thin=2)
        for method in (sampler, DWLS(sampler=sampler))
    ]
    assert torch.equal(runs[0].position, runs[1].position)
    assert runs[0].stats.keys() == runs[1].stats.keys()


def test_a_biased_sampler_stays_biased() -> None:
    class Biased(MALA):
        exact = False

    assert DWLS().exact and not DWLS(sampler=Biased()).exact


def test_a_sampled_image_can_be_weighted() -> None:
    """The deviation is part of the image then: x ~ N(z, 1) weighted by exp(-x^2 / 2)."""

    def model(y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        x = pyro.sample("x", dist.Normal(z, 1.0).to_event(1))
        pyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)

    weighted = discriminator_weighted(model, lambda x: -0.5 * x.square().sum(-1))
    point = bg.infer(weighted, torch.ones(2), method="map", progress=False)
    # Given z, x has precision 3 and mean (z + y) / 3; at the optimum z = x / 2.
    torch.testing.assert_close(point.mode("x"), torch.full((2,), 0.4), rtol=1e-3, atol=1e-3)


def test_a_gan_may_stand_for_its_discriminator() -> None:
    G = GAN((4, 5), 2, width=6, channels=2)

    def model(y: Tensor) -> None:
        x = pyro.deterministic("x", G(pyro.sample("z", G.prior())))
        pyro.sample("y", dist.Normal(x, 0.1).to_event(2), obs=y)

    z, y = torch.randn(3, 2, generator=torch.Generator().manual_seed(0)), torch.zeros(4, 5)
    values = [
        LogDensity(DWLS(discriminator=D).extend(model), y).log_prob(z) for D in (G, G.discriminate)
    ]
    plain = LogDensity(model, y).log_prob(z)
    assert torch.equal(*values)
    torch.testing.assert_close(values[0] - plain, G.discriminate(G(z)), rtol=1e-3, atol=1e-3)
    assert repr(DWLS(discriminator=G)).startswith("DWLS(discriminator=GAN, sampler=HMC(")
    assert len(repr(DWLS(discriminator=G.discriminate))) < 250


# ---------------------------------------------------------------------------- what is refused


def test_probabilities_are_refused_unless_they_are_none(problem: Problem) -> None:
    def judge(x: Tensor) -> Tensor:
        return problem.discriminator(x).sigmoid()

    with pytest.raises(OptionError, match="as probabilities do; expected log odds.*are_logits"):
        LogDensity(DWLS(discriminator=judge).extend(problem.model), problem.y)
    LogDensity(DWLS(discriminator=judge, are_logits=True).extend(problem.model), problem.y)


def test_probabilities_of_a_network_are_refused_and_its_log_odds_are_not() -> None:
    G = bg.models.load("mnist-gan-16")
    A = bg.operators.Identity((28, 28))
    model, y = bg.regularisers.hard(G, A, sigma=0.5), torch.zeros(28, 28)
    with pytest.raises(OptionError, match="sigmoid"):
        LogDensity(DWLS(discriminator=lambda x: G.discriminate(x).sigmoid()).extend(model), y)
    LogDensity(DWLS(discriminator=G.discriminate).extend(model), y)


@pytest.mark.parametrize(
    ("judge", "error", "message"),
    [
        (lambda x: x.sum(-1, keepdim=True), ShapeError, r"returned \(25, 1\) for images \(25, 4\)"),
        (lambda x: x.sum(), ShapeError, r"returned \(\) for images"),
        (lambda x: 1.0, ShapeError, "returned float for images"),
        (lambda x: (x.sum(-1) - 1e3).log(), DataError, "values are NaN or infinite"),
        (lambda x: x.detach().sum(-1), ModelError, "no gradient"),
        (lambda x: torch.as_tensor(x.detach().numpy().sum(-1)), ModelError, "no gradient"),
        (lambda x: x.reshape(3, -1, 7), ModelError, "failed in <lambda>"),
    ],
)
def test_discriminators_that_are_none(
    judge: Any, error: type[Exception], message: str, problem: Problem
) -> None:
    with pytest.raises(error, match=message):
        LogDensity(DWLS(discriminator=judge).extend(problem.model), problem.y)


def test_sites_that_are_not_there_are_answered_with_those_that_are(problem: Problem) -> None:
    for site in ("image", "y"):
        method = DWLS(discriminator=problem.discriminator, site=site)
        with pytest.raises(OptionError, match=rf"no site '{site}'; expected one of \['z', 'x'\]"):
            bg.infer(problem.model, problem.y, method=method, progress=False)


def test_sites_that_are_drawn_afterwards_are_refused(problem: Problem) -> None:
    class Law(dist.Normal):
        noise_shape = (4,)

        def from_noise(self, noise: Tensor) -> Tensor:
            return self.loc + self.scale * noise

    def model(y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
        generated: Any = {"generated": True}
        pyro.sample("x", Law(z, torch.ones(4)).to_event(1), infer=generated)
        pyro.sample("y", dist.Normal(z, 1.0).to_event(1), obs=y)

    with pytest.raises(OptionError, match=r"'x' is drawn once the latent.*one of \['z'\]"):
        LogDensity(discriminator_weighted(model, lambda x: x.sum(-1)), torch.zeros(4))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"weight": 0.0}, OptionError, "weight: got 0.0"),
        ({"weight": -1.0}, OptionError, "weight: got -1.0"),
        ({"sampler": MAP()}, OptionError, "sampler: got 'map'.*discriminator_weighted"),
        ({"sampler": "hmc"}, OptionError, "sampler: got 'str'"),
        ({"discriminator": 3.0}, DtypeError, "expected a function from images to log odds"),
        ({"discriminator": WGAN((4, 5), 2)}, DtypeError, "WGAN has no discriminator.*train_dens"),
    ],
)
def test_impossible_settings_are_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        DWLS(**options)


def test_it_needs_a_discriminator_and_the_name_of_a_site(problem: Problem) -> None:
    with pytest.raises(OptionError, match="discriminator: none was given"):
        bg.infer(problem.model, problem.y, method=DWLS(), progress=False)
    with pytest.raises(DtypeError, match="site: expected the name"):
        discriminator_weighted(problem.model, problem.discriminator, site=None)  # type: ignore[arg-type]
