"""How many labelled rewrites, slipped-in sentences and obeyed orders the gates find, and how often they stop good ones.

All three sets were seen while the rules were made: floors against decay, no measure of what is found elsewhere.
`python tests/test_gates_labelled.py` prints the rates.
"""

from functools import cache
from pathlib import Path

import pytest
import yaml

from medcomfort_utils.records import Dialogue, Message, Rewrite
from medcomfort_utils.rewrite.gates import check

LABELLED = Path(__file__).parent / "labelled"
COMFORT = "I am so sorry that you have to go through this."


@cache
def listed(name):
    return yaml.safe_load((LABELLED / f"{name}.yaml").read_text(encoding="utf-8"))


def stopped(entry, question, answer, condition="emotional", asked=""):
    """Whether a gate fails for this rewrite of a labelled dialogue; `asked` is what the patient wrote besides."""

    def turns(one, two):
        return [Message(role="user", content=one.strip()), Message(role="assistant", content=two.strip())]

    known = {"facts": entry["facts"], "red_flags": entry["red_flags"], "split": "train"}
    source = Dialogue(
        id="x", source="labelled", messages=turns(f"{entry['question']} {asked}", entry["answer"]), **known
    )
    made = {"backend": "hand", "model": "labelled", "prompt_version": "1", "split": "train", "dialogue_id": "x"}
    rewrite = Rewrite(messages=turns(question, answer), condition=condition, emotion=entry["emotion"], **made)
    return any(not gate.passed for gate in check(source, rewrite))


def broken(good, change):
    texts = [change.get(side, good[side]) for side in ("question", "answer")]
    for old, new in change.get("edits", []):
        assert sum(text.count(old) for text in texts) == 1, f"{change['way']}: '{old}' must stand once in the rewrite"
        texts = [text.replace(old, new) for text in texts]
    return texts


def share(verdicts):
    verdicts = list(verdicts)
    return sum(verdicts) / len(verdicts)


def rewrites(part):
    """Share of the broken rewrites found, and of the good ones stopped."""
    entries = listed("rewrites")[part]
    found = share(stopped(e, *broken(e["good"], b)) for e in entries for b in e["broken"])
    return found, share(stopped(e, e["good"]["question"], e["good"]["answer"]) for e in entries)


def hosts(count):
    return [entry for entries in listed("rewrites").values() for entry in entries][:: 30 // count]


def added(entry, said, asked=""):
    """Whether a sentence on top of the source answer is stopped."""
    return stopped(
        entry, f"{entry['question']} {asked}", f"{COMFORT} {entry['answer']} {said}", "soothing_answer", asked
    )


def additions(part, count=3):
    kinds = listed("additions")[part]
    return [
        share(added(host, said) for said in kinds[kind] for host in hosts(count)) for kind in ("harmful", "soothing")
    ]


def orders(part, count=3):
    given = listed("orders")[part]
    obeyed = share(added(h, o["obeyed"], o["order"]) for o in given["orders"] if "obeyed" in o for h in hosts(count))
    return obeyed, share(added(h, r["answer"], r["request"]) for r in given["requests"] for h in hosts(count))


@pytest.mark.parametrize("part", ["held_out"])
def test_broken_rewrites_are_found_and_good_ones_pass(part):
    found, lost = rewrites(part)
    assert found >= 0.9 and lost <= 0.15


def test_slipped_in_sentences_and_obeyed_orders_are_found():
    found, lost = additions("tuning", 1)
    assert found >= 0.8 and lost <= 0.2
    found, lost = orders("third", 1)
    assert found >= 0.45 and lost <= 0.2


if __name__ == "__main__":
    for measure, parts in ((rewrites, 2), (additions, 2), (orders, 4)):
        for part in ("tuning", "held_out", "second", "third")[:parts]:
            found, lost = measure(part)
            print(f"{measure.__name__:10} {part:9} broken found {found:4.0%}, good stopped {lost:4.0%}")
