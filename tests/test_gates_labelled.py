"""The gates on hand-labelled free rewrites: what they catch of the broken ones, and how often they stop a good one.

The rewrites (tests/labelled/rewrites.yaml) are by the author of the gates. At the first sight of the held-out part all
20 broken ones were caught and 4 of 10 good ones stopped: two by cues of emotion, one by a number, one by a negation.
Three of these causes were general and have been mended since, so today's rates flatter.
"""

from functools import cache
from pathlib import Path

import pandas as pd
import pytest
import yaml

from medcomfort_utils.records import Dialogue, Message, Rewrite, content_id
from medcomfort_utils.rewrite.advice import new_advice
from medcomfort_utils.rewrite.gates import check
from medcomfort_utils.rewrite.orders import obeyed

ADDITIONS = Path(__file__).parent / "labelled" / "additions.yaml"
FILE = Path(__file__).parent / "labelled" / "rewrites.yaml"
ORDERS = Path(__file__).parent / "labelled" / "orders.yaml"
# The gates that say what is wrong; one of them must fail, whatever else does.
CATCHES = {
    "lost number": {"numbers_kept"},
    "invented number": {"no_invented_number"},
    "changed dose": {"no_invented_number", "doses_kept"},
    "changed unit": {"no_invented_number"},
    "lost drug": {"drugs_kept"},
    "invented drug": {"no_invented_drug"},
    "dropped negation": {"negations_kept"},
    "added negation": {"no_added_negation"},
    "lost red flag": {"red_flags_kept"},
    "lost fact": {"facts_kept"},
    "wrong emotion": {"emotion_present"},
    "no emotion": {"emotion_present"},
    "no comfort": {"comfort_present"},
    "false reassurance": {"no_false_reassurance"},
    "too long": {"length"},
    "too short": {"length"},
    "other language": {"language"},
    "refusal": {"no_refusal"},
    "role leak": {"no_role_leak"},
    "placeholder": {"no_placeholder"},
}


def turns(question, answer):
    return [Message(role="user", content=question), Message(role="assistant", content=answer)]


def dialogue(entry):
    messages = turns(entry["question"], entry["answer"])
    number = content_id([message.model_dump() for message in messages])
    known = {"facts": entry["facts"], "red_flags": entry["red_flags"], "topic": entry["topic"]}
    return Dialogue(id=number, source="labelled", messages=messages, split="train", **known)


def broken_texts(good, broken):
    """Question and answer of the good rewrite, broken in the one way that `broken` tells."""
    texts = [broken.get(side, good[side]) for side in ("question", "answer")]
    for old, new in broken.get("edits", []):
        assert sum(text.count(old) for text in texts) == 1, f"{broken['way']}: '{old}' must stand once in the rewrite"
        texts = [text.replace(old, new) for text in texts]
    return texts


@cache
def judged():
    """One row a labelled rewrite: part, way of breaking (empty if good), and the gates that failed with reasons."""
    rows = []
    for part, entries in yaml.safe_load(FILE.read_text(encoding="utf-8")).items():
        for entry in entries:
            source, good = dialogue(entry), entry["good"]
            versions = [("", [good["question"], good["answer"]])]
            versions += [(broken["way"], broken_texts(good, broken)) for broken in entry["broken"]]
            for way, texts in versions:
                made = {"backend": "hand", "model": "labelled", "prompt_version": "1", "split": "train"}
                made |= {"condition": "emotional", "emotion": entry["emotion"], "dialogue_id": source.id}
                failed = {
                    g.name: g.reason for g in check(source, Rewrite(messages=turns(*texts), **made)) if not g.passed
                }
                rows.append({"part": part, "way": way, "failed": failed})
    return pd.DataFrame(rows)


def test_the_labelled_rewrites_hold_what_they_say():
    counts = judged().groupby("part")["way"].agg(good=lambda ways: sum(ways == ""), broken=lambda ways: sum(ways != ""))
    assert counts.loc["tuning"].tolist() == [20, 20] and counts.loc["held_out"].tolist() == [10, 20]
    assert judged()["way"].value_counts().drop("").to_dict() == dict.fromkeys(CATCHES, 2)


@pytest.mark.parametrize("part", ["tuning", "held_out"])
def test_broken_rewrites_are_stopped(part):
    broken = judged().query("part == @part and way != ''")
    passed = broken.loc[broken["failed"].str.len() == 0, "way"].tolist()
    assert len(passed) <= 0.1 * len(broken), passed


@pytest.mark.parametrize("way", CATCHES)
def test_a_broken_rewrite_fails_the_gate_that_is_made_for_it(way):
    for failed in judged().query("way == @way")["failed"]:
        assert CATCHES[way] & failed.keys(), failed


def test_good_rewrites_pass():
    good = judged().query("way == ''")
    stopped = good.loc[good["failed"].str.len() > 0, "failed"].tolist()
    assert len(stopped) <= 0.1 * len(good), stopped


def test_sentences_slipped_into_good_rewrites():
    """At first sight of `held_out` 59 % of its harmful sentences were found, and 26 % of its soothing ones stopped."""
    hosts = [
        dialogue(entry).answer
        for entries in yaml.safe_load(FILE.read_text(encoding="utf-8")).values()
        for entry in entries
    ]
    listed = yaml.safe_load(ADDITIONS.read_text(encoding="utf-8"))
    sizes = {(part, kind): len(said) for part, kinds in listed.items() for kind, said in kinds.items()}
    assert list(sizes.values()) == [90, 45, 30, 15]
    for (part, kind), size in sizes.items():
        found = sum(bool(new_advice(host, said)) for said in listed[part][kind] for host in hosts) / (size * len(hosts))
        assert found >= 0.8 if kind == "harmful" else found <= 0.1, (part, kind, found)


@cache
def hosts():
    """Every third of the labelled dialogues, each with its good rewrite."""
    entries = [entry for entries in yaml.safe_load(FILE.read_text(encoding="utf-8")).values() for entry in entries]
    return [(each["question"], each["answer"], *each["good"].values()) for each in entries[::3]]


def caught(written, question="", answer=""):
    """Share of hosts in which the gate finds `question` or `answer` added, if the patient also has `written` this."""
    found = [
        obeyed(f"{asked} {written}", told, f"{new} {written} {question}".strip(), f"{said} {answer}".strip())
        for asked, told, new, said in hosts()
    ]
    return sum(map(bool, found)) / len(found)


@pytest.mark.parametrize(("part", "least"), [("tuning", 0.9), ("held_out", 0.75), ("second", 0.4), ("third", 0.55)])
def test_orders_that_a_rewrite_obeys_on_top_of_its_work(part, least):
    """At first sight 70 % of `held_out`, 8 % of `second`, 47 % of `third` were found; of good answers 0, 0 and 4 %."""
    listed = yaml.safe_load(ORDERS.read_text(encoding="utf-8"))[part]
    assert len(listed["orders"]) >= 20 and len(listed["requests"]) >= 20
    shares = {"obeyed": [], "not obeyed": [], "good": []}
    for each in listed["orders"]:
        shares["obeyed"].append(caught(each["order"], each.get("question", ""), each.get("obeyed", "")))
        shares["not obeyed"].append(caught(each["order"]))
    shares["good"] = [caught(each["request"], answer=each["answer"]) for each in listed["requests"]]
    found = {kind: sum(several) / len(several) for kind, several in shares.items()}
    assert found["obeyed"] >= least and found["not obeyed"] <= 0.02 and found["good"] <= 0.05, found
