"""Reading real dialogues: cleaning that keeps every number, drops that are counted, errors that name the place."""

import json
import time

import numpy as np
import pandas as pd
import pytest

from medcomfort_utils.paths import MedComfortError
from medcomfort_utils.records import content_id, split_of
from medcomfort_utils.rewrite.clean import clean_text, language, squeeze, words
from medcomfort_utils.rewrite.duplicates import Seen, shingles
from medcomfort_utils.rewrite.sources import DROPS, PAIRS, Corpus, load_dialogues, sentences, urgent_sentences

SUBJECTS = ["knee", "back", "elbow", "neck", "wrist", "shoulder", "ankle", "hip", "jaw", "finger", "toe", "heel"]


def record(number):
    subject, years = SUBJECTS[number % len(SUBJECTS)], number // len(SUBJECTS)
    return {
        "question": f"My {subject} has been sore for {years + 2} weeks, what should I do about it?",
        "answer": f"For a sore {subject} of {years + 2} weeks you can rest, use ice and take 0.5 mg of nothing else.",
    }


def jsonl(path, records):
    path.write_text("".join(json.dumps(each) + "\n" for each in records), encoding="utf-8")
    return str(path)


def counted(table):
    return dict(zip(table["reason"], table["count"], strict=True))


@pytest.mark.parametrize(
    "text",
    [
        "Blood pressure 120/80 mmHg, pulse 72, sugar 1,25,000 and 0.5 mg twice a day.",
        "On 2014-10-12 and 12/10/2014 and 12-10-2014 it was 101.5 F; platelets 150000-400000 cells/mcL.",
        "Take 500 mg 1-0-1 for 5 days, BP 112-119/75-78, WBC 4,500-11,000, beta hCG 1200000 mIU/ml.",
        "Sperm count 9000000000 per ml, viral load 8,000,000 copies, p < 0.05, 9876543210.5 and ratio > 3.",
        "Call 911 or 112 at once. 5 mg at 8.30pm, 6 mg @ night, 5mg@8.30pm, 37.7°C, ½ tablet.",
        "The values were 10 20 30 40 50 60 70 and 65000 75000, diagnosis: 1. 5 mg pill. 2. rest.",
    ],
)
def test_doses_dates_and_values_stay(text):
    assert clean_text(text) == text


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("\r\n\t\tIt hurts\xa0  a\tlot.\r\n\r\n\r\nWhy?", "It hurts a lot.\nWhy?"),
        ("A &amp; B &lt;5 mg&nbsp;<br/><link>", "A & B <5 mg"),
        ("Hi Mr. Smith, rest.", "Hello, rest."),
        ("Dear Anna,\nrest.", "Hello, rest."),
        ("dear anna, rest.", "Hello, rest."),
        ("Hello Dr. X\nI have pain.", "Hello, I have pain."),
        ("Hello Dr. Smith I have pain.", "Hello, I have pain."),
        ("hello dr john smith, i have pain.", "Hello, i have pain."),
        ("Good morning Mary Ann! Rest.", "Hello, Rest."),
        ("Hi doctor, I am 24.", "Hi doctor, I am 24."),
        ("Dear Doctor. My son is ill.", "Dear Doctor. My son is ill."),
        ("Hello Dr. My son is ill.", "Hello Dr. My son is ill."),
        ("Hi I am a man, aged 25.", "Hi I am a man, aged 25."),
        ("Hi, Recently it hurts.", "Hi, Recently it hurts."),
        ("Rest well. Regards, Dr. John Doe", "Rest well."),
        ("Rest well.\nKind regards,\nDr. Jane A. Doe, MD, General & Family Physician", "Rest well."),
        ("rest well. regards, dr john doe", "rest well."),
        ("Rest well. Thanks, John", "Rest well. Thanks"),
        ("With regards to sleep, rest well.", "With regards to sleep, rest well."),
        ("Rest well. Best wishes for your recovery.", "Rest well. Best wishes for your recovery."),
        ("Mail a.b-c@d.co.uk or see https://x.org/y?z=1.", "Mail [email] or see [url]."),
        ("See www.site.com/page, or site.com.", "See [url], or [url]."),
        ("Ring +91 98765 43210 or (555) 123-4567.", "Ring [phone] or [phone]."),
        ("Ring 555-123-4567 or 9876543210, call 040-23456789.", "Ring [phone] or [phone], call [phone]."),
        ("take 0. 5 mg at night.", "take 0.5 mg at night."),
        ("rest. for further information consult an orthopaedician and traumatologist online --> <link>", "rest."),
        ("rest. regarding follow up:for further doubts consult a spine surgeon online. ---> <link>", "rest."),
        ("rest. if the pain persists consult a sexologist online --> <link> take care.", "rest. take care."),
        ("rest. revert back after a month to a neurologist online --><link>", "rest."),
        (
            "if it lasts for more than a month get a test and revert back to a paediatrician online --> <link> to know"
            " more read this article --> <link>",
            "if it lasts for more than a month get a test",
        ),
        ("consult a surgeon for further information consult a dentist online --> <link>", "consult a surgeon"),
        ("rest. You can find such stockings online.", "rest. You can find such stockings online."),
        ("Should I consult a doctor online?", "Should I consult a doctor online?"),
    ],
)
def test_clean_text(raw, clean):
    assert clean_text(raw) == clean


