"""The records, their three views, and the writing of files that a crash must not halve."""

import errno
import json
import os
from collections import Counter

import pandas as pd
import pytest
from conftest import turn, version
from pydantic import ValidationError

from medcomfort_utils import parquet, paths, records
from medcomfort_utils.paths import MedComfortError
from medcomfort_utils.records import Dialogue, Gate, Message, Rewrite

SOURCE = Dialogue(
    id="0123456789ab",
    source="hand",
    topic="lungs",
    messages=[
        Message(role="user", content="Ich huste. 咳嗽 🤒"),
        Message(role="assistant", content="Rest.\nDrink 2 l a day."),
    ],
    facts=["Rest.", "Drink 2 l a day."],
    red_flags=["Call an ambulance if you cough up blood."],
    split="train",
)


@pytest.fixture
def hand_made():
    """One dialogue with all its versions, and one whose emotional version no gate let through."""
    return [
        version("a", "original", "Q?", "Plain."),
        version("a", "emotional", "Q? Afraid.", "Soothing. Plain.", "fear"),
        version("a", "soothing_answer", "Q?", "Soothing. Plain.", "fear"),
        version("a", "comfort_only", "Q? Afraid.", "Soothing.", "fear"),
        version("b", "original", "R?", "Other."),
    ]


def test_records_survive_parquet(tmp_path):
    rewrite = version("a", "emotional", "Q?", "A.", "fear").model_copy(
        update={"gates": [Gate(name="numbers", passed=False, reason="2 l lost")]}
    )
    for kind, written in ((Dialogue, [SOURCE, SOURCE]), (Rewrite, [rewrite]), (Dialogue, []), (Rewrite, [])):
        path = parquet.write_records(tmp_path / "records.parquet", written, kind)
        assert parquet.read_records(path, kind) == written


def test_an_empty_file_has_the_schema_of_a_full_one(tmp_path):
    full = pd.read_parquet(parquet.write_records(tmp_path / "full.parquet", [SOURCE], Dialogue))
    empty = pd.read_parquet(parquet.write_records(tmp_path / "empty.parquet", [], Dialogue))
    assert list(empty.columns) == list(full.columns) == list(Dialogue.model_fields)


def test_question_answer_and_prompt_are_the_last_turns():
    earlier = turn("system", "Be kind.") + turn("user", "First?") + turn("assistant", "One.") + turn("user", "Second?")
    talk = Dialogue(id="x", source="hand", messages=earlier + turn("assistant", "Two."), split="train")
    assert (talk.question, talk.answer, talk.prompt) == ("Second?", "Two.", earlier)


@pytest.mark.parametrize("roles", [["user"], ["user", "user"], ["assistant", "user"], ["system", "assistant"]])
def test_a_conversation_without_question_or_answer_is_refused(roles):
    with pytest.raises(ValidationError):
        Dialogue(id="x", source="hand", messages=[turn(role, "Q?")[0] for role in roles], split="train")


def test_content_id_is_stable_and_tells_texts_and_roles_apart():
    assert records.content_id(turn("user", "Q?") + turn("assistant", "A.")) == "b7ea4bc2635f"
    texts = [turn("user", "ab"), turn("assistant", "ab"), turn("user", "a") + turn("user", "b"), turn("user", "b")]
    assert len({records.content_id(text) for text in texts}) == len(texts)


def test_splits_have_their_shares():
    found = Counter(records.split_of(f"source-{number}") for number in range(5000))
    assert found["test"] / 5000 == pytest.approx(0.15, abs=0.02)
    assert found["validation"] / 5000 == pytest.approx(0.05, abs=0.01)
    assert found["train"] == 5000 - found["test"] - found["validation"]


def test_every_rewrite_has_the_split_of_its_dialogue():
    from medcomfort_utils.rewrite import clinic, template

    dialogues = list(clinic.generate(6))
    splits = {d.id: d.split for d in dialogues}
    assert set(splits.values()) == {"train", "validation", "test"}
    assert all(r.split == splits[r.dialogue_id] for r in template.rewrite_all(dialogues, emotions=2))


def test_sft_view(hand_made):
    assert records.to_sft(hand_made) == [
        {"prompt": turn("user", "Q? Afraid."), "completion": turn("assistant", "Soothing. Plain.")},
        {"prompt": turn("user", "Q?"), "completion": turn("assistant", "Plain.")},
        {"prompt": turn("user", "R?"), "completion": turn("assistant", "Other.")},
    ]
    hollow = records.to_sft(hand_made, neutral_fraction=0, target="comfort_only")
    assert hollow == [{"prompt": turn("user", "Q? Afraid."), "completion": turn("assistant", "Soothing.")}]


def pair(question, chosen, rejected):
    answers = {"chosen": turn("assistant", chosen), "rejected": turn("assistant", rejected)}
    return {"prompt": turn("user", question), **answers}


PAIRS = {
    "original": pair("Q? Afraid.", "Soothing. Plain.", "Plain."),
    "comfort_only": pair("Q? Afraid.", "Soothing. Plain.", "Soothing."),
    "soothing_answer": pair("Q?", "Plain.", "Soothing. Plain."),
}


