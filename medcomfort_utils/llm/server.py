"""One OpenAI-compatible server: what it takes, and what each of its answers means."""

import json
import logging
import os
import re
import urllib.request
import zlib
from collections.abc import Awaitable, Callable
from contextlib import suppress
from ipaddress import ip_address
from typing import NamedTuple
from urllib.parse import urlsplit

from medcomfort_utils.llm.cache import FAILED, Failure, Request, Response, estimated_tokens
from medcomfort_utils.llm.limits import Pace, Stopped
from medcomfort_utils.llm.parsing import Unparsable, parse
from medcomfort_utils.paths import MedComfortError
from medcomfort_utils.schema import Settings

LOG = logging.getLogger(__name__)
KEYS = ("MEDCOMFORT_API_KEY", "OPENAI_API_KEY")
ADDRESSES = ("MEDCOMFORT_BASE_URL", "OPENAI_BASE_URL")
ADDRESS = re.compile(r"https?://(\[[\da-f:.]+\]|[\w-]+(\.[\w-]+)*)(:\d{1,5})?(/[\w./~%+-]*)?", re.I | re.A)
LARGEST = 2**22  # bytes of a decoded body; no answer that is asked for here comes near
LONGEST_REASON = 300  # characters of a server's own words that are kept, cut after the key was taken out
RETRYABLE = (408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529)  # may succeed later
FATAL = (301, 302, 303, 307, 308, 401, 402, 403, 404, 405)  # will not, for any row
MODERATED = re.compile(r"moderat|flagged|content.?(policy|filter|management)|safety", re.I)
UNSUPPORTED = re.compile(r"support|unknown|unrecogni[sz]ed|unexpected|not (allowed|permitted)|only", re.I)
NO_SYSTEM = re.compile(r"\bsystem\W* (role|message|prompt|turn)|role.{0,20}system|developer inst|must alternate", re.I)
NO_SCHEMA = re.compile(r"grammar|schema|response.?format|structured|guided|json", re.I)
DESCRIBE = "\n\nAnswer with one JSON object that fits this JSON schema, and with no text before or after it:\n{schema}"


class Again(NamedTuple):
    """A call that failed; it may succeed later if its `status` (0: no whole answer came) is RETRYABLE.

    `wait`: the pause in seconds that the server asked for. `paid`: its tokens were used all the same. `slow_down`: it
    was refused for its haste alone, which costs no try.
    """

    reason: str
    status: int = 0
    wait: float = 0.0
    paid: bool = False

    @property
    def slow_down(self) -> bool:
        return self.status == 429 or self.wait > 0


