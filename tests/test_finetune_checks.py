"""What is made sure of before a training starts: what is asked for in vain is told, with the examples at fault."""

import pytest
import torch
from conftest import turn
from finetuning import EACH, HYPER, fit, notes, rows_of
from peft import PeftModel
from transformers import AutoTokenizer
from trl.trainer import kto_trainer

from medcomfort_utils.finetune import checks, engine, examples, hyperparameters, trainers
from medcomfort_utils.paths import MedComfortError


@pytest.fixture(scope="module")
def tokenizer(tiny):
    return engine.load_tokenizer(tiny)


def changed(**values):
    return HYPER.model_copy(update=values)


def row(answer, other=None, label=None, question="I have a cough."):
    made = {"prompt": turn("user", question)}
    if other is not None:
        return made | {"chosen": turn("assistant", answer), "rejected": turn("assistant", other)}
    return made | {"completion": turn("assistant", answer)} | ({} if label is None else {"label": label})


def test_rows_that_are_sound_are_left_as_they_are(tokenizer, rewrites):
    rows = rows_of("dpo", rewrites)
    assert checks.ready("dpo", rows, tokenizer, HYPER) == (rows, HYPER)


@pytest.mark.parametrize("answer", ["  ", "<|end|>", "\n<|pad|>"])
def test_an_answer_without_a_loss_is_refused(tokenizer, rewrites, answer):
    rows = [*rows_of("sft", rewrites), row(answer, question="My back hurts.")]
    with pytest.raises(
        MedComfortError, match=rf"All labels are masked in 1 of {len(rows)} examples \(row {len(rows)}: 'My"
    ):
        checks.ready("sft", rows, tokenizer, HYPER)


def test_a_template_that_swallows_the_answer_is_refused(tokenizer, rewrites):
    broken = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    broken.chat_template = tokenizer.chat_template.replace("{{ message.content }}<|end|>{% endg", "<|end|>{% endg")
    assert broken.chat_template != tokenizer.chat_template
    rows = rows_of("dpo", rewrites)
    with pytest.raises(MedComfortError, match=f"All labels are masked in {len(rows)} of {len(rows)} examples"):
        checks.ready("dpo", rows, broken, HYPER)


@EACH
def test_the_trainers_own_tensors_are_looked_at(tiny, rewrites, tmp_path, method):
    model, tokenizer = engine.load(tiny)
    config = hyperparameters.arguments(method, HYPER, 0, tmp_path)
    trainer = trainers.build(method, model, tokenizer, rows_of(method, rewrites), config, engine.adapter(4, 8))
    # as if every answer had been cut away
    trainer.data_collator.max_length = 3
    if method == "sft":
        trainer.train_dataset = trainer.train_dataset.map(lambda row: {"labels": [-100] * len(row["labels"])})
    with pytest.raises(MedComfortError, match="All labels of an example are masked"):
        checks.labels(method, trainer)


@EACH
def test_an_end_that_is_taken_for_padding_is_refused(tiny, rewrites, tmp_path, method):
    model, tokenizer = engine.load(tiny)
    config = hyperparameters.arguments(method, HYPER, 0, tmp_path)
    trainer = trainers.build(method, model, tokenizer, rows_of(method, rewrites), config, engine.adapter(4, 8))
    collate = trainer.data_collator

    def without_ends(rows):
        batch, key = collate(rows), "labels" if method == "sft" else "completion_mask"
        batch[key][batch["input_ids"] == tokenizer.eos_token_id] = -100 if method == "sft" else 0
        return batch

    trainer.data_collator = without_ends
    with pytest.raises(MedComfortError, match="end token carries no loss"):
        checks.labels(method, trainer)


GIVEN = {"seeds": [0, 1], "name": "", "base": "data/nano_base", "init_from": "m/sft-seed{seed}", "push_to_hub": ""}
WRONG = [
    ({"seeds": []}, "^seeds must be different whole numbers"),
    ({"seeds": [0, 0]}, "^seeds must be"),
    ({"seeds": [True, 2]}, "^seeds must be"),
    ({"seeds": ["0"]}, "^seeds must be"),
    ({"seeds": [-1]}, "^seeds must be"),
    ({"seeds": [2**32]}, "^seeds must be"),
    ({"name": "../sft"}, "^name: '../sft' names a folder"),
    ({"base": "models/{name}"}, r"^base: only \{seed\} can stand in braces"),
    ({"init_from": "models/{}"}, "^init_from: only"),
    ({"push_to_hub": "me/sft-{seed"}, "^push_to_hub: only"),
    ({"push_to_hub": "me/sft"}, "^push_to_hub: 'me/sft' is one repository for all seeds"),
    ({"push_to_hub": "me/a/{seed}"}, "^push_to_hub: 'me/a/{seed}' is no repository's name"),
]