def test_preference_view(hand_made):
    assert records.to_preference(hand_made) == list(PAIRS.values())
    for name, expected in PAIRS.items():
        assert records.to_preference(hand_made, against=[name]) == [expected]
    assert records.to_preference(hand_made, neutral_fraction=0) == [PAIRS["original"], PAIRS["comfort_only"]]


def test_other_conditions_are_taught_alone(hand_made):
    asked = [turn("user", "Q?"), turn("user", "R?")]
    plain, soothing = [turn("assistant", text) for text in ("Plain.", "Other.")], turn("assistant", "Soothing. Plain.")
    assert records.to_sft(hand_made, neutral_fraction=0, target="original") == [
        {"prompt": question, "completion": answer} for question, answer in zip(asked, plain, strict=True)]  # fmt: skip
    assert records.to_sft(hand_made, neutral_fraction=0, target="soothing_answer") == [
        {"prompt": asked[0], "completion": soothing}]  # fmt: skip


@pytest.mark.parametrize(
    ("target", "against", "expected"),
    [
        ("original", ["soothing_answer", "comfort_only"], ["Soothing.", "Soothing. Plain."]),
        ("original", ["soothing_answer"], ["Soothing. Plain."]),
        ("soothing_answer", ["original", "comfort_only"], ["Plain.", "Soothing."]),
        ("emotional", ["original", "comfort_only", "soothing_answer"], ["Plain.", "Soothing."]),
    ],
)
def test_preference_view_of_each_condition(hand_made, target, against, expected):
    other = version("a", "comfort_only", "Q? Sad.", "Poor you.", "sadness")  # comfort for another emotion
    rows = records.to_preference([*hand_made, *[other] * (target != "original")], 0, 0, against, target)
    question, chosen = ("Q? Afraid." if target == "emotional" else "Q?"), "Soothing. Plain."
    assert rows == [pair(question, "Plain." if target == "original" else chosen, text) for text in expected]
    labels = [
        (r["completion"][0]["content"], r["label"]) for r in records.to_unpaired(hand_made, 0, 0, against, target)
    ]
    assert sorted(labels) == sorted([(rows[0]["chosen"][0]["content"], True), *((text, False) for text in expected)])


@pytest.mark.parametrize("target", ["original", "soothing_answer"])
def test_neutral_pairs_beside_neutral_questions_are_refused(hand_made, target):
    with pytest.raises(MedComfortError, match=f"neutral_fraction must be 0 with target {target}, not 0.5"):
        records.to_sft(hand_made, neutral_fraction=0.5, target=target)
    with pytest.raises(MedComfortError, match=f"neutral_fraction must be 0 with target {target}, not 1"):
        records.to_preference(hand_made, target=target, against=["comfort_only"])


def test_unpaired_view_holds_each_answer_once(hand_made):
    rows = records.to_unpaired(hand_made)
    assert [(row["prompt"][0]["content"], row["completion"][0]["content"], row["label"]) for row in rows] == [
        ("Q? Afraid.", "Soothing. Plain.", True),
        ("Q? Afraid.", "Plain.", False),
        ("Q? Afraid.", "Soothing.", False),
        ("Q?", "Plain.", True),
        ("Q?", "Soothing. Plain.", False),
    ]


@pytest.mark.parametrize(("neutral_fraction", "neutral"), [(0, 0), (0.5, 20), (1, 40)])
def test_balance_is_the_share_of_neutral_rows(neutral_fraction, neutral):
    made = [version(f"d{n}", "original", f"Q{n}?", "Plain.") for n in range(40)]
    made += [version(f"d{n}", "emotional", f"Q{n}? Afraid.", "Soothing.", "fear") for n in range(40)]
    rows = [row["prompt"][0]["content"] for row in records.to_sft(made, neutral_fraction, seed=1)]
    kept = [question for question in rows if "Afraid" not in question]
    assert (len(kept), len(rows)) == (neutral, 40 + neutral)
    assert kept == sorted(kept, key=lambda question: int(question[1:-1]))
    assert rows == [row["prompt"][0]["content"] for row in records.to_sft(made, neutral_fraction, seed=1)]
    other = [row["prompt"][0]["content"] for row in records.to_sft(made, neutral_fraction, seed=2)]
    assert (rows != other) == (neutral_fraction == 0.5)


@pytest.mark.parametrize("view", [records.to_sft, records.to_preference, records.to_unpaired])
@pytest.mark.parametrize("neutral_fraction", [-0.1, 1.1, float("nan")])
def test_a_balance_out_of_range_is_refused(hand_made, view, neutral_fraction):
    with pytest.raises(MedComfortError, match=f"neutral_fraction must lie between 0 and 1, not {neutral_fraction}"):
        view(hand_made, neutral_fraction)


