"""`folder`: one's own pictures, as they lie below `raw_dir`.

What is an image, what its annotation, of which split, and what the annotation means, is read from the folder, or from a
dataset.toml in it: docs/OWN_DATA.md.
"""

import functools
import logging
import pathlib
from collections.abc import Sequence

from fcn_jax.data.dataset import Dataset, Example, Labels, check_files
from fcn_jax.data.own import bands, forms, pairs
from fcn_jax.data.own import description as description_lib

log = logging.getLogger(__name__)


def read(raw_dir: str) -> Dataset:
    """The dataset in a folder.

    Raises:
      FileNotFoundError: there is no such folder, no image in it, or no annotation.
      ValueError: what there is may mean several things; says what to write where.
    """
    if not raw_dir:
        raise ValueError("config.data.raw_dir is empty: give the folder of your pictures, --config.data.raw_dir=DIR")
    root = pathlib.Path(raw_dir).expanduser()
    description = description_lib.read(root)
    pairing = pairs.pair(root, description)
    form = forms.of(pairing, description, root)
    for line in (*pairing.said, form.said, f"classes: {', '.join(form.class_names)}"):
        log.info("%s: %s", raw_dir, line)
    if pairing.images:
        log.warning("%d images have no annotation and are left out, first %s", len(pairing.images), pairing.images[0])
    if pairing.labels:
        log.warning("%d annotations have no image, first %s", len(pairing.labels), pairing.labels[0])

    seen = bands.look_at([pair.image for pair in pairing.pairs])
    if seen is not None:
        log.info("%s: images of %d bands, times %.4g", raw_dir, len(seen.mean), seen.scale)

    def list_examples(split: str, _: pathlib.Path) -> Sequence[Example]:
        return check_files(
            [
                Example(pair.id, pair.image, pair.label, {"bands": pair.image} if seen else {})
                for pair in pairing.of(split)
            ]
        )

    return Dataset(
        name="folder",
        labels=(
            Labels(
                form.class_names,
                form.palette,
                read=functools.partial(forms.read, form),
                mirrored=description.mirrored,
                form=repr(form),
            ),
        ),
        splits=tuple(split for split in ("train", "val", "test") if pairing.of(split)),
        list_examples=list_examples,
        inputs={"bands": seen.mean} if seen else {"colour": ()},
        scales={"bands": seen.scale} if seen else {},
        annotated=forms.annotated(form, description),
    )
