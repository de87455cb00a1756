"""new-profile: another profile with one's own corpus, model and rewriter in it, its comments kept."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import yaml

from medcomfort_utils import paths, profile
from medcomfort_utils.__main__ import main
from medcomfort_utils.new_profile import new_profile
from medcomfort_utils.paths import DATA, ROOT, MedComfortError

EXAMPLE = ROOT / "docs/example_dialogues.jsonl"
BASE = str(DATA / "nano_base")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A folder of profiles of the test's own, with copies of the real ones."""
    for path in paths.PROFILES.glob("*.yaml"):
        (tmp_path / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(paths, "PROFILES", tmp_path)
    return tmp_path


@pytest.fixture
def served():
    """A server that tells of models; it keeps what it was asked, headers included."""
    models, asked = ["tiny-instruct"], []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802 - the name that http.server calls
            asked.append((self.path, dict(self.headers)))
            body = json.dumps({"data": [{"id": model} for model in models]}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", models, asked
    server.shutdown()
    server.server_close()


def steps(path):
    return {step.name: step.parameters for step in profile.load(path).steps}


@pytest.mark.parametrize("origin", sorted(path.stem for path in paths.PROFILES.glob("*.yaml")))
def test_only_corpus_base_and_rewriter_change(origin):
    before, after = steps(origin), steps(new_profile(origin, str(EXAMPLE), "owner/model@abc123", name=origin + "2"))
    assert before.keys() == after.keys()
    first = after.pop("01_rewrite")
    assert (first["source"], first["rewriter"]) == ("docs/example_dialogues.jsonl", "template")
    for name, given in after.items():
        changed = {key for key, value in given.items()
                   if str(value).replace(f"runs/{origin}2", f"runs/{origin}") != str(before[name][key])}  # fmt: skip
        assert changed <= {"base", "revision"}, name
        assert (given.get("base"), given.get("revision")) in (("owner/model", "abc123"), (None, None))


def test_comments_are_kept():
    text = new_profile("paper", str(EXAMPLE), BASE, name="mine").read_text(encoding="utf-8")
    assert "# Unsloth's guide: 16 or 32" in text and "# Preferences from the base, one seed each" in text
    assert (
        "  base: data/nano_base" in text
        and "source: docs/example_dialogues.jsonl  # JSON, JSONL, CSV or parquet file" in text
    )
    assert "One GPU with 80 GB" not in text  # what the other profile says of itself


def test_a_server_is_asked_for_its_model_and_sent_no_key(served, monkeypatch):
    address, models, asked = served
    monkeypatch.setenv("MEDCOMFORT_API_KEY", "sk-secret-1234")
    path = new_profile("smoke", str(EXAMPLE), BASE, llm=address, name="mine")
    first = steps(path)["01_rewrite"]
    told = {key: first[key] for key in ("rewriter", "model", "base_url", "mode", "responses", "cache")}
    assert told == {"rewriter": "llm", "model": "tiny-instruct", "base_url": address, "mode": "auto", "responses": "",
                    "cache": "cache/mine.sqlite"}  # fmt: skip
    assert [path for path, _ in asked] == ["/v1/models"]
    assert "secret" not in str(asked) and "secret" not in path.read_text()
    models.append("other")
    with pytest.raises(MedComfortError, match=r"tells of 2 models \(tiny-instruct, other\); choose one by --llm-model"):
        new_profile("smoke", str(EXAMPLE), BASE, llm=address)
    chosen = steps(new_profile("smoke", str(EXAMPLE), BASE, llm=address, llm_model="other"))
    assert chosen["01_rewrite"]["model"] == "other" and len(asked) == 2


def test_the_command_names_the_profile_after_the_corpus(home, capsys):
    source = home / "my own answers.csv"
    source.write_text("q,a\nIs a cough of five weeks normal?,It can last up to eight weeks after a cold; rest well.\n")
    fields = ["--question-field", "q", "--answer-field", "a"]
    assert main(["new-profile", "--source", str(source), "--model", BASE, *fields]) == 0
    assert "medcomfort reproduce --profile my-own-answers" in capsys.readouterr().out
    told = yaml.safe_load((home / "my-own-answers.yaml").read_text())
    assert told["name"] == "my-own-answers"
    assert told["rewrite"]["question_field"] == "q"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "nowhere.jsonl"}, "there is no file or folder nowhere.jsonl"),
        ({"fields": ("no", "such")}, "has a field 'no'; its fields are topic, question, answer"),
        ({"model": "nowhere"}, "--model: nowhere is neither a folder nor a hub id"),
        ({"model": str(ROOT / "docs")}, "docs has no config.json, so it is no model"),
        ({"llm": "http://user:pw@127.0.0.1/v1"}, "base_url must hold no key or password"),
        ({"llm": "http://127.0.0.1:9/v1"}, "does not tell which model is served .*give --llm-model"),
        ({"name": "a/b"}, "--name 'a/b' names files"),
        ({"name": "nano"}, "nano.yaml exists: give another --name"),
        ({"origin": "nanno"}, r"There is no profile 'nanno'; did you mean 'nano'\?"),
    ],
)
def test_what_would_fail_later_is_said_now(home, change, message):
    before = sorted(home.iterdir())
    given = {"origin": "smoke", "source": str(EXAMPLE), "model": BASE, "name": "mine"} | change
    with pytest.raises(MedComfortError, match=message):
        new_profile(**given)
    assert sorted(home.iterdir()) == before
