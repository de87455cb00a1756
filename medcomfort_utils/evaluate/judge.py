"""A language model as judge: which of two replies is better.

The judge is asked through `llm.Client`, so verdicts are recorded and replayed. One that cannot be read is counted and
shown, never scored. The judged texts are data: they stand between two lines that hold a marker made from their own
hash, which they cannot contain. A judge is itself a model: see `ratings.agreement` before it is believed.
"""

import hashlib
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from jinja2 import Environment, StrictUndefined

from medcomfort_utils.evaluate.statistics import interval
from medcomfort_utils.llm import Cache, Client, Failure, Request, Settings, Unparsable, parse
from medcomfort_utils.paths import ROOT

PROMPT = Path(__file__).parent / "prompts" / "pairwise_en.md.j2"
VERSION = "judge-pairwise-en-1"  # of the prompt
RECORD = ROOT / "cache" / "judge.sqlite"  # the judge's responses; `make clean` leaves it alone
SAMPLING = {"temperature": 0.0, "max_tokens": 512}
ASPECTS = {
    "knowledge": "which gives this patient more of the correct medical knowledge that is needed?",
    "comfort": "which responds better to what this person feels, and relieves as far as the truth allows?",
    "overall": "which would you rather have this patient receive?",
}
SCHEMA = {
    "type": "object",
    "properties": {"reason": {"type": "string"}, **dict.fromkeys(ASPECTS, {"enum": ["A", "B", "tie"]})},
    "required": ["reason", *ASPECTS],
    "additionalProperties": False,
}


def preferences(replies: pd.DataFrame, model: str, responses: str = "", against: str = "base") -> pd.DataFrame:
    """How often the judge `model` prefers each arm's reply to that of `against`, to the same emotional question.

    `replies`: a row a reply; of each arm the first seed is judged. `responses`: recorded responses (JSON lines) to
    start from; what is not recorded is asked of the server that the environment names. Columns: model, seed, aspect,
    value (share of questions won, a tie is half), low, high, bias (share of questions on which the place shown first
    won in both orders, less that of the second), n, unread, problem (what most often kept a verdict from being read).
    Raises MedComfortError as `Client.run` does.
    """
    keys, rows = ["dialogue_id", "emotion"], []
    asked = replies[replies["test_set"] == "emotional"].drop_duplicates(["model", *keys])
    asked = asked.merge(asked.loc[asked["model"] == against, [*keys, "reply"]], on=keys, suffixes=("", "_other"))
    with Cache(RECORD) as record:
        if responses:
            record.import_jsonl(responses)
        client = Client(Settings(), record)
        for arm, own in asked[asked["model"] != against].groupby("model", sort=False):
            compared = compare(client, model, *(own[name].tolist() for name in ("question", "reply", "reply_other")))
            for aspect, pairs in compared.groupby("aspect", sort=False):
                row = {"model": arm, "seed": own["seed"].iloc[0], "aspect": aspect}
                row |= dict(zip(("value", "low", "high"), interval(pairs["value"].to_numpy()), strict=True))
                row |= {"bias": pairs["bias"].mean(), "n": int(pairs["value"].notna().sum())}
                problems = pairs.loc[pairs["problem"] != "", "problem"]
                rows.append({**row, "unread": len(problems), "problem": problems.mode().get(0, "")})
    return pd.DataFrame(rows)


def compare(
    client: Client, model: str, questions: Sequence[str], answers: Sequence[str], others: Sequence[str]
) -> pd.DataFrame:
    """Which of two answers to each question is better, asked in both orders: a row a pair and aspect.

    `value`: 1 if `answers` wins in both orders, 0 if `others` does, 0.5 for a tie or if the orders disagree (Zheng et
    al. 2023, arXiv 2306.05685), nan unless both verdicts can be read. `bias`: 1 if the answer shown first won in both
    orders, -1 if the second did, else 0. `problem`: what could not be read.
    """
    asked = [order for q, a, b in zip(questions, answers, others, strict=True) for order in ((q, a, b), (q, b, a))]
    requests = [
        Request(f"verdict {number}", model, _messages(*texts), SAMPLING, SCHEMA, VERSION)
        for number, texts in enumerate(asked, start=1)
    ]
    verdicts, rows = list(client.run(requests, partial(_verdict, client))), []
    for straight, swapped in zip(verdicts[::2], verdicts[1::2], strict=True):
        problem = straight.get("problem") or swapped.get("problem") or ""
        for aspect in ASPECTS:
            value = bias = np.nan
            if not problem:
                given = straight[aspect], swapped[aspect]
                value = {("A", "B"): 1.0, ("B", "A"): 0.0}.get(given, 0.5)
                bias = {("A", "A"): 1.0, ("B", "B"): -1.0}.get(given, 0.0)
            rows.append({"aspect": aspect, "value": value, "bias": bias, "problem": problem})
    return pd.DataFrame(rows)


def _messages(question: str, first: str, second: str) -> tuple[dict, ...]:
    """The two turns of the prompt; its headings stand before any judged text."""
    marker = f"====== {hashlib.sha256(chr(0).join((question, first, second)).encode()).hexdigest()[:12]} ======"
    template = Environment(undefined=StrictUndefined, autoescape=False).from_string(PROMPT.read_text(encoding="utf-8"))
    whole = template.render(marker=marker, aspects=ASPECTS, question=question, first=first, second=second)
    _, system, user = re.split(r"^## (?:system|user)\n", whole, maxsplit=2, flags=re.M)
    return {"role": "system", "content": system.strip()}, {"role": "user", "content": user.strip()}


async def _verdict(client: Client, request: Request) -> dict:
    """The parsed verdict, or `{"problem": ...}`; one that does not parse is sent back once."""
    for last in (False, True):
        response = await client.ask(request)
        if isinstance(response, Failure):
            return {"problem": response.reason}
        try:
            return parse(response.text, request.schema)
        except Unparsable as error:
            if last:
                return {"problem": str(error)}
            request = request.repair(response.text, str(error))
