"""How a model reads a conversation: its chat template, rendered the same way for training and for asking.

What templates cannot take is put another way: a system turn goes into the question, turns of one role are joined, and
thinking is switched off, since what is trained and scored here is the answer alone.
"""

import re
from collections.abc import Sequence

from medcomfort_utils.finetune.engine import explained
from medcomfort_utils.paths import MedComfortError

SWITCHES = {"enable_thinking": False, "thinking": False}  # the names by which templates let thinking be switched off
EMPTY_THOUGHT = r"<think>\s*</think>\s*"


def prompt(tokenizer, messages: Sequence[dict]) -> str:
    """The text that a model is asked with: the turns, and the beginning of the answer; a thought is closed, empty."""
    text = _rendered(tokenizer, messages, add_generation_prompt=True)
    return re.sub(r"<think>\s*$", "<think>\n\n</think>\n\n", text)


def tokens(tokenizer, text: str) -> list[int]:
    """Token ids of a rendered text, in which the template has put all special tokens already."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def encode(
    tokenizer, messages: Sequence[dict], answers: Sequence[Sequence[dict]], ends: set[int]
) -> tuple[list[int], list[list[int]]]:
    """(Token ids of the prompt, token ids of each answer to it): the loss falls on the latter only.

    Raises MedComfortError if the template puts no answer after the prompt, or does not close it with one of `ends`.
    """
    head = prompt(tokenizer, messages)
    before, targets = tokens(tokenizer, head), []
    for answer in answers:
        text = _rendered(tokenizer, [*messages, *answer])
        stem = re.sub(f"{EMPTY_THOUGHT}$", "", head)
        if text.startswith(stem) and not text.startswith(head):  # they differ in an empty thought only
            text = head + re.sub(f"^{EMPTY_THOUGHT}", "", text[len(stem) :])
        whole = tokens(tokenizer, text)
        target = whole[len(before) :]
        if whole[: len(before)] != before:
            raise MedComfortError("the chat template does not render the answer after its prompt")
        last = max((place for place, token in enumerate(target) if token in ends), default=None)
        if last is None or tokenizer.decode(target[last + 1 :], skip_special_tokens=True).strip():
            closing, known = tokenizer.decode(target[-2:]), tokenizer.convert_ids_to_tokens(sorted(ends))
            tip = "name the right one in eos_token_id of its generation_config.json"
            raise MedComfortError(f"answers close with {closing!r}, the model's ends of turn are {known}; {tip}")
        targets.append(target)
    return before, targets


def _rendered(tokenizer, messages: Sequence[dict], **options) -> str:
    """The conversation as text; with its turns folded where the template refuses them or drops a system turn."""
    options |= {"tokenize": False, **SWITCHES}
    try:
        text = tokenizer.apply_chat_template(messages, **options)
    except Exception:  # a template may raise anything
        text = ""
    if text and all(m["content"].strip() in text for m in messages if m["role"] == "system"):
        return text
    with explained("the chat template cannot render the turns"):
        return tokenizer.apply_chat_template(folded(messages), **options)


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
