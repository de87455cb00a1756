"""How many labelled rewrites, slipped-in sentences and obeyed orders the gates stop, and how many good ones.

The sets were seen while the rules were made: floors against decay, no measure of what is found elsewhere.
"""

import json
import sys

import pytest

from medcomfort_utils.paths import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
import measure_gates  # noqa: E402

# Of the broken ones at least, and of the good ones at most; orders obeyed are mostly for a verdict to find.
FLOORS = {"rewrites, held_out": (0.75, 0.1), "rewrites, tuning": (0.75, 0.1), "additions, tuning": (0.8, 0.15)}
FLOORS |= {"orders, tuning": (0.2, 0.05)}


@pytest.fixture(scope="module")
def table():
    return measure_gates.measured(row for row in measure_gates.labelled() if row[0] in FLOORS)


@pytest.mark.parametrize("name", FLOORS)
def test_broken_ones_are_found_and_good_ones_pass(table, name):
    found, stopped = FLOORS[name]
    assert table.loc[name, "found"] >= found and table.loc[name, "stopped"] <= stopped
    assert table.loc[name, ["broken", "good"]].min() >= 10


def test_a_set_outside_the_repository(tmp_path):
    name, kind, good, dialogue, rewrite = next(measure_gates.labelled())
    row = {"kind": kind, "good": good, "dialogue": dialogue.model_dump(), "rewrite": rewrite.model_dump()}
    (tmp_path / "mine.jsonl").write_text(json.dumps(row))
    table = measure_gates.measured(measure_gates.outside(tmp_path / "mine.jsonl"))
    assert table.loc["mine", "good"] == 1 and table.loc["mine", "stopped"] == 0
