"""Split lists, as editors, systems and tools write them."""

import logging
import pathlib
import re
import unicodedata
from collections.abc import Iterable

log = logging.getLogger(__name__)

_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_LONGEST = 200  # characters of an id: names of files have at most 255 bytes
_SUFFIX = re.compile(r"\.(jpe?g|jfif|png|bmp|tiff?|gif|webp|mat)$", re.IGNORECASE)


def read_lines(path: pathlib.Path) -> list[tuple[int, str]]:
    """The lines of a list with their numbers, less blanks around them, empty ones and those that begin with #.

    UTF-8 and UTF-16, with a byte order mark or without; lines end as on Unix, Windows or old Macs.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a line is in another encoding, or the file is no text; names the line.
    """
    if not path.is_file():
        raise FileNotFoundError(f"split list {str(path)!r} is missing: see config.data.raw_dir and the official layout")
    lines = re.split(r"\r\n|\r|\n", _decode(path))
    for number, line in enumerate(lines, 1):
        if "\0" in line or "\ufffd" in line:
            shown = f"line {number} ({line[:80]!r})"
            raise ValueError(f"split list {str(path)!r}, {shown}, is not UTF-8 text: save it as UTF-8")
    numbered = ((number, line.strip()) for number, line in enumerate(lines, 1))
    return [(number, line) for number, line in numbered if line and not line.startswith("#")]


def read_ids(path: pathlib.Path, images: pathlib.Path | Iterable[str]) -> list[str]:
    """The ids of the images that a list names, in its order, each once; `images` is their folder, or their stems.

    A line is an id, the name or the path of an image, or image and label side by side; the image need not be there.

    Raises:
      FileNotFoundError: there is no such list.
      ValueError: a line that may mean several things; names it.
    """
    if isinstance(images, pathlib.Path):
        images = [p.stem for p in images.iterdir()] if images.is_dir() else []
    stems = {unicodedata.normalize("NFC", stem): stem for stem in images}
    return _once(path, [(number, _id(path, number, line, stems)) for number, line in read_lines(path)])


def _once(path: pathlib.Path, numbered: Iterable[tuple[int, str]]) -> list[str]:
    first: dict[str, int] = {}
    again = [(number, name) for number, name in numbered if first.setdefault(name, number) != number]
    if again:
        number, name = again[0]
        twice = f"{name[:80]!r} in lines {first[name]} and {number}"
        log.warning("%s names %d images more than once (%s): each counts once", path, len(again), twice)
    return list(first)


def _id(path: pathlib.Path, number: int, line: str, stems: dict[str, str]) -> str:
    """The id that a line means; the line itself if no image fits."""
    columns = line.split()
    if len(columns) == 2 and columns[1] in ("-1", "0", "1") and line not in stems:
        raise ValueError(
            f"split list {str(path)!r}, line {number} ({line[:80]!r}), is of the images of one class and says yes or"
            " no: give a list of ids"
        )
    for names in ([line], columns):
        found = {_stem(name) for name in names}
        if len(found) == 1 and (name := found.pop()) in stems:
            return stems[name]
    name = unicodedata.normalize("NFC", line.removeprefix("./"))
    if len(name) > _LONGEST or name.startswith("/") or ".." in name.split("/"):
        raise ValueError(f"split list {str(path)!r}, line {number} ({name[:80]!r}), names no image of the data set")
    return name


def _stem(name: str) -> str:
    """'C:\\images\\a.jpg' -> 'a'."""
    last = name.strip("\"',;").replace("\\", "/").rpartition("/")[2]
    return unicodedata.normalize("NFC", _SUFFIX.sub("", last))


def _decode(path: pathlib.Path) -> str:
    """The text; what is no character of it is U+FFFD."""
    data = path.read_bytes()
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8")
    if encoding == "utf-8" and data[:64].count(0) >= len(data[:64]) // 2 > 0:  # UTF-16 without its mark
        encoding = "utf-16-be" if data[0] == 0 else "utf-16-le"
    return data.decode(encoding, "replace")
