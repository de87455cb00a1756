"""Training examples: the view a method takes of the rewrites, tokenised once, and looked at before training."""

import html
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset

from medcomfort_utils.finetune import chat, engine
from medcomfort_utils.finetune.methods import METHODS
from medcomfort_utils.paths import MedComfortError
from medcomfort_utils.records import Rewrite
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
        found, count = sorted(self.lengths), f"{len(self.rows)} of {len(self.rows) + self.left_out}"
        tokens = f"median {found[len(found) // 2]}, longest {found[-1]}, room for {self.hyper.max_length}"
        return f"{count} examples of {' / '.join(self.rows[0])}; tokens: {tokens}"

    @property
    def lengths(self) -> list[int]:
        """Tokens of prompt and longest answer together, of each row."""
        return [len(head) + max(map(len, given)) for head, given in zip(self.prompts, self.answers, strict=True)]

    def keep(self, numbers: Sequence[int]) -> None:
        """Drop all rows but these."""
        columns = (self.rows, self.prompts, self.answers)
        self.rows, self.prompts, self.answers = ([column[n] for n in numbers] for column in columns)

    def dataset(self, batch_size: int) -> Dataset:
        """The rows as TRL's collator takes them."""
        columns = METHODS[self.method].columns(self.prompts, self.answers, batch_size)
        labels = {"label": [row["label"] for row in self.rows]} if "label" in self.rows[0] else {}
        return Dataset.from_dict(columns | labels)

    def markdown(self, number: int = 0) -> str:
        """One example as the model sees it; what carries the loss is bold."""
        row, seen = self.rows[number], (self.prompts[number], *self.answers[number])
        label = {True: ", desirable", False: ", undesirable"}.get(row.get("label"), "")
        texts = [html.escape(self.tokenizer.decode(ids)).replace("*", "\\*").replace("\n", "<br>") for ids in seen]
        pairs = zip([side for side in SIDES if side in row], texts[1:], strict=True)
        return "\n\n".join(f"**{side}{label}**\n\n> {texts[0]} **{answer}**" for side, answer in pairs)


def examples_for(parameters: dict[str, Any], rewrites: Sequence[Rewrite], seed: int) -> Examples:
    """The examples of one seed, as the parameters of 02_finetune say; `more` may name any field of Hyper."""
    view, method = {key: parameters[key] for key in ("neutral_fraction", "target", "against")}, parameters["method"]
    start, revision = parameters["init_from"], ""
    if not start:
        start, revision = parameters["base"], parameters["revision"]
    hyper = Hyper(**{name: parameters[name] for name in Hyper.model_fields if name in parameters} | parameters["more"])
    return prepare(method, rows_for(method, rewrites, seed, **view), start.format(seed=seed), hyper, seed, revision)


def rows_for(method: str, rewrites: Sequence[Rewrite], seed: int, **view) -> list[dict]:
    """The view of the training split that `method` takes, shuffled by `seed` (KTO reads rows in order).

    `view`: `target`, `neutral_fraction` and, for DPO and KTO, `against`: see `records.to_sft` and
    `records.to_preference`. Raises MedComfortError if no row has the target.
    """
    given = [r for r in rewrites if r.split == "train"]
    if not METHODS[method].reference:
        view.pop("against", None)
    rows = METHODS[method].view(given, seed=seed, **view)
    if not METHODS[method].view(given, seed=seed, **view | {"neutral_fraction": 0.0}):  # it would learn neutral pairs
        raise MedComfortError(
            f"target: the rewrites hold no training example of {view.get('target', 'emotional')} for {method} "
            f"({len(rows)} others); look at rejected.parquet, where 01_rewrite says why, and run it again."
        )
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    return [rows[i] for i in order]


def prepare(method: str, rows: list[dict], start: str, hyper: Hyper, seed: int = 0, revision: str = "") -> Examples:
    """Tokenise rows for the model `start`, look at them, and settle what is open (`max_length`, KTO's weights of 0).

    Rows that are too long are left out: a cut answer would teach the model to break off. Raises MedComfortError, naming
    the rows, for those that the model cannot take or that teach nothing.
    """
    limits, tokenizer = engine.limits(start, revision), engine.load_tokenizer(start, revision)
    ends = engine.ends_of_turn(start, tokenizer, revision)
    prompts, answers = [], []
    for number, row in enumerate(rows):
        try:
            head, targets = chat.encode(tokenizer, row["prompt"], [row[s] for s in SIDES if s in row], ends)
        except MedComfortError as error:
            _refuse([number], rows, f"{error}.")
        prompts.append(head)
        answers.append(targets)
    made = Examples(method, seed, start, revision, hyper, tokenizer, ends, rows, prompts, answers)
    _check_taught(made, limits.vocabulary)
    _fit_length(made, limits.context)
    if "label" in rows[0]:
        _balance(made)
    return made


