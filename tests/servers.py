"""Stand-ins for an OpenAI-compatible server, on 127.0.0.1: one that fails as a script says, one for measuring.

As a program, `python tests/servers.py failing --latency 0.02` prints its address, answers as the script of that name
does, each call after so many seconds, lists at /v1/calls what it sent, and ends when its standard input does.
"""

import argparse
import asyncio
import hashlib
import itertools
import json
import random
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

FEELINGS = {
    "fear": "I am so scared.",
    "sadness": "I am so sad.",
    "anger": "I am so angry.",
    "guilt": "I feel so guilty.",
    "loneliness": "I feel so alone.",
}
OPENING = "You sound frightened, and it makes sense that an ache of that length wears you down."


@dataclass
class Reply:
    """One answer of the server; the defaults are a good one."""

    text: str | list | None = "I hear you."
    model: str = "stub-1"
    status: int = 200
    headers: dict = field(default_factory=dict)
    error: dict | None = None  # the body of a refusal
    finish_reason: str = "stop"
    refusal: str | None = None
    message: dict = field(default_factory=dict)  # more of the message
    usage: dict | None = field(default_factory=lambda: {"prompt_tokens": 10, "completion_tokens": 5})
    delay: float = 0.0  # seconds
    body: bytes | None = None  # this, in place of a chat completion
    raw: bytes | None = None  # this, in place of all of it; then the connection is closed

    def wire(self) -> bytes:
        """The whole HTTP response."""
        if self.raw is not None:
            return self.raw
        message = {"role": "assistant", "content": self.text, "refusal": self.refusal, **self.message}
        choice = {"index": 0, "finish_reason": self.finish_reason, "message": message}
        good = {"object": "chat.completion", "model": self.model, "choices": [choice], "usage": self.usage}
        content = json.dumps({"error": self.error} if self.error else good).encode() if self.body is None else self.body
        headers = {"content-type": "application/json", "content-length": len(content), **self.headers}
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"HTTP/1.1 {self.status} Said\r\n{head}\r\n".encode() + content


@dataclass
class Call:
    """A request as the server saw it; `again` counts the earlier ones with the same messages."""

    body: dict
    headers: dict = field(default_factory=dict)
    again: int = 0
    at: float = 0.0

    def __post_init__(self):
        messages = self.body["messages"]
        self.question = messages[-1]["content"]
        self.name = hashlib.sha256(json.dumps(messages).encode()).hexdigest()  # of the whole conversation
        self.asks_for_question = "You rewrite messages" in messages[0]["content"]  # not for an answer

    def data(self, which: int = 0) -> str:
        """What stands between the marker lines of a prompt: the question; in the second prompt, 1 is the old answer."""
        prompt = self.body["messages"][1]["content"]
        return prompt.split(re.search(r"^====== [0-9a-f]{12} ======$", prompt, re.M)[0])[1::2][which].strip()


# Replies that may be better the next time.
FAULTS = {
    "429": Reply(status=429, error={"message": "slow down"}),
    "429 with Retry-After": Reply(status=429, headers={"Retry-After": "0.02"}, error={"message": "slow down"}),
    "500": Reply(status=500, error={"message": "oops"}),
    "503 without JSON": Reply(status=503, body=b"<html>overloaded</html>"),
    "dropped": Reply(raw=b""),
    "cut off": Reply(raw=b"HTTP/1.1 200 Said\r\ncontent-length: 99\r\n\r\n{"),
    "stalled": Reply(delay=30),
    "JSON cut off": Reply(body=b'{"choices": [{"mess'),
    "an error in a 200": Reply(body=b'{"error": {"code": 502}}'),
    "not UTF-8": Reply(body=b'{"choices": "\xff\xfe"}'),
    "status line broken": Reply(raw=b"HTTP/1.1 2x0 Said\r\n\r\n"),
}
# Whole answers, paid for, that cannot be used.
USELESS = {
    "truncated": Reply('{"question": "half of', finish_reason="length"),
    "wrong schema": Reply('{"wrong": "schema"}'),
    "a key twice": Reply('{"question": "one", "question": "two", "segments": [], "segments": []}'),
    "refusal": Reply(None, refusal="I cannot do that."),
    "refusal in words": Reply("I'm sorry, but I can't help with that."),
}


def limited(rate: float, burst: float = 1.0, headers: dict | None = None, reply: Reply | None = None) -> Callable:
    """A script that answers `rate` calls a second, evenly or as a bucket of `burst`, and refuses the others."""
    refusal, good = Reply(status=429, headers=headers or {}, error={"message": "slow down"}), reply or Reply()
    left, at = burst, time.monotonic()

    def script(call: Call | None = None) -> Reply:
        nonlocal left, at
        now = time.monotonic()
        left, at = min(burst, left + (now - at) * rate), now
        granted = left >= 1
        left -= granted
        return good if granted else refusal

    return script


