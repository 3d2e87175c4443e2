"""HHA images from depth: horizontal disparity, height above ground, angle with gravity (Gupta et al., ECCV 2014).

What NYUDv2's data/hha holds, for other depth images: (31000 / depth, height, angle + 38), depth and height in
centimetres, angle in degrees. Of a floor the angle is 0, of a wall 90, of a ceiling 180.
"""

import numpy as np

RADIUS = 3  # pixels around each one whose plane gives its normal
NEAREST = 100.0  # centimetres; what is nearer counts as this far, so that disparities stay below 310
# The angle in degrees within which a surface counts as level or upright, coarse and then fine.
ROUNDS = (45.0,) * 5 + (15.0,) * 5
LOWEST = 130.0  # centimetres below the camera: where the floor is if none is seen


def hha(depth: np.ndarray, camera: tuple[float, float, float, float]) -> np.ndarray:
    """The HHA image uint8 [H, W, 3] of a depth image.

    Args:
      depth: metres [H, W] along the optical axis; 0 and below where nothing was measured, which gives 0.
      camera: focal lengths and centre in pixels: (fx, fy, cx, cy).

    Raises:
      ValueError: not [H, W], or nowhere a depth.
    """
    known = depth > 0
    if depth.ndim != 2 or not known.any():
        raise ValueError(f"depth is {depth.dtype} {list(depth.shape)} with {int(known.sum())} values above 0")
    centimetres = 100 * np.where(known, depth, 1).astype(np.float64)
    rays = _rays(depth.shape, camera)
    normals = _normals(centimetres, known, rays)
    up = _up(normals[known])
    height = (centimetres[..., None] * rays) @ up
    lowest = height[known].min()
    height -= lowest if lowest <= -0.7 * LOWEST else -LOWEST
    angle = np.degrees(np.arccos(np.clip(normals @ up, -1, 1)))
    channels = (31000 / np.maximum(centimetres, NEAREST), height, angle + 38)
    image = np.clip(np.round(np.stack(channels, -1)), 0, 255).astype(np.uint8)
    return np.where(known[..., None], image, 0)


def _rays(size: tuple[int, ...], camera: tuple[float, float, float, float]) -> np.ndarray:
    """float64 [H, W, 3]: where each pixel looks at depth 1; x to the right, y down, z forward."""
    fx, fy, cx, cy = camera
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float64)
    return np.stack([(x - cx) / fx, (y - cy) / fy, np.ones(size)], -1)


def _normals(depth: np.ndarray, known: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """float64 [H, W, 3], towards the camera: of the plane through what is known around each pixel.

    Of a plane n P = d the inverse depth is n ray / d, linear in the ray: least squares of three numbers a pixel.
    """
    inverse = np.where(known, 1 / depth, 0)
    weight = known[..., None, None].astype(np.float64)
    products = _around(weight * rays[..., :, None] * rays[..., None, :])
    values = _around(known[..., None] * rays * inverse[..., None])
    solved = np.einsum("hwij,hwj->hwi", np.linalg.pinv(products, rcond=1e-9, hermitian=True), values)
    length = np.linalg.norm(solved, axis=-1, keepdims=True)
    return -np.divide(solved, length, out=np.zeros_like(solved), where=length > 0)


def _around(x: np.ndarray) -> np.ndarray:
    """Sums over the (2 RADIUS + 1)^2 pixels around each one, less those beyond the edges."""
    for axis in (0, 1):
        total = np.cumsum(x, axis)
        total = np.concatenate([np.zeros_like(total.take([0], axis)), total], axis)
        places = np.arange(x.shape[axis])
        last = np.minimum(places + RADIUS + 1, x.shape[axis])
        x = total.take(last, axis) - total.take(np.maximum(places - RADIUS, 0), axis)
    return x


def _up(normals: np.ndarray) -> np.ndarray:
    """float64 [3]: against gravity, the direction to which most normals [N, 3] are parallel or orthogonal."""
    up = np.array([0.0, -1.0, 0.0])
    for degrees in ROUNDS:
        cosine = normals @ up
        level = normals[np.abs(cosine) > np.cos(np.radians(degrees))]
        upright = normals[np.abs(cosine) < np.sin(np.radians(degrees))]
        # Orthogonal to what is upright, along what is level: the smallest eigenvalue's vector. Where one wall is all
        # that is seen, any direction in it would do: a little of the last one decides.
        spread = upright.T @ upright - level.T @ level - 1e-6 * max(len(normals), 1) * np.outer(up, up)
        _, vectors = np.linalg.eigh(spread)
        up = vectors[:, 0] * np.sign(vectors[:, 0] @ up or 1)
    return up
