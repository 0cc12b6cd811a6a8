"""Correlated deviations from the range, as in Duff, Simpson, Ehrhardt and Campbell's poster.

The same means G(z) with four laws of x - G(z): none (the image is in the range), independent pixels
of one variance, independent pixels of variances that depend on z, and correlated ones. The third is
the diagonal of the fourth, Sigma(z), exactly. z is that of the best relaxed estimate, whose scale s
is tuned; then x is its mean given z and y,

    G(z) + c^2 S A' (c^2 A S A' + sigma^2 I)^-1 (y - A G(z)),

with S = s^2 I, diag Sigma(z) or Sigma(z), and c tuned over the same factors for each. The maximum
over z and x at once, as published, is one more row for digits: it prefers z with small variances.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from matplotlib.figure import Figure
from report import RESULTS, table, write
from torch import Tensor

import bayesgen as bg
from bayesgen.models.plot import plot_images
from experiments.common import (
    Arm,
    Estimator,
    Problem,
    in_groups,
    map_estimate,
    measure_all,
    simulate,
)

R = bg.regularisers
FIGURES = RESULTS / "papers"
IMAGES, SIGMA = 50, 0.05
SCALES = (0.015, 0.03, 0.06, 0.12)
FACTORS = (0.5, 0.7, 1.0, 1.4, 2.0)
# Rows in the order of the claim, the worst first, and the name of the joint maximum.
ORDER = ("range", "identity", "diagonal", "structured")
JOINT = "structured, z and x at once"

Results = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Located(Problem):
    """Problems of which the latent vectors ``(images, latent_dim)`` have been found."""

    z: Tensor

    def __getitem__(self, images: slice) -> Located:
        parts = self.truth[images], self.y[images], self.z[images]
        return Located(self.A, self.sigma, *parts)


# From z ``(latent_dim,)`` and images ``(number, y, x)`` to their products with a covariance.
Covariance = Callable[[Tensor, Tensor], Tensor]


def run(options: argparse.Namespace) -> None:
    """Run everything; with ``only``, the rows of these names, and write no report."""
    images = sources(options)
    results: dict[str, Results] = {}
    for (kind, generator), A in operators().items():
        name = f"{kind}, {generator}"
        print(name, flush=True)
        truth = images[generator]
        for sigma in options.sigma or (SIGMA,):
            title = f"{name}, sigma = {sigma}"
            tuning = simulate(A, sigma, truth[:20][: options.images], seed=1)
            test = simulate(A, sigma, truth[100 : 100 + (options.images or IMAGES)], seed=2)
            results[title] = compare(generator, tuning, test, options.only)
            if not options.only:
                draw(title, generator, test[:8], results[title])
    if options.only:
        return
    claims = {title: ordered(found) for title, found in results.items()}
    text = describe(results, claims)
    content = {"results": results, "claims": claims}
    write("papers_structured", "Images with structured deviations", text, content)


def sources(options: argparse.Namespace) -> dict[str, Tensor]:
    """Test images of each generator."""
    return {
        "mnist-structured-vae": bg.datasets.mnist(options.mnist, "test"),
        "shapes-structured-vae": bg.datasets.shapes(200, seed=12345),
    }


def operators() -> dict[tuple[str, str], Any]:
    """Operators of norm 1: about 30 % of the lines of k-space, and Gaussian matrices."""
    found: dict[tuple[str, str], Any] = {}
    for generator, size, rows in (("mnist", 28, 150), ("shapes", 56, 600)):
        name = f"{generator}-structured-vae"
        lines = bg.operators.cartesian_mask(size, acceleration=1 / 0.3, seed=0)
        found["Fourier", name] = bg.operators.Fourier((size, size), lines).normalised()
        matrix = bg.operators.GaussianMatrix((size, size), rows=rows, seed=0)
        found[f"Gaussian, m = {rows}", name] = matrix.normalised()
    return found


def compare(name: str, tuning: Problem, test: Problem, only: list[str]) -> Results:
    """Every row for one operator and generator."""
    G = bg.models.load(name)
    weights = (0.1, 0.3, 1.0, 3.0)
    first = {
        "range": Arm(hard(G), weights),
        "relaxed": Arm(
            map_estimate(lambda p, s: R.relaxed(G, p.A, p.sigma, s), restarts=4), SCALES
        ),
    }
    wanted = [*only, "relaxed"] if only else []
    results = measure_all(first, tuning, test, wanted)
    scale = results["relaxed"]["weight"]
    tuning, test = locate(G, tuning, scale), locate(G, test, scale)
    arms = {kind: Arm(by_mean(G, law), FACTORS) for kind, law in covariances(G, scale).items()}
    if name.startswith("mnist"):  # of the larger images it would take hours
        arms[JOINT] = Arm(by_joint_map(G), (0.5, 1.0))
    return results | measure_all(arms, tuning, test, only)


# ---------------------------------------------------------------------------------- methods


def hard(G: Any) -> Estimator:
    """x = G(z)."""
    return map_estimate(
        lambda p, w: R.hard(G, p.A, p.sigma, latent_weight=w),
        restarts=4,
    )


def locate(G: Any, given: Problem, scale: float) -> Located:
    """The problems with z of the relaxed estimate."""

    def latent(given: Problem, scale: float) -> Tensor:
        model = R.relaxed(G, given.A, given.sigma, scale)
        found = bg.infer(model, given.y, method="map", chains=4, batched=True, progress=False)
        return found.mode("z")

    return Located(given.A, given.sigma, given.truth, given.y, in_groups(latent, given, scale))


def covariances(G: Any, scale: float) -> dict[str, Covariance]:
    """S of each row, as products with images."""
    return {
        "identity": lambda z, x: scale**2 * x,
        "diagonal": lambda z, x: G.residual_prior(z).variance * x,
        "structured": lambda z, x: G.residual_prior(z).covariance_matmul(x),
    }


def by_mean(G: Any, covariance: Covariance) -> Estimator:
    """The mean of x given z and y; ``weight`` is c."""

    def estimate(given: Problem, weight: float) -> Tensor:
        assert isinstance(given, Located)
        shape = given.A.domain_shape
        count = shape[0] * shape[1]
        rows = given.A(torch.eye(count).reshape(count, *shape)).flatten(1).T
        mean = G(given.z)
        residual = (given.y - given.A(mean)).flatten(1)
        found = []
        for z, r in zip(given.z, residual, strict=True):
            SAt = weight**2 * covariance(z, rows.reshape(-1, *shape)).flatten(1)
            C = SAt @ rows.T + given.sigma**2 * torch.eye(len(rows))
            found.append(SAt.T @ torch.cholesky_solve(r[:, None], torch.linalg.cholesky(C)))
        return mean + torch.stack(found).reshape(mean.shape)

    return estimate


def by_joint_map(G: Any) -> Estimator:
    """Maximum over z and u, from the mean of u given z; ``weight`` is that of log det Sigma(z)."""
    mean = by_mean(G, covariances(G, 1.0)["structured"])

    def estimate(given: Problem, weight: float) -> Tensor:
        assert isinstance(given, Located)
        u = mean(given, 1.0) - G(given.z)
        found = bg.infer(
            R.structured(G, given.A, given.sigma, logdet_weight=weight),
            given.y,
            method="map",
            chains=1,
            start={"z": given.z[:, None], "u": u[:, None]},
            batched=True,
            progress=False,
        )
        return found.mode("x")

    return estimate


# --------------------------------------------------------------------------------- results


def difference(better: dict[str, Any], worse: dict[str, Any]) -> tuple[float, float]:
    """Mean over images of the difference in PSNR, and its standard error."""
    pairs = torch.tensor(better["psnr_of_images"]) - torch.tensor(worse["psnr_of_images"])
    return pairs.mean().item(), (pairs.std() / len(pairs) ** 0.5).item()


def ordered(found: Results) -> dict[str, Any]:
    """Whether every row is at least as good as the one before, with the paired differences."""
    claims: dict[str, Any] = {}
    for worse, better in pairwise(ORDER):
        mean, error = difference(found[better], found[worse])
        claims[f"{better} >= {worse}"] = mean >= 0
        claims[f"{better} - {worse}"] = {"mean": mean, "standard_error": error}
    return claims


def describe(results: dict[str, Results], claims: dict[str, dict[str, Any]]) -> str:
    """The report in Markdown."""
    about = """
