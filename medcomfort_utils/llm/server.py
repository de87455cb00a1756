"""One call to an OpenAI-compatible server: what is sent, and what each way of failing means."""

import asyncio
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from medcomfort_utils.llm.limits import retry_after
from medcomfort_utils.llm.requests import FAILED, Failure, Request, Response, Stopped, estimated_tokens
from medcomfort_utils.paths import MedComfortError

if TYPE_CHECKING:
    import httpx2

LOG = logging.getLogger(__name__)
KEYS = ("MEDCOMFORT_API_KEY", "OPENAI_API_KEY")
ADDRESSES = ("MEDCOMFORT_BASE_URL", "OPENAI_BASE_URL")
LOCAL = ("127.0.0.1", "::1", "localhost")
HEALING = (408, 409, 425, 429)  # and all from 500 on: the same request may succeed later
LONGEST_REASON = 300  # characters of a server's own words that are kept, cut after the key was taken out
LONGEST_PAUSE = 600.0  # seconds that a server may ask to wait before it is better to stop
MOVED = "sends the call elsewhere ({status}), where patients' texts may not belong: set base_url to where it should go"
HOPELESS = {
    **dict.fromkeys((301, 302, 303, 307, 308), MOVED),
    401: "refuses the key, or wants one (401): set MEDCOMFORT_API_KEY to a valid one; OPENAI_API_KEY is taken too, but "
    "over plain http to this machine alone",
    402: "asks for payment (402): see to the account behind the key",
    403: "denies access (403): the key may not use the model '{model}'",
    404: "has nothing there (404): check the model '{model}' and base_url, which mostly ends in /v1",
    405: "has no chat completions there (405): check base_url, which mostly ends in /v1",
}


@dataclass(frozen=True)
class Again:
    """A call that failed and may succeed later; `wait` is the pause in seconds that the server asked for, if it did."""

    reason: str
    wait: float | None = None
    unreachable: bool = False  # there was no connection at all


