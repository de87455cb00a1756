"""Replies and their perplexity, what is asked, and who answers."""

import json
import math

import pandas as pd
import pytest
import torch
from conftest import turn, version

from medcomfort_utils import paths
from medcomfort_utils.evaluate import baselines, generate
from medcomfort_utils.finetune import engine
from medcomfort_utils.paths import NANO_BASE, MedComfortError
from medcomfort_utils.records import Dialogue
from medcomfort_utils.rewrite import clinic

BASE = str(NANO_BASE)
ROOM = 200  # tokens: replies end before
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def prompts():
    """Questions of different lengths, in no order of length."""
    asked = [d.prompt for d in clinic.generate(3) if d.split == "test"][:5]
    return [turn("user", asked[0][0]["content"] + " It is worse at night."), *asked]


@pytest.fixture(scope="module")
def said(prompts):
    return generate.replies(BASE, prompts, ROOM, batch_size=8)


def test_neither_batch_nor_order_changes_replies(prompts, said):
    assert said["reply"].nunique() > 3
    turned = generate.replies(BASE, prompts[::-1], ROOM, batch_size=1)
    pd.testing.assert_frame_equal(turned[::-1].reset_index(drop=True), said)


@torch.no_grad()
def test_a_reply_is_greedy_and_counted(prompts, said):
    model, tokenizer = engine.load(BASE)
    tokens = tokenizer.apply_chat_template(prompts[0], add_generation_prompt=True, return_dict=True)["input_ids"]
    made = []
    while len(made) < ROOM and (not made or made[-1] != tokenizer.eos_token_id):
        made.append(int(model(torch.tensor([tokens + made])).logits[0, -1].argmax()))
    ended = made[-1] == tokenizer.eos_token_id
    text = tokenizer.decode(made, skip_special_tokens=True)
    assert said.loc[0].tolist() == [text, len(made) - ended, ended, False]


def test_a_prompt_without_room_is_marked_as_cut(prompts):
    said = generate.replies(BASE, [turn("user", "I have a cough. " * 400), prompts[0]], ROOM)
    assert said["cut"].tolist() == [True, False]


def test_a_reply_that_meets_its_limit_has_not_ended(prompts, said):
    limit = int(said["tokens"].median())
    cut = generate.replies(BASE, prompts, limit, batch_size=4)
    assert cut["tokens"].tolist() == said["tokens"].clip(upper=limit).tolist()
    assert cut["ended"].tolist() == (said["tokens"] < limit).tolist() and cut["ended"].nunique() == 2
    assert all(whole.startswith(part) for whole, part in zip(said["reply"], cut["reply"], strict=True))


def test_ended_and_tokens_of_a_generated_row():
    tokenizer = engine.load_tokenizer(BASE)
    end, pad, word = tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer("Rest")["input_ids"]
    assert generate._reply([*word, end, pad, pad], tokenizer) == ("Rest", len(word), True)
    assert generate._reply(word, tokenizer) == ("Rest", len(word), False)
    assert generate._reply([end, pad], tokenizer) == ("", 0, True)


def test_a_prompt_longer_than_the_context_is_shortened(prompts):
    endless = turn("user", "I have a cough. " * 400)
    assert len(generate.replies(BASE, [endless, prompts[1]], max_new_tokens=8)) == 2


@pytest.mark.parametrize(("name", "value"), [("max_new_tokens", 512), ("max_new_tokens", 0), ("batch_size", 0)])
def test_a_length_or_batch_out_of_range_is_refused(prompts, name, value):
    with pytest.raises(MedComfortError, match=f"^{name} must .*, not {value}"):
        generate.replies(BASE, prompts, **{name: value})


@torch.no_grad()
def test_perplexity_by_hand(prompts, monkeypatch):
    model, tokenizer = engine.load(BASE)
    texts = ["This sounds like a cold.", "", "I hear how frightened you are.", "Blue seven the of."]
    values = generate.perplexity(BASE, prompts[:4], texts)
    monkeypatch.setattr(generate, "SCORED", 1)
    one_by_one = generate.perplexity(BASE, prompts[:4], texts)
    assert math.isnan(values[1]) and values == pytest.approx(one_by_one, rel=1e-4, nan_ok=True)
    for number in (0, 2, 3):
        head = tokenizer.apply_chat_template(prompts[number], add_generation_prompt=True, return_dict=True)["input_ids"]
        tail = tokenizer(texts[number])["input_ids"]
        chances = model(torch.tensor([head + tail])).logits[0].softmax(-1)
        surprise = [-math.log(chances[len(head) + i - 1, token]) for i, token in enumerate(tail)]
        assert values[number] == pytest.approx(math.exp(sum(surprise) / len(tail)), rel=1e-3)
    assert values[0] < values[3]


def test_perplexity_of_texts_beyond_the_context(prompts):
    values = generate.perplexity(BASE, [turn("user", "I have a cough. " * 400), prompts[1]], ["Rest.", "Rest. " * 900])
    assert all(math.isfinite(value) for value in values)


def test_replies_are_saved_a_line_each(tmp_path):
    rows = [{"reply": "Größe\n咳嗽", "seed": None}, {"reply": "", "seed": 1}]
    path = generate.save_replies(tmp_path / "base.jsonl", rows)
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == rows


