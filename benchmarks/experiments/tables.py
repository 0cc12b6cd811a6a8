"""Duff, Campbell and Ehrhardt's tables: compressed sensing, tomography, objects never seen.

As printed, less 20 log10(2): their range is 2, ours 1. Weights are chosen on test images 0 to 19
and results are of images 100 to 199, each with noise of its own. Of several restarts from draws of
the prior the one with the best objective counts, whatever its error.
"""

from __future__ import annotations

import argparse
import copy
from typing import Any

from torch import Tensor

import bayesgen as bg
from experiments.common import (
    Arm,
    Estimator,
    Problem,
    by_tikhonov,
    by_total_variation,
    linear_estimate,
    map_estimate,
    measure_all,
    report,
    simulate,
)

R = bg.regularisers
WEIGHTS = (0.1, 0.3, 1.0, 3.0, 10.0)


def hard(name: str, **options: Any) -> Estimator:
    """x = G(z); the weight is w."""
    G = bg.models.load(name)
    return map_estimate(lambda p, w: R.hard(G, p.A, p.sigma, latent_weight=w), **options)


def relaxed(name: str, **options: Any) -> Estimator:
    """x = G(z) + u, u white and integrated out; the weight is its deviation."""
    G = bg.models.load(name)
    return map_estimate(lambda p, w: R.relaxed(G, p.A, p.sigma, w), **options)


def sparse(name: str, **options: Any) -> Estimator:
    """x = G(z) + u, u Laplace; the weight is its scale."""
    G = bg.models.load(name)
    return map_estimate(lambda p, w: R.sparse(G, p.A, p.sigma, w), **options)


def sparse_tv(name: str) -> Estimator:
    """x = G(z) + u, u with few edges; the weight is its scale.

    From the best of eight restarts without u, and in double precision: single precision cannot tell
    the objective's last changes.
    """
    G = bg.models.load(name)
    precise = copy.deepcopy(G).double()

    def estimate(given: Problem, weight: float) -> Tensor:
        settings: dict[str, Any] = {"batched": True, "progress": False}
        inside = R.hard(G, given.A, given.sigma)
        z = bg.infer(inside, given.y, method="map", chains=8, **settings).mode("z")
        A, y = copy.deepcopy(given.A).double(), given.y.double()
        start = {"z": z[:, None].double(), "u": y.new_zeros(len(y), 1, *A.domain_shape)}
        model = R.sparse_tv(precise, A, given.sigma, weight, smoothing=0.02)
        found = bg.infer(model, y, method="map", chains=1, start=start, **settings)
        return found.mode("x").float()

    return estimate


def compressed_sensing(options: argparse.Namespace) -> None:
    """150 Gaussian measurements of 784 pixels, the matrix divided by its norm."""
    test, train = (bg.datasets.mnist(options.mnist, split) for split in ("test", "train"))
    A = bg.operators.GaussianMatrix((28, 28), rows=150, seed=0).normalised()
    scales = (0.03, 0.06, 0.1, 0.15)
    arms = {
        "hard, mnist-vae-8": Arm(hard("mnist-vae-8"), WEIGHTS, 16.31),
        "hard, mnist-ae-8": Arm(hard("mnist-ae-8"), WEIGHTS, 15.82),
        "hard, mnist-wgan-8": Arm(hard("mnist-wgan-8"), WEIGHTS, 10.91),
        "relaxed, mnist-vae-8": Arm(relaxed("mnist-vae-8"), scales, 14.05),
        "sparse, mnist-vae-8": Arm(sparse("mnist-vae-8"), (0.02, 0.04, 0.08, 0.16), 15.06),
        "hard, mnist-vae-32": Arm(hard("mnist-vae-32"), WEIGHTS),
        "relaxed, mnist-vae": Arm(relaxed("mnist-vae"), scales),
        "relaxed, mnist-vae-32": Arm(relaxed("mnist-vae-32"), scales),
        "total variation": Arm(by_total_variation, (0.6, 1.2, 2.5, 5.0), 15.52),
        "linear, PCA covariance": Arm(linear_estimate(train[:20_000]), (0.5, 1.0, 2.0)),
    }
    for sigma in options.sigma or (0.1, 0.05):
        tuning, measured = (
            simulate(A, sigma, test[part][: options.images], seed)
            for part, seed in ((slice(0, 20), 1), (slice(100, 200), 2))
        )
        found = measure_all(arms, tuning, measured, options.only)
        if sigma != 0.1:
            found = {name: {**arm, "published": None} for name, arm in found.items()}
        title = f"Compressed sensing of digits, m = 150, sigma = {sigma}"
        text = f"{compressed_sensing.__doc__} Published: first version, table 1a, sigma = 0.1."
        report(f"papers_compressed_sensing_{sigma}", title, text, found)


