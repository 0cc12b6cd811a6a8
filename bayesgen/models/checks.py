"""Does a generator keep its promises? The same checks for users' generators and for our own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bayesgen._batching import native_batching
from bayesgen.models.base import Generator

_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}
# Of Jacobians, which cost as many gradients.
_MOST_DIMENSIONS = 256


@dataclass(frozen=True)
class Check:
    """Outcome of one check."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class GeneratorReport:
    """What `check_generator` found; printing it gives one line for each check."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    def __str__(self) -> str:
        lines = (f"{'ok' if c.passed else 'FAILED':6}  {c.name}: {c.detail}" for c in self.checks)
        return "\n".join(lines)


def check_generator(generator: Generator, *, seed: int = 0) -> GeneratorReport:
    """Check that a generator is what inference takes it to be.

    The checks are run on copies in single and in double precision:

    - the prior has the right shape and dtype, and its draws decode to the right shape and dtype;
    - an image does not depend on the others in its batch, for batches of any shape (none, one,
      many, empty, non-contiguous), nor do repeated calls differ;
    - the gradient agrees with central differences (in double precision);
    - under ``torch.func.vmap``, as in inference, values and gradients stay the same;
    - encoder and discriminator, if there are any, treat batches alike and return latent vectors
      and one number for each image; so does the density of the residuals;
    - if the generator is invertible, the encoder is its inverse, and the log-determinant is that of
      the Jacobian by automatic differentiation (in double precision, up to 256 dimensions).

    Parameters
    ----------
    generator
        The generator; it is left as it is.
    seed
        Seed of the latent vectors tried.

    Returns
    -------
    GeneratorReport
        True in ``passed`` only if all is well. A check that raises has failed.

    Examples
    --------
    >>> class Ramp(Generator):
    ...     def decode(self, z):
    ...         return z * torch.linspace(0, 1, 4, dtype=z.dtype)
    >>> report = check_generator(Ramp(image_shape=(4,), latent_dim=1))
    >>> report.passed
    True
    """
    checks = []
    for dtype in _TOLERANCE:
        # Weights are frozen in the copy, and only there, for gradients with respect to z alone.
        copied = copy.deepcopy(generator).to(dtype).requires_grad_(False)
        for name, function in _CHECKS.items():
            if name in _NEEDS and not copied.can(_NEEDS[name]):
                continue
            rng = torch.Generator().manual_seed(seed)
            z = torch.randn(7, generator.latent_dim, generator=rng, dtype=dtype)
            checks.append(_attempt(f"{name}, {dtype}", function, copied, z.to(_device(copied))))
    return GeneratorReport(tuple(checks))


def _device(generator: Generator) -> torch.device:
    return generator.prior().mean.device


def _attempt(
    name: str, function: Callable[[Generator, Tensor], float], generator: Generator, z: Tensor
) -> Check:
    """Run one check, which returns an error to be compared with the tolerance, or raises."""
    try:
        error = function(generator, z)
    except Exception as problem:
        return Check(name, False, f"{type(problem).__name__}: {problem}")
    # The comparison is false for NaN.
    return Check(name, error <= _TOLERANCE[z.dtype], f"relative error {error:.1e}")


def _shapes(generator: Generator, z: Tensor) -> float:
    prior = generator.prior()
    _expect("event shape of the prior", tuple(prior.event_shape), (generator.latent_dim,))
    if generator._weight() is not None:
        _expect("dtype of the prior", prior.mean.dtype, z.dtype)
    x = generator(z)
    _expect("shape of G(z)", tuple(x.shape), (len(z), *generator.image_shape))
    _expect("dtype of G(z)", x.dtype, z.dtype)
    return 0.0 if x.isfinite().all() else float("nan")


def _batches(generator: Generator, z: Tensor) -> float:
    return _batch_error(generator, z, generator.image_shape)


def _repetition(generator: Generator, z: Tensor) -> float:
    return _distance(generator(z), generator(z))


def _gradient(generator: Generator, z: Tensor) -> float:
    """Compare a directional derivative with its central difference, in double precision."""
    generator, z = copy.deepcopy(generator).double(), z.double()
    direction = z.roll(1, 0) / z.norm()
    weights = torch.linspace(-1, 1, generator(z).numel(), dtype=z.dtype, device=z.device)

    def scalar(z: Tensor) -> Tensor:
        value: Tensor = generator(z)
        return weights @ value.flatten()

    exact = (_gradient_of(scalar, z) * direction).sum()
    # Fourth order; at this step rounding stays well below 1e-8, truncation far below it, and
    # networks with kinks rarely have one within it.
    h = 1e-5
    near = scalar(z + h * direction) - scalar(z - h * direction)
    far = scalar(z + 2 * h * direction) - scalar(z - 2 * h * direction)
    error = _distance((8 * near - far) / (12 * h), exact)
    return 0.0 if error < 1e-6 else error


def _vmap(generator: Generator, z: Tensor) -> float:
    def plain(z: Tensor) -> Tensor:
        value: Tensor = generator(z)
        return value.square().sum()

    def vmapped(z: Tensor) -> Tensor:
        values: Tensor = torch.func.vmap(plain)(z)
        return values.sum()

    with native_batching(1):
        value, gradient = torch.func.vmap(generator)(z), _gradient_of(vmapped, z)
    return max(_distance(value, generator(z)), _distance(gradient, _gradient_of(plain, z)))


def _encoder(generator: Generator, z: Tensor) -> float:
    return _batch_error(generator.encode, generator(z), (generator.latent_dim,))


def _discriminator(generator: Generator, z: Tensor) -> float:
    return _batch_error(generator.discriminate, generator(z), ())


def _residuals(generator: Generator, z: Tensor) -> float:
    """Compare densities, which residuals that depend on ``z`` and others have alike."""
    prior = generator.residual_prior(z)
    _expect("event shape of the residual prior", tuple(prior.event_shape), generator.image_shape)

    def density(z: Tensor) -> Tensor:
        value: Tensor = generator.residual_prior(z).log_prob(0.1 * generator(z))
        return value

    # Densities of independent pixels, torch's own, do not take empty batches.
    return _batch_error(density, z, (), empty=False)


def _inverse(generator: Generator, z: Tensor) -> float:
    x = generator(z)
    there_and_back = _distance(generator(generator.encode(x)), x)
    # The other way round, rounded pixels are magnified wherever G contracts: not in single.
    generator, z = copy.deepcopy(generator).double(), z.double()
    return max(there_and_back, _distance(generator.encode(generator(z)), z))


def _log_determinant(generator: Generator, z: Tensor) -> float:
    error = _batch_error(generator.log_abs_det, z, ())
    if generator.latent_dim > _MOST_DIMENSIONS:
        return error
    generator, z = copy.deepcopy(generator).double(), z[:2].double()
    jacobians = [torch.autograd.functional.jacobian(generator, row) for row in z]
    matrices = torch.stack([jacobian.reshape(-1, generator.latent_dim) for jacobian in jacobians])
    _expect("shape of the Jacobian", *(tuple(m.shape) for m in (matrices[0], matrices[0].T)))
    exact = torch.linalg.slogdet(matrices)[1]
    return max(error, _distance(generator.log_abs_det(z), exact, least=1.0))


def _batch_error(
    function: Callable[[Tensor], Tensor],
    batch: Tensor,
    event: tuple[int, ...],
    *,
    empty: bool = True,
) -> float:
    """Compare the elements of a batch with their values when alone or otherwise arranged."""
    together = function(batch)
    alone = torch.stack([function(element) for element in batch])
    six = function(batch[:6].reshape(2, 3, *batch.shape[1:]))
    strided = function(batch.repeat_interleave(2, 0)[::2])
    _expect("shape for one element", tuple(alone.shape[1:]), event)
    _expect("shape for a 2 x 3 batch", tuple(six.shape), (2, 3, *event))
    if empty:
        _expect("shape for an empty batch", tuple(function(batch[:0]).shape), (0, *event))
    pairs = (
        (alone, together),
        (six.flatten(0, 1), together[:6]),
        (strided, together),
        (function(batch[:1]), together[:1]),
    )
    # A single number is a logarithm, which may well be zero: its absolute error counts.
    return max(_distance(*pair, least=0.0 if event else 1.0) for pair in pairs)


def _gradient_of(scalar: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    z = z.detach().requires_grad_()
    return torch.autograd.grad(scalar(z), z)[0]


def _distance(a: Tensor, b: Tensor, *, least: float = 0.0) -> float:
    """Largest error relative to the largest value, or to ``least`` if that is larger."""
    if a.shape != b.shape:
        raise ValueError(f"shapes {tuple(a.shape)} and {tuple(b.shape)} differ")
    scale = b.abs().max().clamp(min=max(least, torch.finfo(b.dtype).tiny))
    return ((a - b).abs().max() / scale).item()


def _expect(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise ValueError(f"{what} is {found}, expected {expected}")


_CHECKS = {
    "shapes": _shapes,
    "batches": _batches,
    "repetition": _repetition,
    "gradient": _gradient,
    "vmap": _vmap,
    "encoder": _encoder,
    "discriminator": _discriminator,
    "residual prior": _residuals,
    "inverse": _inverse,
    "log-determinant": _log_determinant,
}

_NEEDS = {
    "encoder": "encode",
    "discriminator": "discriminate",
    "residual prior": "residual_prior",
    "inverse": "log_abs_det",
    "log-determinant": "log_abs_det",
}
