"""Reading real dialogues: cleaning that keeps every number, drops that are counted, errors that name the place."""

import json
import time

import pandas as pd
import pytest

from medcomfort_utils.paths import MedComfortError
from medcomfort_utils.records import content_id
from medcomfort_utils.rewrite.clean import clean_text, cleaned
from medcomfort_utils.rewrite.duplicates import Near, shingles
from medcomfort_utils.rewrite.sources import DROPS, Corpus, open_source
from medcomfort_utils.text import words

SUBJECTS = ["knee", "back", "elbow", "neck", "wrist", "shoulder", "ankle", "hip", "jaw", "finger", "toe", "heel"]


def asked(number):
    return f"My {SUBJECTS[number % 12]} has been sore for {number // 12 + 2} weeks, what should I do about it?"


def answered(number):
    return (
        f"For {number + 2} weeks of that you can rest the {SUBJECTS[number % 12]}, use ice and take 0.5 mg of nothing."
    )


def record(number):
    return {"question": asked(number), "answer": answered(number)}


def talk(*turns, field="messages", role="role", text="content"):
    return {field: [{role: who, text: said} for who, said in turns]}


def written(path, rows):
    path.write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")
    return str(path)


def counted(corpus):
    table = corpus.counts()
    return {reason: count for reason, count in zip(table["reason"], table["count"], strict=True) if count}


@pytest.mark.parametrize(
    "text",
    [
        "Blood pressure 120/80 mmHg, pulse 72, sugar 1,25,000 and 0.5 mg twice a day.",
        "On 2014-10-12 and 12/10/2014 and 12-10-2014 it was 101.5 F; platelets 150000-400000 cells/mcL.",
        "Sperm count 9000000000 per ml, viral load 8,000,000 copies, p < 0.05, 9876543210.5 and ratio > 3.",
        "Call 911 or 112 at once. 5 mg at 8.30pm, 6 mg @ night, 5mg@8.30pm, 37.7°C, ½ tablet.",
        "The values were 10 20 30 40 50 60 70 and 65000 75000, diagnosis: 1. 5 mg pill. 2. rest.",
        # F1: what stands behind a greeting or at the end may be a medicine, a disease, a state or advice
        "Hello, Ibuprofen, paracetamol and aspirin are all safe for you.", "Hello, HIV. I was tested",
        "Dear doctor, Pregnant, 12 weeks", "Take it with food. Thanks,\nAmoxicillin", "Hi Diabetes, type 2 here.",
        "Hi Rest. Then drink.", "Hi doctor, I am 24.", "Hello Dr. My son is ill.", "Hi, Recently it hurts.",
        "Dear Doctor. My son is ill.", "With regards to sleep, rest well.", "Best wishes for your recovery.",
        "rest. You can find such stockings online.",
    ],
)  # fmt: skip
def test_medicine_stays(text):
    assert cleaned(text) == (text, 0)


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("\r\n\t\tIt hurts\xa0  a\tlot.\r\n\r\n\r\nWhy?", "It hurts a lot.\nWhy?"),
        ("A &amp; B &lt;5 mg&nbsp;<br/><link>", "A & B <5 mg"),
        ("10<sup>9</sup>/L <td>x</td> <!-- note -->Rest &amp;lt;5 mg", "10^9/L x Rest <5 mg"),
        ("Don´t, don\x92t, don\u02bct, donâ€™t", "Don't, don't, don't, don't"),
        ("Hi Mr. Smith, rest.", "Hello, rest."),
        ("Dear Anna,\nrest.", "Hello, rest."),
        ("dear anna, rest.", "Hello, rest."),
        ("Hello Dr. X\nI have pain.", "Hello, I have pain."),
        ("Hello Dr. Smith I have pain.", "Hello, I have pain."),
        ("hello dr john smith, i have pain.", "Hello, i have pain."),
        ("Good morning Mary Ann! Rest.", "Hello, Rest."),
        ("Rest well. Regards, Dr. John Doe", "Rest well."),
        ("Rest well.\nKind regards,\nDr. Jane A. Doe, MD, General & Family Physician", "Rest well."),
        ("rest well. regards, dr john doe", "rest well."),
        ("Rest well. Thanks, John", "Rest well. Thanks"),
        ("Mail a.b-c@d.co.uk or see https://x.org/y?z=1.", "Mail [email] or see [url]."),
        ("Ring +91 98765 43210 or (555) 123-4567, call 040-23456789.", "Ring [phone] or [phone], call [phone]."),
        ("take 0. 5 mg at night.", "take 0.5 mg at night."),
        ("rest. for further information consult an orthopaedician and traumatologist online --> <link>", "rest."),
        ("rest. if the pain persists consult a sexologist online --> <link> take care.", "rest. take care."),
        ("consult a surgeon for further information consult a dentist online --> <link>", "consult a surgeon"),
    ],
)
def test_what_is_no_medicine_goes(raw, clean):
    assert clean_text(raw) == clean


