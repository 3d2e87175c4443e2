"""Images as cameras, phones and other programs write them: read rightly, or refused in one line."""

import base64
import io
import random
import struct
import zlib

import numpy as np
import pytest
from layouts import voc_list, write_voc
from PIL import Image

from fcn_jax.data import datasets, images

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
LOSSLESS = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}, "BMP": {}, "PPM": {}}
# What brings a picture upright whose first row is, by EXIF 2.3: 1 the top, 3 the bottom, 6 the right side, ...
UPRIGHT = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x[::-1].swapaxes(0, 1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: x[:, ::-1].swapaxes(0, 1),
}


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def exif_of(number):
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


def png(width, height, depth, colour, rows):
    """A PNG from its parts, whatever they say."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", LOSSLESS)
def test_pixels_are_those_of_the_file(kind):
    data = encoded(Image.fromarray(PIXELS), kind, **LOSSLESS[kind])
    np.testing.assert_array_equal(images.decode_image(data, "x"), PIXELS)


@pytest.mark.parametrize("number", UPRIGHT)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_images_are_upright_and_labels_are_turned_alike(kind, number):
    data = encoded(Image.fromarray(PIXELS), kind, exif=exif_of(number), **LOSSLESS[kind])
    assert images.orientation(data) == number
    wanted = UPRIGHT[number](PIXELS)
    np.testing.assert_array_equal(images.decode_image(data, "x"), wanted)
    np.testing.assert_array_equal(images.turn(PIXELS[..., 0], number), wanted[..., 0])
    assert images.upright_size(data) == wanted.shape[:2]


@pytest.mark.parametrize(
    "tag",
    [
        b"\x12\x01\x02\x00\x04\x00\x00\x00six\x00",  # ASCII
        b"\x12\x01\x05\x00\x01\x00\x00\x00\xff\xff\xff\xff",  # a fraction far beyond the end
        b"\x12\x01\x03\x00\xff\xff\xff\xff\x06\x00\x00\x00",  # four billion numbers
        b"\x12\x01\x03\x00\x01\x00\x00\x00\x09\x00\x00\x00",  # no orientation
        b"\x12\x01\x0c\x00\x01\x00\x00\x00\x06\x00\x00\x00",  # a double of four bytes
        b"\x12\x01\x63\x00\x01\x00\x00\x00\x06\x00\x00\x00",  # a type that there is not
        b"\x12\x01",
    ],
)
def test_exif_of_other_types_leaves_the_picture_as_it_is(tag):
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + tag
    data = encoded(Image.fromarray(PIXELS), "JPEG", exif=exif)
    plain = encoded(Image.fromarray(PIXELS), "JPEG")
    np.testing.assert_array_equal(images.decode_image(data, "x"), images.decode_image(plain, "x"))


DEEP = {
    "PNG": (png(2, 1, 16, 2, bytes(13)), 16),
    "grey PNG": (encoded(Image.fromarray(np.zeros((2, 2), np.uint16)), "PNG"), 16),
    "PPM": (b"P6 2 1 65535\n" + bytes(12), 16),
    "TIFF": (encoded(Image.fromarray(np.zeros((2, 2), np.uint16)), "TIFF"), 16),
    "float TIFF": (encoded(Image.fromarray(np.zeros((2, 2), np.float32)), "TIFF"), 32),
}


@pytest.mark.parametrize(("data", "bits"), DEEP.values(), ids=DEEP)
def test_more_than_eight_bits_are_not_cut(data, bits):
    message = rf"image 'x' has values of more than 8 bits \({bits}\): convert it to 8 bits"
    with pytest.raises(images.CorruptError, match=message):
        images.decode_image(data, "x")


OTHERS = {
    "nothing": (b"", r"cannot be decoded \(it is empty\): replace or remove the file"),
    "text": (b"hello", r"cannot be decoded \(not an image file\): replace or remove the file"),
    "a telephone's": (b"\0\0\0\x18ftypheic\0\0\0\0", "is HEIC: save it as JPEG"),
    "PostScript, which Pillow would have another program run": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
        "is PostScript: save it as PNG",
    ),
    "PDF": (b"%PDF-1.7\n", "is PDF: save its picture as PNG"),
    "a web page": (b"\n<!doctype html>", "is SVG or a web page: save the picture as PNG"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS: fetch the file itself"),
    "cut short": (encoded(Image.fromarray(PIXELS), "JPEG")[:-99], r"cannot be decoded \(.*\): replace or remove"),
    "a claim of 3.6 gigapixels": (png(60000, 60000, 8, 2, b""), "has 3600000000 pixels, .* 178956970: make it smaller"),
}


@pytest.mark.parametrize(("data", "message"), OTHERS.values(), ids=OTHERS)
def test_what_is_no_image_is_called_by_its_name(data, message):
    for kind, decode in (("image", images.decode_image), ("label", images.decode_label)):
        if "gigapixels" in message or "make it smaller" in message:
            message = message if kind == "image" else r"cannot be decoded \(3600000000 pixels, more than"
        with pytest.raises(images.CorruptError, match=f"^{kind} 'x' {message}") as error:
            decode(data, "x")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("mode", ["L", "LA", "1", "P", "RGBA", "CMYK", "YCbCr"])
def test_other_modes_are_rgb(mode):
    image = Image.fromarray(PIXELS).convert(mode)
    kind = {"CMYK": "JPEG", "YCbCr": "JPEG"}.get(mode, "PNG")
    wanted = Image.open(io.BytesIO(encoded(image, kind))).convert("RGB")
    np.testing.assert_array_equal(images.decode_image(encoded(image, kind), "x"), np.asarray(wanted))


def test_transparent_colours_stay():
    image = Image.fromarray(PIXELS).convert("P")
    data = encoded(image, "PNG", transparency=bytes(range(256)))
    np.testing.assert_array_equal(images.decode_image(data, "x"), np.asarray(image.convert("RGB")))


def test_the_first_of_several_pictures():
    first, second = (Image.fromarray(np.full((4, 4, 3), n, np.uint8)) for n in (10, 200))
    for kind in ("GIF", "TIFF", "WEBP", "PNG"):
        data = encoded(
            first, kind, save_all=True, append_images=[second], **({"lossless": True} if kind == "WEBP" else {})
        )
        assert images.has_several(data)
        assert abs(int(images.decode_image(data, "x").max()) - 10) <= 1
        assert not images.has_several(encoded(first, kind))


def test_a_large_jpeg_is_decoded_smaller_where_it_will_be_shrunk():
    data = encoded(Image.new("RGB", (9000, 4000), (10, 20, 30)), "JPEG", exif=exif_of(6))
    small = images.decode_image(data, "x", max_side=1000)
    assert small.shape == (1125, 500, 3), "an eighth is the least that JPEG offers"
    assert images.decode_image(data, "x", max_side=3000).shape == (4500, 2000, 3)
    assert images.upright_size(data) == (9000, 4000)
    assert images.decode_image(encoded(Image.fromarray(PIXELS), "JPEG"), "x", max_side=4).shape == PIXELS.shape


SMALL_WEBP = (
    "eNrtxiEKwlAAANAFQZfmPIBhQQyCdVlwMDAMg57BU6zqqXYETQZBDBazRRTn12sIrzzesiyKfBxF6/msWlX5YvL79NOEpNtP2+Qax4N3cx6mu2Nv"
    "tHmFcNreQicq76HuZ9khPPd1aB8XAAAAAAAAAAAAAAAAAADwT4QvWNSlLQ=="
)


def test_a_small_webp_that_claims_much():
    """A picture of one colour takes few bytes, whatever its size; decoding it takes gigabytes."""
    # Of 16383x16383 black pixels, deflated: encoding them takes seconds.
    data = zlib.decompress(base64.b64decode(SMALL_WEBP))
    with pytest.raises(images.CorruptError, match="has 268402689 pixels, which is more than 67108864: make it smaller"):
        images.decode_image(data, "x")


def test_pillows_limit_is_the_users(recwarn):
    limit = Image.MAX_IMAGE_PIXELS
    with pytest.raises(images.CorruptError):
        images.decode_image(png(60000, 60000, 8, 2, b""), "x")
    assert limit == Image.MAX_IMAGE_PIXELS
    assert not recwarn.list


def test_files_that_would_be_waited_for(tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(OSError, match=r"pipe\.jpg' is no regular file"):
        images.read_file(tmp_path / "pipe.jpg")


def test_a_label_with_an_orientation_is_refused():
    for kind in ("PNG", "TIFF"):
        data = encoded(Image.fromarray(PIXELS[..., 0]), kind, exif=exif_of(6))
        with pytest.raises(ValueError, match=r"label 'x' has an EXIF orientation \(6\): save it without"):
            images.decode_label(data, "x")


def mutated(data, rng):
    """Cut, or with some bytes changed, doubled or left out; a PNG's checksums may be made right again."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at, length = rng.randrange(len(data)), rng.choice([1, 2, 4, 16])
        change = rng.randrange(5)
        if change == 0:
            del data[at:]
            data = data or bytearray(b"\0")
        elif change == 1:
            data[at : at + length] = rng.randbytes(length)
        elif change == 2:
            data[at:at] = data[at : at + length]
        elif change == 3:
            data[at : at + length] = rng.choice([b"\xff", b"\0", b"\x7f"]) * length
        else:
            data[at] ^= 1 << rng.randrange(8)
    return bytes(data)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_mutated_files_are_read_or_refused_in_one_line():
    rng = random.Random(0)
    picture = Image.fromarray(PIXELS)
    seeds = [
        encoded(picture, kind, exif=exif_of(6), **LOSSLESS.get(kind, {})) for kind in ("PNG", "JPEG", "TIFF", "WEBP")
    ]
    seeds += [encoded(picture.convert("P"), kind) for kind in ("GIF", "BMP", "PNG", "TIFF")]
    read, refused, count = 0, 0, 800
    for number in range(count):
        data = mutated(seeds[number % len(seeds)], rng)
        for decode in (images.decode_image, images.decode_label):
            try:
                result = decode(data, "x")
                assert result.dtype == np.uint8
                read += 1
            except ValueError as error:
                refused += "\n" not in str(error)
        assert images.orientation(data) in range(1, 9)
        assert images.has_several(data) in (True, False)
    assert read + refused == 2 * count
    assert min(read, refused) > 100


