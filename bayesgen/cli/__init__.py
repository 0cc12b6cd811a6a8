"""The command line: ``bayesgen train KIND ...`` and ``bayesgen evaluate NAME ...``."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence

from bayesgen._version import __version__
from bayesgen.cli import evaluate, train
from bayesgen.errors import BayesgenError

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Parameters
    ----------
    arguments
        The words after ``bayesgen``; by default those the process was started with.

    Returns
    -------
    int
        0 for success, 1 for bad data or files, 130 if interrupted. Words that cannot be
        understood leave with status 2, as is customary. Errors are one line on standard error.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(words)
    # An interrupted and resumed command gives what the same one without a break does.
    options.command = shlex.join(["bayesgen", *(word for word in words if word != "--resume")])
    try:
        status: int = options.run(options)
        return status
    except (BayesgenError, OSError) as error:
        print("bayesgen: " + " ".join(str(error).split("\n")), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "bayesgen", description="Bayesian inversion with learned generative priors."
    )
    parser.add_argument("--version", action="version", version=f"bayesgen {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    train.add_to(commands)
    evaluate.add_to(commands)
    return parser