def rewriting(call: Call) -> Reply:
    """A rewriter that does its work: the source's words, with a feeling before them, or with comfort."""
    if call.asks_for_question:
        emotion = re.search(r"out of (\w+) \(", call.body["messages"][0]["content"])[1]
        said = {"question": f"{FEELINGS[emotion]} {call.data()}"}
    else:
        lines = list(enumerate(call.data(1).strip().splitlines(), 1))
        first = [number for number, line in lines if "(urgent now)" in line]
        rest = [number for number, _ in lines if number not in first]
        said = {"segments": [{"keep": first}, {"say": OPENING}, {"keep": rest}][not first :]}
    return Reply(json.dumps(said), model=call.name)


def failing(call: Call) -> Reply:
    """Half of all calls fail, five times a request at most, and half of all answers are of no use, always the same."""
    rng = random.Random(f"{call.name} {call.again}")
    if call.again < 5 and rng.random() < 0.5:
        return rng.choice(list(FAULTS.values()))
    rng = random.Random(call.name)
    useless = replace(rng.choice(list(USELESS.values())), model=call.name)
    return useless if rng.random() < 0.5 else rewriting(call)


class _Connection(asyncio.Protocol):
    def __init__(self, server: "StubServer"):
        self.server, self.received = server, b""

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.received += data
        head, blank, rest = self.received.partition(b"\r\n\r\n")
        if not blank:
            return
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", 0))
        if len(rest) >= length:
            self.received = rest[length:]
            self.server.busy += 1
            self.server.busiest = max(self.server.busiest, self.server.busy)
            reply = self.server.reply(first, headers, rest[:length])
            asyncio.get_running_loop().call_later(reply.delay, self.send, reply)

    def send(self, reply: Reply):
        self.server.busy -= 1
        if self.transport.is_closing():
            return
        if reply.status == 200 and reply.body is reply.raw is None:
            self.server.paid[reply.model] += 1
        self.transport.write(reply.wire())
        if reply.raw is not None:
            self.transport.close()


class StubServer:
    """Answers as `script(call)` says, in a thread of its own; a context manager.

    `url`: the base URL. `calls`: every Call in order. `asked`: how often each last message came. `paid`: how often a
    whole answer went out, by the model's name in it. `busiest`: the most calls that were under way at once.
    """

    def __init__(self, script: Callable[[Call], Reply] = lambda call: Reply()):
        self.script, self.calls, self.asked, self.paid = script, [], Counter(), Counter()
        self._again = Counter()
        self.busy = self.busiest = 0

    def reply(self, first: str, headers: dict, content: bytes) -> Reply:
        """What to answer to one HTTP request."""
        if first.startswith("GET"):
            return Reply(body=json.dumps({"calls": len(self.calls), "paid": self.paid}).encode())
        call = Call(json.loads(content), headers, at=time.monotonic())
        call.again = self._again[call.name]
        self._again[call.name] += 1
        self.asked[call.question] += 1
        self.calls.append(call)
        return self.script(call)

    async def listen(self) -> asyncio.Server:
        """Bind to a free port; sets `url`."""
        listening = await asyncio.get_running_loop().create_server(lambda: _Connection(self), "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1"
        return listening

    def __enter__(self) -> "StubServer":
        self._loop = asyncio.new_event_loop()
        self._listening = self._loop.run_until_complete(self.listen())
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        if self._loop.is_closed():
            return
        self._loop.call_soon_threadsafe(self._listening.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


NUMBERS = itertools.count()
SCRIPTS = {"counting": lambda call: Reply(f"answer {next(NUMBERS)}"), "rewriting": rewriting, "failing": failing}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("script", choices=(*SCRIPTS, "fixed"))
    parser.add_argument("--latency", type=float, default=0.0, help="seconds until the answer")
    parser.add_argument("--text", default="", help="the answer of fixed")
    parser.add_argument("--rate", type=float, default=0.0, help="answers a second, of fixed; no more are given")
    parser.add_argument("--retry-after", default="", help="seconds that a refused call is asked to wait")
    parser.add_argument("--forget", action="store_true", help="count nothing, for measuring")
    options = parser.parse_args()

    def later(reply: Reply) -> Reply:
        return replace(reply, delay=reply.delay or options.latency)

    server, always = StubServer(), later(Reply(options.text))
    headers = {"Retry-After": options.retry_after} if options.retry_after else {}
    if options.script == "fixed":
        script = limited(options.rate, headers=headers, reply=always) if options.rate else lambda call: always
        server.reply = lambda first, headers, content: script(None)
    elif options.forget:
        server.reply = lambda first, headers, content: later(SCRIPTS[options.script](Call(json.loads(content))))
    else:
        server.script = lambda call: later(SCRIPTS[options.script](call))

    async def serve() -> None:
        await server.listen()
        print(server.url, flush=True)
        await asyncio.to_thread(sys.stdin.read)

    asyncio.run(serve())


if __name__ == "__main__":
    main()
