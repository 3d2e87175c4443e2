"""Images beside their annotations, for a person to look at."""

from collections.abc import Iterator

import numpy as np

from fcn_jax import visualize
from fcn_jax.data import images
from fcn_jax.data.own import bands, forms
from fcn_jax.data.own.check import Checked


def panels(checked: Checked, most: int) -> Iterator[tuple[str, np.ndarray]]:
    """(id, RGB [H', W', 3]) of at most so many images that can be used: image, annotation, and one over the other."""
    form = checked.form
    if form is None:
        raise ValueError(
            f"{checked.root}: it is not clear what annotations mean: python -m fcn_jax.data check tells more"
        )
    good = [found for found in checked.looks if not found.error]
    for found in good[:: max(1, -(-len(good) // most))]:
        image = bands.picture(images.read_file(found.pair.image), str(found.pair.image))
        label = forms.read(form, found.pair.label)
        label = images.turn(label, found.orientation) if checked.annotated == "stored" else label
        gap = np.full((image.shape[0], visualize.GAP, 3), 255, np.uint8)
        overlay = visualize.overlay(image, label, form.palette)
        row = np.concatenate([image, gap, visualize.colorize(label, form.palette), gap, overlay], axis=1)
        present = [index for index in range(len(form.class_names)) if found.counts[index]]
        names, colours = [form.class_names[i] for i in present], [form.palette[i] for i in present]
        yield found.pair.id.replace("/", "_"), np.concatenate([row, visualize.legend(names, colours, row.shape[1])])
