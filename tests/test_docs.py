"""The texts: links that lead somewhere, lines and sentences of readable length, a site that builds without warnings."""

import functools
import html
import inspect
import os
import pathlib
import re
import subprocess
import sys

import pytest

import fcn_jax

ROOT = pathlib.Path(__file__).parents[1]
FOLDERS = (("docs", "*.md"), ("benchmarks", "**/*.md"), ("fcn_jax", "boxed/*.md"))
PAGES = sorted([ROOT / "README.md", *(page for folder, pages in FOLDERS for page in (ROOT / folder).glob(pages))])
LINE = 120  # characters
SENTENCE = 25  # words, on average over a page

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def without_code(text):
    """The lines of a page, blank where a block of code is, `code` where there is code in a line."""
    text = re.sub(r"^( *)(```+).*?^\1\2`*$", lambda block: "\n" * block[0].count("\n"), text, flags=re.M | re.S)
    return re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "code", text)


def without_targets(text):
    """[text](link) -> text."""
    return re.sub(r"!?\[([^][]*)\]\([^)\s]*\)", r"\1", text)


@functools.cache
def anchors(page):
    """What the headings of a page are called in links."""
    headings = re.findall(r"^#+ +(.*)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S), re.M)
    plain = [without_targets(heading).replace("`", "").strip().lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


def sentences(text):
    """The sentences of paragraphs and list items; headings, tables and code are none."""
    lines = [line for line in without_targets(without_code(text)).splitlines() if not re.match(r" *(\||#|<)", line)]
    paragraphs = re.split(r"\n\s*\n|\n(?= *(?:[-*]|\d+\.) )", "\n".join(lines))
    plain = [re.sub(r"^\s*(?:[-*]|\d+\.) ", "", paragraph) for paragraph in paragraphs]
    found = [part.split() for paragraph in plain for part in re.split(r"[.!?][)*_]*(?:\s|$)", paragraph)]
    return [words for words in found if words]


@each_page
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        assert linked.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(linked), target


@each_page
def test_lines_fit(page):
    lines = without_targets(without_code(page.read_text())).splitlines()
    assert not [line for line in lines if len(line) > LINE and not line.lstrip().startswith("|")]


@each_page
def test_sentences_are_short(page):
    found = sentences(page.read_text())
    average = sum(map(len, found)) / max(1, len(found))
    assert average < SENTENCE, f"{average:.1f} words, the longest: {' '.join(max(found, key=len))}"


def test_what_counts_as_a_sentence():
    text = "# Title\n\nOne two, `three four`. [Five](six.md) seven:\n\n- eight\n- nine\n\n| no | no |\n\n```\nno\n```\n"
    assert sentences(text) == [["One", "two,", "code"], ["Five", "seven:"], ["eight"], ["nine"]]


SITE = pytest.mark.needs("sphinx", "furo", "myst_parser")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site as one builds it; a warning ends it."""
    output = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-E", "-b", "html", "docs", str(output)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return output


@SITE
@pytest.mark.slow
def test_the_site_has_the_api_and_every_page(site):
    api = (site / "api.html").read_text()
    text = html.unescape(re.sub(r"<[^>]+>", "", api))
    (signature,) = re.findall(r"fcn_jax\.load\((.*?)\)\s*→", text, re.S)
    for argument in inspect.signature(fcn_jax.load).parameters:
        assert argument in signature
    for name in ("fcn_jax.metrics.scores", "fcn_jax.models.spec.ModelSpec", "fcn_jax.data.datasets.open_split"):
        assert f'id="{name}"' in api
    for page in PAGES:
        inside = page.relative_to(ROOT / "docs") if page.parent == ROOT / "docs" else page.relative_to(ROOT)
        copy = site / ("" if page.parent == ROOT / "docs" else "repository") / inside.with_suffix(".html")
        assert copy.exists(), page
    assert (site / "repository/notebooks/fcn_jax.html").read_text().count("<img") > 5


@SITE
@pytest.mark.slow
def test_the_site_asks_nobody_else(site):
    outside = r"""(?:src|srcset)=["'](?:https?:)?//|<link[^>]+href=["'](?:https?:)?//"""
    for page in site.rglob("*.html"):
        assert not re.search(outside, page.read_text()), page
    for style in site.rglob("*.css"):
        assert not re.search(r"@import|url\(\s*[\"']?(?:https?:)?//", style.read_text()), style
