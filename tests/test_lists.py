"""Split lists and folders as editors, systems and tools leave them: read rightly, or refused in one line."""

import logging
import shutil
import unicodedata

import numpy as np
import pytest
from layouts import make_label, voc_list, write_camvid, write_image, write_palette_png, write_sbd, write_voc

from fcn_jax.data import lists
from fcn_jax.data.builders import camvid as camvid_lib
from fcn_jax.data.builders import voc_segmentation

IDS = ["a", "b", "my photo 1", "c.d", "é"]
TEXT = "a\nb\nmy photo 1\nc.d\né\n"
READ = {
    "plain": TEXT.encode(),
    "no newline at the end": TEXT.rstrip().encode(),
    "Windows": TEXT.replace("\n", "\r\n").encode(),
    "old Mac": TEXT.replace("\n", "\r").encode(),
    "byte order mark": TEXT.encode("utf-8-sig"),
    "UTF-16": TEXT.encode("utf-16"),
    "UTF-16, no mark": TEXT.encode("utf-16-le"),
    "UTF-16, no mark, big-endian": TEXT.encode("utf-16-be"),
    "blanks and empty lines": TEXT.replace("\n", " \t\n\n").encode(),
    "a comment": f"# mine\n{TEXT}".encode(),
    "decomposed, as on macOS": unicodedata.normalize("NFD", TEXT).encode(),
    "suffixes": TEXT.replace("\n", ".jpg\n").encode(),
    "other suffixes": TEXT.replace("\n", ".PNG\n").encode(),
    "paths": "".join(f"JPEGImages/{name}.jpg\n" for name in IDS).encode(),
    "Windows paths": "".join(f"C:\\VOC\\{name}.jpg\r\n" for name in IDS).encode(),
    "./": "".join(f"./{name}\n" for name in IDS).encode(),
    "quoted": "".join(f'"{name}",\n' for name in IDS).encode(),
}


@pytest.fixture
def root(tmp_path):
    write_voc(tmp_path, {name: make_label(k) for k, name in enumerate(IDS)})
    voc_list(tmp_path, "train", IDS)
    return tmp_path


def train_list(root):
    return root / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation" / "train.txt"


def ids(root, split="train"):
    return [example.id for example in voc_segmentation.list_examples(split, root)]


@pytest.mark.parametrize("data", READ.values(), ids=READ)
def test_a_list_is_read_rightly(root, data):
    train_list(root).write_bytes(data)
    assert ids(root) == IDS


def test_image_and_label_side_by_side(root):
    """As most trainaug.txt have them."""
    train_list(root).write_text("/JPEGImages/a.jpg /SegmentationClassAug/a.png\n/JPEGImages/b.jpg\t/Labels/b.png\n")
    assert ids(root) == ["a", "b"]


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (b"a\nb\n\xe9\n", ValueError, r"train\.txt', line 3 \('.'\), is not UTF-8 text: save it as UTF-8"),
        (b"a\nb\0\n", ValueError, r"train\.txt', line 2 \('b\\x00'\), is not UTF-8 text"),
        (b"a  1\nb -1\n", ValueError, r"line 1 \('a  1'\), is of the images of one class .*: give a list of ids"),
        (
            b"a,b\n",
            FileNotFoundError,
            r"2 of 2 files .* missing, first '.*/a,b\.jpg': complete the folder .* list",
        ),
        (b"a\nA\n", FileNotFoundError, r"2 of 4 files .* missing, first '.*/A\.jpg' \(there is 'a\.jpg'\)"),
        (b"a\nz\n", FileNotFoundError, r"2 of 4 files .* missing, first '.*/z\.jpg': complete"),
        (b"a\n../JPEGImages/z\n", ValueError, r"line 2 \('\.\./JPEGImages/z'\), names no image of the data set"),
        (b"/etc/passwd\n", ValueError, r"line 1 \('/etc/passwd'\), names no image of the data set"),
        (b"n" * 300, ValueError, r"line 1 \('n{80}'\), names no image of the data set"),
        (b"# nothing\n\n", ValueError, None),
    ],
)
def test_a_list_is_refused(root, data, error, message):
    train_list(root).write_bytes(data)
    if message is None:  # the builder refuses an empty split
        assert ids(root) == []
        return
    with pytest.raises(error, match=message):
        ids(root)


def test_a_list_that_is_a_folder(root):
    train_list(root).unlink()
    train_list(root).mkdir()
    with pytest.raises(FileNotFoundError, match=r"split list .*train\.txt' is missing"):
        ids(root)


