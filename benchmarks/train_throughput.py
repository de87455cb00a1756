"""How fast SFT, DPO and KTO train: our trainers, by TRL and by Unsloth, beside a bare PyTorch loop doing the same work.

    python benchmarks/train_throughput.py [--json FILE] [--steps N] [--repeats N]

Without a GPU: the nano base, LoRA r=16, float32, one thread; seconds are those of the process on its core, which other
jobs on the machine change less. With one: a Llama of the 8 B shape with random weights (speed does not depend on the
values), bfloat16, 1,024 and 2,048 tokens; this part has not been run yet. Each arm is a process of its own, as Unsloth
changes TRL when it is imported; arms take turns. Tokens are those of the trained sequences, pads not counted.
Utilisation: the share of the machine's own matrix rate, measured beside each arm, that the model's matrix products
take: 4 N operations a token for the forward and backward pass of an adapter, 2 N for each pass without a gradient
(N: parameters).
"""

import argparse
import importlib.util
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

from medcomfort_utils.paths import DATA, NANO_BASE, ROOT, write_json

METHODS, ARMS, WARM = ("sft", "dpo", "kto"), ("bare", "trl", "unsloth"), 3
PASSES = {"sft": 0, "dpo": 1, "kto": 3}  # without a gradient: the reference; KTO: two of its partner too
LLAMA_8B = {
    "vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 4096, "tie_word_embeddings": False,
}  # fmt: skip


def plan(length: int, steps: int) -> dict:
    """The hyper-parameters of an arm; `length` 0 is the CPU's task on the nano base."""
    shared = {"learning_rate": 1e-4, "max_steps": steps + WARM, "save_steps": 10**6, "lora_rank": 16}
    return shared | {"max_length": length} | ({"batch_size": 2, "dtype": "bfloat16"} if length else {"batch_size": 8})


def now() -> float:
    """Seconds: of this process on its core; with a GPU, of the clock, all its work done."""
    import torch

    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def rows_for(method: str, length: int, tokenizer) -> list[dict]:
    """Training rows: the smoke run's rewrites, or texts of `length` tokens."""
    from medcomfort_utils.finetune import data
    from medcomfort_utils.parquet import read_records
    from medcomfort_utils.records import Rewrite

    rows = data.rows_for(method, read_records(DATA / "smoke/rewrites.parquet", Rewrite), seed=0)
    if length:
        for number, row in enumerate(rows):
            row["prompt"] = [{"role": "user", "content": "What helps?"}]
            for side in [side for side in data.SIDES if side in row]:
                words = f"{number} {side} " + "rest " * length
                tokens = tokenizer(words, add_special_tokens=False)["input_ids"][: length - 64]
                row[side] = [{"role": "assistant", "content": tokenizer.decode(tokens)}]
    return rows


def by_trainer(engine_name: str, method: str, base: str, length: int, steps: int) -> tuple[list[float], list[int]]:
    """(Times at the ends of steps, tokens of each step) of our own trainer."""
    from medcomfort_utils.finetune import engine

    engine.prepare(engine_name)
    from transformers import TrainerCallback

    from medcomfort_utils.finetune import data, trainers
    from medcomfort_utils.schema import Hyper

    times, tokens, built = [], [], trainers.build

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            times.append(now())

    def timed(*parts):
        trainer = built(*parts)
        compute = trainer.compute_loss

        def counted(model, inputs, *rest, **options):
            tokens.append(int(inputs["attention_mask"].sum()))
            return compute(model, inputs, *rest, **options)

        trainer.compute_loss = counted
        trainer.add_callback(Clock)
        return trainer

    trainers.build = timed
    rows = rows_for(method, length, engine.load_tokenizer(base))
    examples = data.prepare(method, rows, base, Hyper(**plan(length, steps)))
    with tempfile.TemporaryDirectory() as folder:
        trainers.fit(examples, examples.hyper, engine_name, Path(folder) / "work")
    return times, tokens


