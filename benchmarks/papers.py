"""The papers' tables and figures, from the shipped generators; one command each.

    python benchmarks/papers.py compressed-sensing --mnist FOLDER
    python benchmarks/papers.py tomography

Results are written to benchmarks/results as Markdown and JSON, figures to its folder papers.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path

# Name on the command line, module and function.
EXPERIMENTS = {
    "compressed-sensing": ("tables", "compressed_sensing"),
    "tomography": ("tables", "tomography"),
    "shapes-plus": ("tables", "shapes_plus"),
    "deconvolution": ("deconvolution", "run"),
    "noise-sweep": ("noise_sweep", "run"),
    "structured-covariance": ("structured", "run"),
    "flow": ("flow", "run"),
    "soft-range": ("soft_range", "run"),
    "multimodal": ("multimodal", "run"),
    "starts": ("starts", "run"),
    "tomography-posterior": ("tomography_posterior", "run"),
    "weighting": ("weighting", "run"),
    "solvers": ("solvers", "run"),
    "design-images": ("design_images", "run"),
    "design-laminates": ("design_laminates", "run"),
    "design-maximum": ("design_maximum", "run"),
    "design-cost": ("design_cost", "run"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("experiment", choices=list(EXPERIMENTS))
    parser.add_argument("--mnist", type=Path, default=Path("mnist"), help="folder with MNIST")
    parser.add_argument("--sigma", type=float, nargs="+", help="noise levels (default: published)")
    parser.add_argument("--images", type=int, help="fewer images, for a quick look")
    parser.add_argument("--only", nargs="+", default=[], metavar="METHOD", help="rows of the table")
    parser.add_argument("--fastmri", type=Path, help="folder with knees, for the noise sweep")
    parser.add_argument("--generator", help="of knees, a file")
    options = parser.parse_args(arguments)
    module, function = EXPERIMENTS[options.experiment]
    getattr(importlib.import_module(f"experiments.{module}"), function)(options)


if __name__ == "__main__":
    main()
