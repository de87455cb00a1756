"""What is made sure of before a training starts: a week of GPU time should not go into examples that teach nothing."""

import math
import re
from collections import Counter
from typing import Any

from medcomfort_utils.finetune import card, examples
from medcomfort_utils.finetune.hyperparameters import Hyper
from medcomfort_utils.paths import MedComfortError

ROUND = 64  # a planned max_length is a multiple of it
LARGEST_SEED = 2**32 - 1  # of NumPy's generator
NAME = re.compile(r"\w[\w.-]*")
CONTEXTLESS = 10**6  # a tokenizer without a limit names an absurdly large one


def parameters(given: dict[str, Any]) -> None:
    """Raise MedComfortError for parameters of 02_finetune that cannot work, before anything is loaded or trained.

    Those are: seeds, `name`, `{seed}` in what is named after it, and a push that would fail at the end.
    """
    seeds, name = given["seeds"], given["name"]
    whole = [seed for seed in seeds if type(seed) is int and 0 <= seed <= LARGEST_SEED]
    if not seeds or len(set(whole)) < len(seeds):
        raise MedComfortError(
            f"seeds must be different whole numbers from 0 to {LARGEST_SEED}, one at least, not {seeds}."
        )
    if name and not NAME.fullmatch(name):
        raise MedComfortError(f"name: '{name}' names a folder; it may hold only letters, digits, '_', '-' and '.'.")
    for key in ("base", "init_from", "push_to_hub"):
        _placed(key, given[key], seeds[0])
    if given["push_to_hub"]:
        card.check_push(given["push_to_hub"], seeds)


def _placed(key: str, value: str, seed: int) -> None:
    try:
        value.format(seed=seed)
    except (KeyError, IndexError, ValueError):
        raise MedComfortError(f"{key}: only {{seed}} can stand in braces, not '{value}'.") from None


def ready(method: str, rows: list[dict], tokenizer, hyper: Hyper) -> tuple[list[dict], Hyper]:
    """The rows that fit, and the hyper-parameters with nothing left open (`max_length` and KTO's weights of 0).

    Rows that are too long are left out: a cut answer would teach the model to break off. Raises MedComfortError, naming
    the examples, if more than the share `too_long` is, if an answer carries no loss, if chosen equals rejected, if KTO
    has answers of one kind only or gets batches of one, or if `max_length` exceeds the model's context.
    """
    coded = [examples.encoded(row, tokenizer) for row in rows]
    lengths = [examples.length(sides) for sides in coded]
    hyper = hyper.model_copy(update={"max_length": planned(max(lengths), tokenizer, hyper.max_length)})
    _taught(rows, coded, tokenizer)
    _distinct(method, rows, coded)
    too_long = [number for number, length in enumerate(lengths) if length > hyper.max_length]
    if len(too_long) > hyper.too_long * len(rows):
        raise MedComfortError(
            f"max_length: {len(too_long)} of {len(rows)} examples are longer than {hyper.max_length} tokens, the "
            f"longest {max(lengths)} ({_named(too_long, rows)}); raise it, set it to 0 (the longest example), or allow "
            f"a larger share than {hyper.too_long:g} by too_long."
        )
    kept = [row for row, length in zip(rows, lengths, strict=True) if length <= hyper.max_length]
    return (kept, hyper) if method != "kto" else _ready_for_kto(kept, hyper)


def planned(longest: int, tokenizer, max_length: int) -> int:
    """`max_length`, or if that is 0 the longest example's tokens rounded up to 64; never beyond the model's context.

    Raises MedComfortError if a given `max_length` is.
    """
    context = tokenizer.model_max_length if tokenizer.model_max_length < CONTEXTLESS else math.inf
    if max_length > context:
        raise MedComfortError(f"max_length: the model reads {context} tokens, not {max_length}; lower it.")
    return max_length or int(min(context, math.ceil(longest / ROUND) * ROUND))


def kto_weights(rows: list[dict], hyper: Hyper) -> Hyper:
    """A weight of 0 becomes the one that balances the classes; the other keeps its value (1 if both are 0).

    With n desirable and m undesirable answers, desirable_weight * n / (undesirable_weight * m) should lie between 1 and
    4/3 (Ethayarajh et al., 2024, Eq. 8, in the form that TRL checks). 1 is kept where it does, else 7/6 is aimed at.
    """
    desirable = sum(row["label"] for row in rows)
    ratio = desirable / (len(rows) - desirable)
    wanted, unwanted = hyper.desirable_weight, hyper.undesirable_weight
    if wanted == 0:
        unwanted = unwanted or 1.0
        wanted = 1.0 if 1 <= ratio / unwanted <= 4 / 3 else 7 / 6 * unwanted / ratio
    elif unwanted == 0:
        unwanted = 1.0 if 1 <= ratio * wanted <= 4 / 3 else 6 / 7 * wanted * ratio
    return hyper.model_copy(update={"desirable_weight": wanted, "undesirable_weight": unwanted})


