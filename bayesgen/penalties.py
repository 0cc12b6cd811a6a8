r"""Penalties on the image that a generator draws, to be added to a prior on its latent vector.

Each function returns a callable ``(z, x) -> penalty`` with the image x = G(z) before any deviation,
which the models in `bayesgen.regularisers` take as ``penalties`` and subtract from the log density:
``pyro.factor("penalty", -penalty(z, x))``. In a model of one's own the same line does it.

========================= ==========================================
function                  penalty, times its weight
========================= ==========================================
`image_total_variation`   TV(G(z)), smoothed
`discriminator_loss`      -log D(G(z)); of a critic, -C(G(z))
`encoder_norm`            \|E(G(z))\|^2
`encoder_consistency`     \|G(z) - G(E(G(z)))\|^2
========================= ==========================================

All are in nats, beside the negative log likelihood \|A x - y\|^2 / (2 sigma^2): for an objective
that is written with \|A x - y\|^2, divide its weights by 2 sigma^2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import torch
from torch import Tensor

from bayesgen._batching import native_batch
from bayesgen.errors import DtypeError, ShapeError
from bayesgen.models.autoencoding import run_encoder
from bayesgen.models.base import Generator
from bayesgen.models.gan import WGAN
from bayesgen.operators import Gradient
from bayesgen.regularisers.pieces import Penalty
from bayesgen.types import check_positive


def image_total_variation(weight: float, smoothing: float = 1e-3) -> Penalty:
    r"""Few edges in the image: isotropic total variation of G(z), smoothed to have gradients.

    .. math:: w \sum_p \sqrt{|\nabla x_p|^2 + \epsilon^2} - \epsilon

    with forward differences, and none across the edge of the image, as in
    `bayesgen.reconstruction.total_variation`.

    Parameters
    ----------
    weight
        w, in nats an intensity.
    smoothing
        :math:`\epsilon`, in intensities: steps much larger count in full, much smaller ones hardly.
        The default is a quarter of a grey level of eight-bit images. The smoothed value is below
        the unsmoothed one by at most that much a pixel.

    Returns
    -------
    callable
        From z, which does not matter, and the image ``(y, x)`` or ``(channel, y, x)`` to a scalar.

    Raises
    ------
    OptionError
        If the weight or the smoothing is not a positive number.
    ShapeError
        When called, if the image has another number of axes.

    References
    ----------
    Duff, Campbell and Ehrhardt (2023), Regularising inverse problems with generative machine
    learning models; Rudin, Osher and Fatemi (1992), Nonlinear total variation based noise removal
    algorithms.

    Examples
    --------
    >>> penalty = image_total_variation(weight=2.0)
    >>> step = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    >>> penalty(torch.zeros(8), step).round(decimals=2)
    tensor(4.)
    """
    check_positive("weight", weight)
    check_positive("smoothing", smoothing)

    def penalty(z: Tensor, x: Tensor) -> Tensor:
        squares = Gradient(tuple(x.shape))(x).square().sum(0)
        # The difference of the formula, without cancellation.
        return weight * (squares / ((squares + smoothing**2).sqrt() + smoothing)).sum()

    return penalty


def discriminator_loss(D: Generator | Callable[[Tensor], Tensor], weight: float) -> Penalty:
    r"""The image should look real to the discriminator that the generator was trained with.

    Where there are log odds d(x) that an image is real, :math:`w \log(1 + e^{-d(x)})`, which is
    minus the logarithm of the probability that it is. A Wasserstein critic C has no probabilities:
    then the penalty is :math:`-w\, C(x)`, what the generator was trained to make small.

    Parameters
    ----------
    D
        A generator with ``discriminate`` such as `bayesgen.models.GAN`; a `bayesgen.models.WGAN`,
        whose critic is taken; or a differentiable function of one image that returns its log odds.
    weight
        w, in nats for each nat of the loss; of a critic, for each unit of its values, which have
        no natural size: compare them over some images first. The critic's loss has no lower bound.

    Returns
    -------
    callable
        From z, which does not matter, and the image ``image_shape`` to a scalar.

    Raises
    ------
    OptionError
        If the weight is not a positive number.
    DtypeError
        If the generator has neither discriminator nor critic.
    ShapeError
        When called, if the function returns more than one number an image.

    References
    ----------
    Goodfellow et al. (2014), Generative adversarial nets, section 3, for the loss; Yeh et al.
    (2017), Semantic image inpainting with deep generative models, for its use in inversion.

    Examples
    --------
    >>> import bayesgen as bg
    >>> G = bg.models.load("mnist-gan-16")
    >>> penalty, z = discriminator_loss(G, weight=1.0), torch.zeros(16)
    >>> bool(penalty(z, G(z)) < penalty(z, torch.ones(28, 28)))  # a white square is no digit
    True
    """
    check_positive("weight", weight)
    loss = _loss(D)

    def penalty(z: Tensor, x: Tensor) -> Tensor:
        return weight * loss(x)

    return penalty


def encoder_norm(G: Generator, weight: float) -> Penalty:
    r"""The image should be encoded near the origin: :math:`w\, |E(x)|^2`.

    Latent vectors far from what training encoded may have images that the encoder takes for
    others; the norm of z itself does not tell.

    Parameters
    ----------
    G
        A generator with an encoder; of a variational one, E is the mean.
    weight
        w; 1/2 counts the encoded vector as the prior N(0, I) counts z.

    Returns
    -------
    callable
        From z, which does not matter, and the image ``image_shape`` to a scalar.

    Raises
    ------
    OptionError
        If the weight is not a positive number.
    DtypeError
        If the generator has no encoder.

    References
    ----------
    Obmann, Schwab and Haltmeier (2021), Augmented NETT regularization of inverse problems, whose
    regulariser is the sum of a penalty of E(x) and of `encoder_consistency`.

    Examples
    --------
    >>> import bayesgen as bg
    >>> G = bg.models.load("mnist-vae-8")
    >>> z = torch.ones(8)
    >>> float(encoder_norm(G, weight=1.0)(z, G(z))) > 0
    True
    """
    check_positive("weight", weight)
    _require_encoder(G)

    def penalty(z: Tensor, x: Tensor) -> Tensor:
        return weight * _encode(G, x).square().sum()

    return penalty


def encoder_consistency(G: Generator, weight: float) -> Penalty:
    r"""Encoding and decoding should return the image: :math:`w\, |x - G(E(x))|^2`.

    An autoencoder returns images like those it was trained on, and others less well.

    Parameters
    ----------
    G
        A generator with an encoder; of a variational one, E is the mean.
    weight
        w; :math:`1 / (2 \rho^2)` takes the difference for noise of standard deviation
        :math:`\rho`, in intensities.

    Returns
    -------
    callable
        From z, which does not matter, and the image ``image_shape`` to a scalar.

    Raises
    ------
    OptionError
        If the weight is not a positive number.
    DtypeError
        If the generator has no encoder.

    References
    ----------
    Obmann, Schwab and Haltmeier (2021), Augmented NETT regularization of inverse problems, whose
    regulariser is the sum of this and a penalty of E(x).

    Examples
    --------
    >>> import bayesgen as bg
    >>> G = bg.models.load("mnist-vae-8")
    >>> penalty, z = encoder_consistency(G, weight=1.0), torch.zeros(8)
    >>> bool(penalty(z, G(z)) < penalty(z, torch.ones(28, 28)))
    True
    """
    check_positive("weight", weight)
    _require_encoder(G)

    def penalty(z: Tensor, x: Tensor) -> Tensor:
        return weight * (x - G(_encode(G, x))).square().sum()

    return penalty


def _loss(D: Any) -> Callable[[Tensor], Tensor]:
    """What is to be small, of one image."""
    softplus = torch.nn.functional.softplus
    if isinstance(D, WGAN):
        critic, shape = D.critic, D.image_shape
        return lambda x: -native_batch(lambda x: run_encoder(critic, x, shape).squeeze(-1), x)
    if isinstance(D, Generator):
        if not D.can("discriminate"):
            raise DtypeError(
                "D: expected a generator with a discriminator or a critic, such as GAN or WGAN, "
                f"or a function from images to log odds; got {type(D).__name__}"
            )
        return lambda x: softplus(-native_batch(D.discriminate, x))
    if not callable(D):
        raise DtypeError(
            f"D: expected a generator or a function from images to log odds, got {type(D).__name__}"
        )
    return lambda x: softplus(-_single(D(x)))


def _single(log_odds: Tensor) -> Tensor:
    if log_odds.numel() != 1:
        raise ShapeError(
            f"D: returned shape {tuple(log_odds.shape)} for one image; expected one number"
        )
    return log_odds.reshape(())


def _encode(G: Generator, x: Tensor) -> Tensor:
    def encode(x: Tensor) -> Tensor:
        # Checks of the encoder's law look at values, which recorded operations do not have.
        with pyro.validation_enabled(False):
            return G.encode(x)

    return native_batch(encode, x)


def _require_encoder(G: Any) -> None:
    if not isinstance(G, Generator) or not G.can("encode"):
        raise DtypeError(f"G: expected a generator with an encoder, got {type(G).__name__}")