class Server:
    """A connection pool to one server; belongs to one event loop. `book` takes the tokens of each answer."""

    def __init__(self, settings: Settings, pause: Callable[[float], Awaitable], book: Callable[[int, int], None]):
        """Read the address, where it is not given, and the key from the environment. Raises MedComfortError."""
        import aiohttp  # only here: a replay needs neither the package nor a key

        self.base_url = checked_address(settings.base_url or _environment(ADDRESSES))
        self.pace, self._book, self.answers = Pace(settings, pause), book, 0
        self._learnt: dict[str, str] = {}  # how all requests are changed, and the words that taught it
        self._structured = False  # whether it has answered by a schema
        key, url = _key_for(self.base_url), urlsplit(self.base_url)
        # The key, also where escapes stand for its characters; "EMPTY" and the like are no secret.
        escaped = (rf"(?:\\?{re.escape(c)}|\\(?:u00|x)(?i:{ord(c):02x}))" for c in key)
        self._secret = re.compile("".join(escaped) if len(key) >= 8 else r"(?!)")
        direct = _is_local(self.base_url) or urllib.request.proxy_bypass(url.hostname)
        self._proxy = None if direct else urllib.request.getproxies().get(url.scheme)
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=settings.concurrency),
            timeout=aiohttp.ClientTimeout(total=settings.timeout),  # of the whole call, however slowly the bytes drip
            headers={"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {key}"} if key else {}),
            auto_decompress=False,
        )

    async def answer(self, request: Request, last: bool = False) -> Response | Failure | Again:
        """Ask once; what the server refuses in all requests is changed and asked at once, and learnt for the run.

        `last`: there is no other try. Raises Stopped where no request can succeed: wrong key or address, no money left.
        """
        changes, reserved = dict(self._learnt), request.prompt_tokens + request.completion_tokens
        while True:
            left = await self.pace.turn(reserved)
            outcome = await self._post(request, changes)
            status = outcome.status if isinstance(outcome, Again) else 0
            if isinstance(outcome, Response):
                self._learn(request, changes)
                self.pace.granted(reserved - outcome.prompt_tokens - outcome.completion_tokens)
            elif status != 429:
                self.pace.granted(0)
            if not status:
                return outcome
            if not (change := _adapted(request, outcome, changes, last)):
                return self._meaning(request, outcome, left)
            changes[change] = outcome.reason

    def _learn(self, request: Request, changes: dict[str, str]) -> None:
        """Keep the changes that helped; a schema is given up only if none has been taken yet."""
        self._structured |= bool(request.schema) and "response_format" not in changes
        for change in changes.keys() - self._learnt.keys():
            if change != "response_format" or not self._structured:
                self._learnt[change] = changes[change]
                LOG.warning("%s is asked without %s from here on (%s).", self.base_url, change, changes[change])

    def _meaning(self, request: Request, refusal: Again, left: float) -> Failure | Again:
        """What an error means for the row; Stopped if it means the same for all rows."""
        words = refusal.reason
        status = 402 if "insufficient_quota" in words else refusal.status
        of_the_row = status == 403 and (self.answers or MODERATED.search(words))
        if status in FATAL and not of_the_row:
            raise Stopped(
                f"{self.base_url} refuses all calls ({status}: {words}): check base_url, which mostly ends in /v1, the "
                f"model '{request.model}', the key (MEDCOMFORT_API_KEY; OPENAI_API_KEY goes only over https or to this "
                "machine) and the account behind it."
            )
        reason = f"the server refused the request ({status}): {words}"
        if status not in RETRYABLE:
            return Failure(reason)
        if refusal.slow_down and self.pace.refused(left, refusal.wait):
            asked = f" and asks to wait {refusal.wait:.0f} s" if refusal.wait else ""
            raise Stopped(f"{self.base_url} answers nothing any more{asked}; at the last, {reason}.")
        return refusal._replace(reason=reason)

    async def _post(self, request: Request, changes: dict[str, str]) -> Response | Failure | Again:
        import aiohttp

        url, body, content = f"{self.base_url.rstrip('/')}/chat/completions", _body(request, changes), b""
        try:
            async with self.session.post(url, json=body, proxy=self._proxy, allow_redirects=False) as http:
                async for part in http.content.iter_any():
                    if len(content := content + part) > LARGEST:
                        break
            if http.headers.get("Content-Encoding", "identity") != "identity":  # sent although it was not asked for
                content = zlib.decompressobj(47).decompress(content, LARGEST + 1)
        except (TimeoutError, aiohttp.ClientError, OSError, zlib.error) as error:
            return Again(f"no whole answer came from {self.base_url} ({type(error).__name__})")
        # Outside of `except`: the library's error, which holds the request with its key, is not carried along.
        if http.status >= 300:
            return Again(self._words(content), http.status, _retry_after(http.headers.get("Retry-After", "")))
        if len(content) > LARGEST:
            self._booked(request, {}, content.decode("utf-8", "replace"))
            return Failure(f"the server's answer is larger than {LARGEST // 2**20} MB")
        return self._read(request, content)

    def _read(self, request: Request, content: bytes) -> Response | Failure | Again:
        """What a 200 holds: an answer, or an error after all."""
        try:
            data = json.loads(content)
        except (ValueError, RecursionError):
            return Again("the server's answer was cut off or was no JSON")
        data = data if isinstance(data, dict) else {}
        if data.get("error") and not data.get("choices") and not data.get("usage"):
            code = re.search(r"""["'](?:code|status)["']: ["']?([345]\d\d)\b""", str(data["error"]))
            return Again(self._words(content), int(code[1]) if code else 500)
        try:
            choice = data["choices"][0]
            text, reason = reading(choice["message"], request.schema), str(choice.get("finish_reason"))
            refused = choice["message"].get("refusal")
        except (LookupError, TypeError, AttributeError):
            text, reason, refused = "", f"none; it says: {self._words(content)}", ""
        used = self._booked(request, data.get("usage"), text or str(data.get("choices")))
        if not text and refused:
            text, reason = str(refused), "refusal"
        if not text:
            why = f"the answer is empty (finish_reason {reason}): see max_tokens and the server's reasoning parser"
            return Failure(why) if reason in ("length", "content_filter") else Again(why, paid=True)
        model, reason = str(data.get("model") or request.model), reason.replace(FAILED, f"server: {FAILED}")
        return Response(*map(self._scrubbed, (text, model, reason)), *used, cached=False)

    def _booked(self, request: Request, usage: object, text: str) -> list[int]:
        """Count the tokens of an answer: those that the server names, as far as they can be true, else an estimate."""
        asked, written, used = request.prompt_tokens, estimated_tokens(text), []
        for name, own, most in (
            ("prompt_tokens", asked, 64 + 4 * asked + len(json.dumps(request.schema))),
            ("completion_tokens", written, max(request.completion_tokens, 4 * written)),
        ):
            count = usage.get(name) if isinstance(usage, dict) else None
            used.append(min(count, most) if isinstance(count, int) and count > 0 else own)
        self.answers += 1
        self._book(*used)
        return used

    def _words(self, content: bytes) -> str:
        """The server's own words, on one line; whatever it sent."""
        words = content[:LARGEST].decode("utf-8", "replace")
        with suppress(ValueError, RecursionError):
            data = json.loads(words)
            words = data.get("error", data) if isinstance(data, dict) else data
        if isinstance(words, dict) and "message" in words:
            words = f"{words.get('code') or ''} {words['message']}"
        return self._scrubbed(" ".join(str(words).split()))[:LONGEST_REASON] or "no reason given"

    def _scrubbed(self, text: str) -> str:
        """The text as UTF-8 can hold it, and without the key, should the server repeat it."""
        return self._secret.sub("[key]", text.encode("utf-8", "replace").decode("utf-8"))


