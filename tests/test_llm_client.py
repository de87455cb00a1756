"""The client against a server that fails as scripted: nothing is lost, nothing is paid twice, all is said clearly."""

import asyncio
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
import traceback
from dataclasses import replace
from itertools import islice

import pytest
from servers import FAULTS, Reply, StubServer

from medcomfort_utils.llm import Cache, Client, Failure, Request, Response, Settings, parse
from medcomfort_utils.llm import client as limits
from medcomfort_utils.llm.server import _key_for, checked_address
from medcomfort_utils.paths import ROOT, MedComfortError

SCHEMA = {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}
KEY = "sk-test-0123456789abcdef0123456789abcdef"


def request(number, schema=None, **sampling):
    question = {"role": "user", "content": f"question {number}"}
    return Request(f"row {number}", "m", (question,), {"temperature": 0, **sampling}, schema, "1")


def requests(count, **fields):
    return [request(number, **fields) for number in range(count)]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Short waits, and an environment without keys and addresses."""
    monkeypatch.setattr(limits, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(limits, "LONGEST_WAIT", 0.05)
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

    def start(script=lambda call: Reply(f"answer to {call.question}")):
        servers.append(StubServer(script).__enter__())
        return servers[-1]

    yield start
    for server in servers:
        server.__exit__()


def client_for(server, cache, **settings):
    return Client(Settings(**{"base_url": server.url, "timeout": 10.0, **settings}), cache)


def run(client, rows):
    return list(client.run(rows, client.ask))


# Every row comes out once, in order


def test_every_row_comes_out_once_in_order(serve, cache):
    server = serve(lambda call: Reply(call.question, delay=random.Random(call.question).random() / 50))
    responses = run(client_for(server, cache), requests(300))
    assert [response.text for response in responses] == [f"question {number}" for number in range(300)]
    assert len(server.calls) == len(cache) == 300
    assert responses[0] == Response("question 0", "stub-1", "stop", 10, 5, cached=False)


def test_the_second_time_nothing_is_paid(serve, cache):
    server = serve()
    first = run(client_for(server, cache), requests(50))
    again = run(client_for(server, cache), requests(60))
    assert [response.text for response in again[:50]] == [response.text for response in first]
    assert [response.cached for response in again] == [True] * 50 + [False] * 10
    assert len(server.calls) == 60


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_fault_that_may_heal_is_tried_again(serve, cache, fault):
    server = serve(lambda call: fault if call.again < 2 else Reply(call.question))
    stalls = fault.delay > 0
    responses = run(client_for(server, cache, timeout=0.5 if stalls else 10.0), requests(3))
    assert [response.text for response in responses] == ["question 0", "question 1", "question 2"]
    assert min(server.asked.values()) == 3
    assert stalls or max(server.asked.values()) == 3


def test_with_half_of_all_calls_failing_every_row_comes_out_once(serve, cache):
    faults = list(FAULTS.values())

    def script(call):
        rng = random.Random(f"{call.question} {call.again}")
        return rng.choice(faults) if rng.random() < 0.5 else Reply(call.question)

    server = serve(script)
    responses = run(client_for(server, cache, timeout=0.3, retries=30, concurrency=32), requests(300))
    assert [response.text for response in responses] == [f"question {number}" for number in range(300)]
    assert len(server.calls) > 500
    assert len(cache) == 300


def test_a_call_whose_bytes_only_drip_is_given_up(serve, cache):
    """The time-out is of the whole call, not of the pause between two bytes."""
    server = serve(lambda call: Reply(drip=0.1))
    (failure,) = run(client_for(server, cache, timeout=0.4, retries=1), requests(1))
    assert failure == Failure("no answer in 2 tries; at the last, no answer came within 0.4 s")


def test_retry_after_is_honoured_by_all_rows(serve, cache):
    def script(call):
        first = len(server.calls) == 1
        return Reply(status=429, headers={"Retry-After": "0.4"}, error={"message": "wait"}) if first else Reply()

    server = serve(script)
    client = client_for(server, cache, concurrency=1)
    assert all(isinstance(response, Response) for response in run(client, requests(5)))
    assert server.calls[1].at - server.calls[0].at >= 0.4
    assert len(server.calls) == 6, "only the call that was refused is made again"


# Errors that cannot heal


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refused_request_fails_its_row_and_no_other(serve, cache, status):
    refused = Reply(status=status, error={"message": "too\nlong", "code": "context_length"})
    server = serve(lambda call: refused if call.question == "question 1" else Reply())
    responses = run(client_for(server, cache), requests(3))
    assert responses[1] == Failure(f"the server refused the request ({status}): context_length too long")
    assert [type(response) for response in responses] == [Response, Failure, Response]
    assert server.asked["question 1"] == 1


def test_a_failure_is_replayed_but_asked_again_otherwise(serve, cache):
    sick = serve(lambda call: Reply(status=400, error={"message": "no"}) if "1" in call.question else Reply("first"))
    live = run(client_for(sick, cache), requests(3))
    assert run(Client(Settings(mode="replay"), cache), requests(3))[1] == live[1]
    assert Client(Settings(), cache).estimate(requests(3)).calls == 1
    healed = serve(lambda call: Reply("second"))
    assert [r.text for r in run(client_for(healed, cache), requests(3))] == ["first", "second", "first"]
    run(client_for(sick, cache, mode="record"), requests(3))
    assert cache.get(request(1).key).text == "second", "a failure does not overwrite a response"


def test_when_retries_are_used_up_the_row_fails(serve, cache):
    server = serve(lambda call: Reply(status=500, error={"message": "oops"}))
    responses = run(client_for(server, cache, retries=2), requests(2))
    assert responses == [Failure("no answer in 3 tries; at the last, the server answered 500: oops")] * 2
    assert server.asked == {"question 0": 3, "question 1": 3}


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (Reply(status=401, error={"message": f"Incorrect API key provided: {KEY}"}), "MEDCOMFORT_API_KEY"),
        (Reply(status=402, error={"message": "pay"}), "payment"),
        (Reply(status=403, error={"message": "no"}), "model 'm'"),
        (Reply(status=307, headers={"Location": "https://example.org/v1"}, body=b""), "elsewhere"),
        (Reply(status=404, error={"message": "no such model"}), "model 'm' and base_url"),
        (Reply(status=429, error={"message": "billing", "code": "insufficient_quota"}), "no quota left"),
        (Reply(status=429, headers={"Retry-After": "86400"}, error={"message": "daily limit"}), "wait 86400 s"),
    ],
)
def test_an_error_that_is_the_same_for_all_rows_stops_the_run(serve, cache, reply, told):
    server = serve(lambda call: reply if call.question == "question 5" else Reply())
    client = client_for(server, cache, concurrency=2)
    finished = []
    with pytest.raises(MedComfortError, match=told):
        finished.extend(client.run(requests(10_000), client.ask))
    assert len(server.calls) < 50
    with pytest.raises(MedComfortError, match=told):
        for response in client.run(requests(10_000), client.ask):
            finished.append(response)
    assert len(finished) >= 5, "rows that were answered before the stop are yielded"
    assert all(isinstance(response, Response) for response in finished)


def test_a_server_that_is_not_there_stops_the_run(serve, cache):
    server = serve()
    server.__exit__()
    with pytest.raises(MedComfortError, match=f"No server can be reached at {server.url}"):
        run(client_for(server, cache, retries=2), requests(10_000))


def test_a_stop_does_not_wait_for_the_turn_of_those_who_queue(serve, cache):
    server = serve(lambda call: Reply(status=401, error={"message": "no"}))
    start = time.monotonic()
    with pytest.raises(MedComfortError, match="401"):
        run(client_for(server, cache, requests_per_minute=1), requests(100))
    assert time.monotonic() - start < 30, "the second turn would come after a minute"
    assert len(server.calls) == 1


# Answers as they come


@pytest.mark.parametrize(
    ("reply", "text", "finish_reason"),
    [
        (Reply(""), "", "stop"),
        (Reply(None), "", "stop"),
        (Reply(None, finish_reason="content_filter"), "", "content_filter"),
        (Reply(None, refusal="I cannot."), "I cannot.", "refusal"),
        (Reply("{", finish_reason="length"), "{", "length"),
        (Reply("half", finish_reason="failed"), "half", "server: failed"),
        (Reply("half \ud83d a character"), "half ? a character", "stop"),
    ],
)
def test_an_answer_is_kept_as_it_came_also_if_it_is_of_no_use(serve, cache, reply, text, finish_reason):
    server = serve(lambda call: reply)
    (response,) = run(client_for(server, cache), requests(1))
    assert (response.text, response.finish_reason) == (text, finish_reason)
    assert cache.get(request(0).key).text == text
    assert run(client_for(server, cache), requests(1)) == [replace(response, cached=True)]
    assert len(server.calls) == 1


def test_a_question_that_cannot_be_sent_fails_its_row(serve, cache):
    broken = Request("row", "m", ({"role": "user", "content": "half \ud83d"},), {}, None, "1")
    failure, good = run(client_for(serve(), cache), [broken, request(0)])
    assert "half a character" in failure.reason
    assert isinstance(good, Response)


@pytest.mark.parametrize("usage", [None, {}, [3], "3", 3, {"prompt_tokens": "3", "completion_tokens": -1}])
def test_tokens_are_estimated_where_the_server_does_not_count_them(serve, cache, usage):
    server = serve(lambda call: Reply("x" * 400, usage=usage))
    (response,) = run(client_for(server, cache), requests(1))
    assert (response.prompt_tokens, response.completion_tokens) == (len("question 0") // 4, 100)


def test_sampling_goes_to_the_server_as_it_is(serve, cache):
    server = serve()
    run(client_for(server, cache), [request(0, top_p=0.9, max_tokens=20, seed=3, top_k=5)])
    sent = server.calls[0].body
    assert {name: sent[name] for name in ("top_p", "max_tokens", "seed", "top_k", "temperature", "model")} == {
        "top_p": 0.9,
        "max_tokens": 20,
        "seed": 3,
        "top_k": 5,
        "temperature": 0,
        "model": "m",
    }
    assert sent["messages"] == [{"role": "user", "content": "question 0"}]
    assert "response_format" not in sent


# Structured output


def test_a_schema_is_asked_for_where_the_server_knows_how(serve, cache):
    server = serve(lambda call: Reply('{"answer": "yes"}'))
    (response,) = run(client_for(server, cache), requests(1, schema=SCHEMA))
    assert parse(response.text, SCHEMA) == {"answer": "yes"}
    assert server.calls[0].body["response_format"]["json_schema"]["schema"] == SCHEMA
    assert server.calls[0].question == "question 0"


REFUSED = "the server refused the request (400): unknown response_format"


def refuses_structure(call):
    known = "response_format" not in call.body
    return Reply('{"answer": "yes"}') if known else Reply(status=400, error={"message": "unknown response_format"})


def test_a_server_that_refuses_schemas_is_asked_in_words_for_the_whole_run(serve, cache, caplog):
    server = serve(refuses_structure)
    responses = run(client_for(server, cache, concurrency=2), requests(20, schema=SCHEMA))
    assert [response.text for response in responses] == ['{"answer": "yes"}'] * 20
    structured = [call for call in server.calls if "response_format" in call.body]
    assert 1 <= len(structured) <= 2, "no more than the calls under way at the first refusal"
    assert '"required"' in server.calls[-1].question
    assert caplog.messages == [f"{server.url} takes no JSON schema ({REFUSED}); it is asked in words."]
    assert cache.get(request(0, schema=SCHEMA).key), "recorded under the request as it was put"


def test_one_bad_row_does_not_end_structured_output(serve, cache):
    def script(call):
        bad = "question 3" in call.question
        return Reply(status=400, error={"message": "too long"}) if bad else Reply('{"answer": "yes"}')

    server = serve(script)
    responses = run(client_for(server, cache, concurrency=1), requests(10, schema=SCHEMA))
    assert [type(response) for response in responses].count(Failure) == 1
    assert "response_format" in server.calls[-1].body


def test_work_may_ask_several_times_and_repair(serve, cache):
    def script(call):
        repairing = len(call.body["messages"]) == 3
        return Reply('{"answer": "yes"}' if repairing else "{'answer': 3}")

    server = serve(script)
    client = client_for(server, cache)

    async def work(asked):
        first = await client.ask(asked)
        second = await client.ask(asked.repair(first.text, "answer must be text"))
        return asked.row, parse(second.text, SCHEMA)

    rows = requests(40)
    assert list(client.run(rows, work)) == [(row.row, {"answer": "yes"}) for row in rows]
    assert len(server.calls) == 80


# Many at once, in bounded memory


def test_there_are_as_many_calls_at_once_as_allowed(serve, cache):
    server = serve(lambda call: Reply(delay=0.05))
    run(client_for(server, cache, concurrency=8), requests(80))
    assert server.busiest == 8


def test_the_pool_is_refilled_while_one_call_takes_long(serve, cache):
    server = serve(lambda call: Reply(delay=2 if call.question == "question 0" else 0))
    client = client_for(server, cache, concurrency=2)
    answers = client.run((request(number) for number in range(1000)), client.ask)
    next(answers)
    assert len(server.calls) == client.window, "all rows of the window were asked meanwhile, and no more"
    answers.close()


def test_rows_are_read_lazily(serve, cache):
    pulled = 0

    def endless():
        nonlocal pulled
        while True:
            pulled += 1
            yield request(pulled)

    client = client_for(serve(), cache, concurrency=2)
    answers = client.run(endless(), client.ask)
    for yielded, _ in enumerate(islice(answers, 200), 1):
        assert pulled <= yielded + client.window
    answers.close()
    assert pulled <= 200 + client.window


@pytest.mark.parametrize("mode", ["auto", "record"])
def test_equal_requests_under_way_are_paid_once(serve, cache, mode):
    server = serve(lambda call: Reply(str(random.random()), delay=0.2))
    responses = run(client_for(server, cache, mode=mode), [request(0)] * 20)
    assert len(server.calls) == 1
    assert len({response.text for response in responses}) == 1


def test_what_another_process_recorded_first_is_what_this_one_yields(serve, cache):
    def script(call):
        cache.put_many({request(0).key: Response("first", "stub-1", "stop", 10, 5, cached=False)})
        return Reply("second")

    (response,) = run(client_for(serve(script), cache), requests(1))
    assert (response.text, cache.get(request(0).key).text) == ("first", "first")


def test_runs_where_an_event_loop_already_runs(serve, cache):
    client = client_for(serve(), cache)

    async def cell():
        return run(client, requests(5))

    assert len(asyncio.run(cell())) == 5


def test_a_client_may_run_again_after_its_limits_have_bitten(serve, cache):
    """Two calls of 1,000 tokens at most fit into the budget at once, so that others wait; each takes but 15."""
    client = client_for(serve(), cache, concurrency=4, requests_per_minute=60_000, max_tokens_total=2500)
    run(client, requests(30, max_tokens=1000))
    assert len(run(client, requests(60, max_tokens=1000))) == 60


def test_requests_a_minute_are_kept(serve, cache):
    server = serve()
    run(client_for(server, cache, requests_per_minute=1200), requests(20))
    assert server.calls[-1].at - server.calls[0].at > 19 * 0.05 - 0.1


# Stopping


def test_a_budget_stops_and_starting_again_goes_on(serve, cache):
    server = serve(lambda call: Reply(usage={"prompt_tokens": 30, "completion_tokens": 20}))
    rows, yielded = requests(40, max_tokens=60), 0
    for _ in range(10):
        client = client_for(server, cache, max_tokens_total=500)
        finished = []
        try:
            finished.extend(client.run(rows, client.ask))
        except MedComfortError as stop:
            assert "max_tokens_total = 500" in str(stop) and "start again" in str(stop)
        spent = client.budget.prompt_tokens + client.budget.completion_tokens
        assert spent <= 500
        assert 0 < spent == 50 * (len(cache) - yielded)
        yielded = len(cache)
        if yielded == 40:
            break
    assert yielded == 40
    assert server.asked == {f"question {number}": 1 for number in range(40)}


def test_rows_finished_before_a_stop_are_yielded_first(serve, cache):
    client = client_for(serve(), cache, max_tokens_total=100, concurrency=1)
    finished = []
    with pytest.raises(MedComfortError, match="budget"):
        for response in client.run(requests(100, max_tokens=5), client.ask):
            finished.append(response)
    assert len(finished) == len(cache) > 3


def test_max_cost_needs_prices():
    with pytest.raises(MedComfortError, match="price_in"):
        Settings(max_cost=1.0)


def test_closing_the_iterator_ends_the_calls_and_keeps_what_came(serve, cache):
    server = serve(lambda call: Reply(delay=0 if call.question == "question 0" else 30))
    client = client_for(server, cache)
    answers = client.run(requests(100), client.ask)
    assert next(answers).text == "I hear you."
    start = time.monotonic()
    answers.close()
    assert time.monotonic() - start < 10
    assert len(cache) == 1
    assert not [thread for thread in threading.enumerate() if thread.name == "llm"]


@pytest.fixture
def heeding_ctrl_c():
    """As at a terminal: a shell starts its background jobs with Ctrl-C ignored, and the tests may be one."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeding_ctrl_c")
