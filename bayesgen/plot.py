"""Pictures of results. The only module that imports matplotlib; nothing here calls ``show``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from bayesgen.errors import OptionError, ResultError, ShapeError
from bayesgen.log_density import LogDensity
from bayesgen.model_sites import isolated
from bayesgen.posterior import Posterior

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Sequential and diverging maps that colour-blind readers can tell apart.
MAGNITUDE, SPREAD, ERROR = "gray", "viridis", "PuOr_r"


def plot_image(
    image: Tensor,
    *,
    ax: Axes | None = None,
    title: str = "",
    limits: tuple[float | None, float | None] = (None, None),
    cmap: str = MAGNITUDE,
    colorbar: bool = True,
) -> Axes:
    """Show one image ``(row, col)``, ``(1, row, col)`` or ``(3, row, col)``.

    Parameters
    ----------
    image
        Intensities; channels come first.
    ax
        Axes to draw into; new ones by default.
    title
        Heading.
    limits
        Intensities at the ends of the colour map, or at black and white of each of three
        channels; None stands for the image's own extreme.
    cmap
        Name of a matplotlib colour map.
    colorbar
        Whether to add a colour bar.

    Returns
    -------
    matplotlib.axes.Axes
    """
    import matplotlib.pyplot as plt

    array = _displayable(image)
    low = float(array.min()) if limits[0] is None else limits[0]
    high = float(array.max()) if limits[1] is None else limits[1]
    if array.ndim == 3:
        array = np.clip((array - low) / max(high - low, 1e-12), 0.0, 1.0)
    if ax is None:
        _, ax = plt.subplots(figsize=(3, 3), layout="constrained")
    drawn = ax.imshow(array, cmap=cmap, vmin=low, vmax=high, interpolation="nearest")
    ax.set_title(title, fontsize=9)
    ax.set_xticks([])
    ax.set_yticks([])
    if colorbar and array.ndim == 2:
        bar = ax.figure.colorbar(drawn, ax=ax, fraction=0.046, pad=0.02)
        bar.ax.tick_params(labelsize=7)
    return ax


def plot_posterior(
    posterior: Posterior,
    site: str | None = None,
    *,
    truth: Tensor | None = None,
    mass: float = 0.9,
    num_draws: int | None = None,
) -> Figure:
    """Everything about one image in one figure.

    Panels: truth and error (if the truth is given), the data back-projected, posterior mean,
    standard deviation, width of the central credible interval, and a few draws. Images share
    their colour limits. For a point estimate: the mode instead of mean, spread and draws.

    Parameters
    ----------
    posterior
        A result of `bayesgen.infer`, of one problem.
    site
        The image; by default the first deterministic site (else latent site) that has two or
        three dimensions.
    truth
        The true image, if known.
    mass
        Probability inside the credible interval.
    num_draws
        Number of draws shown; by default as many as fill two rows.

    Returns
    -------
    matplotlib.figure.Figure
    """
    import matplotlib.pyplot as plt

    if posterior.num_problems is not None:
        raise OptionError(
            f"posterior: holds {posterior.num_problems} problems; plot one, as in "
            "posterior[0].plot()"
        )
    site = _image_site(posterior) if site is None else site
    panels = _panels(posterior, site, truth, mass, num_draws)
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(2.6 * columns, 2.7 * rows), squeeze=False, layout="constrained"
    )
    for ax in axes.flat[len(panels) :]:
        ax.remove()
    for ax, draw in zip(axes.flat, panels, strict=False):
        draw(ax)
    figure.suptitle(_heading(posterior), fontsize=9)
    return figure


def back_projection(log_density: LogDensity, site: str, latent: dict[str, Tensor]) -> Tensor | None:
    """Adjoint of the forward map applied to the data: what the data alone look like as an image.

    The forward map is read off the model: it is the derivative of the predicted mean of the
    observed sites with respect to the image, taken at the image of ``latent``.

    Parameters
    ----------
    log_density
        The conditioned model of one problem.
    site
        Name of the ``pyro.deterministic`` site that is the image.
    latent
        Values of the latent sites, without leading axes.

    Returns
    -------
    Tensor or None
        An image, or None if the prediction does not depend on the site (the model must use the
        value that ``pyro.deterministic`` returned) or has no mean.
    """
    replace = _Replace(site)
    with isolated(0), torch.enable_grad(), replace:
        nodes: Mapping[str, Any] = log_density.trace(latent).nodes
        try:
            products = [
                (nodes[name]["fn"].mean * value).sum()
                for name, value in log_density.sites.observed.items()
            ]
        except NotImplementedError:
            return None
        total = sum(product for product in products if product.requires_grad)
    if replace.value is None or not isinstance(total, Tensor):
        return None
    (image,) = torch.autograd.grad(total, replace.value, allow_unused=True)
    return image


class _Replace(Messenger):
    """Replaces a deterministic site's value by a copy with respect to which one can derive."""

    def __init__(self, site: str) -> None:
        super().__init__()
        self.site = site
        self.value: Tensor | None = None

    def _pyro_sample(self, message: dict[str, Any]) -> None:
        if message["name"] == self.site and message["value"] is not None:
            self.value = message["value"].detach().clone().requires_grad_()
            message["value"] = self.value


