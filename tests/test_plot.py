from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import bayesgen as bg
from bayesgen import Posterior
from bayesgen.errors import OptionError, ResultError, ShapeError
from bayesgen.plot import back_projection, plot_image, plot_posterior

F64 = torch.float64
RNG = torch.Generator().manual_seed(1)
W = torch.randn(60, 3, generator=RNG, dtype=F64)
A = torch.randn(7, 60, generator=RNG, dtype=F64)
Y = torch.randn(7, generator=RNG, dtype=F64)


@pytest.fixture(autouse=True)
def figures() -> Iterator[None]:
    """No window, and no figure left behind."""
    matplotlib.use("Agg")
    yield
    plt.close("all")


def model_of(*shape: int, offset: float = 0.0) -> Any:
    size = torch.Size(shape).numel()

    def model(y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(3, dtype=F64), 1.0).to_event(1))
        x = pyro.deterministic("x", (W[:size] @ z).reshape(shape))
        mean = A[:, :size] @ x.flatten() + offset
        pyro.sample("y", dist.Normal(mean, 0.5).to_event(1), obs=y)

    return model


def posterior_of(model: Any, *lead: int, kind: str = "draws", y: Tensor = Y) -> Posterior:
    lead = lead or (2, 30)
    log_density = bg.LogDensity(model, y, batched=len(lead) == 3)
    v = torch.randn((*lead, log_density.num_dims), generator=RNG.manual_seed(2), dtype=F64)
    attributes = {"kind": kind, "method": "hmc" if kind == "draws" else "map"}
    latent, log_prob = log_density.constrain(v), log_density.log_prob(v)
    return Posterior(latent, log_prob, {}, attributes, log_density)


def panels(figure: Any) -> dict[str, Any]:
    """Axes by title, colour bars left out."""
    return {ax.get_title(): ax for ax in figure.axes if ax.get_title()}


def shown(ax: Any) -> np.ndarray[Any, Any]:
    return np.asarray(ax.images[0].get_array())


# ---------------------------------------------------------------------- the whole figure


def test_everything_is_in_one_figure() -> None:
    posterior = posterior_of(model_of(4, 5))
    figure = posterior.plot()
    found = panels(figure)
    assert list(found) == [
        "data, back-projected",
        "posterior mean",
        "posterior std",
        "width of 90% interval",
        *(f"draw {i}" for i in (1, 2, 3, 4)),
    ]
    low, high = posterior.interval("x", 0.9)
    np.testing.assert_allclose(shown(found["posterior mean"]), posterior.mean("x"))
    np.testing.assert_allclose(shown(found["posterior std"]), posterior.std("x"))
    np.testing.assert_allclose(shown(found["width of 90% interval"]), high - low)
    np.testing.assert_allclose(shown(found["draw 4"]), posterior.draws("x")[-1, -1])
    np.testing.assert_allclose(
        shown(found["data, back-projected"]), (A[:, :20].T @ Y).reshape(4, 5)
    )
    assert figure.get_suptitle() == "HMC, 2 chains x 30 draws"
    assert found["posterior std"].images[0].get_clim()[0] == 0.0
    figure.canvas.draw()


def test_with_the_truth_there_is_an_error_and_limits_are_shared() -> None:
    posterior = posterior_of(model_of(4, 5))
    truth = torch.linspace(-9.0, 9.0, 20).reshape(4, 5)  # another dtype than the posterior's
    found = panels(posterior.plot(truth=truth))
    assert len(found) == 8
    assert next(iter(found)) == "truth"
    np.testing.assert_allclose(
        shown(found["estimate - truth"]), posterior.mean("x") - truth.double(), atol=1e-6
    )
    for title in ("truth", "posterior mean", "draw 1"):
        assert found[title].images[0].get_clim() == (-9.0, 9.0)
    low, high = found["estimate - truth"].images[0].get_clim()
    assert low == -high
    assert len(panels(posterior.plot(truth=truth.numpy()))) == 8


def test_a_point_estimate_has_neither_spread_nor_draws() -> None:
    posterior = posterior_of(model_of(4, 5), 3, 1, kind="optima")
    figure = posterior.plot(truth=torch.zeros(4, 5))
    found = panels(figure)
    assert list(found) == ["truth", "data, back-projected", "MAP estimate", "estimate - truth"]
    np.testing.assert_allclose(shown(found["MAP estimate"]), posterior.mode("x"))
    assert figure.get_suptitle() == "MAP, 3 restarts"


def test_three_channels_are_colours_and_their_spread_is_not() -> None:
    posterior = posterior_of(model_of(3, 4, 5))
    found = panels(posterior.plot(truth=posterior.draw("x", 3)))
    assert shown(found["posterior mean"]).shape == (4, 5, 3)
    assert shown(found["draw 1"]).min() >= 0.0
    assert shown(found["draw 1"]).max() <= 1.0
    for title in ("posterior std", "width of 90% interval", "estimate - truth"):
        assert shown(found[title]).shape == (4, 5)
    np.testing.assert_allclose(shown(found["posterior std"]), posterior.std("x").mean(0))


def test_one_channel_is_an_image() -> None:
    found = panels(posterior_of(model_of(1, 4, 5)).plot())
    assert shown(found["posterior mean"]).shape == (4, 5)


