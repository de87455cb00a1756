"""Whether a rewritten text still supports a statement of its source, by words and, if asked, by meaning."""

from collections.abc import Callable, Sequence
from functools import cache, lru_cache

from medcomfort_utils.paths import MedComfortError, resolve
from medcomfort_utils.rewrite.quantities import numbers, unmatched
from medcomfort_utils.rewrite.wording import content, lexicon, parts, tokens

# Statements and windows of text -> for each statement, the cosine similarity to its nearest window (-1 to 1).
Similarity = Callable[[Sequence[str], Sequence[str]], Sequence[float]]

LONGEST = 3  # sentences that together may support one statement
SIMILAR = 0.75  # cosine similarity that supports a statement which its words alone do not
FEWEST = 0.3  # share of its words that even a similar window must have


@lru_cache(maxsize=1024)
def windows(text: str) -> tuple[tuple[str, ...], ...]:
    """All runs of one to three sentences."""
    said = parts(text)
    return tuple(said[i : i + n] for n in range(1, LONGEST + 1) for i in range(len(said) - n + 1))


@lru_cache(maxsize=1024)
def _window_stems(text: str) -> tuple[frozenset[str], ...]:
    """The content stems of each of the `windows`."""
    single = runs = [content(part) for part in parts(text)]
    found = [*single]
    for n in range(1, LONGEST):
        runs = [run | last for run, last in zip(runs, single[n:], strict=False)]
        found += runs
    return tuple(found)


def recall(statement: str, text: str) -> float:
    """Share (0-1) of the statement's content stems in the best window of `text` that gives all its numbers."""
    wanted, given = content(statement), numbers(statement)
    best = 0.0
    for run, stems in zip(windows(text), _window_stems(text), strict=True):
        if best == 1:
            break
        share = len(wanted & stems) / len(wanted) if wanted else 1.0
        if share > best and not (given and unmatched(statement, run)):
            best = share
    return best


def _needed(statement: str, threshold: float) -> float:
    """Of a statement of two content words and a number ("Come back in 2 weeks."), the number and one word will do."""
    return min(threshold, 0.5) if len(content(statement)) == 2 and numbers(statement) else threshold


def unsupported(
    statements: Sequence[str], text: str, threshold: float, similarity: Similarity | None = None
) -> list[str]:
    """The statements that no window of `text` supports: too few of their words, or another number.

    `similarity` is a second opinion on those that a window with a few of their words, and all their numbers, might
    still support in other words.
    """
    shares = {statement: recall(statement, text) for statement in statements}
    missing = [statement for statement, share in shares.items() if share < _needed(statement, threshold)]
    doubtful = [statement for statement in missing if shares[statement] >= FEWEST]
    if similarity and doubtful:
        alike = dict(zip(doubtful, similarity(doubtful, [" ".join(run) for run in windows(text)]), strict=True))
        missing = [statement for statement in missing if alike.get(statement, -1.0) < SIMILAR]
    return missing


@cache
def embedding_similarity(model: str, revision: str = "") -> Similarity:
    """`Similarity` by a BERT-like encoder, from the hub or a folder: mean-pooled tokens (Reimers & Gurevych 2019).

    With all-MiniLM-L6-v2 it gives what sentence-transformers gives, which cuts texts after 256 tokens.

    `revision`: commit or tag of the hub; empty for a folder. Weights are read from safetensors only, and no code of
    the model's is run. Raises MedComfortError if the model cannot be loaded so.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    model = str(resolve(model)) if resolve(model).is_dir() else model
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, revision=revision or None, trust_remote_code=False)
        encoder = AutoModel.from_pretrained(
            model, revision=revision or None, trust_remote_code=False, use_safetensors=True
        )
    except (OSError, ValueError) as error:
        raise MedComfortError(f"The sentence model '{model}' cannot be loaded from safetensors: {error}") from error
    longest = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)

    @torch.inference_mode()
    def vectors(texts: Sequence[str]) -> torch.Tensor:
        batch = tokenizer(list(texts), padding=True, truncation=True, max_length=longest, return_tensors="pt")
        mask = batch["attention_mask"].unsqueeze(-1)
        summed = (encoder.eval()(**batch).last_hidden_state * mask).sum(dim=1)
        return torch.nn.functional.normalize(summed / mask.sum(dim=1), dim=1)

    def nearest(statements: Sequence[str], texts: Sequence[str]) -> list[float]:
        return (vectors(statements) @ vectors(texts).T).max(dim=1).values.tolist() if statements and texts else []

    return nearest


@cache
def _care() -> dict[str, frozenset[str]]:
    return {name: frozenset(listed.split()) for name, listed in lexicon()["care"].items()}


def same_care(flag: str, text: str) -> bool:
    """Whether one window of `text` sends to the same care as the red flag: emergency care, or a doctor, and how soon.

    True for a flag that names none of these.
    """
    said = set(tokens(flag))
    wanted = [name for name in ("emergency", "doctor", "soon") if said & _care()[name]]
    if "emergency" in wanted:  # the place says how soon
        wanted = ["emergency"]
    stems = content(flag)
    near = [
        set().union(*map(tokens, run))
        for run, found in zip(windows(text), _window_stems(text), strict=True)
        if 2 * len(stems & found) >= len(stems)
    ]
    return not wanted or any(all(words & _care()[name] for name in wanted) for words in near)