def tell_balance(method: str, rows: list[dict], hyper: Hyper) -> None:
    """Say aloud where KTO's classes weigh more than twice one another, and what would balance them."""
    if method != "kto":
        return
    desirable = sum(row["label"] for row in rows)
    ratio = hyper.desirable_weight * desirable / (hyper.undesirable_weight * (len(rows) - desirable))
    if not 1 / 2 <= ratio <= 2:
        print(
            f"KTO is out of balance: {desirable} desirable answers at weight {hyper.desirable_weight:g} against "
            f"{len(rows) - desirable} undesirable ones at {hyper.undesirable_weight:g}; desirable_weight 0 balances."
        )


def labels(method: str, trainer) -> None:
    """Look at what the trainer's own collator makes of its first examples: each must teach some token, and to stop.

    The last guard before training, on the very tensors. Raises MedComfortError if an example's labels are all masked,
    or its end token is (as where a collator takes it for padding): a model taught so never stops.
    """
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(min(8, len(trainer.train_dataset)))])
    taught = batch["labels"] != -100 if method == "sft" else batch["completion_mask"] == 1
    if not bool(taught.any(dim=1).all()):
        raise MedComfortError("All labels of an example are masked: the trainer would learn nothing from it.")
    ends = taught & (batch["input_ids"] == trainer.processing_class.eos_token_id)
    if not bool(ends.any(dim=1).all()):
        raise MedComfortError("An example's end token carries no loss: the model would not learn to stop.")


def _ready_for_kto(rows: list[dict], hyper: Hyper) -> tuple[list[dict], Hyper]:
    if hyper.batch_size < 2:
        raise MedComfortError(f"batch_size: KTO needs at least 2 examples a batch, not {hyper.batch_size}.")
    if len(rows) % hyper.batch_size == 1:  # a last batch of one would be its own mismatched example
        rows = rows[:-1]
    kinds = {row["label"] for row in rows}
    if len(kinds) < 2:
        found = "desirable" if kinds == {True} else "undesirable"
        raise MedComfortError(f"KTO needs desirable and undesirable answers; all {len(rows)} here are {found}.")
    return rows, kto_weights(rows, hyper)


def _taught(rows: list[dict], coded: list[list[tuple]], tokenizer) -> None:
    """Every answer must leave more than special tokens to learn: else all labels but the end token are masked."""
    special = set(tokenizer.all_special_ids)
    targets = [[[t for t in target if t not in special] for _, _, target in sides] for sides in coded]
    empty = [n for n, found in enumerate(targets) if not all(tokenizer.decode(target).strip() for target in found)]
    if empty:
        raise MedComfortError(
            f"All labels are masked in {len(empty)} of {len(rows)} examples ({_named(empty, rows)}): the chat template "
            "renders no answer there. Correct the answers, or take a model with another template."
        )


def _distinct(method: str, rows: list[dict], coded: list[list[tuple]]) -> None:
    """No answer may be chosen and rejected (DPO), or desirable and undesirable (KTO), for the same prompt.

    Answers are compared as the model sees them: a chat template may cut off spaces that tell two texts apart.
    """
    if method == "dpo":
        same = [number for number, ((*_, chosen), (*_, rejected)) in enumerate(coded) if chosen == rejected]
    elif method == "kto":
        seen = [repr(sides) for sides in coded]
        kinds = Counter(text for text, _ in {(text, row["label"]) for text, row in zip(seen, rows, strict=True)})
        same = [number for number, text in enumerate(seen) if kinds[text] > 1]
    else:
        return
    if same:
        raise MedComfortError(
            f"{len(same)} of {len(rows)} examples prefer an answer to itself, chosen equals rejected "
            f"({_named(same, rows)}); drop them in 01_rewrite, or change `against`."
        )


def _named(numbers: list[int], rows: list[dict], most: int = 3) -> str:
    """The first few of these rows, by number and the beginning of their question, for a message."""
    told = [f"row {number + 1}: '{rows[number]['prompt'][-1]['content'][:40]}...'" for number in numbers[:most]]
    return "; ".join(told) + ("; ..." if len(numbers) > most else "")
