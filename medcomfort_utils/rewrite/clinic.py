"""The synthetic clinic: a small made-up world whose medical truth is known exactly.

Conditions, emotions and question frames are YAML files under `data/clinic/`. They were written for this project by a
language model, not reviewed by clinicians, and are no medical advice.
"""

import random
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medcomfort_utils.paths import DATA, MedComfortError, tidy
from medcomfort_utils.records import EMOTIONS, Dialogue, content_id, split_of

CLINIC = DATA / "clinic"


class ClinicCondition(BaseModel):
    """One condition: symptoms in paraphrases (noun phrases), and the sentences a right answer is made of."""

    model_config = ConfigDict(extra="forbid")
    name: str
    specialty: str
    symptoms: list[list[str]] = Field(min_length=3)
    cause: str
    advice: list[str] = Field(min_length=3, max_length=5)
    red_flags: list[str] = Field(min_length=1)
    follow_up: str

    @property
    def facts(self) -> list[str]:
        """The sentences that an answer must state, red flags apart, in the order of the plain answer."""
        return [f"This sounds like {self.name}.", self.cause, *self.advice, self.follow_up]

    @property
    def plain_answer(self) -> str:
        """Every fact and red flag once, in fixed wording, without a word of comfort."""
        return " ".join([*self.facts[:-1], *self.red_flags, self.follow_up])


class Bank(BaseModel):
    """Phrases for training and others for the test set."""

    model_config = ConfigDict(extra="forbid")
    train: list[str] = Field(min_length=40)
    test: list[str] = Field(min_length=15)


class Emotion(BaseModel):
    """What a patient with this emotion says, and how a doctor's soothing answer opens and closes."""

    model_config = ConfigDict(extra="forbid")
    emotion: str
    expressions: Bank
    openers: Bank
    closers: Bank


@cache
def _yaml(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _load(path: Path, kind: type[BaseModel], value: dict) -> BaseModel:
    try:
        return kind(**value)
    except ValidationError as error:
        problem = error.errors()[0]
        raise MedComfortError(f"{tidy(path)}: {'.'.join(map(str, problem['loc']))}: {problem['msg']}.") from error


@cache
def load_conditions() -> tuple[ClinicCondition, ...]:
    """All conditions, by file and position; a MedComfortError names the file and field that do not fit."""
    files = ((path, _yaml(path)) for path in sorted((CLINIC / "conditions").glob("*.yaml")))
    listed = ((path, content["specialty"], value) for path, content in files for value in content["conditions"])
    return tuple(_load(path, ClinicCondition, {"specialty": name, **value}) for path, name, value in listed)


@cache
def vocabulary() -> frozenset[str]:
    """The words that the conditions use in lower case: ordinary and medical ones, no names of people."""
    texts = [text for each in load_conditions() for text in (each.plain_answer, *sum(each.symptoms, []))]
    return frozenset(re.findall(r"\b[a-z]+\b", " ".join(texts)))


@cache
def load_emotions() -> dict[str, Emotion]:
    """The phrase banks of the five negative emotions, by name."""
    paths = {name: CLINIC / "emotions" / f"{name}.yaml" for name in EMOTIONS}
    return {name: _load(path, Emotion, _yaml(path)) for name, path in paths.items()}


def load_passages() -> tuple[str, ...]:
    """Loose supportive prose, in which emotions and comfort occur without a doctor or an answer."""
    return tuple(_yaml(CLINIC / "supportive.yaml")["passages"])


def load_feelings() -> dict[str, tuple[str, ...]]:
    """Everyday sentences that carry one of the five emotions, or `none`: by emotion."""
    return {name: tuple(texts) for name, texts in _yaml(CLINIC / "feelings.yaml").items()}


def neutral_question(condition: ClinicCondition, rng: random.Random, bank: str) -> str:
    """A question that names two or three symptoms of `condition`.

    `bank="test"` names three, in frames never met in training, and one of them in words never met in training: each
    symptom's last paraphrase is kept for that.
    """
    frames = _yaml(CLINIC / "questions.yaml")
    symptoms = rng.sample(condition.symptoms, k=3 if bank == "test" else rng.choice([2, 2, 3]))
    named = [rng.choice(paraphrases[:-1]) for paraphrases in symptoms]
    if bank == "test":
        unseen = rng.randrange(len(named))
        named[unseen] = symptoms[unseen][-1]
    filled = rng.choice(frames[bank]["reports"]).format(
        symptoms=f"{', '.join(named[:-1])} and {named[-1]}",
        duration=rng.choice(frames["durations"]),
        age=rng.choice(frames["ages"]),
    )
    parts = [rng.choice(frames[bank]["greetings"]), filled, rng.choice(frames[bank]["asks"])]
    return " ".join(part for part in parts if part)


def _dialogue(condition: ClinicCondition, question: str, split: str) -> Dialogue:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": condition.plain_answer}]
    known = {"topic": condition.specialty, "facts": condition.facts, "red_flags": condition.red_flags}
    return Dialogue(id=content_id(turns), source="clinic", messages=turns, split=split, **known)


def is_seen(condition: ClinicCondition) -> bool:
    """Whether fine-tuning shows this condition (about four in five); the others test what it makes a model forget."""
    return split_of(f"taught:{condition.name}", test=0.2, validation=0.0) == "train"


def generate(per_condition: int, seed: int = 0) -> Iterator[Dialogue]:
    """Up to `per_condition` distinct dialogues of each condition.

    The train and validation splits hold taught conditions only; the test split asks about all, in unseen words.
    """
    seen = set()
    for condition in load_conditions():
        for number in range(per_condition):
            key = f"clinic:{seed}:{condition.name}:{number}"
            split = split_of(key)
            if split != "test" and not is_seen(condition):
                continue
            question = neutral_question(condition, random.Random(key), "test" if split == "test" else "train")
            dialogue = _dialogue(condition, question, split)
            if dialogue.id not in seen:
                seen.add(dialogue.id)
                yield dialogue
