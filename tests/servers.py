"""Stand-ins for an OpenAI-compatible server, on 127.0.0.1: one that fails as a script says, one for measuring.

As a program, `python tests/servers.py --latency 0.2` prints its address, answers every call after so many seconds
with its number, tells at /v1/calls how often each last message was asked, and ends when its standard input does.
"""

import argparse
import asyncio
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Reply:
    """One answer of the server; the defaults are a good one."""

    text: str | None = "I hear you."
    status: int = 200
    headers: dict = field(default_factory=dict)
    error: dict | None = None  # the body of a refusal
    finish_reason: str = "stop"
    refusal: str | None = None
    usage: dict | None = field(default_factory=lambda: {"prompt_tokens": 10, "completion_tokens": 5})
    delay: float = 0.0  # seconds
    drop: bool = False  # close the connection without a word
    cut: bool = False  # close it in the middle of the body
    drip: float = 0.0  # seconds between two bytes
    body: bytes | None = None  # this, in place of a chat completion

    def content(self) -> bytes:
        """The body."""
        message = {"role": "assistant", "content": self.text, "refusal": self.refusal}
        choice = {"index": 0, "finish_reason": self.finish_reason, "message": message}
        good = {"object": "chat.completion", "model": "stub-1", "choices": [choice], "usage": self.usage}
        return (
            self.body if self.body is not None else json.dumps({"error": self.error} if self.error else good).encode()
        )

    def wire(self) -> bytes:
        """The whole HTTP response."""
        content = self.content()
        headers = {"content-type": "application/json", "content-length": len(content), **self.headers}
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"HTTP/1.1 {self.status} Said\r\n{head}\r\n".encode() + content


@dataclass
class Call:
    """A request as the server saw it; `again` counts the earlier ones with the same last message."""

    body: dict
    headers: dict
    again: int
    at: float

    @property
    def question(self) -> str:
        return self.body["messages"][-1]["content"]


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
        wire = reply.wire()
        if self.transport.is_closing():
            return
        if reply.drip:
            self.drip(wire, reply.drip)
        elif not reply.drop:
            self.transport.write(wire[: len(wire) - len(reply.content()) // 2] if reply.cut else wire)
        if reply.drop or reply.cut:
            self.transport.close()

    def drip(self, wire: bytes, pause: float):
        if wire and not self.transport.is_closing():
            self.transport.write(wire[:1])
            asyncio.get_running_loop().call_later(pause, self.drip, wire[1:], pause)


class StubServer:
    """Answers as `script(call)` says, in a thread of its own; a context manager.

    `url`: the base URL. `calls`: every Call in order. `asked`: how often each last message came.
    `busiest`: the most calls that were under way at once.
    """

    def __init__(self, script: Callable[[Call], Reply] = lambda call: Reply()):
        self.script, self.calls, self.asked = script, [], Counter()
        self.busy = self.busiest = 0

    def reply(self, first: str, headers: dict, content: bytes) -> Reply:
        """What to answer to one HTTP request."""
        if first.startswith("GET"):
            return Reply(body=json.dumps(self.asked).encode())
        body = json.loads(content)
        call = Call(body, headers, 0, time.monotonic())
        call.again, self.asked[call.question] = self.asked[call.question], self.asked[call.question] + 1
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency", type=float, default=0.2, help="seconds until the answer")
    parser.add_argument("--forget", action="store_true", help="count nothing and answer always the same, for measuring")
    parser.add_argument("--text", default="I hear you. " * 20, help="that answer")
    options = parser.parse_args()
    server = StubServer(lambda call: Reply(f"answer {len(server.calls)}", delay=options.latency))
    if options.forget:
        always = Reply(options.text, delay=options.latency)
        server.reply = lambda first, headers, content: always

    async def serve() -> None:
        await server.listen()
        print(server.url, flush=True)
        await asyncio.to_thread(sys.stdin.read)

    asyncio.run(serve())


if __name__ == "__main__":
    main()
