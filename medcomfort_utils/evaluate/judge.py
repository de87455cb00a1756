"""A language model as judge: ratings of single answers, verdicts on pairs.

The judge is asked through `llm.Client`, so verdicts are recorded and replayed. One that cannot be read is counted and
shown, never scored. The judged texts are data: they stand between two lines that hold a marker made from their own
hash, which they cannot contain. A judge is itself a model: see `ratings.agreement` before it is believed.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from jinja2 import Environment, StrictUndefined

from medcomfort_utils.evaluate.statistics import interval
from medcomfort_utils.llm import Cache, Client, Failure, Request, Settings, Unparsable, parse
from medcomfort_utils.paths import ROOT, MedComfortError

PROMPTS = Path(__file__).parent / "prompts"
RECORD = ROOT / "cache" / "judge.sqlite"  # the judge's responses; `make clean` leaves it alone
ASPECTS = {
    "knowledge": "which gives this patient more of the correct medical knowledge that is needed?",
    "comfort": "which responds better to what this person feels, and relieves as far as the truth allows?",
    "overall": "which would you rather have this patient receive?",
}
VERDICTS = ("A", "B", "tie")
_SWAPPED = {"A": "B", "B": "A", "tie": "tie"}


@cache
def rubrics() -> dict[str, dict[str, dict]]:
    """Rubric -> criterion -> what it asks, and the meaning of each rating."""
    return yaml.safe_load((PROMPTS / "rubrics_en.yaml").read_text(encoding="utf-8"))


def criteria(rubric: str) -> dict[str, tuple[int, ...]]:
    """The criteria of a rubric, each with its ratings; MedComfortError if there is no such rubric."""
    if rubric not in rubrics():
        raise MedComfortError(f"rubric must be one of {', '.join(rubrics())}, not '{rubric}'.")
    return {name: tuple(value for value in of if value != "asks") for name, of in rubrics()[rubric].items()}


def _schema(choices: dict[str, Sequence]) -> dict:
    """A JSON object with a reason, then one of the listed values for each name."""
    kinds = {name: "integer" if isinstance(values[0], int) else "string" for name, values in choices.items()}
    allowed = {name: {"type": kinds[name], "enum": list(values)} for name, values in choices.items()}
    properties = {"reason": {"type": "string"}, **allowed}
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


@cache
def _prompt(task: str) -> tuple[str, str]:
    """The text of a prompt file, and the version that its first line states."""
    text = (PROMPTS / f"{task}_en.md.j2").read_text(encoding="utf-8")
    version = re.match(r"\{#- version: (\S+) -#\}", text)[1]
    return text, f"judge-{task}-en-{version}"


def _messages(task: str, texts: dict[str, str], **values) -> tuple[dict, ...]:
    """The two turns of a prompt file; its headings stand before any judged text."""
    marker = f"====== {hashlib.sha256(chr(0).join(texts.values()).encode()).hexdigest()[:12]} ======"
    template = Environment(undefined=StrictUndefined, autoescape=False).from_string(_prompt(task)[0])
    whole = template.render(marker=marker, **texts, **values)
    _, system, user = re.split(r"^## (?:system|user)\n", whole, maxsplit=2, flags=re.M)
    return {"role": "system", "content": system.strip()}, {"role": "user", "content": user.strip()}


def _texts(**lists: Sequence[str] | None) -> list[dict[str, str]]:
    """The judged texts of each row by name; a list that is None stands for empty texts."""
    counts = {name: len(values) for name, values in lists.items() if values is not None}
    if len(set(counts.values())) > 1:
        raise MedComfortError(f"The judge needs lists of one length, not {counts}.")
    rows = max(counts.values())
    return [{name: values[i] if values is not None else "" for name, values in lists.items()} for i in range(rows)]


@dataclass(frozen=True)
class Judge:
    """Judges by `model` through `client`; `sampling` holds temperature, max_tokens and the like."""

    client: Client
    model: str
    sampling: dict = field(default_factory=lambda: {"temperature": 0.0, "max_tokens": 512})

    def rate(
        self,
        questions: Sequence[str],
        answers: Sequence[str],
        references: Sequence[str] | None = None,
        rubric: str = "medcomfort",
    ) -> pd.DataFrame:
        """Ratings of each answer: a float column a criterion (nan where there is no verdict), `reason`, `problem`.

        `references`: the doctors' answers, if the judge is to see them. Raises MedComfortError as `Client.run` does.
        """
        texts = _texts(question=questions, reference=references, answer=answers)
        schema = _schema(criteria(rubric))
        messages = [_messages("single", text, rubric=rubrics()[rubric]) for text in texts]
        verdicts = self._verdicts(messages, schema, f"{_prompt('single')[1]}-{rubric}")
        rows = [{"reason": "", "problem": "", **verdict} for verdict in verdicts]
        table = pd.DataFrame(rows, columns=[*criteria(rubric), "reason", "problem"])
        return table.astype(dict.fromkeys(criteria(rubric), float))

    def compare(
        self,
        questions: Sequence[str],
        answers: Sequence[str],
        others: Sequence[str],
        references: Sequence[str] | None = None,
    ) -> pd.DataFrame:
        """Which of two answers is better, each pair asked in both orders.

        A float column an aspect: 1 if `answers` wins in both orders, 0 if `others` does, 0.5 for a tie or if the orders
        disagree (Zheng et al. 2023, arXiv 2306.05685), nan unless both verdicts can be read. `{aspect}_straight` and
        `{aspect}_swapped` hold the verdicts as given (A: the answer shown first); `problem` what could not be read.
        """
        straight = _texts(question=questions, reference=references, first=answers, second=others)
        swapped = [text | {"first": text["second"], "second": text["first"]} for text in straight]
        both = [text for pair in zip(straight, swapped, strict=True) for text in pair]
        messages = [_messages("pairwise", text, aspects=ASPECTS) for text in both]
        verdicts = self._verdicts(messages, _schema(dict.fromkeys(ASPECTS, VERDICTS)), _prompt("pairwise")[1])
        return pd.DataFrame([_compared(*verdicts[i : i + 2]) for i in range(0, len(verdicts), 2)])

    def _verdicts(self, messages: Iterable[tuple[dict, ...]], schema: dict, version: str) -> list[dict]:
        requests = [
            Request(f"verdict {i}", self.model, asked, self.sampling, schema, version)
            for i, asked in enumerate(messages, start=1)
        ]
        return list(self.client.run(requests, self._verdict))

    async def _verdict(self, request: Request) -> dict:
        """The parsed verdict, or `{"problem": ...}`; one that does not parse is sent back once."""
        for last in (False, True):
            response = await self.client.ask(request)
            if isinstance(response, Failure):
                return {"problem": response.reason}
            try:
                return parse(response.text, request.schema)
            except Unparsable as error:
                if last:
                    return {"problem": str(error)}
                request = request.repair(response.text, str(error))


def _compared(straight: dict, swapped: dict) -> dict:
    row = {"problem": straight.get("problem") or swapped.get("problem") or ""}
    for aspect in ASPECTS:
        given = straight.get(aspect, ""), swapped.get(aspect, "")
        if all(given):
            agreed = given[0] == _SWAPPED[given[1]]
            row[aspect] = {"A": 1.0, "B": 0.0, "tie": 0.5}[given[0]] if agreed else 0.5
        else:
            row[aspect] = np.nan
        row |= {f"{aspect}_straight": given[0], f"{aspect}_swapped": given[1]}
    return row


def unread(verdicts: pd.DataFrame) -> str:
    """One sentence: how many verdicts could not be read, and what was wrong most often."""
    problems = verdicts.loc[verdicts["problem"] != "", "problem"]
    count = f"{len(problems)} of {len(verdicts)} verdicts could not be read and are not scored"
    return f"{count}; most often: {problems.mode()[0]}" if len(problems) else f"{count}."


def preferences(replies: pd.DataFrame, model: str, responses: str = "", against: str = "base") -> pd.DataFrame:
    """How often the judge `model` prefers each arm's reply to that of `against`, to the same emotional question.

    `replies`: a row a reply; of each arm the first seed is judged. `responses`: recorded responses (JSON lines) to
    start from; what is not recorded is asked of the server that the environment names. Columns: model, seed, aspect,
    value (share of questions won, a tie is half), low, high, n, unread, bias (see `position_bias`).
    Raises MedComfortError as `Client.run` does.
    """
    asked = replies[replies["test_set"] == "emotional"]
    keys = ["dialogue_id", "emotion"]
    reference, rows = asked[asked["model"] == against].drop_duplicates(keys).set_index(keys), []
    with Cache(RECORD) as record:
        if responses:
            record.import_jsonl(responses)
        judge = Judge(Client(Settings(), record), model)
        for arm, own in asked[asked["model"] != against].groupby("model", sort=False):
            own = own.drop_duplicates(keys)
            others = reference.loc[pd.MultiIndex.from_frame(own[keys]), "reply"].tolist()
            compared = judge.compare(own["question"].tolist(), own["reply"].tolist(), others)
            biases = position_bias(compared).set_index("aspect")["bias"]
            for aspect in ASPECTS:
                value, low, high = interval(compared[aspect].to_numpy())
                row = {"model": arm, "seed": own["seed"].iloc[0], "aspect": aspect, "value": value, "low": low}
                unread_pairs = int(compared[aspect].isna().sum())
                row |= {"high": high, "n": int(compared[aspect].notna().sum()), "unread": unread_pairs}
                rows.append(row | {"bias": biases[aspect]})
    return pd.DataFrame(rows)


def position_bias(compared: pd.DataFrame) -> pd.DataFrame:
    """How much the order decides, a row an aspect, over the pairs with both verdicts (`n`).

    Shares of pairs: `consistent` (both orders agree), `first` and `second` (the place shown first, or second, won in
    both orders). `bias` = first - second, with its 95 % interval `low`, `high`: about 0 for a judge without a bias.
    """
    rows = []
    for aspect in ASPECTS:
        read = compared[compared[aspect].notna()]
        straight, swapped = read[f"{aspect}_straight"], read[f"{aspect}_swapped"]
        first, second = (((straight == place) & (swapped == place)).astype(float) for place in ("A", "B"))
        bias, low, high = interval((first - second).to_numpy())
        shares = {"consistent": (straight == swapped.map(_SWAPPED)).mean(), "first": first.mean()}
        row = {"aspect": aspect, "n": len(read), **shares, "second": second.mean()}
        rows.append({**row, "bias": bias, "low": low, "high": high})
    return pd.DataFrame(rows)
