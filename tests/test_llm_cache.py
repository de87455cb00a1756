"""The record of responses: what is kept, how it is exported and imported, and what several processes may do to it."""

import hashlib
import json
import multiprocessing
from dataclasses import replace

import pytest

from medcomfort_utils.llm import Cache, Request, Response
from medcomfort_utils.paths import MedComfortError

ASKED = Request("row 1", "m", ({"role": "user", "content": "Why?"},), {"temperature": 0}, None, "1")


def response(text="I hear you.", reason="stop"):
    return Response(text, "stub-1", reason, 10, 5, cached=False)


def key(number):
    return f"{number:064x}"


@pytest.fixture
def cache(tmp_path):
    with Cache(tmp_path / "cache.sqlite") as cache:
        yield cache


def test_the_key_is_the_one_under_which_committed_records_stand():
    shape = '["m",[{"content":"Why?","role":"user"}],{"temperature":0},null,"1"]'
    assert replace(ASKED, row="row 2").key == ASKED.key == hashlib.sha256(shape.encode()).hexdigest()
    assert ASKED.repair("{bad", "It is bad.").key.startswith("7e1be6dc")


def test_the_first_response_stays_unless_it_is_to_be_overwritten(cache):
    cache.put_many({key(1): response("first"), key(3): response("no answer", "failed")})
    kept = cache.put_many({number: response("second") for number in (key(1), key(2), key(3))})
    assert [kept[key(i)].text for i in (1, 2, 3)] == ["first", "second", "second"] and cache.get(key(4)) is None
    cache.put_many({key(1): response("third"), key(2): response("no answer", "failed")}, overwrite=True)
    assert [cache.get(key(i)).text for i in (1, 2)] == ["third", "second"], "a failure never replaces a response"


def test_equal_content_is_exported_as_equal_bytes_and_what_is_imported_is_right(cache, tmp_path):
    responses = {key(number): response(f"text {number} 痛\u2028\u0085\n") for number in range(50)}
    cache.put_many(dict(reversed(responses.items())))
    assert cache.export_jsonl(tmp_path / "a.jsonl") == 50
    with Cache(tmp_path / "other.sqlite") as other:
        other.put_many({key(1): response("changed")})
        assert other.import_jsonl(tmp_path / "a.jsonl") == 50
        other.export_jsonl(tmp_path / "b.jsonl")
    written = (tmp_path / "a.jsonl").read_bytes()
    assert written == (tmp_path / "b.jsonl").read_bytes() and written.count(b"\n") == 50
    assert [json.loads(line)["key"] for line in written.splitlines()] == sorted(responses)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (b'"text"', b'"txt"', "text"),
        (b": 10,", b": true,", "prompt_tokens"),
        (b'"key": "0', b'"key": "x', "key"),
        (b"I hear", b"\\ud83d", "Invalid JSON"),
        (b"}", b"", "Invalid JSON"),
    ],
)
def test_a_broken_line_is_named_and_nothing_is_imported(cache, tmp_path, old, new, problem):
    path = tmp_path / "record.jsonl"
    with Cache(tmp_path / "source.sqlite") as source:
        source.put_many({key(number): response() for number in (1, 2, 3)})
        source.export_jsonl(path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1].replace(old, new) + lines[2])
    with pytest.raises(MedComfortError, match=rf"record.jsonl, line 2: .*{problem}"):
        cache.import_jsonl(path)
    with pytest.raises(MedComfortError, match="recorded responses: "):
        cache.import_jsonl(tmp_path)
    assert len(cache) == 0


def test_a_file_that_is_no_cache_or_is_deleted_under_its_reader_is_named(cache, tmp_path):
    (tmp_path / "notes.txt").write_text("These are notes, long enough to be taken for a database by nobody. " * 20)
    with pytest.raises(MedComfortError, match="notes.txt cannot be used"):
        Cache(tmp_path / "notes.txt")
    cache._db.execute("INSERT INTO responses VALUES (?, 'm', 'stop', 1, 1, ?)", (key(1), b"bytes"))
    for broken in (lambda: cache.get(key(1)), lambda: cache.export_jsonl(tmp_path / "a.jsonl")):
        with pytest.raises(MedComfortError, match=r"cache.sqlite cannot be used \(text: .*string"):
            broken()
    cache.path.unlink()
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
