"""Training examples: the view a method takes of the rewrites, tokenised once, and looked at before training."""

import html
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from datasets import Dataset

from medcomfort_utils.finetune import chat, engine
from medcomfort_utils.finetune.methods import METHODS, hyper_parameters
from medcomfort_utils.paths import MedComfortError, meant
from medcomfort_utils.records import REJECTED, Rewrite
from medcomfort_utils.schema import Hyper

SIDES = ("completion", "chosen", "rejected")  # the answers that a row may hold
ROUND = 64  # a planned max_length is a multiple of it


@dataclass
class Examples:
    """What a model is trained on: rows of messages, the same rows as token ids, and settings with nothing left open."""

    method: str
    seed: int
    start: str  # the model that training starts from
    revision: str
    hyper: Hyper
    tokenizer: Any
    ends: set[int]  # the tokens that end a turn
    rows: list[dict]
    prompts: list[list[int]]
    answers: list[list[list[int]]]  # of each row: one, or chosen and rejected
    left_out: int = 0  # rows that were too long

    def __str__(self) -> str:
        found = sorted(self.lengths)
        return (
            f"{len(self.rows)} of {len(self.rows) + self.left_out} examples of {' / '.join(self.rows[0])}; tokens: "
            f"median {found[len(found) // 2]}, longest {found[-1]}, room for {self.hyper.max_length}"
        )

    @property
    def lengths(self) -> list[int]:
        """Tokens of prompt and longest answer together, of each row."""
        return [_length(*pair) for pair in zip(self.prompts, self.answers, strict=True)]

    def dataset(self, batch_size: int) -> Dataset:
        """The rows as TRL's collator takes them."""
        columns = METHODS[self.method].columns(self.prompts, self.answers, batch_size)
        labels = {"label": [row["label"] for row in self.rows]} if "label" in self.rows[0] else {}
        return Dataset.from_dict(columns | labels)

    def markdown(self, number: int = 0) -> str:
        """One example as the model sees it; what carries the loss is bold."""
        sides = [side for side in SIDES if side in self.rows[number]]
        label = {True: ", desirable", False: ", undesirable"}.get(self.rows[number].get("label"), "")
        head = _visible(self.tokenizer.decode(self.prompts[number]))
        answers = [_visible(self.tokenizer.decode(target)) for target in self.answers[number]]
        pairs = zip(sides, answers, strict=True)
        return "\n\n".join(f"**{side}{label}**\n\n> {head} **{answer}**" for side, answer in pairs)


def _visible(text: str) -> str:
    return html.escape(text).replace("*", "\\*").replace("\n", "<br>")


def _length(prompt: list[int], answers: list[list[int]]) -> int:
    return len(prompt) + max(map(len, answers))


def examples_for(parameters: dict[str, Any], rewrites: Sequence[Rewrite], seed: int) -> Examples:
    """The examples of one seed, as the parameters of 02_finetune say; raises as `rows_for` and `prepare` do."""
    view = {key: parameters[key] for key in ("neutral_fraction", "target", "against")}
    rows = rows_for(parameters["method"], rewrites, seed, **view)
    start, revision = parameters["base"], parameters["revision"]
    if parameters["init_from"]:
        start, revision = parameters["init_from"], ""
    hyper = hyper_parameters(parameters)
    return prepare(parameters["method"], rows, start.format(seed=seed), hyper, seed, revision)


