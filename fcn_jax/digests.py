"""The digests that are written with a checkpoint, so that every flipped bit is found before it is used.

They stand in the form of sha256sum: `sha256sum --check SHA256SUMS` in the folder of the checkpoint compares them too.
"""

import hashlib
import pathlib
import re
from collections.abc import Sequence

NAME = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  ([ -~]+)")


def of_files(folder: pathlib.Path, names: Sequence[str] = ()) -> dict[str, str]:
    """{path below `folder`: SHA-256 in hexadecimal} of the files `names`, by default of all but the list itself."""
    names = names or sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.name != NAME)
    return {name: _digest(folder / name) for name in names}


def write(folder: pathlib.Path, digests: dict[str, str]) -> None:
    """Writes the list, all of it or nothing."""
    partial = folder / f"{NAME}.part"
    partial.write_text("".join(f"{digest}  {name}\n" for name, digest in digests.items()))
    partial.replace(folder / NAME)


def damage(folder: pathlib.Path, skip: Sequence[str] = ()) -> str:
    """What is wrong with the files of a folder that has a list; empty if nothing is.

    Args:
      skip: the first folders of the paths that are not read and compared; whether their files are there is looked at.
    """
    lines = (folder / NAME).read_bytes().decode("ascii", "replace").split("\n")
    found = [_LINE.fullmatch(line) for line in lines[:-1]]
    if lines[-1] or not found:
        return f"{NAME} is cut short"
    for match in found:
        if not match:
            return f"{NAME} is damaged"
        path = folder / match[2]
        if not path.is_file():
            return f"{match[2]} is missing"
        if match[2].split("/")[0] not in skip and _digest(path) != match[1]:
            return f"{match[2]} has changed since it was written"
    return ""


def _digest(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
