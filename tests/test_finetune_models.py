"""Models that users bring: real architectures with tiny random weights and templates of their published shape, and
folders that would mislead, or hang, what loads them."""

import json
import os
import shutil

import pytest
import torch
import transformers as hf
from conftest import turn
from finetuning import changed, fit
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from medcomfort_utils.finetune import chat, data, engine, trainers
from medcomfort_utils.paths import MedComfortError

TURN = "{{% for m in messages %}}{body}{{% endfor %}}{{% if add_generation_prompt %}}{ask}{{% endif %}}"
CHATML = TURN.format(body="<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n", ask="<|im_start|>assistant\n")
THINKING = TURN.format(
    body="<|im_start|>{{ m.role }}\n{% if loop.last and m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n",
    ask="<|im_start|>assistant\n{% if not enable_thinking | default(true) %}<think>\n\n</think>\n\n{% endif %}",
)
OPENING = TURN.format(
    body="<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n", ask="<|im_start|>assistant\n<think>\n"
)
ALTERNATING = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}"
    "{% endif %}"
)
GEMMA = (
    "{{ bos_token }}"
    + ALTERNATING
    + (
        "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
        "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    )
)
MISTRAL = (
    "{{ bos_token }}"
    + ALTERNATING
    + (
        "{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]{% else %} {{ m.content }}{{ eos_token }}{% endif %}"
        "{% endfor %}"
    )
)
LLAMA = "{{ bos_token }}" + TURN.format(
    body="<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>",
    ask="<|start_header_id|>assistant<|end_header_id|>\n\n",
)
PHI = TURN.format(body="<|{{ m.role }}|>\n{{ m.content }}<|end|>\n", ask="<|assistant|>\n").replace(
    "{% endif %}", "{% else %}{{ eos_token }}{% endif %}"
)
# name: (configuration, template, tokenizer's end, ends that generation_config names, what carries the loss)
FAMILIES = {
    "Llama 3": (hf.LlamaConfig, LLAMA, "<|eot_id|>", ["<|end_of_text|>", "<|eot_id|>"], "Rest.<|eot_id|>"),
    "Qwen2.5": (hf.Qwen2Config, CHATML, "<|im_end|>", ["<|im_end|>", "<|endoftext|>"], "Rest.<|im_end|>\n"),
    "Qwen3": (hf.Qwen3Config, THINKING, "<|im_end|>", ["<|im_end|>", "<|endoftext|>"], "Rest.<|im_end|>\n"),
    "a thinker": (hf.Qwen2Config, OPENING, "<|im_end|>", "<|im_end|>", "Rest.<|im_end|>\n"),
    "Gemma 2": (hf.Gemma2Config, GEMMA, "<eos>", ["<eos>", "<end_of_turn>"], "Rest.<end_of_turn>\n"),
    "Gemma 3": (hf.Gemma3TextConfig, GEMMA, "<eos>", ["<eos>", "<end_of_turn>"], "Rest.<end_of_turn>\n"),
    "Phi-3": (hf.Phi3Config, PHI, "<|endoftext|>", ["<|endoftext|>", "<|end|>"], "Rest.<|end|>\n<|endoftext|>"),
    "Mistral": (hf.MistralConfig, MISTRAL, "</s>", "</s>", " Rest.</s>"),
    "SmolLM2": (hf.LlamaConfig, CHATML, "<|im_end|>", None, "Rest.<|im_end|>\n"),
}  # fmt: skip
SPECIAL = ["<pad>", "<s>", "</s>", "<eos>", "<|eot_id|>", "<|end_of_text|>", "<|im_start|>", "<|im_end|>", "<|end|>",
           "<|endoftext|>", "<start_of_turn>", "<end_of_turn>", "<|start_header_id|>", "<|end_header_id|>", "[INST]",
           "[/INST]", "<|user|>", "<|assistant|>", "<|system|>"]  # fmt: skip
SMALL = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 16,
         "num_key_value_heads": 1, "max_position_embeddings": 256}  # fmt: skip
ROW = {"prompt": turn("system", "Be kind.") + turn("user", "Why?"), "completion": turn("assistant", "Rest.")}


def family(name, folder):
    """A tiny model of the family, saved in a folder."""
    kind, template, end, ends, _ = FAMILIES[name]
    letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    bytes_ = Tokenizer(models.BPE(letters, []))
    bytes_.pre_tokenizer, bytes_.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    bytes_.add_special_tokens(SPECIAL)
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=bytes_, bos_token="<s>", eos_token=end, pad_token="<pad>", chat_template=template
    )
    ids = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(kind(**SMALL, vocab_size=len(tokenizer), **ids))
    if ends is not None:
        model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(ends)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_trained_on_its_own_turns_and_learns_to_end_them(one_thread, tmp_path, name):
    base, told = family(name, tmp_path / "base"), FAMILIES[name][-1]
    hyper = changed(learning_rate=1e-2, max_steps=40, save_steps=40, max_length=0, weight_decay=0.0)
    made = data.prepare("sft", [ROW, ROW], base, hyper)
    assert made.tokenizer.decode(made.answers[0][0]) == told
    asked = made.tokenizer.decode(made.prompts[0])
    assert (
        "Be kind." in asked and not asked.endswith("<think>\n") and asked == chat.prompt(made.tokenizer, ROW["prompt"])
    )
    trainers.train(made, base, tmp_path / "model")
    model, tokenizer = engine.load(str(tmp_path / "model"))
    ends = engine.ends_of_turn(str(tmp_path / "model"), tokenizer)
    ids = torch.tensor([chat.tokens(tokenizer, chat.prompt(tokenizer, ROW["prompt"]))])
    reply = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :].tolist()
    assert reply[-1] in ends and tokenizer.decode(reply, skip_special_tokens=True).strip() == "Rest."


