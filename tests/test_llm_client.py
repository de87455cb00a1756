"""The client against a server that fails as scripted: nothing is lost, nothing is paid twice, all is said clearly."""

import asyncio
import gzip
import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from itertools import islice

import pytest
from servers import FAULTS, Reply, StubServer, limited

from medcomfort_utils.llm import Cache, Client, Failure, Request, Response, Settings, limits, parse
from medcomfort_utils.llm import client as llm_client
from medcomfort_utils.llm.server import _is_local, _key_for, checked_address
from medcomfort_utils.paths import ROOT, MedComfortError

SCHEMA = {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}
KEY = "sk-test-0123456789abcdef0123456789abcdef"
YES = '{"answer": "yes"}'
PAID = b'"usage": {"prompt_tokens": 10, "completion_tokens": 5}}'


def request(number, schema=None, system="", **sampling):
    messages = [{"role": "system", "content": system}] * bool(system)
    messages.append({"role": "user", "content": f"question {number}"})
    return Request(f"row {number}", "m", tuple(messages), {"temperature": 0, **sampling}, schema, "1")


def requests(count, **fields):
    return [request(number, **fields) for number in range(count)]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Short waits, and an environment without keys and addresses."""
    monkeypatch.setattr(llm_client, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(llm_client, "LONGEST_WAIT", 0.05)
    for name in ("MEDCOMFORT_API_KEY", "OPENAI_API_KEY", "MEDCOMFORT_BASE_URL", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def cache(tmp_path):
    with Cache(tmp_path / "cache.sqlite") as cache:
        yield cache


@pytest.fixture
def serve():
    """Start a server with a script; all are stopped after the test."""
    servers = []

    def start(script=lambda call: Reply(call.question)):
        servers.append(StubServer(script).__enter__())
        return servers[-1]

    yield start
    for server in servers:
        server.__exit__()


def client_for(server, cache, **settings):
    return Client(Settings(**{"base_url": server.url, "timeout": 10.0, **settings}), cache)


def run(client, rows):
    return list(client.run(rows, client.ask))


def stopped(client, rows):
    """What a run yields before it stops, and why it does."""
    results = []
    with pytest.raises(MedComfortError) as caught:
        results.extend(client.run(rows, client.ask))
    return results, str(caught.value)


def texts(responses):
    return [response.text for response in responses]


def test_every_row_comes_out_once_in_order_and_is_paid_once(serve, cache):
    server = serve(lambda call: Reply(call.question, delay=random.Random(call.question).random() / 50))
    twice = [each for each in requests(200) for _ in range(2)]  # an equal request that is under way is waited for
    responses = run(client_for(server, cache), twice)
    assert texts(responses) == [f"question {number // 2}" for number in range(400)]
    assert responses[0] == Response("question 0", "stub-1", "stop", 10, 5, cached=False)
    again = run(client_for(server, cache), requests(210))
    assert [r.cached for r in again] == [True] * 200 + [False] * 10 and len(server.calls) == len(cache) == 210


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_fault_that_may_pass_is_tried_again(serve, cache, fault):
    server = serve(lambda call: fault if call.again < 2 else Reply(call.question))
    responses = run(client_for(server, cache, timeout=0.5 if fault.delay else 10.0), requests(3))
    assert texts(responses) == ["question 0", "question 1", "question 2"] and min(server.asked.values()) == 3


def test_as_many_calls_are_made_at_once_as_allowed_and_rows_are_read_lazily(serve, cache):
    pulled = []
    server = serve(lambda call: Reply(delay=1.5 if call.question == "question 0" else 0.01))
    client = client_for(server, cache, concurrency=4)
    answers = client.run((pulled.append(number) or request(number) for number in range(10**6)), client.ask)
    next(answers)
    assert len(server.calls) == client.window, "the pool was refilled while one call took long, up to the window"
    for _ in islice(answers, 200):
        assert len(pulled) <= 201 + client.window
    answers.close()
    assert server.busiest == 4


def test_runs_where_an_event_loop_already_runs_and_repairs(serve, cache):
    client = client_for(serve(lambda call: Reply(YES if len(call.body["messages"]) == 3 else "{'answer': 3}")), cache)

    async def work(asked):
        first = await client.ask(asked)
        second = await client.ask(asked.repair(first.text, "answer must be text"))
        return asked.row, parse(second.text, SCHEMA)

    async def cell():
        return list(client.run(requests(40), work))

    assert asyncio.run(cell()) == [(f"row {number}", {"answer": "yes"}) for number in range(40)]


@pytest.mark.parametrize("headers", [{}, {"Retry-After": "0.02"}, {"Retry-After": "Mon, 01 Jan 2024 00:00:00 +999999"}])
@pytest.mark.parametrize("burst", [1, 20])
def test_no_row_is_lost_to_a_limit_and_the_pace_adapts(serve, cache, burst, headers):
    server = serve(limited(50, burst, headers))
    assert len(run(client_for(server, cache, retries=0), requests(60))) == len(cache) == 60
    assert len(server.calls) < 60 * 6, "they leave one by one, not all at once after each wait"


def test_a_server_that_only_says_slow_down_stops_the_run_in_its_words(serve, cache, monkeypatch):
    monkeypatch.setattr(limits, "PATIENCE", 0.5)
    results, why = stopped(client_for(serve(limited(0, 3)), cache), requests(20))
    assert len(results) == 3 and "slow down" in why


def test_an_absurd_count_of_tokens_holds_nobody_up_and_none_is_estimated(serve, cache):
    server = serve(lambda call: Reply(usage={"prompt_tokens": 2**31 - 1, "completion_tokens": 2**31 - 1}))
    client = client_for(server, cache, tokens_per_minute=60_000)
    run(client, requests(20, max_tokens=10))
    assert client.budget.completion_tokens == 200 and client.budget.prompt_tokens < 20 * 100
    server = serve(lambda call: Reply("x" * 400, usage={"prompt_tokens": 0, "completion_tokens": 0}))
    client = client_for(server, cache, max_tokens_total=1000)
    results, why = stopped(client, requests(200, max_tokens=100, seed=2))
    assert "max_tokens_total = 1000" in why and len(results) == 9 and client.budget.completion_tokens == 900


def test_limits_a_minute_are_kept(serve, cache):
    server = serve()
    run(client_for(server, cache, requests_per_minute=1200), requests(20))
    assert server.calls[-1].at - server.calls[0].at > 19 * 0.05 - 0.1


@pytest.mark.parametrize(
    "refused",
    [
        Reply(status=400, error={"message": "too\nlong", "code": "context_length"}),
        Reply(status=403, error={"message": "input was flagged"}),
        Reply(None, finish_reason="content_filter"),
        Reply(body=b"[" + b" " * 5 * 2**20 + b"]"),
        Reply(body=gzip.compress(b" " * 50 * 2**20), headers={"Content-Encoding": "gzip"}),
    ],
    ids=["context", "moderation", "filter", "huge", "gzip bomb"],
)
def test_what_one_row_meets_sets_that_row_aside_and_is_asked_again_another_time(serve, cache, refused):
    server = serve(lambda call: refused if call.question == "question 0" else Reply("first"))
    responses = run(client_for(server, cache, concurrency=1), requests(3))
    assert [type(response) for response in responses] == [Failure, Response, Response]
    assert server.asked["question 0"] == 1
    assert run(Client(Settings(mode="replay"), cache), requests(3))[0] == responses[0]
    assert texts(run(client_for(serve(lambda call: Reply("second")), cache), requests(3)))[0] == "second"
    run(client_for(server, cache, mode="record"), requests(3))
    assert cache.get(request(0).key).text == "second", "a failure does not overwrite a response"


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (Reply(status=401, error={"message": f"Incorrect API key provided: {KEY}"}), "MEDCOMFORT_API_KEY"),
        (Reply(body=b'{"error": {"code": 402, "message": "no credits"}}'), "402: 402 no credits"),
        (Reply(status=307, headers={"Location": "https://example.org/v1"}, body=b""), "307: .*base_url"),
        (Reply(status=404, error={"message": "no such model"}), "404: no such model.*base_url.*'m'"),
        (Reply(status=429, error={"message": "billing", "code": "insufficient_quota"}), "402.*billing"),
        (Reply(status=429, headers={"Retry-After": "86400"}, error={"message": "daily limit"}), "wait 86400 s"),
    ],
)
def test_an_error_that_is_the_same_for_all_rows_stops_the_run(serve, cache, reply, words):
    server = serve(lambda call: reply if call.question == "question 5" else Reply())
    results, why = stopped(client_for(server, cache, concurrency=2, requests_per_minute=6000), requests(10_000))
    assert len(results) >= 5 and all(isinstance(response, Response) for response in results)
    assert re.search(words, why) and len(server.calls) < 50


@pytest.mark.parametrize("status", [400, 403, 500])
def test_a_run_of_which_all_calls_fail_stops_early_and_does_so_again(serve, cache, status):
    server = serve(lambda call: Reply(status=status, error={"message": "oops"}))
    for _ in range(2):
        results, why = stopped(client_for(server, cache, retries=1), requests(1000))
        assert "oops" in why and len(results) < 60 and len(server.calls) < 200


def test_a_run_of_which_most_calls_fail_stops_after_all_were_yielded(serve, cache):
    server = serve(lambda call: Reply(status=500) if int(call.question[-1]) > 3 else Reply())
    client = client_for(server, cache, retries=1, concurrency=1)
    results, why = stopped(client, requests(30))
    assert len(results) == 30 and "18 of 30 calls failed" in why and client.unanswered == 18
    healed = client_for(serve(), cache)
    assert len(run(healed, requests(30))) == 30 and healed.budget.calls == 18


def test_a_server_that_is_not_there_stops_the_run(serve, cache):
    server = serve()
    server.__exit__()
    assert f"no whole answer came from {server.url}" in stopped(client_for(server, cache, retries=1), requests(99))[1]


@pytest.mark.parametrize(
    ("status", "words", "seen"),
    [
        (400, "System role not supported", lambda body: body["messages"][0]["role"] == "system"),
        (400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens'.", lambda body: "max_tokens" in body),
        (400, "Unsupported value: 'temperature' does not support 0", lambda body: "temperature" in body),
        (400, "unknown response_format", lambda body: "response_format" in body),
        (500, "failed to parse grammar", lambda body: "response_format" in body),
        (501, "no", lambda body: "response_format" in body),
        (500, "oops", lambda body: "response_format" in body),
    ],
)
def test_what_all_requests_are_refused_for_is_changed_and_learnt_once(serve, cache, caplog, status, words, seen):
    refusal = Reply(status=status, error={"message": words})
    server = serve(lambda call: refusal if seen(call.body) else Reply(YES))
    rows = requests(20, schema=SCHEMA, system="Be kind.", max_tokens=9)
    assert texts(run(client_for(server, cache, concurrency=2), rows)) == [YES] * 20
    assert sum(seen(call.body) for call in server.calls) <= (42 if words == "oops" else 6)
    assert len(caplog.messages) == 1 and words in caplog.text
    sent = json.dumps(server.calls[-1].body)
    assert "Be kind." in sent and "question" in sent and "required" in sent
    assert cache.get(rows[0].key), "recorded under the request as it was put"


def test_one_row_that_is_refused_changes_nothing_for_the_others(serve, cache):
    refusal = Reply(status=400, error={"message": "This model's maximum context length is 9"})
    server = serve(lambda call: refusal if "question 3" in str(call.body) else Reply(YES))
    responses = run(client_for(server, cache, concurrency=1), requests(10, schema=SCHEMA, max_tokens=5))
    assert [type(response) for response in responses].count(Failure) == 1
    assert {"response_format", "max_tokens", "temperature"} < server.calls[-1].body.keys()


@pytest.mark.parametrize(
    ("reply", "text", "finish_reason"),
    [
        (Reply([{"type": "thinking", "thinking": "no"}, *({"type": "text", "text": c} for c in YES)]), YES, "stop"),
        (Reply(None, message={"reasoning_content": f"So: {YES}"}), f"So: {YES}", "stop"),
        (Reply(None, message={"tool_calls": [{"function": {"arguments": YES}}]}), YES, "stop"),
        (Reply(None, refusal="I cannot."), "I cannot.", "refusal"),
        (Reply("half", finish_reason="failed"), "half", "server: failed"),
        (Reply("half \ud83d a character"), "half ? a character", "stop"),
    ],
)
def test_an_answer_is_read_wherever_it_stands_and_kept_as_it_came(serve, cache, reply, text, finish_reason):
    client = client_for(serve(lambda call: reply), cache)
    (response,) = run(client, requests(1, schema=SCHEMA))
    assert (response.text, response.finish_reason) == (text, finish_reason)
    assert cache.get(request(0, schema=SCHEMA).key).text == text and client.budget.prompt_tokens == 10


@pytest.mark.parametrize(
    "reply",
    [
        Reply(None),
        Reply([{"type": "image"}]),
        Reply(None, message={"reasoning_content": "Well"}),
        Reply(body=b'{"choices": [], ' + PAID),
        Reply(body=b'{"error": {"message": "no"}, ' + PAID),
        Reply(body=b'{"choices": [[1]]}'),
        Reply(body=b"[1]"),
    ],
)
def test_an_answer_that_cannot_be_read_is_paid_twice_at_most_and_is_no_record(serve, cache, reply):
    server = serve(lambda call: reply if call.question == "question 0" else Reply("ok"))
    client = client_for(server, cache)
    failure, _, _ = run(client, requests(3))
    assert isinstance(failure, Failure) and server.asked["question 0"] == 2 and client.budget.calls == 4
    assert texts(run(client_for(serve(lambda call: Reply("now")), cache), requests(1))) == ["now"]


def test_an_error_in_a_200_is_taken_by_its_code(serve, cache):
    busy = Reply(body=b'{"error": {"message": "Rate limit exceeded", "code": 429}}')
    server = serve(lambda call: busy if call.again < 3 else Reply(call.question))
    assert len(run(client_for(server, cache, retries=0), requests(3))) == 3


def test_a_budget_stops_and_starting_again_goes_on(serve, cache):
    server = serve(lambda call: Reply(usage={"prompt_tokens": 30, "completion_tokens": 20}))
    for _ in range(10):
        client = client_for(server, cache, max_tokens_total=500)
        try:
            run(client, requests(40, max_tokens=60))
        except MedComfortError as stop:
            assert "max_tokens_total = 500" in str(stop) and "start again" in str(stop)
        assert client.budget.prompt_tokens + client.budget.completion_tokens == 50 * client.budget.calls <= 500
    assert len(cache) == 40 and set(server.asked.values()) == {1}


@pytest.mark.parametrize("how", ["close", "ctrl-c"])
def test_an_end_from_outside_ends_the_calls_and_keeps_what_came(serve, cache, how):
    server = serve(lambda call: Reply(delay=0 if call.question == "question 0" else 30))
    client = client_for(server, cache)
    answers = client.run(requests(100), client.ask)
    next(answers)
    before, start = signal.signal(signal.SIGINT, signal.default_int_handler), time.monotonic()
    try:
        if how == "close":
            answers.close()
        else:
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
            with pytest.raises(KeyboardInterrupt):
                next(answers)
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - start < 10 and len(cache) == 1
    assert not [thread for thread in threading.enumerate() if thread.name == "llm"]


def test_an_error_in_work_is_raised_in_its_place_and_one_run_goes_at_a_time(serve, cache):
    client = client_for(serve(), cache)

    async def work(asked):
        return (await client.ask(asked)).text if asked.row != "row 3" else 1 / 0

    answers = client.run(requests(10), work)
    assert [next(answers) for _ in range(3)] == ["question 0", "question 1", "question 2"]
    with pytest.raises(MedComfortError, match="in the middle of a run"):
        run(client, requests(1))
    with pytest.raises(ZeroDivisionError):
        next(answers)


def test_a_cache_that_cannot_be_written_stops_the_run(serve, cache):
    server = serve(lambda call: Reply("x" * 10_000))
    cache._db.execute("PRAGMA max_page_count = 20")
    results, why = stopped(client_for(server, cache, concurrency=1), requests(1000))
    assert "cache.sqlite cannot be used (database or disk is full)" in why and len(server.calls) < 20


def test_replay_needs_no_server_and_names_what_is_missing_after_it_yielded_the_others(serve, cache):
    run(client_for(serve(), cache), requests(100)[::2])
    results, why = stopped(Client(Settings(mode="replay"), cache), requests(100))
    assert texts(results) == [f"question {number}" for number in range(0, 100, 2)]
    assert why.startswith("50 rows have no recorded response in ") and "holds 50 (the first: row 1)" in why
    program = "import sys, medcomfort_utils.llm; print({'aiohttp', 'openai'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, cwd=ROOT).stdout == b"set()\n"


def test_an_estimate_says_what_is_still_to_pay(serve, cache):
    run(client_for(serve(), cache), requests(40, max_tokens=100))
    client = Client(Settings(price_in=1.0, price_out=10.0), cache)
    estimate = client.estimate(request(number, max_tokens=100) for number in range(1000))
    assert (estimate.calls, estimate.cached, estimate.longest_tokens) == (960, 40, 96_000)
    assert estimate.completion_tokens == round(estimate.prompt_tokens * 5 / 2), "as long as the 40 on record"
    assert estimate.highest_cost == pytest.approx((estimate.prompt_tokens + 10 * 96_000) / 1e6)
    assert "960 calls to make (40 more are in the cache)" in str(estimate) and "cost about" in str(estimate)


def everything_said(error):
    """All texts that a person or a log could see of an exception: its chain, its arguments, its traceback."""
    said = traceback.format_exception(error)
    while error is not None:
        said += [repr(error), repr(vars(error))]
        error = error.__cause__ or error.__context__
    return "\n".join(said)


def test_the_key_goes_to_the_server_and_nowhere_else(serve, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MEDCOMFORT_API_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    escaped = "".join(f"\\u{ord(c):04x}" for c in KEY)
    replies = [
        Reply(f"my key is {KEY}"),
        Reply(f'{{"answer": "{escaped}"}}'),
        Reply(status=400, error={"message": f"{'x' * 280}{KEY}"}),
        Reply(raw=b""),
        Reply(status=401, error={"message": f"Incorrect API key provided: {KEY}"}),
    ]
    server = serve(lambda call: replies[int(call.question[-1])])
    with Cache(tmp_path / "cache.sqlite") as cache:
        client = client_for(server, cache, concurrency=1, retries=0)
        said = [repr(client), repr(client.settings), repr(vars(client))]
        with pytest.raises(MedComfortError) as caught:
            said.extend(map(repr, client.run(requests(5), client.ask)))
        cache.export_jsonl(tmp_path / "record.jsonl")
        said += [everything_said(caught.value), caplog.text, str(parse(cache.get(request(1).key).text, SCHEMA))]
        said += [path.read_bytes().decode("latin-1") for path in tmp_path.iterdir()]
    assert server.calls[0].headers["authorization"] == f"Bearer {KEY}"
    assert "[key]" in said[3] and caplog.text
    assert not [text for text in said if KEY in text or KEY[:9] in text or escaped in text]


def test_a_key_is_sent_only_where_it_belongs(serve, cache, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert _key_for("http://gpu-box:8000/v1") == ""
    assert _key_for("https://gpu-box:8000/v1") == _key_for("http://0.0.0.0:8000/v1") == KEY
    monkeypatch.setenv("MEDCOMFORT_API_KEY", "EMPTY")
    assert _key_for("http://gpu-box:8000/v1") == "EMPTY"
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    server = serve(lambda call: Reply("EMPTY stomach"))
    assert texts(run(client_for(server, cache, retries=0), requests(1))) == ["EMPTY stomach"]
    hosts = "127.0.0.2", "0.0.0.0", "[::1]", "[::]", "localhost", "10.0.0.1", "a.org"
    assert [_is_local(f"http://{host}:8000/v1") for host in hosts] == [True] * 5 + [False] * 2


@pytest.mark.parametrize(
    "base_url",
    [
        "",
        "localhost:8000",
        f"https://user:{KEY}@example.org/v1",
        f"https://example.org/v1?key={KEY}",
        f"https://example.org:{KEY}/v1",
        "http://exa mple.org/v1",
        "http://a..b:1/v1",
    ],
)
def test_an_address_that_cannot_be_right_is_refused(cache, monkeypatch, base_url):
    monkeypatch.setenv("OPENAI_BASE_URL", base_url)
    with pytest.raises(MedComfortError, match="base_url must hold no key .* http or https address") as caught:
        run(Client(Settings(), cache), requests(1))
    assert KEY not in everything_said(caught.value)
    assert checked_address("http://[::1]:8000/v1 ") == "http://[::1]:8000/v1"
