"""Do correlated residuals describe held-out images better than independent ones?

    python benchmarks/structured_covariance.py --mnist FOLDER

For the means of the shipped generators with structured covariance, all three kinds of covariance
are learned anew, from the same reserved images for as many epochs. Then the negative log density of
test images given z, in nats a pixel, under each, and whether whitened residuals are white.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from report import table, write
from torch import Tensor

import bayesgen as bg
from bayesgen.models import StructuredVAE, TrainingSettings, train
from bayesgen.models.evaluation import negative_log_density, whitened_residuals

TEST = 2000
LEGEND = """z from the encoder's law. Whitened residuals should have width 1, and drawn ones over
actual ones; pixels flatter than the noise floor of the generators make the former less."""


def problems(mnist: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Training and test images of each generator."""
    digits = bg.datasets.mnist(mnist, "train"), bg.datasets.mnist(mnist, "test")[:TEST]
    shapes = bg.datasets.shapes(60_000, seed=0), bg.datasets.shapes(TEST, seed=1)
    return {"mnist-structured-vae": digits, "shapes-structured-vae": shapes}


def alternatives(
    generator: StructuredVAE, images: Tensor, settings: TrainingSettings
) -> dict[str, StructuredVAE]:
    """The same means with each kind of covariance."""
    found = {}
    for covariance in ("structured", "diagonal", "identity"):
        model = StructuredVAE.from_vae(generator, covariance=covariance)
        found[covariance], _ = train(model, images, settings, progress=False)
    return found


def entry(model: StructuredVAE, test: Tensor, best: Tensor | None) -> tuple[dict[str, Any], Tensor]:
    """Figures of one covariance on test images; the excess is that over the first, in pairs."""
    nll = negative_log_density(model, test)
    white = whitened_residuals(model, test)
    excess = torch.zeros_like(nll) if best is None else nll - best
    return {
        "nll_per_pixel": nll.mean().item(),
        "standard_error": (nll.std() / len(nll) ** 0.5).item(),
        "excess": excess.mean().item(),
        "excess_standard_error": (excess.std() / len(nll) ** 0.5).item(),
        "drawn_width": white.drawn_width,
        "whitened_std": white.std,
        "row_correlation": white.row_correlation[1],
        "column_correlation": white.column_correlation[1],
    }, nll


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the alternatives, measure, write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--mnist", type=Path, default=Path("mnist"), help="folder with MNIST")
    parser.add_argument("--epochs", type=int, default=10, help="of the alternatives")
    options = parser.parse_args(arguments)
    rows, results = [], {}
    for name, (images, test) in problems(options.mnist).items():
        if name not in bg.models.names():
            continue
        generator = cast(StructuredVAE, bg.models.load(name))
        # The seed of the recipe: the reserved images are the same.
        settings = dataclasses.replace(generator.default_settings, epochs=options.epochs, seed=0)
        best = None
        for covariance, model in alternatives(generator, images, settings).items():
            figures, nll = entry(model, test, best)
            best = nll if best is None else best
            results[f"{name}, {covariance}"] = figures
            value = f"{figures['nll_per_pixel']:.4f} ± {figures['standard_error']:.4f}"
            excess = f"{figures['excess']:.4f} ± {figures['excess_standard_error']:.4f}"
            near = f"{figures['row_correlation']:.3f}, {figures['column_correlation']:.3f}"
            widths = [f"{figures[width]:.3f}" for width in ("whitened_std", "drawn_width")]
            rows.append([name, covariance, value, excess, *widths, near])
    header = ["means of", "covariance", "-log p(x given z), nats a pixel", "more than structured"]
    header += ["width of whitened", "of drawn", "correlation of whitened, next column and row"]
    title = "Correlated against independent residuals"
    text = f"{TEST} test images; {LEGEND}"
    write("structured_covariance", title, text + "\n\n" + table(header, rows), {"results": results})


if __name__ == "__main__":
    main()
