"""Asks language models over the OpenAI-compatible interface; every answer is recorded, and the record can be replayed.

`Request` -> `Client` (cache, limits, retries, budget) -> `Response`; `parse` reads the JSON object out of its text.
"""

from medcomfort_utils.llm.cache import Cache as Cache
from medcomfort_utils.llm.cache import Failure as Failure
from medcomfort_utils.llm.cache import Request as Request
from medcomfort_utils.llm.cache import Response as Response
from medcomfort_utils.llm.client import Client as Client
from medcomfort_utils.llm.limits import Estimate as Estimate
from medcomfort_utils.llm.limits import Stopped as Stopped
from medcomfort_utils.llm.parsing import Unparsable as Unparsable
from medcomfort_utils.llm.parsing import parse as parse
from medcomfort_utils.schema import Sampling as Sampling
from medcomfort_utils.schema import Settings as Settings
