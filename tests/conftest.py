"""Fixtures that several test modules share: a model small enough to train in a test, and rewrites to train it on."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported

import pytest

from medcomfort_utils.records import Rewrite

# What takes longest comes first, so that two workers that begin with it end together.
LONGEST = (
    "test_reproduce.py",
    "test_colab.py",
    "notebooks",
    "test_docs.py",
    "test_checkpoints.py",
    "test_flow.py",
    "test_finetune_parity.py",
    "test_draw.py",
)


def pytest_collection_modifyitems(items):
    """Sort the files by what they take; those of one folder or file stay together and in order."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, places.get(item.path.parent.name, len(places))))


@pytest.hookimpl(optionalhook=True)  # pytest-xdist may be missing
def pytest_xdist_make_scheduler(config, log):
    """A file goes to one worker; so do the four notebooks together, since 03 writes on the cards of 02's models."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            return "notebooks" if nodeid.startswith("notebooks/") else super()._split_scope(nodeid)

    return Scheduling(config, log)


def turn(role, content):
    return [{"role": role, "content": content}]


def version(dialogue_id, condition, question, answer, emotion="", split="train"):
    """A rewrite made by hand."""
    return Rewrite(
        dialogue_id=dialogue_id,
        condition=condition,
        emotion=emotion,
        split=split,
        messages=turn("user", question) + turn("assistant", answer),
        backend="template",
        model="hand",
        prompt_version="1",
    )


@pytest.fixture(scope="session")
def rewrites():
    """Four training dialogues of short texts, each with its four versions, and one of the test split."""
    made = []
    for number, complaint in enumerate(["a cough", "a fever", "back pain", "a rash", "a sore throat"]):
        split = "test" if number == 4 else "train"
        question, answer = f"I have {complaint}.", f"Rest for {number + 2} days with {complaint}."
        afraid, soothing = f"I am scared. {question}", f"I hear your fear. {answer} You are not alone."
        made += [
            version(f"d{number}", "original", question, answer, split=split),
            version(f"d{number}", "emotional", afraid, soothing, "fear", split),
            version(f"d{number}", "soothing_answer", question, soothing, "fear", split),
            version(f"d{number}", "comfort_only", afraid, "I hear your fear. You are not alone.", "fear", split),
        ]
    return made


@pytest.fixture(scope="session")
def one_thread():
    """Models this small are fastest on one thread, and do not wait for a second core that others use."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def nano_built(one_thread, tmp_path_factory):
    """A nano base after two steps of training: the tokenizer and the format of the real one, without its knowledge."""
    from medcomfort_utils.finetune import nano

    return nano.build_base(tmp_path_factory.mktemp("nano") / "base", steps=2, batch_size=2)


@pytest.fixture(scope="session")
def tiny(nano_built, tmp_path_factory):
    """The path of an untrained two-layer Llama with the nano tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(nano_built)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    folder = tmp_path_factory.mktemp("models") / "tiny"
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
