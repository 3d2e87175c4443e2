"""Fully convolutional networks for semantic segmentation (Long, Shelhamer, Darrell) in JAX and Flax.

predict = fcn_jax.load("runs/fcn8s_demo")
mask = predict(image)  # uint8 [H, W, 3] -> uint8 [H, W]
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fcn_jax.predictor import Predictor, load

__all__ = ["Predictor", "load"]


def __getattr__(name: str) -> Any:
    # Imported when asked for: the data builders and configs need no jax.
    if name in __all__:
        from fcn_jax import predictor

        return getattr(predictor, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
