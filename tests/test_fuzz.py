"""Every reader with damaged and hostile files, a few hundred each; tests/fuzz.py tries thousands."""

import io
import json
import os
import struct
import sys
import time
import warnings

import fuzz
import fuzz_targets
import layouts
import mutations
import numpy as np
import pytest
import scipy.io

from fcn_jax import config, json_file
from fcn_jax.data import images, mat_file
from fcn_jax.data.builders import voc_segmentation
from fcn_jax.models import spec

INPUTS = {"lists": 150, "keras": 15, "lpips": 150, "converted": 8}  # of the slow ones; 300 of the others
ERRORS = {"ValueError", "OSError", "FileNotFoundError", "CorruptError"}


@pytest.mark.parametrize("name", fuzz_targets.TARGETS)
def test_an_input_is_read_or_refused_in_one_line(tmp_path, name):
    inputs = INPUTS.get(name, 300)
    report = fuzz.run(name, fuzz_targets.TARGETS[name], inputs, 0, tmp_path / "kept")
    assert report.faults == {}
    assert not (tmp_path / "kept").exists()
    assert report.inputs == inputs == report.fine + report.refused.total()
    assert report.fine > 0
    if name != "curves.jsonl":  # what is wrong with those is left out
        assert report.refused.total() > 0
    assert report.refused.keys() <= ERRORS


# The fuzzer itself: each rule can be broken.


def print_below_python(path):
    os.write(2, b"TIFFReadDirectory: Warning")


def hide_a_warning(path):
    try:
        warnings.warn("deprecated", UserWarning, stacklevel=1)
    except Exception:
        raise ValueError(f"{path} is damaged") from None


def run_on(path):
    began = time.process_time()
    while time.process_time() - began < 10:
        pass


def name_nothing(path):
    raise ValueError("no")


def recurse(path):
    recurse(path)


def refuse(path, error=ValueError, text="is damaged"):
    raise error(f"{path} {text}")


BROKEN = {
    "KeyError in tests: 'steps'": lambda path: {}["steps"],
    "RecursionError in tests: maximum recursion depth exceeded": recurse,
    "MemoryError in tests: ": lambda path: bytearray(1 << 60),
    "UserWarning in tests: deprecated": hide_a_warning,
    "printed TIFFReadDirectory: Warning": print_below_python,
    "printed out": lambda path: print("out", end="", flush=True, file=sys.__stdout__),
    "more than 0.2 s": run_on,
    "memory beyond 200 MB": lambda path: np.ones(30_000_000).sum(),
    "what it says does not name the file: ValueError in tests: no": name_nothing,
    "what it says is not printable: ValueError in tests: FOLDER/a \x1b[31m": lambda path: refuse(path, text="\x1b[31m"),
}


def target(call):
    def make(folder):
        (folder / "a").write_bytes(b"valid")
        return {"a": b"valid"}

    return fuzz_targets.Target(make, mutations.of_bytes, lambda path, folder: call(path))


@pytest.mark.parametrize(("fault", "call"), BROKEN.items(), ids=range(len(BROKEN)))
def test_a_broken_rule_is_found(tmp_path, monkeypatch, fault, call):
    if call is run_on:
        monkeypatch.setattr(fuzz, "SECONDS", 0.2)
    report = fuzz.run("broken", target(call), 1, 0, tmp_path)
    assert (report.inputs, report.fine, report.refused.total()) == (1, 0, 0)
    ((found,),) = report.faults.values()
    assert found == f"input 0: {fault}"
    (kept,) = tmp_path.iterdir()
    assert kept.name == "broken-0-0-a"


def test_what_is_allowed_is_counted(tmp_path):
    def call(path):
        data = path.read_bytes()
        if data != b"valid":
            refuse(path, *((OSError,) if len(data) > 5 else ()))

    report = fuzz.run("fine", target(call), 200, 0, tmp_path)
    assert report.faults == {}
    assert report.refused.keys() == {"ValueError", "OSError"}
    assert report.fine + report.refused.total() == report.inputs == 200
    assert "200 inputs: " in str(report)
    assert fuzz.run("fine", target(call), 200, 0, tmp_path).refused == report.refused, "the same seed, the same inputs"
    assert fuzz.run("fine", target(call), 200, 1, tmp_path).refused != report.refused


# What they have found.