def test_ctrl_c_ends_the_calls_and_keeps_what_came(serve, cache):
    server = serve(lambda call: Reply(delay=0 if call.question == "question 0" else 30))
    client = client_for(server, cache)
    answers = client.run(requests(100), client.ask)
    next(answers)
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        next(answers)
    assert time.monotonic() - start < 10
    assert len(cache) == 1
    assert not [thread for thread in threading.enumerate() if thread.name == "llm"]


def test_an_error_in_work_is_raised_in_its_place(serve, cache):
    client = client_for(serve(), cache)

    async def work(asked):
        if asked.row == "row 3":
            raise ValueError("a mistake in work")
        return (await client.ask(asked)).text

    answers = client.run(requests(10), work)
    assert [next(answers) for _ in range(3)] == [f"answer to question {number}" for number in range(3)]
    with pytest.raises(ValueError, match="a mistake in work"):
        next(answers)


def test_one_run_at_a_time(serve, cache):
    client = client_for(serve(), cache)
    answers = client.run(requests(3), client.ask)
    next(answers)
    with pytest.raises(MedComfortError, match="in the middle of a run"):
        run(client, requests(1))
    assert len(list(answers)) == 2


def test_a_cache_that_cannot_be_written_stops_the_run(serve, cache):
    server = serve(lambda call: Reply("x" * 10_000))
    cache._db.execute("PRAGMA max_page_count = 20")
    with pytest.raises(MedComfortError, match=r"cache.sqlite cannot be used \(database or disk is full\)"):
        run(client_for(server, cache, concurrency=1), requests(1000))
    assert 0 < len(cache) < len(server.calls) < 20


