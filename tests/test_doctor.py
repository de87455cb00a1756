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
    """No server of language models in the environment, and a torch that sees no GPU."""
    for name in (*ADDRESSES, *KEYS):
        monkeypatch.delenv(name, raising=False)
    put_torch(monkeypatch, available=False)


def put_torch(monkeypatch, available):
    device = SimpleNamespace(name="Tesla T4", total_memory=16e9)
    seen = SimpleNamespace(is_available=lambda: available, get_device_properties=lambda _: device)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=seen, version=SimpleNamespace(cuda="13.0")))


def test_this_machine_can_run_the_small_profiles(capsys):
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "ok    [nano]     will work here: medcomfort reproduce --profile nano" in lines
    assert all(line[:5] in ("ok   ", "note ") for line in lines)


def test_pins_tell_missing_from_other_versions(tmp_path):
    installed = metadata.version("pytest")
    for text, state, told in (
        (f"# a comment\npytest=={installed}\n", "ok", "all 1"),
        ("pytest==0.0.1\n", "note", f"pytest {installed} (tried: 0.0.1)"),
        ("pytest==0.0.1\nno-such-package==1.0\n", "fail", "1 missing: no-such-package. Run: make setup"),
    ):
        (tmp_path / "cpu.txt").write_text(text)
        found, why = doctor.packages(tmp_path / "cpu.txt")
        assert found == state and told in why


def test_the_limit_of_a_container_counts(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "CGROUP", tmp_path / "memory.max")
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=16e9))
    for text, state in (("1000000000\n", "note"), ("max\n", "ok")):
        (tmp_path / "memory.max").write_text(text)
        assert doctor.memory()[0] == state


def test_the_gpu_that_pytorch_sees(monkeypatch):
    assert doctor.gpu()[0] == "note" and "no driver or no device" in doctor.gpu()[1]
    put_torch(monkeypatch, available=True)
    assert doctor.gpu() == ("ok", "Tesla T4, 16 GB")


def test_the_key_is_named_and_never_shown(monkeypatch):
    assert doctor.server()[0] == "note"
    monkeypatch.setenv(ADDRESSES[1], "http://secret-host/v1")
    monkeypatch.setenv(KEYS[0], "sk-secret")
    state, why = doctor.server()
    assert state == "ok" and "secret" not in why and KEYS[0] in why


def test_a_profile_tells_what_it_lacks_once(tmp_path, monkeypatch, capsys):
    (tmp_path / "big.yaml").write_text(OURS)
    monkeypatch.setattr(paths, "PROFILES", tmp_path)
    monkeypatch.setattr(doctor, "_installed", lambda name: "")
    state, why = doctor.of_profile("big", has_gpu=False)
    assert state == "note" and why.count("a GPU") == 1
    for lack in (
        "a server of language models: base_url, or MEDCOMFORT_BASE_URL in the environment (01_rewrite)",
        "the file nowhere/mine.jsonl, which is not there",
        "a GPU for dtype float16 (02_finetune-sft, 02_finetune-dpo)",
        "Unsloth for engine unsloth (02_finetune",
        "the model nobody/no-such-model",
    ):
        assert lack in why
    monkeypatch.setattr(doctor, "_installed", lambda name: "1")
    monkeypatch.setenv(ADDRESSES[0], "http://127.0.0.1:8000/v1")
    here = {"nowhere/mine.jsonl": "docs/example_dialogues.jsonl", "nobody/no-such-model": "data/nano_base"}
    for old, new in here.items():
        (tmp_path / "big.yaml").write_text((tmp_path / "big.yaml").read_text().replace(old, new))
    assert doctor.of_profile("big", has_gpu=True)[0] == "ok"
    (tmp_path / "big.yaml").write_text("name: big\nmodels: []\n")
    assert doctor.of_profile("big", has_gpu=True)[0] == "fail"
    monkeypatch.setitem(doctor.CHECKS, "Packages", lambda: ("ok", ""))
    assert main(["doctor"]) == 1 and "1 of these checks failed" in capsys.readouterr().err
