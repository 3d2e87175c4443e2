"""Where the cells of a feature map lie in the image, from which every crop follows."""

import dataclasses
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True)
class Grid:
    """The centre of cell i lies at pixel stride * i + start, in both directions; those of pixels at whole numbers.

    Attributes:
      start: a multiple of 0.5.
      reach: how far from its centre, in pixels, a cell depends on the image at most. Grids are equal whatever it is.
    """

    stride: int = 1
    start: float = 0.0
    reach: float = dataclasses.field(default=0.0, compare=False, repr=False)

    def windows(self, size: int, stride: int = 1, padding: int = 0) -> "Grid":
        """Of a convolution or a pooling: windows of size x size cells, the first of them from -padding on."""
        half = (size - 1) / 2
        start = self.start + self.stride * (half - padding)
        return Grid(self.stride * stride, start, self.reach + self.stride * half)

    def upsampled(self, size: int) -> "Grid":
        """Of a transposed convolution with a kernel of 2s or 2s - 1 at stride s, without padding."""
        stride = self.stride // stride_of(size)
        return Grid(stride, self.start - stride * (size - 1) / 2, self.reach + stride * (size - 1) / 2)

    def seeing(self, others: Iterable["Grid"]) -> "Grid":
        """This grid of cells that depend on cells of others at the same places, too."""
        return dataclasses.replace(self, reach=max([self.reach, *(other.reach for other in others)]))

    def offset(self, other: "Grid") -> int:
        """The cell of this grid at which the first one of `other` lies; both have one stride.

        Raises:
          ValueError: it lies between cells, or before the first.
        """
        cells = (other.start - self.start) / self.stride
        if self.stride != other.stride or cells < 0 or cells != int(cells):
            raise ValueError(f"{other} does not begin at a cell of {self}")
        return int(cells)


def stride_of(size: int) -> int:
    """Of a bilinear kernel of 2s or 2s - 1: s."""
    return (size + 1) // 2
