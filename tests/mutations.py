"""Files made wrong, one of four ways: as bytes, as a PNG with right checksums, as JSON, as a list of lines."""

import copy
import gzip
import json
import math
import random
import zlib
from typing import Any

_SIZES = (1, 2, 4, 8)
# What sizes and offsets of a file should never be trusted with.
_MAGIC = [
    (value % 256**size).to_bytes(size, order)
    for size in _SIZES
    for order in ("little", "big")
    for value in (0, 1, -1, -2, 2 ** (8 * size - 1), 2 ** (8 * size - 1) - 1, 2**31, 2**16, 255)
]
_CHANGES = ("bit", "bit", "byte", "magic", "magic", "insert", "delete", "double", "cut", "splice", "copy")
# Written in place of a string that is one of these keys, since Python refuses to write them.
_RAW = {
    "@huge": "9" * 5000,
    "@deep": "[" * 100_000 + "]" * 100_000,
    "@deepest": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "@nested": '{"a":' * 400 + "1" + "}" * 400,
    "@exponent": "1e999999",
}
_VALUES = (
    *(None, True, False, 0, -1, 1, 3, 0.5, 1e308, -1e308, 2**31, 2**63, 10**400, math.nan, math.inf, -math.inf),
    *("", "x", "fcn8s", "\0", "\ud800", "\x1b[31m", "a\nb", "é\u202e", "x" * 100_000),
    *([], {}, [[]], [None], [0, 0, 0], {"": {}}, list(range(1000)), ["a"] * 300),
    *_RAW,
)
_LINES = (
    *(b"", b" ", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", "é\u2028x\u0085y".encode(), b"\x1b[31m", b"a\tb", b"/etc/passwd"),
    *(b"../../../x", b"~", b".", b"..", b"/", b"*", b"x" * 300, b"y/" * 3000, b"\\", b"a b c", b"#", b"\x0c", b"-"),
)
_LINE_ENDS = (b"\n", b"\r\n", b"\r", b"\n\n", b"\0", b"\x0b", " ".encode("utf-16"))


def of_bytes(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Bits flipped, pieces replaced, put in, taken out, doubled, taken from another file."""
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = int(len(data) * rng.random() ** rng.choice((1, 3)))  # headers come first
        size = rng.choice((1, 1, 2, 4, 8, 16, 64))
        piece, magic, rest = data[at : at + size], rng.choice(_MAGIC), data[at + size :]
        there = rng.randrange(len(other) + 1)
        match rng.choice(
            ("bit", "bit", "byte", "magic", "magic", "insert", "delete", "double", "cut", "splice", "copy")
        ):
            case "bit" if piece:
                data = data[:at] + bytes([piece[0] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
            case "byte" | "bit":
                data = data[:at] + rng.randbytes(1) + data[at + 1 :]
            case "magic":
                data = data[:at] + magic + data[at + len(magic) :]
            case "insert":
                data = data[:at] + rng.choice((magic, rng.randbytes(size))) + data[at:]
            case "delete":
                data = data[:at] + rest
            case "double":
                data = data[:at] + piece * rng.choice((2, 2, 100)) + rest
            case "cut" if rng.random() < 0.5:
                data = data[:at]
            case "splice":
                data = data[:at] + other[rng.choice((at, there)) :]
            case "copy":
                data = data[:at] + other[there : there + size] + rest
    return data


def of_image(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """As bytes, half of the PNGs with right checksums."""
    data = of_bytes(rng, data, other)
    return _with_checksums(data) if rng.random() < 0.5 else data


def _with_checksums(data: bytes) -> bytes:
    """A PNG whose chunks, as far as their lengths lead, have right checksums; anything else as it is."""
    at, fixed = 8, bytearray(data)
    while data.startswith(b"\x89PNG") and at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 <= len(data):
            fixed[end : end + 4] = zlib.crc32(data[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(fixed)


def of_archive(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """As bytes, half of the gzip files by what is in them."""
    if data.startswith(b"\x1f\x8b") and rng.random() < 0.5:
        return gzip.compress(of_bytes(rng, gzip.decompress(data), other), mtime=0)
    return of_bytes(rng, data, other)


def of_json(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """As bytes, or with values of other types and sizes, or keys gone, new or renamed."""
    if rng.random() < 0.25:
        return of_bytes(rng, data, other)
    whole = {"": json.loads(data)}
    for _ in range(rng.choice((1, 1, 2, 4))):
        container, key = rng.choice(list(_places(whole)))
        value = copy.deepcopy(rng.choice(_VALUES))
        match rng.choice(("value", "value", "value", "delete", "key", "wrap")):
            case "delete" if container is not whole:
                del container[key]
            case "key" if isinstance(container, dict) and container is not whole:
                container[str(value)[:50]] = container.pop(key)
            case "wrap":
                container[key] = rng.choice(([container[key]], {"": container[key]}, str(container[key])))
            case _:
                container[key] = value
    text = json.dumps(whole[""], indent=rng.choice((None, 2)), ensure_ascii=rng.random() < 0.9)
    for name, raw in _RAW.items():
        text = text.replace(f'"{name}"', raw)
    return text.encode(rng.choice(("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16")), "surrogatepass")


def _places(container: Any) -> Any:
    """Every (container, key) of a JSON value."""
    for key, value in list(container.items() if isinstance(container, dict) else enumerate(container)):
        yield container, key
        if isinstance(value, dict | list):
            yield from _places(value)


def of_list(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """As bytes, or with lines gone, doubled, strange, of other ends or another encoding."""
    if rng.random() < 0.3:
        return of_bytes(rng, data, other)
    lines = data.split()
    for _ in range(rng.choice((0, 1, 1, 2, 4))):
        at = rng.randrange(len(lines) + 1)
        match rng.choice(("new", "part", "double", "delete")):
            case "new":
                lines.insert(at, rng.choice(_LINES))
            case "part":
                lines[at : at + 1] = [rng.choice(_LINES) + line for line in lines[at : at + 1]]
            case "double":
                lines[at:at] = lines[at : at + 1] * rng.choice((1, 1, 1000))
            case "delete":
                del lines[at : at + 1]
    text = b"".join(line + rng.choice(_LINE_ENDS[:3]) for line in lines) if rng.random() < 0.5 else b"\n".join(lines)
    return rng.choice((b"", b"", b"", b"\xef\xbb\xbf", b"\n")) + text.replace(b"\n", rng.choice(_LINE_ENDS))
