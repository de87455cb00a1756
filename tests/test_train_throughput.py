"""The benchmark's GPU task holds together, as far as that can be seen without a GPU: its model, rows and plan."""

import importlib.util

import pytest

from medcomfort_utils import parquet, paths
from medcomfort_utils.finetune import data, engine
from medcomfort_utils.schema import Hyper

SMALL = {"vocab_size": 4096, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
         "num_attention_heads": 1, "num_key_value_heads": 1}  # fmt: skip


@pytest.mark.parametrize("method", ["sft", "dpo", "kto"])
def test_the_rows_of_the_gpu_task_fill_their_length(tmp_path, monkeypatch, method):
    spec = importlib.util.spec_from_file_location("throughput", paths.ROOT / "benchmarks/train_throughput.py")
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    llama, read = benchmark.make_llama(tmp_path / "llama", benchmark.LLAMA_8B | SMALL, "cpu"), parquet.read_records
    monkeypatch.setattr(parquet, "read_records", lambda path, kind: read(path, kind, limit=24))  # enough, and quicker
    rows = benchmark.rows_for(method, 1024, engine.load_tokenizer(llama))
    examples = data.prepare(method, rows, llama, Hyper(**benchmark.plan(1024, 4)))
    assert len(examples.rows) == len(rows) and min(examples.lengths) > 0.9 * 1024
