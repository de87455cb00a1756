"""Replies and their perplexity, in this process, in others, and from a server; what is asked, and who answers."""

import math
import os
import signal
import subprocess
import sys

import pandas as pd
import psutil
import pytest
import torch
from conftest import turn, version
from servers import Reply, StubServer

from medcomfort_utils import paths
from medcomfort_utils.evaluate import baselines, comfort, generate, knowledge
from medcomfort_utils.finetune import engine
from medcomfort_utils.paths import NANO_BASE, ROOT, MedComfortError
from medcomfort_utils.records import Dialogue
from medcomfort_utils.rewrite import clinic

BASE = str(NANO_BASE)
ROOM = 200  # tokens: replies end before
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def prompts():
    """Questions of different lengths, in no order of length."""
    asked = [d.prompt for d in clinic.generate(3) if d.split == "test"][:4]
    return [turn("user", asked[0][0]["content"] + " It is worse at night."), *asked]


@pytest.fixture(scope="module")
def said(prompts):
    return generate.replies(BASE, prompts, ROOM, batch_size=8)


def test_neither_batch_nor_order_changes_replies(prompts, said):
    turned = generate.replies(BASE, prompts[::-1], ROOM, batch_size=1)
    pd.testing.assert_frame_equal(turned[::-1].reset_index(drop=True), said)
    assert said["reply"].nunique() > 2


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


def test_a_reply_that_meets_its_limit_has_not_ended_and_a_prompt_without_room_is_cut(prompts, said):
    limit = int(said["tokens"].median())
    cut = generate.replies(BASE, [*prompts, turn("user", "I have a cough. " * 400)], limit, batch_size=4)
    assert cut["tokens"][:-1].tolist() == said["tokens"].clip(upper=limit).tolist()
    assert cut["ended"][:-1].tolist() == (said["tokens"] < limit).tolist() and cut["ended"].nunique() == 2
    assert cut["cut"].tolist() == [False] * len(prompts) + [True]
    with pytest.raises(MedComfortError, match="^max_new_tokens must .*, not 512"):
        generate.replies(BASE, prompts, 512)


def test_every_end_of_turn_that_the_model_names_ends_a_reply(tmp_path, prompts, said):
    model, tokenizer = engine.load(BASE)
    comma = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(said["reply"][0])[3])
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, comma]
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    short = generate.replies(str(tmp_path), prompts[:1], ROOM)
    assert short["ended"][0] and short["tokens"][0] <= 3 and said["reply"][0].startswith(short["reply"][0])


def test_thoughts_are_no_reply():
    for text in ("<think>kind</think>Rest.", "kind thoughts</think>\n\nRest.", "Rest.<think>without end"):
        assert generate.without_thoughts(text) == "Rest."


def test_a_served_model_replies_and_is_replayed(monkeypatch, tmp_path, prompts):
    monkeypatch.setattr(generate, "RECORD", tmp_path / "replies.sqlite")
    monkeypatch.setenv("MEDCOMFORT_API_KEY", "")
    with StubServer(lambda call: Reply(text="<think>hm</think>Rest.")) as server:
        name = f"llama@{server.url}"
        found = baselines.find_models(tmp_path, BASE, [name])
        asked = generate.replies(found["path"][1], prompts, 50)
    assert found["model"].tolist() == ["base", "llama"] and asked["reply"].tolist() == ["Rest."] * len(prompts)
    assert generate.replies(name, prompts, 50).equals(asked)  # the server is gone


@torch.no_grad()
def test_perplexity_by_hand(prompts):
    model, tokenizer = engine.load(BASE)
    texts = ["This sounds like a cold.", "", "I hear how frightened you are.", "Blue seven the of."]
    values = generate.perplexity(BASE, prompts[:4], texts)
    assert generate.perplexity(BASE, prompts[:4], texts, workers=2) == pytest.approx(values, nan_ok=True)
    assert math.isnan(values[1]) and values[0] < values[3]
    for number in (0, 2, 3):
        head = tokenizer.apply_chat_template(prompts[number], add_generation_prompt=True, return_dict=True)["input_ids"]
        tail = tokenizer(texts[number])["input_ids"]
        chances = model(torch.tensor([head + tail])).logits[0].softmax(-1)
        surprise = [-math.log(chances[len(head) + i - 1, token]) for i, token in enumerate(tail)]
        assert values[number] == pytest.approx(math.exp(sum(surprise) / len(tail)), rel=1e-3)
    long = generate.perplexity(BASE, [turn("user", "I have a cough. " * 400)], ["Rest. " * 900])
    assert math.isfinite(long[0])


def test_two_processes_say_what_one_says(prompts):
    one, two = (generate.replies(BASE, prompts, 16, batch_size=2, workers=workers) for workers in (1, 2))
    assert one.equals(two)
    with pytest.raises(MedComfortError, match="no_such_model is no model folder"):
        generate.perplexity(str(ROOT / "data" / "no_such_model"), prompts, ["Rest."] * len(prompts), workers=2)


def _die(items):
    os._exit(1)


def test_a_worker_that_dies_is_told_in_a_sentence():
    with pytest.raises(MedComfortError, match="A worker process died .* take fewer workers"):
        generate._mapped(_die, [1, 2], [1, 1], 1, 2, "exits")


