"""Models that users bring: real architectures with tiny random weights and templates of their published shape, and
folders that would mislead, or hang, what loads them."""

import os
import shutil

import pytest
import torch
import transformers as hf
from conftest import turn
from finetuning import changed, fit
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from medcomfort_utils.finetune import chat, data, engine, trainers
from medcomfort_utils.paths import MedComfortError, read_json, write_json

TURN = "{{% for m in messages %}}{body}{{% endfor %}}{{% if add_generation_prompt %}}{ask}{{% endif %}}"
SAID, ASK = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n", "<|im_start|>assistant\n"
THOUGHT = "<think>\n\n</think>\n\n{% endif %}"
CHATML, OPENING = TURN.format(body=SAID, ask=ASK), TURN.format(body=SAID, ask=ASK + "<think>\n")
THINKING = TURN.format(
    body=SAID.replace("{{ m.content", "{% if loop.last and m.role == 'assistant' %}" + THOUGHT + "{{ m.content"),
    ask=ASK + "{% if not enable_thinking | default(true) %}" + THOUGHT,
)
ALTERNATING = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}"
)
GEMMA = ALTERNATING + (
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = ALTERNATING + (
    "{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]{% else %} {{ m.content }}{{ eos_token }}{% endif %}"
    "{% endfor %}"
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
    """A tiny model of the family, saved in a folder; returns its path."""
    kind, template, end, ends, _ = FAMILIES[name]
    letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    bytes_ = Tokenizer(models.BPE(letters, []))
    bytes_.pre_tokenizer, bytes_.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    bytes_.add_special_tokens(SPECIAL)
    given = {"bos_token": "<s>", "eos_token": end, "pad_token": "<pad>", "chat_template": template}
    tokenizer = hf.PreTrainedTokenizerFast(tokenizer_object=bytes_, **given)
    ids = {f"{part}_token_id": getattr(tokenizer, f"{part}_token_id") for part in ("pad", "bos", "eos")}
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
    hyper = changed(learning_rate=1e-2, max_steps=40, save_steps=40, max_length=0)
    made = data.prepare("sft", [ROW, ROW], base, hyper)
    assert made.tokenizer.decode(made.answers[0][0]) == told
    asked = made.tokenizer.decode(made.prompts[0])
    assert "Be kind." in asked and not asked.endswith("<think>\n")
    assert asked == chat.prompt(made.tokenizer, ROW["prompt"])
    trainers.train(made, base, tmp_path / "model")
    model, tokenizer = engine.load(str(tmp_path / "model"))
    ids = torch.tensor([made.prompts[0]])
    reply = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :].tolist()
    assert reply[-1] in engine.ends_of_turn(str(tmp_path / "model"), tokenizer)
    assert tokenizer.decode(reply, skip_special_tokens=True).strip() == "Rest."


@pytest.mark.parametrize(("name", "layers"), [("Phi-3", "down gate_up o qkv"), ("Llama 3", "down gate k o q up v")])
def test_an_adapter_is_put_on_all_linear_layers(tmp_path, name, layers):
    base = family(name, tmp_path / "base")
    trainers.train(data.prepare("sft", [ROW], base, changed(max_steps=1, lora_rank=2)), base, tmp_path / "model")
    found = read_json(tmp_path / "model/adapter/adapter_config.json", "")["target_modules"]
    assert {name.rpartition(".")[2] for name in found} == {f"{layer}_proj" for layer in layers.split()}


def test_turns_that_a_template_cannot_take_are_folded_or_named(tmp_path):
    base = family("Gemma 2", tmp_path / "base")
    talk = turn("system", "Be kind.") + turn("user", "One.") + turn("user", "Two.")
    assert "user\nBe kind.\n\nOne.\n\nTwo.<end_of_turn>" in chat.prompt(engine.load_tokenizer(base), talk)
    odd = {"prompt": turn("assistant", "Hello.") + turn("user", "My knee."), "completion": turn("assistant", "Rest.")}
    with pytest.raises(MedComfortError, match=r"row 3: 'My knee.*cannot render the turns \(Roles must alternate\)"):
        data.prepare("sft", [ROW, ROW, odd], base, changed())
    (tmp_path / "base/generation_config.json").write_text('{"eos_token_id": 3}')
    with pytest.raises(MedComfortError, match="close with '<end_of_turn>.n', .* ends of turn are .*eos_token_id"):
        data.prepare("sft", [ROW], base, changed())


def written(name, text):
    return lambda folder: (folder / name).write_text(text)


def config(**changes):
    return lambda f: write_json(f / "config.json", read_json(f / "config.json", "") | changes)


def fifo(folder):
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")


HOSTILE = {
    "quantised": (config(quantization_config={"quant_method": "gptq", "bits": 4}), "are quantised; take the model"),
    "short context": (config(max_position_embeddings=64), "max_length: the model reads 64 tokens, not 96"),
    "embedding": (config(vocab_size=100), r"hold token \d+, and the model knows 100 tokens only"),
    "index": (written("model.safetensors.index.json", '{"weight_map": {"a": "../a.safetensors"}}'), "points outside"),
    "FIFO": (fifo, "model.safetensors in .* is no regular file"),
    "pickle": (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "holds no .safetensors weights"),
    "raise": (written("chat_template.jinja", "{% include '/etc/passwd' %}"), "cannot render the turns"),
    "weights": (written("model.safetensors", "half of it"), "cannot be loaded"),
    "tokenizer": (written("tokenizer.json", "{"), "the tokenizer of .* cannot be loaded"),
    "no template": (lambda f: (f / "chat_template.jinja").unlink(), "has no chat template"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_model_folder_that_is_damaged_or_hostile_is_one_sentence(tiny, rewrites, tmp_path, kind):
    spoil, told = HOSTILE[kind]
    shutil.copytree(tiny, tmp_path / "base")
    spoil(tmp_path / "base")
    with pytest.raises(MedComfortError, match=told) as raised:
        fit("sft", "lora", rewrites, str(tmp_path / "base"), tmp_path / "model")
    assert "\n" not in str(raised.value) and not (tmp_path / "model").exists()


@pytest.mark.parametrize("model", ["data/nano_bse", "./nano", "/no/nano", "a/b/c", "data", "hub name", ""])
def test_a_mistyped_path_is_not_asked_of_the_hub(model):
    with pytest.raises(MedComfortError, match="is no model folder"):
        engine.source_of(model)
    assert engine.source_of("Qwen/Qwen2.5-0.5B-Instruct") == "Qwen/Qwen2.5-0.5B-Instruct"
