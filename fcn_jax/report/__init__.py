"""Runs as a page to look at: python -m fcn_jax.report."""
