"""Replies of a model to many prompts, greedily, and their perplexity; the model is a folder, a hub id, or is served."""

import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache, partial
from typing import Any

import pandas as pd

from medcomfort_utils.evaluate.baselines import SERVED
from medcomfort_utils.finetune import chat, engine
from medcomfort_utils.llm import Cache, Client, Failure, Request, Settings
from medcomfort_utils.llm.parsing import without_thoughts
from medcomfort_utils.paths import ROOT, MedComfortError
from medcomfort_utils.progress import track

RECORD = ROOT / "cache" / "replies.sqlite"  # what served models replied; `make clean` leaves it alone
COLUMNS = ["reply", "tokens", "ended", "cut"]
SCORED = 16  # replies whose perplexity is taken at a time: their logits, of the whole vocabulary, must stay small


def replies(
    model: str, prompts: Sequence[list[dict]], max_new_tokens: int = 256, batch_size: int = 64, revision: str = "",
    workers: int = 1,
) -> pd.DataFrame:  # fmt: skip
    """Greedy replies to chat prompts, in the order given: columns reply, tokens, ended (by itself), cut.

    `model`: a folder, a hub id, or NAME@URL, a model behind an OpenAI-compatible server, whose replies are recorded.
    Prompts are batched by length, so that little is padded; the batches are the same however many `workers` (processes)
    share them. A prompt that leaves no room for the reply loses its beginning (`cut`). Thoughts are no part of a reply.
    Raises MedComfortError if no prompt could have room, the chat template cannot render one, or a server refuses one.
    """
    if SERVED in model:
        return _served(*model.split("@", 1), prompts, max_new_tokens)
    tokenizer, context = engine.load_tokenizer(model, revision), engine.limits(model, revision).context
    if not 0 < max_new_tokens < context:
        raise MedComfortError(f"max_new_tokens must lie between 1 and {context - 1} here, not {max_new_tokens}.")
    asked = [chat.tokens(tokenizer, chat.prompt(tokenizer, prompt)) for prompt in prompts]
    room, lengths = int(min(context, 1 << 20)) - max_new_tokens, [len(tokens) for tokens in asked]
    reply, kept = partial(_generated, model, revision, max_new_tokens), [tokens[-room:] for tokens in asked]
    made = _mapped(reply, kept, lengths, batch_size, workers, f"replies of {model}")
    return pd.DataFrame([(*row, len(tokens) > room) for row, tokens in zip(made, asked, strict=True)], columns=COLUMNS)


def perplexity(
    model: str, prompts: Sequence[list[dict]], texts: Sequence[str], revision: str = "", workers: int = 1
) -> list[float]:
    """Perplexity of each reply under `model` (one judge for all, usually the base), given its prompt; nan if empty."""
    rows = [(json.dumps(prompt), text) for prompt, text in zip(prompts, texts, strict=True)]
    distinct = [row for row in dict.fromkeys(rows) if row[1]]  # many replies to a question are the same
    lengths = [len(prompt) + len(text) for prompt, text in distinct]
    score = partial(_perplexities, model, revision)
    scored = _mapped(score, distinct, lengths, SCORED, workers, "replies scored")
    values = dict(zip(distinct, scored, strict=True))
    return [values.get(row, float("nan")) for row in rows]


def _mapped(
    function: Callable[[list], list], items: list, lengths: list[int], size: int, workers: int, what: str
) -> list[Any]:
    """What `function` makes of the items, batched by length, in their order; all must be picklable."""
    order = sorted(range(len(items)), key=lambda i: (lengths[i], i))
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    parts, found = [[items[i] for i in batch] for batch in batches], {}
    made = track((_pool(workers).map if workers > 1 else map)(function, parts), f"batches of {what}", len(parts))
    try:
        for batch, results in zip(batches, made, strict=True):
            found |= zip(batch, results, strict=True)
    except BrokenProcessPool:
        _pool.cache_clear()
        raise MedComfortError("A worker process died (often for want of memory): take fewer workers.") from None
    return [found[i] for i in range(len(items))]


@lru_cache(maxsize=1)
def _pool(workers: int) -> ProcessPoolExecutor:
    """So many processes that share the cores, for as long as this one lives.

    A small model makes little of a second core: two processes of one thread do nearly twice the work of one of two.
    They are spawned, not forked: a fork of a process whose threads hold locks may wait for ever.
    """
    threads = max(1, len(os.sched_getaffinity(0)) // workers)
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start, (threads,))


