"""Asks language models over the OpenAI-compatible interface; every answer is recorded, and the record can be replayed.

`Request` -> `Client` (cache, limits, retries, budget) -> `Response`; `parse` reads the JSON object out of its text.
"""

from medcomfort_utils.llm.cache import Cache, Failure, Request, Response
from medcomfort_utils.llm.client import Client
from medcomfort_utils.llm.limits import Estimate, Stopped
from medcomfort_utils.llm.parsing import Unparsable, parse
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
