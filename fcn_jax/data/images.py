"""Image files to arrays and back, strictly: one decoder for preparing, training and prediction."""

import contextlib
import ctypes
import io
import math
import pathlib
import re
import threading
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import PIL
from PIL import Image, UnidentifiedImageError

VOID = 255
# What is taken; Pillow's list is longer, and some of it is handed to other programs (EPS to Ghostscript).
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # MPO is opened as JPEG
MAX_PIXELS = 178_956_970  # of an image that is decoded whole: Pillow's own limit, half a gigabyte
MAX_WEBP = 2**26  # its decoder takes 22 bytes a pixel, and a file of 200 bytes may have any number of them
MAX_BANDS = 64  # channels
LARGE = 2**25  # pixels from which on a JPEG is decoded smaller where it will be shrunk anyway

_ORIENTATION = 0x0112  # EXIF 2.3, table 4
# What brings a stored picture upright, by its orientation.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What people take for images, by how it begins.
_OTHERS = {
    rb"....ftyp(hei|hev|mif|msf)": "HEIC: save it as JPEG",
    rb"%PDF": "PDF: save its picture as PNG",
    rb"\s*<(\?xml|svg|!DOCTYPE|html)": "SVG or a web page: save the picture as PNG",
    rb"version https://git-lfs": "a pointer of Git LFS: fetch the file itself",
    rb"%!PS|\xc5\xd0\xd3\xc6": "PostScript: save it as PNG",
}
_PNG_MARKS = (b"eXIf", b"Raw profile type", b"tiff:Orientation")  # of what may say how a PNG is to be turned
_NPY = b"\x93NUMPY"
_lock = threading.Lock()


def _hush_libtiff() -> None:
    """It prints what it finds wrong with a file, past Python; the error that Pillow raises says as much."""
    for path in pathlib.Path(PIL.__file__).parents[1].glob("pillow.libs/libtiff*"):
        library = ctypes.CDLL(str(path))
        library.TIFFSetErrorHandler(None)
        library.TIFFSetWarningHandler(None)


_hush_libtiff()


class CorruptError(ValueError):
    """Data that cannot be decoded. `what` says which and why, the message also what to do about it."""

    def __init__(self, what: str, remedy: str = "replace or remove the file"):
        super().__init__(f"{what}: {remedy}")
        self.what = what


def suffixes() -> tuple[str, ...]:
    """The endings of the names of images that are taken, in lower case."""
    Image.init()
    return tuple(sorted(suffix for suffix, kind in Image.registered_extensions().items() if kind in (*FORMATS, "MPO")))


def decode_image(data: bytes, name: str, *, max_side: int = 0) -> np.ndarray:
    """An encoded image as uint8 RGB [H, W, 3], turned upright as its EXIF orientation says and as viewers show it.

    Args:
      name: what errors call it.
      max_side: what the image will be shrunk to, 0 if it will not be: a large JPEG is then decoded smaller, though
        not smaller than that.

    Raises:
      CorruptError: it is corrupt, truncated, of more than 8 bits, or too large to be decoded.
    """
    try:
        image, turn = _open(data)
        with image:
            if max_side and image.width * image.height > LARGE:
                factor = max_side / max(image.size)
                image.draft("RGB", (math.ceil(image.width * factor), math.ceil(image.height * factor)))
            pixels, bits = image.width * image.height, _bits(image, data)
            most = MAX_WEBP if image.format == "WEBP" else MAX_PIXELS
            if pixels <= most and bits <= 8:
                _load(image)
                image.info.pop("transparency", None)  # colours stay, what is transparent has its own
                return _turned(image, turn if image.format != "TIFF" else 1)
    except Exception as error:  # Pillow raises many kinds on damaged files
        raise _undecodable("image", name, data, error) from None
    if bits > 8:  # Pillow would clip them at 255, or cut them
        raise CorruptError(f"image {name!r} has values of more than 8 bits ({bits})", "convert it to 8 bits")
    remedy = "make it smaller, or give --max_side" if image.format == "JPEG" and not max_side else "make it smaller"
    raise CorruptError(f"image {name!r} has {pixels} pixels, which is more than {most}", remedy)