def rows_for(
    method: str,
    rewrites: Sequence[Rewrite],
    seed: int,
    neutral_fraction: float = 1.0,
    target: str = "emotional",
    against: Sequence[str] = REJECTED,
) -> list[dict]:
    """The view of the training split that `method` takes, shuffled by `seed` (KTO reads rows in order).

    `target` and `neutral_fraction` shape all, `against` DPO and KTO: see `records.to_sft` and `records.to_preference`.
    Raises MedComfortError if no row has the target.
    """
    if method not in METHODS:
        raise MedComfortError(f"method: there is no {method!r}{meant(method, METHODS)}")
    view = partial(METHODS[method].view, [r for r in rewrites if r.split == "train"], seed=seed, target=target)
    if METHODS[method].reference:
        view = partial(view, against=against)
    rows, neutral = view(neutral_fraction=neutral_fraction), not view(neutral_fraction=0.0)
    if neutral:  # without a row of its target, a model would be trained on neutral pairs alone
        raise MedComfortError(
            f"target: the rewrites hold no training example of {target} for {method} ({len(rows)} others); look at "
            "rejected.parquet, where 01_rewrite says why, and run it again."
        )
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    return [rows[i] for i in order]


def prepare(method: str, rows: list[dict], start: str, hyper: Hyper, seed: int = 0, revision: str = "") -> Examples:
    """Tokenise rows for the model `start`, look at them, and settle what is open (`max_length`, KTO's weights of 0).

    Rows that are too long are left out: a cut answer would teach the model to break off. Raises MedComfortError, naming
    the rows, if more than the share `too_long` is, if an answer carries no loss, if chosen equals rejected, if KTO has
    answers of one kind only, or if model and tokenizer cannot take the examples.
    """
    tokenizer = engine.load_tokenizer(start, revision)
    limits, ends = engine.limits(start, tokenizer, revision), engine.ends_of_turn(start, tokenizer, revision)
    prompts, answers = [], []
    for number, row in enumerate(rows):
        try:
            head, targets = chat.encode(tokenizer, row["prompt"], [row[s] for s in SIDES if s in row], ends)
        except MedComfortError as error:
            raise MedComfortError(f"Of the examples, {_named([number], rows)}: {error}.") from error
        prompts.append(head)
        answers.append(targets)
    made = Examples(method, seed, start, revision, hyper, tokenizer, ends, rows, prompts, answers)
    _check_embedded(made, limits.vocabulary)
    _check_taught(made)
    _check_distinct(made)
    made = _fitting(made, limits.context)
    return _balanced(made) if "label" in rows[0] else made


def _check_embedded(made: Examples, vocabulary: int) -> None:
    ids = (max(map(max, [head, *targets])) for head, targets in zip(made.prompts, made.answers, strict=True))
    largest = max([*ids, made.tokenizer.pad_token_id])
    if largest >= vocabulary:
        raise MedComfortError(
            f"model: the tokenizer of {made.start} gives token {largest} ({made.tokenizer.decode([largest])!r}), but "
            f"the model knows {vocabulary} tokens only; they do not belong together: copy or download the model again."
        )


def _check_taught(made: Examples) -> None:
    """Every answer must leave more than special tokens to learn: else all labels but the end token are masked."""
    decode = partial(made.tokenizer.decode, skip_special_tokens=True)
    empty = [n for n, targets in enumerate(made.answers) if not all(decode(target).strip() for target in targets)]
    if empty:
        raise MedComfortError(
            f"All labels are masked in {len(empty)} of {len(made.rows)} examples ({_named(empty, made.rows)}): the "
            "chat template renders no answer there. Correct the answers, or take a model with another template."
        )


def _check_distinct(made: Examples) -> None:
    """No answer may be chosen and rejected, or desirable and undesirable, for the same prompt.

    Answers are compared as the model sees them: a chat template may cut off spaces that tell two texts apart.
    """
    if "rejected" in made.rows[0]:
        same = [number for number, (chosen, rejected) in enumerate(made.answers) if chosen == rejected]
    elif "label" in made.rows[0]:
        seen = [repr(pair) for pair in zip(made.prompts, made.answers, strict=True)]
        kinds = Counter(text for text, _ in {(t, row["label"]) for t, row in zip(seen, made.rows, strict=True)})
        same = [number for number, text in enumerate(seen) if kinds[text] > 1]
    else:
        return
    if same:
        raise MedComfortError(
            f"{len(same)} of {len(made.rows)} examples prefer an answer to itself, chosen equals rejected "
            f"({_named(same, made.rows)}); drop them in 01_rewrite, or change `against`."
        )