def test_the_number_of_draws_and_the_mass_can_be_chosen() -> None:
    figure = plot_posterior(posterior_of(model_of(4, 5)), "x", num_draws=1, mass=0.5)
    assert list(panels(figure))[3:] == ["width of 50% interval", "draw 1"]


def test_interrupted_runs_say_so() -> None:
    posterior = posterior_of(model_of(4, 5))
    posterior.attributes["interrupted"] = True
    assert posterior.plot().get_suptitle().endswith("(interrupted)")


def test_latent_images_are_plotted_without_a_projection() -> None:
    def model(y: Tensor) -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros(4, 5, dtype=F64), 1.0).to_event(2))
        pyro.sample("y", dist.Normal(A[:, :20] @ x.flatten(), 0.5).to_event(1), obs=y)

    found = panels(posterior_of(model).plot())
    assert next(iter(found)) == "posterior mean"
    assert len(found) == 8


# ---------------------------------------------------------------------- mistakes


def test_mistakes_are_named_and_leave_no_figure() -> None:
    posterior = posterior_of(model_of(4, 5))
    with pytest.raises(ShapeError, match=r"truth: has shape \(5, 4\); expected \(4, 5\)"):
        posterior.plot(truth=torch.zeros(5, 4))
    with pytest.raises(ShapeError, match=r"site 'z': has shape \(3,\); expected an image"):
        posterior.plot("z")
    with pytest.raises(OptionError, match="did you mean 'x'|expected one of 'z', 'x'"):
        posterior.plot("X")
    with pytest.raises(ShapeError, match=r"site 'x': has shape \(2, 4, 5\)"):
        posterior_of(model_of(2, 4, 5)).plot()
    with pytest.raises(ResultError, match="no site looks like an image.*pyro.deterministic"):
        posterior_of(model_of(20)).plot()
    with pytest.raises(OptionError, match=r"2 problems; plot one, as in posterior\[0\]"):
        posterior_of(model_of(4, 5), 2, 2, 5, y=Y.expand(2, 7)).plot()
    bare = Posterior(
        {"z": posterior.draws("z")},
        posterior.log_prob,
        {},
        {},
        None,
        {"x": {"mean": posterior.mean("x"), "std": posterior.std("x")}},
    )
    with pytest.raises(ResultError, match=r"Posterior.load\(path, model"):
        bare.plot()
    assert plt.get_fignums() == []


def test_nothing_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    def show(*_: Any, **__: Any) -> None:
        raise AssertionError("show was called")

    monkeypatch.setattr(plt, "show", show)
    posterior_of(model_of(4, 5)).plot()
    plot_image(torch.zeros(4, 5))


# ---------------------------------------------------------------------- back-projection


@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_the_projection_is_the_adjoint_applied_to_the_data(offset: float) -> None:
    log_density = bg.LogDensity(model_of(4, 5, offset=offset), Y)
    with torch.no_grad():
        found = back_projection(log_density, "x", {"z": torch.ones(3, dtype=F64)})
    assert found is not None
    expected = (A[:, :20].T @ Y).reshape(4, 5)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    with pytest.raises(AssertionError):  # the adjoint of a permuted operator
        torch.testing.assert_close(found, (A[:, :20].flip(1).T @ Y).reshape(4, 5))


def test_there_is_no_projection_if_the_image_is_not_used() -> None:
    def model(y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(3, dtype=F64), 1.0).to_event(1))
        image = (W[:20] @ z).reshape(4, 5)
        pyro.deterministic("x", image)
        pyro.sample("y", dist.Normal(A[:, :20] @ image.flatten(), 0.5).to_event(1), obs=y)

    latent = {"z": torch.ones(3, dtype=F64)}
    assert back_projection(bg.LogDensity(model, Y), "x", latent) is None
    assert "data, back-projected" not in panels(posterior_of(model).plot())


# ---------------------------------------------------------------------- one image


def test_one_image_in_given_axes() -> None:
    figure, ax = plt.subplots()
    image = torch.arange(6.0, requires_grad=True).reshape(2, 3)
    assert plot_image(image, ax=ax, title="T", limits=(0.0, None), colorbar=False) is ax
    assert ax.get_title() == "T"
    assert ax.images[0].get_clim() == (0.0, 5.0)
    assert len(figure.axes) == 1
    assert len(plot_image(image).figure.axes) == 2  # with a colour bar


def test_colours_are_scaled_to_the_limits() -> None:
    image = torch.tensor([0.0, 5.0, 20.0])[:, None, None].expand(3, 2, 2)
    ax = plot_image(image, limits=(0.0, 10.0))
    np.testing.assert_allclose(shown(ax)[0, 0], [0.0, 0.5, 1.0])


def test_constant_images_are_no_trouble() -> None:
    for image in (torch.ones(2, 3), torch.ones(3, 2, 2)):
        plot_image(image).figure.canvas.draw()


@pytest.mark.parametrize("shape", [(4,), (2, 3, 3), (1, 1, 2, 2)])
def test_what_is_no_image_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="image: has shape"):
        plot_image(torch.zeros(shape))
    assert plt.get_fignums() == []