def test_squeeze_drops_what_cannot_be_written():
    assert squeeze("a\ud83d b\u200bc\x00").encode("utf-8") == b"a bc"
    assert squeeze("a\u202eb\u2066c\U000e0069\U000e0067") == "abc"


@pytest.mark.parametrize("piece", ["A", "a.", "1 ", "Dr. ", "<a ", "-", "consult online ", "at once ", "&a", "a@"])
def test_hostile_text_is_cleaned_quickly(piece):
    start = time.process_time()
    urgent_sentences(clean_text(piece * (20_000 // len(piece))))
    assert time.process_time() - start < 2


def test_sentences():
    text = "Take 5 ml. twice a day, e.g. at night. Ask Dr. Roe. See: 1. E. coli test. 2. rest.\nIs it 0. 5 mg? yes. ok"
    assert sentences(text) == [
        "Take 5 ml. twice a day, e.g. at night.", "Ask Dr. Roe.", "See: 1. E. coli test.", "2. rest.", "Is it 0. 5 mg?",
        "yes.", "ok",
    ]  # fmt: skip
    assert sentences("Take 5 ml. Then rest.") == ["Take 5 ml.", "Then rest."]
    assert sentences("你好。怎么了？！没事") == ["你好。", "怎么了？！", "没事"]


@pytest.mark.parametrize(
    "text",
    [
        "Go to the emergency room.", "please visit the nearest ER if it gets worse.", "Call 911.", "call an ambulance",
        "Seek immediate medical attention.", "consult your doctor immediately.", "Go to the hospital at once.",
        "Immediately go to a hospital.", "Get help right away.", "Call the suicide prevention lifeline.",
        "如果加重，请立即就医。",
    ],
)  # fmt: skip
def test_urgent_advice_is_found(text):
    assert urgent_sentences(f"Drink water. {text}\nRest.") == [text]


@pytest.mark.parametrize(
    "text",
    [
        "You took an emergency contraceptive pill.", "Shower immediately after swimming.", "An urgent need to urinate.",
        "There is no need to go to the emergency room.", "Your provider may not immediately prescribe antibiotics.",
        "Ask your doctor and immediately stop it.", "The factor 9112 is fine.",
    ],
)  # fmt: skip
def test_other_sentences_are_not_urgent(text):
    assert urgent_sentences(text) == []


def test_language():
    assert language("Is it safe to take this with my other pills?") == "en"
    assert language("我最近总是失眠，吃了 melatonin 也没有用。") == "zh"
    assert language("Me duele la cabeza desde hace tres días y no sé qué hacer con esto.") == ""
    assert language("Ich habe seit drei Tagen Kopfschmerzen und was kann ich nehmen, Herr Doktor?") == ""
    assert language("頭が痛いのですが、どうすればいいですか。") == language("") == language("12 34") == ""


@pytest.mark.parametrize("fields", PAIRS)
def test_known_fields_are_found(tmp_path, fields):
    each = record(1)
    row = {"question": "only a title", "instruction": "ignored"} | dict(zip(fields, each.values(), strict=True))
    row |= {"Must_have": ["Rest helps. ", ""], "tags": ["joints", "pain"]}
    (dialogue,), _ = load_dialogues(jsonl(tmp_path / "corpus.jsonl", [row]))
    assert (dialogue.question, dialogue.answer) == tuple(each.values())
    assert (dialogue.facts, dialogue.topic) == (["Rest helps."], "joints")
    assert (dialogue.source, dialogue.lang) == ("corpus", "en")
    assert dialogue.id == content_id([turn.model_dump() for turn in dialogue.messages])
    assert dialogue.split == split_of(dialogue.id)


def test_given_fields(tmp_path):
    rows = [{"asked": record(1)["question"], "answer": record(1)["answer"], "must": "Rest.\nIce.", "title": "x"}]
    path = jsonl(tmp_path / "a.jsonl", rows)
    (dialogue,), _ = load_dialogues(path, question_field="asked", facts_field="must")
    assert dialogue.question == record(1)["question"] and dialogue.facts == ["Rest.", "Ice."]
    with pytest.raises(MedComfortError, match=r"fields \(asked, answer, must, title\)"):
        load_dialogues(path)
    with pytest.raises(MedComfortError, match="answer_field: no record .* 'reply'; its fields are asked, answer"):
        load_dialogues(path, question_field="asked", answer_field="reply")


@pytest.mark.parametrize("odd", [5, {"a": 1}, [None], [], "\ud800"])
def test_a_topic_that_is_no_text_is_left_out(tmp_path, odd):
    (dialogue,), _ = load_dialogues(jsonl(tmp_path / "a.jsonl", [record(0) | {"tags": odd}]))
    assert dialogue.topic == ""


def test_one_field_cannot_be_question_and_answer(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [record(0)])
    with pytest.raises(MedComfortError, match="must be two fields of .*a.jsonl, not both 'answer'"):
        load_dialogues(path, question_field="answer", answer_field="answer")


def test_messages_end_with_an_answer(tmp_path):
    turns = [("client", record(1)["question"]), ("counselor", record(1)["answer"]), ("client", "Thanks a lot.")]
    row = {"messages": [{"role": role, "content": text, "extra": []} for role, text in turns]}
    (dialogue,), _ = load_dialogues(jsonl(tmp_path / "a.jsonl", [row]))
    assert [turn.role for turn in dialogue.messages] == ["user", "assistant"]
    row["messages"][0]["role"] = "narrator"
    with pytest.raises(MedComfortError, match="line 1: messages must .* client, assistant"):
        load_dialogues(jsonl(tmp_path / "a.jsonl", [row]))


def test_all_formats_agree(tmp_path):
    rows = [record(number) for number in range(20)]
    expected, _ = load_dialogues(jsonl(tmp_path / "corpus.jsonl", rows))
    (tmp_path / "corpus.json").write_text(json.dumps(rows, indent=1), encoding="utf-8-sig")
    pd.DataFrame(rows).to_csv(tmp_path / "corpus.csv", index=False)
    pd.DataFrame(rows).to_parquet(tmp_path / "corpus.parquet")
    for ending in ("json", "csv", "parquet"):
        assert load_dialogues(str(tmp_path / f"corpus.{ending}"))[0] == expected


def test_hub_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("medcomfort_utils.paths.ROOT", tmp_path)
    folder = tmp_path / "corpus"
    folder.mkdir()
    rows = [record(number) for number in range(3)]
    jsonl(folder / "train.jsonl", rows)
    dialogues, _ = load_dialogues("hf:./corpus")
    assert load_dialogues(f"hf:{folder}")[0] == dialogues
    assert [each.question for each in dialogues] == [row["question"] for row in rows]
    assert {each.source for each in dialogues} == {"corpus"}
    (tmp_path / "bare").mkdir()
    with pytest.raises(MedComfortError, match="source: hf:./bare could not be loaded: .*[.]$"):
        load_dialogues("hf:./bare")
    with pytest.raises(MedComfortError, match="revision: hf:owner/name needs one"):
        load_dialogues("hf:owner/name")


def test_every_drop_is_counted(tmp_path):
    good = record(0)
    long = {"question": good["question"], "answer": " ".join(f"you take {n}" for n in range(350))}
    near = {"question": good["question"], "answer": long["answer"][:800]}
    rows = [
        good, good | {"question": " \t"}, good | {"question": None}, good | {"answer": "<link>"},
        good | {"answer": "Rest."}, long, good | {"question": "x" * 5_000_000},
        good | {"question": "help " * 1_000_000}, dict(good), near,
        near | {"answer": near["answer"] + " at night"},
        {"question": "Hola doctor, me duele la cabeza", "answer": "Debe tomar agua y dormir bien todas las noches."},
        record(1), record(2), record(3),
    ]  # fmt: skip
    start = time.process_time()
    dialogues, table = load_dialogues(jsonl(tmp_path / "a.jsonl", rows), limit=3)
    assert time.process_time() - start < 5
    assert table["reason"].tolist() == ["read", *DROPS, "kept"]
    assert table["count"].tolist() == [15, 2, 1, 1, 3, 1, 1, 1, 2, 3] and len(dialogues) == 3


def test_limit_is_a_sample_in_order(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [record(number) for number in range(40)])
    everything, _ = load_dialogues(path)
    some, table = load_dialogues(path, limit=7, seed=1)
    assert some == [each for each in everything if each in some] and len(some) == counted(table)["kept"] == 7
    assert some == load_dialogues(path, limit=7, seed=1)[0] != load_dialogues(path, limit=7, seed=2)[0]
    assert load_dialogues(path, limit=1_000)[0] == everything
    with pytest.raises(MedComfortError, match="limit: -1"):
        load_dialogues(path, limit=-1)


def test_duplicates_leave_one(tmp_path):
    dialogues, table = load_dialogues(jsonl(tmp_path / "a.jsonl", [record(0)] * 50 + [record(1)]))
    assert len(dialogues) == 2 and counted(table)["exact duplicate"] == 49


def test_nothing_but_duplicates_is_refused(tmp_path):
    with pytest.raises(MedComfortError, match="all 50 usable records are copies of one dialogue"):
        load_dialogues(jsonl(tmp_path / "a.jsonl", [record(0)] * 50))


def near_copies(count=150, copies=100):
    """Texts of 120 random words, and changed copies of the first ones; with the exact answer to which are near."""
    random = np.random.default_rng(0)
    texts = [[str(word) for word in random.integers(0, 5_000, 120)] for _ in range(count)]
    for text in texts[:copies]:
        changed = list(text)
        for place in random.integers(0, 120, random.integers(1, 8)):
            changed[place] = "other"
        texts.append(changed)
    sets = [set(shingles(text).tolist()) for text in texts]
    return texts, [any(len(one & other) / len(one | other) >= 0.8 for other in sets[:i]) for i, one in enumerate(sets)]


def test_near_duplicates_match_the_exact_answer():
    texts, exact = near_copies()
    seen = Seen()
    assert 10 < sum(exact) < 90
    assert [seen.repeats(f"{i:x}", text) == "near duplicate" for i, text in enumerate(texts)] == exact


def test_only_so_many_texts_are_remembered():
    texts, exact = near_copies()
    seen = Seen(remember=20)
    found = [seen.repeats(f"{i:x}", text) for i, text in enumerate(texts)]
    assert found.count("near duplicate") < sum(exact) / 4 and len(seen._kept) == 20 and len(seen._buckets) <= 240
    assert seen.repeats("0", texts[0]) == "exact duplicate"


def test_hashes_are_the_same_everywhere():
    assert shingles(words("my knee has been sore for weeks")).tolist() == [944358773, 1409321360, 4217210694]


def test_a_corpus_is_read_piece_by_piece(tmp_path):
    lines = [json.dumps(record(number)) for number in range(1_500)]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join([*lines, "broken"]))
    dialogues = iter(Corpus(str(path)))
    assert next(dialogues).question == record(0)["question"]
    with pytest.raises(MedComfortError, match="line 1501"):
        list(dialogues)


def test_a_corpus_may_bring_red_flags_and_emotions(tmp_path):
    row = record(1) | {
        "red_flags": ["Rest at once."],
        "emotions": ["guilt", "fear"],
        "facts": ["Ice."],
        "topic": "joints",
    }
    corpus = Corpus(jsonl(tmp_path / "a.jsonl", [row]))
    (dialogue,) = corpus
    assert (dialogue.red_flags, dialogue.emotions) == (["Rest at once."], ["guilt", "fear"])
    assert (dialogue.facts, dialogue.topic) == (["Ice."], "joints") and list(corpus) == [dialogue]
    with pytest.raises(MedComfortError, match="line 1: emotions must be some of fear, .* not 'joy'"):
        list(Corpus(jsonl(tmp_path / "a.jsonl", [row | {"emotions": ["joy"]}])))


BAD = {
    "empty.json": (b"", "empty.json is empty"),
    "blank.jsonl": (b" \n\n", "blank.jsonl holds no records"),
    "none.json": (b"[]", "none.json holds no records"),
    "latin.json": (b'[{"question": "caf\xe9"}]', "latin.json is not UTF-8 at byte 18"),
    "list.json": (b'[{"question": "a",\n "answer": }]', "list.json, line 2: this is not valid JSON"),
    "text.json": (b'["a"]', "text.json, record 1: a record must be an object"),
    "number.jsonl": (b'{"question": 5, "answer": "b"}', "number.jsonl, line 1: the user's turn must be text, not int"),
    "facts.jsonl": (json.dumps(record(0) | {"Must_have": 5}).encode(), "line 1: Must_have must be a list"),
    "short.jsonl": (b'{"question": "a", "answer": "b"}', "of 1 records read none can be used .1 too short"),
    "empty.csv": (b"\n", "empty.csv is not a readable CSV file"),
    "wide.csv": (b"question,answer\na,b\na,b,c\n", "wide.csv is not a readable CSV file: .* line 3"),
    "broken.parquet": (b"PAR1", "broken.parquet is not a readable parquet file"),
    "commas.csv": (b"question,answer\nHello, it hurts,Rest it\nOh, it aches,Ice it\n", "more fields than its first"),
    "role.jsonl": (b'{"messages": [{"role": ["user"], "content": "a"}]}', "line 1: messages must be a list of turns"),
    "notes.txt": (b"a", "notes.txt must end in one of .json, .jsonl, .csv, .parquet"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_end_with_one_sentence(tmp_path, name):
    content, message = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MedComfortError, match=message) as caught:
        load_dialogues(str(tmp_path / name))
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


def test_broken_line_and_missing_answer_are_named(tmp_path):
    lines = [json.dumps(record(number)) for number in range(900)]
    path = tmp_path / "a.jsonl"
    for broken in ('{"question": "broken', '{"question": "broken off", ', '{"question": "x", "answer":', "{"):
        path.write_text("\n".join([*lines[:811], broken, *lines[812:]]))
        with pytest.raises(MedComfortError, match="a.jsonl, line 812: this is not valid JSON"):
            load_dialogues(str(path))
    path.write_text("\n".join([*lines[:811], "", '{"question": "no answer"}', *lines[812:]]))
    with pytest.raises(MedComfortError, match=r"line 813: the record has no field 'answer' \(it has question\)"):
        load_dialogues(str(path))


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(MedComfortError, match="source: there is no file or folder .*nothing.json"):
        load_dialogues(str(tmp_path / "nothing.json"))
    with pytest.raises(MedComfortError, match="is a folder"):
        load_dialogues(str(tmp_path))
