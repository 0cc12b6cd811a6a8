"""How far images are from the truth, one number for each image of a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from bayesgen.errors import DtypeError, ShapeError

# Wang et al. (2004), section III-C, for intensities in [0, 1].
WINDOW, SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03
# Pixels whose local statistics are computed at once; bounds the memory.
_BLOCK = 2**19


def psnr(found: Tensor, truth: Tensor) -> Tensor:
    r"""Peak signal-to-noise ratio :math:`-10 \log_{10} \operatorname{mean} (f - t)^2`, in decibel.

    The data range is 1, so black and white images that are each other's negative have 0 dB.

    Parameters
    ----------
    found, truth
        Batches ``(N, ...)``.

    Returns
    -------
    Tensor
        ``(N,)``, infinite where the two agree.

    Raises
    ------
    DtypeError, ShapeError
        If they are not floating-point tensors of one dtype and shape with at least two dimensions.

    Examples
    --------
    >>> psnr(torch.full((1, 4, 4), 0.1), torch.zeros(1, 4, 4))
    tensor([20.])
    """
    _check(found, truth)
    return -10 * (found - truth).square().flatten(1).mean(1).log10()


def nrmse(found: Tensor, truth: Tensor) -> Tensor:
    r"""Error relative to the truth, :math:`\|f - t\| / \|t\|`.

    Parameters
    ----------
    found, truth
        Batches ``(N, ...)``.

    Returns
    -------
    Tensor
        ``(N,)``. Where the truth is zero everywhere: 0 if so is what was found, else infinity.

    Raises
    ------
    DtypeError, ShapeError
        As `psnr`.

    References
    ----------
    Duff, Campbell and Ehrhardt (2023), Regularising inverse problems with generative machine
    learning models, who compare reconstructions of test images by it.

    Examples
    --------
    >>> nrmse(torch.tensor([[3.0, 5.0]]), torch.tensor([[3.0, 4.0]]))
    tensor([0.2000])
    """
    _check(found, truth)
    error, size = (found - truth).flatten(1).norm(dim=1), truth.flatten(1).norm(dim=1)
    return torch.where(error == 0, error, error / size)


def mean_absolute_error(found: Tensor, truth: Tensor) -> Tensor:
    r"""Mean over pixels of :math:`|f - t|`.

    Parameters
    ----------
    found, truth
        Batches ``(N, ...)``.

    Returns
    -------
    Tensor
        ``(N,)``.

    Raises
    ------
    DtypeError, ShapeError
        As `psnr`.

    Examples
    --------
    >>> mean_absolute_error(torch.tensor([[0.0, 0.5]]), torch.tensor([[1.0, 0.5]]))
    tensor([0.5000])
    """
    _check(found, truth)
    return (found - truth).abs().flatten(1).mean(1)


def ssim(found: Tensor, truth: Tensor) -> Tensor:
    r"""Structural similarity: local means, contrasts and correlations compared, ideally 1.

    .. math::

        \operatorname{mean} \frac{(2 \mu_f \mu_t + C_1) (2 \sigma_{ft} + C_2)}
        {(\mu_f^2 + \mu_t^2 + C_1) (\sigma_f^2 + \sigma_t^2 + C_2)}

    with means and covariances under a Gaussian window of 11 by 11 pixels and standard deviation
    1.5, :math:`C_1 = 0.01^2` and :math:`C_2 = 0.03^2` (data range 1), averaged over the windows
    that lie within the image and over channels. The same as scikit-image's
    ``structural_similarity`` with ``gaussian_weights=True, use_sample_covariance=False``.

    Parameters
    ----------
    found, truth
        Batches ``(N, y, x)`` or ``(N, channel, y, x)`` of at least 11 by 11 pixels.

    Returns
    -------
    Tensor
        ``(N,)``, in [-1, 1].

    Raises
    ------
    DtypeError
        As `psnr`.
    ShapeError
        If the shapes differ, are those of something else, or are smaller than the window. A
        smaller window would be another measure, not to be compared with published numbers.

    References
    ----------
    Wang, Bovik, Sheikh and Simoncelli (2004), Image quality assessment, equation 13.

    Examples
    --------
    >>> image = torch.linspace(0, 1, 256).reshape(1, 16, 16)
    >>> ssim(image, image), ssim(1 - image, image) < 0
    (tensor([1.]), tensor([True]))
    """
    _check(found, truth)
    if truth.ndim not in (3, 4) or min(truth.shape[-2:]) < WINDOW:
        raise ShapeError(
            f"truth: expected (N, y, x) or (N, channel, y, x) of at least {WINDOW} by {WINDOW} "
            f"pixels (the window of the measure), got {tuple(truth.shape)}"
        )
    rows = max(1, _BLOCK // truth[:1].numel()) if len(truth) else 1
    pairs = zip(found.split(rows), truth.split(rows), strict=True)
    return torch.cat([_similarity(f, t) for f, t in pairs])


def has_ssim(image_shape: tuple[int, ...]) -> bool:
    """Whether images of this shape are such as `ssim` compares.

    Examples
    --------
    >>> has_ssim((3, 28, 28)), has_ssim((8, 8))
    (True, False)
    """
    return len(image_shape) in (2, 3) and min(image_shape[-2:]) >= WINDOW


def _similarity(found: Tensor, truth: Tensor) -> Tensor:
    """Similarity of some images, averaged over windows and then channels."""
    f, t = found.flatten(0, -3)[:, None], truth.flatten(0, -3)[:, None]
    maps = torch.cat([f, t, f * f, t * t, f * t])
    mean_f, mean_t, square_f, square_t, product = _windowed(maps).chunk(5)
    c1, c2 = K1**2, K2**2
    luminance = (2 * mean_f * mean_t + c1) / (mean_f**2 + mean_t**2 + c1)
    variances = square_f - mean_f**2 + square_t - mean_t**2
    structure = (2 * (product - mean_f * mean_t) + c2) / (variances + c2)
    planes = (luminance * structure).flatten(1).mean(1).reshape(found.shape[:-2])
    return planes.mean(1) if planes.ndim == 2 else planes


def _windowed(maps: Tensor) -> Tensor:
    """Gaussian averages over all windows within maps ``(M, 1, y, x)``."""
    offsets = torch.arange(WINDOW, dtype=maps.dtype, device=maps.device) - WINDOW // 2
    weights = torch.exp(-0.5 * (offsets / SIGMA) ** 2)
    weights = weights / weights.sum()
    across = torch.nn.functional.conv2d(maps, weights.reshape(1, 1, 1, -1))
    return torch.nn.functional.conv2d(across, weights.reshape(1, 1, -1, 1))


def _check(found: Tensor, truth: Tensor) -> None:
    for name, value in (("found", found), ("truth", truth)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise DtypeError(f"{name}: expected a floating-point tensor, got {kind}")
    if found.dtype != truth.dtype:
        raise DtypeError(
            f"found: is {found.dtype}, but truth is {truth.dtype}; convert one of them"
        )
    if found.shape != truth.shape or truth.ndim < 2:
        raise ShapeError(
            "found: expected a batch (N, ...) shaped like truth, got "
            f"{tuple(found.shape)} and {tuple(truth.shape)}"
        )
