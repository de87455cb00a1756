"""MedComfort-mini is what its data card says: whole, varied, and replayed to the last byte without a network."""

import json
from collections import Counter

import pytest

from medcomfort_utils.llm import Cache
from medcomfort_utils.llm.limits import SHARE
from medcomfort_utils.parquet import read_records
from medcomfort_utils.paths import DATA
from medcomfort_utils.records import EMOTIONS, Rewrite
from medcomfort_utils.rewrite import chain, show, sources
from medcomfort_utils.rewrite.clean import words
from medcomfort_utils.rewrite.llm_rewriter import open_rewriter

MINI = DATA / "medcomfort_mini"
ROWS = [json.loads(line) for line in (MINI / "dialogues.jsonl").read_text(encoding="utf-8").splitlines()]
SAMPLING = {"temperature": 0.7, "max_tokens": 1024}
FIELDS = ["topic", "age", "urgency", "question", "answer", "facts", "red_flags", "emotions"]


def replayed(folder):
    """Rewrites and rejected ones of a replay from the committed record alone."""
    responses = MINI / "responses.jsonl"
    writer = open_rewriter("llm", folder / "cache.sqlite", responses, "authored", 2, SAMPLING, mode="replay")
    chain.write(writer.versions(sources.Corpus(str(MINI / "dialogues.jsonl"), lang="en")), folder)
    writer.client.cache.close()
    return [(folder / f"{name}.parquet").read_bytes() for name in ("dialogues", "rewrites", "rejected")]


@pytest.fixture(scope="module")
def replay(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mini")
    return folder, replayed(folder)


@pytest.fixture(scope="module")
def rewrites(replay):
    return read_records(replay[0] / "rewrites.parquet", Rewrite)


def test_the_sources_are_whole():
    assert len(ROWS) == 160 and all(list(row) == FIELDS for row in ROWS)
    assert len({row["topic"] for row in ROWS}) >= 20
    assert {row["age"] for row in ROWS} == {"infant", "child", "teen", "adult", "older"}
    assert {row["urgency"] for row in ROWS} == {"self_care", "routine", "soon", "emergency"}
    assert all(row["red_flags"] for row in ROWS if row["urgency"] == "emergency")
    assert Counter(emotion for row in ROWS for emotion in row["emotions"]) == dict.fromkeys(EMOTIONS, 64)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["question"][:24])
def test_each_source_keeps_to_its_bounds(row):
    assert 60 <= len(row["question"].split()) <= 150 and 80 <= len(row["answer"].split()) <= 180
    assert 3 <= len(row["facts"]) <= 8 and len(set(row["emotions"])) == 2
    assert all(flag in row["answer"] for flag in row["red_flags"])


def test_all_sources_survive_cleaning_unchanged():
    corpus = sources.Corpus(str(MINI / "dialogues.jsonl"), lang="en")
    assert [(d.question, d.answer) for d in corpus] == [(row["question"], row["answer"]) for row in ROWS]


def test_every_row_passes_the_gates(replay, rewrites):
    rejected = read_records(replay[0] / "rejected.parquet", Rewrite)
    assert [(r.dialogue_id, r.condition, [g.reason for g in r.gates if not g.passed]) for r in rejected] == []
    counts = {"original": 160, "emotional": 320, "comfort_only": 320, "soothing_answer": 160}
    assert Counter(r.condition for r in rewrites) == counts
    assert {(r.backend, r.model) for r in rewrites} == {("llm", "authored")}


def test_a_replay_gives_the_same_bytes(replay, tmp_path):
    assert replayed(tmp_path) == replay[1]


def test_estimates_expect_answers_as_long_as_these(tmp_path):
    corpus = sources.Corpus(str(MINI / "dialogues.jsonl"), lang="en")
    writer = open_rewriter("llm", tmp_path / "cache.sqlite", MINI / "responses.jsonl", "authored", 2, SAMPLING)
    assert len(list(writer.versions(corpus))) == 160
    saved = writer.client.saved
    assert saved.calls == 800 and saved.completion_tokens / saved.prompt_tokens == pytest.approx(SHARE, abs=0.005)


def test_the_record_is_complete_and_sorted(tmp_path):
    with Cache(tmp_path / "cache.sqlite") as cache:
        assert cache.import_jsonl(MINI / "responses.jsonl") == 800
        cache.export_jsonl(tmp_path / "responses.jsonl")
    assert (tmp_path / "responses.jsonl").read_bytes() == (MINI / "responses.jsonl").read_bytes()


def test_comfort_is_no_phrase_bank(rewrites):
    hollow = show.variety(r.answer for r in rewrites if r.condition == "comfort_only").iloc[0]
    assert hollow["texts"] == 320 and hollow["distinct_2"] > 0.55
    assert hollow["repeated_sentences"] == 0 and hollow["shared_openings"] < 0.05


def test_examples_are_of_different_emotions_and_dialogues(rewrites):
    emotional = [rewrite for rewrite in rewrites if rewrite.condition == "emotional"]
    for several in (emotional, emotional[:66]):
        shown = show.examples(several, 3)
        assert len({r.emotion for r in shown}) == len({r.dialogue_id for r in shown}) == 3 and shown[0] == several[0]
    assert [r.emotion for r in show.examples(emotional[:2], 3)] == [r.emotion for r in emotional[:2]]


def test_answers_to_one_question_are_no_copies(rewrites):
    openings = Counter(
        " ".join(words(r.answer)[:8]) for r in rewrites if r.condition in ("emotional", "soothing_answer")
    )
    assert max(openings.values()) == 1
