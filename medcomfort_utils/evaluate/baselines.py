"""What is asked, and who answers: the test sets, the models found on disk, and the baselines nobody trained."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from medcomfort_utils.paths import MedComfortError, existing, read_json, tidy
from medcomfort_utils.records import Dialogue, Rewrite

TEST_SETS = {"emotional": "emotional", "original": "neutral"}  # a rewrite's condition -> the test set it belongs to


def test_sets(rewrites: Iterable[Rewrite], limit: int = 0) -> pd.DataFrame:
    """The questions of the test split: columns test_set, dialogue_id, emotion, question, prompt, soothing.

    `limit` > 0 keeps so many dialogues of each set: those with the smallest ids, an even sample, since ids are hashes.
    `soothing` is the answer of the template rewrite.
    Raises MedComfortError if the test split is empty or `limit` is negative.
    """
    if limit < 0:
        raise MedComfortError(f"limit must be 0 (all questions) or more, not {limit}.")
    asked = [
        (TEST_SETS[r.condition], r.dialogue_id, r.emotion, r.question, r.prompt, r.answer)
        for r in rewrites
        if r.split == "test" and r.condition in TEST_SETS
    ]
    table = pd.DataFrame(asked, columns=["test_set", "dialogue_id", "emotion", "question", "prompt", "soothing"])
    if set(table["test_set"]) != set(TEST_SETS.values()):
        raise MedComfortError(
            "The rewrites hold no emotional and neutral question in the test split; rewrite more dialogues."
        )
    kept = sorted(set(table["dialogue_id"]))[: limit or None]
    table = table[table["dialogue_id"].isin(kept)]
    return table.sort_values("test_set", kind="stable").reset_index(drop=True)


def find_models(models_dir: str | Path, base: str) -> pd.DataFrame:
    """The base and every model that 02_finetune left: columns model, method, seed (null for the base), path.

    Order: base, then SFT, DPO, KTO and all others by name, each by seed.
    """
    folder = existing(models_dir, "models_dir")
    saved = folder.glob("[!.]*/training.json")  # a killed run may have left a hidden, half-written folder
    found = [read_json(notes, "models_dir") | {"path": str(notes.parent)} for notes in saved]
    if not found:
        raise MedComfortError(f"models_dir: {tidy(folder)} holds no model of 02_finetune (MODEL-seedN/training.json).")
    order = {name: place for place, name in enumerate(("sft", "dpo", "kto"))}
    found.sort(key=lambda m: (order.get(m["model"], len(order)), m["model"], m["seed"]))
    rows = [("base", "base", None, base)] + [(m["model"], m["method"], m["seed"], m["path"]) for m in found]
    table = pd.DataFrame(rows, columns=["model", "method", "seed", "path"])
    return table.astype({"seed": "Int64"})


def baseline(asked: pd.DataFrame, sources: Mapping[str, Dialogue], name: str) -> pd.DataFrame:
    """Replies that nobody generated: `original`, the plain source answer, or `template`, what training imitates.

    The template rewrite soothes emotional questions only; a neutral question gets the plain answer.
    """
    plain = asked["dialogue_id"].map(lambda key: sources[key].answer)
    reply = plain if name == "original" else asked["soothing"].where(asked["test_set"] == "emotional", plain)
    ended = {"reply": reply, "tokens": float("nan"), "ended": float("nan")}
    return asked.assign(**ended, model=name, method="reference", seed=pd.NA)


def histories(models: pd.DataFrame) -> pd.DataFrame:
    """The training curves of all tuned models: columns model, method, seed, step, metric, value."""
    curves = [
        pd.read_csv(Path(row.path) / "history.csv").assign(model=row.model, method=row.method, seed=row.seed)
        for row in models[models["seed"].notna()].itertuples()
    ]
    return pd.concat(curves, ignore_index=True)[["model", "method", "seed", "step", "metric", "value"]]


def side_by_side(replies: pd.DataFrame) -> str:
    """Markdown of one question and the replies of several models to it."""
    said = [f"**{row.model}**: {row.reply}" for row in replies.itertuples()]
    return "\n\n".join([f"> {replies['question'].iloc[0]}", *said])


def file_name(model: str, seed: int | None) -> str:
    """The name of a model's file of replies."""
    return f"{model}.jsonl" if pd.isna(seed) else f"{model}-seed{seed}.jsonl"