def by_hand(method: str, base: str, length: int, steps: int) -> tuple[list[float], list[int]]:
    """The same work in a bare PyTorch loop: LoRA, the method's loss, clipping, fused AdamW, a cosine schedule."""
    import peft
    import torch
    from transformers import get_cosine_schedule_with_warmup
    from transformers.trainer_utils import set_seed

    from medcomfort_utils.finetune import data, engine
    from medcomfort_utils.schema import Hyper

    given = plan(length, steps)
    set_seed(0)
    model, tokenizer = engine.load(base, "trl", given.get("dtype", "float32"))
    model = peft.get_peft_model(model, engine.adapter(16, 32)).train()
    rows = rows_for(method, length, tokenizer)
    examples = data.prepare(method, rows, base, Hyper(**given))
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=given["learning_rate"], weight_decay=0.0, fused=True)
    schedule = get_cosine_schedule_with_warmup(optimizer, round(0.1 * given["max_steps"]), given["max_steps"])
    times, tokens, size = [], [], given["batch_size"]
    for step in range(given["max_steps"]):
        batch = [i % len(rows) for i in range(step * size, (step + 1) * size)]
        coded = [[(examples.prompts[i], answer) for answer in examples.answers[i]] for i in batch]
        labels = [examples.rows[i].get("label") for i in batch]
        loss, count = LOSSES[method](model, coded, labels, tokenizer.pad_token_id)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        loss.item()
        times.append(now())
        tokens.append(count)
    return times, tokens


def likelihoods(model, pairs: list[tuple[list[int], list[int]]], pad: int):
    """(Sum of the answer's log-likelihood for each (prompt, answer), number of tokens)."""
    import torch

    longest = max(len(prompt) + len(answer) for prompt, answer in pairs)
    ids = torch.tensor([p + a + [pad] * (longest - len(p) - len(a)) for p, a in pairs], device=model.device)
    spans = [(len(p), len(p) + len(a)) for p, a in pairs]
    real = torch.tensor([[int(i < end) for i in range(longest)] for _, end in spans], device=model.device)
    answer = torch.tensor([[int(a <= i < b) for i in range(longest)] for a, b in spans], device=model.device)
    logits = model(input_ids=ids, attention_mask=real, use_cache=False).logits[:, :-1]
    scores = -torch.nn.functional.cross_entropy(logits.transpose(1, 2).float(), ids[:, 1:], reduction="none")
    return (scores * answer[:, 1:]).sum(1), int(real.sum())


def unlearnt(model, pairs: list, pad: int, reference: bool = True):
    """`likelihoods` without a gradient, of the reference (the adapter switched off) or of the model itself."""
    from contextlib import nullcontext

    import torch

    with torch.no_grad(), model.disable_adapter() if reference else nullcontext():
        return likelihoods(model, pairs, pad)[0]


def sft_loss(model, coded, labels, pad):
    pairs = [pair for (pair,) in coded]
    scores, count = likelihoods(model, pairs, pad)
    return -scores.sum() / sum(len(answer) for _, answer in pairs), count


def dpo_loss(model, coded, labels, pad, beta=0.1):
    import torch

    pairs = [sides[side] for side in (0, 1) for sides in coded]
    scores, count = likelihoods(model, pairs, pad)
    chosen, rejected = (beta * (scores - unlearnt(model, pairs, pad))).chunk(2)
    return -torch.nn.functional.logsigmoid(chosen - rejected).mean(), count


def kto_loss(model, coded, labels, pad, beta=0.1):
    import torch

    pairs = [pair for (pair,) in coded]
    partners = [(prompt, pairs[i - 1][1]) for i, (prompt, _) in enumerate(pairs)]
    scores, count = likelihoods(model, pairs, pad)
    ratio = scores - unlearnt(model, pairs, pad)
    kl = (unlearnt(model, partners, pad, reference=False) - unlearnt(model, partners, pad)).mean().clamp(min=0)
    sign = torch.tensor([1.0 if label else -1.0 for label in labels], device=ratio.device)
    return (1 - torch.sigmoid(beta * sign * (ratio - kl))).mean(), count


LOSSES = {"sft": sft_loss, "dpo": dpo_loss, "kto": kto_loss}


def child(arm: str, method: str, base: str, length: int, steps: int) -> None:
    """Run one arm and print what it measured as JSON."""
    import torch

    torch.set_num_threads(1)
    cuda = torch.cuda.is_available()
    run = (method, base, length, steps)
    times, tokens = by_hand(*run) if arm == "bare" else by_trainer(arm, *run)
    seconds, counted = times[-1] - times[WARM - 1], sum(tokens[WARM:])
    peak = torch.cuda.max_memory_allocated() if cuda else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rate = counted / seconds
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        parameters = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base)).num_parameters()
    done = rate * parameters * (4 + 2 * PASSES[method]) / matrix_rate()
    print(json.dumps({"tokens_per_second": rate, "peak_mb": peak / 2**20, "utilisation": done}))


