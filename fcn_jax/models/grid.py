"""Where the cells of a feature map lie in the image, from which every crop follows."""

from typing import NamedTuple


class Grid(NamedTuple):
    """The centre of cell i lies at pixel stride * i + start, in both directions; those of pixels at whole numbers."""

    stride: int = 1
    start: float = 0.0  # a multiple of 0.5

    def windows(self, size: int, stride: int = 1, padding: int = 0) -> "Grid":
        """Of a convolution or a pooling: windows of size x size cells, the first of them from -padding on."""
        return Grid(self.stride * stride, self.start + self.stride * ((size - 1) / 2 - padding))

    def upsampled(self, size: int) -> "Grid":
        """Of a transposed convolution with a kernel of 2s or 2s - 1 at stride s, without padding."""
        stride = self.stride // stride_of(size)
        return Grid(stride, self.start - stride * (size - 1) / 2)

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