@pytest.mark.parametrize(("wrong", "told"), WRONG)
def test_parameters_that_cannot_work_are_told_before_anything_is_loaded(monkeypatch, wrong, told):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    checks.parameters(GIVEN | {"push_to_hub": "me/sft-{seed}"})
    with pytest.raises(MedComfortError, match=told) as raised:
        checks.parameters(GIVEN | wrong)
    assert "\n" not in str(raised.value)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(MedComfortError, match="^push_to_hub: set HF_TOKEN in the environment"):
        checks.parameters(GIVEN | {"push_to_hub": "me/sft-{seed}"})


def test_an_answer_preferred_to_itself_is_refused(tokenizer, rewrites):
    rows = [*rows_of("dpo", rewrites), row("Rest.", "Rest."), row("Rest.", "Walk.")]
    with pytest.raises(
        MedComfortError, match=rf"^1 of {len(rows)} examples prefer .* \(row {len(rows) - 1}: 'I have a c"
    ):
        checks.ready("dpo", rows, tokenizer, HYPER)


def test_answers_that_differ_in_what_the_template_cuts_off_are_the_same(tokenizer, rewrites):
    trimming = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    trimming.chat_template = tokenizer.chat_template.replace("message.content", "message.content.strip()")
    rows = [*rows_of("dpo", rewrites), row("Rest.", "Rest. ")]
    checks.ready("dpo", rows, tokenizer, HYPER)
    with pytest.raises(MedComfortError, match=f"^1 of {len(rows)} examples prefer an answer to itself"):
        checks.ready("dpo", rows, trimming, HYPER)
    rows = [row("Tea.", label=True), row(" Tea.", label=False)]
    with pytest.raises(MedComfortError, match="^2 of 2 examples prefer an answer to itself"):
        checks.ready("kto", rows, trimming, HYPER)


def test_an_answer_both_desirable_and_not_is_refused(tokenizer, rewrites):
    rows = [*rows_of("kto", rewrites), row("Tea.", label=True), row("Tea.", label=False), row("Tea.", label=True)]
    with pytest.raises(MedComfortError, match=f"^3 of {len(rows)} examples prefer an answer to itself"):
        checks.ready("kto", rows, tokenizer, HYPER)
    repeated = [*rows_of("kto", rewrites), row("Tea.", label=True), row("Tea.", label=True)]
    checks.ready("kto", repeated, tokenizer, HYPER)


def test_too_many_long_examples_are_refused_and_few_are_left_out(tokenizer):
    rows = [row(f"Rest {n}.", question="Why?") for n in range(199)] + [row("Walk. " * 40, question="My knee aches.")]
    kept, _ = checks.ready("sft", rows, tokenizer, changed(max_length=64))  # half a per cent
    assert kept == rows[:199]
    rows += [row("Run. " * 50)] * 2
    told = r"^max_length: 3 of 202 examples are longer than 64 tokens, the longest \d+ \(row 200: 'My knee .*; row 202"
    with pytest.raises(MedComfortError, match=told):
        checks.ready("sft", rows, tokenizer, changed(max_length=64))
    kept, _ = checks.ready("sft", rows, tokenizer, changed(max_length=64, too_long=0.02))
    assert kept == rows[:199]


@EACH
def test_the_length_is_planned_from_the_data(tokenizer, rewrites, method):
    rows = rows_of(method, rewrites) if method != "sft" else [row("Rest. " * 60)]
    longest = examples.token_lengths(rows, tokenizer).max()
    kept, hyper = checks.ready(method, rows, tokenizer, changed(max_length=0))
    assert hyper.max_length % 64 == 0 and 0 <= hyper.max_length - longest < 64 and kept == rows


def test_a_length_beyond_the_models_context(tokenizer):
    with pytest.raises(MedComfortError, match=r"max_length: the model reads 512 tokens, not 513; lower it"):
        checks.ready("sft", [row("Rest.")], tokenizer, changed(max_length=513))
    rows = [row("Rest. " * 300)] + [row("Rest.")] * 9
    with pytest.raises(MedComfortError, match="max_length: 1 of 10 examples are longer than 512 tokens"):
        checks.ready("sft", rows, tokenizer, changed(max_length=0))