@pytest.fixture
def asked():
    made = []
    for number in range(3):
        split = "train" if number == 1 else "test"
        question, plain, key = f"Q{number}?", f"Plain {number}.", f"d{number}"
        made += [
            version(key, "original", question, plain, split=split),
            version(key, "emotional", f"Afraid. {question}", f"Soothing {number}.", "fear", split),
            version(key, "soothing_answer", question, f"Soothing {number}.", "fear", split),
            version(key, "comfort_only", f"Afraid. {question}", "Soothing.", "fear", split),
        ]
    return made


def test_the_test_sets(asked):
    table = baselines.test_sets(asked)
    columns = ["test_set", "dialogue_id", "emotion", "question", "soothing"]
    assert table[columns].to_numpy().tolist() == [
        ["emotional", "d0", "fear", "Afraid. Q0?", "Soothing 0."],
        ["emotional", "d2", "fear", "Afraid. Q2?", "Soothing 2."],
        ["neutral", "d0", "", "Q0?", "Plain 0."],
        ["neutral", "d2", "", "Q2?", "Plain 2."],
    ]
    assert table["prompt"][0] == turn("user", "Afraid. Q0?")
    assert baselines.test_sets(asked, limit=1)["dialogue_id"].tolist() == ["d0", "d0"]
    assert len(baselines.test_sets(asked, limit=9)) == 4


def test_test_sets_that_cannot_be_made_are_refused(asked):
    with pytest.raises(MedComfortError, match="limit must be 0 .*, not -1"):
        baselines.test_sets(asked, -1)
    for kept in ([], [r for r in asked if r.split == "train"], [r for r in asked if r.condition != "original"]):
        with pytest.raises(MedComfortError, match="no emotional and neutral question in the test split"):
            baselines.test_sets(kept)


def saved(folder, model, method, seed):
    """The notes and curves of a model, as training leaves them."""
    place = folder / f"{model}-seed{seed}"
    paths.write_json(place / "training.json", {"model": model, "method": method, "seed": seed, "signature": "0"})
    paths.write_text(place / "history.csv", f"step,metric,value\n1,loss,{seed}.5\n")
    return place


@pytest.fixture
def models_dir(tmp_path):
    saved(tmp_path, "wide", "sft", 0)
    for method, seed in (("kto", 0), ("sft", 10), ("sft", 3), ("sft", 2), ("sft", 11), ("dpo", 0)):
        saved(tmp_path, method, method, seed)
    return tmp_path


def test_models_are_found_in_order(models_dir):
    models = baselines.find_models(models_dir, "the/base")
    assert models["model"].tolist() == ["base", "sft", "sft", "sft", "sft", "dpo", "kto", "wide"]
    assert models["method"].tolist() == ["base", "sft", "sft", "sft", "sft", "dpo", "kto", "sft"]
    assert models["seed"].tolist()[1:] == [2, 3, 10, 11, 0, 0, 0] and models["seed"].isna()[0]
    assert models["path"][0] == "the/base" and models["path"][1] == str(models_dir / "sft-seed2")


def test_what_a_killed_run_left_is_no_model(models_dir):
    before = baselines.find_models(models_dir, "base")
    saved(models_dir, "sft", "sft", 2).rename(models_dir / ".sft-seed2.17.tmp")
    saved(models_dir, "sft", "sft", 2)
    (models_dir / "notes").mkdir()
    pd.testing.assert_frame_equal(baselines.find_models(models_dir, "base"), before)


def test_models_that_cannot_be_found_are_told(tmp_path):
    with pytest.raises(MedComfortError, match="models_dir: there is no file or folder"):
        baselines.find_models(tmp_path / "none", "base")
    with pytest.raises(MedComfortError, match="models_dir: .* holds no model of 02_finetune"):
        baselines.find_models(tmp_path, "base")
    paths.write_text(tmp_path / "sft-seed0" / "training.json", '{"model": ')
    with pytest.raises(MedComfortError, match=r"sft-seed0/training\.json is not valid JSON at line 1"):
        baselines.find_models(tmp_path, "base")


def test_the_curves_of_all_models(models_dir):
    curves = baselines.histories(baselines.find_models(models_dir, "base"))
    assert list(curves.columns) == ["model", "method", "seed", "step", "metric", "value"]
    assert curves["model"].tolist() == ["sft", "sft", "sft", "sft", "dpo", "kto", "wide"]
    assert curves["value"].tolist() == [2.5, 3.5, 10.5, 11.5, 0.5, 0.5, 0.5]


def test_the_baselines(asked):
    table = baselines.test_sets(asked)
    messages = {key: turn("user", "Q?") + turn("assistant", f"Source of {key}.") for key in ("d0", "d2")}
    sources = {k: Dialogue(id=k, source="hand", messages=messages[k], split="test") for k in messages}
    plain = baselines.baseline(table, sources, "original")
    assert plain["reply"].tolist() == ["Source of d0.", "Source of d2."] * 2
    template = baselines.baseline(table, sources, "template")
    assert template["reply"].tolist() == ["Soothing 0.", "Soothing 2.", "Source of d0.", "Source of d2."]
    assert set(template["model"]) == {"template"} and set(template["method"]) == {"reference"}
    assert template[["seed", "tokens", "ended"]].isna().all(axis=None)


def test_replies_side_by_side_and_their_files():
    table = pd.DataFrame({"question": ["Q?", "Q?"], "model": ["base", "sft"], "reply": ["Plain.", "Soothing."]})
    assert baselines.side_by_side(table) == "> Q?\n\n**base**: Plain.\n\n**sft**: Soothing."
    assert baselines.file_name("base", None) == baselines.file_name("base", pd.NA) == "base.jsonl"
    assert baselines.file_name("sft", 2) == "sft-seed2.jsonl"