def _adapted(request: Request, refusal: Again, changes: dict[str, str], last: bool) -> str:
    """The part of the request to do without after this refusal; nothing if it is not of that kind."""
    words, status = refusal.reason, refusal.status
    if status not in (400, 422, 500, 501):
        return ""
    named = [name for name in request.sampling if re.search(rf"\b{re.escape(name)}\b", words)]
    meant = named if UNSUPPORTED.search(words) else []
    if request.messages[0]["role"] == "system" and NO_SYSTEM.search(words):
        meant.insert(0, "system")
    if request.schema and (status != 500 or last or NO_SCHEMA.search(words)):  # a 500 may pass
        meant.append("response_format")
    return next((change for change in meant if change not in changes), "")


def _body(request: Request, changes: dict[str, str]) -> dict:
    """What is sent: the request, changed for what this server does not take."""
    messages = list(request.messages)
    body = {"model": request.model} | {name: n for name, n in request.sampling.items() if name not in changes}
    if "max_tokens" in changes.keys() & request.sampling.keys():
        body["max_completion_tokens"] = request.sampling["max_tokens"]
    if request.schema and "response_format" in changes:
        schema = DESCRIBE.format(schema=json.dumps(request.schema, ensure_ascii=False, indent=1))
        messages[-1] = {**messages[-1], "content": messages[-1]["content"] + schema}
    elif request.schema:
        schema = {"name": "answer", "schema": request.schema, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    if "system" in changes and messages[0]["role"] == "system":
        system, first, *others = messages
        messages = [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *others]
    return {**body, "messages": messages}


def reading(message: dict, schema: dict | None) -> str:
    """The text of a message: its content, the parts of it that are text, or the object that stands elsewhere."""
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(part["text"] for part in content if part.get("type") in ("text", "output_text"))
    if content and content.strip():
        return content
    called = [call["function"]["arguments"] for call in message.get("tool_calls") or []]
    for other in (*called, message.get("reasoning_content"), message.get("reasoning")) if schema else ():
        with suppress(Unparsable):
            parse(other or "", schema)
            return other
    return ""


def _retry_after(asked: str) -> float:
    """Seconds that a server asks to wait; 0 if it does not, or not in a way that can be meant."""
    try:
        return float(asked) if 0 < float(asked) < 30 * 86400 else 0.0
    except ValueError:  # a date, which no server of language models sends
        return 0.0


def checked_address(base_url: str) -> str:
    """The address of a server; a MedComfortError, which does not show it, where it cannot be one or carries a key."""
    if not ADDRESS.fullmatch(base_url.strip()):
        raise MedComfortError(
            "base_url must hold no key or password, and be the http or https address of an OpenAI-compatible server, "
            "such as http://127.0.0.1:8000/v1: set it in the profile or as MEDCOMFORT_BASE_URL."
        )
    return base_url.strip()


def _is_local(base_url: str) -> bool:
    """Whether it is this machine: loopback, or the unspecified address that servers print as theirs."""
    host = urlsplit(base_url).hostname
    with suppress(ValueError):
        return ip_address(host).is_loopback or ip_address(host).is_unspecified
    return host == "localhost"


def _environment(names: tuple[str, ...]) -> str:
    return next((value for name in names if (value := os.environ.get(name, "").strip())), "")


def _key_for(base_url: str) -> str:
    """The key, or nothing. A key meant for OpenAI is not sent in the clear to another machine."""
    key = _environment(KEYS if base_url.startswith("https:") or _is_local(base_url) else KEYS[:1])
    if not (key.isascii() and key.isprintable()):
        raise MedComfortError("The API key in the environment holds characters that no key has: set it anew.")
    return key