@pytest.mark.parametrize(
    "piece", ["A", "a.", "1 ", "Dr. ", "<a ", "-", "consult online ", "at once ", "&a", "a@", "<!--"]
)
def test_hostile_text_is_cleaned_quickly(piece):
    start = time.process_time()
    clean_text(piece * (20_000 // len(piece)))
    assert time.process_time() - start < 2


PAIRS = [(asked(n), answered(n)) for n in range(3)]
LAYOUTS = {
    "map.json": {str(n): {"QUESTION": q, "LONG_ANSWER": a} for n, (q, a) in enumerate(PAIRS)},
    "wrapped.json": {"version": "1", "data": [{"src": q, "tgt": a} for q, a in PAIRS]},
    "list.json": [{"Question": q, " Free_form_answer": a} for q, a in PAIRS],
    "alpaca.json": [{"instruction": q, "input": "", "output": a} for q, a in PAIRS],
    "chatdoctor.json": [{"instruction": "Answer as a doctor.", "input": q, "output": a} for q, a in PAIRS],
    "titled.json": [{"question": "only a title", "question_text": q, "answer": a} for q, a in PAIRS],
    "sharegpt.json": [
        talk(("human", q), ("gpt", a), field="conversations", role="from", text="value") for q, a in PAIRS
    ],
    "esconv.json": [
        talk(("seeker", q), ("supporter", a), ("seeker", "Thanks."), field="dialog", role="speaker", text="text")
        for q, a in PAIRS
    ],
    "roles.json": [talk(("Patient", q), ("Doctor", a)) for q, a in PAIRS],
    "string.json": [{"messages": json.dumps(talk(("client", q), ("counselor", a))["messages"])} for q, a in PAIRS],
}
TABLES = {",": " question , Answer", ";": "Question;Answer", "\t": "question\tanswer"}


@pytest.mark.parametrize("name", LAYOUTS)
def test_common_layouts_are_read(tmp_path, name):
    (tmp_path / name).write_text(json.dumps(LAYOUTS[name], indent=1), encoding="utf-8")
    assert [(d.question, d.answer) for d in open_source(str(tmp_path / name))] == PAIRS
    if isinstance(LAYOUTS[name], list):
        lines = open_source(written(tmp_path / "lines.jsonl", LAYOUTS[name]))
        assert [(d.question, d.answer) for d in lines] == PAIRS


@pytest.mark.parametrize("mark", TABLES)
def test_tables_are_read_whatever_stands_between_their_columns(tmp_path, mark):
    rows = (mark.join(f'"{text}"' for text in pair) for pair in PAIRS)
    (tmp_path / "a.csv").write_text("\n".join([TABLES[mark], *rows]), encoding="utf-8")
    assert [(d.question, d.answer) for d in open_source(str(tmp_path / "a.csv"))] == PAIRS


def test_one_record_and_all_formats_agree(tmp_path):
    rows = [record(number) for number in range(20)]
    expected = list(Corpus(written(tmp_path / "corpus.jsonl", rows)))
    (tmp_path / "corpus.json").write_text(json.dumps(rows, indent=1), encoding="utf-8-sig")
    pd.DataFrame(rows).to_csv(tmp_path / "corpus.csv", index=False)
    pd.DataFrame(rows).to_parquet(tmp_path / "corpus.parquet")
    for ending in ("json", "csv", "parquet"):
        assert list(Corpus(str(tmp_path / f"corpus.{ending}"))) == expected
    (tmp_path / "one.json").write_text(json.dumps(record(0), indent=1), encoding="utf-8")
    assert [d.id for d in Corpus(str(tmp_path / "one.json"))] == [expected[0].id]


def test_a_record_may_say_more(tmp_path):
    row = {"asked": asked(1), "answer": answered(1), "must": "Rest.\nIce.", "tags": ["joints", "pain"]}
    row |= {"emotions": ["guilt", "fear"], "red_flags": ["Rest at once."], "urgency": "soon"}
    path = written(tmp_path / "corpus.jsonl", [row])
    (dialogue,) = Corpus(path, question_field="Asked", facts_field="must")
    assert (dialogue.facts, dialogue.topic, dialogue.urgency) == (["Rest.", "Ice."], "joints", "soon")
    assert (dialogue.red_flags, dialogue.emotions) == (["Rest at once."], ["guilt", "fear"])
    assert (dialogue.source, dialogue.lang) == ("corpus", "en")
    assert dialogue.id == content_id([turn.model_dump() for turn in dialogue.messages])
    for given, told in {
        (
            ("question_field", "asked"),
            ("answer_field", "reply"),
        ): "answer_field: no record .* 'reply'; its fields are a",
        (): r"no question and answer could be found among its fields \(asked, answer, must, .*\); set question_field",
    }.items():
        with pytest.raises(MedComfortError, match=told):
            Corpus(path, **dict(given))


def test_urgent_advice_becomes_a_red_flag(tmp_path):
    row = record(0) | {"answer": "Drink water and rest for now. Call an ambulance if it gets worse. Sleep well."}
    (dialogue,) = Corpus(written(tmp_path / "a.jsonl", [row]))
    assert dialogue.red_flags == ["Call an ambulance if it gets worse."]


ODD = {
    "not text": (record(5) | {"answer": 42}, [record(n) for n in range(2)]),
    "missing field": ({"question": asked(5)}, [record(n) for n in range(2)]),
    "odd statements": (record(5) | {"emotions": ["joy"]}, [record(n) for n in range(2)]),
    "not a record": ([1], [record(n) for n in range(2)]),
    "no turns": ({"messages": None}, [talk(("user", q), ("assistant", a)) for q, a in PAIRS[:2]]),
    "unknown role": (
        talk(("user", asked(5)), ("tool", "x"), ("assistant", answered(5))),
        [talk(("user", q), ("assistant", a)) for q, a in PAIRS[:2]],
    ),
}


@pytest.mark.parametrize("reason", ODD)
def test_an_odd_record_is_a_counted_drop(tmp_path, reason):
    odd, good = ODD[reason]
    corpus = Corpus(written(tmp_path / "a.jsonl", [good[0], odd, good[1]]))
    assert len(list(corpus)) == 2 and counted(corpus) == {"read": 3, reason: 1, "kept": 2}
    with pytest.raises(
        MedComfortError, match=rf"more than 50% of its 5 records do not fit \(3 {reason}; the first, line 1: "
    ):
        list(Corpus(written(tmp_path / "b.jsonl", [odd, odd, odd, *good])))


def test_every_drop_is_counted(tmp_path):
    good = record(0)
    long = {"question": good["question"], "answer": " ".join(f"you take {n}" for n in range(350))}
    near = {"question": good["question"], "answer": long["answer"][:800]}
    rows = [
        good, good | {"question": " \t"}, good | {"question": None}, good | {"answer": "<link>"},
        good | {"answer": "Rest."}, long, good | {"question": "x" * 5_000_000},
        good | {"question": "help " * 1_000_000}, dict(good), near,
        near | {"answer": near["answer"] + " at night"},
        {"question": "Hola doctor, me duele mucho la cabeza desde ayer",
         "answer": "Debe tomar agua y dormir bien todas las noches."},
        record(1), record(2), record(3),
        {"question": "25 yr old male, knee pain 3 wks, swelling, no trauma. MRI needed?",
         "answer": "Rest, ice, ibuprofen 400 mg tds x 5 days. Physio. MRI only with locking or instability."},
        {"question": "Hi Mr. Jones, my left hand hurts at night.", "answer": answered(9)},
    ]  # fmt: skip
    start = time.process_time()
    corpus = Corpus(written(tmp_path / "a.jsonl", rows), limit=3, lang="en")
    assert len(list(corpus)) == 3 and time.process_time() - start < 5
    assert list(corpus.counts()["count"]) == [17, 2, 1, 1, 3, 1, 1, 1, 4, 3, 1]
    assert list(corpus.counts()["reason"]) == ["read", *DROPS, "kept", "names removed"]


def test_limit_is_a_sample_in_order(tmp_path):
    path = written(tmp_path / "a.jsonl", [record(number) for number in range(40)])
    everything = list(Corpus(path))
    some = list(Corpus(path, limit=7, seed=1))
    assert some == [each for each in everything if each in some] and len(some) == 7
    assert some == list(Corpus(path, limit=7, seed=1)) != list(Corpus(path, limit=7, seed=2))
    with pytest.raises(MedComfortError, match="limit: -1"):
        Corpus(path, limit=-1)


def test_a_question_and_its_near_duplicates_stay_in_one_split(tmp_path):
    """F2: 60 questions with three different answers each, the third time in slightly other words."""
    rows = []
    for number in range(60):
        question = f"{asked(number)} It began on day {number} of our holiday, after a walk of {number + 3} miles."
        for again in range(3):
            advice = " ".join(f"advice{number}x{again} number{step}" for step in range(12))
            rows.append({"question": question + " Thanks." * (again == 2), "answer": advice})
    dialogues = list(Corpus(written(tmp_path / "a.jsonl", rows)))
    splits = {}
    for dialogue in dialogues:
        splits.setdefault(dialogue.question.removesuffix(" Thanks."), set()).add(dialogue.split)
    assert len(dialogues) == 180 and len(splits) == 60
    assert {len(each) for each in splits.values()} == {1} and len(set().union(*splits.values())) > 1


def test_near_texts_are_told_from_others():
    near, text = Near(remember=20), [f"word{n}" for n in range(100)]
    assert near.label(text, "a") == "a" and near.label([*text[:99], "other"], "b") == "a"
    assert near.label([f"else{n}" for n in range(100)], "c") == "c"
    for number in range(30):
        near.label([f"{number}x{n}" for n in range(100)], str(number))
    assert near.label(text, "d") == "d", "only the last are remembered"
    assert shingles(words("my knee has been sore for weeks")).tolist() == [944358773, 1409321360, 4217210694]


def test_hub_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "corpus"
    folder.mkdir()
    written(folder / "test.jsonl", [record(number) for number in range(3)])
    with pytest.raises(MedComfortError, match=r"could not be loaded: .* Should be one of .'test'.\."):
        Corpus(f"hf:{folder}")
    dialogues = list(Corpus(f"hf:{folder}", split="test"))
    assert [each.question for each in dialogues] == [asked(number) for number in range(3)]
    assert {each.source for each in dialogues} == {"hf:corpus"}
    with pytest.raises(MedComfortError, match="revision: hf:owner/name needs one"):
        Corpus("hf:owner/name")


def test_an_own_file_is_never_taken_for_the_made_up_clinic(tmp_path):
    corpus = open_source(written(tmp_path / "clinic.jsonl", [record(0)]))
    assert corpus.name == "clinic.jsonl" and {d.source for d in corpus} == {"clinic.jsonl"}
    assert {d.source for d in open_source("clinic")} == {"clinic"}


BAD = {
    "empty.json": (b"", "empty.json holds no records"),
    "blank.jsonl": (b" \n\n", "blank.jsonl holds no records"),
    "none.json": (b"[]", "none.json holds no records"),
    "latin.json": (b'[{"question": "caf\xe9"}]', "latin.json is not UTF-8 at byte 18"),
    "list.json": (b'[{"question": "a",\n "answer": }]', "list.json, line 2: this is not valid JSON"),
    "text.json": (b'["a"]', "text.json holds no records with named fields"),
    "short.jsonl": (b'{"question": "a", "answer": "b"}', "of 1 records read none can be used .1 too short"),
    "empty.csv": (b"\n", "empty.csv holds no records"),
    "wide.csv": (b"question,answer\na,b\na,b,c\n", "wide.csv, line 3: more fields than its first"),
    "broken.parquet": (b"PAR1", "broken.parquet is not a readable parquet file"),
    "cut.csv": (b"question,answer\na,caf\xe9\n", "cut.csv is not UTF-8 at byte 21"),
    "notes.txt": (b"a", "notes.txt must be a file that ends in one of .json, .jsonl, .csv, .tsv, .parquet"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_end_with_one_sentence(tmp_path, name):
    content, message = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MedComfortError, match=message) as caught:
        list(Corpus(str(tmp_path / name)))
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


def test_a_broken_line_is_named(tmp_path):
    lines = [json.dumps(record(number)) for number in range(900)]
    for broken in ('{"question": "broken', '{"question": "x", "answer":', "{"):
        (tmp_path / "a.jsonl").write_text("\n".join([*lines[:811], broken, *lines[812:]]))
        with pytest.raises(MedComfortError, match="a.jsonl, line 812: this is not valid JSON"):
            list(Corpus(str(tmp_path / "a.jsonl")))
    with pytest.raises(MedComfortError, match="source: there is no file or folder .*nothing.json"):
        Corpus(str(tmp_path / "nothing.json"))
    with pytest.raises(MedComfortError, match="must be a file"):
        Corpus(str(tmp_path))
