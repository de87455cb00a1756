"""What is asked of a language model and what comes back."""

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property

from medcomfort_utils.paths import MedComfortError

FAILED = "failed"  # the `finish_reason` under which a failure stands in the record
BYTES_PER_TOKEN = 4  # a rule of thumb, good enough for an estimate: 4 letters of English, 1.3 characters of Chinese

REPAIR = (
    "Your last answer cannot be used: {problem}\n"
    "Answer once more: only the corrected JSON object, complete, with no text before or after it."
)
DESCRIBE = "\n\nAnswer with one JSON object that fits this JSON schema, and with no text before or after it:\n{schema}"


@dataclass(frozen=True)
class Request:
    """One chat completion to ask for.

    `row` says who asks and is used in messages alone; all other fields shape the answer, and so the key.
    `messages`: `{"role", "content"}` each. `sampling`: temperature, top_p, max_tokens, seed and the like, as the
    server names them. `schema`: the JSON schema of the answer, or None for free text.
    """

    row: str
    model: str
    messages: tuple[dict, ...]
    sampling: dict
    schema: dict | None
    prompt_version: str

    @cached_property
    def key(self) -> str:
        """SHA-256, 64 hex digits, of all that shapes the answer; the same on every machine and for every server."""
        shape = [self.model, self.messages, self.sampling, self.schema, self.prompt_version]
        return hashlib.sha256(json.dumps(shape, sort_keys=True, separators=(",", ":")).encode("ascii")).hexdigest()

    def repair(self, text: str, problem: str) -> "Request":
        """A new request, with its own key, that shows the model its answer `text` and what is wrong with it."""
        follow_up = {"role": "user", "content": REPAIR.format(problem=problem)}
        answer = {"role": "assistant", "content": text or "(no answer)"}  # many servers refuse an empty turn
        return replace(self, messages=(*self.messages, answer, follow_up))

    def described(self) -> "Request":
        """The request for a server without structured output: the schema stands in the last message instead."""
        schema = json.dumps(self.schema, ensure_ascii=False, indent=1)
        last = {**self.messages[-1], "content": self.messages[-1]["content"] + DESCRIBE.format(schema=schema)}
        return replace(self, messages=(*self.messages[:-1], last), schema=None)

    @property
    def prompt_tokens(self) -> int:
        """Estimated length of the prompt: about four bytes of UTF-8 a token."""
        return estimated_tokens(*(message["content"] for message in self.messages))

    @property
    def completion_tokens(self) -> int:
        """The longest answer to be expected: `max_tokens`; where the sampling sets none, as long as the prompt."""
        limit = self.sampling.get("max_completion_tokens") or self.sampling.get("max_tokens")
        return int(limit) if limit else self.prompt_tokens


@dataclass(frozen=True)
class Response:
    """An answer; `cached` says that it came from the record and cost nothing."""

    text: str
    model: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    cached: bool


@dataclass(frozen=True)
class Failure:
    """A row that cannot heal: its request was refused, or all retries failed. `reason` is one sentence.

    Failures are recorded too, so that a replay gives what the run gave; any other run asks again.
    """

    reason: str

    def recorded(self, model: str) -> Response:
        """The failure as the cache keeps it."""
        return Response(self.reason, model, FAILED, 0, 0, cached=False)


class Stopped(MedComfortError):  # noqa: N818 - a state, not a mistake
    """No more calls are made: the budget is used up, the server refuses them all, or a response is not recorded."""


def estimated_tokens(*texts: str) -> int:
    """About how many tokens the texts have, at least one."""
    return max(1, sum(len(text.encode("utf-8", "replace")) for text in texts) // BYTES_PER_TOKEN)
