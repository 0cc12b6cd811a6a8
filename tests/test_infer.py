"""The one call: starts, seeds, batches, and an answer to everything that can be given wrongly."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import bayesgen as bg
from bayesgen.errors import DataError, ModelError, OptionError, ShapeError, UnknownOptionError
from bayesgen.inference import HMC, MAP

MATRIX = torch.linspace(-1, 1, 24).reshape(6, 4).cos()
Y = torch.linspace(0, 1, 6)


def model(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
    x = pyro.deterministic("x", z.exp().reshape(2, 2))
    pyro.sample("y", dist.Normal(x.flatten() @ MATRIX.T, 0.3).to_event(1), obs=y)


def infer(*args: object, **options: object) -> bg.Posterior:
    settings = {"draws": 20, "warmup": 30, "progress": False, **options}
    return bg.infer(*(args or (model, Y)), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["hmc", "mala", HMC(target_acceptance=0.9), HMC])
def test_methods_by_name_by_class_and_with_settings(method: object) -> None:
    posterior = infer(method=method, chains=3)
    assert posterior.draws("z").shape == (3, 20, 4)
    assert posterior.draws("x").shape == (3, 20, 2, 2)


def test_same_seed_same_result() -> None:
    first, again, other = (infer(seed=seed).draws("z") for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_one_chain_and_one_draw() -> None:
    assert infer(chains=1, draws=1, warmup=0).draws("z").shape == (1, 1, 4)


def test_double_precision_follows_the_model() -> None:
    def double(y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(6).double(), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(z, 0.3).to_event(1), obs=y)

    posterior = infer(double, Y.double())
    assert posterior.draws("z").dtype == posterior.mean("z").dtype == torch.float64


def test_the_caller_s_tensors_and_state_are_left_alone() -> None:
    y = Y.clone().requires_grad_()
    infer(model, y)
    assert torch.equal(y.detach(), Y) and y.grad is None


def test_batched_problems_agree_with_single_ones_in_distribution() -> None:
    ys = torch.stack([Y, 1 - Y, 0.5 * Y])
    batched = infer(model, ys, batched=True, chains=16, draws=300, warmup=200)
    assert batched.num_problems == 3 and batched.mean("x").shape == (3, 2, 2)
    for i in range(3):
        alone = infer(model, ys[i], chains=16, draws=300, warmup=200, seed=5)
        error = (batched.mean("z")[i] - alone.mean("z")).abs().max()
        assert error < 0.1  # about 5 standard errors of the difference


# ------------------------------------------------------------------------------------- starts


def test_start_at_map_begins_near_the_optimum() -> None:
    best = infer(method="map", chains=8, draws=None, warmup=None).mode("z")
    posterior = infer(start="map", warmup=0, draws=1, method=HMC(step_size=1e-4, max_steps=1))
    assert (posterior.draws("z") - best).abs().max() < 1e-2
    assert posterior.attributes["start"] == "map"
    again = infer(
        start=MAP(max_iterations=300), warmup=0, draws=1, method=HMC(step_size=1e-4, max_steps=1)
    )
    assert (again.draws("z") - best).abs().max() < 1e-2


def test_start_from_values_and_from_a_posterior() -> None:
    z = torch.tensor([0.1, 0.2, 0.3, 0.4])
    still = HMC(step_size=1e-6, max_steps=1)
    first = infer(start={"z": z}, warmup=0, draws=1, method=still)
    torch.testing.assert_close(first.draws("z"), z.expand(4, 1, 4), atol=1e-4, rtol=0)
    each = torch.arange(16.0).reshape(4, 4) / 10
    first = infer(start={"z": each}, warmup=0, draws=1, method=still)
    torch.testing.assert_close(first.draws("z")[:, 0], each, atol=1e-4, rtol=0)
    follow = infer(start=first, warmup=0, draws=1, method=still)
    torch.testing.assert_close(follow.draws("z")[:, 0], each, atol=1e-3, rtol=0)


def test_start_of_batched_problems() -> None:
    ys = torch.stack([Y, 1 - Y])
    for start in ("prior", "map", {"z": torch.zeros(4)}, {"z": torch.zeros(2, 3, 4)}):
        posterior = infer(model, ys, batched=True, chains=3, start=start)
        assert posterior.draws("z").shape == (2, 3, 20, 4)
    follow = infer(model, ys, batched=True, chains=3, start=posterior)
    assert follow.draws("z").shape == (2, 3, 20, 4)


@pytest.mark.parametrize(
    ("start", "error", "message"),
    [
        ("piror", OptionError, "start: unknown value 'piror'.*'prior', 'map'"),
        ({"w": torch.zeros(4)}, OptionError, r"start: has sites \['w'\]; expected some of \['z'\]"),
        (
            {"z": torch.zeros(4), "w": torch.zeros(1)},
            OptionError,
            r"start: has sites \['w', 'z'\]; expected some of",
        ),
        ({"z": torch.zeros(5)}, ShapeError, r"start\['z'\].*\(5,\).*\(4,\)"),
        ({"z": torch.zeros(3, 4)}, ShapeError, r"start\['z'\].*\(3, 4\).*\(4, 4\)"),
        (HMC(), OptionError, "expected an optimiser"),
        ({"z": torch.full((4,), torch.nan)}, ModelError, "not finite"),
    ],
)
def test_impossible_starts_are_refused(start: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        infer(start=start)


# ------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "hcm"}, "method: unknown value 'hcm'; expected one of 'map', 'hmc', 'nuts'"),
        ({"chains": 0}, "chains: got 0; expected an integer of at least 1"),
        ({"chains": 2.0}, "chains: got 2.0"),
        ({"draws": 0}, "draws: got 0"),
        ({"draws": -3}, "draws: got -3"),
        ({"warmup": -1}, "warmup: got -1; expected an integer of at least 0"),
        ({"thin": 0}, "thin: got 0"),
        ({"seed": 1.5}, "seed: got 1.5; expected an integer"),
        ({"method": "map"}, "draws: got 20 for method 'map'"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        infer(**options)


def test_misspelt_options_are_refused_with_the_list() -> None:
    with pytest.raises(UnknownOptionError, match=r"infer: unknown option 'chians'.*'chains'"):
        infer(chians=4)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_data_that_are_not_finite_are_refused(value: float) -> None:
    y = Y.clone()
    y[3] = value
    with pytest.raises(DataError, match=r"argument 'y': 1 of 6 values.*index \(3,\)"):
        infer(model, y)


@pytest.mark.parametrize("sigma", [0.0, -0.1])
def test_a_scale_that_is_not_positive_is_refused(sigma: float) -> None:
    def wrong(y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(6), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(z, sigma).to_event(1), obs=y)

    with pytest.raises(ModelError, match=r"dist.Normal\(z, sigma\).*scale"):
        infer(wrong, Y)


def test_a_generator_that_does_not_fit_the_operator_is_refused() -> None:
    A = bg.operators.GaussianMatrix((14, 14), rows=6, seed=0)
    G = bg.models.load("mnist-vae")

    def wrong(y: Tensor) -> None:
        z = pyro.sample("z", G.prior())
        pyro.sample("y", dist.Normal(A(G(z)), 0.1).to_event(1), obs=y)

    with pytest.raises(ShapeError, match=r"A\(G\(z\)\).*14, 14\), got \(28, 28\)$"):
        infer(wrong, Y)


def test_ctrl_c_keeps_what_was_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = 0
    step = HMC.step

    def interrupted(*args: object) -> object:
        nonlocal steps
        steps += 1
        if steps == 40:
            raise KeyboardInterrupt
        return step(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(HMC, "step", interrupted)
    posterior = infer(chains=5)
    assert posterior.interrupted and posterior.draws("z").shape == (5, 9, 4)
    assert "interrupted" in str(posterior.summary()) and "interrupted" in repr(posterior)
