"""What a noise model is: independent entries, collected into one event in the shape of the data."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from bayesgen.errors import DataError, DtypeError, OptionError, ShapeError

Parameter = Tensor | float
Constraints = dict[str, constraints.Constraint]


class Noise(torch.distributions.Independent, TorchDistribution):  # type: ignore[type-arg, override]
    """Distribution of data about a prediction, for the right-hand side of an observed site.

    To write a noise model:

    - list its parameters with their constraints in ``arg_constraints``;
    - call ``super().__init__(event_dim, validate_args, mean=mean, ...)`` with all of them, the
      predicted one first;
    - define `_elementwise`: the distribution of the entries, given the parameters as tensors of
      one common shape; they have been checked. Take Pyro's own where there is one. Its
      ``log_prob`` must run under ``torch.func.vmap``: no Python control flow on values;
    - put it into the table of ``tests/distributions/test_noise.py``.

    Parameters
    ----------
    event_dim
        How many trailing dimensions of the prediction make up one event; the others are batch
        dimensions, as plates need them. None stands for all.
    validate_args
        Whether to look at values, which ``vmap`` does not allow; None follows Pyro's setting
        (``pyro.enable_validation``). Shapes and dtypes are always checked.
    **parameters
        The prediction, a real floating-point tensor, then numbers or tensors of its dtype and
        device. These broadcast against it and may add batch dimensions, but do not enlarge the
        event.

    Raises
    ------
    ShapeError
        If a parameter does not broadcast, or a value does not have the shape of the event.
    DtypeError
        If a parameter is not real floating-point, or differs in dtype or device.
    DataError
        If a parameter or a value has entries that are not allowed (when validating).
    OptionError
        If ``event_dim`` does not count dimensions of the prediction.

    Examples
    --------
    >>> import pyro.distributions as dist
    >>> class CauchyNoise(Noise):
    ...     arg_constraints = dict(mean=constraints.real, scale=constraints.positive)
    ...
    ...     def __init__(self, mean, scale, *, event_dim=None, validate_args=None):
    ...         super().__init__(event_dim, validate_args, mean=mean, scale=scale)
    ...
    ...     def _elementwise(self, mean, scale):
    ...         return dist.Cauchy(mean, scale, validate_args=False)
    >>> CauchyNoise(torch.zeros(5, 28, 28), 0.1, event_dim=2)
    CauchyNoise(batch_shape=(5,), event_shape=(28, 28))
    """

    def __init__(
        self, event_dim: int | None, validate_args: bool | None, **parameters: Parameter
    ) -> None:
        tensors = self._as_tensors(parameters)
        event_dim = self._as_event_dim(event_dim, *next(iter(tensors.items())))
        broadcast = self._broadcast(event_dim, tensors)
        if validate_args or (validate_args is None and self._validate_args):
            self._check_parameters(tensors)
        # torch must not validate again: its messages print whole tensors.
        super().__init__(*self._base(event_dim, broadcast), validate_args=False)
        del self._validate_args
        if validate_args is not None:
            self._validate_args = validate_args
        # As given: they go on to broadcast when the batch is expanded. The mean is a property.
        self.__dict__.update((k, v) for k, v in tensors.items() if k != "mean")

    def expand(self, batch_shape: Any, _instance: Any = None) -> Noise:
        """The same noise with its batch dimensions broadcast to ``batch_shape``."""
        new: Noise = self.__new__(type(self)) if _instance is None else _instance
        new.__dict__.update(self.__dict__)
        inner = self.event_shape[: self.reinterpreted_batch_ndims]
        new.base_dist = self.base_dist.expand(torch.Size(batch_shape) + inner)
        new._batch_shape = torch.Size(batch_shape)
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of each event: ``(*sample, *batch, *event) -> (*sample, *batch)``."""
        self._check_shape_of(value)
        if self._validate_args:
            self._validate_sample(value)
        log_prob: Tensor = self.base_dist.log_prob(value)
        # Not by torch.distributions.Independent, which cannot sum over batches of size zero.
        dims = tuple(range(-self.reinterpreted_batch_ndims, 0))
        return log_prob.sum(dims) if dims else log_prob

    def __repr__(self) -> str:
        batch, event = tuple(self.batch_shape), tuple(self.event_shape)
        return f"{type(self).__name__}(batch_shape={batch}, event_shape={event})"

    def _elementwise(self, *args: Any, **parameters: Any) -> TorchDistribution:
        raise NotImplementedError(f"{type(self).__name__} does not define _elementwise")

    def _base(self, event_dim: int, broadcast: dict[str, Tensor]) -> tuple[TorchDistribution, int]:
        """A distribution, and how many of its batch dimensions belong to the event."""
        return self._elementwise(**broadcast), event_dim

    def _broadcast(self, event_dim: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        predicted, mean = next(iter(tensors.items()))
        shape, event_shape = mean.shape, mean.shape[mean.ndim - event_dim :]
        for name, tensor in tensors.items():
            try:
                shape = torch.broadcast_shapes(shape, tensor.shape)
                fits = shape[len(shape) - event_dim :] == event_shape
            except RuntimeError:
                fits = False
            if not fits:
                raise ShapeError(
                    f"{type(self).__name__}: {name} has shape {tuple(tensor.shape)}; expected a "
                    f"number or a shape that broadcasts to that of {predicted}, "
                    f"{tuple(mean.shape)} with event shape {tuple(event_shape)}"
                )
        return {name: tensor.expand(shape) for name, tensor in tensors.items()}

    def _as_tensors(self, parameters: Mapping[str, Parameter]) -> dict[str, Tensor]:
        owner, (predicted, mean) = type(self).__name__, next(iter(parameters.items()))
        if not isinstance(mean, Tensor):
            raise DtypeError(
                f"{owner}: {predicted} must be a torch tensor, got {type(mean).__name__}; "
                "torch.as_tensor converts"
            )
        if not mean.is_floating_point():
            raise DtypeError(
                f"{owner}: {predicted} must be real floating-point, got {mean.dtype}; convert "
                "integers with .float(), and pass real and imaginary part as two channels"
            )
        tensors = {}
        for name, value in parameters.items():
            if isinstance(value, Real) and not isinstance(value, bool):
                value = torch.full((), float(value), dtype=mean.dtype, device=mean.device)
            if not isinstance(value, Tensor):
                raise DtypeError(
                    f"{owner}: {name} must be a number or a torch tensor, got "
                    f"{type(value).__name__}; torch.as_tensor converts arrays"
                )
            if value.dtype != mean.dtype or value.device != mean.device:
                raise DtypeError(
                    f"{owner}: {name} is {value.dtype} on {value.device}, {predicted} "
                    f"{mean.dtype} on {mean.device}; convert one of them with .to"
                )
            tensors[name] = value
        return tensors

    def _as_event_dim(self, event_dim: int | None, predicted: str, mean: Tensor) -> int:
        if event_dim is None:
            return mean.ndim
        whole = isinstance(event_dim, int) and not isinstance(event_dim, bool)
        if not whole or not 0 <= event_dim <= mean.ndim:
            raise OptionError(
                f"{type(self).__name__}: event_dim: got {event_dim!r}; expected an integer from 0 "
                f"to {mean.ndim}, the number of dimensions of {predicted}, or None for all"
            )
        return event_dim

    def _check_parameters(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            allowed, words = _allowed(tensor.detach(), self.arg_constraints[name])
            self._refuse(name, tensor, torch.isfinite(tensor) & allowed, words)

    def _check_shape_of(self, value: Tensor) -> None:
        if not isinstance(value, Tensor):
            raise DtypeError(
                f"{type(self).__name__}: value must be a torch tensor, got {type(value).__name__}"
            )
        shape = self.batch_shape + self.event_shape
        try:
            torch.broadcast_shapes(value.shape, shape)
            fits = value.shape[max(value.ndim - self.event_dim, 0) :] == self.event_shape
        except RuntimeError:
            fits = False
        if not fits:
            raise ShapeError(
                f"{type(self).__name__}: value has shape {tuple(value.shape)}; expected "
                f"(*sample, *{tuple(self.batch_shape)}, *{tuple(self.event_shape)}), its batch "
                "and event shape"
            )

    def _validate_sample(self, value: Tensor) -> None:
        support = self.base_dist.support
        while isinstance(support, constraints.independent):
            support = support.base_constraint
        inside = support.check(value) & torch.isfinite(value)
        self._refuse("value", value, inside, f"in the support, {support}")

    def _refuse(self, name: str, tensor: Tensor, good: Tensor, expected: str) -> None:
        """Raise if an entry is not ``good``, showing one of them instead of the whole tensor."""
        bad = ~good
        if bad.any():
            where = tuple(int(i) for i in bad.nonzero()[0])
            one = tensor.detach().broadcast_to(bad.shape)[where].item()
            raise DataError(
                f"{type(self).__name__}: {name}: {int(bad.sum())} of {bad.numel()} values are not "
                f"{expected}; the first is {one:.6g}" + (f" at index {where}" if where else "")
            )


def _allowed(tensor: Tensor, constraint: Any) -> tuple[Tensor, str]:
    """Which entries satisfy the constraint, and what it asks for in words."""
    if constraint is constraints.lower_cholesky:
        # Entry by entry, where torch only says that something is wrong with the matrix.
        diagonal = torch.eye(tensor.shape[-1], dtype=torch.bool, device=tensor.device)
        good = (tensor == tensor.tril()) & ((tensor > 0) | ~diagonal)
        return good, "those of a lower triangular matrix with positive diagonal"
    words = {constraints.positive: "finite and positive", constraints.real: "finite"}
    return constraint.check(tensor), words.get(constraint, f"in {constraint}")
