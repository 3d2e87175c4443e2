"""One TFDS builder per dataset; fcn_jax.data.datasets names them."""
