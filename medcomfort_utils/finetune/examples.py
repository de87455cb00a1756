"""Training examples: the view a method takes of the rewrites, and how the model sees one of them."""

import html
from collections.abc import Sequence

import pandas as pd
import torch
from jinja2 import TemplateError

from medcomfort_utils.paths import MedComfortError
from medcomfort_utils.records import REJECTED, Rewrite, to_preference, to_sft, to_unpaired

METHODS = ("sft", "dpo", "kto")
SIDES = ("completion", "chosen", "rejected")  # the answers that a row may hold
VIEWS = {"sft": to_sft, "dpo": to_preference, "kto": to_unpaired}


def rows_for(
    method: str,
    rewrites: Sequence[Rewrite],
    seed: int,
    neutral_fraction: float = 1.0,
    target: str = "emotional",
    against: Sequence[str] = REJECTED,
) -> list[dict]:
    """The view of the training split that `method` takes, shuffled by `seed` (KTO reads rows in order).

    `target` and `neutral_fraction` shape all three, `against` DPO and KTO: see `records.to_sft` and `records.to_preference`.
    """
    if method not in METHODS:
        raise MedComfortError(f"method must be one of {', '.join(METHODS)}, not '{method}'.")
    view = {"neutral_fraction": neutral_fraction, "seed": seed, "target": target} | ({} if method == "sft" else {"against": against})
    rows = VIEWS[method]([r for r in rewrites if r.split == "train"], **view)
    if not rows:
        raise MedComfortError(f"The rewrites hold no training example for {method}; look at rejected.parquet.")
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    return [rows[i] for i in order]


def encoded(row: dict, tokenizer) -> list[tuple[str, list[int], list[int]]]:
    """(side, tokens without loss, tokens with loss) of each answer in a row, by the model's own chat template.

    Raises MedComfortError if the template does not put the answer after the prompt, or if no end token closes it.
    """
    prompt, found = _tokens(tokenizer, row["prompt"], add_generation_prompt=True), []
    for side in [side for side in SIDES if side in row]:
        whole = _tokens(tokenizer, row["prompt"] + row[side])
        target = whole[len(prompt) :]
        if whole[: len(prompt)] != prompt or tokenizer.eos_token_id not in target[-2:]:
            raise MedComfortError(
                "The chat template must render the answer after its prompt and close it with the end token."
            )
        found.append((side, prompt, target))
    return found


def _tokens(tokenizer, messages: list[dict], **options) -> list[int]:
    try:
        return tokenizer.apply_chat_template(messages, return_dict=True, **options)["input_ids"]
    except TemplateError as error:  # broken, or it refuses these messages
        said = str(error).splitlines()[0]
        raise MedComfortError(f"The model's chat template cannot render an example ({said}).") from error


def rendered(row: dict, tokenizer) -> pd.DataFrame:
    """One example as the model sees it, a row an answer: the text without and with loss, and their token counts."""
    shown = [
        (side, *(tokenizer.decode(part, skip_special_tokens=False) for part in parts), *map(len, parts))
        for side, *parts in encoded(row, tokenizer)
    ]
    return pd.DataFrame(shown, columns=["answer", "no loss", "loss", "tokens without", "tokens with"])


def token_lengths(rows: list[dict], tokenizer) -> pd.Series:
    """Tokens of prompt and longest answer together, one value an example."""
    return pd.Series([length(encoded(row, tokenizer)) for row in rows], dtype=int)


def length(sides: list[tuple[str, list[int], list[int]]]) -> int:
    """Tokens of the prompt and the longest answer together, of a row that is `encoded`."""
    return max(len(prompt) + len(target) for _, prompt, target in sides)


def side_by_side(rewrites: Sequence[Rewrite], tokenizer, seed: int, **view) -> str:
    """Markdown of one example of each method as the model sees it; a method that finds none here is left out.

    `view`: neutral_fraction, target and against, as for `rows_for`.
    """
    shown = []
    for method in METHODS:
        try:
            row = rows_for(method, rewrites, seed, **view)[0]
        except MedComfortError:
            continue
        label = {True: ", desirable", False: ", undesirable"}.get(row.get("label"), "")
        shown.append(f"### {method.upper()}{label}\n\n{as_markdown(rendered(row, tokenizer))}")
    return "\n\n".join(shown)


def as_markdown(example: pd.DataFrame) -> str:
    """`rendered` for reading: what carries the loss is bold."""
    shown = [
        f"**{row['answer']}**\n\n> {_visible(row['no loss'])} **{_visible(row['loss'])}**"
        for _, row in example.iterrows()
    ]
    return "\n\n".join(shown)


def _visible(text: str) -> str:
    return html.escape(text).replace("*", "\\*").replace("\n", "<br>")
