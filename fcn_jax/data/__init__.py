"""Data: TFDS builders, per-example transforms and the input pipeline. NumPy in, NumPy out; no jax arrays."""
