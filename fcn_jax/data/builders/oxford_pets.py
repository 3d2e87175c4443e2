"""`oxford_pets`: the Oxford-IIIT Pet Dataset, cats and dogs against the background; the border between is void.

`raw_dir` holds images and annotations, as the two archives unpack. About a dozen images are no clean RGB JPEGs;
config.data.corrupt=skip leaves out what cannot be decoded.
"""

import pathlib
from collections.abc import Sequence

from fcn_jax.data import images, lists
from fcn_jax.data.dataset import Dataset, Example, Labels, check_files, require_folder
from fcn_jax.data.downloads import Archive


def list_examples(split: str, raw_dir: pathlib.Path) -> Sequence[Example]:
    """Splits: trainval (3680 images), test (3669), in the order of their lists."""
    folder, annotations = require_folder(raw_dir, "images"), require_folder(raw_dir, "annotations")
    # A line: name, breed, cat or dog, number of the breed among those.
    ids = [line.split()[0] for _, line in lists.read_lines(annotations / f"{split}.txt")]
    return check_files([Example(i, folder / f"{i}.jpg", annotations / "trimaps" / f"{i}.png") for i in ids])


_URL = "https://thor.robots.ox.ac.uk/~vgg/data/pets"
# Sizes and sha256 as TFDS registers them for its dataset `oxford_iiit_pet`. CC BY-SA 4.0.
ARCHIVES = (
    Archive(
        url=f"{_URL}/images.tar.gz",
        folder="images",
        members=("images/",),
        size=791_918_971,
        sha256="67195c5e1c01f1ab5f9b6a5d22b8c27a580d896ece458917e61d459337fa318d",
    ),
    Archive(
        url=f"{_URL}/annotations.tar.gz",
        folder="annotations",
        members=("annotations/trimaps/", "annotations/trainval.txt", "annotations/test.txt"),
        size=19_173_078,
        sha256="52425fb6de5c424942b7626b428656fcbd798db970a937df61750c0f1d358e91",
    ),
)

DATASET = Dataset(
    name="oxford_pets",
    labels=(Labels(("background", "pet"), ((0, 0, 0), (128, 0, 0)), ids={1: 1, 2: 0, 3: images.VOID}),),
    splits=("trainval", "test"),
    list_examples=list_examples,
    archives=dict.fromkeys(("trainval", "test"), ARCHIVES),
)
