"""Several processes train what one trains: `accelerate launch`, here two CPU processes that talk by gloo."""

import os
import subprocess
import sys

import pandas as pd
import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from finetuning import EACH, loss, write_rewrites
from transformers import AutoModelForCausalLM

from medcomfort_utils import paths
from medcomfort_utils.finetune import examples, trainers

CONFIGS = paths.PROFILES / "accelerate"


def profile(folder, rewrites, base, batch_size):
    """A profile of three models, one a method, each of four optimiser steps."""
    shared = {"rewrites": write_rewrites(folder / "rewrites.parquet", rewrites), "base": base, "against": ["original"],
              "learning_rate": 1e-3, "max_steps": 4, "batch_size": batch_size, "lora_rank": 4, "max_length": 0,
              "sft_weight": 0.0, "out_dir": str(folder / f"models-{batch_size}")}  # fmt: skip
    path = folder / f"batches-of-{batch_size}.yaml"
    path.write_text(yaml.safe_dump({"name": "two", "train": shared, "models": {m: {} for m in examples.METHODS}}))
    return path


@pytest.fixture(scope="module")
def launched(tiny, rewrites, tmp_path_factory):
    """Models of one process with batches of 4, and of two processes with batches of 2."""
    folder = tmp_path_factory.mktemp("launch")
    one, two = profile(folder, rewrites, tiny, 4), profile(folder, rewrites, tiny, 2)
    assert trainers.main(["--profile", str(one), "--method", *examples.METHODS]) == 0
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / "ddp.yaml")]
    command += ["-m", "medcomfort_utils.finetune.trainers", "--profile", str(two), "--method", *examples.METHODS]
    environment = os.environ | {"PYTHONPATH": str(paths.ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("saved ") == 3  # by one of the processes only
    return folder


@EACH
def test_two_processes_have_the_loss_curve_of_one(launched, method):
    """KTO too while its KL term is near 0; later it is estimated from the examples of each process' own batch."""
    one, two = (loss(pd.read_csv(launched / f"models-{size}/{method}-seed0/history.csv")) for size in (4, 2))
    assert one[0] != one[-1] and two == pytest.approx(one, abs=1e-5)


@EACH
def test_two_processes_leave_the_weights_of_one(launched, method):
    folders = [launched / f"models-{size}/{method}-seed0" for size in (4, 2)]
    one, two = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in folders)
    assert all((one[name] - two[name]).abs().max() < 1e-4 for name in one)
    assert not list(launched.glob("models-2/.*"))  # no work folder is left


def test_a_profile_without_the_method_and_an_unknown_one_are_told(tiny, rewrites, tmp_path, capsys):
    told = yaml.safe_load(profile(tmp_path, rewrites, tiny, 2).read_text())
    (tmp_path / "sft.yaml").write_text(yaml.safe_dump(told | {"models": {"sft": {}}}))
    assert trainers.main(["--profile", str(tmp_path / "sft.yaml"), "--method", "kto"]) == 1
    assert trainers.main(["--profile", "pper", "--method", "sft"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[0].endswith("sft.yaml trains no model by kto.") and "There is no profile 'pper'" in said[1]


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_the_launch_configurations_are_read_by_accelerate(name):
    """accelerate refuses a key that it does not know; sharding itself needs GPUs and is not run here."""
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    assert config.distributed_type.value == {"ddp": "MULTI_GPU", "fsdp": "FSDP"}[name] and config.num_processes == 2


def test_the_sharding_options_are_known(monkeypatch):
    told = yaml.safe_load((CONFIGS / "fsdp.yaml").read_text())["fsdp_config"]
    for key, value in told.items():
        monkeypatch.setenv(key.upper(), str(value))
    plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.state_dict_type.name, plugin.reshard_after_forward) == (
        2,
        "FULL_STATE_DICT",
        True,
    )
    assert told.keys() <= {action.dest for action in launch_command_parser()._actions}
