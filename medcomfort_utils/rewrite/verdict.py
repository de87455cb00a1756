"""What rules cannot judge, a model judges, on the record: a verdict may veto a rewrite, and never acquits one."""

from medcomfort_utils.llm import Request
from medcomfort_utils.records import Dialogue, Gate, Rewrite
from medcomfort_utils.rewrite import prompts

NAME = "verdict"
ASKED_ABOUT = ("emotional", "soothing_answer")  # `comfort_only` holds nothing that stands in no other version
NOT_JUDGED = (
    "No verdict model was asked, so nobody judged whether facts are stated as they are meant, whether the message kept "
    "its medicine, or whether own words advise, promise, comfort or follow an order in ways that the rules cannot see."
)
_QUOTED = {
    "message_changes": "changed in the message",
    "new_advice": "new advice",
    "promises": "a promise",
    "orders_followed": "an order followed",
}


def request(dialogue: Dialogue, rewrite: Rewrite, model: str, sampling: dict) -> Request:
    """The request for a verdict on `rewrite`, which has the turns of `dialogue` in other words; temperature 0."""
    messages = prompts.verdict_messages(dialogue, rewrite.question, rewrite.answer, rewrite.emotion)
    row, version = f"{dialogue.id}/{rewrite.emotion or 'neutral'}/verdict", prompts.version("verdict", dialogue.lang)
    return Request(row, model, messages, {**sampling, "temperature": 0.0}, prompts.SCHEMAS["verdict"], version)


def gate_of(dialogue: Dialogue, rewrite: Rewrite, found: dict | str) -> Gate:
    """The gate `verdict`: what the parsed response holds against the rewrite, or why there is none (a text)."""
    if isinstance(found, str):
        return Gate(name=NAME, passed=False, reason=f"no verdict: {found}")
    told = [f'{what}: "{words}"' for field, what in _QUOTED.items() for words in found[field]]
    facts = zip(dialogue.facts, found["facts"], strict=False)
    told += [f'{state} fact: "{fact}"' for fact, state in facts if state != "stated"]
    told += [f"no {rewrite.emotion} shown"] * (bool(rewrite.emotion) and not found["emotion_shown"])
    told += ["no comfort given"] * (not found["comfort_given"])
    return Gate(name=NAME, passed=not told, reason="; ".join(told))


def problem_of(dialogue: Dialogue, verdict: dict) -> str:
    """What is wrong with a response that fits its schema: not one state a fact."""
    said, asked = len(verdict["facts"]), len(dialogue.facts)
    return "" if said == asked else f"facts has {said} entries; there are {asked} numbered facts."