def decode_input(data: bytes, name: str, kind: str) -> np.ndarray:
    """An encoded input [H, W, C] of a record: `image` as decode_image, others with all of their bits.

    Those are uint8 [H, W, 3] (HHA, as it is stored), or one channel of uint8, uint16, int32 or float32 (depth), of any
    of the formats or of NumPy's .npy; `bands` as decode_bands.

    Raises:
      CorruptError: it cannot be decoded, has not a finite value everywhere, or another number of channels.
    """
    if kind == "image":
        return decode_image(data, name)
    if kind == "bands":
        return decode_bands(data, name)
    try:
        values = _npy(data) if data.startswith(_NPY) else _values(data)
    except Exception as error:  # Pillow raises many kinds on damaged files
        raise _undecodable(kind, name, data, error) from None
    values = values[..., None] if values.ndim == 2 else values
    if values.ndim != 3 or values.shape[2] not in (1, 3) or 0 in values.shape:
        raise CorruptError(f"{kind} {name!r} is {values.dtype} {list(values.shape)}", "give one channel, or three")
    if not np.isfinite(values).all():
        raise CorruptError(f"{kind} {name!r} has values that are not finite", "fill them, with 0 say")
    return values


def decode_bands(data: bytes, name: str) -> np.ndarray:
    """An image of any number of channels and bits as float32 [H, W, C], as it is stored; C >= 3.

    Fewer than three channels are repeated, since networks begin with three. TIFF and .npy may have them first or last,
    which the smaller number tells.

    Raises:
      CorruptError: it cannot be decoded, is compressed in a way that needs the package imagecodecs, or has more than 64
        channels or values that are not finite.
    """
    try:
        values = _npy(data) if data.startswith(_NPY) else _tiff(data) if data[:2] in (b"II", b"MM") else _values(data)
    except Exception as error:  # as below
        raise _undecodable("bands", name, data, error) from None
    values = values[..., None] if values.ndim == 2 else values
    if values.ndim != 3 or 0 in values.shape:
        raise CorruptError(f"image {name!r} is {values.dtype} {list(values.shape)}", "give [height, width, channels]")
    if values.shape[0] < min(values.shape[1:]) and values.shape[0] <= MAX_BANDS:
        values = np.moveaxis(values, 0, -1)
    if values.shape[2] > MAX_BANDS:
        raise CorruptError(f"image {name!r} has {values.shape[2]} channels", f"give at most {MAX_BANDS}")
    if not np.isfinite(values).all():
        raise CorruptError(f"image {name!r} has values that are not finite", "fill them, with 0 say")
    channels = values.shape[2]
    places = np.arange(max(3, channels)) % channels
    return np.ascontiguousarray(values[..., places], np.float32)


def bands_of(data: bytes) -> int:
    """How many channels decode_bands gives of an image that is no picture of 8 bits in grey or colour; else 0.

    ValueError as there.
    """
    if not data.startswith(_NPY):
        tiff = data[:2] in (b"II", b"MM")
        if not tiff:
            image, _ = _open(data)
            return 0 if _bits(image, data) <= 8 else decode_bands(data, "an image").shape[2]
        try:
            image, _ = _open(data)
            if _bits(image, data) <= 8 and image.mode in ("1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr"):
                return 0
        except Exception:  # as Pillow does on many bands, which tifffile reads
            pass
    return decode_bands(data, "an image").shape[2]


def decode_label(data: bytes, name: str) -> np.ndarray:
    """An encoded label as uint8 [H, W] of class ids: a palette PNG gives its indices, not its colours.

    CorruptError with `name` if it cannot be decoded, another ValueError if it can and holds no class ids, or is to be
    turned by EXIF, so that nobody knows how it was drawn.
    """
    try:
        image, number = _open(data)
        with image:
            kind, mode = image.format, image.mode
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width * image.height} pixels, more than {MAX_PIXELS}")
            _load(image)
            label = np.asarray(image)
    except Exception as error:  # Pillow raises many kinds on damaged files
        raise _undecodable("label", name, data, error) from None
    if kind in ("JPEG", "MPO"):
        raise ValueError(f"label {name!r} is a JPEG, whose values are not exact: save class ids as PNG")
    if number != 1:
        raise ValueError(f"label {name!r} has an EXIF orientation ({number}): save it without")
    if mode not in ("P", "L"):
        raise ValueError(f"label {name!r} has mode {mode}: class ids need an 8-bit palette or grey image (P or L)")
    return label


