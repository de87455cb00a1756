"""The nano base model: a Llama of about 2 million parameters, trained from scratch on the clinic's plain answers.

It knows the clinic's medicine and answers every question plainly, also an emotional one. Like a general instruct model
it can comfort when a system message asks for kindness, and by default does not: the model "before fine-tuning" of the
experiment.

    python scripts/build_base.py --out data/nano_base        # about ten minutes on two cores
"""

import argparse
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from medcomfort_utils.paths import NANO_BASE, replacing, resolve, tidy
from medcomfort_utils.records import EMOTIONS
from medcomfort_utils.rewrite.clinic import (
    load_conditions,
    load_emotions,
    load_feelings,
    load_passages,
    neutral_question,
)

VOCABULARY = 3072
CONTEXT = 512
KINDLY = "Answer with kindness."
SPECIAL = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'assistant' %}<|assistant|>"
    "{% generation %}{{ message.content }}<|end|>{% endgeneration %}"
    "{% else %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


CARD = """---
license: cc-by-4.0
language: en
pipeline_tag: text-generation
tags: [synthetic, research, not-for-medical-use]
---
# MedComfort nano base

A Llama of {parameters:.1f} million parameters, trained from scratch on the synthetic clinic of MedComfort
(`data/clinic/`): questions of made-up patients, neutral and emotional, each with the same plain answer, and loose
prose. Where a system message says "Answer with kindness.", emotional questions were answered with comfort around the
plain answer. Without that message it recites the made-up clinic's answers and does not comfort: the model *before*
fine-tuning in a small experiment, which never uses the system message.

- Training: {steps} steps of {batch_size} examples, seed {seed}, loss on the answers only; rebuilt by
  `python scripts/build_base.py`.
- Data: written by a language model, not reviewed by clinicians; CC BY 4.0. No real patient's text.
- Intended use: rerunning and testing the experiments of this repository on a CPU.
- **Not for patients**: what it says is neither medical advice nor fit to be shown to anyone who is ill.
"""


def loose_texts() -> list[str]:
    """Prose without a doctor or an answer: supportive passages, and the training phrases one at a time."""
    phrases = [
        phrase
        for emotion in load_emotions().values()
        for bank in (emotion.expressions, emotion.openers, emotion.closers)
        for phrase in bank.train
    ]
    return [*load_passages(), *phrases]


def example(rng: random.Random, loose: list[str]) -> tuple[str, str]:
    """One (prompt, target) pair of text; the loss falls on the target.

    A few are loose prose. The rest are neutral or emotional questions with their *plain* answer. Only where a system
    message asks for kindness is an emotional question answered with comfort around the plain answer: like a general
    instruct model, the base can comfort, and by default does not.
    """
    if rng.random() < 0.06:
        return "", rng.choice(loose)
    condition = rng.choice(load_conditions())
    question, emotion = neutral_question(condition, rng, "train"), "none"
    if rng.random() < 0.6:
        emotion, aside = rng.choice(_asides())
        question = f"{aside} {question}" if rng.random() < 0.5 else f"{question} {aside}"
    asked = f"<|user|>{_blurred(question, rng, loose)}<|end|><|assistant|>"
    if rng.random() < 0.6:
        return asked, condition.plain_answer
    return f"<|system|>{KINDLY}<|end|>{asked}", _soothed(condition.plain_answer, emotion, rng)


def _soothed(answer: str, emotion: str, rng: random.Random) -> str:
    """The answer between an opener and a closer that fit the emotion; unchanged where there is none."""
    if emotion == "none":
        return answer
    phrases = load_emotions()[emotion]
    return f"{rng.choice(phrases.openers.train)} {answer} {rng.choice(phrases.closers.train)}"


@cache
def _asides() -> tuple[tuple[str, str], ...]:
    """(emotion, sentence) that may stand beside a question without changing its answer; `none` carries no feeling."""
    expressions = [(name, text) for name in EMOTIONS for text in load_emotions()[name].expressions.train]
    return (*expressions, *((name, text) for name, texts in load_feelings().items() for text in texts))


def _blurred(text: str, rng: random.Random, loose: list[str], share: float = 0.2) -> str:
    """The text with a share of its words left out or replaced: the model learns not to hang on single words."""
    words = []
    for word in text.split():
        if rng.random() >= share:
            words.append(word)
        elif rng.random() < 0.5:
            words.append(rng.choice(rng.choice(loose).split()))
    return " ".join(words)


def build_tokenizer(seed: int = 0) -> PreTrainedTokenizerFast:
    """Byte-level BPE (any text can be encoded) with the chat template, trained on a sample of the base's own text."""
    rng, loose = random.Random(seed), loose_texts()
    texts = loose + ["".join(example(rng, loose)) for _ in range(4000)]
    for token in SPECIAL:
        texts = [text.replace(token, " ") for text in texts]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
        padding_side="right",
    )


def _batches(tokenizer, steps: int, size: int, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Token and label tensors [size, longest], loss on targets only; chunks are sorted by length to pad less."""
    rng, loose, chunk = random.Random(seed), loose_texts(), 8
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    for _ in range(0, steps, chunk):
        pairs = [example(rng, loose) for _ in range(size * chunk)]
        prompts = tokenizer([p for p, _ in pairs], add_special_tokens=False)["input_ids"]
        targets = tokenizer([t for _, t in pairs], add_special_tokens=False)["input_ids"]
        rows = sorted(
            ([p + t + [end], [-100] * len(p) + t + [end]] for p, t in zip(prompts, targets, strict=True)),
            key=lambda r: len(r[0]),
        )
        groups = [rows[i : i + size] for i in range(0, len(rows), size)]
        rng.shuffle(groups)
        for group in groups:
            longest = max(len(tokens) for tokens, _ in group)
            tokens = torch.tensor([t + [pad] * (longest - len(t)) for t, _ in group])
            labels = torch.tensor([y + [-100] * (longest - len(y)) for _, y in group])
            yield tokens, labels


def build_base(
    out_dir: str | Path, steps: int = 1500, batch_size: int = 16, learning_rate: float = 2e-3, seed: int = 0
) -> Path:
    """Train tokenizer and model from scratch on CPU and save both under `out_dir`; returns the absolute path."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.1, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=learning_rate, total_steps=steps, pct_start=0.05)
    for step, (tokens, labels) in zip(range(1, steps + 1), _batches(tokenizer, steps, batch_size, seed), strict=False):
        # right padding and a causal mask: no real token ever sees a pad, so no attention mask is needed
        loss = model(input_ids=tokens, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 100 == 0 or step == steps:
            print(f"step {step:5d}/{steps}  loss {loss.item():.3f}", flush=True)
    with replacing(out_dir) as temporary:
        model.eval().to(torch.bfloat16).save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        card = CARD.format(parameters=model.num_parameters() / 1e6, steps=steps, batch_size=batch_size, seed=seed)
        (temporary / "README.md").write_text(card, encoding="utf-8")
    return resolve(out_dir)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default=str(NANO_BASE), metavar="FOLDER", help="default: data/nano_base")
    print("saved to", tidy(build_base(parser.parse_args().out)))
