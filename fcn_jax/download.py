"""Downloads that can be interrupted, and files that are what they claim to be."""

import contextlib
import fcntl
import hashlib
import http.client
import logging
import os
import pathlib
import urllib.error
import urllib.request
from collections.abc import Iterator

import tqdm

log = logging.getLogger(__name__)

_CHUNK = 1 << 20  # bytes
_TIMEOUT = 30  # seconds without a byte


def fetch(
    url: str,
    path: str | os.PathLike[str],
    *,
    size: int | None = None,
    sha256: str | None = None,
    sha1: str | None = None,
    md5: str | None = None,
) -> pathlib.Path:
    """Downloads `url` to `path`, unless it is there already; an interrupted download goes on where it stopped.

    The bytes go to `<path>.part`, which gets its final name only once verified. So a file at `path` of the right size
    is trusted and never hashed again. One process per file at a time, as `exclusive` arranges.

    Args:
      url: what to download.
      path: the file to write; its folder is created.
      size: in bytes. sha256, sha1, md5: hexadecimal digests. None: not checked.

    Returns:
      `path`, absolute.

    Raises:
      ValueError: size or hash of what came are not the ones wanted; the part file is removed.
      ConnectionError: no network, a server's refusal, a transfer broken off; the part file stays, to go on from.
      OSError: the disk is full or not writable; the part file stays as well.
    """
    path = pathlib.Path(path).expanduser().absolute()
    if path.exists():
        if size in (None, path.stat().st_size):
            return path
        log.warning("%s has %d bytes, not %d: downloading it again", path, path.stat().st_size, size)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    if not (sha256 or sha1 or md5):
        part.unlink(missing_ok=True)  # without a hash nothing would show that two halves belong to one file
    if size is None or not part.exists() or part.stat().st_size != size:
        _download(url, path, part)
    try:
        verify(part, size=size, sha256=sha256, sha1=sha1, md5=md5)
    except ValueError as error:
        part.unlink()
        raise ValueError(f"{url}: {error}; the part file is removed, run again to download it anew") from error
    os.replace(part, path)
    return path


@contextlib.contextmanager
def exclusive(folder: pathlib.Path) -> Iterator[None]:
    """Lets one process of this machine at a time fill `folder`; a process that dies lets go of it."""
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):  # a cache that others have filled
        yield
        return
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def verify(
    path: str | os.PathLike[str],
    *,
    size: int | None = None,
    sha256: str | None = None,
    sha1: str | None = None,
    md5: str | None = None,
) -> None:
    """Checks a file's size in bytes and its hexadecimal digests, those that are not None.

    Raises:
      ValueError: one of them differs.
    """
    got_size = os.stat(path).st_size
    if size is not None and got_size != size:
        raise ValueError(f"{path} has {got_size} bytes, wanted {size}")
    for name, wanted in (("sha256", sha256), ("sha1", sha1), ("md5", md5)):
        if wanted is None:
            continue
        with open(path, "rb") as file:
            got = hashlib.file_digest(file, name).hexdigest()
        if got != wanted:
            raise ValueError(f"{path} has {name} {got}, wanted {wanted}")


def _download(url: str, path: pathlib.Path, part: pathlib.Path) -> None:
    """Adds to `part` the bytes that it lacks of `url`; `path` is for the messages alone."""
    start = part.stat().st_size if part.exists() else 0
    try:
        response = _open(url, start)
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError) and error.code == 416 and start:
            if error.headers.get("Content-Range") == f"bytes */{start}":
                return  # it was whole already
            part.unlink()  # longer than the file, so not a piece of it
            _download(url, path, part)
            return
        raise _connection_error(url, path, error) from error
    with response:
        resumes = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        if not resumes:
            start = 0  # the server sends the file from its beginning
        length = response.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        _write(_chunks(response, url, path), part, start, total)
    got = part.stat().st_size
    if total is not None and got < total:
        raise _connection_error(url, path, EOFError(f"it broke off at {got} of {total} bytes, run again to go on"))


def _open(url: str, start: int) -> http.client.HTTPResponse:
    """Asks for the bytes of `url` from `start` on."""
    headers = {"User-Agent": "fcn_jax"}  # some hosts refuse urllib's own
    if start:
        headers["Range"] = f"bytes={start}-"
    response: http.client.HTTPResponse = urllib.request.urlopen(
        urllib.request.Request(url, headers=headers), timeout=_TIMEOUT
    )
    return response


def _chunks(response: http.client.HTTPResponse, url: str, path: pathlib.Path) -> Iterator[bytes]:
    """The body in pieces; a failing network becomes a ConnectionError, which sets it apart from a failing disk."""
    while True:
        try:
            chunk = response.read(_CHUNK)
        except (OSError, http.client.HTTPException) as error:
            raise _connection_error(url, path, error) from error
        if not chunk:
            return
        yield chunk


def _write(chunks: Iterator[bytes], part: pathlib.Path, start: int, total: int | None) -> None:
    """Writes `chunks` to `part` from byte `start` (0 truncates it) under a progress bar."""
    bar = tqdm.tqdm(
        desc=part.stem, initial=start, total=total, unit="B", unit_scale=True, unit_divisor=1024, mininterval=0.5
    )
    try:
        with bar, open(part, "ab" if start else "wb") as file:
            for chunk in chunks:
                file.write(chunk)
                bar.update(len(chunk))
    except ConnectionError:
        raise
    except OSError as error:
        remedy = "free space or choose another folder and run again: the download goes on from what is there"
        raise OSError(error.errno, f"cannot write {part}: {error.strerror}; {remedy}") from error


def _connection_error(url: str, path: pathlib.Path, error: Exception) -> ConnectionError:
    return ConnectionError(f"cannot download {url} ({error}); or fetch it by hand and put it at {path}")
