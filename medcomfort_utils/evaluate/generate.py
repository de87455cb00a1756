"""Replies of a model to many prompts: greedy, batched by length, written as JSON lines."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from medcomfort_utils.evaluate.workers import Workers
from medcomfort_utils.finetune import engine
from medcomfort_utils.paths import MedComfortError, write_text

SCORED = 16  # replies whose perplexity is taken at a time: their logits, of the whole vocabulary, must stay small


def replies(
    model: str,
    prompts: Sequence[list[dict]],
    max_new_tokens: int = 256,
    batch_size: int = 64,
    revision: str = "",
    workers: Workers | None = None,
) -> pd.DataFrame:
    """Greedy replies to chat prompts, in the order given: columns reply, tokens, ended (with the end token), cut.

    Prompts are batched by length, so that little is padded; the order of results does not depend on it. A prompt
    that leaves no room for the reply loses its beginning (`cut`). Raises MedComfortError if no prompt could have room.
    """
    if batch_size < 1:
        raise MedComfortError(f"batch_size must be at least 1, not {batch_size}.")
    answering = partial(_replies, model, max_new_tokens, batch_size, revision)
    rows = (workers or Workers()).deal(answering, list(prompts))
    return pd.DataFrame(rows, columns=["reply", "tokens", "ended", "cut"])


def _replies(
    model: str, max_new_tokens: int, batch_size: int, revision: str, prompts: list[list[dict]]
) -> list[tuple[str, int, bool, bool]]:
    # not above: transformers must not be imported before Unsloth is, and `engine` sees to that
    from medcomfort_utils.evaluate.decode import greedy

    loaded, tokenizer = engine.load(model, "trl", "float32", revision)
    loaded.eval()
    context = getattr(loaded.config, "max_position_embeddings", 2048)
    if not 0 < max_new_tokens < context:
        raise MedComfortError(f"max_new_tokens must lie between 1 and {context - 1} here, not {max_new_tokens}.")
    room = context - max_new_tokens
    texts = [tokenizer.apply_chat_template(p, add_generation_prompt=True, tokenize=False) for p in prompts]
    whole = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    order = sorted(range(len(whole)), key=lambda i: (len(whole[i]), i))
    rows = [None] * len(whole)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        made = greedy(loaded, tokenizer, [whole[i][-room:] for i in chosen], max_new_tokens)
        for i, tokens in zip(chosen, made, strict=True):
            rows[i] = (*_reply(tokens, tokenizer), len(whole[i]) > room)
    return rows


def _reply(tokens: list[int], tokenizer) -> tuple[str, int, bool]:
    """(text, number of tokens, whether it ended by itself) of one generated row."""
    ends = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    length = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
    return tokenizer.decode(tokens[:length], skip_special_tokens=True).strip(), length, length < len(tokens)


def perplexity(
    model: str, prompts: Sequence[list[dict]], texts: Sequence[str], revision: str = "", workers: Workers | None = None
) -> list[float]:
    """Perplexity of each reply under `model` (one judge for all, usually the base), given its prompt; nan if empty."""
    rows = [(json.dumps(prompt), text) for prompt, text in zip(prompts, texts, strict=True)]
    # Many replies are the same, to the same question; each is scored once.
    distinct = list(dict.fromkeys(rows))
    scored = (workers or Workers()).deal(partial(_perplexity, model, revision), distinct)
    values = dict(zip(distinct, scored, strict=True))
    return [values[row] for row in rows]


@torch.inference_mode()
def _perplexity(model: str, revision: str, pairs: Sequence[tuple[str, str]]) -> list[float]:
    """Perplexity of each (prompt as JSON, reply)."""
    loaded, tokenizer = engine.load(model, "trl", "float32", revision)
    limit = getattr(loaded.config, "max_position_embeddings", 2048)
    loaded.eval()
    rows = []
    for prompt, text in pairs:
        head = tokenizer.apply_chat_template(json.loads(prompt), add_generation_prompt=True, tokenize=False)
        head, tail = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (head, text))
        tail = tail[: limit // 2]
        rows.append((tuple((head + tail)[-limit:]), len(tail)))
    values = [float("nan")] * len(rows)
    order = sorted((i for i, (_, count) in enumerate(rows) if count), key=lambda i: (len(rows[i][0]), i))
    for start in range(0, len(order), SCORED):
        chosen = order[start : start + SCORED]
        scored = _perplexities(loaded, tokenizer.pad_token_id, [rows[i] for i in chosen])
        for i, value in zip(chosen, scored, strict=True):
            values[i] = value
    return values


def _perplexities(model, pad: int, rows: Sequence[tuple[tuple[int, ...], int]]) -> list[float]:
    """Perplexity of the last `count` tokens of each of the (tokens, count)."""
    longest, first = max(len(ids) for ids, _ in rows), min(len(ids) - count for ids, count in rows) - 1
    # right padding under a causal mask: the pads come after all that is scored
    tokens = torch.tensor([ids + (pad,) * (longest - len(ids)) for ids, _ in rows], device=model.device)
    logits = model(input_ids=tokens, logits_to_keep=longest - first).logits.float()
    values = []
    for row, (ids, count) in enumerate(rows):
        scored = logits[row, len(ids) - count - 1 - first : len(ids) - 1 - first]
        values.append(float(torch.nn.functional.cross_entropy(scored, tokens[row, len(ids) - count : len(ids)]).exp()))
    return values


def save_replies(path: str | Path, rows: Sequence[dict]) -> Path:
    """Write one JSON object a line, atomically."""
    return write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
