"""The record of responses: what is kept, how it is exported and imported, and what several processes may do to it."""

import hashlib
import json
import multiprocessing
import sqlite3
from dataclasses import replace

import pytest

from medcomfort_utils.llm import Cache, Failure, Request, Response
from medcomfort_utils.paths import MedComfortError


def response(text="I hear you.", tokens=5):
    return Response(text, "stub-1", "stop", 10, tokens, cached=False)


def key(number):
    return f"{number:064x}"


@pytest.fixture
def cache(tmp_path):
    with Cache(tmp_path / "cache.sqlite") as cache:
        yield cache


ASKED = Request("row 1", "m", ({"role": "user", "content": "Why?"},), {"temperature": 0}, None, "1")


@pytest.mark.parametrize(
    "change",
    [
        {"model": "other"},
        {"messages": ({"role": "user", "content": "Why? "},)},
        {"messages": ({"role": "system", "content": "Why?"},)},
        {"sampling": {"temperature": 1}},
        {"sampling": {"temperature": 0, "seed": 1}},
        {"schema": {"type": "object"}},
        {"prompt_version": "2"},
    ],
)
def test_the_key_changes_with_all_that_shapes_the_answer(change):
    assert replace(ASKED, **change).key != ASKED.key


def test_the_key_does_not_change_with_the_row_or_the_order_of_names():
    names = {"content": "Why?", "role": "user"}
    other = Request("row 2", "m", (names,), {"temperature": 0}, None, "1")
    assert other.key == ASKED.key


def test_the_key_is_the_one_under_which_committed_records_stand():
    shape = '["m",[{"content":"Why?","role":"user"}],{"temperature":0},null,"1"]'
    assert ASKED.key == hashlib.sha256(shape.encode()).hexdigest()
    assert ASKED.key.startswith("65b46b7be2bd67e2")


def test_a_repair_shows_the_model_its_answer_and_the_problem():
    repair = ASKED.repair("{bad", "It is not valid JSON.")
    assert [message["role"] for message in repair.messages] == ["user", "assistant", "user"]
    assert repair.messages[1]["content"] == "{bad"
    assert "It is not valid JSON." in repair.messages[2]["content"]
    assert repair.key != ASKED.key


def test_gives_back_what_was_put(cache):
    cache.put_many({key(1): response("a 痛\u2028\n😢"), key(2): response("")})
    assert cache.get(key(1)).text == "a 痛\u2028\n😢"
    assert cache.get(key(1)).cached
    assert cache.get(key(3)) is None
    assert len(cache) == 2
    assert set(cache.get_many(key(i) for i in range(2000))) == {key(1), key(2)}


def test_the_first_response_stays_unless_it_is_to_be_overwritten(cache):
    cache.put_many({key(1): response("first")})
    assert cache.put_many({key(1): response("second"), key(2): response("new")})[key(1)].text == "first"
    assert cache.get(key(1)).text == "first"
    assert cache.get(key(2)).text == "new"
    assert cache.put_many({key(1): response("third")}, overwrite=True)[key(1)].text == "third"
    assert cache.get(key(1)).text == "third"


def test_equal_content_is_exported_as_equal_bytes(cache, tmp_path):
    responses = {key(number): response(f"text {number} 痛\u2028\u0085\n") for number in range(50)}
    cache.put_many(responses)
    assert cache.export_jsonl(tmp_path / "a.jsonl") == 50
    with Cache(tmp_path / "other.sqlite") as other:
        other.put_many(dict(reversed(responses.items())))
        other.export_jsonl(tmp_path / "b.jsonl")
    with Cache(tmp_path / "third.sqlite") as third:
        assert third.import_jsonl(tmp_path / "a.jsonl") == 50
        third.export_jsonl(tmp_path / "c.jsonl")
    written = (tmp_path / "a.jsonl").read_bytes()
    assert written == (tmp_path / "b.jsonl").read_bytes() == (tmp_path / "c.jsonl").read_bytes()
    assert written.count(b"\n") == 50
    keys = [json.loads(line)["key"] for line in written.splitlines()]
    assert keys == sorted(keys)


def test_what_an_imported_file_says_is_right(cache, tmp_path):
    cache.put_many({key(1): response("from the file")})
    cache.export_jsonl(tmp_path / "a.jsonl")
    cache.put_many({key(1): response("changed"), key(2): response("kept")}, overwrite=True)
    assert cache.import_jsonl(tmp_path / "a.jsonl") == 1
    assert [cache.get(key(i)).text for i in (1, 2)] == ["from the file", "kept"]