def _refuse(bad: Sequence[int], rows: list[dict], what: str) -> None:
    """Raise MedComfortError about these rows, if any: the first by number and the beginning of their question."""
    if bad:
        named = "; ".join(f"row {n + 1}: '{rows[n]['prompt'][-1]['content'][:40]}...'" for n in bad[:3])
        raise MedComfortError(f"{len(bad)} of {len(rows)} examples ({named}): {what}")


def _check_taught(made: Examples, vocabulary: int) -> None:
    """Every answer must leave more than special tokens to learn, that the model knows, and be on one side only."""
    rows, ids, seen = made.rows, [], defaultdict(set)
    for row, head, given in zip(made.rows, made.prompts, made.answers, strict=True):
        ids.append(max(made.tokenizer.pad_token_id, *head, *sum(given, [])))
        seen[str((head, given))].add(row.get("label"))
    unknown = [n for n, token in enumerate(ids) if token >= vocabulary]
    tip = "model and tokenizer do not belong together; copy or download the model again."
    _refuse(unknown, rows, f"they hold token {max(ids)}, and the model knows {vocabulary} tokens only: {tip}")
    told = [[made.tokenizer.decode(answer, skip_special_tokens=True) for answer in given] for given in made.answers]
    empty = [n for n, texts in enumerate(told) if not all(text.strip() for text in texts)]
    _refuse(empty, rows, "all labels are masked, since the chat template renders no answer; correct the answers.")
    # compared as the model sees them: a chat template may cut off spaces that tell two texts apart
    pairs = zip(made.prompts, made.answers, strict=True)
    same = [n for n, (head, given) in enumerate(pairs) if given[0] in given[1:] or len(seen[str((head, given))]) > 1]
    _refuse(same, rows, "an answer is preferred to itself; drop it in 01_rewrite, or change `against`.")


def _fit_length(made: Examples, context: float) -> None:
    """Leave out the rows that are too long. `max_length` 0 is planned: the longest, rounded up, within the context."""
    hyper, lengths = made.hyper, made.lengths
    if hyper.max_length > context:
        raise MedComfortError(f"max_length: the model reads {context} tokens, not {hyper.max_length}; lower it.")
    room = hyper.max_length or int(min(context, math.ceil(max(lengths) / ROUND) * ROUND))
    too_long = [number for number, length in enumerate(lengths) if length > room]
    if len(too_long) > hyper.too_long * len(lengths):
        tip = f"raise max_length, set it to 0 (the longest example), or allow more than {hyper.too_long:g} by too_long."
        _refuse(too_long, made.rows, f"they are longer than {room} tokens, the longest {max(lengths)}; {tip}")
    made.hyper, made.left_out = hyper.model_copy(update={"max_length": room}), len(too_long)
    made.keep([number for number, length in enumerate(lengths) if length <= room])


def _balance(made: Examples) -> None:
    """KTO's: whole batches, both kinds of answers, and weights; an imbalance that was asked for is said aloud."""
    if len(made.rows) % made.hyper.batch_size == 1:  # a last batch of one would be its own mismatched example
        made.keep(range(len(made.rows) - 1))
    desirable = sum(row["label"] for row in made.rows)
    undesirable = len(made.rows) - desirable
    if not desirable or not undesirable:
        raise MedComfortError(f"KTO needs both kinds; {desirable} answers are desirable, {undesirable} undesirable.")
    made.hyper = kto_weights(desirable, undesirable, made.hyper)
    wanted, unwanted = made.hyper.desirable_weight * desirable, made.hyper.undesirable_weight * undesirable
    if not 1 / 2 <= wanted / unwanted <= 2:
        print(f"KTO is out of balance, {wanted:g} to {unwanted:g} (answers times weight); desirable_weight 0 balances.")


def kto_weights(desirable: int, undesirable: int, hyper: Hyper) -> Hyper:
    """A weight of 0 becomes the one that balances the classes; the other keeps its value (1 if both are 0).

    Weight times number of desirable answers, by that of undesirable ones, should lie between 1 and 4/3 (Ethayarajh et
    al., 2024, Eq. 8, in the form that TRL checks). A weight of 1 is kept where it does, else 7/6 is aimed at.
    """
    ratio = desirable / undesirable
    wanted, unwanted = hyper.desirable_weight, hyper.undesirable_weight
    if wanted == 0:
        unwanted = unwanted or 1.0
        wanted = 1.0 if 1 <= ratio / unwanted <= 4 / 3 else 7 / 6 * unwanted / ratio
    elif unwanted == 0:
        unwanted = 1.0 if 1 <= ratio * wanted <= 4 / 3 else 6 / 7 * wanted * ratio
    return hyper.model_copy(update={"desirable_weight": wanted, "undesirable_weight": unwanted})