@pytest.mark.parametrize(
    ("name", "layers"),
    [("Phi-3", ["down_proj", "gate_up_proj", "o_proj", "qkv_proj"]),
     ("Llama 3", ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"])],
)  # fmt: skip
def test_an_adapter_is_put_on_all_linear_layers(tmp_path, name, layers):
    base = family(name, tmp_path / "base")
    trainers.train(data.prepare("sft", [ROW], base, changed(max_steps=1, lora_rank=2)), base, tmp_path / "model")
    assert json.loads((tmp_path / "model/training.json").read_text())["adapted"] == layers


def test_turns_that_a_template_cannot_take_are_folded_or_named(tmp_path):
    tokenizer = engine.load_tokenizer(family("Gemma 2", tmp_path / "base"))
    talk = turn("system", "Be kind.") + turn("user", "One.") + turn("user", "Two.")
    assert "user\nBe kind.\n\nOne.\n\nTwo.<end_of_turn>" in chat.prompt(tokenizer, talk)
    odd = {"prompt": turn("assistant", "Hello.") + turn("user", "My knee."), "completion": turn("assistant", "Rest.")}
    with pytest.raises(MedComfortError, match=r"row 3: 'My knee.*cannot render it \(Roles must alternate\)") as raised:
        data.prepare("sft", [ROW, ROW, odd], str(tmp_path / "base"), changed())
    assert "\n" not in str(raised.value)


def test_an_end_that_the_model_does_not_know_is_named(tmp_path):
    base = family("Gemma 2", tmp_path / "base")
    (tmp_path / "base/generation_config.json").write_text('{"eos_token_id": 3}')
    with pytest.raises(
        MedComfortError, match="closes an answer with '<end_of_turn>.n', .* ends of turn are .*eos_token_id"
    ):
        data.prepare("sft", [ROW], base, changed())


def config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def beyond_embedding(folder):
    weights = load_file(folder / "model.safetensors")
    save_file(
        {n: t[:100].clone() if len(t) > 256 else t for n, t in weights.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    config(folder, vocab_size=100)


def index(folder):
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../secret.safetensors"}}')


def half(folder):
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:999])


def fifo(folder):
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")


def template(text):
    return lambda folder: (folder / "chat_template.jinja").write_text(text)


LOOP = (
    "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}"
)
HOSTILE = {
    "layers": (lambda f: config(f, num_hidden_layers=10_000_000), "names 10000000 layers and holds"),
    "bitsandbytes": (lambda f: config(f, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
                     r"are quantised \(bitsandbytes\).* take the model that it was made from"),
    "GPTQ": (lambda f: config(f, quantization_config={"quant_method": "gptq", "bits": 4}), r"quantised \(gptq\)"),
    "short context": (lambda f: config(f, max_position_embeddings=64), "max_length: the model reads 64 tokens, not 96"),
    "embedding": (beyond_embedding, r"gives token \d+ \('.*'\), but the model knows 100 tokens only"),
    "index": (index, "points outside of it"),
    "FIFO": (fifo, "model.safetensors in .* is no regular file"),
    "deep": (lambda f: (f / "config.json").write_text("[" * 99_999), "cannot be loaded"),
    "loop": (template(LOOP), "takes more than 0.5 s"),
    "range": (template("{% for a in range(10**9) %}{% endfor %}"), "cannot render it"),
    "raise": (template("{{ raise_exception('no such role') }}"), r"cannot render it \(no such role\)"),
    "include": (template("{% include '/etc/passwd' %}"), "cannot render it"),
    "syntax": (template("{{ messages }"), "cannot render it"),
    "weights": (half, "cannot be loaded"),
    "no config": (lambda f: (f / "config.json").write_text('{"model_type": "t5"}'), "cannot be loaded"),
    "tokenizer": (lambda f: (f / "tokenizer.json").write_text("{"), "tokenizer of .* cannot be read; copy or download"),
    "no template": (lambda f: (f / "chat_template.jinja").unlink(), "has no chat template"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_model_folder_that_is_damaged_or_hostile_is_one_sentence(tiny, rewrites, tmp_path, monkeypatch, kind):
    spoil, told = HOSTILE[kind]
    monkeypatch.setattr(chat, "SECONDS", 0.5)
    shutil.copytree(tiny, tmp_path / "base")
    spoil(tmp_path / "base")
    with pytest.raises(MedComfortError, match=told) as raised:
        fit("sft", "lora", rewrites, str(tmp_path / "base"), tmp_path / "model")
    assert "\n" not in str(raised.value) and not (tmp_path / "model").exists()


def test_positions_are_learnt_and_limited_in_gpt2(tmp_path, rewrites):
    base = family("SmolLM2", tmp_path / "base")
    tokenizer = hf.AutoTokenizer.from_pretrained(base)
    small = hf.GPT2Config(
        vocab_size=len(tokenizer), n_embd=8, n_layer=1, n_head=1, n_positions=64, eos_token_id=tokenizer.eos_token_id
    )
    hf.GPT2LMHeadModel(small).save_pretrained(base)
    with pytest.raises(MedComfortError, match="the model reads 64 tokens, not 96; lower it"):
        data.prepare("sft", [ROW], base, changed())
    trainers.train(
        data.prepare("sft", [ROW], base, changed(max_length=0, lora_rank=2, max_steps=1)), base, tmp_path / "model"
    )