def test_an_imported_failure_takes_the_place_of_no_response(cache, tmp_path):
    failed = Failure("no answer in 7 tries").recorded("stub-1")
    cache.put_many({key(1): failed, key(2): failed})
    cache.export_jsonl(tmp_path / "a.jsonl")
    cache.put_many({key(1): response("paid since")})
    cache.import_jsonl(tmp_path / "a.jsonl")
    assert [cache.get(key(i)).text for i in (1, 2)] == ["paid since", "no answer in 7 tries"]


def changed(line, **fields):
    return json.dumps({**json.loads(line), **fields}).encode()


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        (lambda line: line[:30], "not valid JSON"),
        (lambda line: b"", "not valid JSON"),
        (lambda line: b"\xff\xff", "not valid JSON"),
        (lambda line: b"[" * 100_000, "not valid JSON"),
        (lambda line: b"[1]", "exactly the fields"),
        (lambda line: changed(line, extra=1), "exactly the fields"),
        (lambda line: changed(line, text=None), "text must be of type str"),
        (lambda line: changed(line, prompt_tokens=True), "prompt_tokens must be of type int"),
        (lambda line: changed(line, prompt_tokens=10**30), "must lie between 0 and"),
        (lambda line: changed(line, key="abc"), "64 hex digits"),
        (lambda line: changed(line, key=key(1)), "earlier line"),
        (lambda line: changed(line, text="\ud83d"), "surrogates"),
    ],
)
def test_a_broken_line_is_named_and_nothing_is_imported(cache, tmp_path, broken, problem):
    path = tmp_path / "record.jsonl"
    with Cache(tmp_path / "source.sqlite") as source:
        source.put_many({key(number): response() for number in (1, 2, 3)})
        source.export_jsonl(path)
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([lines[0], broken(lines[1]), lines[2]]) + b"\n")
    with pytest.raises(MedComfortError, match=rf"record.jsonl, line 2: .*{problem}"):
        cache.import_jsonl(path)
    assert len(cache) == 0
    path.write_bytes(lines[0] + b"\n")
    assert cache.import_jsonl(path) == 1, "a failed import must not stand in the way of the next"


def test_a_file_that_is_no_cache_is_named(tmp_path):
    (tmp_path / "notes.txt").write_text("These are notes, long enough to be taken for a database by nobody. " * 20)
    with pytest.raises(MedComfortError, match="notes.txt cannot be used"):
        Cache(tmp_path / "notes.txt")
    with sqlite3.connect(tmp_path / "other.sqlite") as other:
        other.execute("CREATE TABLE responses (id)")
    with pytest.raises(MedComfortError, match="other.sqlite cannot be used"):
        Cache(tmp_path / "other.sqlite")


def test_a_missing_record_is_named(cache, tmp_path):
    with pytest.raises(MedComfortError, match="missing.jsonl"):
        cache.import_jsonl(tmp_path / "missing.jsonl")
    with pytest.raises(MedComfortError, match="cannot be read"):
        cache.import_jsonl(tmp_path)


def _write(path, start, barrier):
    for number in range(start, start + 20):
        barrier.wait(timeout=60)
        with Cache(f"{path}-{number - start}") as cache:
            cache.put_many({key(number): response(f"text {number}"), key(0): response("of all")})
    with Cache(path) as cache:
        for number in range(start, start + 200):
            cache.put_many({key(number): response(f"text {number}")})


def test_processes_that_open_and_write_at_once_lose_nothing(tmp_path):
    """Four processes make a file at the same moment, twenty times; then they write to one, half of it the same."""
    context, path = multiprocessing.get_context("fork"), tmp_path / "cache.sqlite"
    barrier = context.Barrier(4)
    writers = [context.Process(target=_write, args=(path, start, barrier)) for start in (100, 200, 300, 400)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
    assert [writer.exitcode for writer in writers] == [0] * 4
    for turn in range(20):
        with Cache(f"{path}-{turn}") as cache:
            assert len(cache) == 5
    with Cache(path) as cache:
        assert len(cache) == 500
        assert all(cache.get(key(number)).text == f"text {number}" for number in range(100, 600))