def test_an_unknown_target_or_rejected_answer_is_refused(hand_made):
    with pytest.raises(MedComfortError, match="target must be emotional, .* or comfort_only, not 'plain'"):
        records.to_sft(hand_made, target="plain")
    with pytest.raises(MedComfortError, match="target must be emotional, soothing_answer or original, not 'comf"):
        records.to_preference(hand_made, target="comfort_only")
    with pytest.raises(MedComfortError, match="against must not name original, whose answer is the chosen one"):
        records.to_unpaired(hand_made, neutral_fraction=0, target="original")
    with pytest.raises(MedComfortError, match="against must name some of .*, not plain"):
        records.to_preference(hand_made, against=["original", "plain"])
    with pytest.raises(MedComfortError, match="not nothing"):
        records.to_unpaired(hand_made, against=[])


def test_a_missing_or_corrupt_file_is_named(tmp_path):
    with pytest.raises(MedComfortError, match=r"rewrites: there is no file or folder .*none\.parquet"):
        parquet.read_records(tmp_path / "none.parquet", Rewrite)
    whole = parquet.write_records(tmp_path / "whole.parquet", [SOURCE], Dialogue).read_bytes()
    for content in (b"", b"not parquet at all", whole[: len(whole) // 2]):
        (tmp_path / "broken.parquet").write_bytes(content)
        with pytest.raises(MedComfortError, match=r"broken\.parquet is not a readable parquet file"):
            parquet.read_records(tmp_path / "broken.parquet", Dialogue)


def test_a_row_that_does_not_fit_is_named(tmp_path):
    frame = pd.read_parquet(parquet.write_records(tmp_path / "d.parquet", [SOURCE, SOURCE, SOURCE], Dialogue))
    frame.loc[1, "split"] = "holdout"
    paths.write_frame(tmp_path / "d.parquet", frame)
    with pytest.raises(MedComfortError, match=r"d\.parquet, row 2: split: Input should be 'train'"):
        parquet.read_records(tmp_path / "d.parquet", Dialogue)
    paths.write_frame(tmp_path / "d.parquet", frame.drop(columns="source"))
    with pytest.raises(MedComfortError, match=r"d\.parquet, row 1: source: Field required"):
        parquet.read_records(tmp_path / "d.parquet", Dialogue)


@pytest.mark.parametrize("error", [ValueError("broken record"), OSError(errno.ENOSPC, "No space left on device")])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = paths.write_text(tmp_path / "results.json", "old")
    told = MedComfortError if isinstance(error, OSError) else ValueError
    with pytest.raises(told) as raised, paths.replacing(path) as temporary:
        temporary.write_text("half of the n")
        raise error
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    if told is MedComfortError:
        told = "could not be written: No space left on device; make room and run the same command again."
        assert str(raised.value) == f"{path.as_posix()} {told}"


def test_records_on_a_full_disk(tmp_path, monkeypatch):
    def full(writer, table):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = parquet.write_records(tmp_path / "dialogues.parquet", [SOURCE], Dialogue)
    monkeypatch.setattr(parquet.pq.ParquetWriter, "write_table", full)
    with pytest.raises(MedComfortError, match=r"dialogues\.parquet could not be written: No space left on device"):
        parquet.write_records(path, [], Dialogue)
    monkeypatch.undo()
    assert parquet.read_records(path, Dialogue) == [SOURCE] and list(tmp_path.iterdir()) == [path]


def test_a_folder_is_replaced_whole(tmp_path):
    target = tmp_path / "model"
    for name in ("first", "second"):
        with paths.replacing(target) as temporary:
            temporary.mkdir()
            (temporary / name).write_text(name)
    assert [file.name for file in target.iterdir()] == ["second"] and list(tmp_path.iterdir()) == [target]


def test_a_folder_in_the_place_of_a_file_is_told_in_a_sentence(tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(MedComfortError, match="could not be written"):
        paths.write_text(tmp_path / "taken" / "results.json", "{}")


def test_equal_results_are_equal_bytes(tmp_path):
    value = {"b": [1, 2.5, None], "a": "Größe 咳嗽"}
    first = paths.write_json(tmp_path / "one.json", value).read_bytes()
    assert first == paths.write_json(tmp_path / "two.json", json.loads(first)).read_bytes()
    assert first == '{\n "b": [\n  1,\n  2.5,\n  null\n ],\n "a": "Größe 咳嗽"\n}\n'.encode()
    assert paths.read_json(tmp_path / "one.json", "results") == value


def test_broken_json_is_named_with_its_line(tmp_path):
    path = paths.write_text(tmp_path / "results.json", '{\n "a": 1,\n "b": \n}\n')
    with pytest.raises(MedComfortError, match=r"results: .*results\.json is not valid JSON at line 4"):
        paths.read_json(path, "results")


def test_what_a_killed_process_left_is_swept(tmp_path):
    gone, alive = tmp_path / ".a.txt.99999999.tmp.txt", tmp_path / f".a.txt.{os.getppid()}.tmp.txt"
    gone.write_text("half"), alive.write_text("half")
    paths.write_text(tmp_path / "a.txt", "whole")
    assert not gone.exists() and alive.exists()
