"""Replies of a model to many prompts, greedily, and their perplexity; the model is a folder, a hub id, or is served."""

import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
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

RECORD = ROOT / "cache" / "replies.sqlite"  # what served models replied; `make clean` leaves it alone
COLUMNS = ["reply", "tokens", "ended", "cut"]
SCORED = 16  # replies whose perplexity is taken at a time: their logits, of the whole vocabulary, must stay small
_STEP = 32  # tokens by which a cache grows at a time


class Workers:
    """So many processes that share the cores; with `count` 1 all is done in this one. Raises MedComfortError below 1.

    A small model makes little of a second core: two processes of one thread do nearly twice the work of one of two.
    """

    def __init__(self, count: int = 1):
        if count < 1:
            raise MedComfortError(f"workers must be at least 1, not {count}.")
        threads = max(1, len(os.sched_getaffinity(0)) // count)
        # spawned, not forked: a fork of a process whose threads hold locks may wait for ever
        context, start = multiprocessing.get_context("spawn"), partial(_start, threads)
        self._pool = ProcessPoolExecutor(count, context, start) if count > 1 else None

    def map(self, function: Callable[[Any], Any], parts: Sequence[Any]) -> Iterator[Any]:
        """What `function` makes of each part, in their order; all must be picklable.

        Raises what the function raises, and MedComfortError if a process died.
        """
        try:
            yield from (self._pool.map if self._pool else map)(function, parts)
        except BrokenProcessPool:
            raise MedComfortError("A worker process died (often for want of memory): take fewer workers.") from None

    def close(self) -> None:
        """End the processes."""
        if self._pool:
            self._pool.shutdown(cancel_futures=True)


def _start(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent cannot end its workers, which would wait for tasks for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)


def replies(
    model: str,
    prompts: Sequence[list[dict]],
    max_new_tokens: int = 256,
    batch_size: int = 64,
    revision: str = "",
    workers: Workers | None = None,
) -> pd.DataFrame:
    """Greedy replies to chat prompts, in the order given: columns reply, tokens, ended (by itself), cut.

    `model`: a folder, a hub id, or NAME@URL, a model behind an OpenAI-compatible server (see `served`).
    Prompts are batched by length, so that little is padded; the batches are the same however many workers share them.
    A prompt that leaves no room for the reply loses its beginning (`cut`). Thoughts are no part of a reply. Raises
    MedComfortError if no prompt could have room, or the chat template cannot render one.
    """
    if batch_size < 1:
        raise MedComfortError(f"batch_size must be at least 1, not {batch_size}.")
    if SERVED in model:
        name, _, url = model.partition("@")
        with Cache(RECORD) as record:
            return served(Client(Settings(base_url=url), record), name, prompts, max_new_tokens)
    tokenizer, context = engine.load_tokenizer(model, revision), engine.limits(model, revision).context
    if not 0 < max_new_tokens < context:
        raise MedComfortError(f"max_new_tokens must lie between 1 and {context - 1} here, not {max_new_tokens}.")
    asked = [chat.tokens(tokenizer, chat.prompt(tokenizer, prompt)) for prompt in prompts]
    room = int(min(context, 1 << 20)) - max_new_tokens
    batches = _batches([len(tokens) for tokens in asked], batch_size)
    parts = [[asked[i][-room:] for i in batch] for batch in batches]
    made = (workers or Workers()).map(partial(_generated, model, revision, max_new_tokens), parts)
    rows = {i: row for batch, part in zip(batches, made, strict=True) for i, row in zip(batch, part, strict=True)}
    return pd.DataFrame([(*rows[i], len(asked[i]) > room) for i in range(len(asked))], columns=COLUMNS)


def _batches(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Indices of at most `size` texts of about the same length."""
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    return [order[start : start + size] for start in range(0, len(order), size)]


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
    context = min(engine.limits(model, revision).context, 1 << 20)
    return loaded.eval(), tokenizer, sorted(engine.ends_of_turn(model, tokenizer, revision)), context


def _generated(model: str, revision: str, max_new_tokens: int, prompts: list[list[int]]) -> list[tuple]:
    """(reply, number of tokens, whether it ended by itself) for prompts of token ids, decoded as one batch."""
    loaded, tokenizer, ends, _ = _loaded(model, revision)
    batch = tokenizer.pad({"input_ids": prompts}, return_tensors="pt", padding_side="left").to(loaded.device)
    width = batch["input_ids"].shape[1]
    whole = loaded.generate(
        **batch, past_key_values=_cache(loaded), use_cache=True, do_sample=False, max_new_tokens=max_new_tokens,
        eos_token_id=ends, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    rows = []
    for tokens in whole[:, width:].tolist():
        length = next((i for i, token in enumerate(tokens) if token in ends), max_new_tokens)
        said = without_thoughts(tokenizer.decode(tokens[:length], skip_special_tokens=True))
        rows.append((said, min(length, len(tokens)), length < max_new_tokens))
    return rows


def _cache(model):
    """The model's own kind of cache, whose layers of full attention are copied once in `_STEP` tokens.

    The library's are copied at every token: for the nano model on a CPU half of the time.
    """
    import torch
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    class Growing(DynamicLayer):
        def update(self, key_states, value_states, *args, **kwargs):
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
                self.kept = [states[..., :0, :] for states in (key_states, value_states)]
            before, after = self.get_seq_length(), self.get_seq_length() + key_states.shape[-2]
            for i, states in enumerate((key_states, value_states)):
                if after > self.kept[i].shape[-2]:
                    room = states.new_zeros(*states.shape[:2], after - before + _STEP, states.shape[-1])
                    self.kept[i] = torch.cat([self.kept[i][..., :before, :], room], dim=-2)
                self.kept[i][..., before:after, :] = states
            self.keys, self.values = (states[..., :after, :] for states in self.kept)
            return self.keys, self.values

    cache = DynamicCache(config=model.config)
    cache.layers = [Growing() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def served(client: Client, model: str, prompts: Sequence[list[dict]], max_new_tokens: int = 256) -> pd.DataFrame:
    """Replies as `replies` gives them, of a model behind an OpenAI-compatible server, recorded and replayed.

    Raises MedComfortError as `Client.run` does, and where a request was refused: what came is on record.
    """
    sampling = {"temperature": 0.0, "max_tokens": max_new_tokens}
    requests = [
        Request(f"question {i}", model, tuple(prompt), sampling, None, "reply-1") for i, prompt in enumerate(prompts, 1)
    ]
    said = list(client.run(requests, client.ask))
    refused = [response.reason for response in said if isinstance(response, Failure)]
    if refused:
        raise MedComfortError(f"{model} did not answer {len(refused)} of {len(said)} questions: {refused[0]}")
    rows = [(without_thoughts(r.text), r.completion_tokens, r.finish_reason == "stop", False) for r in said]
    return pd.DataFrame(rows, columns=COLUMNS)


def perplexity(
    model: str, prompts: Sequence[list[dict]], texts: Sequence[str], revision: str = "", workers: Workers | None = None
) -> list[float]:
    """Perplexity of each reply under `model` (one judge for all, usually the base), given its prompt; nan if empty."""
    rows = [(json.dumps(prompt), text) for prompt, text in zip(prompts, texts, strict=True)]
    distinct = [row for row in dict.fromkeys(rows) if row[1]]  # many replies to a question are the same
    batches = _batches([len(prompt) + len(text) for prompt, text in distinct], SCORED)
    parts = [[distinct[i] for i in batch] for batch in batches]
    scored = (workers or Workers()).map(partial(_perplexities, model, revision), parts)
    values = {row: value for part, of in zip(parts, scored, strict=True) for row, value in zip(part, of, strict=True)}
    return [values.get(row, float("nan")) for row in rows]


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
