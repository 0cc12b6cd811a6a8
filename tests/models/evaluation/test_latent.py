from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from scipy.stats import chi2
from torch import Tensor

from bayesgen.errors import DataError, DtypeError, OptionError, ShapeError
from bayesgen.models import Generator
from bayesgen.models.evaluation import far_samples, interpolation, latent_agreement


class Plain(Generator):
    """``G(z) = A z`` with the prior N(mean, width^2 I); the encoder inverts it where asked to."""

    def __init__(self, dim: int = 3, width: float = 1.0, mean: float = 0.0) -> None:
        super().__init__((2 * dim,), dim)
        self.width, self.mean = width, mean
        self.register_buffer("matrix", torch.eye(dim).double().repeat(2, 1))

    def decode(self, z: Tensor) -> Tensor:
        return z @ self.matrix.T

    def prior(self) -> dist.TorchDistribution:
        mean = torch.full((self.latent_dim,), self.mean, dtype=self.matrix.dtype)
        return dist.Normal(mean, self.width).to_event(1)


class Encoded(Plain):
    def encode(self, x: Tensor) -> Tensor:
        return x[..., : self.latent_dim]


class Variational(Encoded):
    """An encoder whose means and standard deviations share the prior's variance of one."""

    def encoding(self, x: Tensor) -> dist.TorchDistribution:
        return dist.Normal(self.encode(x), math.sqrt(0.5)).to_event(1)


class Cauchy(Plain):
    """A prior without moments, and not normal."""

    def prior(self) -> dist.TorchDistribution:
        zero = torch.zeros(self.latent_dim, dtype=self.matrix.dtype)
        return dist.Cauchy(zero, 1.0).to_event(1)


@pytest.mark.parametrize(("width", "mean"), [(1.0, 0.0), (2.0, 0.0), (2.0, 5.0)])
def test_draws_of_the_prior_agree_with_it(width: float, mean: float, rng: torch.Generator) -> None:
    G = Encoded(3, width, mean)
    z = mean + width * torch.randn(2000, 3, generator=rng, dtype=torch.float64)
    found = latent_agreement(G, G(z), permutations=199)
    # Bounds of five standard errors.
    assert found.num_images == 2000 and found.mean < 5 / math.sqrt(2000)
    assert abs(found.std - 1) < 5 / math.sqrt(2 * 3 * 2000)
    assert found.correlation < 5 / math.sqrt(2000)
    assert abs(found.norm - 1) < 5 * math.sqrt(2 / (3 * 2000))
    assert found.norm_p_value is not None and found.norm_p_value > 1e-6
    assert abs(found.effect) < 0.005 and found.p_value > 0.004


@pytest.mark.parametrize(
    "change",
    [lambda z: z + 0.4, lambda z: 0.7 * z, lambda z: z * z.sign(), lambda z: z[:, [0, 0, 2]]],
    ids=["shifted", "narrow", "folded", "correlated"],
)
def test_other_vectors_do_not(change: object, rng: torch.Generator) -> None:
    z = change(torch.randn(1500, 3, generator=rng, dtype=torch.float64))  # type: ignore[operator]
    found = latent_agreement(Encoded(), z=z, permutations=199)
    assert found.p_value == 1 / 200 and found.effect > 0.01


def test_numbers_by_hand() -> None:
    G = Plain(2, width=2.0, mean=1.0)
    z = torch.tensor([[1.0, 1], [3, 5], [5, 3], [-1, 3]], dtype=torch.float64)
    u = (z - 1) / 2
    found = latent_agreement(G, z=z, permutations=9)
    assert found.mean == pytest.approx(u.mean(0).square().mean().sqrt().item())
    assert found.std == pytest.approx(u.var(0).mean().sqrt().item())
    assert found.correlation == pytest.approx(abs(torch.corrcoef(u.T)[0, 1].item()))
    squares = u.square().sum(1).sort().values
    assert found.norm == pytest.approx(squares.mean().item() / 2)
    cdf = torch.from_numpy(chi2(2).cdf(squares.numpy()))
    steps = torch.arange(5) / 4
    expected = max((steps[1:] - cdf).max(), (cdf - steps[:-1]).max())
    assert found.norm_effect == pytest.approx(expected.item())


def test_encodings_of_images_or_else_nearest_vectors_are_looked_at(rng: torch.Generator) -> None:
    z = torch.randn(50, 3, generator=rng, dtype=torch.float64)
    options = {"permutations": 19}
    direct = latent_agreement(Plain(), z=z, **options)
    encoded = latent_agreement(Encoded(), Encoded()(z), **options)
    assert encoded == direct
    found = latent_agreement(Plain(), Plain()(z), **options)
    assert found.mean == pytest.approx(direct.mean, abs=1e-3)
    assert found.effect == pytest.approx(direct.effect, abs=1e-3)


def test_what_should_match_the_prior_is_the_encoder_s_law_not_its_mean(
    rng: torch.Generator,
) -> None:
    means = math.sqrt(0.5) * torch.randn(2000, 3, generator=rng, dtype=torch.float64)
    options = {"max_points": 2000, "permutations": 199}
    found = latent_agreement(Variational(), Encoded()(means), **options)
    # Bounds of five standard errors.
    assert abs(found.std - 1) < 5 / math.sqrt(2 * 3 * 2000)
    assert found.norm_p_value is not None and found.norm_p_value > 1e-6
    assert abs(found.effect) < 0.005 and found.p_value > 0.004
    assert latent_agreement(Variational(), Encoded()(means), **options) == found
    narrow = latent_agreement(Encoded(), Encoded()(means), **options)
    assert abs(narrow.std - math.sqrt(0.5)) < 5 * math.sqrt(0.5) / math.sqrt(2 * 3 * 2000)
    assert narrow.norm_p_value is not None and narrow.norm_p_value < 1e-6
    assert narrow.effect > 0.01 and narrow.p_value == 1 / 200


