"""Fetching the official archives where the user has not put the files in place (config.data.raw_dir empty)."""

import dataclasses
import pathlib
import tarfile
import tempfile
import zlib
from collections.abc import Sequence

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


def ensure_raw(name: str, archives: Sequence[Archive], terms: str, cache_dir: pathlib.Path) -> pathlib.Path:
    """A folder in the official layout: `cache_dir`, filled by download where it is not yet.

    An archive is deleted once it is extracted.

    Args:
      name: the dataset.
      archives: what the split is made of; none: it has no download.
      terms: then where else to get it; empty: nothing is needed.

    Raises:
      FileNotFoundError: the split has no download.
      ConnectionError: no network, or the server refuses; what came is kept to go on from.
      ValueError: an archive does not have the published hash.
    """
    if not archives and terms:
        raise FileNotFoundError(
            f"{name} is not downloaded for you: {terms} and set config.data.raw_dir to the folder that holds it"
        )
    for archive in archives:
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
