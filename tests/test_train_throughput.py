"""The benchmark's GPU task holds together, as far as that can be seen without a GPU: its model, rows and plan."""

import importlib.util

import pytest

from medcomfort_utils import parquet, paths
from medcomfort_utils.finetune import checks, engine, examples, hyperparameters

SMALL = {"vocab_size": 4096, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
         "num_attention_heads": 1, "num_key_value_heads": 1}  # fmt: skip


@pytest.fixture(scope="module")
def benchmark():
    path = paths.ROOT / "benchmarks" / "train_throughput.py"
    spec = importlib.util.spec_from_file_location("train_throughput", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def llama(benchmark, tmp_path_factory):
    return benchmark.make_llama(tmp_path_factory.mktemp("llama"), benchmark.LLAMA_8B | SMALL, "cpu")


@pytest.mark.parametrize("length", [1024, 2048])
@pytest.mark.parametrize("method", examples.METHODS)
def test_the_rows_of_the_gpu_task_fill_their_length(benchmark, llama, method, length, monkeypatch):
    read = parquet.read_records
    monkeypatch.setattr(parquet, "read_records", lambda path, kind: read(path, kind, limit=24))  # enough, and quicker
    tokenizer, hyper = engine.load_tokenizer(llama), hyperparameters.Hyper(**benchmark.plan(length, 4))
    rows = benchmark.rows_for(method, length, tokenizer)
    kept, planned = checks.ready(method, rows, tokenizer, hyper)
    assert len(kept) == len(rows) and planned.max_length == length and planned.dtype == "bfloat16"
    assert examples.token_lengths(kept, tokenizer).min() > 0.9 * length


def test_the_8b_shape_has_8_billion_parameters(benchmark):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        assert 8.0e9 < LlamaForCausalLM(LlamaConfig(**benchmark.LLAMA_8B)).num_parameters() < 8.1e9


def test_unsloth_is_left_out_where_it_is_not_installed(benchmark, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert (benchmark.arms(0), benchmark.arms(1024)) == (["bare", "trl"], ["trl"])
