"""The model of lm-evaluation-harness scores every token once, after all that came before, as the model itself does."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance

from modeling_lle import HistoryBank, LLEForCausalLM
from modeling_lle.evaluation import lm_eval as harness
from modeling_lle.evaluation.lm_eval import HarnessModel
from tests.factories.hub_models import make_hub_model
from tests.factories.language_models import make_language_model
from tests.factories.texts import WORD_TOKENIZER, make_texts

TEXTS = [" ".join(text.split() * 3) for text in make_texts(4, 12, seed=3)]
CHOICES = [("a b c a b", " d e"), ("a b c a b", " c a b"), ("c d", " d"), ("", " d e"), ("c d", " a"), ("h", " a b c")]


def make_model(**values: Any) -> LLEForCausalLM:
    ids = {name: getattr(WORD_TOKENIZER, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return make_language_model(vocab_size=len(WORD_TOKENIZER), **ids, **values)


def make_harness(model: LLEForCausalLM | str, **options: Any) -> HarnessModel:
    own = {} if isinstance(model, str) else {"tokenizer": WORD_TOKENIZER}
    return HarnessModel(model, device="cpu", **own, **options)


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, given, place) for place, given in enumerate(arguments)]


def expected(model: LLEForCausalLM, context: str, continuation: str, **options: Any) -> tuple[float, bool]:
    """log P of the continuation by `score`, and whether every token of it is the best one."""
    before = WORD_TOKENIZER.encode(context) or [WORD_TOKENIZER.eos_token_id]
    ids = torch.tensor([before + WORD_TOKENIZER.encode(continuation)])
    log_probs = model.score(ids[:, :-1], ids[:, 1:], **options).log_probs[0, len(before) - 1 :]
    with torch.no_grad():
        best = model(ids[:, :-1], **options).logits[0, len(before) - 1 :].argmax(-1)
    return float(log_probs.sum()), bool((best == ids[0, len(before) :]).all())


@pytest.fixture
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "block_size", lambda rows, widest: 4)


@pytest.mark.usefixtures("short_segments")
@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("use_history", [True, False])
def test_texts_and_continuations_have_the_log_probability_that_score_gives(use_history: bool, batch_size: int) -> None:
    model = make_model()
    subject = make_harness(model, batch_size=batch_size, use_history=use_history)
    whole = subject.loglikelihood_rolling(requests("loglikelihood_rolling", *((text,) for text in TEXTS)), True)
    assert whole == pytest.approx([expected(model, "", text, use_history=use_history)[0] for text in TEXTS], abs=1e-4)
    found = subject.loglikelihood(requests("loglikelihood", *CHOICES), True)
    due = [expected(model, *choice, use_history=use_history) for choice in CHOICES]
    assert [nats for nats, _ in found] == pytest.approx([nats for nats, _ in due], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in due]
    assert model.config.use_history is use_history


def test_a_context_that_continuations_share_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    subject, read = make_harness(make_model()), []
    inner = subject.model.forward

    def forward(ids: torch.Tensor, **options: Any) -> Any:
        read.append(tuple(ids.shape))
        return inner(ids, **options)

    monkeypatch.setattr(subject.model, "forward", forward)
    subject.loglikelihood(requests("loglikelihood", *CHOICES[:2]), True)
    assert read == [(1, 4), (2, 3)]  # the context but for its last token; that one and the longer continuation


def test_the_greedy_continuation_is_known_as_such() -> None:
    subject = make_harness(make_model())
    (text,) = subject.generate_until(requests("generate_until", ("a b c", {"until": ["\n"], "max_gen_toks": 3})), True)
    (found,) = subject.loglikelihood(requests("loglikelihood", ("a b c", f" {text.strip()}")), True)
    assert found[1]


def test_a_bank_is_recalled_from_by_namespaces(tmp_path: Path) -> None:
    model = make_model()
    bank = HistoryBank.build(model, WORD_TOKENIZER, [{"text": text} for text in TEXTS], tmp_path, namespace="own")
    arguments = requests("loglikelihood_rolling", (TEXTS[0],))
    (plain,) = make_harness(model).loglikelihood_rolling(arguments, True)
    subject = make_harness(make_model(), bank=str(tmp_path), namespaces="own")
    (found,) = subject.loglikelihood_rolling(arguments, True)
    assert found == pytest.approx(expected(model, "", TEXTS[0], history=bank)[0], abs=1e-4)
    assert abs(found - plain) > 0.1
    (base,) = make_harness(make_model(), bank=str(tmp_path), use_history=False).loglikelihood_rolling(arguments, True)
    assert base == pytest.approx(expected(model, "", TEXTS[0], use_history=False)[0], abs=1e-4)


def test_a_model_of_transformers_becomes_a_backbone(tmp_path: Path) -> None:
    make_hub_model("mamba2", vocab_size=len(WORD_TOKENIZER)).save_pretrained(tmp_path)
    WORD_TOKENIZER.save_pretrained(tmp_path)
    subject = make_harness(str(tmp_path), dtype="float32")
    (found,) = subject.loglikelihood_rolling(requests("loglikelihood_rolling", (TEXTS[0],)), True)
    assert found == pytest.approx(expected(subject.model, "", TEXTS[0])[0], abs=1e-4)
    assert subject.model.config.wrapped.model_type == "mamba2"


def test_what_does_not_fit_is_named_with_the_remedy() -> None:
    with pytest.raises(ValueError, match="any number fits; give one"):
        make_harness(make_model(), batch_size="auto")
    with pytest.raises(ValueError, match="give bank=FOLDER"):
        make_harness(make_model(), namespaces="own")
    with pytest.raises(TypeError, match="takes an LLEForCausalLM"):
        HarnessModel(torch.nn.Linear(1, 1), tokenizer=WORD_TOKENIZER)


def test_a_long_context_is_cut_only_on_request() -> None:
    model, context = make_model(), "a b c d e f g h"
    (whole,) = make_harness(model).loglikelihood(requests("loglikelihood", (context, " a")), True)
    (cut,) = make_harness(model, max_length=3).loglikelihood(requests("loglikelihood", (context, " a")), True)
    assert whole[0] == pytest.approx(expected(model, context, " a")[0], abs=1e-4)
    assert cut[0] == pytest.approx(expected(model, "f g h", " a")[0], abs=1e-4)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The results of a task in files of its own, by the classes `lle` and `hf`, on a saved model."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    folder = tmp_path_factory.mktemp("task")
    make_model().save_pretrained(folder / "model")
    WORD_TOKENIZER.save_pretrained(folder / "model")
    (folder / "texts.json").write_text("\n".join(json.dumps({"page": text}) for text in TEXTS))
    common = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "texts.json")}}}
    task = {"task": "own_texts", "test_split": "test", "output_type": "loglikelihood_rolling", **common}
    task |= {"doc_to_text": "", "doc_to_target": "{{page}}", "metric_list": [{"metric": "word_perplexity"}]}
    (folder / "own_texts.yaml").write_text(json.dumps(task))  # JSON is YAML
    tasks = TaskManager(include_path=str(folder), include_defaults=False)
    found = {}
    for name in ("lle", "hf"):
        found[name] = lm_eval.simple_evaluate(
            model=name,
            model_args={"pretrained": str(folder / "model")},
            tasks=["own_texts"],
            task_manager=tasks,
            device="cpu",
            bootstrap_iters=0,
        )
    return found


@pytest.mark.slow
def test_a_task_in_a_local_file_gives_the_same_by_both_classes(evaluated: dict[str, Any]) -> None:
    own, stock = (evaluated[name]["results"]["own_texts"]["word_perplexity,none"] for name in ("lle", "hf"))
    assert own == pytest.approx(stock, rel=1e-4)  # no text here is longer than a window of the class hf
    assert own > 1
