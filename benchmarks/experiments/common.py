"""What the experiments share: simulated data, estimates from models, tuning, and tables."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from report import table, write
from torch import Tensor

import bayesgen as bg

# Images that go through a solver together.
GROUP = 20


@dataclass(frozen=True)
class Problem:
    """Data ``(images, *range_shape)`` of many images ``(images, *shape)`` under one operator."""

    A: bg.operators.Operator
    sigma: float
    truth: Tensor
    y: Tensor

    def __getitem__(self, images: slice) -> Problem:
        return Problem(self.A, self.sigma, self.truth[images], self.y[images])


# From problems and a weight to images ``(images, *shape)``.
Estimator = Callable[[Problem, Any], Tensor]


@dataclass(frozen=True)
class Arm:
    """One row of a table: a method, the weights it is tuned over, and what was published."""

    estimate: Estimator
    weights: Sequence[Any]
    published: float | None = None


def simulate(A: Any, sigma: float, truth: Tensor, seed: int) -> Problem:
    """Data with noise of its own for every image."""
    clean = A(truth)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
    return Problem(A, sigma, truth, clean + sigma * noise.to(clean))


def map_estimate(
    model: Callable[[Problem, Any], Any], *, restarts: int = 8, start: Any = None, **options: Any
) -> Estimator:
    """The restart with the best objective, whatever its error; ``options`` are those of `MAP`."""

    def estimate(given: Problem, weight: Any) -> Tensor:
        found = bg.infer(
            model(given, weight),
            given.y,
            method=bg.inference.MAP(**options),
            chains=restarts,
            start="prior" if start is None else start(given, restarts),
            batched=True,
            progress=False,
        )
        return found.mode("x")

    return estimate


def in_groups(estimate: Estimator, given: Problem, weight: Any) -> Tensor:
    """The estimate of all images, a group at a time."""
    starts = range(0, len(given.truth), GROUP)
    return torch.cat([estimate(given[i : i + GROUP], weight) for i in starts])


def psnr(found: Tensor, truth: Tensor) -> Tensor:
    """Of each image, for a range of 1; one of 2, as in the papers' code, adds 6.02."""
    return -10 * (found - truth).square().flatten(1).mean(1).log10()


def by_total_variation(given: Problem, weight: float) -> Tensor:
    """The classical baseline; ``weight`` is beta over the variance of the noise."""
    beta = weight * given.sigma**2
    return bg.reconstruction.total_variation(given.A, given.y, beta, tolerance=1e-3)


def by_tikhonov(given: Problem, weight: float) -> Tensor:
    """Independent normal pixels; ``weight`` is lambda over the variance of the noise."""
    return bg.reconstruction.tikhonov(given.A, given.y, weight * given.sigma**2)


def linear_estimate(images: Tensor) -> Estimator:
    """Best linear estimate from the mean and covariance of training images: no network at all."""
    flat = images.flatten(1).double()
    mean, covariance = flat.mean(0), torch.cov(flat.T)

    def estimate(given: Problem, weight: float) -> Tensor:
        count = mean.numel()
        columns = given.A(torch.eye(count).reshape(count, *given.A.domain_shape))
        A = columns.flatten(1).double().T
        y = given.y.flatten(1).double()
        # Pixels of the image are fewer than data, or as many: solve in the space of images.
        S = covariance @ A.T @ A + weight * given.sigma**2 * torch.eye(count, dtype=A.dtype)
        found = mean + torch.linalg.solve(S, covariance @ A.T @ (y - A @ mean).T).T
        return found.reshape(-1, *given.A.domain_shape).float()

    return estimate


def measure(arm: Arm, tuning: Problem, test: Problem) -> dict[str, Any]:
    """Choose the weight on one set of images, and measure on the other."""
    tuned = {
        weight: psnr(in_groups(arm.estimate, tuning, weight), tuning.truth).mean().item()
        for weight in (arm.weights if len(arm.weights) > 1 else ())
    }
    weight = max(tuned, key=lambda w: tuned[w], default=arm.weights[0])
    clock = time.perf_counter()
    values = psnr(in_groups(arm.estimate, test, weight), test.truth)
    seconds = time.perf_counter() - clock
    return {
        "weight": weight,
        "tuned": {str(w): value for w, value in tuned.items()},
        "at_edge": len(tuned) > 1 and weight in (arm.weights[0], arm.weights[-1]),
        "psnr": values.mean().item(),
        "std": values.std().item(),
        "psnr_of_images": [round(value, 3) for value in values.tolist()],
        "seconds_per_image": seconds / len(values),
        "published": arm.published,
    }


def measure_all(
    arms: Mapping[str, Arm], tuning: Problem, test: Problem, only: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """`measure` every arm, telling how it goes."""
    results = {}
    for name, arm in arms.items():
        if only and name not in only:
            continue
        results[name] = measure(arm, tuning, test)
        found = results[name]
        print(f"{name}: {found['psnr']:.2f} ± {found['std']:.2f} dB", found["weight"], flush=True)
    return results


def report(name: str, title: str, text: str, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the table of `measure_all`'s results."""
    header = ["method", "weight", "PSNR, range 1", "range 2", "published, range 1", "s an image"]
    rows = [
        [
            arm,
            f"{found['weight']}" + (" (edge)" if found["at_edge"] else ""),
            f"{found['psnr']:.2f} ± {found['std']:.2f}",
            f"{found['psnr'] + 6.02:.2f}",
            found["published"] or "",
            f"{found['seconds_per_image']:.3f}",
        ]
        for arm, found in results.items()
    ]
    write(name, title, " ".join(text.split()) + "\n\n" + table(header, rows), {"results": results})
