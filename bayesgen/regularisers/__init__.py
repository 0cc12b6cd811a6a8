r"""Generative regularisers as Pyro models: short functions to use, to print, and to copy and edit.

Each returns a model of one image x, data y and, where there is a generator, its latent vector z:

========================= ========================= =============================================
function                  image                     minus the log prior, up to a constant
========================= ========================= =============================================
`hard`                    x = G(z)                  w |z|^2 / 2
`flow`                    x = G(z), invertible      w |z|^2 / 2
`relaxed`                 x = G(z) + u              w |z|^2 / 2 + |u|^2 / (2 s^2)
`soft_range`              x = G(z) + s u            w |z|^2 / 2 + u' C^-1 u / 2 - log p(s)
`sparse`                  x = G(z) + u              w |z|^2 / 2 + |u|_1 / s
`sparse_tv`               x = G(z) + u              w |z|^2 / 2 + TV(u) / s
`structured`              x = G(z) + u              w |z|^2 / 2 + u' Sigma(z)^-1 u / 2 + c log det
`tikhonov`                x                         |x|^2 / (2 s^2)
`total_variation`         x                         TV(x) / s
========================= ========================= =============================================

with |z|^2 / 2 for the standard normal prior that most generators have, and minus the log likelihood
|A x - y|^2 / (2 sigma^2). In the weights of Duff, Campbell and Ehrhardt, for that data term: lambda
is w / 2 for `hard` and `flow`, 1 / (2 s^2) for `relaxed`, and 1 / s for `sparse` and `sparse_tv`;
lambda mu is w / 2 for these three.

The noise level sigma may be a number, ``"estimate"`` (a latent site with a flat prior: MAP gives
the most likely level), or a distribution, its prior. Other priors on z are in
`bayesgen.latent_priors`, further penalties in `bayesgen.penalties`.
"""

from __future__ import annotations

from bayesgen.regularisers.deviation import relaxed, sparse, sparse_tv, structured
from bayesgen.regularisers.generative import flow, hard
from bayesgen.regularisers.plain import tikhonov, total_variation
from bayesgen.regularisers.soft_range import soft_range

__all__ = [
    "hard",
    "flow",
    "relaxed",
    "soft_range",
    "sparse",
    "sparse_tv",
    "structured",
    "tikhonov",
    "total_variation",
]
