"""MedComfort-mini is what its data card says: whole, varied, and replayed to the last byte without a network."""

import json
from collections import Counter

import pytest

from medcomfort_utils.llm import Cache
from medcomfort_utils.parquet import read_records
from medcomfort_utils.paths import DATA
from medcomfort_utils.records import EMOTIONS, Dialogue, Rewrite
from medcomfort_utils.rewrite import compose, show, sources
from medcomfort_utils.rewrite.rewriter import open_rewriter, write

MINI = DATA / "medcomfort_mini"
ROWS = [json.loads(line) for line in (MINI / "dialogues.jsonl").read_text(encoding="utf-8").splitlines()]
SAMPLING = {"temperature": 0.7, "max_tokens": 1024}
FIELDS = ["topic", "age", "urgency", "question", "answer", "facts", "red_flags", "emotions"]
FILES = ("dialogues", "rewrites", "rejected")


def replayed(folder):
    """The files that a replay writes from the committed record alone."""
    responses = MINI / "responses.jsonl"
    writer = open_rewriter("llm", folder / "cache.sqlite", responses, "authored", 2, SAMPLING, mode="replay")
    write(writer.versions(sources.open_source(str(MINI / "dialogues.jsonl"))), folder)
    writer.client.cache.close()
    return [(folder / f"{name}.parquet").read_bytes() for name in FILES]


@pytest.fixture(scope="module")
def replay(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mini")
    return folder, replayed(folder)


@pytest.fixture(scope="module")
def dialogues(replay):
    return {d.id: d for d in read_records(replay[0] / "dialogues.parquet", Dialogue)}


@pytest.fixture(scope="module")
def versions(replay):
    """All versions, whether the gates kept them or not."""
    return [r for name in ("rewrites", "rejected") for r in read_records(replay[0] / f"{name}.parquet", Rewrite)]


def test_the_sources_are_whole():
    assert len(ROWS) == 160 and all(list(row) == FIELDS for row in ROWS)
    assert len({row["topic"] for row in ROWS}) >= 20
    assert {row["age"] for row in ROWS} == {"infant", "child", "teen", "adult", "older"}
    assert {row["urgency"] for row in ROWS} == {"self_care", "routine", "soon", "emergency"}
    assert Counter(emotion for row in ROWS for emotion in row["emotions"]) == dict.fromkeys(EMOTIONS, 64)
    for row in ROWS:
        assert 60 <= len(row["question"].split()) <= 150 and 80 <= len(row["answer"].split()) <= 180
        assert 3 <= len(row["facts"]) <= 8 and len(set(row["emotions"])) == 2
        assert all(flag in row["answer"] for flag in row["red_flags"])


def test_all_sources_survive_cleaning_unchanged(dialogues):
    assert [(d.question, d.answer) for d in dialogues.values()] == [(row["question"], row["answer"]) for row in ROWS]


def test_a_replay_gives_every_version_and_the_same_bytes(replay, versions, tmp_path):
    counts = {"original": 160, "emotional": 320, "comfort_only": 320, "soothing_answer": 160}
    assert Counter(r.condition for r in versions) == counts
    assert {(r.backend, r.model) for r in versions} == {("llm", "authored")}
    assert replayed(tmp_path) == replay[1]


def test_every_composition_is_whole_and_urgent_advice_comes_first(dialogues, versions):
    composed = [r for r in versions if r.condition in ("emotional", "soothing_answer")]
    for rewrite in composed:
        source = dialogues[rewrite.dialogue_id]
        first, numbered = compose.urgent_now(source), compose.numbered(source)
        assert compose.problems(rewrite.segments, len(numbered), first) == [], rewrite.dialogue_id
        assert first or source.urgency != "emergency"
        assert all(rewrite.answer.count(sentence) == numbered.count(sentence) for sentence in numbered)


def test_the_record_is_complete_and_sorted(tmp_path):
    with Cache(tmp_path / "cache.sqlite") as cache:
        assert cache.import_jsonl(MINI / "responses.jsonl") == 800
        cache.export_jsonl(tmp_path / "responses.jsonl")
    assert (tmp_path / "responses.jsonl").read_bytes() == (MINI / "responses.jsonl").read_bytes()


def test_it_is_written_anew_and_plainly(dialogues, versions):
    hollow = show.variety(r.answer for r in versions if r.condition == "comfort_only").iloc[0]
    assert hollow["texts"] == 320 and hollow["distinct_2"] > 0.55
    assert hollow["repeated_sentences"] < 0.02 and hollow["shared_openings"] < 0.1
    emotional = [r for r in versions if r.condition == "emotional"]
    pairs = [(dialogues[r.dialogue_id], r) for r in emotional]
    worded = show.wording(pairs)
    assert worded["kept_runs"].max() < 0.5 and worded["before_urgent"].max() <= compose.SHORT
    named = {"worried", "anxious", "sad", "upset", "angry", "frustrated", "guilty", "lonely"}
    assert named <= set(show.feelings(pairs).index)
