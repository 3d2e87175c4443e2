"""A trained network as a function from images to masks and scores, for notebooks and for fcn_jax.predict."""

import contextlib
import functools
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from fcn_jax import json_file, multiscale, networks
from fcn_jax import refine as refine_lib
from fcn_jax.models import fcn
from fcn_jax.models.reach import reach
from fcn_jax.models.spec import WIDE_INPUTS, ModelSpec

# Canvases are rounded up to these many steps an octave, so that a folder of photographs needs few compilations.
STEPS_PER_OCTAVE = 4
BATCH = 8
# What a stream computes at once. Two cores are busy with one image of 384x512, and four take as long one by one.
PIXELS_AT_ONCE = {"cpu": 2**18, "default": 2**22}
AHEAD = 16  # images that a stream holds to find like ones among them
MAX_SIDE = 1024  # pixels: what longer images are shrunk to unless something else is asked for
TILE = 1280  # pixels a side of what is computed at once of an image in tiles
_ONCE = ((1.0,), False, False)  # an image is scored as it is: scales, flip, refine
_STRIDE = 32  # of the last map: tiles begin at multiples of it


class Found(NamedTuple):
    """What a network finds in an image.

    Attributes:
      mask: class ids uint8 [H, W]; of several heads [H, W, heads].
      scores: probabilities float32 [H, W, C], or None where they were not asked for.
    """

    mask: np.ndarray
    scores: np.ndarray | None = None


