"""The site: pip install -e '.[docs]' && sphinx-build -W --keep-going -b html docs build/site

Pages that are kept elsewhere in the repository, and the notebook, are copied to docs/repository/ at each build. Links
between pages stay links between pages; links to other files of the repository become downloads.
"""

import base64
import importlib.metadata
import json
import os
import pathlib
import re
import shutil
from typing import Any

DOCS = pathlib.Path(__file__).resolve().parent
ROOT = DOCS.parent
COPIES = DOCS / "repository"

project = "fcn_jax"
release = importlib.metadata.version("fcn_jax")
html_title = f"fcn_jax {release}"
project_copyright = ""
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False
html_theme = "furo"
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_parser"]
exclude_patterns = ["_build"]
myst_heading_anchors = 4  # links to headings, as in page.md#heading
myst_enable_extensions = ["dollarmath"]
suppress_warnings = ["misc.highlighting_failure"]  # code with an ellipsis

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
default_role = "literal"  # docstrings put code between single backticks


def guests() -> dict[pathlib.Path, pathlib.Path]:
    """{page elsewhere in the repository: its copy in the site}."""
    pages = [ROOT / "README.md", *(ROOT / "benchmarks").rglob("*.md"), *(ROOT / "fcn_jax" / "boxed").glob("*.md")]
    pages += (ROOT / "notebooks").glob("*.ipynb")
    return {page: (COPIES / page.relative_to(ROOT)).with_suffix(".md") for page in pages}


def copy_guests() -> None:
    """Writes docs/repository anew."""
    shutil.rmtree(COPIES, ignore_errors=True)
    for page, copy in guests().items():
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(from_notebook(page, copy) if page.suffix == ".ipynb" else page.read_text())


def from_notebook(path: pathlib.Path, page: pathlib.Path) -> str:
    """A notebook as Markdown, with its outputs; pictures lie beside the page."""
    parts = []
    for index, cell in enumerate(json.loads(path.read_text())["cells"]):
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for number, output in enumerate(cell.get("outputs", ())):
            parts.append(_from_output(output, page.with_name(f"{page.stem}_{index}_{number}")))
    return "\n\n".join(parts) + "\n"


def _from_output(output: dict[str, Any], file: pathlib.Path) -> str:
    data = output.get("data", {})
    for kind, suffix in (("image/png", ".png"), ("image/jpeg", ".jpg")):
        if kind in data:
            picture = file.with_name(file.name + suffix)
            picture.write_bytes(base64.b64decode("".join(data[kind])))
            return f"![]({picture.name})"
    return f"```text\n{''.join(output.get('text') or data.get('text/plain', ''))}\n```"


def relink(text: str, page: pathlib.Path) -> str:
    """The text of a page of the repository, its relative links as they must be in the site; folders are not linked."""
    copies = guests()
    here = copies.get(page, page).parent

    def replaced(match: re.Match[str]) -> str:
        label, link, anchor = match.groups("")
        linked = (page.parent / link).resolve()
        if not linked.exists():  # on the web, or a mistake, which Sphinx reports
            return match[0]
        if linked.is_dir():
            return label.removeprefix("[").removesuffix("](")
        return f"{label}{os.path.relpath(copies.get(linked, linked), here)}{anchor})"

    return re.sub(r"(\[[^][]*\]\()([^)#\s]+)(#[^)\s]*)?\)", replaced, text)


def _relink(app: Any, docname: str, source: list[str]) -> None:
    file = pathlib.Path(app.env.doc2path(docname))
    original = {copy: page for page, copy in guests().items()}.get(file, file)
    source[0] = relink(source[0], original)


def setup(app: Any) -> None:
    """Called by Sphinx."""
    copy_guests()
    app.connect("source-read", _relink)
