"""Progress bars that attach to a run from outside."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from bayesgen.inference import Method, Step
from bayesgen.inference.runner import Monitor


@contextlib.contextmanager
def progress_monitor(
    method: Method, chains: int, num_problems: int | None, *, show: bool
) -> Iterator[Monitor | None]:
    """A monitor that draws a progress bar on the error stream (if it is a terminal), or None.

    Examples
    --------
    >>> from bayesgen.inference import HMC
    >>> with progress_monitor(HMC(), 4, None, show=False) as monitor:
    ...     print(monitor)
    None
    """
    if not show:
        yield None
        return
    from tqdm import tqdm

    what = f"{method.name}, {chains} chains"
    what += f" x {num_problems} problems" if num_problems is not None else ""
    with tqdm(desc=what, unit="step", dynamic_ncols=True, disable=None) as bar:
        yield lambda step: _update(bar, step, what)


def _update(bar: Any, step: Step, what: str) -> None:
    if step.iteration == 0:
        bar.reset(total=step.total)
        bar.set_description(f"{what}: {step.phase}")
    bar.update()
    if step.iteration % max(1, step.total // 20) == 0:
        bar.set_postfix(_figures(step), refresh=False)
    if step.iteration == step.total - 1:
        bar.refresh()


def _figures(step: Step) -> dict[str, str]:
    info = step.info._asdict()
    figures = {}
    if "acceptance_rate" in info:
        figures["accept"] = f"{float(info['acceptance_rate'].mean()):.2f}"
    if "diverging" in info:
        figures["divergent"] = str(int(info["diverging"].sum()))
    if "beta" in info:
        figures["beta"] = f"{float(info['beta'].min()):.3g}"
    if "converged" in info:
        figures["converged"] = f"{int(info['converged'].sum())}/{info['converged'].numel()}"
    figures["log p"] = f"{float(step.state.log_prob.max()):.4g}"
    return figures
