"""The site: built offline from what is committed; every page, link and picture is there, and nothing from elsewhere."""

import subprocess
import sys
from urllib.parse import unquote, urlsplit

import pytest
from lxml import html

from medcomfort_utils.paths import NOTEBOOKS, ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of a site built anew, as `make site` does, with the doctrees beside it."""
    out = tmp_path_factory.mktemp("site") / "html"
    command = [sys.executable, "-m", "sphinx", "-q", "-b", "html", "-c", "docs", "-d", f"{out}-trees", ".", str(out)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0 and not ended.stderr, ended.stderr
    return out


@pytest.fixture(scope="module")
def trees(site):
    """Page -> its parsed HTML."""
    return {path.resolve(): html.parse(path).getroot() for path in site.rglob("*.html")}


def test_every_part_has_its_page_and_outputs(site, trees):
    pages = [*ROOT.glob("docs/*.md"), *ROOT.glob("data/*/README.md"), *NOTEBOOKS.glob("0*.ipynb"), ROOT / "index.md"]
    assert not {site / page.relative_to(ROOT).with_suffix(".html") for page in pages} - trees.keys()
    assert trees[site / "notebooks/02_finetune.html"].xpath("//math")
    figures = trees[site / "notebooks/04_figures.html"].xpath("//*[contains(@class, 'cell_output')]//img")
    assert len(figures) >= 8
    pictures = [image for tree in trees.values() for image in tree.xpath("//article//img")]
    assert [i.get("src") for i in pictures if len(i.get("alt", "")) < 20 or i.get("alt") == i.get("src")] == []


def test_links_pictures_and_anchors_are_there(trees):
    lost, elsewhere = [], []
    for page, tree in trees.items():
        elsewhere += [url for url in tree.xpath("//script/@src | //img/@src | //link/@href") if urlsplit(url).netloc]
        for target in tree.xpath("//a/@href | //img/@src | //link/@href | //script/@src"):
            parts = urlsplit(target)
            aim = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            found = parts.scheme or aim.exists()
            if found and parts.fragment and aim in trees and tree.xpath("//article//a[@href=$it]", it=target):
                found = trees[aim].xpath("//*[@id=$id]", id=unquote(parts.fragment))
            lost += [] if found else [f"{page.name}: {target}"]
    assert lost == [] and elsewhere == []
