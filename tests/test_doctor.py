"""doctor: what it finds on machines that lack one thing or another."""

import sys
from importlib import metadata
from types import SimpleNamespace

import pytest

from medcomfort_utils import doctor, paths
from medcomfort_utils.__main__ import main
from medcomfort_utils.llm.server import ADDRESSES, KEYS

OURS = """
name: big
rewrite: {source: nowhere/mine.jsonl, rewriter: llm, model: m, mode: auto, responses: ""}
train: {base: nobody/no-such-model, engine: unsloth, dtype: float16}
models: {sft: {}, dpo: {after: sft}}
"""


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    """No server of language models is named in the environment."""
    for name in (*ADDRESSES, *KEYS):
        monkeypatch.delenv(name, raising=False)


def put_torch(monkeypatch, available, cuda="13.0"):
    """A torch that sees a GPU, or none."""
    device = SimpleNamespace(name="Tesla T4", total_memory=16e9)
    seen = SimpleNamespace(is_available=lambda: available, get_device_properties=lambda _: device)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=seen, version=SimpleNamespace(cuda=cuda)))


def test_this_machine_can_run_the_small_profiles(monkeypatch, capsys):
    put_torch(monkeypatch, available=False)
    monkeypatch.setattr(doctor, "_cached", lambda model: False)  # transformers cannot be imported beside that torch
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(
        line.startswith("ok    [nano]     will work here: medcomfort reproduce --profile nano") for line in lines
    )
    assert len([line for line in lines if line[:5] in ("ok   ", "note ")]) == len(lines)


def test_pins_tell_missing_from_other_versions(tmp_path):
    installed = metadata.version("pytest")
    for text, state, told in (
        (f"# a comment\npytest=={installed}\n", "ok", "all 1"),
        ("pytest==0.0.1\n", "note", f"pytest {installed} (tried: 0.0.1)"),
        ("pytest==0.0.1\nno-such-package==1.0\n", "fail", "1 missing: no-such-package. Run: make setup"),
    ):
        (tmp_path / "cpu.txt").write_text(text)
        found = doctor.pins(tmp_path / "cpu.txt")
        assert found.state == state and told in found.told


def test_the_limit_of_a_container_counts(monkeypatch, tmp_path):
    for text, state in (("1000000000\n", "note"), ("max\n", "ok")):
        (tmp_path / "memory.max").write_text(text)
        monkeypatch.setattr(doctor, "CGROUP", tmp_path / "memory.max")
        monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=16e9))
        assert doctor.memory().state == state


@pytest.mark.parametrize(
    ("available", "cuda", "state", "told"),
    [
        (True, "13.0", "ok", "Tesla T4, 16 GB"),
        (False, None, "note", "built without CUDA"),
        (False, "13.0", "note", "no driver or no device"),
    ],
)
def test_the_gpu_that_pytorch_sees(monkeypatch, available, cuda, state, told):
    put_torch(monkeypatch, available, cuda)
    found = doctor.gpu()
    assert found.state == state and told in found.told


def test_the_key_is_named_and_never_shown(monkeypatch):
    assert doctor.endpoint().state == "note"
    monkeypatch.setenv(ADDRESSES[1], "http://secret-host/v1")
    monkeypatch.setenv(KEYS[0], "sk-secret")
    found = doctor.endpoint()
    assert found.state == "ok" and "secret" not in found.told and KEYS[0] in found.told


@pytest.fixture
def big(tmp_path, monkeypatch):
    """The only profile: it asks for all that this machine lacks."""
    (tmp_path / "big.yaml").write_text(OURS)
    monkeypatch.setattr(paths, "PROFILES", tmp_path)
    return tmp_path / "big.yaml"


def test_a_profile_tells_what_it_lacks_once(big, monkeypatch):
    monkeypatch.setattr(doctor, "_installed", lambda name: "")
    monkeypatch.setattr(doctor, "_cached", lambda model: False)
    found = doctor.of_profile("big", has_gpu=False)
    assert found.state == "note" and found.told.count("a GPU") == 1
    for lack in (
        "a server of language models (01_rewrite: base_url",
        "the file nowhere/mine.jsonl, which is not there",
        "a GPU (02_finetune-sft, 02_finetune-dpo: dtype float16)",
        "Unsloth (02_finetune",
        "the model nobody/no-such-model",
    ):
        assert lack in found.told


def test_a_profile_that_has_all_will_work(big, monkeypatch):
    monkeypatch.setattr(doctor, "_installed", lambda name: "1")
    monkeypatch.setattr(doctor, "_cached", lambda model: True)
    monkeypatch.setenv(ADDRESSES[0], "http://127.0.0.1:8000/v1")
    big.write_text(big.read_text().replace("nowhere/mine.jsonl", "docs/example_dialogues.jsonl"))
    assert doctor.of_profile("big", has_gpu=True).state == "ok"


def test_a_broken_profile_fails_the_whole(big, monkeypatch, capsys):
    put_torch(monkeypatch, available=False)
    big.write_text("name: big\nmodels: []\n")
    assert main(["doctor"]) == 1
    said = capsys.readouterr()
    assert "fail  [big]" in said.out and "1 of these checks failed" in said.err