def test_priors_that_are_not_normal_have_no_test_of_the_norm(rng: torch.Generator) -> None:
    z = torch.randn(200, 3, generator=rng, dtype=torch.float64).tan()
    found = latent_agreement(Cauchy(), z=z, permutations=19)
    assert found.norm_effect is None and found.norm_p_value is None
    assert math.isfinite(found.std) and math.isfinite(found.effect)


def test_one_latent_dimension_has_no_correlation(rng: torch.Generator) -> None:
    z = torch.randn(20, 1, generator=rng, dtype=torch.float64)
    assert latent_agreement(Plain(1), z=z, permutations=9).correlation == 0


def test_agreement_checks_its_input() -> None:
    G, z = Plain(), torch.zeros(5, 3, dtype=torch.float64)
    with pytest.raises(OptionError, match="images: expected images or z=, got neither"):
        latent_agreement(G)
    with pytest.raises(ShapeError, match=r"z: expected shape \(N, 3\) with N at least 2"):
        latent_agreement(G, z=z[:1])
    with pytest.raises(DataError, match="z: holds NaN"):
        latent_agreement(G, z=z / 0)
    with pytest.raises(OptionError, match="max_points"):
        latent_agreement(G, z=z, max_points=1)
    with pytest.raises(DtypeError, match="generator"):
        latent_agreement(torch.nn.Identity(), z=z)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["vectors", "images", "list", "nearest"])
def test_interpolation_spans_the_plane(kind: str, rng: torch.Generator) -> None:
    z = torch.randn(3, 3, generator=rng, dtype=torch.float64)
    G = Plain() if kind == "nearest" else Encoded()
    corners = z if kind == "vectors" else G(z)
    grid = interpolation(G, list(corners) if kind == "list" else corners, size=5)
    assert grid.shape == (5, 5, 6)
    for i, j in [(0, 0), (4, 0), (0, 4), (4, 4), (1, 3)]:
        point = z[0] + i / 4 * (z[1] - z[0]) + j / 4 * (z[2] - z[0])
        torch.testing.assert_close(grid[i, j], G(point), rtol=0, atol=1e-3)


def test_interpolation_checks_its_input() -> None:
    with pytest.raises(ShapeError, match="corners: expected three, got 2"):
        interpolation(Plain(), torch.zeros(2, 3).double())
    with pytest.raises(ShapeError, match=r"images: expected shape"):
        interpolation(Plain(), torch.zeros(3, 5).double())
    with pytest.raises(OptionError, match="size: got 1"):
        interpolation(Plain(), torch.zeros(3, 3).double(), size=1)


def test_far_samples_of_a_linear_generator_are_as_far_as_the_spread() -> None:
    for width in (1.0, 2.0):
        G = Plain(3, width)
        found = far_samples(G, count=400, spread=50)
        assert found.images.shape == (400, 6)
        torch.testing.assert_close(found.images, G(found.z))
        # Standard error of the standard deviation of 1200 numbers: 2 %; five of them.
        assert abs(found.z.std() / (50 * width) - 1) < 0.1
        torch.testing.assert_close(found.sensitivity, torch.ones(400).double())
        assert found.distance.median() > 50


def test_distance_is_in_units_of_neighbours_of_the_prior() -> None:
    """Draws as wide as the prior look like the prior: half of them are nearer than the median."""
    found = far_samples(Plain(), count=1000, spread=1)
    assert abs((found.distance < 1).double().mean() - 0.5) < 5 * math.sqrt(0.25 / 1000 + 0.25 / 200)


def test_a_saturated_generator_is_seen() -> None:
    class Saturated(Plain):
        def decode(self, z: Tensor) -> Tensor:
            return super().decode(z).sigmoid()

    class Constant(Plain):
        def decode(self, z: Tensor) -> Tensor:
            return 0 * super().decode(z)

    found = far_samples(Saturated(), count=50)
    assert found.sensitivity.median() < 0.2 < 0.8 < far_samples(Plain()).sensitivity.min()
    flat = far_samples(Constant(), count=3)
    assert not flat.sensitivity.any() and not flat.distance.any()


def test_sensitivity_is_for_steps_of_the_prior_s_width() -> None:
    """One coordinate saturates; the other does not, but the prior hardly moves it."""

    class Half(Plain):
        def decode(self, z: Tensor) -> Tensor:
            return torch.stack([z[..., 0].tanh(), z[..., 1]] * 2, -1)

        def prior(self) -> dist.TorchDistribution:
            return dist.Normal(
                torch.zeros(2).double(), torch.tensor([1.0, 1e-3]).double()
            ).to_event(1)

    assert far_samples(Half(2), count=50).sensitivity.median() < 0.01


def test_far_samples_follow_the_seed_and_check_their_input() -> None:
    one, same, other = (far_samples(Plain(), count=2, seed=seed).z for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    with pytest.raises(OptionError, match="count"):
        far_samples(Plain(), count=0)
    with pytest.raises(OptionError, match="spread"):
        far_samples(Plain(), spread=0)
