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


def test_sets(rewrites: Iterable[Rewrite], limit: int = 0) -> pd.DataFrame:
    """The questions of the test split: test_set, dialogue_id, emotion, question, prompt, soothing, comfort_only.

    `limit` > 0 keeps so many dialogues of each set: those with the smallest ids, an even sample, since ids are hashes.
    `soothing` is the rewrite's answer, `comfort_only` that without knowledge (nan where the dialogue has none).
    Raises MedComfortError if the test split is empty or `limit` is negative.
    """
    if limit < 0:
        raise MedComfortError(f"limit must be 0 (all questions) or more, not {limit}.")
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
    found = _trained(models_dir, trained) if trained or not served else []
    rows = [("base", "base", None, base, None)]
    folders = {(m["model"], m["seed"]): Path(m["path"]).name for m in found}
    for m in found:
        start = Path(m["start"]).name if "start" in m else ""
        before = next((k[0] for k, folder in folders.items() if folder == start and k[1] == m["seed"]), None)
        rows.append((m["model"], m["method"], m["seed"], m["path"], before))
    rows += [(name.split(SERVED)[0], "served", None, name, None) for name in served]
    table = pd.DataFrame(rows, columns=["model", "method", "seed", "path", "start"])
    return table.astype({"seed": "Int64"})


def _trained(models_dir: str | Path, names: Sequence[str]) -> list[dict]:
    folder = existing(models_dir, "models_dir")
    saved = folder.glob("[!.]*/training.json")  # a killed run may have left a hidden, half-written folder
    found = [read_json(notes, "models_dir") | {"path": str(notes.parent)} for notes in saved]
    if not found:
        raise MedComfortError(f"models_dir: {tidy(folder)} holds no model of 02_finetune (MODEL-seedN/training.json).")
    known = list(dict.fromkeys(m["model"] for m in found))
    unknown = next((name for name in names if name not in known), None)
    if unknown:
        raise MedComfortError(f"models: {tidy(folder)} holds no model {unknown!r}{meant(unknown, known)}")
    order = {name: place for place, name in enumerate(("sft", "dpo", "kto"))}
    found.sort(key=lambda m: (order.get(m["model"], len(order)), m["model"], m["seed"]))
    return [m for m in found if not names or m["model"] in names]


def baseline(asked: pd.DataFrame, sources: Mapping[str, Dialogue], name: str) -> pd.DataFrame:
    """Replies that nobody generated: `original`, the plain source answer, or `template`, what training imitates.

    The rewrite soothes emotional questions only; a neutral question gets the plain answer.
    """
    plain = asked["dialogue_id"].map(lambda key: sources[key].answer)
    reply = plain if name == "original" else asked["soothing"].where(asked["test_set"] == "emotional", plain)
    return _given(asked, reply, name, "reference")


def _given(asked: pd.DataFrame, reply: pd.Series | str, model: str, method: str) -> pd.DataFrame:
    nothing = {"tokens": float("nan"), "ended": float("nan"), "seed": pd.NA}
    return asked.assign(reply=reply, **nothing, model=model, method=method)


def broken(asked: pd.DataFrame, sources: Mapping[str, Dialogue]) -> pd.DataFrame:
    """The replies of five broken models, shaped as those of `baseline`.

    `comfort-only` (the rewrite without knowledge), `knowledge-only` (the source answer), `same-paragraph` (one soothing
    paragraph for all), `echo` (the question), `thrice` (the soothing answer three times over).
    """
    plain = asked["dialogue_id"].map(lambda key: sources[key].answer)
    soothing = asked["soothing"].where(asked["test_set"] == "emotional", plain)
    replies = {
        "comfort-only": asked["comfort_only"].fillna(PARAGRAPH),
        "knowledge-only": plain,
        "same-paragraph": PARAGRAPH,
        "echo": asked["question"],
        "thrice": soothing.map(lambda text: "\n\n".join([text] * 3)),
    }
    made = [_given(asked, reply, name, "adversarial") for name, reply in replies.items()]
    return pd.concat(made, ignore_index=True)


def expectations(knowledge: str) -> list[tuple[str, str, str, float, str]]:
    """(broken model, metric, at most or at least, share, reference): what the mean must be, of the reference's mean.

    The share itself is the bound where no reference is named. `knowledge`: the measure of it.
    """
    return [
        ("comfort-only", "comfort", "at least", MUCH, "template"),
        ("comfort-only", knowledge, "at most", LITTLE, "original"),
        ("comfort-only", "red_flags_kept", "at most", LITTLE, "original"),
        ("knowledge-only", "comfort", "at most", LITTLE, "template"),
        ("knowledge-only", knowledge, "at least", 0.8, ""),
        # Its comfort may be as high as any: that it never listens shows over many replies only.
        ("same-paragraph", knowledge, "at most", LITTLE, "original"),
        ("same-paragraph", "variety", "at most", LITTLE, "template"),
        ("echo", "comfort", "at most", LITTLE, "template"),
        ("echo", knowledge, "at most", LITTLE, "original"),
        ("thrice", "comfort", "at most", 1.0, "template"),
        ("thrice", "repetition", "at least", 0.5, ""),
        ("thrice", "length_ratio", "at least", 2.5, "template"),
    ]


def found_out(scores: pd.DataFrame, knowledge: str) -> pd.DataFrame:
    """Whether each broken model came out as it should: columns model, metric, expected, value, bound, holds.

    Only emotional questions count: a neutral one leaves no comfort to lose. `scores`: those of `broken` and of the
    baselines, a row a reply with its text. A metric that does not apply to the corpus has no row. Raises
    MedComfortError if a model, or the measure of knowledge, is missing.
    """
    chosen, needed, rows = scores[scores["test_set"] == "emotional"], expectations(knowledge), []
    by_dialogue = chosen.groupby(["model", "dialogue_id"], sort=False).mean(numeric_only=True)
    means = by_dialogue.groupby("model", sort=False).mean()
    means["variety"] = chosen.groupby("model")["reply"].agg(lambda texts: texts.nunique() / len(texts))
    missing = {name for model, *_, against in needed for name in (model, against) if name} - set(means.index)
    if missing:
        raise MedComfortError(f"the scores hold no replies to emotional questions of {', '.join(sorted(missing))}.")
    if knowledge not in means or means[knowledge].isna().all():
        raise MedComfortError(f"the scores hold no {knowledge}: name the measure of knowledge that applies.")
    for model, metric, side, share, against in needed:
        if metric not in means or means[metric].isna().all():
            continue
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


def side_by_side(replies: pd.DataFrame) -> str:
    """Markdown of one question and the replies of several models to it."""
    return "\n\n".join(
        [f"> {replies['question'].iloc[0]}", *(f"**{row.model}**: {row.reply}" for row in replies.itertuples())]
    )