SPEC = fuzz_targets.SPEC.to_json()
DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is damaged or no JSON (Expecting value: line 1 column 1 (char 0)): put a copy of it back"),
        (
            b'{"a": 1',
            "is damaged or no JSON (Expecting ',' delimiter: line 1 column 8 (char 7)): put a copy of it back",
        ),
        (
            b'{"a\xff": 1}',
            "is damaged or no JSON ('utf-8' codec can't decode byte 0xff in position 3: invalid start byte):"
            " put a copy of it back",
        ),
        (b"[]", "holds no JSON object of at most 50 levels: put a copy of it back"),
        (b'{"a":' * 60 + b"1" + b"}" * 60, "holds no JSON object of at most 50 levels: put a copy of it back"),
    ],
    ids=["empty", "cut", "latin1", "list", "deep"],
)
def test_json_that_is_damaged(tmp_path, content, message):
    path = tmp_path / "f.json"
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        json_file.read(path)
    assert str(error.value) == f"{path} {message}"


@pytest.mark.parametrize("content", [f'{{"a": {DEEP}}}', f'{{"a": {"9" * 5000}}}'], ids=["deep", "digits"])
def test_json_beyond_the_limits_of_python(tmp_path, content):
    (tmp_path / "f").write_text(content)
    with pytest.raises(ValueError, match=r"/f (is damaged or|holds) no JSON .*: put a copy of it back$") as error:
        json_file.read(tmp_path / "f")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_json_in_other_encodings(tmp_path, encoding):
    (tmp_path / "f").write_text('{"a": "ä"}', encoding=encoding)
    assert json_file.read(tmp_path / "f") == {"a": "ä"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": True}, "width is True, wanted a whole number from 1 to 65536"),
        ({"width": 0}, "width is 0, wanted a whole number from 1 to 65536"),
        ({"fc_width": 2.0}, "fc_width is 2.0, wanted a whole number from 1 to 65536"),
        ({"fc_width": 2**16 + 1}, "fc_width is 65537, wanted a whole number from 1 to 65536"),
        ({"at_once": "no"}, "at_once is 'no', wanted true or false"),
        ({"class_names": "ab"}, "class_names is 'ab', wanted 1 to 255 printable names"),
        ({"class_names": ["a", 1]}, "class_names is ['a', 1], wanted 1 to 255 printable names"),
        ({"class_names": ["a", "\x1b[2J"]}, r"class_names is ['a', '\x1b[2J'], wanted 1 to 255 printable names"),
        ({"class_names": ["a"]}, "there are 1 class_names but 2 colours in the palette"),
        ({"palette": [[0, 0, 0], [0, 0, 256]]}, None),
        ({"palette": [[0, 0], [1, 1]]}, None),
        ({"palette": []}, "palette is [], wanted 1 to 255 colours of three whole numbers from 0 to 255"),
        ({"mean": [1, None, 3]}, "mean is [1, None, 3], wanted one number per input channel"),
        ({"mean": [1, float("nan"), 3]}, "mean is [1, nan, 3], wanted one number per input channel"),
        ({"mean": 104.0}, "mean is 104.0, wanted one number per input channel"),
        ({"network": ["fcn8s"]}, "network ['fcn8s'] is unknown, choose from fcn32s, fcn16s, fcn8s, fcn4s"),
        ({"x" * 99: 1}, "keys ['xxxxxxxxxxxx...xxxxxxxxxxxxx'] are missing or unknown"),
    ],
)
def test_a_model_that_cannot_be(tmp_path, change, message):
    """Each of these was a traceback, or a network of another kind than the file says."""
    path = tmp_path / "model.json"
    path.write_text(json.dumps({**SPEC, **change}))
    with pytest.raises(ValueError) as error:
        spec.read(path)
    colours = f"palette is {change.get('palette')}, wanted 1 to 255 colours of three whole numbers from 0 to 255"
    assert str(error.value) == f"{path}: {message or colours}"


def test_models_at_the_limits(tmp_path):
    names, palette = [f"é {k}" for k in range(255)], [[0, 128, 255]] * 255
    changes = {"class_names": names, "palette": palette, "width": 2**16, "fc_width": 1, "mean": [1, 2.5, 3, -4]}
    (tmp_path / "f").write_text(json.dumps({**SPEC, **changes}))
    found = spec.read(tmp_path / "f")
    assert (found.class_names, found.palette[254]) == (tuple(names), (0, 128, 255))
    assert (found.width, found.fc_width, found.mean) == (2**16, 1, (1, 2.5, 3, -4))


