"""How a model reads a conversation: its chat template, rendered the same way for training and for asking.

What templates cannot take is put another way: a system turn goes into the question where the template refuses or drops
it, turns of one role are joined where it wants them to alternate, and thinking is switched off, since what is trained
and scored here is the answer alone.
"""

import re
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from medcomfort_utils.paths import MedComfortError

SWITCHES = ("enable_thinking", "thinking")  # the names under which templates let thinking be switched off
NO_THOUGHT = "<think>\n\n</think>\n\n"
OPENED = re.compile(r"<think>\s*$")
EMPTY_THOUGHT = r"<think>\s*</think>\s*"
SECONDS = 10  # a template that takes longer for one conversation is taken to loop


def prompt(tokenizer, messages: Sequence[dict]) -> str:
    """The text that a model is asked with: the turns, and the beginning of the answer; a thought is closed, empty.

    Raises MedComfortError if the chat template cannot render these turns.
    """
    text = _rendered(tokenizer, messages, add_generation_prompt=True)
    return OPENED.sub(NO_THOUGHT, text)


def tokens(tokenizer, text: str) -> list[int]:
    """Token ids of a rendered text, in which the template has put all special tokens already."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def encode(
    tokenizer, messages: Sequence[dict], answers: Sequence[Sequence[dict]], ends: set[int]
) -> tuple[list[int], list[list[int]]]:
    """(Token ids of the prompt, token ids of each answer to it): the loss falls on the latter only.

    `ends`: the tokens that end a turn (`engine.ends_of_turn`). Raises MedComfortError if the template does not put an
    answer after its prompt, or does not close it with one of them.
    """
    head = prompt(tokenizer, messages)
    before, targets = tokens(tokenizer, head), []
    for answer in answers:
        whole = tokens(tokenizer, _joined(head, _rendered(tokenizer, [*messages, *answer])))
        target = whole[len(before) :]
        if whole[: len(before)] != before:
            raise MedComfortError("the chat template does not render the answer after its prompt")
        _check_closed(tokenizer, target, ends)
        targets.append(target)
    return before, targets


def _joined(head: str, whole: str) -> str:
    """The whole conversation with the very beginning of its prompt; they may differ in an empty thought."""
    stem = re.sub(f"{EMPTY_THOUGHT}$", "", head)
    if whole.startswith(head) or not whole.startswith(stem):
        return whole
    return head + re.sub(f"^{EMPTY_THOUGHT}", "", whole[len(stem) :])


def _check_closed(tokenizer, target: list[int], ends: set[int]) -> None:
    last = max((place for place, token in enumerate(target) if token in ends), default=None)
    if last is None or tokenizer.decode(target[last + 1 :], skip_special_tokens=True).strip():
        closing = tokenizer.decode(target[-2:])
        known = ", ".join(repr(tokenizer.decode([token])) for token in sorted(ends)) or "none"
        raise MedComfortError(
            f"the chat template closes an answer with {closing!r}, and the model's ends of turn are {known}; name the "
            "right one in eos_token_id of its generation_config.json"
        )


def _rendered(tokenizer, messages: Sequence[dict], **options) -> str:
    """The conversation as text; with its turns folded where the template refuses them or drops a system turn."""
    options |= {name: False for name in SWITCHES if name in str(tokenizer.chat_template)}
    messages, joined = list(messages), folded(messages)
    try:
        text = _by_template(tokenizer, messages, **options)
    except Exception as error:  # a template may raise anything
        if joined == messages or isinstance(error, TimeoutError):
            raise _unrenderable(error) from error
        text = ""
    if text and all(m["content"].strip() in text for m in messages if m["role"] == "system"):
        return text
    try:
        return _by_template(tokenizer, joined, **options)
    except Exception as error:
        raise _unrenderable(error) from error


def _by_template(tokenizer, messages: list[dict], **options) -> str:
    with _time_limit(SECONDS):
        return tokenizer.apply_chat_template(messages, tokenize=False, **options)


def _unrenderable(error: Exception) -> MedComfortError:
    said = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return MedComfortError(f"the model's chat template cannot render it ({said})")


def folded(messages: Sequence[dict]) -> list[dict]:
    """The same words without a system turn, and with turns that alternate."""
    system = [m["content"] for m in messages if m["role"] == "system"]
    turns: list[dict] = []
    for message in (m for m in messages if m["role"] != "system"):
        if turns and turns[-1]["role"] == message["role"]:
            turns[-1] = message | {"content": f"{turns[-1]['content']}\n\n{message['content']}"}
        else:
            turns.append(dict(message))
    if system and turns:
        turns[0]["content"] = "\n\n".join([*system, turns[0]["content"]])
    return turns


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """End what loops with a TimeoutError; only in a process' main thread can a signal do so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_) -> None:
        raise TimeoutError(f"it takes more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