def _fitting(made: Examples, context: float) -> Examples:
    """Without the rows that are too long. `max_length` 0 is planned: the longest, rounded up, within the context."""
    hyper, rows, lengths = made.hyper, made.rows, made.lengths
    if hyper.max_length > context:
        raise MedComfortError(
            f"max_length: the model reads {context} tokens, not {hyper.max_length}; lower it, or set it to 0 (the "
            "longest example)."
        )
    room = hyper.max_length or int(min(context, math.ceil(max(lengths) / ROUND) * ROUND))
    too_long = [number for number, length in enumerate(lengths) if length > room]
    if len(too_long) > hyper.too_long * len(rows):
        raise MedComfortError(
            f"max_length: {len(too_long)} of {len(rows)} examples are longer than {room} tokens, the longest "
            f"{max(lengths)} ({_named(too_long, rows)}); raise it, set it to 0 (the longest example), or allow a "
            f"larger share than {hyper.too_long:g} by too_long."
        )
    made.hyper, made.left_out = hyper.model_copy(update={"max_length": room}), len(too_long)
    return _only(made, [number for number, length in enumerate(lengths) if length <= room])


def _only(made: Examples, numbers: Sequence[int]) -> Examples:
    columns = (made.rows, made.prompts, made.answers)
    made.rows, made.prompts, made.answers = ([column[n] for n in numbers] for column in columns)
    return made


def _balanced(made: Examples) -> Examples:
    """KTO's: whole batches, both kinds of answers, and weights; an imbalance that was asked for is said aloud."""
    if len(made.rows) % made.hyper.batch_size == 1:  # a last batch of one would be its own mismatched example
        made = _only(made, range(len(made.rows) - 1))
    desirable = sum(row["label"] for row in made.rows)
    undesirable = len(made.rows) - desirable
    if not desirable or not undesirable:
        kind = "desirable" if desirable else "undesirable"
        raise MedComfortError(f"KTO needs desirable and undesirable answers; all {len(made.rows)} here are {kind}.")
    made.hyper = kto_weights(desirable, undesirable, made.hyper)
    given = made.hyper.desirable_weight, made.hyper.undesirable_weight
    if not 1 / 2 <= given[0] * desirable / (given[1] * undesirable) <= 2:
        print(
            f"KTO is out of balance: {desirable} desirable answers at weight {given[0]:g} against {undesirable} "
            f"undesirable ones at {given[1]:g}; desirable_weight 0 balances."
        )
    return made


def kto_weights(desirable: int, undesirable: int, hyper: Hyper) -> Hyper:
    """A weight of 0 becomes the one that balances the classes; the other keeps its value (1 if both are 0).

    With n desirable and m undesirable answers, desirable_weight * n / (undesirable_weight * m) should lie between 1 and
    4/3 (Ethayarajh et al., 2024, Eq. 8, in the form that TRL checks). 1 is kept where it does, else 7/6 is aimed at.
    """
    ratio = desirable / undesirable
    wanted, unwanted = hyper.desirable_weight, hyper.undesirable_weight
    if wanted == 0:
        unwanted = unwanted or 1.0
        wanted = 1.0 if 1 <= ratio / unwanted <= 4 / 3 else 7 / 6 * unwanted / ratio
    elif unwanted == 0:
        unwanted = 1.0 if 1 <= ratio * wanted <= 4 / 3 else 6 / 7 * wanted * ratio
    return hyper.model_copy(update={"desirable_weight": wanted, "undesirable_weight": unwanted})


def _named(numbers: Sequence[int], rows: list[dict], most: int = 3) -> str:
    """The first few of these rows, by number and the beginning of their question, for a message."""
    names = [f"row {number + 1}: '{rows[number]['prompt'][-1]['content'][:40]}...'" for number in numbers[:most]]
    return "; ".join(names) + ("; ..." if len(numbers) > most else "")