# --- images that EXIF turns, in datasets ------------------------------------------------------------------------------


def turned_split(tmp_path, number, **options):
    """A VOC split of one JPEG of 12x8 pixels that is to be turned, its label drawn on it as stored."""
    label = np.arange(96, dtype=np.uint8).reshape(12, 8) % 21
    write_voc(tmp_path, {"a": label})
    voc_list(tmp_path, "train", "a")
    path = tmp_path / "VOCdevkit" / "VOC2012" / "JPEGImages" / "a.jpg"
    Image.new("RGB", (8, 12), (9, 9, 9)).save(path, exif=exif_of(number))
    split = datasets.open_split(
        "voc_segmentation", "train", raw_dir=str(tmp_path), data_dir=tmp_path / "prepared", **options
    )
    return label, split


@pytest.mark.parametrize("number", [3, 6])
def test_labels_drawn_as_stored_are_turned_with_their_images(tmp_path, caplog, number):
    label, split = turned_split(tmp_path, number)
    example = split.source[0]
    np.testing.assert_array_equal(images.decode_label(example["label"], "a"), UPRIGHT[number](label))
    assert images.decode_image(example["image"], "a").shape[:2] == tuple(split.sizes[0])
    assert (
        "1 images of voc_segmentation/train are turned upright by EXIF, first a; labels are taken as drawn on the"
        in (caplog.text)
    )
    assert caplog.text.rstrip().endswith("set config.data.annotated=upright")


def test_labels_drawn_upright_stay(tmp_path, caplog):
    label, split = turned_split(tmp_path, 3, annotated="upright")
    np.testing.assert_array_equal(images.decode_label(split.source[0]["label"], "a"), label)
    assert caplog.text.rstrip().endswith("set config.data.annotated=stored")


def test_sizes_that_differ_by_exif_are_explained(tmp_path):
    message = (
        r"'a', turned upright as its EXIF orientation 6 says: image is 8x12 but label is 12x8 \(height x width\):"
        " if labels were drawn as the image is stored, set config.data.annotated=stored, else upright"
    )
    with pytest.raises(ValueError, match=message):
        turned_split(tmp_path, 6, annotated="upright")