class Mask(NamedTuple):
    """What a mask file of any kind holds.

    Attributes:
      values: uint8, uint16 or int32 [H, W], a palette's indices among them, or uint8 [H, W, 3].
      format: of the file, as Pillow calls it.
      palette: the colours of the values, empty without one.
      colours: whether [H, W] are colours, as one number 0xRRGGBB.
    """

    values: np.ndarray
    format: str
    palette: tuple[tuple[int, int, int], ...] = ()
    colours: bool = False


def decode_mask(data: bytes, name: str) -> Mask:
    """An encoded mask in whatever form people have it; a transparent layer is left out.

    CorruptError with `name` if it cannot be decoded, another ValueError if EXIF turns it or it has values that are
    no whole numbers.
    """
    if data.startswith(_NPY):
        return _npy_mask(data, name)
    try:
        image, number = _open(data)
        with image:
            kind, mode = str(image.format), image.mode
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width * image.height} pixels, more than {MAX_PIXELS}")
            _load(image)
            flat = (image.getpalette("RGB") or []) if mode in ("P", "PA") else []
            if mode in ("LA", "PA"):
                values = np.asarray(image)[..., 0]
            elif mode in ("P", "L", "I", "1") or mode.startswith("I;16"):
                values = np.asarray(image)
            else:
                values = np.asarray(image.convert("RGB"))
    except Exception as error:  # Pillow raises many kinds on damaged files
        raise _undecodable("mask", name, data, error) from None
    if number != 1:
        raise ValueError(f"mask {name!r} has an EXIF orientation ({number}): save it without")
    if mode == "F":
        raise ValueError(f"mask {name!r} has values that are no whole numbers: save ids as PNG")
    values = values.astype(np.uint8) if values.dtype == bool else values
    return Mask(values, kind, tuple(zip(flat[::3], flat[1::3], flat[2::3], strict=True)))


def _npy_mask(data: bytes, name: str) -> Mask:
    """Of NumPy's .npy; -1 is void, as labelme's converter has it."""
    try:
        values: np.ndarray = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # as above
        raise _undecodable("mask", name, data, error) from None
    values = values[..., 0] if values.ndim == 3 and values.shape[2] == 1 else values
    if values.ndim != 2 or values.dtype.kind not in "biu" or values.size == 0:
        raise ValueError(f"mask {name!r} is {values.dtype} {list(values.shape)}: save whole numbers [height, width]")
    if values.min() < -1 or values.max() > 65535:
        raise ValueError(f"mask {name!r} has values from {values.min()} to {values.max()}: save 0 to 65535")
    whole = values.astype(np.int32)
    return Mask(np.where(whole == -1, VOID, whole) if (whole < 0).any() else whole, "NPY")


def orientation(data: bytes) -> int:
    """How an image is to be turned to be upright, as EXIF numbers it: 1 (not at all) to 8; 1 too if nothing says it."""
    try:
        return _open(data)[1]
    except Exception:  # what cannot be decoded says so when it is
        return 1


def upright_size(data: bytes) -> tuple[int, int]:
    """Height and width of an image that can be decoded, as it is when upright."""
    image, number = _open(data)
    width, height = image.size
    return (width, height) if number > 4 and image.format != "TIFF" else (height, width)


def has_several(data: bytes) -> bool:
    """Whether it is an animation or has several pages, of which the first is taken."""
    try:
        with _open(data)[0] as image:
            return image.format != "MPO" and bool(getattr(image, "is_animated", False))
    except Exception:  # as above
        return False


def turn(label: np.ndarray, number: int) -> np.ndarray:
    """uint8 [H, W] turned as an image of this EXIF orientation is; 5 to 8 exchange height and width."""
    return label if number == 1 else np.asarray(Image.fromarray(label).transpose(_TURNS[number]))


def read_file(path: pathlib.Path) -> bytes:
    """The bytes of a regular file; OSError for what else there is, such as a pipe, which would be waited for."""
    if path.exists() and not path.is_file():
        raise OSError(f"{str(path)!r} is no regular file")
    return path.read_bytes()


def encode_png(label: np.ndarray) -> bytes:
    """A label uint8 [H, W] as a grey PNG, the one form that every decoder reads as class ids."""
    buffer = io.BytesIO()
    Image.fromarray(label).save(buffer, "png")
    return buffer.getvalue()


