"""Processes that work at the same time: order, errors, and none left over."""

import os
import signal
import subprocess
import sys

import psutil
import pytest
from conftest import turn

from medcomfort_utils.evaluate import generate
from medcomfort_utils.evaluate.workers import Workers
from medcomfort_utils.paths import NANO_BASE, ROOT, MedComfortError

BASE = str(NANO_BASE)
ILLS = "a cough", "an itchy rash", "a painful knee"
PROMPTS = [turn("user", f"I have had {ill} for a week. What should I do?") for ill in ILLS]


@pytest.fixture(scope="module")
def pair():
    crew = Workers(2)
    yield crew
    crew.close()


def doubled(rows):
    return [2 * row for row in rows]


@pytest.mark.parametrize("rows", [list(range(-9, 0)), [7], []])
def test_results_come_in_the_order_of_the_rows(pair, rows):
    assert pair.deal(doubled, rows) == Workers().deal(doubled, rows) == doubled(rows)


def test_two_processes_say_what_one_says(pair):
    one, two = (generate.replies(BASE, PROMPTS, max_new_tokens=16, workers=crew) for crew in (None, pair))
    assert one.equals(two) and one["reply"].nunique() > 1


def test_perplexity_is_the_same_however_many_score(pair):
    prompts, texts = PROMPTS * 3, ["Rest.", "", "Drink a lot.", "Rest.", "Blue of.", "Sleep.", "Rest.", "Ask.", "Wait."]
    alone = generate.perplexity(BASE, prompts, texts)
    assert generate.perplexity(BASE, prompts, texts, workers=pair) == pytest.approx(alone, rel=1e-4, nan_ok=True)
    assert alone[0] == alone[3] != alone[4]


def test_an_error_in_a_worker_is_a_sentence_here(pair):
    with pytest.raises(MedComfortError, match="no_such_model is no model folder"):
        generate.replies(str(ROOT / "data" / "no_such_model"), PROMPTS, max_new_tokens=8, workers=pair)


def test_a_worker_that_dies_is_told_in_a_sentence():
    crew = Workers(2)
    with pytest.raises(MedComfortError, match="A worker process died .* take fewer workers"):
        crew.deal(exit_at_once, [1, 2])
    crew.close()


def exit_at_once(rows):
    os._exit(len(rows))


def test_fewer_than_one_worker_is_refused():
    with pytest.raises(MedComfortError, match="workers must be at least 1, not 0"):
        Workers(0)


def test_workers_end_when_their_parent_is_killed(tmp_path):
    code = (
        "import sys, time\nfrom medcomfort_utils.evaluate.workers import Workers\n"
        "if __name__ == '__main__':\n"
        "    crew = Workers(2)\n    print(crew.deal(sorted, [1, 2]), flush=True)\n    time.sleep(600)\n"
    )
    script = tmp_path / "parent.py"
    script.write_text(code)
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert parent.stdout.readline() == "[1, 2]\n"
    workers = [p for p in psutil.Process(parent.pid).children(recursive=True) if "spawn_main" in " ".join(p.cmdline())]
    assert len(workers) == 2
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive
