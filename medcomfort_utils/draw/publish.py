"""From a run to the repository: commit its small result files, and put the main run's tables into the README."""

import re
import shutil
from pathlib import Path

from medcomfort_utils.draw import tables
from medcomfort_utils.draw.paper import RUN
from medcomfort_utils.draw.results import FILES, PROFILE, Results, read_results
from medcomfort_utils.paths import DATA, ROOT, MedComfortError, existing, replacing, write_text

README = ROOT / "README.md"
_PLACE = re.compile(r"(<!-- results: begin[^>]*-->\n).*?(<!-- results: end -->)", re.DOTALL)


def publish(run_dir: str | Path, name: str) -> Path:
    """Copy the result files of a whole run and its profile to `data/results/NAME`; returns that folder.

    The tables of the run that the paper tells of go into the README too. Raises MedComfortError if the run is not
    complete: nothing is replaced then.
    """
    folder = existing(run_dir, "run")
    results = read_results(folder)
    existing(folder / PROFILE, "the run's profile")
    with replacing(DATA / "results" / name) as temporary:
        temporary.mkdir()
        for file in (*FILES, PROFILE):
            shutil.copyfile(folder / file, temporary / file)
    if name == RUN:
        write_text(README, with_tables(README.read_text(encoding="utf-8"), results))
    return DATA / "results" / name


def with_tables(readme: str, results: Results) -> str:
    """The README's text with the tables of `results` between its two markers."""
    if not _PLACE.search(readme):
        raise MedComfortError(
            "README.md: the markers `<!-- results: begin -->` and `<!-- results: end -->` are missing."
        )
    shown = "\n".join(
        tables.to_markdown(table) for table in (tables.results_table(results), tables.claims_table(results))
    )
    return _PLACE.sub(lambda place: f"{place[1]}\n{shown}\n{place[2]}", readme)