def _start(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent cannot end its workers, which would wait for tasks for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)


@lru_cache(maxsize=1)  # a worker gets many batches for one model, and then for the next
def _loaded(model: str, revision: str) -> tuple:
    """The model, its tokenizer, ends of turn and context; in the dtype of its config.json, on a CPU in float32.

    Arithmetic of 16 bits is slow on most CPUs, and there the neighbours in a batch decide what is rounded how.
    """
    import torch
    from transformers import GenerationConfig

    dtype = engine.load_config(model, revision).get_text_config().dtype if torch.cuda.is_available() else None
    loaded, tokenizer = engine.load(model, "trl", str(dtype or "float32").removeprefix("torch."), revision)
    loaded.generation_config = GenerationConfig()  # what a model ships for sampling has no part in greedy decoding
    context = int(min(engine.limits(model, revision).context, 1 << 20))
    return loaded.eval(), tokenizer, sorted(engine.ends_of_turn(model, tokenizer, revision)), context


def _generated(model: str, revision: str, max_new_tokens: int, prompts: list[list[int]]) -> list[tuple]:
    """(reply, number of tokens, whether it ended by itself) for prompts of token ids, decoded as one batch."""
    loaded, tokenizer, ends, _ = _loaded(model, revision)
    batch = tokenizer.pad({"input_ids": prompts}, return_tensors="pt", padding_side="left").to(loaded.device)
    options = {"do_sample": False, "use_cache": True, "max_new_tokens": max_new_tokens}
    whole = loaded.generate(**batch, **options, eos_token_id=ends, pad_token_id=tokenizer.pad_token_id)
    rows = []
    for tokens in whole[:, batch["input_ids"].shape[1] :].tolist():
        length = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
        said = tokenizer.decode(tokens[:length], skip_special_tokens=True)
        rows.append((without_thoughts(said), length, length < max_new_tokens))
    return rows


def _served(name: str, url: str, prompts: Sequence[list[dict]], max_new_tokens: int) -> pd.DataFrame:
    sampling = {"temperature": 0.0, "max_tokens": max_new_tokens}
    requests = [
        Request(f"question {i}", name, tuple(prompt), sampling, None, "reply-1") for i, prompt in enumerate(prompts, 1)
    ]
    with Cache(RECORD) as record:
        client = Client(Settings(base_url=url), record)
        said = list(client.run(requests, client.ask))
    refused = [response.reason for response in said if isinstance(response, Failure)]
    if refused:
        raise MedComfortError(f"{name} did not answer {len(refused)} of {len(said)} questions: {refused[0]}")
    rows = [(without_thoughts(r.text), r.completion_tokens, r.finish_reason == "stop", False) for r in said]
    return pd.DataFrame(rows, columns=COLUMNS)


def _perplexities(model: str, revision: str, pairs: list[tuple[str, str]]) -> list[float]:
    """Perplexity of each (prompt as JSON, reply), in one batch."""
    import torch

    loaded, tokenizer, _, limit = _loaded(model, revision)
    rows = []
    for prompt, text in pairs:
        tail = chat.tokens(tokenizer, text)[: limit // 2]
        head = chat.tokens(tokenizer, chat.prompt(tokenizer, json.loads(prompt)))
        rows.append(((head + tail)[-limit:], len(tail)))
    longest, first = max(len(ids) for ids, _ in rows), min(len(ids) - count for ids, count in rows) - 1
    # right padding under a causal mask: the pads come after all that is scored
    padded = [ids + [tokenizer.pad_token_id] * (longest - len(ids)) for ids, _ in rows]
    tokens, values = torch.tensor(padded, device=loaded.device), []
    with torch.inference_mode():
        logits = loaded(input_ids=tokens, logits_to_keep=longest - first).logits.float()
        for row, (ids, count) in enumerate(rows):
            scored = logits[row, len(ids) - count - 1 - first : len(ids) - 1 - first]
            of = tokens[row, len(ids) - count : len(ids)]
            values.append(float(torch.nn.functional.cross_entropy(scored, of).exp()))
    return values