PSNR in dB for a range of 1, mean and standard error over test images from number 100 on; weights
are chosen on images 0 to 19, with noise of their own. The operators have norm 1. No generator with
a diagonal covariance is shipped: the diagonal is that of Sigma(z), the exact variances. The weight
is w of `hard` for the range, s for relaxed, c for those with a covariance and that of log det
Sigma(z) for the joint maximum (1/2 is that of the density, 1 was published).
"""
    parts = [about.strip()]
    for title, found in results.items():
        rows = []
        for name, row in found.items():
            count = len(row["psnr_of_images"])
            edge = " (edge)" if row["at_edge"] else ""
            value = f"{row['psnr']:.2f} ± {row['std'] / count**0.5:.2f}"
            more = "{:+.2f} ± {:.2f}".format(*difference(found["structured"], row))
            rows.append([name, f"{row['weight']}{edge}", value, more])
        header = ["deviation", "weight", "PSNR", "structured is better by"]
        verdicts = [
            f"{claim}: {'yes' if value else '**no**'}"
            for claim, value in claims[title].items()
            if isinstance(value, bool)
        ]
        parts += [f"## {title}", table(header, rows), "; ".join(verdicts) + "."]
        parts += [f"![{title}](papers/{figure_of(title)})"]
    return "\n\n".join(parts)


def figure_of(title: str) -> str:
    """File name of a picture."""
    return "structured_" + "".join(c if c.isalnum() else "_" for c in title) + ".png"


def draw(title: str, name: str, test: Problem, found: Results) -> None:
    """Draw some images and their estimates."""
    G, scale = bg.models.load(name), found["relaxed"]["weight"]
    located = locate(G, test, scale)
    rows = {"image": test.truth, "range": hard(G)(test, found["range"]["weight"])}
    for kind, law in covariances(G, scale).items():
        rows[kind] = by_mean(G, law)(located, found[kind]["weight"])
    figure = Figure(figsize=(7, 5.5), layout="constrained")
    for ax, (kind, images) in zip(figure.subplots(len(rows), 1), rows.items(), strict=True):
        plot_images(images.clamp(0, 1), columns=len(images), ax=ax)
        ax.set_title(kind, fontsize=9, loc="left")
    FIGURES.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURES / figure_of(title), dpi=80)
