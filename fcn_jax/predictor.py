"""A trained network as a function from images to masks, for notebooks and for fcn_jax.predict."""

import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fcn_jax import checkpoint, multiscale
from fcn_jax.models.spec import ModelSpec

# Canvases are rounded up to these many steps an octave, so that a folder of photographs needs few compilations.
STEPS_PER_OCTAVE = 4
BATCH = 8


class Predictor:
    """Calls a network on images of any size; made by `load`.

    Attributes:
      spec: the network, its class names and palette.
      params: its parameters.
    """

    def __init__(
        self,
        params: Any,
        spec: ModelSpec,
        *,
        dtype: str = "float32",
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
    ):
        if not scales or not all(0 < scale <= 8 for scale in scales):
            raise ValueError(f"scales {list(scales)}: give factors above 0 and up to 8, such as 0.75,1")
        self.params, self.spec = params, spec
        model = spec.build(dtype=dtype)

        def predict(params: Any, image: jax.Array, sizes: jax.Array) -> jax.Array:
            def score(image: jax.Array, sizes: jax.Array) -> Any:
                return model.apply({"params": params}, image, sizes)

            logits = multiscale.scores(score, image, sizes, scales=scales, flip=flip)
            return jnp.argmax(logits, -1).astype(jnp.uint8)

        self._predict = jax.jit(predict)

    def __call__(self, images: Any) -> Any:
        """Class ids of one image, of a batch, or of a list of images of different sizes.

        Args:
          images: uint8 RGB [H, W, 3], or [B, H, W, 3], or a list of [H, W, 3]. A network with further input channels
            takes as many as its spec has means, in uint8 or float32.

        Returns:
          uint8 [H, W], or [B, H, W], or a list of [H, W], as the images were given.

        Raises:
          ValueError: not uint8 RGB, or another number of channels than the network has.
        """
        several = images.ndim == 4 if isinstance(images, np.ndarray) else isinstance(images, list | tuple)
        if not several:
            return self._batch([images])[0]
        # In parts, since a batch is padded to its largest image.
        masks = [m for i in range(0, len(images), BATCH) for m in self._batch(list(images[i : i + BATCH]))]
        return np.stack(masks) if isinstance(images, np.ndarray) and masks else masks

    def _batch(self, images: list[Any]) -> list[np.ndarray]:
        channels = len(self.spec.mean)
        for image in images:
            if not isinstance(image, np.ndarray):
                how = "np.asarray(PIL.Image.open(path).convert('RGB'))"
                raise ValueError(f"an image is a {type(image).__name__}: give an array, {how}")
            # Depth and the like do not fit into 8 bits.
            dtypes, kind = ([np.uint8], "uint8 RGB") if channels == 3 else ([np.uint8, np.float32], "uint8 or float32")
            if image.dtype not in dtypes or image.ndim != 3 or image.shape[2] != channels or 0 in image.shape:
                wanted = f"{kind} [height, width, {channels}], values 0..255"
                raise ValueError(f"an image is {image.dtype} {list(image.shape)}: give {wanted}")
        sizes = np.array([image.shape[:2] for image in images], np.int32)
        dtype = np.result_type(*images)
        canvas = np.zeros((len(images), *(_round_up(int(n)) for n in sizes.max(0)), channels), dtype)
        for row, image in zip(canvas, images, strict=True):
            row[: image.shape[0], : image.shape[1]] = image
        masks = jax.device_get(self._predict(self.params, *jax.device_put((canvas, sizes))))
        return [mask[:height, :width] for mask, (height, width) in zip(masks, sizes, strict=True)]


def load(
    path: str | pathlib.Path,
    *,
    which: str = "best",
    dtype: str = "float32",
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> Predictor:
    """The network of a run, of one step of its checkpoints, or of converted weights.

    Args:
      path: a run's workdir, a checkpoint directory, or converted weights.
      which: `best` or `latest`, where `path` is a run.
      dtype: what the encoder computes in, float32 or bfloat16.
      scales, flip: score images at each of these sizes, and mirrored too, as config.eval.scales and config.eval.flip.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: model.json is not one that this version reads, or a scale is not above 0 and up to 8.
    """
    params, spec = checkpoint.load_params(checkpoint.find(path, which))
    return Predictor(params, spec, dtype=dtype, scales=scales, flip=flip)


def _round_up(size: int) -> int:
    """The next canvas side: a multiple of a quarter of the power of two below, at least of 32."""
    step = max(32, 2 ** (size.bit_length() - 1) // STEPS_PER_OCTAVE)
    return -(-size // step) * step