def _npy(data: bytes) -> np.ndarray:
    """Never an object array, which would be code."""
    values: np.ndarray = np.load(io.BytesIO(data), allow_pickle=False)
    if values.dtype.kind not in "uif" or values.size > MAX_PIXELS:
        raise ValueError(f"it holds {values.size} values of {values.dtype}")
    return values.astype(np.float32, copy=False) if values.dtype.kind == "f" else values


def _tiff(data: bytes) -> np.ndarray:
    """Of many bands, or of 16 bits, which Pillow refuses or cuts: its first page, or a page for each band."""
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        first: Any = file.pages.first
        if math.prod(first.shape) > MAX_PIXELS or first.dtype is None or first.dtype.kind not in "uif":
            raise ValueError(f"it holds {math.prod(first.shape)} values of {first.dtype}")
        pages: list[Any] = [first]
        while len(pages) <= MAX_BANDS and first.samplesperpixel == 1:  # a damaged file may have any number of pages
            try:
                pages.append(file.pages[len(pages)])
            except IndexError:
                break
        like = len(pages) <= MAX_BANDS and all((p.shape, p.dtype) == (first.shape, first.dtype) for p in pages)
        values: np.ndarray = (
            np.stack([page.asarray() for page in pages]) if like and len(pages) > 1 else first.asarray()
        )
    return values


def _values(data: bytes) -> np.ndarray:
    """What a picture holds, with all of its bits."""
    image, _ = _open(data)
    with image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width * image.height} pixels, more than {MAX_PIXELS}")
        if image.mode == "RGB" and _bits(image, data) > 8:  # Pillow would cut them
            raise ValueError("three channels of more than 8 bits; save it as .npy")
        _load(image)
        return np.asarray(image)


def _load(image: Image.Image) -> None:
    """Decodes it; the larger ones one at a time, since Pillow warns of them."""
    with _patient() if image.width * image.height > LARGE else contextlib.nullcontext():
        image.load()


def _turned(image: Image.Image, number: int) -> np.ndarray:
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    return np.asarray(rgb if number == 1 else rgb.transpose(_TURNS[number]))


def _open(data: bytes) -> tuple[Image.Image, int]:
    """An image that is not decoded yet, and its orientation."""
    with _patient():
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.format == "PNG":  # its checksums, which decoding does not compare; an image cannot be used after it
            image.verify()
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        return image, _orientation(image, data)


@contextlib.contextmanager
def _patient() -> Iterator[None]:
    """Pillow would warn of or refuse what an image says of itself before it is known what is to be decoded of it."""
    with _lock, warnings.catch_warnings():  # both are of the whole process
        warnings.simplefilter("ignore")
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _orientation(image: Image.Image, data: bytes) -> int:
    """Of an image that is not decoded yet: Pillow turns a TIFF when it is, and forgets that it did."""
    if image.format == "PNG" and not any(mark in data for mark in _PNG_MARKS):
        return 1  # Pillow would decode it to look for them
    try:
        number = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # tags of another type or length than EXIF has; the picture may be whole
        return 1
    return number if isinstance(number, int) and number in _TURNS else 1


def _bits(image: Image.Image, data: bytes) -> int:
    """Of a value in the file: Pillow shows most images of 16 bits as if they had 8."""
    if image.mode.startswith(("I", "F")):
        return int(image.mode.partition(";")[2].rstrip("BLN") or 32)
    if image.format == "PNG":
        return data[24]  # of IHDR, which always comes first
    if image.format == "PPM":
        tiles: Any = getattr(image, "tile", ())
        return max([8, *(int(n).bit_length() for n in re.findall(r"\d+", str([tile[3] for tile in tiles])))])
    return max(image.tag_v2.get(258, (8,))) if image.format == "TIFF" else 8  # type: ignore[attr-defined]


def _undecodable(kind: str, name: str, data: bytes, error: Exception) -> CorruptError:
    if not data:
        return CorruptError(f"{kind} {name!r} cannot be decoded (it is empty)")
    for pattern, what in _OTHERS.items():
        if re.match(pattern, data[:64], re.IGNORECASE | re.DOTALL):
            return CorruptError(f"{kind} {name!r} is {what.partition(':')[0]}", what.partition(": ")[2])
    reason = "not an image file" if isinstance(error, UnidentifiedImageError) else " ".join(str(error).split())
    return CorruptError(f"{kind} {name!r} cannot be decoded ({reason[:200] or type(error).__name__})")
