"""Every path that a shell accepts works, or is refused before the first step."""

import logging
import os
import pathlib

import jax
import numpy as np
import pytest
from test_damage import SPEC, params, save

import fcn_jax
from fcn_jax import checkpoint, files
from fcn_jax.run import damage
from fcn_jax.run.checkpoints import Checkpoints

NAMES = [
    *("a [1]", "lr[0.1]", "q?*", "a[!b]", "{x}", "$HOME", "~x", "%41", "#h", "50%", "q'\"", "&;|", " sp ", "tab\t"),
    *("new\nline", "é", "e\u0301", "-d", "..x", "x.", "a:b", "c:/d", "ftp:/h", "file:", "az:", "x=y,z", "n" * 200),
]
REFUSED = {
    "b\\c": "has a backslash",
    "gs:/bucket": "has the look of an address in a cloud",
    "xs3:/b": "has the look of an address in a cloud",
    "\udcff": "has a name that is not UTF-8",
}


@pytest.mark.parametrize("name", NAMES)
def test_converted_weights_anywhere(tmp_path, name):
    target = tmp_path / name
    target.mkdir(parents=True)
    checkpoint.save_params(target / "c", params(), SPEC)
    assert sorted(path.name for path in (target / "c").glob("m*")) == ["model"], "it lies where it was asked for"
    loaded, spec = checkpoint.load_params(checkpoint.find(target / "c"))
    assert spec == SPEC
    jax.tree.map(np.testing.assert_array_equal, loaded, params())


@pytest.mark.parametrize("name", ["../run", "lr[0.1]/../../run [2] *", "a/./b//c"])
def test_runs_anywhere(tmp_path, monkeypatch, caplog, capfd, name):
    """As they are given: relative, with what is special to shells and globs; a notebook that loads one sees nothing."""
    (tmp_path / "here" / "lr[0.1]").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    save(name, {1: 0.5, 2: 0.4})
    assert damage.set_aside(pathlib.Path(name)) == ""
    assert checkpoint.saved_steps(name) == [1, 2]
    assert checkpoint.find(name).samefile(f"{name}/checkpoints/1")
    with Checkpoints(name) as checkpoints:
        assert checkpoints.latest_step() == 2
    caplog.clear()
    capfd.readouterr()
    predict = fcn_jax.load(name, which="latest")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert capfd.readouterr() == ("", "")
    assert predict.params["conv1_1"]["kernel"].ravel()[0] == 2


def test_dots_are_what_the_kernel_takes_them_for(tmp_path):
    """`link/..` is the folder above the link's target."""
    (tmp_path / "there" / "deep").mkdir(parents=True)
    os.symlink(tmp_path / "there" / "deep", tmp_path / "link")
    assert files.local(tmp_path / "link" / ".." / "run") == tmp_path / "there" / "run"


@pytest.mark.parametrize(("name", "reason"), REFUSED.items())
def test_what_the_libraries_misread_is_refused(tmp_path, name, reason):
    for refusing in (
        lambda path: Checkpoints(path),
        lambda path: checkpoint.save_params(path, params(), SPEC),
        checkpoint.find,
    ):
        with pytest.raises(ValueError, match=f"{reason}, which checkpoints cannot have: name another folder or a link"):
            refusing(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_link_to_what_is_refused(tmp_path):
    (tmp_path / "b\\c").mkdir()
    os.symlink(tmp_path / "b\\c", tmp_path / "link")
    save(tmp_path / "link", {1: 0.5})
    assert checkpoint.saved_steps(tmp_path / "b\\c") == [1]


@pytest.mark.parametrize("name", ["/s3/run", "/gs/x"])
def test_roots_that_are_taken_for_clouds(name):
    with pytest.raises(ValueError, match="the look of an address in a cloud"):
        files.local(name)


def test_a_home_that_there_is_not():
    with pytest.raises(ValueError, match=r"'~nobody-of-this-name/run': there is no such home directory: begin with"):
        files.local("~nobody-of-this-name/run")
