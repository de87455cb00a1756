"""Asks language models over the OpenAI-compatible interface; every answer is recorded, and the record can be replayed.

`Request` -> `Client` (cache, limits, retries, budget) -> `Response`; `parse` reads the JSON object out of its text.
"""

from medcomfort_utils.llm.cache import Cache
from medcomfort_utils.llm.client import Client
from medcomfort_utils.llm.estimate import Estimate
from medcomfort_utils.llm.parsing import Unparsable, parse
from medcomfort_utils.llm.requests import Failure, Request, Response, Stopped
from medcomfort_utils.schema import Sampling, Settings

__all__ = [
    "Cache",
    "Client",
    "Estimate",
    "Failure",
    "Request",
    "Response",
    "Sampling",
    "Settings",
    "Stopped",
    "Unparsable",
    "parse",
]
