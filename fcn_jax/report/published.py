"""Published scores in percent, to stand beside one's own."""

from typing import NamedTuple


class Row(NamedTuple):
    """A row of a paper: of which network, where it stands, its scores, and the IU of its classes where it has them."""

    network: str
    source: str
    scores: dict[str, float]
    classes: dict[str, float] = {}  # noqa: RUF012  # never written to


def _four(pixel: float, mean: float, iou: float, weighted: float) -> dict[str, float]:
    return {"pixel_accuracy": pixel, "mean_accuracy": mean, "mean_iou": iou, "frequency_weighted_iou": weighted}


_PAMI = "Shelhamer, Long, Darrell, PAMI 2017"
_DENSE = "Jegou et al., arXiv 1611.09326, table of CamVid"
_CAMVID = {
    "building": 77.8,
    "tree": 71.0,
    "sky": 88.7,
    "car": 76.1,
    "sign": 32.7,
    "road": 91.2,
    "pedestrian": 41.7,
    "fence": 24.4,
    "pole": 19.9,
    "sidewalk": 72.7,
    "cyclist": 31.0,
}
# By dataset, split and network; what is not here has no published row of its own kind.
ROWS = {
    ("voc_segmentation", "seg11valid", "fcn32s"): Row("FCN-32s", _PAMI, _four(90.5, 76.5, 63.6, 83.5)),
    ("voc_segmentation", "seg11valid", "fcn16s"): Row("FCN-16s", _PAMI, _four(91.0, 78.1, 65.0, 84.3)),
    ("voc_segmentation", "seg11valid", "fcn8s"): Row("FCN-8s", _PAMI, _four(91.2, 77.6, 65.5, 84.5)),
    ("camvid", "test", "fcn8s"): Row("FCN-8s", _DENSE, {"pixel_accuracy": 88.0, "mean_iou": 57.0}, _CAMVID),
    ("nyudv2", "test", "fcn32s"): Row("FCN-32s, colour", _PAMI, _four(60.0, 42.2, 29.2, 43.9)),
    ("sift_flow", "test", "fcn16s"): Row("FCN-16s", _PAMI, _four(85.2, 51.7, 39.5, 76.1)),
    ("pascal_context", "val", "fcn32s"): Row("FCN-32s", _PAMI, _four(63.8, 42.7, 31.8, 48.3)),
    ("pascal_context", "val", "fcn16s"): Row("FCN-16s", _PAMI, _four(65.7, 46.2, 34.8, 50.7)),
    ("pascal_context", "val", "fcn8s"): Row("FCN-8s", _PAMI, _four(65.9, 46.5, 35.1, 51.0)),
}
