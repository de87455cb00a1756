"""One OpenAI-compatible server: what it takes, and what each of its answers means."""

import json
import logging
import os
import re
import urllib.request
import zlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from medcomfort_utils.llm.cache import FAILED, Failure, Request, Response, estimated_tokens
from medcomfort_utils.llm.limits import PATIENCE, Pace, Stopped, retry_after
from medcomfort_utils.llm.parsing import written
from medcomfort_utils.paths import MedComfortError
from medcomfort_utils.schema import Settings

LOG = logging.getLogger(__name__)
KEYS = ("MEDCOMFORT_API_KEY", "OPENAI_API_KEY")
ADDRESSES = ("MEDCOMFORT_BASE_URL", "OPENAI_BASE_URL")
LARGEST = 2**22  # bytes of a decoded body; no answer that is asked for here comes near
LONGEST_REASON = 300  # characters of a server's own words that are kept, cut after the key was taken out
LONGEST_PAUSE = 600.0  # seconds that a server may ask to wait before it is better to stop
RETRYABLE = (408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529)  # may succeed later
MOVED = "sends the call elsewhere ({status}), where patients' texts may not belong: set base_url to where it should go"
FATAL = {
    **dict.fromkeys((301, 302, 303, 307, 308), MOVED),
    401: "refuses the key, or wants one (401): set MEDCOMFORT_API_KEY to a valid one; OPENAI_API_KEY is taken too, but "
    "over plain http to this machine alone",
    402: "asks for payment (402): see to the account behind the key",
    403: "denies access (403): the key may not use the model '{model}'",
    404: "has nothing there (404): check the model '{model}' and base_url, which mostly ends in /v1",
    405: "has no chat completions there (405): check base_url, which mostly ends in /v1",
}
# What servers say of a request that they do not take as it is, and how it is changed then.
MODERATED = re.compile(r"moderat|flagged|content.?(policy|filter|management)|safety", re.I)
NO_SYSTEM = re.compile(r"\bsystem\W* (role|message|prompt|turn)|role.{0,20}system|developer inst|must alternate", re.I)
UNSUPPORTED = re.compile(r"support|unknown|unrecogni[sz]ed|unexpected|not (allowed|permitted)|only", re.I)
NO_SCHEMA = re.compile(r"grammar|schema|response.?format|structured|guided|json", re.I)
DESCRIBE = "\n\nAnswer with one JSON object that fits this JSON schema, and with no text before or after it:\n{schema}"
CHANGED = {
    "system": "takes no system turn; its text stands before the user's",
    "max_tokens": "wants max_tokens as max_completion_tokens",
    "response_format": "takes no JSON schema; it is asked in words",
}


@dataclass(frozen=True)
class Again:
    """A call that failed and may succeed later."""

    reason: str
    slow_down: bool = False  # it was refused for its haste alone, which costs no try
    paid: bool = False  # its tokens were used all the same
    unreachable: bool = False  # there was no connection at all


@dataclass(frozen=True)
class Refusal:
    """An error of the server, as its status and its own words; `wait`: the pause in seconds that it asked for."""

    status: int
    words: str
    wait: float | None = None


