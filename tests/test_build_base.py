"""The nano base: a tokenizer that keeps any text, and a model that never meets what is kept for the test set."""

import importlib.util
import random
import re

import pytest
import yaml

from medcomfort_utils import paths
from medcomfort_utils.finetune import engine
from medcomfort_utils.rewrite import clinic


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("build_base", paths.ROOT / "scripts/build_base.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_base_never_meets_what_is_kept_for_the_test_set(script, monkeypatch):
    monkeypatch.setattr(script, "_blurred", lambda text, rng, loose: text)  # left out words would hide a phrase
    rng, loose = random.Random(1), script.loose_texts()
    met = "\n".join("".join(script.example(rng, loose)) for _ in range(2000))
    frames = yaml.safe_load((clinic.CLINIC / "questions.yaml").read_text(encoding="utf-8"))["test"]
    kept = [text for part in ("reports", "asks", "greetings") for text in frames[part] if text]
    patterns = [re.sub(r"\\\{\w+\\\}", ".+", re.escape(text)) for text in kept]
    patterns += [re.escape(p[-1]) for condition in clinic.load_conditions() for p in condition.symptoms]
    for emotion in clinic.load_emotions().values():
        patterns += [
            re.escape(p) for bank in (emotion.expressions, emotion.openers, emotion.closers) for p in bank.test
        ]
    assert len(patterns) > 500 and not [pattern for pattern in patterns if re.search(pattern, met)]


def test_the_base_is_the_same_each_time_and_its_tokenizer_keeps_any_text(script, tmp_path):
    one, other = (script.build_base(tmp_path / name, steps=2, batch_size=2) for name in "ab")
    for name in ("model.safetensors", "tokenizer.json", "config.json", "README.md"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    tokenizer = engine.load_tokenizer(str(one))
    for text in ("It hurts!\n\tA lot…", "咳嗽三天了，很害怕", "🤒👩‍⚕️🇩🇪", "\u202eno\u0301 \x00\ufeff", " a  b "):
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(tokens, clean_up_tokenization_spaces=False).encode() == text.encode()
