"""What flows of every kind have in common: an exact inverse, and a density."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bayesgen._batching import native_batching
from bayesgen.errors import DtypeError, ShapeError
from bayesgen.models.checks import check_generator
from bayesgen.models.coupling import ActNorm, AffineCoupling, Mixing
from bayesgen.models.flow import Flow
from bayesgen.models.glow import Glow
from bayesgen.models.real_nvp import RealNVP
from bayesgen.models.settings import TrainingSettings
from bayesgen.models.training import train

FLOWS: dict[str, Callable[[], Flow]] = {
    "grey": lambda: Glow((4, 8), levels=2, steps=2, width=6),
    "colour": lambda: Glow((3, 4, 2), levels=1, steps=2, width=6, per_channel=True),
    "vector": lambda: RealNVP(5, layers=3, width=8),
}


def perturbed(kind: str, *, size: float = 0.1) -> Flow:
    """A flow with weights as after training, in double precision."""
    flow, rng = FLOWS[kind]().double(), torch.Generator().manual_seed(1)
    for parameter in flow.parameters():
        noise = torch.randn(parameter.shape, generator=rng, dtype=torch.float64)
        parameter.data.add_(noise, alpha=size)
    return flow.requires_grad_(False)


def latent(flow: Flow, *batch: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    z = torch.randn(*batch, flow.latent_dim, generator=rng, dtype=torch.float64)
    return z.to(next(flow.parameters()).dtype)


@pytest.fixture(params=FLOWS)
def flow(request: pytest.FixtureRequest) -> Flow:
    return perturbed(request.param)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_the_inverse_is_exact(flow: Flow, dtype: torch.dtype, tolerance: float) -> None:
    flow = flow.to(dtype)
    z = latent(flow, 20)
    x = flow(z)
    assert (flow.encode(x) - z).abs().max() < tolerance * z.abs().max()
    x = x.flip(0) + 0.1
    assert (flow(flow.encode(x)) - x).abs().max() < tolerance * x.abs().max()


def test_determinant_and_density(flow: Flow) -> None:
    z = latent(flow, 3)
    jacobians = torch.stack([torch.func.jacrev(flow)(row).reshape(z.shape[1], -1) for row in z])
    exact = torch.linalg.slogdet(jacobians)[1]
    torch.testing.assert_close(flow.log_abs_det(z), exact, rtol=0, atol=1e-10)
    assert exact.std() > 1e-3
    log_prob = flow.prior().log_prob(z) - exact
    torch.testing.assert_close(flow.log_prob(flow(z)), log_prob, rtol=0, atol=1e-10)


@pytest.mark.parametrize("batch", [(), (0,), (2, 3)])
def test_any_batch(flow: Flow, batch: tuple[int, ...]) -> None:
    z = latent(flow, *batch)
    x = flow(z)
    assert x.shape == (*batch, *flow.image_shape)
    assert flow.encode(x).shape == z.shape
    assert flow.log_abs_det(z).shape == flow.log_prob(x).shape == batch


def test_the_checks_of_generators_pass(flow: Flow) -> None:
    report = check_generator(flow)
    assert report.passed, str(report)
    assert any("log-determinant" in check.name for check in report.checks)


def test_densities_under_vmap(flow: Flow) -> None:
    z = latent(flow, 4)
    x, log_prob, log_det = flow(z), flow.log_prob(flow(z)), flow.log_abs_det(z)
    torch.testing.assert_close(torch.func.vmap(flow)(z), x)
    torch.testing.assert_close(torch.func.vmap(flow.encode)(x), z)
    with native_batching(1):
        torch.testing.assert_close(torch.func.vmap(flow.log_prob)(x), log_prob)
        torch.testing.assert_close(torch.func.vmap(flow.log_abs_det)(z), log_det)
        gradient = torch.func.vmap(torch.func.grad(lambda z: flow.log_prob(flow(z))))(z)
    torch.testing.assert_close(gradient, torch.func.grad(lambda z: flow.log_prob(flow(z)).sum())(z))


def test_derivatives_of_the_density(flow: Flow) -> None:
    torch.autograd.gradcheck(flow.log_prob, flow(latent(flow, 1)).requires_grad_(), fast_mode=True)
    torch.autograd.gradcheck(flow.log_abs_det, latent(flow, 1).requires_grad_(), fast_mode=True)


def test_preparing_normalises_the_input_of_every_layer(flow: Flow) -> None:
    rng = torch.Generator().manual_seed(0)
    images = torch.rand(200, *flow.image_shape, generator=rng, dtype=torch.float64)
    inputs: list[Tensor] = []
    norms = [layer for layer in flow.modules() if isinstance(layer, ActNorm)]
    for norm in norms:
        norm.register_forward_hook(lambda norm, x, y: inputs.append(y[0]))
    flow.prepare(images)
    inputs.clear()
    flow.flow(flow._arrays(flow.dequantise(images, torch.Generator().manual_seed(0))))
    assert len(inputs) == len(norms)
    for norm, y in zip(norms, inputs, strict=True):
        dims = [0, *(dim + 1 for dim, size in enumerate(norm.shift.shape) if size == 1)]
        torch.testing.assert_close(y.var(dims, correction=0), torch.ones_like(y.mean(dims)))
        assert y.mean(dims).abs().max() < 1e-10


def test_the_loss_is_the_likelihood_in_bits(flow: Flow) -> None:
    x = flow(latent(flow, 6))
    loss = flow.loss(x, torch.Generator().manual_seed(3))["loss"]
    y = flow.dequantise(x, torch.Generator().manual_seed(3))
    nats = -flow.log_prob(y).mean() - flow.latent_dim * math.log(flow.cell)
    torch.testing.assert_close(loss, nats / flow.latent_dim / math.log(2))


def test_one_stage_of_maximum_likelihood(flow: Flow) -> None:
    (stage,) = flow.stages()
    (player,) = stage.players
    assert len(player.parameters) == len(list(flow.parameters()))


def test_weights_follow_the_seed_and_survive_copies(flow: Flow, tmp_path: Path) -> None:
    z = latent(flow, 3)
    copied = copy.deepcopy(flow)
    assert torch.equal(copied(z), flow(z))
    other = type(flow)(**{**vars(flow.config), "seed": 5}).double()
    same = type(flow)(**{**vars(flow.config), "seed": 5}).double()
    assert torch.equal(other(z), same(z)) and not torch.allclose(other(z), flow(z))
    torch.save(flow.state_dict(), tmp_path / "weights")
    other.load_state_dict(torch.load(tmp_path / "weights"))
    assert torch.equal(other(z), flow(z))


def test_still_invertible_after_rounding_to_half_precision(flow: Flow) -> None:
    """Rounding includes permutations and signs, which are stored with the weights."""
    flow = flow.float()
    rounded = {name: tensor.half() for name, tensor in flow.state_dict().items()}
    z, before = latent(flow, 20), flow(latent(flow, 20))
    flow.load_state_dict(rounded)
    x = flow(z)
    assert 0 < (x - before).abs().max() < 0.1
    assert (flow.encode(x) - z).abs().max() < 1e-5 * z.abs().max()


def wrong_sign(self: AffineCoupling, x: Tensor) -> tuple[Tensor, Tensor]:
    y, log_det = COUPLING(self, x)
    return y, -log_det


def one_scale_missing(self: ActNorm, y: Tensor) -> tuple[Tensor, Tensor]:
    x, log_det = ACTNORM(self, y)
    return torch.cat([y[:, :1] + self.shift[:1], x[:, 1:]], 1), log_det


def permutation_not_inverted(self: Mixing, y: Tensor) -> tuple[Tensor, Tensor]:
    return MIXING(self, y[:, self.permutation][:, self.permutation])


COUPLING, ACTNORM, MIXING = AffineCoupling.inverse, ActNorm.inverse, Mixing.inverse


@pytest.mark.parametrize(
    ("layer", "mutant", "finding"),
    [
        (AffineCoupling, wrong_sign, "log-determinant"),
        (ActNorm, one_scale_missing, "inverse"),
        (Mixing, permutation_not_inverted, "inverse"),
    ],
)
def test_the_checks_find_mutants(
    layer: type, mutant: Callable[..., object], finding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = perturbed("colour")
    monkeypatch.setattr(layer, "inverse", mutant)
    failed = [check.name for check in check_generator(flow).checks if not check.passed]
    assert any(finding in name for name in failed), failed


def test_training_lowers_the_loss(flow: Flow) -> None:
    rng = torch.Generator().manual_seed(0)
    # Bright on one side: every pixel but the first follows from its neighbour.
    ramp = torch.rand(140, 1, generator=rng) + torch.linspace(0, 1, flow.latent_dim)
    images = (ramp / 2).reshape(-1, *flow.image_shape)
    settings = TrainingSettings(epochs=6, batch_size=20, validation=20, average=0.5)
    trained, history = train(flow.float(), images, settings, progress=False)
    assert history[-1]["validation_loss"] < history[0]["validation_loss"] - 0.1
    assert (trained(trained.encode(images)) - images).abs().max() < 1e-5
    z = latent(trained, 20)
    assert (trained.encode(trained(z)) - z).abs().max() < 1e-5 * z.abs().max()


def test_wrong_inputs_are_refused(flow: Flow) -> None:
    for function in (flow.encode, flow.log_prob, flow.prepare):
        with pytest.raises(ShapeError, match=r"expected shape \(\*batch"):
            function(torch.zeros(7, 7, dtype=torch.float64))
    with pytest.raises(ShapeError, match="z: expected"):
        flow.log_abs_det(torch.zeros(1, dtype=torch.float64))
    with pytest.raises(DtypeError, match="float32"):
        flow.log_prob(torch.zeros(flow.image_shape))
