"""A trained network as a function from images to masks, for notebooks and for fcn_jax.predict."""

import contextlib
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from fcn_jax import checkpoint, multiscale
from fcn_jax.models import fcn
from fcn_jax.models.spec import WIDE_INPUTS, ModelSpec

# Canvases are rounded up to these many steps an octave, so that a folder of photographs needs few compilations.
STEPS_PER_OCTAVE = 4
BATCH = 8
# What a stream computes at once. Two cores are busy with one image of 384x512, and four take as long one by one.
PIXELS_AT_ONCE = {"cpu": 2**18, "default": 2**22}
AHEAD = 16  # images that a stream holds to find like ones among them


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
        self.params, self.spec = jax.device_put(params), spec
        model, heads = fcn.FCN(spec, dtype=dtype), [place for _, place in spec.outputs]

        def predict(params: Any, image: jax.Array, sizes: jax.Array) -> jax.Array:
            def score(image: jax.Array, sizes: jax.Array) -> Any:
                return model.apply({"params": params}, image, sizes)

            logits = multiscale.scores(score, image, sizes, scales=scales, flip=flip, heads=heads)
            return multiscale.classes(logits, heads)

        self._predict = jax.jit(predict)

    def __call__(self, images: Any) -> Any:
        """Class ids of one image, of a batch, or of a list of images of different sizes.

        Args:
          images: uint8 RGB [H, W, 3], or [B, H, W, 3], or a list of [H, W, 3]. A network with further input channels
            takes as many as its spec has means, in uint8 or float32.

        Returns:
          uint8 [H, W], or [B, H, W], or a list of [H, W], as the images were given; of a network with several heads
          [H, W, heads].

        Raises:
          ValueError: not uint8 RGB, or another number of channels than the network has.
        """
        several = images.ndim == 4 if isinstance(images, np.ndarray) else isinstance(images, list | tuple)
        if not several:
            return self._batch([images])[0]
        # In parts, since a batch is padded to its largest image.
        masks = [m for i in range(0, len(images), BATCH) for m in self._batch(list(images[i : i + BATCH]))]
        return np.stack(masks) if isinstance(images, np.ndarray) and masks else masks

    def stream(self, items: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
        """(key, mask uint8 [H, W]) of each (key, image), images of like sizes together; not always in order.

        No more than AHEAD images are taken ahead of the masks. In place of an image there may be an exception, which is
        handed on; where the network fails on an image, for want of memory say, the exception stands in place of a mask.
        """
        computing: tuple[Any, ...] = ()
        for batch in self._batches(items):
            if isinstance(batch[0][1], Exception):
                yield batch[0]
                continue
            _wait(*computing)  # two at once would be slower on CPU; the results of one are looked at during the next
            done, computing = computing, self._start(batch)
            yield from self._finish(*done) if done else ()
        yield from self._finish(*computing) if computing else ()

    def _batches(self, items: Iterable[tuple[Any, Any]]) -> Iterator[list[tuple[Any, Any]]]:
        """What is computed at once; an exception by itself."""
        waiting: list[tuple[Any, np.ndarray]] = []
        source = iter(items)
        while True:
            while len(waiting) < AHEAD and (item := next(source, None)) is not None:
                if isinstance(item[1], Exception):
                    yield [item]
                else:
                    waiting.append(item)
                    if len(self._alike(waiting)) == self._at_once(waiting[0][1]):
                        break
            if not waiting:
                return
            batch = self._alike(waiting)
            if len(batch) < self._at_once(batch[0][1]):  # as many as there are would be one more compilation
                batch = batch[:1]
            waiting = [item for item in waiting if not any(item is taken for taken in batch)]
            yield batch

    def _alike(self, items: list[tuple[Any, np.ndarray]]) -> list[tuple[Any, np.ndarray]]:
        """Those that go onto the canvas of the first, as many as are computed at once."""
        canvas = _canvas(items[0][1])
        return [item for item in items if _canvas(item[1]) == canvas][: self._at_once(items[0][1])]

    def _at_once(self, image: np.ndarray) -> int:
        pixels = PIXELS_AT_ONCE.get(jax.default_backend(), PIXELS_AT_ONCE["default"])
        return max(1, min(BATCH, pixels // int(np.prod(_canvas(image)))))

    def _start(self, batch: list[tuple[Any, np.ndarray]]) -> tuple[Any, ...]:
        keys, images = zip(*batch, strict=True)
        try:
            return keys, images, self._dispatch(list(images))
        except (ValueError, MemoryError, jax.errors.JaxRuntimeError) as error:
            return keys, images, error

    def _finish(self, keys: Sequence[Any], images: Sequence[np.ndarray], masks: Any) -> Iterator[tuple[Any, Any]]:
        try:
            if isinstance(masks, Exception):
                raise masks
            yield from zip(keys, _fetch(masks, images), strict=True)
        except (ValueError, MemoryError, jax.errors.JaxRuntimeError) as error:
            if len(keys) == 1:
                yield keys[0], error
            else:  # which of them it was, and whether less memory does
                for item in zip(keys, images, strict=True):
                    yield from self._finish((item[0],), (item[1],), self._start([item])[2])

    def _batch(self, images: list[Any]) -> list[np.ndarray]:
        return _fetch(self._dispatch(images), images)

    def _dispatch(self, images: list[Any]) -> jax.Array:
        """Masks [B, H, W] of the images on their canvas, on the device, maybe still being computed."""
        channels = len(self.spec.mean)
        for image in images:
            if not isinstance(image, np.ndarray):
                how = "np.asarray(PIL.Image.open(path).convert('RGB'))"
                raise ValueError(f"an image is a {type(image).__name__}: give an array, {how}")
            # Depth and the like do not fit into 8 bits.
            plain = channels == 3 and not {*WIDE_INPUTS} & {*self.spec.input_names}
            dtypes, kind = ([np.uint8], "uint8 RGB") if plain else ([np.uint8, np.float32], "uint8 or float32")
            if image.dtype not in dtypes or image.ndim != 3 or image.shape[2] != channels or 0 in image.shape:
                wanted = f"{kind} [height, width, {channels}], values 0..255"
                raise ValueError(f"an image is {image.dtype} {list(image.shape)}: give {wanted}")
        sizes = np.array([image.shape[:2] for image in images], np.int32)
        height, width = (max(sides) for sides in zip(*map(_canvas, images), strict=True))
        canvas = np.zeros((len(images), height, width, channels), np.result_type(*images))
        for row, image in zip(canvas, images, strict=True):
            row[: image.shape[0], : image.shape[1]] = image
        return self._predict(self.params, *jax.device_put((canvas, sizes)))


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


def _wait(keys: Sequence[Any] = (), images: Sequence[np.ndarray] = (), masks: Any = None) -> None:
    """Until masks are computed; what went wrong is found when they are fetched."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        jax.block_until_ready(masks)


def _fetch(masks: jax.Array, images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The mask of each image, of its size."""
    found = jax.device_get(masks)
    return [mask[: image.shape[0], : image.shape[1]] for mask, image in zip(found, images, strict=True)]


def _canvas(image: np.ndarray) -> tuple[int, int]:
    height, width = (_round_up(n) for n in image.shape[:2])
    return height, width


def _round_up(size: int) -> int:
    """The next canvas side: a multiple of a quarter of the power of two below, at least of 32."""
    step = max(32, 2 ** (size.bit_length() - 1) // STEPS_PER_OCTAVE)
    return -(-size // step) * step
