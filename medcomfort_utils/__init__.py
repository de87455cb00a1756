"""MedComfort: what the notebooks share. One subpackage a notebook: rewrite, finetune, evaluate, draw."""

__version__ = "0.1.0"
