"""Greedy decoding of many prompts at once, with no more work than the unfinished replies need.

`transformers.generate` goes on with every row until the last has ended, and its caches are either copied at every token
(dynamic) or read in full length from the first token on (static). On a CPU with a small model that is most of the time.
"""

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

UNFINISHED = 0.8  # the finished rows leave the batch when fewer than this share go on: leaving copies the cache
_STEP = 32  # tokens by which the cache grows at a time


class _Growing(DynamicLayer):
    """The keys and values of one layer, in buffers that are copied once in `_STEP` tokens."""

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs) -> tuple:
        """The keys and values so far, with those of the new tokens."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.buffers = [states[..., :0, :] for states in (key_states, value_states)]
        held, new = self.get_seq_length(), key_states.shape[-2]
        if held + new > self.buffers[0].shape[-2]:
            more = (*key_states.shape[:2], new + _STEP)
            kept = (buffer[..., :held, :] for buffer in self.buffers)
            self.buffers = [torch.cat([old, old.new_zeros(*more, old.shape[-1])], dim=-2) for old in kept]
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[..., held : held + new, :] = states
        self.keys, self.values = (buffer[..., : held + new, :] for buffer in self.buffers)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Keep these rows only."""
        held = self.get_seq_length()
        self.buffers = [buffer[beam_idx] for buffer in self.buffers]
        self.keys, self.values = (buffer[..., :held, :] for buffer in self.buffers)


def _cache(model) -> DynamicCache:
    """The model's own kind of cache; layers with full attention grow in steps."""
    cache = DynamicCache(config=model.config)
    cache.layers = [_Growing() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _ends(model, tokenizer) -> torch.Tensor:
    named = model.generation_config.eos_token_id
    named = named if isinstance(named, list) else [named]
    ends = {tokenizer.eos_token_id, *named} - {None}
    return torch.tensor(sorted(ends), device=model.device)


@torch.inference_mode()
def greedy(model, tokenizer, prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
    """The most likely next token again and again, for each prompt of token ids, until an end token or the limit.

    Rows hold the end token, and after it padding. Nothing of the model's generation settings but its end tokens counts.
    """
    batch = tokenizer.pad({"input_ids": prompts}, return_tensors="pt", padding_side="left").to(model.device)
    tokens, mask = batch["input_ids"], batch["attention_mask"]
    made = tokens.new_full((len(prompts), max_new_tokens), tokenizer.pad_token_id)
    rows, going = torch.arange(len(prompts), device=model.device), torch.ones_like(tokens[:, 0], dtype=torch.bool)
    positions, cache, ends = (mask.cumsum(1) - 1).clamp(min=0), _cache(model), _ends(model, tokenizer)
    for step in range(max_new_tokens):
        said = {"input_ids": tokens, "attention_mask": mask, "position_ids": positions, "past_key_values": cache}
        chosen = model(**said, use_cache=True, logits_to_keep=1).logits[:, -1].argmax(-1)
        made[rows, step] = torch.where(going, chosen, tokenizer.pad_token_id)
        going = going & ~torch.isin(chosen, ends)
        unfinished = int(going.sum())
        if not unfinished:
            break
        if unfinished < UNFINISHED * len(rows):
            cache.reorder_cache(going.nonzero()[:, 0])
            rows, chosen, mask, positions, going = (t[going] for t in (rows, chosen, mask, positions, going))
        tokens, positions = chosen[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
    return made.tolist()