class Server:
    """A connection pool to one server, with at most `concurrency` connections; belongs to one event loop."""

    def __init__(self, base_url: str, timeout: float, concurrency: int):
        """Read the address, where it is not given, and the key from the environment. Raises MedComfortError."""
        import httpx2  # only here: a replay needs neither these packages nor a key
        import openai

        self.base_url = checked_address(base_url or _environment(ADDRESSES))
        self._timeout, self._key = timeout, _key_for(self.base_url)
        self._structured: bool | None = None  # whether the server takes a JSON schema; None until one call told
        limits = httpx2.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
        self._openai = openai
        self._api = openai.AsyncOpenAI(
            api_key=self._key or "none-needed",
            base_url=self.base_url,
            max_retries=0,  # the client retries itself, within its limits and its budget
            timeout=None,  # `_post` times the whole call
            http_client=openai.DefaultAioHttpClient(  # takes a third less time than the default transport
                timeout=None,
                limits=limits,
                follow_redirects=False,
                trust_env=not _is_local(self.base_url),  # no proxy of the environment before a local server
            ),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._api.close()

    async def answer(self, request: Request) -> Response | Failure | Again:
        """Ask once. With a schema, a server that refuses structured output is asked in words instead.

        If that helps at the first such call, all later ones are asked in words. Raises Stopped where no request
        can succeed: wrong key, wrong address, no money left.
        """
        if request.schema is None:
            return await self._post(request)
        if self._structured is False:
            return await self._post(request.described())
        outcome = await self._post(request)
        if isinstance(outcome, Failure):
            in_words = await self._post(request.described())
            if isinstance(in_words, Response) and self._structured is None:
                self._structured = False
                LOG.warning("%s takes no JSON schema (%s); it is asked in words.", self.base_url, outcome.reason)
            return outcome if isinstance(in_words, Failure) else in_words
        if isinstance(outcome, Response):
            self._structured = True
        return outcome

    async def _post(self, request: Request) -> Response | Failure | Again:
        body = dict(request.sampling)
        if request.schema is not None:
            schema = {"name": "answer", "schema": request.schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        create = self._api.chat.completions.with_raw_response.create  # raw: no time spent on models of the answer
        try:
            async with asyncio.timeout(self._timeout):  # however slowly the bytes drip
                raw = await create(model=request.model, messages=list(request.messages), extra_body=body)
            return self._read(raw.http_response, request)
        except self._openai.APIStatusError as error:
            status, headers, problem = error.status_code, error.response.headers, _message(error.body)
        except UnicodeEncodeError:
            return Failure("the request holds half a character (a lone surrogate), which cannot be sent")
        except TimeoutError:
            return Again(f"no answer came within {self._timeout:g} s")
        except (self._openai.APIError, OSError) as error:
            return Again("the connection failed", unreachable=_never_connected(error))
        # Outside of `except`: the library's error, which holds the request with its key, is not carried along.
        return self._meaning(status, headers, self._scrubbed(problem)[:LONGEST_REASON], request)

    def _meaning(self, status: int, headers: "httpx2.Headers", problem: str, request: Request) -> Failure | Again:
        """What an HTTP error means for the row; Stopped if it means the same for all rows."""
        if status in HOPELESS:
            raise Stopped(f"{self.base_url} {HOPELESS[status].format(model=request.model, status=status)}.")
        if status not in HEALING and status < 500:
            return Failure(f"the server refused the request ({status}): {problem}")
        if "insufficient_quota" in problem:
            raise Stopped(f"{self.base_url} says that the account has no quota left ({status}).")
        wait = retry_after(headers)
        if wait is not None and wait > LONGEST_PAUSE:
            raise Stopped(f"{self.base_url} asks to wait {wait:.0f} s ({status}): start again then to go on from here.")
        return Again(f"the server answered {status}: {problem}", wait)

    def _read(self, http: "httpx2.Response", request: Request) -> Response | Again:
        try:
            data = http.json()
            choice = data["choices"][0]
            refusal, content = choice["message"].get("refusal"), choice["message"].get("content")
            text = self._scrubbed(content or refusal or "")
            usage = data.get("usage")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return Again("the server's answer was cut off or was no chat completion")
        return Response(
            text=text,
            model=self._scrubbed(str(data.get("model") or request.model)),
            finish_reason="refusal" if refusal and not content else self._finish(choice),
            prompt_tokens=_count(usage, "prompt_tokens", request.prompt_tokens),
            completion_tokens=_count(usage, "completion_tokens", estimated_tokens(text)),
            cached=False,
        )

    def _finish(self, choice: dict) -> str:
        reason = self._scrubbed(str(choice.get("finish_reason")))
        return f"server: {reason}" if reason == FAILED else reason  # the record's own word for calls without an answer

    def _scrubbed(self, text: str) -> str:
        """The text as UTF-8 can hold it, and without the key, should the server repeat it."""
        text = text.encode("utf-8", "replace").decode("utf-8")
        return text.replace(self._key, "[key]") if len(self._key) >= 8 else text  # "EMPTY" and the like are no secret


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
    return urlsplit(base_url).hostname in LOCAL


def _environment(names: tuple[str, ...]) -> str:
    return next((value for name in names if (value := os.environ.get(name, "").strip())), "")


def _key_for(base_url: str) -> str:
    """The key, or nothing. A key meant for OpenAI is not sent in the clear to another machine."""
    clear = urlsplit(base_url).scheme == "http" and not _is_local(base_url)
    key = _environment(KEYS[:1] if clear else KEYS)
    if not (key.isascii() and key.isprintable()):
        raise MedComfortError("The API key in the environment holds characters that no key has: set it anew.")
    return key


def _never_connected(error: BaseException | None) -> bool:
    """Whether the connection could not be made; the wrappers around this error take it for a time-out."""
    import aiohttp

    while error is not None and not isinstance(error, aiohttp.ClientConnectorError):
        error = error.__cause__
    return error is not None


def _message(body: object) -> str:
    """The server's own words, on one line; whatever JSON it sent."""
    error = body.get("error", body) if isinstance(body, dict) else body
    words = [str(error.get(name) or "") for name in ("code", "message")] if isinstance(error, dict) else [str(error)]
    return " ".join(" ".join(words).split()) or "no reason given"


def _count(usage: object, name: str, estimate: int) -> int:
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if isinstance(count, int) and 0 <= count < 2**31 else estimate