class Server:
    """A connection pool to one server; belongs to one event loop. `book` takes the tokens of each answer."""

    def __init__(self, settings: Settings, pause: Callable[[float], Awaitable], book: Callable[[int, int], None]):
        """Read the address, where it is not given, and the key from the environment. Raises MedComfortError."""
        import aiohttp  # only here: a replay needs neither the package nor a key

        self.base_url = checked_address(settings.base_url or _environment(ADDRESSES))
        self.pace, self._book, self._timeout = Pace(settings, pause), book, settings.timeout
        self._learnt: dict[str, str] = {}  # how all requests are changed, and the words that taught it
        self._structured = False  # whether it has answered by a schema
        key, url = _key_for(self.base_url), urlsplit(self.base_url)
        self._secret = _pattern(key) if len(key) >= 8 else None  # "EMPTY" and the like are no secret
        proxy = None if _is_local(self.base_url) or urllib.request.proxy_bypass(url.hostname) else url.scheme
        self._proxy = urllib.request.getproxies().get(proxy)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=settings.concurrency),
            timeout=aiohttp.ClientTimeout(total=settings.timeout),  # of the whole call, however slowly the bytes drip
            headers={"Content-Type": "application/json", "Accept-Encoding": "identity"}
            | ({"Authorization": f"Bearer {key}"} if key else {}),
            auto_decompress=False,
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def answer(self, request: Request, last: bool = False) -> Response | Failure | Again:
        """Ask once; what the server refuses in all requests is changed and asked at once, and learnt for the run.

        `last`: there is no other try. Raises Stopped where no request can succeed: wrong key or address, no money left.
        """
        changes = dict(self._learnt)
        while True:
            left = await self.pace.turn(request.prompt_tokens + request.completion_tokens)
            outcome = await self._post(request, changes)
            if not isinstance(outcome, Refusal) or outcome.status != 429:
                self.pace.granted()
            if not isinstance(outcome, Refusal):
                break
            change = self._change(request, outcome, changes, last)
            if not change:
                return self._meaning(request, outcome, left)
            changes[change] = outcome.words
        if isinstance(outcome, Response):
            self._learn(request, changes)
        return outcome

    def _change(self, request: Request, refusal: Refusal, changes: Mapping[str, str], last: bool) -> str:
        """What to change in the request after this refusal; nothing if it is not of that kind."""
        if refusal.status not in (400, 422, 500, 501):
            return ""
        words = refusal.words
        if request.messages[0]["role"] == "system" and "system" not in changes and NO_SYSTEM.search(words):
            return "system"
        if "max_completion_tokens" in words and "max_tokens" in request.sampling and "max_tokens" not in changes:
            return "max_tokens"
        if UNSUPPORTED.search(words):
            for name in request.sampling.keys() - changes.keys() - {"max_tokens", "max_completion_tokens"}:
                if re.search(rf"\b{re.escape(name)}\b", words):
                    return name
        outright = refusal.status != 500 or last or NO_SCHEMA.search(words)  # a 500 may pass
        return "response_format" if request.schema and outright and "response_format" not in changes else ""

    def _learn(self, request: Request, changes: Mapping[str, str]) -> None:
        """Keep the changes that helped; a schema is given up only if none has been taken yet."""
        if request.schema and "response_format" not in changes:
            self._structured = True
        for change in changes.keys() - self._learnt.keys():
            if change != "response_format" or not self._structured:
                self._learnt[change] = changes[change]
                how = CHANGED.get(change, f"takes no {change}; it is left out")
                LOG.warning("%s %s (%s).", self.base_url, how, changes[change])

    def _meaning(self, request: Request, refusal: Refusal, left: float) -> Failure | Again:
        """What an error means for the row; Stopped if it means the same for all rows."""
        status, words, wait = refusal.status, refusal.words, refusal.wait
        if status == 403 and (self.pace.answers or MODERATED.search(words)):
            return Failure(f"the server refused the request (403): {words}")
        if status in FATAL:
            why = FATAL[status].format(model=request.model, status=status)
            raise Stopped(f"{self.base_url} {why}; it says: {words}.")
        if "insufficient_quota" in words:
            raise Stopped(f"{self.base_url} says that the account has no quota left ({status}).")
        if status not in RETRYABLE:
            return Failure(f"the server refused the request ({status}): {words}")
        if wait is not None and wait > LONGEST_PAUSE:
            raise Stopped(f"{self.base_url} asks to wait {wait:.0f} s ({status}): start again then to go on from here.")
        reason, slow_down = f"the server answered {status}: {words}", status == 429 or wait is not None
        if slow_down and self.pace.refused(left, wait):
            raise Stopped(f"{self.base_url} has answered nothing for {PATIENCE:.0f} s; at the last, {reason}.")
        return Again(reason, slow_down)

    async def _post(self, request: Request, changes: Mapping[str, str]) -> Response | Failure | Again | Refusal:
        import aiohttp

        try:
            body = json.dumps(_body(request, changes), ensure_ascii=False).encode()
            url = f"{self.base_url.rstrip('/')}/chat/completions"
            async with self._session.post(url, data=body, proxy=self._proxy, allow_redirects=False) as http:
                content = await _content(http)
        except UnicodeEncodeError:
            return Failure("the request holds half a character (a lone surrogate), which cannot be sent")
        except TimeoutError:
            return Again(f"no answer came within {self._timeout:g} s")
        except (aiohttp.ClientError, OSError, zlib.error) as error:
            return Again("the connection failed", unreachable=isinstance(error, aiohttp.ClientConnectorError))
        # Outside of `except`: the library's error, which holds the request with its key, is not carried along.
        if http.status >= 300:
            return Refusal(http.status, self._words(content), retry_after(http.headers))
        if len(content) > LARGEST:
            self._booked(request, None, content.decode("utf-8", "replace"))
            return Failure(f"the server's answer is larger than {LARGEST // 2**20} MB")
        return self._read(request, content)

    def _read(self, request: Request, content: bytes) -> Response | Failure | Again | Refusal:
        """What a 200 holds: an answer, or an error after all."""
        try:
            data = json.loads(content)
            data = data if isinstance(data, dict) else {"choices": None}
        except (ValueError, RecursionError):
            return Again("the server's answer was cut off or was no JSON")
        error, usage, choices = data.get("error"), data.get("usage"), data.get("choices")
        if error and not choices and not usage:
            codes = [error.get("code"), error.get("status")] if isinstance(error, dict) else []
            codes = [int(code) for code in map(str, codes) if re.fullmatch("[3-5][0-9][0-9]", code)]
            return Refusal((codes or [500])[0], self._words(content))
        choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
        message = choice["message"] if isinstance(choice.get("message"), dict) else {}
        text, refused, reason = written(message, request.schema), message.get("refusal"), choice.get("finish_reason")
        prompt_tokens, completion_tokens = self._booked(request, usage, text or json.dumps(message))
        if not message:
            return Again(f"the server's answer holds no message: {self._words(content)}", paid=True)
        if not text and not refused:
            return _empty(message, reason)
        return Response(
            text=self._scrubbed(text or str(refused)),
            model=self._scrubbed(str(data.get("model") or request.model)),
            finish_reason=("server: " * (reason == FAILED) + self._scrubbed(str(reason))) if text else "refusal",
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            cached=False,
        )

    def _booked(self, request: Request, usage: object, text: str) -> tuple[int, int]:
        """Count the tokens of an answer: those that the server names, as far as they can be true, else an estimate."""
        counts = usage if isinstance(usage, dict) else {}
        longest = sum(64 + len(str(message["content"]).encode("utf-8", "replace")) for message in request.messages)
        used = []
        for name, estimate, most in (
            ("prompt_tokens", request.prompt_tokens, longest + len(json.dumps(request.schema))),
            ("completion_tokens", estimated_tokens(text), max(request.completion_tokens, 4 * estimated_tokens(text))),
        ):
            count = counts.get(name)
            used.append(min(count, most) if isinstance(count, int) and count > 0 else estimate)
        self.pace.answered(request.prompt_tokens + request.completion_tokens - sum(used))
        self._book(*used)
        return used[0], used[1]

    def _words(self, content: bytes) -> str:
        """The server's own words, on one line; whatever it sent."""
        words = content.decode("utf-8", "replace")
        try:
            data = json.loads(words)
            words = data.get("error", data) if isinstance(data, dict) else data
        except (ValueError, RecursionError):
            pass
        if isinstance(words, dict) and "message" in words:
            words = f"{words.get('code') or ''} {words['message']}"
        return self._scrubbed(" ".join(str(words).split()))[:LONGEST_REASON] or "no reason given"

    def _scrubbed(self, text: str) -> str:
        """The text as UTF-8 can hold it, and without the key, should the server repeat it."""
        text = text.encode("utf-8", "replace").decode("utf-8")
        return self._secret.sub("[key]", text) if self._secret else text


