"""What a classifier returns and in which order, with odd labels, types of numbers, and namespaces that are gone."""

from pathlib import Path

import pytest
import torch
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments, pipeline

from tests.factories.classifiers import make_classifier, make_taught_classifier
from tests.factories.texts import WORD_TOKENIZER, encode_texts

MULTI = "multi_label_classification"
TEXTS = ["a b c", "d e"]


@pytest.mark.parametrize("of_tokens", [False, True])
@pytest.mark.parametrize("members", [1, 2])
def test_the_loss_comes_first_and_then_the_logits(members: int, of_tokens: bool) -> None:
    model, batch = make_classifier(classifier={"members": members}, of_tokens=of_tokens), encode_texts(*TEXTS)
    labels = torch.tensor([[0, 1, 2], [2, 1, -100]]) if of_tokens else torch.tensor([0, 2])
    for training in (False, True):
        model.train(training)
        output = model(**batch, labels=labels, output_hidden_states=True, output_out_of_scope=True)
        names = ["loss", "logits", "member_logits", "out_of_scope", "mass", "scope_features", "hidden_states"]
        names.append("label_names")
        assert list(output) == [name for name in names if name != "member_logits" or (training and members > 1)]
        assert output[0] is output.loss
        loss, logits, *_ = model(**batch, labels=labels, return_dict=False)
        assert torch.equal(loss, output.loss)
        assert torch.equal(logits, output.logits)
    assert torch.equal(model.eval()(**batch, return_dict=False)[0], model(**batch).logits)


def test_metrics_see_the_logits_alone(tmp_path: Path) -> None:
    model, texts, labels = make_taught_classifier()
    rows = [
        {**WORD_TOKENIZER(text), "labels": int(label[-1])} for text, label in zip(texts[:4], labels[:4], strict=True)
    ]
    collate, seen = DataCollatorWithPadding(WORD_TOKENIZER), []
    trainer = Trainer(
        model,
        TrainingArguments(str(tmp_path), report_to="none", disable_tqdm=True, use_cpu=True),
        data_collator=lambda part: {**collate(part), "output_out_of_scope": True, "output_history": True},
        compute_metrics=lambda given: seen.append(given.predictions) or {},
    )
    predicted = trainer.predict(rows)
    due = model(**encode_texts(*texts[:4])).logits.detach().numpy()
    assert isinstance(seen[0], type(due))
    assert seen[0] == pytest.approx(due, abs=1e-6)
    assert predicted.predictions == pytest.approx(due, abs=1e-6)


def test_pipelines_of_a_saved_classifier(tmp_path: Path) -> None:
    model = make_classifier()
    model.save_pretrained(tmp_path)
    states = pipeline("feature-extraction", model=str(tmp_path), tokenizer=WORD_TOKENIZER)(
        "a b c", return_tensors=True
    )
    torch.testing.assert_close(states, model.model(**encode_texts("a b c")).last_hidden_state)
    found = pipeline("text-classification", model=str(tmp_path), tokenizer=WORD_TOKENIZER)("a b c", top_k=None)
    scores = dict(
        zip(model.trained_labels, model(**encode_texts("a b c")).logits.softmax(-1)[0].tolist(), strict=True)
    )
    assert {each["label"]: each["score"] for each in found} == pytest.approx(scores, abs=1e-6)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({1: "a", 2: "b"}, "id2label has the ids 1, 2: number the 2 labels from 0 without a gap"),
        ({0: "a", 2: "b"}, "id2label has the ids 0, 2"),
        ({0: "a", 1: "b", 2: "a"}, "id2label calls the labels 0, 2 all 'a': give each a name of its own"),
        ({}, "a classifier needs labels: set id2label"),
    ],
)
@pytest.mark.parametrize("of_tokens", [False, True])
def test_labels_that_do_not_make_a_classifier(names: dict[int, str], message: str, of_tokens: bool) -> None:
    with pytest.raises(ValueError, match=message):
        make_classifier(id2label=names, of_tokens=of_tokens)


def test_floating_rows_of_labels_mean_several_for_a_text(tmp_path: Path) -> None:
    labels, batch = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]), encode_texts(*TEXTS)
    model, due = make_classifier(), make_classifier(problem_type=MULTI)(**batch, labels=labels).loss
    torch.testing.assert_close(model(**batch, labels=labels).loss, due)
    model.save_pretrained(tmp_path)
    assert type(model).from_pretrained(tmp_path).kind == MULTI  # so that what it says is read as it was trained
    one_each, _, _ = make_taught_classifier()
    with pytest.raises(ValueError, match=r"in the attached bank it has one: set config\.problem_type"):
        one_each(**batch, labels=labels)
    whole = make_classifier()
    torch.testing.assert_close(
        whole(**batch, labels=torch.tensor([0, 2])).loss,
        torch.nn.functional.cross_entropy(whole(**batch).logits, torch.tensor([0, 2])),
    )
    assert whole.kind == "single_label_classification"


def test_labels_that_count_nothing() -> None:
    model, batch = make_classifier(problem_type=MULTI), encode_texts(*TEXTS)
    logits = model(**batch).logits
    loss = model(**batch, labels=torch.tensor([[1.0, -100.0, 0.0], [-100.0, -100.0, -100.0]])).loss
    nats = torch.nn.functional.softplus(torch.stack([-logits[0, 0], logits[0, 2]]))
    torch.testing.assert_close(loss, nats.mean())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("with_gradient", [False, True])
def test_every_type_of_numbers_and_gradients_with_a_bank(dtype: torch.dtype, with_gradient: bool) -> None:
    model, texts, _ = make_taught_classifier()
    due = model(**encode_texts(*texts[:3])).logits.detach()
    model.to(dtype)
    with torch.set_grad_enabled(with_gradient):
        output = model(**encode_texts(*texts[:3]), labels=torch.tensor([0, 1, 2]), output_out_of_scope=True)
    if dtype != torch.bfloat16:  # of which the rounding moves more than can be told from a fault
        torch.testing.assert_close(output.logits.float(), due, atol=0.02, rtol=0.02)
    torch.testing.assert_close(output.logits.float().exp().sum(-1), torch.ones(3), atol=0.01, rtol=0)
    assert torch.isfinite(output.out_of_scope).all()
    if with_gradient:
        output.loss.backward()
        assert model.classifier.weight.grad.isfinite().all()
        assert model.classifier.weight.grad.any()


class Doubled(torch.nn.Module):
    """A layer around the output layer, as an adapter is."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        return 2 * self.inner(items)


@pytest.mark.parametrize("of_tokens", [False, True])
def test_what_is_around_the_output_layer_takes_part(of_tokens: bool) -> None:
    model = make_classifier(of_tokens=of_tokens)
    words = [["a", "b"]] if of_tokens else ["a b"]
    model.learn(words, [["label-0", "label-1"]] if of_tokens else ["label-0"], WORD_TOKENIZER)
    batch = encode_texts("a c")
    plain = model(**batch, use_history=False).logits
    before, fired = model(**batch).logits, []
    model.classifier = Doubled(model.classifier)
    model.classifier.register_forward_hook(lambda *_: fired.append(1))
    torch.testing.assert_close(model(**batch, use_history=False).logits, 2 * plain)
    assert not torch.allclose(model(**batch).logits, before)
    assert len(fired) == 2


@pytest.mark.parametrize("compacted", [False, True])
def test_a_namespace_that_was_forgotten_is_gone(compacted: bool) -> None:
    model, _, _ = make_taught_classifier()
    model.learn(["g h"], ["new"], new_labels=True, namespace="b")
    bank = model.history_bank
    batch = encode_texts("g h a", "g")
    model.detach_history()
    plain = model(**batch).logits
    model.attach_history(bank, ["b"], WORD_TOKENIZER)
    assert not torch.equal(model(**batch).logits[..., : plain.shape[-1]], plain)
    bank.forget(namespace="b")
    if compacted:
        bank.compact()
    assert torch.equal(model(**batch).logits, plain)
    assert model.label_names() == model.trained_labels
    assert list(model.config.id2label.values()) == list(model.trained_labels)
    output = model(**batch, output_out_of_scope=True, output_history=True)
    assert torch.equal(output.mass, torch.full((2,), -torch.inf))
    held = [{**batch, "labels": torch.tensor([0, 1])}]
    assert model.calibrate(held)["after_nats"] == pytest.approx(model.calibrate(held)["base_nats"], abs=1e-4)
    model.fit_out_of_scope(held, [dict(batch)])
    assert model.learn(["g h"], ["new"], new_labels=True, namespace="b") == 1
    assert (*model.trained_labels, "new") == model.label_names()
