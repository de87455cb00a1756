"""The site: README, notebooks with their outputs, cards, log and paper. `make site` builds it offline.

The repository itself is the source folder, so that a page's relative links hold on the site as they do on GitHub.
"""

import shutil
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx import addnodes

project = "MedComfort"
author = copyright = "MedComfort contributors"
root_doc = "README"
include_patterns = ["*.md", "notebooks/*.ipynb", "docs/*.md", "data/*.md", "data/**/*.md"]
extensions = ["myst_nb"]
nb_execution_mode = "off"  # the committed outputs are shown; nbval holds them true
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
# Cells of a notebook begin at any level; a language that Pygments does not know stays plain.
suppress_warnings = ["myst.header", "misc.highlighting_failure"]
html_theme = "furo"
html_title = "MedComfort"
html_static_path = ["style"]
html_css_files = ["site.css"]
html_favicon = "style/icon.svg"
html_copy_source = False
html_math_renderer = "mathml"  # drawn by the browser itself: no script from elsewhere

# README.md is written for GitHub, which knows no table of contents: the site adds it.
CONTENTS = """
```{toctree}
:hidden:
:glob:
:caption: Notebooks

notebooks/*
```

```{toctree}
:hidden:
:glob:
:caption: Paper and guides

docs/*
```

```{toctree}
:hidden:
:glob:
:caption: Data, model, log

data/README
data/*/README
data/*/GUIDE
data/*/models/*/README
EXPERIMENTS
C[HO]*
```
"""


def add_contents(app, name, source):
    """Put the table of contents below the page that the site opens with."""
    if name == root_doc:
        source[0] += CONTENTS


def leave_as_text(app, tree):
    """A link to a folder of the repository, which is no page here, stays as its text."""
    for link in list(tree.findall(addnodes.pending_xref)):
        if (Path(tree["source"]).parent / link["reftarget"]).is_dir():
            link.replace_self(link.children)


def copy_index(app, error):
    """Browsers look for index.html: the first page under that name too."""
    if not error:
        shutil.copyfile(Path(app.outdir) / "README.html", Path(app.outdir) / "index.html")


def visit_math(self, node):
    r"""A formula as MathML, by docutils, which lacks \big and \dots and sets \log too tight."""
    formula, block = node.astext(), isinstance(node, nodes.math_block)
    for name, known in ((r"\Big", ""), (r"\big", ""), (r"\dots", r"\ldots"), (r"\log", r"\log\,")):
        formula = formula.replace(name, known)
    formula = tex2mathml(formula, as_block=block)
    self.body.append(f'<div class="math">{formula}</div>' if block else formula)
    raise nodes.SkipNode


def setup(app):
    """What Sphinx calls: the steps above at their moments."""
    app.connect("source-read", add_contents)
    app.connect("doctree-read", leave_as_text)
    app.connect("build-finished", copy_index)
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))