def tomography(options: argparse.Namespace) -> None:
    """Parallel-beam tomography of two shapes, 125 angles and 81 detectors for 56 x 56 pixels, the
    operator divided by its norm."""
    A = bg.operators.Radon((56, 56)).normalised()
    scales, fewer = (0.004, 0.008, 0.016), {"restarts": 4}
    arms = {
        "hard, shapes-ae-10": Arm(hard("shapes-ae-10"), (0.3, 1.0, 3.0), 27.15),
        "hard, shapes-vae-10": Arm(hard("shapes-vae-10"), (0.3, 1.0, 3.0), 26.90),
        "hard, shapes-wgan-10": Arm(hard("shapes-wgan-10"), (0.3, 1.0, 3.0), 16.90),
        "relaxed, shapes-ae-10": Arm(relaxed("shapes-ae-10", **fewer), scales, 24.68),
        "relaxed, shapes-vae-10": Arm(relaxed("shapes-vae-10", **fewer), scales, 22.77),
        "sparse, shapes-ae-10": Arm(sparse("shapes-ae-10", **fewer), scales, 27.10),
        "sparse, shapes-vae-10": Arm(sparse("shapes-vae-10", **fewer), scales, 27.07),
        "total variation": Arm(by_total_variation, (2.44, 4.88, 9.76), 23.92),
        "Tikhonov": Arm(by_tikhonov, (10.0, 20.0, 40.0)),
    }
    images = bg.datasets.shapes(200, seed=12345)
    for sigma in options.sigma or (0.1,):
        tuning = simulate(A, sigma, images[:20][: options.images], 1)
        measured = simulate(A, sigma, images[100:200][: options.images], 2)
        found = measure_all(arms, tuning, measured, options.only)
        title = f"Tomography of shapes, sigma = {sigma}"
        text = f"{tomography.__doc__} Published: first version, table 1b."
        report(f"papers_tomography_{sigma}", title, text, found)


def shapes_plus(options: argparse.Namespace) -> None:
    """Tomography of shapes with a bright spot that the generators, trained on shapes without, have
    never seen."""
    A = bg.operators.Radon((56, 56)).normalised()
    scales = (0.035, 0.06, 0.1)
    arms = {
        "sparse TV, shapes-vae-10": Arm(sparse_tv("shapes-vae-10"), scales, 26.81),
        "hard, shapes-vae-10": Arm(hard("shapes-vae-10"), (1.0,)),
        "total variation": Arm(by_total_variation, (4.88, 9.76, 19.5), 25.99),
    }
    images = bg.datasets.shapes_plus(200, seed=12345)
    for sigma in options.sigma or (0.05,):
        tuning = simulate(A, sigma, images[:20][: options.images], 1)
        measured = simulate(A, sigma, images[100:200][: options.images], 2)
        found = measure_all(arms, tuning, measured, options.only)
        title = f"Tomography of shapes with a spot, sigma = {sigma}"
        text = f"{shapes_plus.__doc__} Published: section on out-of-distribution images."
        report(f"papers_shapes_plus_{sigma}", title, text, found)