@pytest.mark.parametrize(("label", "kind"), [(True, "desirable"), (False, "undesirable")])
def test_kto_with_one_class_is_refused(tokenizer, label, kind):
    rows = [row(f"Rest {n}.", label=label) for n in range(4)]
    with pytest.raises(MedComfortError, match=f"KTO needs desirable and undesirable answers; all 4 here are {kind}"):
        checks.ready("kto", rows, tokenizer, HYPER)


def test_kto_with_batches_of_one_is_refused(tiny, tokenizer, rewrites, tmp_path):
    with pytest.raises(MedComfortError, match="batch_size: KTO needs at least 2 examples a batch, not 1"):
        fit("kto", "lora", rewrites, tiny, tmp_path / "kto", hyper=changed(batch_size=1))
    assert not list(tmp_path.iterdir())
    rows = [row(f"Rest {n}.", label=n > 3) for n in range(7)]
    kept, _ = checks.ready("kto", rows, tokenizer, changed(batch_size=3))
    assert kept == rows[:6]  # a last batch of one would be its own mismatched example


def test_the_row_left_out_is_not_the_last_of_its_class(tokenizer):
    rows = [row(f"Rest {n}.", label=n < 3) for n in range(4)]
    with pytest.raises(MedComfortError, match="KTO needs desirable and undesirable answers; all 3 here are desirable"):
        checks.ready("kto", rows, tokenizer, changed(batch_size=3, desirable_weight=0))


@pytest.mark.parametrize(("wanted", "weight", "told"), [(9, 1, True), (1, 1, True), (4, 1, False), (9, 1 / 9, False)])
def test_ktos_classes_out_of_balance_are_told(capsys, wanted, weight, told):
    rows = [row(f"Rest {n}.", label=n < wanted) for n in range(10)]
    checks.tell_balance("kto", rows, changed(desirable_weight=weight))
    checks.tell_balance("sft", rows, HYPER)
    said = capsys.readouterr().out
    assert said.startswith(f"KTO is out of balance: {wanted} desirable") if told else not said


COUNTS = [(300, 100), (100, 300), (7, 6), (1, 999), (100, 100)]


@pytest.mark.parametrize("given", [(0, 0), (0, 1), (1, 0), (0, 2.5), (0.3, 0)])
@pytest.mark.parametrize(("wanted", "unwanted"), COUNTS)
def test_a_weight_of_zero_balances_ktos_classes(wanted, unwanted, given, tmp_path, monkeypatch):
    rows = [row("Rest.", label=n < wanted) for n in range(wanted + unwanted)]
    hyper = checks.kto_weights(rows, changed(desirable_weight=given[0], undesirable_weight=given[1]))
    ratio = hyper.desirable_weight * wanted / (hyper.undesirable_weight * unwanted)
    assert 1 <= ratio <= 4 / 3
    for weight, before in zip((hyper.desirable_weight, hyper.undesirable_weight), given, strict=True):
        assert weight == before if before else weight > 0


def test_weights_that_are_given_or_need_no_change_are_kept():
    rows = [row("Rest.", label=n < 6) for n in range(11)]  # 6 to 5: 1.2
    for weights in ((0, 0), (0, 1), (1, 0)):
        hyper = checks.kto_weights(rows, changed(desirable_weight=weights[0], undesirable_weight=weights[1]))
        assert (hyper.desirable_weight, hyper.undesirable_weight) == (1, 1)
    odd = changed(desirable_weight=5.0, undesirable_weight=0.2)
    assert checks.kto_weights(rows, odd) == odd


def test_trl_agrees_with_the_computed_weights(tiny, rewrites, tmp_path, monkeypatch):
    rows, warned = rows_of("kto", rewrites), []
    tokenizer = engine.load_tokenizer(tiny)
    monkeypatch.setattr(kto_trainer.logger, "warning", lambda told, *_, **__: warned.append(told))
    for weight in (1.0, 0.0):
        _, hyper = checks.ready("kto", rows, tokenizer, changed(desirable_weight=weight))
        config = hyperparameters.arguments("kto", hyper, 0, tmp_path)
        trainers.build("kto", engine.load(tiny)[0], tokenizer, rows, config, engine.adapter(4, 8))
        assert len(warned) == 1 and "different amounts of desirable" in warned[0]  # at weight 1 only