def test_a_change_is_shown_at_limited_length():
    old = {"seed": ["x" * 100_000] * 1000, "model": {"\x1b": [[[[[[[[[[]]]]]]]]]]}}
    hidden, seed = config.changes(old, config.default())
    assert hidden == r"'model.\x1b': [[[[[[[...]]]]]]] -> None"
    assert seed.startswith("seed: ['xxx")
    assert seed.endswith(", ...] -> 0")
    assert len(seed) < 700


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_a_field_of_a_mat_file(dtype, compressed):
    """As SciPy writes them, which packs no numbers; MATLAB does, below."""
    for shape in ((6, 8), (1, 1), (0, 3), (2, 3, 4)):
        numbers = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
        fields = {"Boundaries": np.array([[np.eye(2)], [1]], object), "Segmentation": numbers, "CategoriesPresent": 3}
        file = io.BytesIO()
        scipy.io.savemat(file, {"first": np.ones(3), "GTcls": fields, "text": "x"}, do_compression=compressed)
        found = mat_file.read_field(file.getvalue(), "GTcls", "Segmentation")
        assert found.dtype == numbers.dtype
        np.testing.assert_array_equal(found, numbers)


def plain_mat(tmp_path):
    """The bytes of a file like SBD's, and where the tag of the ids is."""
    label = layouts.make_label(0)
    layouts.write_mat(tmp_path / "a.mat", label, compressed=False)
    data = (tmp_path / "a.mat").read_bytes()
    return data, data.index(label.tobytes("F")) - 8


def test_numbers_that_matlab_packed(tmp_path):
    """Values of a class double, stored as bytes."""
    data, at = plain_mat(tmp_path)
    flags = data.rindex(struct.pack("<III", 6, 8, 9), 0, at) + 8  # the class, 9 for uint8
    found = mat_file.read_field(data[:flags] + b"\6" + data[flags + 1 :], "GTcls", "Segmentation")
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, layouts.make_label(0))


@pytest.mark.parametrize("kind", [0, 8, 10, 14, 15, 20, 255, 65535])
def test_a_mat_file_with_another_type(tmp_path, kind):
    """SciPy's reader ended the process."""
    data, at = plain_mat(tmp_path)
    path = tmp_path / "a.mat"
    path.write_bytes(data[:at] + struct.pack("<I", kind) + data[at + 4 :])
    with pytest.raises(images.CorruptError) as error:
        voc_segmentation.read_mat_label(path)
    reason = f"its Segmentation of shape [6, 8] has 48 bytes of type {kind}"
    assert str(error.value) == (f"label '{path}' cannot be read ({reason}): replace the file or take it from the list")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data, at: data[:127], "it is no MATLAB file of version 5 from a little-endian machine"),
        (lambda data, at: data[:132], "it ends within a tag"),
        (lambda data, at: data[:at], r"an element claims \d+ bytes where \d+ are left"),
        (
            lambda data, at: data[:at] + struct.pack("<II", 2, 2**31) + data[at + 8 :],
            "an element claims 2147483648 bytes",
        ),
        (lambda data, at: data.replace(b"GTcls", b"GTins"), "it has no variable GTcls"),
        (lambda data, at: data.replace(b"Segmentation", b"segmentation"), "it has no field Segmentation"),
        (lambda data, at: data[:144] + b"\6" + data[145:], "its GTcls is no single struct"),
        (lambda data, at: data[:144] + b"\2" + data[145:160] + b"\2" + data[161:], "its GTcls is no single struct"),
    ],
)
def test_a_damaged_mat_file(tmp_path, change, reason):
    with pytest.raises(ValueError, match=reason):
        mat_file.read_field(change(*plain_mat(tmp_path)), "GTcls", "Segmentation")


def test_a_mat_file_that_inflates_beyond_measure(monkeypatch):
    file = io.BytesIO()
    scipy.io.savemat(file, {"GTcls": {"Segmentation": np.zeros((100, 100), np.uint8)}}, do_compression=True)
    assert mat_file.read_field(file.getvalue(), "GTcls", "Segmentation").sum() == 0
    monkeypatch.setattr(mat_file, "_MAX", 9999)
    with pytest.raises(ValueError, match="a compressed variable is cut short, or has more than 9999 bytes"):
        mat_file.read_field(file.getvalue(), "GTcls", "Segmentation")
