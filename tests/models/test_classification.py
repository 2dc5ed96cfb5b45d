"""Classifiers: padding, teaching and taking back exactly, new labels, persistence, pipelines, the Trainer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    pipeline,
)

from modeling_lle import HistoryBank, LLEConfig, LLEForCausalLM, LLEForSequenceClassification
from modeling_lle.bank.files import BankError
from tests.factories.classifiers import make_classifier, make_taught_classifier
from tests.factories.texts import VOCAB, WORD_TOKENIZER, encode_texts, make_ids, make_texts

POOLINGS = [["last"], ["mean"], ["max"], ["attention"], ["mean", "max"]]


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("pooling", POOLINGS, ids="+".join)
@pytest.mark.parametrize("recurrence", ["lstm", "gru", "qrnn"])
def test_a_padded_batch_gives_what_its_texts_give_alone(
    bidirectional: bool, pooling: list[str], recurrence: str
) -> None:
    model = make_classifier(bidirectional=bidirectional, classifier={"pooling": pooling}, recurrence=recurrence)
    ids, mask = make_ids(3, 6), torch.ones(3, 6, dtype=torch.long)
    mask[0, :2] = mask[1, 4:] = mask[2, [1, 3]] = 0
    together = model(ids, attention_mask=mask).logits
    for row in range(3):
        alone = model(ids[row, mask[row].bool()][None]).logits
        torch.testing.assert_close(together[row : row + 1], alone)


def test_each_direction_sees_its_side() -> None:
    model = make_classifier().model
    ids = make_ids(1, 6)
    first, last = ids.clone(), ids.clone()
    first[0, 0] = (first[0, 0] + 1) % VOCAB
    last[0, -1] = (last[0, -1] + 1) % VOCAB
    states, of_first, of_last = (model(x).last_hidden_state for x in (ids, first, last))
    assert torch.equal(states[0, :-1, :6], of_last[0, :-1, :6])  # forwards: nothing of what comes later
    assert torch.equal(states[0, 1:, 6:], of_first[0, 1:, 6:])  # backwards: nothing of what came before
    assert not torch.equal(states[0, -1, :6], of_first[0, -1, :6])
    assert not torch.equal(states[0, 0, 6:], of_last[0, 0, 6:])


def test_language_models_read_one_way() -> None:
    with pytest.raises(ValueError, match="bidirectional=False"):
        LLEForCausalLM(LLEConfig(bidirectional=True))


def member(model: Any, number: int) -> Any:
    """A member of an ensemble as a classifier of its own."""
    config = LLEConfig(**{**model.config.to_dict(), "architectures": None})
    config.classifier.members = 1
    alone, (M, D) = type(model)(config), (model.config.classifier.members, model.config.hidden_size)
    weights = {}
    for name, value in model.state_dict().items():
        if "stack." in name:
            kind, stack, _, place, rest = name.split(".", 4)
            if int(place) == number:
                weights[f"{kind}.{stack}.{rest}"] = value
        elif value.shape[-1] % (M * D) == 0:
            weights[name] = value.unflatten(-1, (-1, M, D))[..., number, :].flatten(-2)
        else:
            weights[name] = value
    alone.load_state_dict(weights)
    return alone.train(model.training)


@pytest.mark.parametrize("of_tokens", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("recurrence", ["lstm", "qrnn"])
def test_an_ensemble_says_the_mean_of_what_its_members_say(
    recurrence: str, bidirectional: bool, of_tokens: bool
) -> None:
    pooling = ["attention", "max", "last"]
    model = make_classifier(
        classifier={"members": 3, "pooling": pooling},
        recurrence=recurrence,
        bidirectional=bidirectional,
        of_tokens=of_tokens,
        labels=7,
    )
    ids, mask = make_ids(3, 6), torch.ones(3, 6, dtype=torch.long)
    mask[0, :2] = mask[1, 4:] = 0
    each = torch.stack([member(model, number)(ids, attention_mask=mask).logits for number in range(3)])
    output = model(ids, attention_mask=mask)
    torch.testing.assert_close(output.logits, each.mean(0))
    assert output.member_logits is None
    assert model.encode(ids).shape[-1] == 3 * 6 * (1 + bidirectional) * (1 if of_tokens else 3)
    output = model.train()(ids, attention_mask=mask)
    torch.testing.assert_close(output.logits, each.mean(0))
    torch.testing.assert_close(output.member_logits, each)


@pytest.mark.parametrize(
    ("problem_type", "labels"),
    [
        ("single_label_classification", torch.tensor([2, 0])),
        ("multi_label_classification", torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])),
        ("regression", torch.tensor([0.5, -2.0])),
    ],
)
def test_each_member_of_an_ensemble_learns_on_its_own(problem_type: str, labels: torch.Tensor) -> None:
    count = 1 if problem_type == "regression" else 3
    model = make_classifier(
        count, problem_type=problem_type, classifier={"members": 2, "pooling": ["mean", "attention"]}
    ).train()
    batch = encode_texts("a b c", "d")
    output = model(**batch, labels=labels)
    alone = [member(model, number) for number in range(2)]
    losses = [one(**batch, labels=labels).loss for one in alone]
    torch.testing.assert_close(output.loss, torch.stack(losses).mean())
    output.loss.backward()
    for number, loss in enumerate(losses):
        loss.backward()
        own = model.model.stack.members[number].layers[0].mixer.from_input.weight.grad
        torch.testing.assert_close(own, alone[number].model.stack.layers[0].mixer.from_input.weight.grad / 2)
        table = model.model.embed_tokens.weight.grad[:, 6 * number : 6 * number + 6]
        torch.testing.assert_close(table, alone[number].model.embed_tokens.weight.grad / 2)
    model.zero_grad()
    first = model(**batch).member_logits[0].square().sum()
    first.backward()
    assert model.model.embed_tokens.weight.grad[:, :6].any()
    assert not model.model.embed_tokens.weight.grad[:, 6:].any()
    assert not any(weight.grad.any() for weight in model.model.stack.members[1].parameters())
    assert not any(weight.grad.any() for weight in model.model.backward_stack.members[1].parameters())


def test_a_step_changes_a_member_as_it_would_change_it_alone() -> None:
    model, batch, labels = (
        make_classifier(classifier={"members": 2}).train(),
        encode_texts("a b c", "d", "e f"),
        torch.tensor([2, 0, 1]),
    )
    alone = [member(model, number) for number in range(2)]
    for one in (model, *alone):
        optimizer = torch.optim.AdamW(one.parameters(), lr=0.01, eps=1e-30)
        one(**batch, labels=labels).loss.backward()
        optimizer.step()
    for number, one in enumerate(alone):
        after = member(model, number).state_dict()
        for name, value in one.state_dict().items():
            if name != "classifier.bias":  # the only weight that they share
                torch.testing.assert_close(after[name], value, msg=name)


def test_members_are_dropped_apart() -> None:
    model = make_classifier(classifier={"members": 2}, token_dropout=0.5, embedding_dropout=0.3).model.train()
    kept = []
    for member in model.stack.members:
        member.layers[0].register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0].any(-1)))
    model(make_ids(8, 30))
    assert all(0.2 < one.float().mean() < 0.5 for one in kept)
    assert (kept[0] != kept[1]).any()


def test_an_ensemble_is_taught_saved_and_loaded(tmp_path: Path) -> None:
    model, texts, _ = make_taught_classifier(classifier={"members": 2})
    model.learn(["h h h h"], ["new"], new_labels=True)
    due = model(**encode_texts(*texts)).logits
    model.save_pretrained(tmp_path, save_history=True)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.config.classifier.members == 2
    loaded.attach_history(HistoryBank.from_pretrained(tmp_path), tokenizer=WORD_TOKENIZER)
    assert torch.equal(loaded(**encode_texts(*texts)).logits, due)
    with pytest.raises(ValueError, match=r"do not fit its config\.json"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path, classifier={"members": 1})


def test_language_models_have_one_member() -> None:
    with pytest.raises(ValueError, match=r"LLEForCausalLM does not read classifier\.members=2"):
        LLEForCausalLM(LLEConfig(classifier={"members": 2}))


def test_an_ensemble_of_language_backbones_goes_on_from_its_state() -> None:
    model, ids = (
        make_classifier(classifier={"members": 2}, bidirectional=False, num_hidden_layers=2).model,
        make_ids(2, 8),
    )
    whole = model(ids).last_hidden_state
    first = model(ids[:, :5], use_cache=True)
    second = model(ids[:, 5:], past_key_values=first.past_key_values)
    torch.testing.assert_close(torch.cat([first.last_hidden_state, second.last_hidden_state], 1), whole)


def test_text_that_is_only_padding_is_refused() -> None:
    with pytest.raises(ValueError, match="row 1 of the batch holds only padding"):
        make_classifier()(make_ids(2, 3), attention_mask=torch.tensor([[1, 1, 1], [0, 0, 0]]))


def test_logits_are_the_mixture_and_sum_to_one() -> None:
    model, texts, _ = make_taught_classifier()
    output = model(**encode_texts(*texts[:4]), output_history=True)
    torch.testing.assert_close(output.logits.exp().sum(-1), torch.ones(4))
    torch.testing.assert_close(output.history.base_share + output.history.bank_shares.sum(-1), torch.ones(4))
    plain = model(**encode_texts(*texts[:4]), use_history=False).logits
    assert not torch.allclose(output.logits.softmax(-1), plain.softmax(-1))


def test_training_mode_does_not_recall() -> None:
    model, texts, _ = make_taught_classifier()
    plain = model(**encode_texts(texts[0]), use_history=False).logits
    assert torch.equal(model.train()(**encode_texts(texts[0])).logits, plain)


def test_a_new_label_comes_and_goes_with_its_examples() -> None:
    model, texts, _ = make_taught_classifier()
    before, config = model(**encode_texts(*texts)).logits, model.config.to_dict()
    classify = pipeline("text-classification", model=model, tokenizer=WORD_TOKENIZER)
    with pytest.raises(ValueError, match=r"'lable-1' of text 0.*did you mean 'label-1'.*new_labels=True"):
        model.learn(["h h h h"], ["lable-1"])
    assert model.learn(["h h h h", "g g g g"], ["new", "newer"], new_labels=True) == 2
    assert model.label_names() == ("label-0", "label-1", "label-2", "new", "newer")
    assert classify("h h h h")[0]["label"] == "new"
    output = model(**encode_texts("h h"))
    assert output.logits.shape == (1, 5)
    assert output.label_names == model.label_names()
    assert model(**encode_texts("h h"), use_history=False).label_names == model.trained_labels
    torch.testing.assert_close(model(**encode_texts("h h", "a g")).logits.exp().sum(-1), torch.ones(2))
    assert model.forget(label="newer") == 1
    assert model.label_names() == ("label-0", "label-1", "label-2", "new")
    assert model.forget(["h h h h"]) == 1
    assert model.label_names() == model.trained_labels
    assert model.config.to_dict() == config
    assert torch.equal(model(**encode_texts(*texts)).logits, before)


def test_forgetting_everything_gives_the_base_back() -> None:
    model, texts, _ = make_taught_classifier()
    plain = model(**encode_texts(*texts), use_history=False).logits
    assert model.forget(source="taught-1") == len(texts)
    assert torch.equal(model(**encode_texts(*texts)).logits, plain)


def test_relabelling_is_one_change() -> None:
    model, texts, labels = make_taught_classifier()
    other = "label-0" if labels[0] != "label-0" else "label-1"
    with pytest.raises(ValueError, match="relabel=True"):
        model.learn(texts[:1], [other])
    generation = model.history_bank.manifest.generation
    assert model.learn(texts[:1], [other], relabel=True) == 1
    assert model.history_bank.manifest.generation == generation + 1
    assert len(model.history_bank) == len(texts)
    found = pipeline("text-classification", model=model, tokenizer=WORD_TOKENIZER)(texts[0], return_history=True)[0]
    assert found["history"][0]["causes"][0]["columns"] == {"text": texts[0], "label": other}


def test_teaching_twice_adds_nothing() -> None:
    model, texts, labels = make_taught_classifier()
    assert model.learn(texts, labels) == 0
    assert model.learn([texts[0], "h h h", "h h h"], [labels[0], "label-1", "label-1"]) == 1


@pytest.mark.parametrize(
    ("texts", "labels", "message"),
    [
        (["a", " "], ["label-0", "label-0"], "text 1 is ' '"),
        (["a", 3], ["label-0", "label-0"], "text 1 is 3"),
        (["a"], [1], "text 0, 'a': the label 1 should be a text"),
        (["a", "b", "a"], ["label-0", "label-0", "label-1"], r"'a' has two labels: label-0 \(text 0\) and label-1"),
        (["a"], ["label-0", "label-1"], "1 texts, 2 labels"),
        (
            ["a", "b \ud800"],
            ["label-0", "label-0"],
            "text 1 or its label holds '\\\\ud800', which is no proper Unicode",
        ),
        (["a"], ["\udfff"], "text 0 or its label holds"),
        ("a b", ["label-0"] * 3, "give a list of texts"),
    ],
)
def test_bad_lessons_are_refused_whole(texts: Any, labels: Any, message: str) -> None:
    model, known, _ = make_taught_classifier()
    with pytest.raises(ValueError, match=message):
        model.learn(texts, labels)
    assert len(model.history_bank) == len(known)


def test_unknown_lessons_cannot_be_forgotten() -> None:
    model, _, _ = make_taught_classifier()
    for wrong in ({"texts": ["nothing"]}, {"label": "label-9"}, {"source": "nowhere"}, {"ids": [99]}):
        with pytest.raises(BankError, match=r"the bank .* has no"):
            model.forget(**wrong)
    with pytest.raises(ValueError, match="no bank is attached"):
        make_classifier().forget(["a"])


def test_what_was_taught_lasts(tmp_path: Path) -> None:
    model, texts, _ = make_taught_classifier()
    model.learn(["h h h h"], ["new"], new_labels=True)
    due = model(**encode_texts(*texts)).logits
    model.save_pretrained(tmp_path, save_history=True)
    assert len(model.label_names()) == 4
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert (type(loaded), loaded.config.num_labels) == (LLEForSequenceClassification, 3)
    loaded.attach_history(HistoryBank.from_pretrained(tmp_path), tokenizer=WORD_TOKENIZER)
    assert loaded.label_names()[3] == "new"
    assert loaded.config.num_labels == 3
    assert torch.equal(loaded(**encode_texts(*texts)).logits, due)
    assert loaded.learn(["g g g"], ["new"]) == 1  # the bank knows the label
    loaded.detach_history()
    assert loaded.label_names() == loaded.trained_labels


def test_banks_of_other_models_are_refused(tmp_path: Path) -> None:
    model, _, _ = make_taught_classifier()
    other = make_classifier(classifier={"pooling": ["max", "mean"]})
    with pytest.raises(BankError, match="another backbone"):
        other.attach_history(model.history_bank)
    tokens = make_classifier(of_tokens=True, bidirectional=False)
    language = LLEForCausalLM(LLEConfig(**{**tokens.config.to_dict(), "architectures": None}))
    language.model.load_state_dict(tokens.model.state_dict())
    tokens.learn([["a"]], [["label-1"]], WORD_TOKENIZER)
    with pytest.raises(BankError, match=r"holds labels, and a LLEForCausalLM predicts tokens"):
        language.attach_history(tokens.history_bank)


def test_several_labels_and_regression() -> None:
    several = make_classifier(problem_type="multi_label_classification")
    several.learn(["a b", "c"], [["label-0", "new"], []], WORD_TOKENIZER, new_labels=True)
    scores = pipeline("text-classification", model=several, tokenizer=WORD_TOKENIZER)("a b", top_k=None)
    assert {score["label"] for score in scores} == {"label-0", "label-1", "label-2", "new"}
    loss = several(**encode_texts("a b"), labels=torch.tensor([[1.0, 0.0, 0.0, 1.0]])).loss
    assert 0 < loss.item() < 5
    value = make_classifier(labels=1)
    plain = value(**encode_texts("a b")).logits.item()
    value.learn(["a b"], [plain + 10], WORD_TOKENIZER)
    mixed = value(**encode_texts("a b")).logits.item()
    assert plain < mixed < plain + 10
    found = pipeline("text-classification", model=value, tokenizer=WORD_TOKENIZER)("a b")[0]
    assert found["score"] == pytest.approx(mixed)  # the value itself, not its sigmoid


def test_teaching_tokens() -> None:
    model = make_classifier(of_tokens=True, labels=2)
    added = model.learn(
        [["a", "b", "c"], ["d", "e"]], [["label-0", None, "new"], [None, "new"]], WORD_TOKENIZER, new_labels=True
    )
    assert added == 3
    logits = model(**encode_texts("a b c", "d e")).logits
    assert logits.shape == (2, 3, 3)
    torch.testing.assert_close(logits[0].exp().sum(-1), torch.ones(3))
    tags = pipeline("token-classification", model=model, tokenizer=WORD_TOKENIZER)("a b c")
    assert [tag["entity"] for tag in tags if tag["word"] == "c"] == ["new"]
    with pytest.raises(ValueError, match="text 0 has 2 words"):
        model.learn([["a", "b"]], [["label-0"]])
    loss = model.train()(**encode_texts("a b c"), labels=torch.tensor([[0, -100, 1]])).loss
    loss.backward()
    assert model.classifier.weight.grad.abs().sum() > 0


def test_tokens_save_and_load(tmp_path: Path) -> None:
    model = make_classifier(of_tokens=True)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForTokenClassification.from_pretrained(tmp_path)
    assert torch.equal(loaded(**encode_texts("a b")).logits, model(**encode_texts("a b")).logits)


def test_out_of_scope() -> None:
    model, texts, labels = make_taught_classifier(
        40, history={"bank": {"sharpness": 30.0, "gate": [4.0, 0.0, 0.0, 0.0]}}
    )
    numbers = [int(label[-1]) for label in labels]
    inside = [
        {**encode_texts(text), "labels": torch.tensor([number])} for text, number in zip(texts, numbers, strict=True)
    ]
    outside = [dict(encode_texts(text)) for text in ("<unk> <unk> <unk>", "<pad> <unk> <pad>", "<unk>")]
    classify = pipeline("text-classification", model=model, tokenizer=WORD_TOKENIZER)
    with pytest.raises(ValueError, match="fit_out_of_scope"):
        classify("a", out_of_scope=True)
    measured = model.fit_out_of_scope(inside, outside, keep=0.9)
    assert measured["out_of_scope_recall"] > 0.6
    assert measured["in_scope_accuracy"] > 0.5
    results = classify([*texts, "<unk> <unk> <unk>"], out_of_scope=True, batch_size=4)
    assert results[-1]["label"] == "out_of_scope"
    assert results[-1]["score"] == results[-1]["out_of_scope"] >= model.config.classifier.out_of_scope.threshold
    scored = model(**encode_texts(texts[0]), output_out_of_scope=True)
    # A cosine is rounded differently in a batch of another size, and the sharpness multiplies that by 30.
    assert results[0]["out_of_scope"] == pytest.approx(scored.out_of_scope.item(), abs=1e-4)
    assert results[0]["mass"] == pytest.approx(scored.mass.item(), abs=1e-4)
    best = classify(texts[0], out_of_scope=True, top_k=2)
    assert set(best) == {"labels", "out_of_scope", "mass", "threshold", "refused"}
    right = [r["label"] == label for r, label in zip(results[:-1], labels, strict=True)]
    assert sum(right) / len(right) == pytest.approx(measured["in_scope_accuracy"])
    with pytest.raises(ValueError, match="no text out of scope"):
        model.fit_out_of_scope(inside, [])


def test_a_text_of_a_hundred_thousand_characters() -> None:
    model, _, _ = make_taught_classifier()
    long = " ".join(["a", "b"] * 25_000)
    assert model.learn([long], ["label-2"]) == 1
    found = pipeline("text-classification", model=model, tokenizer=WORD_TOKENIZER)(long, return_history=True)[0]
    assert found["history"][0]["causes"][0]["columns"]["text"] == long


def test_texts_of_all_kinds_are_taught_found_and_taken_back(tmp_path: Path) -> None:
    model, known, _ = make_taught_classifier()
    before = model(**encode_texts(*known)).logits
    odd = [
        "a\0b",
        "\ufeffa",
        "\u202eabc\u202c",
        "a\u2028b\u2029\x85c",
        "a\x0b\x0c\x1c\x1d\x1eb",
        "a\r\nb",
        "猫 кот γάτα",
    ]
    assert model.learn(odd, ["label-0"] * len(odd), source="odd") == len(odd)
    model.save_pretrained(tmp_path, save_history=True)
    opened = HistoryBank.from_pretrained(tmp_path)
    texts = [entry.columns["text"] for entry in opened.describe(range(len(opened)))]
    assert texts == known + odd
    assert model.forget(odd) == len(odd)
    assert torch.equal(model(**encode_texts(*known)).logits, before)


def test_a_bank_that_lies_with_the_model_is_saved_with_it(tmp_path: Path) -> None:
    model, texts, _ = make_taught_classifier()
    model.save_pretrained(tmp_path, save_history=True)
    model.attach_history(HistoryBank.from_pretrained(tmp_path), tokenizer=WORD_TOKENIZER)
    model.learn(["h h h h"], ["label-0"])
    model.save_pretrained(tmp_path, save_history=True)
    assert len(HistoryBank.from_pretrained(tmp_path)) == len(texts) + 1


def test_a_text_without_a_token_cannot_be_classified() -> None:
    classify = pipeline("text-classification", model=make_classifier(), tokenizer=WORD_TOKENIZER)
    with pytest.raises(ValueError, match=r"nothing to classify in the text ' ': leave it out"):
        classify(["a", " "])


def test_plain_trainer_learns(tmp_path: Path) -> None:
    texts = make_texts(64, 4, seed=5)
    rows = Dataset.from_dict({"text": texts, "label": [int("a" in text.split()) for text in texts]})
    rows = rows.map(lambda row: WORD_TOKENIZER(row["text"]), remove_columns="text")
    arguments = TrainingArguments(
        str(tmp_path),
        num_train_epochs=15,
        per_device_train_batch_size=16,
        learning_rate=0.05,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
    )
    model = make_classifier(labels=2)
    trainer = Trainer(
        model,
        arguments,
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=DataCollatorWithPadding(WORD_TOKENIZER),
        compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())},
    )
    trainer.train()
    assert trainer.evaluate()["eval_accuracy"] > 0.95
    model.eval()
    model.learn(texts[:8], [f"label-{int('a' in text.split())}" for text in texts[:8]], WORD_TOKENIZER)
    assert trainer.evaluate()["eval_accuracy"] > 0.95  # the mixture goes through the Trainer's metrics as well
