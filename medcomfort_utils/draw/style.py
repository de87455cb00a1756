"""One look for all figures: sizes, colours, names, fonts, notes, and files that are the same bytes every time."""

import textwrap
from functools import cache
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib import font_manager
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from medcomfort_utils.paths import replacing, resolve

COLUMN = 84 / 25.4  # inches: one column of a two-column page
PAGE = 174 / 25.4  # inches: both columns
INK, FAINT, GRID = "#333333", "#6e6e6e", "#e6e6e6"

# Okabe & Ito's colours, which colour-blind readers tell apart; each model has its marker too, for print without colour.
_LOOKS = {"base": ("#6e6e6e", "o"), "sft": ("#0072b2", "s"), "sft-more": ("#cc79a7", "h"), "dpo": ("#d55e00", "^"),
          "kto": ("#009e73", "D"), "original": (INK, "P"), "template": (INK, "v"), "rewrite": (INK, "v")}  # fmt: skip
_LABELS = {
    "sft-more": "SFT continued",
    "original": "Plain answer",
    "template": "Rewrite",  # by whichever backend
    "held_out_facts_kept": "Facts of held-out conditions kept",
    "rouge_l": "ROUGE-L",
    "bleu": "BLEU",
    "rewards/margins": "Reward margin",
    "rewards/accuracies": "Reward accuracy",
    "mean_token_accuracy": "Token accuracy",
}
_ACRONYMS = {"sft": "SFT", "dpo": "DPO", "kto": "KTO"}
_SIZES = {"font.size": 7, "axes.labelsize": 7, "axes.titlesize": 7.5, "legend.fontsize": 6.5, "xtick.labelsize": 6.5,
          "ytick.labelsize": 6.5, "xtick.major.size": 2.5, "ytick.major.size": 2.5, "axes.linewidth": 0.6,
          "xtick.major.width": 0.6, "ytick.major.width": 0.6, "lines.linewidth": 1.0, "figure.dpi": 150}  # fmt: skip
_INK = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK)
_PLAIN = {"axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left", "legend.frameon": False}
# Names that people give are text, not formulas. TrueType (type 42) is embedded, as publishers ask.
_TEXT = {"text.parse_math": False, "pdf.fonttype": 42, "ps.fonttype": 42}
# Where the first font has no glyph; which of them a machine has does not change a figure that needs none.
_FONTS = ("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Micro Hei",
          "WenQuanYi Zen Hei", "PingFang SC", "Hiragino Sans GB", "Microsoft YaHei", "Arial Unicode MS")  # fmt: skip


@cache
def _fonts() -> dict[str, frozenset[int]]:
    """The fonts of this machine among `_FONTS`, and the characters that each can draw."""
    paths = {font.name: font.fname for font in font_manager.fontManager.ttflist if font.name in _FONTS}
    return {name: frozenset(font_manager.get_font(paths[name]).get_charmap()) for name in _FONTS if name in paths}


def readable(text: str) -> str:
    r"""The text with each character that no font here can draw as its number, `\u533b`, instead of an empty box."""
    known = frozenset("\n").union(map(chr, frozenset().union(*_fonts().values())))
    return "".join(c if c in known else c.encode("ascii", "backslashreplace").decode() for c in text)


def colour(model: str) -> str:
    """The model's fixed colour; a recipe such as `dpo-from-base` has a lighter tint of its method's."""
    if model in _LOOKS:
        return _LOOKS[model][0]
    shade = np.array(to_rgb(_LOOKS.get(model.split("-")[0], (FAINT,))[0]))
    return to_hex(0.45 + 0.55 * shade)


def marker(model: str) -> str:
    """The model's fixed marker; a cross for every other recipe."""
    return _LOOKS.get(model, ("", "X"))[1]


def label(name: str) -> str:
    """What a reader calls a model, metric, claim or condition: `facts_kept` is "Facts kept"."""
    if name in _LABELS:
        return _LABELS[name]
    words = " ".join(_ACRONYMS.get(word, word) for word in name.replace("_", "-").replace("/", "-").split("-"))
    return readable(words[:1].upper() + words[1:])


def within(name: str) -> str:
    """The label as it stands within a sentence: "facts kept", but "ROUGE-L"."""
    text = label(name)
    return text if text[:2].isupper() else text[:1].lower() + text[1:]


def figure(width: float, height: float, rows: int = 1, columns: int = 1, **kwargs) -> tuple[Figure, np.ndarray]:
    """A figure in this look (sizes in inches) and its axes as an array [rows, columns]."""
    sns.set_theme(style="ticks", font=list(_fonts()), rc=_SIZES | _INK | _PLAIN | _TEXT)
    return plt.subplots(rows, columns, figsize=(width, height), layout="constrained", squeeze=False, **kwargs)


def note(drawn: Figure, text: str) -> Figure:
    """A small line below the figure: how to read it; returns the figure."""
    text = textwrap.fill(readable(text), width=int(drawn.get_figwidth() * 24), break_on_hyphens=False)
    drawn.supxlabel(text, fontsize=5.5, color=FAINT, x=0.01, ha="left", linespacing=1.3)
    return drawn


def save(drawn: Figure, name: str, folder: str | Path) -> list[Path]:
    """Write NAME.pdf (vector) and NAME.png (200 dpi); no dates are written: drawn anew, it is the same bytes."""
    drawn.draw_without_rendering()  # a notebook shows it too, and the last digits of the layout hang on that
    written = []
    for suffix, metadata in (("pdf", {"CreationDate": None}), ("png", {"Software": None})):
        path = resolve(folder) / f"{name}.{suffix}"
        with replacing(path) as temporary, plt.rc_context(_TEXT):
            drawn.savefig(temporary, dpi=200, metadata=metadata)
        written.append(path)
    return written