def matrix_rate(size: int = 1024) -> float:
    """Operations a second of a square matrix product, here and now: float32 on a CPU, bfloat16 on a GPU."""
    import torch

    cuda = torch.cuda.is_available()
    size, device = (8 * size, "cuda") if cuda else (size, "cpu")
    left = torch.randn(size, size, device=device, dtype=torch.bfloat16 if cuda else torch.float32)
    best = float("inf")
    for _ in range(10):
        start = now()
        left @ left
        best = min(best, now() - start)
    return 2 * size**3 / best


def make_llama(folder: Path, shape: dict, device: str) -> str:
    """Write a Llama of that shape with random weights (the 8 B one: 16 GB), and the nano tokenizer beside it."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    with torch.device(device):
        LlamaForCausalLM(LlamaConfig(**shape)).to(torch.bfloat16).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(NANO_BASE)
    tokenizer.model_max_length = shape["max_position_embeddings"]  # the nano base's own is 512
    tokenizer.save_pretrained(folder)
    return str(folder)


def measured(arm: str, method: str, base: str, length: int, steps: int) -> dict:
    command = [sys.executable, __file__, "--child", arm, method, base, str(length), "--steps", str(steps)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, env=environment, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def arms(length: int) -> list[str]:
    """Who takes part: the bare loop on a CPU only, Unsloth where it is installed."""
    left_out = {"bare"} if length else set()
    left_out |= set() if importlib.util.find_spec("unsloth") else {"unsloth"}
    return [arm for arm in ARMS if arm not in left_out]


def table_of(base: str, lengths: list[int], steps: int, repeats: int) -> dict[str, dict]:
    """Medians of each arm over rounds in which all take their turn."""
    rounds: dict[str, list[dict]] = {}
    for _ in range(repeats):
        for length in lengths:
            for method in METHODS:
                for arm in arms(length):
                    name = f"{method}, {arm}" + (f", {length} tokens" if length else "")
                    rounds.setdefault(name, []).append(measured(arm, method, base, length, steps))
    medians = {}
    for name, runs in rounds.items():
        medians[name] = {key: statistics.median(one[key] for one in runs) for key in runs[0]}
    return medians


def shown(table: dict[str, dict]) -> str:
    """The table as text, each arm beside the first of its method."""
    lines = [f"{'':28} {'tokens/s':>9} {'of first':>9} {'peak MB':>8} {'utilisation':>12}"]
    for name, row in table.items():
        parts = name.split(", ")
        first = next(other for key, other in table.items() if key.split(", ")[::2] == parts[::2])
        share = row["tokens_per_second"] / first["tokens_per_second"]
        cells = f"{row['tokens_per_second']:9,.0f} {share:9.2f} {row['peak_mb']:8,.0f} {row['utilisation']:12.0%}"
        lines.append(f"{name:28} {cells}")
    return "\n".join(lines)


def machine() -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    return f"{model}, one thread of {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20, help="measured, after the first three")
    parser.add_argument("--repeats", type=int, default=3, help="rounds; the table shows medians")
    parser.add_argument("--json", help="write the numbers to this file")
    parser.add_argument("--child", nargs=4, metavar=("ARM", "METHOD", "BASE", "LENGTH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        arm, method, base, length = options.child
        return child(arm, method, base, int(length), options.steps)
    import torch

    names = ("torch", "transformers", "trl", "peft", "unsloth")
    installed = {name: metadata.version(name) for name in names if importlib.util.find_spec(name)}
    about = {"machine": machine(), "python": platform.python_version(), **installed}
    about |= {"matrix_rate_gflops": round(matrix_rate() / 1e9), "steps": options.steps, "repeats": options.repeats}
    with tempfile.TemporaryDirectory() as folder:
        cuda = torch.cuda.is_available()
        base, lengths = (make_llama(Path(folder), LLAMA_8B, "cuda"), [1024, 2048]) if cuda else (str(NANO_BASE), [0])
        table = table_of(base, lengths, options.steps, options.repeats)
    print(*[f"{name}: {value}" for name, value in about.items()], shown(table), sep="\n")
    if options.json:
        write_json(options.json, {**about, "table": table})


if __name__ == "__main__":
    main()
