"""One look for all figures: sizes, colours, names, captions, and files that are the same bytes every time."""

import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from medcomfort_utils.paths import replacing, resolve

COLUMN = 84 / 25.4  # inches: one column of a two-column page
PAGE = 174 / 25.4  # inches: both columns
INK, FAINT = "#333333", "#6e6e6e"

# Okabe & Ito's colours, which colour-blind readers tell apart; each model has its marker too, for print without colour.
_COLOURS = {"base": "#6e6e6e", "sft": "#0072b2", "dpo": "#d55e00", "kto": "#009e73", "original": INK, "template": INK}
_MARKERS = {"base": "o", "sft": "s", "dpo": "^", "kto": "D", "original": "P", "template": "v"}
_LABELS = {
    "base": "Base",
    "original": "Plain answer",
    "template": "Template rewrite",
    "comfort": "Comfort",
    "held_out_facts_kept": "Facts of held-out conditions kept",
    "rouge_l": "ROUGE-L",
    "bleu": "BLEU",
    "rewards/margins": "Reward margin",
    "rewards/accuracies": "Reward accuracy",
    "mean_token_accuracy": "Token accuracy",
}
_ACRONYMS = {"sft": "SFT", "dpo": "DPO", "kto": "KTO"}


def theme() -> None:
    """Set the look; fonts are embedded as TrueType (type 42), as publishers ask."""
    sizes = {"font.size": 7, "axes.labelsize": 7, "axes.titlesize": 7.5, "legend.fontsize": 6.5}
    ticks = {"xtick.labelsize": 6.5, "ytick.labelsize": 6.5, "xtick.major.size": 2.5, "ytick.major.size": 2.5}
    lines = {"axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6, "lines.linewidth": 1.0}
    ink = {"text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK}
    plain = {"axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left", "figure.dpi": 150}
    files = {"pdf.fonttype": 42, "ps.fonttype": 42, "savefig.dpi": 200}
    sns.set_theme(style="ticks", font="DejaVu Sans", rc=sizes | ticks | lines | ink | plain | files)


def colour(model: str) -> str:
    """The model's fixed colour; a trial such as `dpo-from-base` has a lighter tint of its method's."""
    if model in _COLOURS:
        return _COLOURS[model]
    shade = np.array(to_rgb(_COLOURS.get(model.split("-")[0], FAINT)))
    return to_hex(0.45 + 0.55 * shade)


def marker(model: str) -> str:
    """The model's fixed marker; a cross for every trial."""
    return _MARKERS.get(model, "X")


def label(name: str) -> str:
    """What a reader calls a model, metric, gate or condition: `facts_kept` is "Facts kept"."""
    if name in _LABELS:
        return _LABELS[name]
    words = " ".join(_ACRONYMS.get(word, word) for word in name.replace("_", "-").replace("/", "-").split("-"))
    return words[:1].upper() + words[1:]


def within(name: str) -> str:
    """The label as it stands within a sentence: "facts kept", but "ROUGE-L"."""
    text = label(name)
    return text if text[:2].isupper() else text[:1].lower() + text[1:]


def limits(run: dict) -> str:
    """A sentence on what a run in the synthetic clinic, or with the nano model, cannot show; empty for any other."""
    tiny = "a model of about 2 million parameters" if "nano_base" in str(run["base_model"]) else ""
    world = "a made-up world" if run["corpus"] == "clinic" else ""
    if not world and not tiny:
        return ""
    told = " and ".join(filter(None, (world, tiny)))
    return f"{told[:1].upper()}{told[1:]}: it shows the mechanism, not the paper's numbers."


def figure(width: float, height: float, rows: int = 1, columns: int = 1, **kwargs) -> tuple[Figure, np.ndarray]:
    """A themed figure (sizes in inches) and its axes as an array [rows, columns]."""
    theme()
    return plt.subplots(rows, columns, figsize=(width, height), layout="constrained", squeeze=False, **kwargs)


def caption(drawn: Figure, run: dict, note: str = "") -> None:
    """A small line below the figure: `note`, what the run stands on, and its `limits`."""
    source = "" if run["corpus"] == "clinic" else f"Corpus: {run['corpus']}; model: {run['base_model']}."
    told = " ".join(filter(None, (note, source, limits(run))))
    text = textwrap.fill(told, width=int(drawn.get_figwidth() * 24), break_on_hyphens=False)
    drawn.supxlabel(text, fontsize=5.5, color=FAINT, x=0.01, ha="left", linespacing=1.3)


def save(drawn: Figure, name: str, folder: str | Path) -> list[Path]:
    """Write NAME.pdf (vector) and NAME.png (200 dpi); no dates are written: drawn anew, it is the same bytes."""
    written = []
    for suffix, metadata in (("pdf", {"CreationDate": None}), ("png", {"Software": None})):
        path = resolve(folder) / f"{name}.{suffix}"
        with replacing(path) as temporary, plt.rc_context({"pdf.fonttype": 42}):
            drawn.savefig(temporary, dpi=200, metadata=metadata)
        written.append(path)
    return written
