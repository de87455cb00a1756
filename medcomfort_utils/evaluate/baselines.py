"""What is asked, and who answers: the test sets, the models, and baselines that nobody trained, honest and broken.

The broken ones please one measure each, and the measures together must find them out. One that they do not find out is
not among them: a soothing paragraph put before the plain answer. It takes a judge, or a reader, to see that it says the
same to everybody.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from medcomfort_utils.paths import MedComfortError, existing, meant, read_json, tidy
from medcomfort_utils.records import Dialogue, Rewrite

TEST_SETS = {"emotional": "emotional", "original": "neutral"}  # a rewrite's condition -> the test set it belongs to
SERVED = "@http"  # NAME@http://... in the list of models is one behind an OpenAI-compatible server
PARAGRAPH = (
    "I am so sorry that you are going through this. I understand how frightening it must feel, and your worry makes "
    "sense to me. You are not alone with it. What weighs on you most right now?"
)
LITTLE, MUCH = 0.25, 0.9  # shares of the reference's score that count as low and as high (our choice)
# What the mean of a broken model must be: at most or at least so much of a reference's, or of 1 where none is named.
EXPECTED = [
    ("comfort-only", "comfort", "at least", MUCH, "template"),
    ("comfort-only", "knowledge", "at most", LITTLE, "original"),
    ("comfort-only", "red_flags_kept", "at most", LITTLE, "original"),
    ("knowledge-only", "comfort", "at most", LITTLE, "template"),
    ("knowledge-only", "knowledge", "at least", 0.8, ""),
    # Its comfort may be as high as any: that it never listens shows over many replies only.
    ("same-paragraph", "knowledge", "at most", LITTLE, "original"),
    ("same-paragraph", "variety", "at most", LITTLE, "template"),
    ("echo", "comfort", "at most", LITTLE, "template"),
    ("echo", "knowledge", "at most", LITTLE, "original"),
    ("thrice", "comfort", "at most", 1.0, "template"),
    ("thrice", "repetition", "at least", 0.5, ""),
    ("thrice", "length_ratio", "at least", 2.5, "template"),
]


def test_sets(rewrites: Iterable[Rewrite], limit: int = 0) -> pd.DataFrame:
    """The questions of the test split: test_set, dialogue_id, emotion, question, prompt, soothing, comfort_only.

    `limit` > 0 keeps so many dialogues of each set: those with the smallest ids, an even sample, since ids are hashes.
    `soothing` is the rewrite's answer, `comfort_only` that without knowledge (nan where the dialogue has none).
    Raises MedComfortError if the test split is empty.
    """
    tested = [r for r in rewrites if r.split == "test"]
    comfort = {r.dialogue_id: r.answer for r in tested if r.condition == "comfort_only"}
    asked = [
        (TEST_SETS[r.condition], r.dialogue_id, r.emotion, r.question, r.prompt, r.answer, comfort.get(r.dialogue_id))
        for r in tested
        if r.condition in TEST_SETS
    ]
    columns = ["test_set", "dialogue_id", "emotion", "question", "prompt", "soothing", "comfort_only"]
    table = pd.DataFrame(asked, columns=columns)
    if set(table["test_set"]) != set(TEST_SETS.values()):
        raise MedComfortError(
            "The rewrites hold no emotional and neutral question in the test split; rewrite more dialogues."
        )
    kept = sorted(set(table["dialogue_id"]))[: limit or None]
    table = table[table["dialogue_id"].isin(kept)]
    return table.sort_values("test_set", kind="stable").reset_index(drop=True)


def find_models(models_dir: str | Path, base: str, names: Sequence[str] = ()) -> pd.DataFrame:
    """The base and what 02_finetune left, or those of it that are named: columns model, method, seed, path, start.

    Order: base, then SFT, DPO, KTO and all others by name, each by seed. `seed` is null for the base. `start`: the
    model whose seed of the same number this training went on from, else null. A name such as
    `llama@http://127.0.0.1:8000/v1` is a model behind a server. Raises MedComfortError if there is none of a name.
    """
    served = [name for name in names if SERVED in name]
    trained = [name for name in names if SERVED not in name]
    rows = [("base", "base", None, base, None)]
    if trained or not served:
        folder = existing(models_dir, "models_dir")
        saved = folder.glob("[!.]*/training.json")  # a killed run may have left a hidden, half-written folder
        found = {notes.parent.name: read_json(notes, "models_dir") | {"path": str(notes.parent)} for notes in saved}
        known = dict.fromkeys(m["model"] for m in found.values())
        if not known:
            raise MedComfortError(f"models_dir: {tidy(folder)} has no model of 02_finetune (NAME-seedN/training.json).")
        if unknown := [name for name in trained if name not in known]:
            raise MedComfortError(f"models: {tidy(folder)} has no model {unknown[0]!r}{meant(unknown[0], known)}")
        order = {name: place for place, name in enumerate(("sft", "dpo", "kto"))}
        for m in sorted(found.values(), key=lambda m: (order.get(m["model"], len(order)), m["model"], m["seed"])):
            start = found.get(Path(m.get("start", "")).name, {})
            before = start["model"] if start.get("seed") == m["seed"] else None
            if not trained or m["model"] in trained:
                rows.append((m["model"], m["method"], m["seed"], m["path"], before))
    rows += [(name.split(SERVED)[0], "served", None, name, None) for name in served]
    return pd.DataFrame(rows, columns=["model", "method", "seed", "path", "start"]).astype({"seed": "Int64"})


def answers(asked: pd.DataFrame, sources: Mapping[str, Dialogue]) -> pd.DataFrame:
    """Replies that nobody generated, by `method`.

    `reference`: `original`, the plain source answer, and `template`, the rewrite that training imitates (it soothes
    emotional questions only; a neutral one gets the plain answer). `adversarial`: the broken models `comfort-only` (the
    rewrite without knowledge), `knowledge-only` (the source answer), `same-paragraph` (one soothing paragraph for all),
    `echo` (the question), `thrice` (the soothing answer three times over).
    """
    plain = asked["dialogue_id"].map(lambda key: sources[key].answer)
    soothing = asked["soothing"].where(asked["test_set"] == "emotional", plain)
    made = {"reference": {"original": plain, "template": soothing}}
    made["adversarial"] = {
        "comfort-only": asked["comfort_only"].fillna(PARAGRAPH),
        "knowledge-only": plain,
        "same-paragraph": PARAGRAPH,
        "echo": asked["question"],
        "thrice": soothing.map(lambda text: "\n\n".join([text] * 3)),
    }
    return pd.concat(
        [asked.assign(reply=reply, model=model, method=method)
         for method, replies in made.items() for model, reply in replies.items()], ignore_index=True,
    )  # fmt: skip


def found_out(scores: pd.DataFrame, knowledge: str) -> pd.DataFrame:
    """Whether each broken model came out as it should: columns model, metric, expected, value, bound, holds.

    Only emotional questions count: a neutral one leaves no comfort to lose. `scores`: those of `answers`, a row a reply
    with its text; `knowledge`: the measure of it that applies. A metric that does not apply has no row.
    """
    asked = scores[scores["test_set"] == "emotional"]
    means = asked.groupby(["model", "dialogue_id"]).mean(numeric_only=True).groupby("model").mean()
    means["variety"] = asked.groupby("model")["reply"].agg(lambda texts: texts.nunique() / len(texts))
    rows = []
    for model, name, side, share, against in EXPECTED:
        metric = knowledge if name == "knowledge" else name
        if metric in means and means[metric].notna().any():
            value, bound = means.at[model, metric], share * (means.at[against, metric] if against else 1.0)
            holds = value <= bound + 1e-9 if side == "at most" else value >= bound - 1e-9
            expected = f"{side} {share:g} of {against}" if against else f"{side} {share:g}"
            rows.append([model, metric, expected, float(value), float(bound), bool(holds)])
    return pd.DataFrame(rows, columns=["model", "metric", "expected", "value", "bound", "holds"])


def histories(models: pd.DataFrame) -> pd.DataFrame:
    """The training curves of all tuned models: columns model, method, seed, step, metric, value."""
    columns = ["model", "method", "seed", "step", "metric", "value"]
    curves = [
        pd.read_csv(Path(row.path) / "history.csv").assign(model=row.model, method=row.method, seed=row.seed)
        for row in models[models["seed"].notna()].itertuples()
    ]
    return pd.concat(curves, ignore_index=True)[columns] if curves else pd.DataFrame(columns=columns)