def test_an_image_named_twice_counts_once_and_is_told(root, caplog):
    train_list(root).write_text("a\nb\na.jpg\nb\n")
    assert ids(root) == ["a", "b"]
    assert "names 2 images more than once ('a' in lines 1 and 3): each counts once" in caplog.text


def test_an_image_in_a_folder_below_is_not_taken_for_its_namesake(root):
    train_list(root).write_text("sub/q\n")
    write_image(root / "VOCdevkit" / "VOC2012" / "JPEGImages" / "sub" / "q.jpg")
    write_palette_png(root / "VOCdevkit" / "VOC2012" / "SegmentationClass" / "sub" / "q.png", make_label(0))
    assert ids(root) == ["sub/q"]
    assert [number for number, _ in lists.read_lines(train_list(root))] == [1]


def test_lists_of_sbd(tmp_path):
    write_sbd(tmp_path, {name: make_label(k) for k, name in enumerate("ab")}, "ab", [])
    (tmp_path / "benchmark_RELEASE" / "dataset" / "train.txt").write_bytes("a.mat\r\nb.jpg".encode("utf-16"))
    assert ids(tmp_path, "sbd_train") == ["a", "b"]


# --- folders ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def camvid(tmp_path):
    write_camvid(tmp_path, "train", ["one", "two"])
    return tmp_path / "CamVid"


def camvid_ids(camvid):
    return [example.id for example in camvid_lib.list_examples("train", camvid.parent)]


def test_what_systems_leave_in_a_folder_is_passed_over(camvid, caplog):
    for name in ("._one.png", ".DS_Store", "Thumbs.db", "desktop.ini"):
        (camvid / "train" / name).write_bytes(b"\0")
        (camvid / "trainannot" / name).write_bytes(b"\0")
    assert camvid_ids(camvid) == ["one", "two"]
    assert not caplog.text


def test_upper_case_suffixes(camvid):
    (camvid / "train" / "one.png").rename(camvid / "train" / "one.PNG")
    (camvid / "trainannot" / "one.png").rename(camvid / "trainannot" / "one.PNG")
    assert camvid_ids(camvid) == ["one", "two"]


def test_nothing_is_left_out_in_silence(camvid, caplog):
    write_image(camvid / "train" / "three.bmp")
    (camvid / "train" / "more").mkdir()
    shutil.copy(camvid / "trainannot" / "one.png", camvid / "trainannot" / "lonely.png")
    with caplog.at_level(logging.WARNING):
        assert camvid_ids(camvid) == ["one", "two"]
    assert "2 files in" in caplog.text
    assert "are no .png or .jpg and are left out, first more" in caplog.text
    assert "1 labels in" in caplog.text
    assert "have no image and are left out, first lonely" in caplog.text


def test_two_images_of_one_name(camvid):
    write_image(camvid / "train" / "one.jpg")
    with pytest.raises(ValueError, match=r"train/one\.jpg' and '.*train/one\.png' have one name: rename or remove one"):
        camvid_ids(camvid)


def test_an_image_without_a_label_and_a_broken_link(camvid):
    (camvid / "trainannot" / "two.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 4 files .* missing, first '.*trainannot/two\.png'"):
        camvid_ids(camvid)
    (camvid / "trainannot" / "two.png").symlink_to("nowhere.png")
    with pytest.raises(FileNotFoundError, match=r"1 of 4 files .* missing, first '.*trainannot/two\.png'"):
        camvid_ids(camvid)


def test_a_list_of_camvid_from_windows_names_one_twice(camvid, caplog):
    pair = "C:\\SegNet\\CamVid\\train\\one.png C:\\SegNet\\CamVid\\trainannot\\one.png\r\n"
    (camvid / "train.txt").write_bytes((2 * pair).encode("utf-8-sig"))
    assert camvid_ids(camvid) == ["one"]
    assert "names 1 images more than once: each counts once" in caplog.text


@pytest.mark.parametrize("inside", ["VOCdevkit", "VOCdevkit/VOC2012", "VOCdevkit/VOC2012/JPEGImages", ".."])
def test_a_raw_dir_too_deep_or_too_shallow(root, inside):
    with pytest.raises(
        FileNotFoundError, match=r"has no folder VOCdevkit/VOC2012: .*; --config\.data\.raw_dir="
    ) as error:
        ids(root / inside)
    hint = str(error.value).rpartition("=")[2].removesuffix(" has it").strip("'")
    np.testing.assert_equal(ids(type(root)(hint)), IDS)


def test_a_raw_dir_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder '.*/nowhere': correct config\.data\.raw_dir"):
        ids(tmp_path / "nowhere")
