"""Bayesian inversion with learned generative priors."""