class Predictor:
    """Calls a network on images of any size; made by `load`.

    Attributes:
      spec: the network, its class names and palette.
      params: its parameters.
      max_side: images that are longer are shrunk to so many pixels, and what is found is enlarged; 0: never.
      tiles: images that are longer are computed in tiles instead, with the result of the whole.
    """

    def __init__(
        self,
        params: Any,
        spec: ModelSpec,
        *,
        dtype: str = "float32",
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        max_side: int = MAX_SIDE,
        tiles: bool = False,
        refine: bool = False,
    ):
        if not scales or not all(0 < scale <= 8 for scale in scales):
            raise ValueError(f"scales {list(scales)}: give factors above 0 and up to 8, such as 0.75,1")
        if max_side < 0:
            raise ValueError(f"max_side {max_side}: give pixels, or 0 for no limit")
        if tiles and not multiscale.is_plain(scales, flip=flip):
            raise ValueError(f"tiles are for images as they are, scored at 1 and not at {list(scales)}: give scales 1")
        if refine and tiles:
            raise ValueError("what is refined depends on more than a tile sees, so not in tiles: give refine False")
        if refine and spec.input_names != ("colour",):
            raise ValueError(f"refine follows contours of colour, and the network takes {'+'.join(spec.input_names)}")
        # What is smaller at all scales is shrunk first: as training does, and a photograph is not decoded for nothing.
        self._shrunk = min(1.0, max(scales))
        scales = tuple(scale / self._shrunk for scale in scales)
        self.params, self.spec, self.max_side, self.tiles = jax.device_put(params), spec, max_side, tiles
        self._predict = _program(spec, dtype, scales, flip, refine)

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
        return self._of_each(images, lambda found: found.mask, scored=False)

    def scores(self, images: Any, classes: Sequence[str] = ()) -> Any:
        """Probabilities of one image, of a batch, or of a list of images, as __call__ takes them.

        Args:
          classes: names of the classes that are wanted, in this order; none for all.

        Returns:
          float32 [H, W, C], which over the classes of a head add up to 1; or [B, H, W, C], or a list.

        Raises:
          ValueError: as __call__; and a class that the network has not.
        """
        places = self.places_of(classes) if classes else list(range(len(self.spec.class_names)))

        def chosen(found: Found) -> np.ndarray:
            assert found.scores is not None
            return found.scores if not classes else found.scores[..., places]

        return self._of_each(images, chosen, scored=True)

    def places_of(self, classes: Sequence[str]) -> list[int]:
        """Where classes are among those of the network; ValueError for one that it has not."""
        names = list(self.spec.class_names)
        unknown = [name for name in classes if name not in names]
        if unknown:
            raise ValueError(f"the network has no class {unknown[0]!r}: choose from {', '.join(names)}")
        return [names.index(name) for name in classes]

    def _of_each(self, images: Any, wanted: Any, *, scored: bool) -> Any:
        several = images.ndim == 4 if isinstance(images, np.ndarray) else isinstance(images, list | tuple)
        items = list(images) if several else [images]
        found: list[Any] = [None] * len(items)
        for index, result in self.stream(enumerate(items), scored=scored):
            if isinstance(result, Exception):
                raise result
            found[index] = wanted(result)
        if not several:
            return found[0]
        return np.stack(found) if isinstance(images, np.ndarray) and found else found

    def stream(
        self, items: Iterable[tuple[Any, Any]], *, scored: bool = False, shrunk: bool = False
    ) -> Iterator[tuple[Any, Any]]:
        """(key, Found) of each (key, image), images of like sizes together; not always in order.

        No more than AHEAD images are taken ahead of what is given. In place of an image there may be an exception,
        which is handed on; where the network fails on an image, for want of memory say, the exception stands in place
        of what is found. `scored` asks for the scores, too; `shrunk` says that the images are as side_of has them.
        """
        computing: _Computing | None = None
        for batch in self._batches(self._item(key, image, shrunk=shrunk) for key, image in items):
            done, computing = computing, None
            if done is not None:
                _wait(done)  # two at once would be slower on CPU; the results of one are looked at during the next
            alone = batch[0].image
            if isinstance(alone, Exception) or self._needs_tiles(alone):
                yield from self._finish(done, scored=scored) if done is not None else ()
                yield batch[0].key, alone if isinstance(alone, Exception) else self._tiled(alone, scored=scored)
                continue
            computing = self._start(batch, scored=scored)
            yield from self._finish(done, scored=scored) if done is not None else ()
        yield from self._finish(computing, scored=scored) if computing is not None else ()

    def in_tiles(self, image: Any, *, scored: bool = False) -> Found:
        """What is found in an image of any size in tiles, each of which the memory suffices for: that of the whole.

        Tiles begin at multiples of 32 pixels and see as much around them as the scores depend on, models.reach. They
        are taken row by row, so that data.huge.Rows will do for an image.
        """
        self._check(image)
        height, width = image.shape[:2]
        heads = () if len(self.spec.outputs) == 1 else (len(self.spec.outputs),)
        mask = np.empty((height, width, *heads), np.uint8)
        scores = np.empty((height, width, len(self.spec.class_names)), np.float32) if scored else None
        for tile in tiles_of(height, width, self.spec):
            seen = image[tile.seen]
            (found,) = _fetch(self._dispatch([seen], scored=scored), [seen])
            mask[tile.core] = found.mask[tile.within]
            if scores is not None and found.scores is not None:
                scores[tile.core] = found.scores[tile.within]
        return Found(mask, scores)

    def _tiled(self, image: np.ndarray, *, scored: bool) -> Any:
        try:
            return self.in_tiles(image, scored=scored)
        except _FAILURES as error:
            return error

    def _needs_tiles(self, image: Any) -> bool:
        """Also what is no array, but read by rows."""
        return self.tiles and (max(image.shape[:2]) > (self.max_side or TILE) or not isinstance(image, np.ndarray))

    def _batches(self, source: Iterator["_Item"]) -> Iterator[list["_Item"]]:
        """What is computed at once; an exception, or an image in tiles, by itself."""
        waiting: list[_Item] = []
        while True:
            while len(waiting) < AHEAD and (item := next(source, None)) is not None:
                if isinstance(item.image, Exception) or self._needs_tiles(item.image):
                    yield [item]
                else:
                    waiting.append(item)
                    if len(self._alike(waiting)) == self._at_once(waiting[0].image):
                        break
            if not waiting:
                return
            batch = self._alike(waiting)
            if len(batch) < self._at_once(batch[0].image):  # as many as there are would be one more compilation
                batch = batch[:1]
            waiting = [item for item in waiting if not any(item is taken for taken in batch)]
            yield batch

    def _item(self, key: Any, image: Any, *, shrunk: bool) -> "_Item":
        """An image as it is computed, of at most max_side pixels a side; an exception if it cannot be."""
        if isinstance(image, Exception):
            return _Item(key, image, (0, 0))
        try:
            self._check(image)
        except ValueError as error:
            return _Item(key, error, (0, 0))
        size = image.shape[:2]
        return _Item(key, image if shrunk or self._needs_tiles(image) else shrink(image, self.side_of(size)), size)

    def side_of(self, size: tuple[int, int]) -> int:
        """What the longer side of an image of this height and width is shrunk to before it is scored; 0: it is not."""
        if self._shrunk == 1:
            return self.max_side
        side = max(1, round(self._shrunk * max(size)))
        return min(side, self.max_side or side)

    def _check(self, image: Any) -> None:
        """Raises ValueError for what is no image of the network."""
        channels = len(self.spec.mean)
        if not hasattr(image, "dtype") or not hasattr(image, "shape"):
            how = "np.asarray(PIL.Image.open(path).convert('RGB'))"
            raise ValueError(f"an image is a {type(image).__name__}: give an array, {how}")
        # Depth and the like do not fit into 8 bits.
        plain = channels == 3 and not {*WIDE_INPUTS} & {*self.spec.input_names}
        dtypes, kind = ([np.uint8], "uint8 RGB") if plain else ([np.uint8, np.float32], "uint8 or float32")
        if image.dtype not in dtypes or image.ndim != 3 or image.shape[2] != channels or 0 in image.shape:
            wanted = f"{kind} [height, width, {channels}], values 0..255"
            raise ValueError(f"an image is {image.dtype} {list(image.shape)}: give {wanted}")

    def _alike(self, items: list["_Item"]) -> list["_Item"]:
        """Those that go onto the canvas of the first, as many as are computed at once."""
        canvas = _canvas(items[0].image)
        return [item for item in items if _canvas(item.image) == canvas][: self._at_once(items[0].image)]

    def _at_once(self, image: np.ndarray) -> int:
        pixels = PIXELS_AT_ONCE.get(jax.default_backend(), PIXELS_AT_ONCE["default"])
        return max(1, min(BATCH, pixels // int(np.prod(_canvas(image)))))

    def _start(self, batch: list["_Item"], *, scored: bool) -> "_Computing":
        try:
            return _Computing(batch, self._dispatch([item.image for item in batch], scored=scored))
        except _FAILURES as error:
            return _Computing(batch, error)

    def _finish(self, computing: "_Computing", *, scored: bool) -> Iterator[tuple[Any, Any]]:
        batch = computing.batch
        try:
            if isinstance(computing.results, Exception):
                raise computing.results
            fetched = _fetch(computing.results, [item.image for item in batch])
            yield from ((item.key, enlarge(found, item.size)) for item, found in zip(batch, fetched, strict=True))
        except _FAILURES as error:
            if len(batch) == 1:
                yield batch[0].key, error
            else:  # which of them it was, and whether less memory does
                for item in batch:
                    yield from self._finish(self._start([item], scored=scored), scored=scored)

    def _dispatch(self, images: list[np.ndarray], *, scored: bool = False) -> tuple[jax.Array, jax.Array | None]:
        """Masks and scores [B, H, W, ...] of the images on their canvas, on the device, maybe still being computed."""
        sizes = np.array([image.shape[:2] for image in images], np.int32)
        height, width = (max(sides) for sides in zip(*map(_canvas, images), strict=True))
        canvas = np.zeros((len(images), height, width, images[0].shape[2]), np.result_type(*images))
        for row, image in zip(canvas, images, strict=True):
            row[: image.shape[0], : image.shape[1]] = image
        masks, scores = self._predict(self.params, *jax.device_put((canvas, sizes)), scored=scored)
        return masks, scores


@functools.lru_cache(16)  # predictors of equal networks share their programs
def _program(spec: ModelSpec, dtype: str, scales: tuple[float, ...], flip: bool, refine: bool) -> Any:
    """(parameters, images, sizes, scored=) -> the classes and, where `scored`, the probabilities; jitted."""
    model, heads = fcn.FCN(spec, dtype=dtype), [place for _, place in spec.outputs]

    def predict(params: Any, image: jax.Array, sizes: jax.Array, *, scored: bool) -> tuple[Any, Any]:
        def score(image: jax.Array, sizes: jax.Array) -> Any:
            return model.apply({"params": params}, image, sizes)

        logits = multiscale.scores(score, image, sizes, scales=scales, flip=flip, heads=heads)
        if not scored and not refine:
            return multiscale.classes(logits, heads), None
        found = multiscale.probabilities(logits, heads)
        if refine:
            found = refine_lib.by_head(image, found, sizes, heads)
        return multiscale.classes(found if refine else logits, heads), found if scored else None

    return jax.jit(predict, static_argnames="scored")


class _Item(NamedTuple):
    """An image that waits: its key, the image as it is computed (or an exception), and its own height and width."""

    key: Any
    image: Any
    size: tuple[int, int]


class _Computing(NamedTuple):
    """A batch whose results may still be computed, or an exception in their place."""

    batch: list[_Item]
    results: Any


class Tile(NamedTuple):
    """A part of an image, as indices.

    Attributes:
      core: where it is in the image.
      seen: what of the image its scores depend on.
      within: where the core is in what is seen.
    """

    core: tuple[slice, slice]
    seen: tuple[slice, slice]
    within: tuple[slice, slice]


def load(
    path: str | pathlib.Path,
    *,
    which: str = "best",
    dtype: str = "float32",
    scales: Sequence[float] | None = None,
    flip: bool | None = None,
    max_side: int = MAX_SIDE,
    tiles: bool = False,
    refine: bool | None = None,
) -> Predictor:
    """The network of a run, of one step of its checkpoints, or of converted weights.

    Args:
      path: a run's workdir, a checkpoint directory, converted weights, or a name of networks.PUBLISHED.
      which: `best` or `latest`, where `path` is a run.
      dtype: what the encoder computes in, float32 or bfloat16.
      scales, flip, refine: score images at each of these sizes, and mirrored too, and align what is found with the
        contours of the image (fcn_jax.refine). None: as the run was evaluated (config.eval of its config.json); what is
        of no run, once and as it is.
      max_side, tiles: as in Predictor; what fcn_jax.predict takes, too.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: model.json is not one that this version reads, or a scale is not above 0 and up to 8.
    """
    params, spec, scored = _read(path, which)
    return Predictor(
        params,
        spec,
        dtype=dtype,
        scales=scored[0] if scales is None else scales,
        flip=scored[1] if flip is None else flip,
        max_side=max_side,
        tiles=tiles,
        refine=scored[2] if refine is None else refine,
    )


def _read(path: str | pathlib.Path, which: str) -> tuple[Any, ModelSpec, tuple[tuple[float, ...], bool, bool]]:
    """Parameters, their network, and (scales, flip, refine) by which it is scored."""
    if found := networks.unpacked(path):
        return jax.device_put(found[0]), found[1], _ONCE
    from fcn_jax import checkpoint  # Orbax takes most of a second to import

    directory = checkpoint.find(networks.locate(path), which)
    return *checkpoint.load_params(directory), _scoring_of_run(directory)


def _scoring_of_run(directory: pathlib.Path) -> tuple[tuple[float, ...], bool, bool]:
    """(scales, flip, refine) by which the run of a checkpoint is evaluated."""
    path = directory.parent.parent / "config.json"
    if directory.parent.name != "checkpoints" or not path.is_file():
        return _ONCE
    config = json_file.read(path).get("eval", {})
    scales = config.get("scales", [1.0])
    if not isinstance(scales, list) or not all(isinstance(s, int | float) and 0 < s <= 8 for s in scales):
        raise ValueError(f"{path} has eval.scales {str(scales)[:80]}: give scales, or put a copy of it back")
    return tuple(scales), bool(config.get("flip")), bool(config.get("refine"))


_FAILURES = (ValueError, MemoryError, jax.errors.JaxRuntimeError)  # of one image


def tiles_of(height: int, width: int, spec: ModelSpec, side: int = TILE) -> Iterator[Tile]:
    """The tiles of an image, row by row; what each sees is at most about `side` pixels high and wide."""
    halo = -(-reach(spec) // _STRIDE) * _STRIDE
    core = max(2 * _STRIDE, (side - 2 * halo) // _STRIDE * _STRIDE)
    rows, columns = ([_along(n, start, core, halo) for start in range(0, n, core)] for n in (height, width))
    for row in rows:
        for column in columns:
            yield Tile(*zip(row, column, strict=True))


def _along(length: int, start: int, core: int, halo: int) -> tuple[slice, slice, slice]:
    """Of one side of a tile: core, what is seen, and where the core is in it."""
    end, first = min(start + core, length), max(0, start - halo)
    return slice(start, end), slice(first, min(end + halo, length)), slice(start - first, end - first)


def shrink(image: np.ndarray, max_side: int) -> np.ndarray:
    """The image [H, W, C] at no more than `max_side` pixels a side (0: no limit), bilinearly."""
    height, width = image.shape[:2]
    if not max_side or max(height, width) <= max_side:
        return image
    factor = max_side / max(height, width)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    if image.shape[2] == 3 and image.dtype == np.uint8:
        return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    return _by_channel(image, size, Image.Resampling.BILINEAR)


def enlarge(found: Found, size: tuple[int, int]) -> Found:
    """What was found, of this height and width: masks by the nearest, scores bilinearly."""
    if found.mask.shape[:2] == size:
        return found
    several = found.mask.ndim == 3
    mask = _by_channel(found.mask if several else found.mask[..., None], size[::-1], Image.Resampling.NEAREST)
    scores = found.scores
    if scores is not None:
        scores = np.clip(_by_channel(scores, size[::-1], Image.Resampling.BILINEAR), 0, 1)
    return Found(mask if several else mask[..., 0], scores)


def _by_channel(array: np.ndarray, size: tuple[int, int], how: Image.Resampling) -> np.ndarray:
    channels = [np.ascontiguousarray(channel) for channel in np.moveaxis(array, -1, 0)]
    return np.stack([np.asarray(Image.fromarray(channel).resize(size, how)) for channel in channels], -1)


def _wait(computing: _Computing) -> None:
    """Until it is computed; what went wrong is found when it is fetched."""
    if not isinstance(computing.results, Exception):
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            jax.block_until_ready(computing.results)


def _fetch(results: tuple[jax.Array, jax.Array | None], images: Sequence[np.ndarray]) -> list[Found]:
    """What was found in each image, of its size."""
    masks, scores = jax.device_get(results)
    return [
        Found(
            masks[index, : image.shape[0], : image.shape[1]],
            None if scores is None else scores[index, : image.shape[0], : image.shape[1]],
        )
        for index, image in enumerate(images)
    ]


def _canvas(image: np.ndarray) -> tuple[int, int]:
    height, width = (_round_up(n) for n in image.shape[:2])
    return height, width


def _round_up(size: int) -> int:
    """The next canvas side: a multiple of a quarter of the power of two below, at least of 32."""
    step = max(32, 2 ** (size.bit_length() - 1) // STEPS_PER_OCTAVE)
    return -(-size // step) * step
