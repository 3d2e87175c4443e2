"""The notebook: what is stored in it, and that it runs."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

NOTEBOOK = pathlib.Path(__file__).parents[1] / "notebooks/fcn_jax.ipynb"
SIZE = 1_500_000  # bytes
LINES = 25  # of a cell
JUPYTER = ("nbclient", "nbformat", "ipykernel", "matplotlib")


def cells_of(path):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def mean_ious(path):
    """{network: mean IU} that the last cell prints."""
    (output,) = cells_of(path)[-1]["outputs"]
    return json.loads("".join(output["text"]))["mean_iou"]


def check_story(path):
    """What the text says of the networks, of any machine."""
    found = mean_ious(path)
    assert found["FCN-8s"] > 0.75
    assert found["FCN-32s"] < found["FCN-16s"] < found["FCN-8s"]
    assert found["FCN-32s, longer"] < found["FCN-16s"]


def check_outputs(path):
    """Every cell ran, in order, without an error; those that only define something may be silent."""
    cells = cells_of(path)
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 12
    assert not [cell["source"] for cell in cells[1:] if not cell["outputs"]]


def test_the_stored_notebook_is_whole():
    check_outputs(NOTEBOOK)
    check_story(NOTEBOOK)


def test_the_stored_notebook_is_small_and_of_no_machine():
    text = NOTEBOOK.read_text()
    assert len(text) < SIZE
    assert not re.search(r"/(work|tmp|root|home|Users|mnt)/", re.sub(r'"image/png": "[^"]*"', "", text))
    assert max(len(cell["source"]) for cell in cells_of(NOTEBOOK)) <= LINES


def test_links_lead_to_files():
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "markdown"]
    targets = re.findall(r"\]\((?!https:)([^)#]+)", "".join("".join(cell["source"]) for cell in cells))
    assert targets
    assert all((NOTEBOOK.parent / target).is_file() for target in targets), targets


@pytest.mark.needs(*JUPYTER)
@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    """In a process of its own, whose libraries may warn, and with the devices and optimisations of a user."""
    path = tmp_path / NOTEBOOK.name
    shutil.copy(NOTEBOOK, path)
    environment = {**os.environ, "HOME": str(tmp_path), "XLA_FLAGS": ""}
    script = (
        "import sys, nbclient, nbformat\n"
        "notebook = nbformat.read(sys.argv[1], 4)\n"
        "nbclient.NotebookClient(notebook, timeout=900).execute()\n"
        "nbformat.write(notebook, sys.argv[1])\n"
    )
    command = [sys.executable, "-c", script, str(path)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    check_outputs(path)
    check_story(path)
