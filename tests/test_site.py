"""The site: built offline from what is committed, every link and image there, readable on a telephone."""

import re
import runpy
import subprocess
import sys
from urllib.parse import unquote, urlsplit

import pytest
import shown
from browser import CHROMIUM, MISSING, browser
from lxml import html

from medcomfort_utils.paths import NOTEBOOKS, ROOT

PAGES = ("index", "EXPERIMENTS", "docs/paper", "docs/architecture", "docs/tutorial",
         "data/README", "data/medcomfort_mini/README", "data/nano_base/README",
         *(f"notebooks/{path.stem}" for path in sorted(NOTEBOOKS.glob("0*.ipynb"))))  # fmt: skip
TELEPHONE = 390  # CSS pixels


def build(out):
    """What `make site` runs, with the doctrees beside the site."""
    command = [sys.executable, "-m", "sphinx", "-q", "-b", "html", "-c", "docs", "-d", f"{out}-trees", ".", str(out)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of a site built anew."""
    out = tmp_path_factory.mktemp("site") / "html"
    ended = build(out)
    assert ended.returncode == 0 and not ended.stderr, ended.stderr
    return out


@pytest.fixture(scope="module")
def trees(site):
    """Page -> its parsed HTML."""
    return {path.relative_to(site): html.parse(path).getroot() for path in site.rglob("*.html")}


@pytest.fixture(scope="module")
def address(site):
    """The site on a server of this machine alone."""
    with shown.site(site) as opened:
        yield opened


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    if not CHROMIUM:
        pytest.skip(MISSING)
    with browser(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


def test_every_part_has_its_page(site, trees):
    assert {str(name.with_suffix("")) for name in trees} >= set(PAGES)
    menu = trees[next(name for name in trees if name.name == "index.html")].xpath("//*[@class='sidebar-tree']//a/@href")
    assert {f"{name}.html" for name in PAGES[1:]} <= set(menu)
    assert (site / "searchindex.js").exists()


def test_links_and_images_are_there(site, trees):
    lost = []
    for name, tree in trees.items():
        for target in tree.xpath("//a/@href | //img/@src | //link/@href | //script/@src"):
            parts = urlsplit(target)
            if parts.scheme or not parts.path:
                continue
            if not (site / name.parent / unquote(parts.path)).exists():
                lost.append(f"{name}: {target}")
    assert lost == []


def test_anchors_are_there(site, trees):
    lost = []
    for name, tree in trees.items():
        for target in tree.xpath("//article//a/@href"):
            parts = urlsplit(target)
            if parts.scheme or not parts.fragment:
                continue
            aim = (site / name.parent / unquote(parts.path)).resolve() if parts.path else (site / name).resolve()
            other = trees.get(aim.relative_to(site.resolve()))
            if other is None or not other.xpath("//*[@id=$id]", id=unquote(parts.fragment)):
                lost.append(f"{name}: {target}")
    assert lost == []


def test_nothing_is_loaded_from_elsewhere(trees):
    loaded = [url for tree in trees.values() for url in tree.xpath("//script/@src | //img/@src | //iframe/@src")]
    loaded += [url for tree in trees.values() for url in tree.xpath("//link[@rel='stylesheet']/@href")]
    assert loaded
    assert [url for url in loaded if urlsplit(url).netloc] == []


def test_notebooks_show_their_outputs_and_formulas(trees):
    of = {name.stem: tree for name, tree in trees.items() if name.parts[0] == "notebooks"}
    assert len(of["04_figures"].xpath("//*[contains(@class, 'cell_output')]//img")) >= 5
    for tree in of.values():
        assert tree.xpath("//*[contains(@class, 'cell_output')]")
    assert of["02_finetune"].xpath("//math")
    assert not [name for name, tree in of.items() if "\\mathcal" in "".join(tree.xpath("//article//text()"))]


def test_every_picture_says_what_it_shows(trees):
    """A notebook's picture by its cell's metadata (mystnb, image, alt), a page's in its Markdown."""
    silent = [f"{name}: {image.get('src')}" for name, tree in trees.items() for image in tree.xpath("//article//img")
              if len(image.get("alt", "")) < 20 or image.get("alt") == image.get("src")]  # fmt: skip
    assert silent == []


def test_the_picture_of_imports_is_drawn(trees):
    [drawn] = next(tree for name, tree in trees.items() if name.stem == "architecture").xpath("//article//svg[@role]")
    told = re.findall(r"^ +(\w+) --> (\w+)$", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE)
    assert set(drawn.xpath(".//text/text()")) == {name for edge in told for name in edge}
    assert len(drawn.xpath("./path")) == len(told)
    assert drawn.get("aria-label").count(" to ") == len(told)


def test_arrows_in_a_circle_cannot_be_drawn():
    svg = runpy.run_path(str(ROOT / "docs/diagram.py"))["svg"]
    assert svg("a --> b\nb --> c").count("<rect") == 3
    with pytest.raises(ValueError, match="c --> a --> b --> c|a --> b --> c --> a|b --> c --> a --> b"):
        svg("a --> b\nb --> c\nc --> a")


def test_the_paper_can_be_had(site, trees):
    tree = next(tree for name, tree in trees.items() if str(name) == "docs/paper.html")
    link = next(href for href in tree.xpath("//article//a/@href") if href.endswith("main.pdf"))
    assert (site / "docs" / link).read_bytes() == (ROOT / "paper" / "main.pdf").read_bytes()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_shown_without_fault_on_a_telephone(page, address, name):
    page.errors.clear()
    page.open(f"{address}/{name}.html", width=TELEPHONE, height=844)
    assert page.evaluate("document.querySelector('article').innerText.length") > 200
    assert page.evaluate("[...document.images].filter(i => !i.naturalWidth).map(i => i.src)") == []
    assert page.evaluate("document.documentElement.scrollWidth") <= TELEPHONE
    assert page.errors == []


def test_what_is_asked_for_is_found(page, address):
    page.errors.clear()
    page.open(f"{address}/search.html?q=reward+margin")
    found = """new Promise(done => { let tries = 0; const wait = setInterval(() => {
        const links = [...document.querySelectorAll('#search-results li a')].map(a => a.href);
        if (links.length || ++tries == 400) { clearInterval(wait); done(links); } }, 50) })"""
    assert any("/notebooks/02_finetune.html" in link for link in page.evaluate(found))
    assert page.errors == []


def test_the_browser_notices_what_is_wrong(page, address, site):
    """The checks above can fail: a page with an error, a lost image and a line that is too wide."""
    (site / "broken.html").write_text("<article><img src='lost.png'><p style='width:900px'>x</p></article>"
                                      "<script>nothing()</script>")  # fmt: skip
    page.errors.clear()
    page.open(f"{address}/broken.html", width=TELEPHONE)
    assert page.evaluate("document.documentElement.scrollWidth") > TELEPHONE
    assert page.evaluate("[...document.images].filter(i => !i.naturalWidth).length") == 1
    assert len(page.errors) >= 2
