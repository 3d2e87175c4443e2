"""Where cells lie, and the crops that follow, against the literals of the release's net.py files."""

import pytest

from fcn_jax.models.grid import Grid, stride_of


def encoder(layers):
    """The grids after each (kernel, stride, padding)."""
    grids = [Grid()]
    for layer in layers:
        grids.append(grids[-1].windows(*layer))
    return grids[1:]


POOL = (2, 2, 0)
VGG16 = encoder(
    [
        *((3, 1, 100), (3, 1, 1), POOL, (3, 1, 1), (3, 1, 1), POOL, (3, 1, 1), (3, 1, 1), (3, 1, 1), POOL),
        *((3, 1, 1), (3, 1, 1), (3, 1, 1), POOL, (3, 1, 1), (3, 1, 1), (3, 1, 1), POOL, (7, 1, 0), (1, 1, 0)),
    ]
)
POOL2, POOL3, POOL4, FC7 = VGG16[5], VGG16[9], VGG16[13], VGG16[-1]
# CaffeNet: voc-fcn-alexnet/net.py.
ALEXNET = encoder(
    [(11, 4, 100), (3, 2, 0), (5, 1, 2), (3, 2, 0), (3, 1, 1), (3, 1, 1), (3, 1, 1), (3, 2, 0), (6, 1, 0), (1, 1, 0)]
)


def test_the_cells_of_the_released_encoders():
    assert [Grid(4, -97.5), Grid(8, -95.5), Grid(16, -91.5), Grid(32, 12.5)] == [POOL2, POOL3, POOL4, FC7]
    assert ALEXNET[-1] == Grid(32, 13)


def test_the_crops_are_those_of_the_release():
    # voc-fcn32s, voc-fcn16s and voc-fcn8s, voc-fcn-alexnet: the offsets of the Crop layers.
    assert FC7.upsampled(64).offset(Grid()) == 19
    upscore2 = FC7.upsampled(4)
    assert POOL4.offset(upscore2) == 5
    assert upscore2.upsampled(32).offset(Grid()) == 27
    upscore_pool4 = upscore2.upsampled(4)
    assert POOL3.offset(upscore_pool4) == 9
    assert upscore_pool4.upsampled(16).offset(Grid()) == 31
    assert ALEXNET[-1].upsampled(63).offset(Grid()) == 18
    # FCN-4s is not in the release. By hand: cell 9 of pool3 lies at 8 * 9 - 95.5 = -23.5, and its upsampling begins
    # 1.5 cells of stride 4 before it, at -29.5; there is cell 17 of pool2. 3.5 pixels before it is pixel -33.
    upscore_pool3 = upscore_pool4.upsampled(4)
    assert POOL2.offset(upscore_pool3) == 17
    assert upscore_pool3.upsampled(8).offset(Grid()) == 33


@pytest.mark.parametrize(("size", "stride"), [(1, 1), (2, 1), (3, 2), (4, 2), (15, 8), (16, 8), (63, 32), (64, 32)])
def test_the_stride_of_a_bilinear_kernel(size, stride):
    assert stride_of(size) == stride
    # Upsampling leaves the middle of a map with one cell where it is.
    grid = Grid(32, 7.5).upsampled(size)
    assert grid.start + grid.stride * (size - 1) / 2 == 7.5


@pytest.mark.parametrize("other", [Grid(2, 1), Grid(1, 0.5), Grid(1, -3)])
def test_a_map_that_begins_between_cells_or_before_the_first_cannot_be_cropped_to(other):
    with pytest.raises(ValueError, match=r"does not begin at a cell of Grid\(stride=1, start=0.0\)"):
        Grid().offset(other)