def test_workers_end_when_their_parent_is_killed(tmp_path):
    code = (
        "import time\nfrom medcomfort_utils.evaluate.generate import _pool\n"
        "if __name__ == '__main__':\n    print(list(_pool(2).map(abs, [-1, 2])), flush=True)\n    time.sleep(600)\n"
    )
    (tmp_path / "parent.py").write_text(code)
    parent = subprocess.Popen([sys.executable, tmp_path / "parent.py"], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert parent.stdout.readline() == "[1, 2]\n"
    workers = [p for p in psutil.Process(parent.pid).children(recursive=True) if "spawn_main" in " ".join(p.cmdline())]
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert workers and not psutil.wait_procs(workers, timeout=20)[1]


@pytest.fixture
def asked():
    return [
        version(f"d{number}", condition, question, answer, emotion, "train" if number == 1 else "test")
        for number in range(3)
        for condition, question, answer, emotion in (
            ("original", f"Q{number}?", f"Plain {number}.", ""),
            ("emotional", f"Afraid. Q{number}?", f"Soothing {number}.", "fear"),
            ("comfort_only", f"Afraid. Q{number}?", "Soothing.", "fear"),
        )
    ]


def test_the_test_sets_and_baselines(asked):
    table = baselines.test_sets(asked)
    assert table[["test_set", "dialogue_id", "question", "soothing"]].to_numpy().tolist() == [
        ["emotional", "d0", "Afraid. Q0?", "Soothing 0."], ["emotional", "d2", "Afraid. Q2?", "Soothing 2."],
        ["neutral", "d0", "Q0?", "Plain 0."], ["neutral", "d2", "Q2?", "Plain 2."]]  # fmt: skip
    assert baselines.test_sets(asked, limit=1)["dialogue_id"].tolist() == ["d0", "d0"]
    messages = {key: turn("user", "Q?") + turn("assistant", f"Source of {key}.") for key in ("d0", "d2")}
    sources = {k: Dialogue(id=k, source="hand", messages=messages[k], split="test") for k in messages}
    made = baselines.answers(table, sources).groupby("model")["reply"].agg(list)
    assert made["template"] == ["Soothing 0.", "Soothing 2.", "Source of d0.", "Source of d2."]
    assert made["original"] == ["Source of d0.", "Source of d2."] * 2 and made["echo"] == table["question"].tolist()
    with pytest.raises(MedComfortError, match="no emotional and neutral question in the test split"):
        baselines.test_sets([r for r in asked if r.condition != "original"])


def test_models_are_found_in_order_with_what_they_start_from(tmp_path):
    sft2 = "runs/x/models/sft-seed2"  # which is not the start of kto's own seed
    made = [("wide", 0, "base"), ("sft", 10, "base"), ("sft", 2, "base"), ("dpo", 2, sft2), ("kto", 10, sft2)]
    for model, seed, start in [*made, (".sft-seed2.17", 2, "base")]:  # the last of a killed run
        notes = {"model": model, "method": model, "seed": seed, "start": start}
        paths.write_json(tmp_path / f"{model}-seed{seed}" / "training.json", notes)
        paths.write_text(tmp_path / f"{model}-seed{seed}" / "history.csv", f"step,metric,value\n1,loss,{seed}.5\n")
    models = baselines.find_models(tmp_path, "the/base")
    assert models["model"].tolist() == ["base", "sft", "sft", "dpo", "kto", "wide"]
    assert models["seed"].tolist()[1:] == [2, 10, 2, 10, 0] and models["start"].dropna().to_dict() == {3: "sft"}
    assert baselines.histories(models)["value"].tolist() == [2.5, 10.5, 2.5, 10.5, 0.5]
    assert baselines.find_models(tmp_path, "the/base", ["dpo"])["model"].tolist() == ["base", "dpo"]
    with pytest.raises(MedComfortError, match="has no model 'sfft'; did you mean 'sft'"):
        baselines.find_models(tmp_path, "the/base", ["sfft"])
    with pytest.raises(MedComfortError, match="models_dir: .* has no model of 02_finetune"):
        baselines.find_models(tmp_path / "dpo-seed2", "the/base")


@pytest.fixture(scope="module")
def scores():
    """Broken models and baselines of the smoke run's questions, scored."""
    from medcomfort_utils.parquet import read_records
    from medcomfort_utils.records import Rewrite

    sources = {d.id: d for d in read_records("data/smoke/dialogues.parquet", Dialogue)}
    table = baselines.test_sets(read_records("data/smoke/rewrites.parquet", Rewrite), 16)
    replies = baselines.answers(table, sources)
    known = knowledge.score(replies["reply"], [sources[i] for i in replies["dialogue_id"]])
    return pd.concat([replies, comfort.score(replies["question"], replies["reply"]), known], axis=1)


def test_the_measures_find_the_broken_models_out(scores):
    found = baselines.found_out(scores, "facts_kept")
    assert len(found) == len(baselines.EXPECTED) and found["holds"].all()


def test_broken_measures_do_not(scores):
    broken = scores.assign(
        comfort=scores["reply"].str.len(), facts_kept=1.0, reply=scores["reply"] + scores.index.astype(str)
    )
    found = baselines.found_out(broken, "facts_kept").query("not holds")
    assert {("thrice", "comfort"), ("echo", "facts_kept"), ("same-paragraph", "variety")} <= set(
        zip(found["model"], found["metric"], strict=True)
    )
