"""How a network trained with one input convention is made to expect another."""

import numpy as np

from fcn_jax.weights.common import Arrays, Convention, Weights, first_layer


def fold(weights: Weights, target: Convention) -> Weights:
    """Rewrites the first layer, trained with `weights.convention`, for another one.

    With K the kernel [kh, kw, 3, O] (input channels in the target's order), b the bias, and per channel s, m, d the
    source's scale, mean and std and s', m', d' the target's: the target's input x stands for the pixel
    (d' x + m') / s', which is (s (d' x + m') / s' - m) / d to the source, hence

        K'[h, w, c, o] = K[h, w, c, o] s d'_c / (s' d_c)
        b'[o] = b[o] + sum_hwc K[h, w, c, o] (s m'_c / s' - m_c) / d_c

    Exact wherever the kernel sees the image alone; `border_error` bounds the rest. Of torchvision's VGG16, whose
    conv1_1 has a standard deviation of about 1 over photographs before its ReLU, it is 0.055. From a mean as far off
    as NYUD's HHA, with that kernel, it would be 1.5: so networks may keep a mean of their own.

    Returns:
      the same weights but for the first layer, which is float32 where it changes.
    """
    source = weights.convention
    first = first_layer(weights.arrays)
    if source == target or source is None or not first:
        return weights
    kernel, factor, shift = _change(weights, target)
    bias = weights.arrays[f"{first}/bias"] + np.einsum("hwco,c->o", kernel, shift)
    kernel = kernel * factor[:, None]
    folded: Arrays = {f"{first}/kernel": kernel.astype(np.float32), f"{first}/bias": bias.astype(np.float32)}
    notes = {name: f"folded from {describe(source)}" for name in folded}
    return weights._replace(arrays={**weights.arrays, **folded}, notes={**weights.notes, **notes}, convention=target)


def border_error(weights: Weights, target: Convention) -> np.ndarray:
    """How far at most folding moves an output of the first layer, before its ReLU, whose window reaches into padding.

    A tap in the padding gives zero before and after, but the new bias counts the shift of all taps. So an output with a
    set P of taps in the padding is off by sum_P K shift, whatever the image.

    Returns:
      float64 [O], the largest over all sets P that edges, corners and narrow images can make.
    """
    kernel, _, shift = _change(weights, target)
    taps = np.einsum("hwco,c->hwo", kernel, shift)
    spans = [slice(first, last) for last in range(len(taps) + 1) for first in range(last + 1)]
    errors = [np.abs(taps.sum((0, 1)) - taps[rows, columns].sum((0, 1))) for rows in spans for columns in spans]
    return np.max(errors, axis=0)


def describe(convention: Convention) -> str:
    """'RGB, (pixel / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)'."""
    scaled = "pixel" if convention.scale == 1 else f"pixel / {1 / convention.scale:g}"
    mean, std = (f"({', '.join(f'{x:g}' for x in values)})" for values in (convention.mean, convention.std))
    if set(convention.std) == {1.0}:
        return f"{convention.order}, {scaled} - {mean}"
    return f"{convention.order}, ({scaled} - {mean}) / {std}"


def _change(weights: Weights, target: Convention) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """K in float64 in the target's channel order; per channel what multiplies it; what a tap adds to the bias."""
    source = weights.convention
    assert source is not None
    name = f"{first_layer(weights.arrays)}/kernel"
    kernel = weights.arrays[name].astype(np.float64)
    if kernel.shape[2:3] != (len(source.mean),):
        raise ValueError(f"{name} is {kernel.shape}, wanted {len(source.mean)} input channels")
    mean, std = np.array(source.mean), np.array(source.std)
    if source.order != target.order:
        kernel, mean, std = kernel[:, :, ::-1], mean[::-1], std[::-1]
    ratio = source.scale / target.scale
    return kernel, ratio * np.array(target.std) / std, (ratio * np.array(target.mean) - mean) / std
