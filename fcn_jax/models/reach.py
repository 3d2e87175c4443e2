"""How far a network sees, from where the cells of its maps lie: what tiles of an image have to overlap by."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

from fcn_jax.models.fcn import ENCODERS
from fcn_jax.models.grid import Grid
from fcn_jax.models.layers import Map
from fcn_jax.models.spec import ModelSpec


@dataclasses.dataclass(frozen=True)
class _Grids:
    """layers.Layers of maps without cells: what they make of the grids."""

    caffe: bool

    def conv(self, m: Map, _: str, __: int, size: int, *, stride: int = 1, padding: int = 0, groups: int = 1) -> Map:
        return m._replace(grid=m.grid.windows(size, stride, padding))

    def max_pool(self, m: Map, _: str, size: int, *, stride: int = 2, padding: int = 0) -> Map:
        return m._replace(grid=m.grid.windows(size, stride, padding))

    def concatenate(self, maps: Sequence[Map], _: str) -> Map:
        return maps[0]._replace(grid=maps[0].grid.seeing(m.grid for m in maps))

    def local_response_norm(self, m: Map, _: str) -> Map:
        return m

    def relu(self, m: Map) -> Map:
        return m

    drop = relu


@functools.lru_cache(16)
def reach(spec: ModelSpec) -> int:
    """How many pixels from a pixel on, to each side, its scores depend on at most."""
    layers: Any = _Grids(spec.geometry == "caffe")
    encoded = ENCODERS[spec.backbone](Map(None, None, Grid()), layers, spec.width, spec.fc_width)
    (head, _), *_ = spec.outputs
    grid = encoded[spec.last].grid
    *between, last = spec.kernels(head).values()
    for kernel, skip in zip(between, spec.skips, strict=True):
        grid = grid.upsampled(kernel).seeing([encoded[skip].grid])
    return math.ceil(grid.upsampled(last).reach)