def _body(request: Request, changes: Mapping[str, str]) -> dict:
    """What is sent: the request, changed for what this server does not take."""
    messages, body = list(request.messages), {"model": request.model}
    for name, value in request.sampling.items():
        if name == "max_tokens" and name in changes:
            body["max_completion_tokens"] = value
        elif name not in changes:
            body[name] = value
    if request.schema and "response_format" in changes:
        schema = DESCRIBE.format(schema=json.dumps(request.schema, ensure_ascii=False, indent=1))
        messages[-1] = {**messages[-1], "content": messages[-1]["content"] + schema}
    elif request.schema:
        schema = {"name": "answer", "schema": request.schema, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    if "system" in changes:
        system, first, *others = messages
        messages = [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *others]
    return {**body, "messages": messages}


async def _content(http) -> bytes:
    """The decoded body, of which no more than one byte beyond `LARGEST` is read."""
    parts, size = [], 0
    async for part in http.content.iter_any():
        parts.append(part)
        if (size := size + len(part)) > LARGEST:
            break
    content = b"".join(parts)
    if http.headers.get("Content-Encoding", "identity") != "identity":  # sent although it was not asked for
        content = zlib.decompressobj(47).decompress(content, LARGEST + 1)
    return content


def _empty(message: dict, finish_reason: object) -> Failure | Again:
    """What a message without an answer means."""
    if finish_reason == "content_filter":
        return Failure("the server's content filter kept the answer back")
    if finish_reason == "length":
        return Failure("max_tokens were used up before the answer began: raise it, or switch the model's thinking off")
    where = ", ".join(name for name in ("reasoning_content", "reasoning", "tool_calls") if message.get(name))
    hint = f"; {where} holds what it wrote: set the server's reasoning and tool parsers" if where else ""
    return Again(f"the answer is empty (finish_reason {finish_reason}){hint}", paid=True)


def checked_address(base_url: str) -> str:
    """The address of a server, or a MedComfortError; one that carries a key or password is refused, and not shown."""
    if not base_url:
        raise MedComfortError(
            "base_url is empty: set it to the address of an OpenAI-compatible server, such as "
            "http://127.0.0.1:8000/v1, in the profile or as MEDCOMFORT_BASE_URL in the environment."
        )
    base_url = base_url.strip()
    try:
        parts = urlsplit(base_url)
        sound = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
        sound = sound and base_url.isprintable() and " " not in base_url and parts.hostname.encode("idna")
    except ValueError:  # that of "idna" too
        sound = False
    if not sound:
        raise MedComfortError("base_url must be an http or https address, such as http://127.0.0.1:8000/v1.")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise MedComfortError("base_url must hold no key or password: set MEDCOMFORT_API_KEY in the environment.")
    return base_url


def _is_local(base_url: str) -> bool:
    """Whether it is this machine: loopback, or the unspecified address that servers print as theirs."""
    host = urlsplit(base_url).hostname
    try:
        return ip_address(host).is_loopback or ip_address(host).is_unspecified
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _environment(names: tuple[str, ...]) -> str:
    return next((value for name in names if (value := os.environ.get(name, "").strip())), "")


def _key_for(base_url: str) -> str:
    """The key, or nothing. A key meant for OpenAI is not sent in the clear to another machine."""
    clear = urlsplit(base_url).scheme == "http" and not _is_local(base_url)
    key = _environment(KEYS[:1] if clear else KEYS)
    if not (key.isascii() and key.isprintable()):
        raise MedComfortError("The API key in the environment holds characters that no key has: set it anew.")
    return key


def _pattern(key: str) -> re.Pattern:
    """The key, also where JSON or Python escapes stand for its characters: they would be undone by parsing."""
    return re.compile("".join(rf"(?:\\?{re.escape(c)}|\\u00(?i:{ord(c):02x})|\\x(?i:{ord(c):02x}))" for c in key))
