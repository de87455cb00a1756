"""The record of responses: what is kept, how it is exported and imported, and what several processes may do to it."""

import hashlib
import json
import multiprocessing
import sqlite3
from dataclasses import replace

import pytest

from medcomfort_utils.llm import Cache, Failure, Request, Response
from medcomfort_utils.paths import MedComfortError

ASKED = Request("row 1", "m", ({"role": "user", "content": "Why?"},), {"temperature": 0}, None, "1")


def response(text="I hear you."):
    return Response(text, "stub-1", "stop", 10, 5, cached=False)


def key(number):
    return f"{number:064x}"


@pytest.fixture
def cache(tmp_path):
    with Cache(tmp_path / "cache.sqlite") as cache:
        yield cache


@pytest.mark.parametrize(
    "change",
    [
        {"model": "other"},
        {"messages": ({"role": "system", "content": "Why?"},)},
        {"sampling": {"temperature": 0, "seed": 1}},
        {"schema": {"type": "object"}},
        {"prompt_version": "2"},
    ],
)
def test_the_key_changes_with_all_that_shapes_the_answer(change):
    assert replace(ASKED, **change).key != ASKED.key


def test_the_key_is_the_one_under_which_committed_records_stand():
    shape = '["m",[{"content":"Why?","role":"user"}],{"temperature":0},null,"1"]'
    assert replace(ASKED, row="row 2").key == ASKED.key == hashlib.sha256(shape.encode()).hexdigest()
    assert ASKED.repair("{bad", "It is bad.").key.startswith("7e1be6dc")


def test_the_first_response_stays_unless_it_is_to_be_overwritten(cache):
    cache.put_many({key(1): response("first a 痛\u2028\n😢")})
    assert cache.put_many({key(1): response("second"), key(2): response("new")})[key(1)].text.startswith("first a 痛")
    assert (cache.get(key(2)).text, cache.get(key(3)), len(cache)) == ("new", None, 2)
    assert cache.put_many({key(1): response("third")}, overwrite=True)[key(1)].text == cache.get(key(1)).text == "third"


def test_equal_content_is_exported_as_equal_bytes(cache, tmp_path):
    responses = {key(number): response(f"text {number} 痛\u2028\u0085\n") for number in range(50)}
    cache.put_many(dict(reversed(responses.items())))
    assert cache.export_jsonl(tmp_path / "a.jsonl") == 50
    with Cache(tmp_path / "other.sqlite") as other:
        assert other.import_jsonl(tmp_path / "a.jsonl") == 50
        other.export_jsonl(tmp_path / "b.jsonl")
    written = (tmp_path / "a.jsonl").read_bytes()
    assert written == (tmp_path / "b.jsonl").read_bytes() and written.count(b"\n") == 50
    assert [json.loads(line)["key"] for line in written.splitlines()] == sorted(responses)


def test_what_an_imported_file_says_is_right_but_for_its_failures(cache, tmp_path):
    cache.put_many({key(1): response("from the file"), key(2): Failure("no answer").recorded("stub-1")})
    cache.export_jsonl(tmp_path / "a.jsonl")
    cache.put_many({key(number): response("changed") for number in (1, 2, 3)}, overwrite=True)
    assert cache.import_jsonl(tmp_path / "a.jsonl") == 2
    assert [cache.get(key(i)).text for i in (1, 2, 3)] == ["from the file", "changed", "changed"]


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        (lambda line: line[:30], "Invalid JSON"),
        (lambda line: b"\xff\xff", "Invalid JSON"),
        (lambda line: b"[1]", "object"),
        (lambda line: line.replace(b'"text"', b'"txt"'), "text"),
        (lambda line: line.replace(b": 10,", b": true,"), "prompt_tokens"),
        (lambda line: line.replace(b": 10,", b": 3000000000,"), "prompt_tokens"),
        (lambda line: line.replace(b'"key": "0', b'"key": "x'), "key"),
        (lambda line: line.replace(b'"key": "' + key(2).encode(), b'"key": "' + key(1).encode()), "earlier line"),
        (lambda line: line.replace(b"I hear", b"\\ud83d"), "Invalid JSON"),
    ],
)
def test_a_broken_line_is_named_and_nothing_is_imported(cache, tmp_path, broken, problem):
    path = tmp_path / "record.jsonl"
    with Cache(tmp_path / "source.sqlite") as source:
        source.put_many({key(number): response() for number in (1, 2, 3)})
        source.export_jsonl(path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], broken(lines[1]).rstrip() + b"\n", lines[2]]))
    with pytest.raises(MedComfortError, match=rf"record.jsonl, line 2: .*{problem}"):
        cache.import_jsonl(path)
    assert len(cache) == 0


def test_what_is_no_cache_is_named(tmp_path):
    (tmp_path / "notes.txt").write_text("These are notes, long enough to be taken for a database by nobody. " * 20)
    with sqlite3.connect(tmp_path / "other.sqlite") as other:
        other.execute("CREATE TABLE responses (id)")
    for name in ("notes.txt", "other.sqlite"):
        with pytest.raises(MedComfortError, match=f"{name} cannot be used"):
            Cache(tmp_path / name)
    with Cache(tmp_path / "blobs.sqlite") as cache:
        cache._db.execute("INSERT INTO responses VALUES (?, 'm', 'stop', 1, 1, ?)", (key(1), b"bytes"))
        for broken in (lambda: cache.get(key(1)), lambda: cache.export_jsonl(tmp_path / "a.jsonl")):
            with pytest.raises(MedComfortError, match=r"blobs.sqlite cannot be used \(text: .*string"):
                broken()
        for missing in (tmp_path / "missing.jsonl", tmp_path):
            with pytest.raises(MedComfortError, match="recorded responses: "):
                cache.import_jsonl(missing)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_that_is_deleted_or_replaced_under_its_reader_is_noticed(tmp_path, replaced):
    with Cache(tmp_path / "cache.sqlite") as cache:
        cache.put_many({key(1): response()})
        cache.path.unlink()
        if replaced:
            cache.path.write_bytes(b"")
        with pytest.raises(MedComfortError, match="cache.sqlite cannot be used"):
            cache.put_many({key(2): response()})


def _write(path, start, barrier):
    for number in range(start, start + 20):
        barrier.wait(timeout=60)
        with Cache(f"{path}-{number - start}") as cache:
            cache.put_many({key(number): response(), key(0): response("of all")})


def test_processes_that_open_and_write_at_once_lose_nothing(tmp_path):
    """Four processes make a file at the same moment and write to it, twenty times."""
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