def test_the_weights_used_are_written_down(tiny, rewrites, tmp_path):
    fit("kto", "lora", rewrites, tiny, tmp_path / "kto", hyper=changed(desirable_weight=0, max_length=0, max_steps=1))
    rows, written = rows_of("kto", rewrites), notes(tmp_path / "kto")
    share = sum(r["label"] for r in rows) / sum(not r["label"] for r in rows)
    assert written["desirable_weight"] == pytest.approx(7 / 6 / share) and written["max_length"] == 64


class BuiltError(Exception):
    """Ends a training where its trainer is whole."""


def references(monkeypatch, *given, **options):
    """(trainer, models loaded) of a training that is stopped before its first step."""
    built, loaded, load = [], [], engine.load

    def caught(*parts):
        built.append(BUILD(*parts))
        raise BuiltError

    monkeypatch.setattr(trainers, "build", caught)
    monkeypatch.setattr(engine, "load", lambda *a, **k: (loaded.append(a), load(*a, **k))[1])
    with pytest.raises(BuiltError):
        fit(*given, **options)
    return built[0], len(loaded)


BUILD = trainers.build


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_with_an_adapter_the_reference_is_the_model_with_the_adapter_off(tiny, rewrites, tmp_path, monkeypatch, method):
    hyper = changed(max_steps=2)
    trainer, loaded = references(monkeypatch, method, "lora", rewrites, tiny, tmp_path / "out", hyper=hyper)
    assert loaded == 1 and trainer.ref_model is None and isinstance(trainer.model, PeftModel)
    assert set(trainer.model.peft_config) == {"default"} and not trainer.args.precompute_ref_log_probs


@pytest.mark.parametrize("method", ["dpo", "kto"])
@pytest.mark.parametrize(("steps", "copies"), [(2, 1), (9, 0)])
def test_full_training_keeps_a_frozen_copy_only_where_rows_are_seen_once(
    tiny, rewrites, tmp_path, monkeypatch, method, steps, copies
):
    hyper = changed(max_steps=steps)
    trainer, loaded = references(monkeypatch, method, "full", rewrites, tiny, tmp_path / "out", hyper=hyper)
    assert loaded == 1 + copies and (trainer.ref_model is not None) == bool(copies)
    assert trainer.args.precompute_ref_log_probs == (not copies)


@pytest.mark.parametrize("method", ["dpo", "kto"])
@pytest.mark.parametrize("way", ["lora", "full"])
def test_a_precomputed_reference_gives_the_same_loss(tiny, rewrites, tmp_path, method, way):
    rows, losses = rows_of(method, rewrites), []
    for precompute in (False, True):
        torch.manual_seed(0)
        (model, tokenizer), lora = engine.load(tiny), engine.adapter(4, 8) if way == "lora" else None
        reference = engine.load(tiny)[0].eval() if not (lora or precompute) else None
        config = hyperparameters.arguments(method, changed(max_steps=3), 0, tmp_path, precompute=precompute)
        trainer = trainers.build(method, model, tokenizer, rows, config, lora, reference)
        trainer.train()
        losses.append(trainers.history(trainer).query("metric == 'loss'")["value"].tolist())
    assert losses[0] == pytest.approx(losses[1], abs=1e-4) and losses[0][0] != losses[0][-1]


def gpu(monkeypatch, bf16):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda emulated=True: bf16)


def test_a_dtype_that_cannot_be_trained_here_is_told(tmp_path, monkeypatch):
    with pytest.raises(MedComfortError, match="dtype: float16 is trained on a GPU only"):
        hyperparameters.arguments("sft", changed(dtype="float16"), 0, tmp_path)
    gpu(monkeypatch, bf16=False)
    with pytest.raises(MedComfortError, match="dtype: this GPU has no bfloat16 .* take float16"):
        hyperparameters.arguments("sft", changed(dtype="bfloat16"), 0, tmp_path)
    with pytest.raises(MedComfortError, match="dtype: float16 trains an adapter only; set lora_rank"):
        hyperparameters.arguments("sft", changed(dtype="float16"), 0, tmp_path)


def test_a_tracker_that_is_not_there_is_told(tmp_path):
    with pytest.raises(MedComfortError, match="report_to: mytracker is not installed or not known; there are: none"):
        hyperparameters.arguments("sft", HYPER, 0, tmp_path, report_to="mytracker")