def _panels(
    posterior: Posterior, site: str, truth: Tensor | None, mass: float, num_draws: int | None
) -> list[Callable[[Axes], Any]]:
    point = posterior.is_point_estimate
    shape = posterior.site_shape(site)
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[0] not in (1, 3)):
        raise ShapeError(
            f"site {site!r}: has shape {tuple(shape)}; expected an image (row, col), (1, row, col) "
            "or (3, row, col)"
        )
    truth = None if truth is None else torch.as_tensor(truth).detach().cpu()
    if truth is not None and truth.shape != shape:
        raise ShapeError(
            f"truth: has shape {tuple(truth.shape)}; expected {tuple(shape)}, the shape of site "
            f"{site!r}"
        )
    estimate = (posterior.mode(site) if point else posterior.mean(site)).cpu()
    images = [estimate] if truth is None else [estimate, truth]
    limits = (min(float(i.min()) for i in images), max(float(i.max()) for i in images))
    panels: list[Callable[[Axes], Any]] = []

    def add(image: Tensor, title: str, **options: Any) -> None:
        panels.append(lambda ax: plot_image(image, ax=ax, title=title, **options))

    if truth is not None:
        add(truth, "truth", limits=limits)
    projected = _projection_of(posterior, site)
    if projected is not None:
        add(projected, "data, back-projected")
    add(estimate, "MAP estimate" if point else "posterior mean", limits=limits)
    if truth is not None:
        error = _over_channels(estimate - truth.to(estimate))
        bound = max(float(error.abs().max()), 1e-12)
        add(error, "estimate - truth", limits=(-bound, bound), cmap=ERROR)
    if not point:
        low, high = posterior.interval(site, mass)
        widths = {"posterior std": posterior.std(site), f"width of {mass:.0%} interval": high - low}
        for title, width in widths.items():
            add(_over_channels(width), title, cmap=SPREAD, limits=(0.0, None))
        count = max(0, 8 - len(panels)) if num_draws is None else num_draws
        for number, draw in enumerate(_some_draws(posterior, site, count), start=1):
            add(draw, f"draw {number}", limits=limits)
    return panels


def _projection_of(posterior: Posterior, site: str) -> Tensor | None:
    if not posterior.has_model or site not in posterior.deterministic_sites:
        return None
    latent = {name: posterior.mode(name) for name in posterior.latent_sites}
    return back_projection(posterior.model, site, latent)


def _some_draws(posterior: Posterior, site: str, count: int) -> list[Tensor]:
    """Draws evenly spread over all chains and iterations, the last of each stretch."""
    total = posterior.num_chains * posterior.num_draws
    index = torch.linspace(0, total, min(count, total) + 1)[1:].long() - 1
    return [posterior.draw(site, int(i)) for i in index]


def _image_site(posterior: Posterior) -> str:
    for site in posterior.deterministic_sites + posterior.latent_sites:
        if len(posterior.site_shape(site)) in (2, 3):
            return site
    raise ResultError(
        "posterior: no site looks like an image. Name it, as in posterior.plot('x'), or add "
        'x = pyro.deterministic("x", generator(z)) to the model.'
    )


def _heading(posterior: Posterior) -> str:
    kind = "restarts" if posterior.is_point_estimate else f"chains x {posterior.num_draws} draws"
    text = f"{posterior.attributes.get('method', '?').upper()}, {posterior.num_chains} {kind}"
    return text + (" (interrupted)" if posterior.interrupted else "")


def _displayable(image: Tensor) -> np.ndarray[Any, Any]:
    """Array ``(row, col)`` or ``(row, col, 3)``."""
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[0] not in (1, 3)):
        raise ShapeError(
            f"image: has shape {tuple(image.shape)}; expected (row, col), (1, row, col) or "
            "(3, row, col)"
        )
    array = image.detach().cpu().double().numpy()
    if array.ndim == 2:
        return array
    return array[0] if len(array) == 1 else np.moveaxis(array, 0, -1)


def _over_channels(image: Tensor) -> Tensor:
    """Mean over channels: an error or a spread has no colour."""
    return image.mean(0) if image.ndim == 3 else image