# Replay and record


def test_replay_needs_no_server_no_key_and_not_the_openai_package(serve, cache, tmp_path):
    run(client_for(serve(), cache), requests(100))
    program = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests")!r})
from test_llm_client import *
cache = Cache({str(tmp_path / "cache.sqlite")!r})
answers = run(Client(Settings(mode="replay"), cache), requests(100))
assert [a.text for a in answers] == [f"answer to question {{n}}" for n in range(100)]
assert all(a.cached for a in answers)
print("openai" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_replay_names_the_missing_rows_after_it_yielded_the_others(serve, cache):
    run(client_for(serve(), cache), requests(100)[::2])
    client = Client(Settings(mode="replay"), cache)
    finished = []
    with pytest.raises(MedComfortError) as caught:
        for response in client.run(requests(100), client.ask):
            finished.append(response.text)
    assert finished == [f"answer to question {number}" for number in range(0, 100, 2)]
    assert str(caught.value).startswith("50 rows have no recorded response in ")
    assert "(row 1, row 3, row 5, row 7, row 9, ...), which holds 50 responses, by " in str(caught.value)


def test_record_asks_again_and_overwrites(serve, cache):
    run(client_for(serve(lambda call: Reply("old")), cache), requests(3))
    server = serve(lambda call: Reply("new"))
    assert [response.text for response in run(client_for(server, cache, mode="record"), requests(3))] == ["new"] * 3
    assert cache.get(request(0).key).text == "new"


def test_an_estimate_tells_what_is_still_to_pay(serve, cache):
    run(client_for(serve(), cache), requests(40, max_tokens=100))
    client = Client(Settings(price_in=1.0, price_out=10.0), cache)
    estimate = client.estimate(request(number, max_tokens=100) for number in range(1000))
    assert (estimate.calls, estimate.cached, estimate.longest_tokens) == (960, 40, 96_000)
    assert estimate.prompt_tokens == 960 * 2 + 60 * 0 + sum(len(f"question {n}") // 4 - 2 for n in range(40, 1000))
    assert estimate.completion_tokens == round(estimate.prompt_tokens * 5 / 2), "as long as the 40 on record"
    assert estimate.cost == pytest.approx((estimate.prompt_tokens + 10 * estimate.completion_tokens) / 1e6)
    assert estimate.highest_cost == pytest.approx((estimate.prompt_tokens + 10 * 96_000) / 1e6)
    assert "960 calls to make (40 more are in the cache)" in str(estimate)
    assert "cost about" in str(estimate)
    unpriced = Client(Settings(mode="record"), cache).estimate(requests(40, max_tokens=100))
    assert unpriced.calls == 40 and str(unpriced).endswith("(at most 4,000), no price was given")


def test_an_estimate_without_a_record_takes_the_share_that_is_given(cache):
    client = Client(Settings(), cache)
    few = client.estimate(requests(10, max_tokens=100), share=0.5)
    assert (few.prompt_tokens, few.completion_tokens) == (20, 10)
    assert client.estimate(requests(10, max_tokens=1), share=9.0).completion_tokens == 10, "no more than max_tokens"


# The key, and where it goes


def everything_said(error):
    """All texts that a person or a log could see of an exception: its chain, its arguments, its traceback."""
    texts = traceback.format_exception(error)
    while error is not None:
        texts += [repr(error), repr(vars(error))]
        error = error.__cause__ or error.__context__
    return "\n".join(texts)


def test_the_key_goes_to_the_server_and_nowhere_else(serve, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MEDCOMFORT_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-another")
    caplog.set_level(logging.DEBUG)
    replies = [
        Reply(f"my key is {KEY}"),
        Reply(status=400, error={"message": f"bad request with {KEY}"}),
        Reply(status=401, error={"message": f"Incorrect API key provided: {KEY}"}),
    ]
    server = serve(lambda call: replies[int(call.question[-1])])
    with Cache(tmp_path / "cache.sqlite") as cache:
        client = client_for(server, cache, concurrency=1)
        said = [repr(client), repr(client.settings), repr(vars(client))]
        with pytest.raises(MedComfortError) as caught:
            for response in client.run(requests(3), client.ask):
                said.append(repr(response))
        cache.export_jsonl(tmp_path / "record.jsonl")
        said += [everything_said(caught.value), caplog.text]
        said += [path.read_bytes().decode("latin-1") for path in tmp_path.iterdir()]
    assert server.calls[0].headers["authorization"] == f"Bearer {KEY}"
    assert "[key]" in said[3] and "[key]" in said[4]
    assert caplog.text
    assert not [text for text in said if KEY in text or KEY[:16] in text]


@pytest.mark.parametrize("before", [0, 255, 280, 299, 400])
def test_a_long_message_that_holds_the_key_is_not_cut_within_it(serve, cache, monkeypatch, before):
    monkeypatch.setenv("MEDCOMFORT_API_KEY", KEY)
    server = serve(lambda call: Reply(status=400, error={"message": f"{'x' * before}{KEY}"}))
    (failure,) = run(client_for(server, cache), requests(1))
    assert KEY[:3] not in failure.reason and KEY[:3] not in repr(cache.get(request(0).key))


def test_a_connection_that_fails_does_not_tell_the_key(serve, cache, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = serve(lambda call: Reply(drop=True))
    (failure,) = run(client_for(server, cache, retries=0), requests(1))
    assert failure == Failure("no answer in 1 tries; at the last, the connection failed")
    assert server.calls[0].headers["authorization"] == f"Bearer {KEY}"


def test_a_key_with_odd_characters_is_refused_and_not_shown(serve, cache, monkeypatch):
    monkeypatch.setenv("MEDCOMFORT_API_KEY", KEY + "\u201d")
    with pytest.raises(MedComfortError, match="characters") as caught:
        run(client_for(serve(), cache), requests(1))
    assert KEY not in everything_said(caught.value)


def test_a_key_meant_for_openai_is_not_sent_in_the_clear_to_another_machine(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert _key_for("http://gpu-box:8000/v1") == ""
    assert _key_for("https://gpu-box:8000/v1") == _key_for("http://127.0.0.1:8000/v1") == KEY
    monkeypatch.setenv("MEDCOMFORT_API_KEY", "for-that-box")
    assert _key_for("http://gpu-box:8000/v1") == "for-that-box"


def test_a_proxy_in_the_environment_is_not_used_for_a_local_server(serve, cache, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    assert isinstance(run(client_for(serve(), cache, retries=0), requests(1))[0], Response)


def test_a_short_word_as_key_of_a_local_server_is_not_cut_out_of_answers(serve, cache, monkeypatch):
    monkeypatch.setenv("MEDCOMFORT_API_KEY", "EMPTY")
    server = serve(lambda call: Reply("EMPTY stomach"))
    assert run(client_for(server, cache), requests(1))[0].text == "EMPTY stomach"


@pytest.mark.parametrize(
    ("base_url", "told"),
    [
        ("", "base_url is empty"),
        ("localhost:8000", "must be an http or https address"),
        (f"https://user:{KEY}@example.org/v1", "no key or password"),
        (f"https://example.org/v1?key={KEY}", "no key or password"),
        (f"https://example.org:{KEY}/v1", "must be an http or https address"),
        ("http://exa mple.org/v1", "must be an http or https address"),
        ("http://127.0.0.1:1/v\n1", "must be an http or https address"),
        ("http://a..b:1/v1", "must be an http or https address"),
        ("http://" + "a" * 70 + ".org/v1", "must be an http or https address"),
    ],
)
def test_an_address_that_cannot_be_right_is_refused(cache, base_url, told):
    with pytest.raises(MedComfortError, match=told) as caught:
        run(Client(Settings(base_url=base_url), cache), requests(1))
    assert KEY not in everything_said(caught.value)


def test_a_key_in_the_address_is_refused_before_anything_is_shown(monkeypatch):
    with pytest.raises(MedComfortError, match="no key or password") as caught:
        Settings(base_url=f"https://user:{KEY}@example.org/v1", mode="replay")
    assert KEY not in str(caught.value)
    monkeypatch.setenv("OPENAI_BASE_URL", f"https://example.org/v1?key={KEY}")
    with pytest.raises(MedComfortError, match="no key or password") as caught:
        checked_address(os.environ["OPENAI_BASE_URL"])
    assert KEY not in everything_said(caught.value)


def test_the_address_may_stand_in_the_environment(serve, cache, monkeypatch):
    server = serve()
    monkeypatch.setenv("MEDCOMFORT_BASE_URL", server.url)
    assert len(run(Client(Settings(), cache), requests(2))) == 2


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"mode": "rerun"}, "mode must be 'auto', 'replay' or 'record', not 'rerun'."),
        ({"concurrency": 0}, "concurrency must be greater than or equal to 1, not 0."),
        ({"retries": -1}, "retries must be greater than or equal to 0, not -1."),
        ({"timeout": 0.0}, "timeout must be greater than 0, not 0.0."),
        ({"timeout": float("inf")}, "timeout must be a finite number, not inf."),
        ({"max_cost": -1.0}, "max_cost must be greater than or equal to 0, not -1.0."),
        ({"max_tokens_total": "many"}, "max_tokens_total must be a valid integer, .*, not 'many'."),
        ({"price_out": float("nan")}, "price_out must be a finite number, not nan."),
    ],
)
def test_settings_that_make_no_sense_are_named(settings, told):
    with pytest.raises(MedComfortError, match=told):
        Settings(**settings)
