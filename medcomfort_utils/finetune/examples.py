"""Training examples: the view a method takes of the rewrites, and how the model sees one of them."""

import html
from collections.abc import Sequence

import pandas as pd
import torch

from medcomfort_utils.paths import MedComfortError
from medcomfort_utils.records import REJECTED, Rewrite, to_preference, to_sft, to_unpaired

METHODS = ("sft", "dpo", "kto")
VIEWS = {"sft": to_sft, "dpo": to_preference, "kto": to_unpaired}


def rows_for(
    method: str,
    rewrites: Sequence[Rewrite],
    seed: int,
    balance: float = 1.0,
    target: str = "emotional",
    against: Sequence[str] = REJECTED,
) -> list[dict]:
    """The view of the training split that `method` takes, shuffled by `seed` (KTO reads rows in order).

    `target` shapes SFT, `against` DPO and KTO, `balance` all three: see `records.to_sft` and `records.to_preference`.
    """
    if method not in METHODS:
        raise MedComfortError(f"method must be one of {', '.join(METHODS)}, not '{method}'.")
    view = {"target": target} if method == "sft" else {"against": against}
    rows = VIEWS[method]([r for r in rewrites if r.split == "train"], balance=balance, seed=seed, **view)
    if not rows:
        raise MedComfortError(f"The rewrites hold no training example for {method}; look at rejected.parquet.")
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    return [rows[i] for i in order]


def rendered(row: dict, tokenizer) -> pd.DataFrame:
    """One example as the model sees it, a row an answer: the text without and with loss, and their token counts.

    Raises MedComfortError if the template does not put the answer after the prompt, or if no end token closes it.
    """
    shown = []
    for side in ("completion", "chosen", "rejected"):
        if side not in row:
            continue
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=True)["input_ids"]
        whole = tokenizer.apply_chat_template(row["prompt"] + row[side], return_dict=True)["input_ids"]
        target = whole[len(prompt) :]
        if whole[: len(prompt)] != prompt or tokenizer.eos_token_id not in target[-2:]:
            raise MedComfortError(
                "The chat template must render the answer after its prompt and close it with the end token."
            )
        texts = [tokenizer.decode(part, skip_special_tokens=False) for part in (prompt, target)]
        shown.append((side, texts[0], texts[1], len(prompt), len(target)))
    return pd.DataFrame(shown, columns=["answer", "no loss", "loss", "tokens without", "tokens with"])


def token_lengths(rows: list[dict], tokenizer) -> pd.Series:
    """Tokens of prompt and longest answer together, one value an example."""
    return pd.Series([max(r["tokens without"] + r["tokens with"]) for r in (rendered(row, tokenizer) for row in rows)])


def as_markdown(example: pd.DataFrame) -> str:
    """`rendered` for reading: what carries the loss is bold."""
    shown = [
        f"**{row['answer']}**\n\n> {_visible(row['no loss'])} **{_visible(row['loss'])}**"
        for _, row in example.iterrows()
    ]
    return "\n\n".join(shown)


def _visible(text: str) -> str:
    return html.escape(text).replace("*", "\\*").replace("\n", "<br>")


def fitting(rows: list[dict], tokenizer, max_length: int) -> list[dict]:
    """The rows whose tokens fit into `max_length`: a cut answer would teach the model to break off.

    Raises MedComfortError if none does.
    """
    lengths = token_lengths(rows, tokenizer)
    kept = [row for row, length in zip(rows, lengths, strict=True) if length <= max_length]
    if not kept:
        raise MedComfortError(f"max_length: all {len(rows)} examples are longer than {max_length} tokens; raise it.")
    return kept
