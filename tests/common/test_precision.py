"""The decision for a precision, with every kind of hardware faked, and models in 16 bits on the one that is there."""

import copy
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from modeling_lle import HistoryBank
from modeling_lle.common.precision import (
    has_fast_bfloat16,
    in_precision,
    lack_of_bfloat16,
    recurrence_dtype,
    resolve_precision,
)
from modeling_lle.history.label_calibration import fit_labels, fit_scope
from tests.factories.classifiers import make_classifier, make_taught_classifier
from tests.factories.language_models import make_language_model
from tests.factories.pairs import WORD_PAIRS, WORD_PAIRS_TOKENIZER
from tests.factories.texts import WORD_TOKENIZER, encode_texts, make_ids
from tests.factories.translators import make_word_translator

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
NARROW = [torch.bfloat16, torch.float16]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Replaces what is detected; without an argument the machine is one with AVX512_BF16."""

    def replace(
        machine: str = "x86_64",
        bf16: bool = True,
        amx: bool = False,
        capability: str = "AVX512",
        mkldnn: bool = True,
        mkldnn_bf16: bool = True,
        name: str = "AMD EPYC",
        **variables: str,
    ) -> None:
        monkeypatch.setattr("platform.machine", lambda: machine)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": name}, raising=False)
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: mkldnn)
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: mkldnn_bf16, raising=False)
        for variable in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY"):
            monkeypatch.delenv(variable, raising=False)
        for variable, value in variables.items():
            monkeypatch.setenv(variable, value)
        lack_of_bfloat16.cache_clear()

    yield replace
    monkeypatch.undo()
    lack_of_bfloat16.cache_clear()


@pytest.mark.parametrize(
    ("machine", "reason"),
    [
        ({}, None),
        ({"bf16": False, "amx": True}, None),
        ({"machine": "AMD64"}, None),
        ({"name": "Intel Xeon", "amx": True}, None),
        ({"name": "Intel Xeon"}, "without AMX"),
        ({"name": "Intel Xeon", "amx": True, "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}, "without AMX"),
        ({"bf16": False}, "AVX512_BF16 or AMX"),  # AVX512 alone, for which mkldnn's own answer is yes
        ({"bf16": False, "capability": "AVX2", "mkldnn_bf16": False}, "AVX512_BF16 or AMX"),
        ({"bf16": False, "capability": "AVX512", "ATEN_CPU_CAPABILITY": "avx512"}, "AVX512_BF16 or AMX"),
        ({"ONEDNN_MAX_CPU_ISA": "AVX2"}, "ONEDNN_MAX_CPU_ISA=AVX2"),
        ({"ONEDNN_MAX_CPU_ISA": "avx512_core_vnni"}, "ONEDNN_MAX_CPU_ISA=avx512_core_vnni"),
        ({"DNNL_MAX_CPU_ISA": "AVX512_CORE"}, "DNNL_MAX_CPU_ISA=AVX512_CORE"),
        ({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}, None),
        ({"ONEDNN_MAX_CPU_ISA": "ALL"}, None),
        ({"capability": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}, "limited to AVX2"),
        ({"capability": "DEFAULT", "ATEN_CPU_CAPABILITY": "default"}, "limited to DEFAULT"),
        ({"machine": "aarch64", "bf16": False, "capability": "DEFAULT"}, None),
        ({"machine": "arm64", "bf16": False, "capability": "DEFAULT"}, None),
        ({"machine": "aarch64", "bf16": False, "mkldnn_bf16": False}, "BF16"),
        ({"mkldnn": False}, "no oneDNN"),
        ({"machine": "ppc64le", "bf16": False, "capability": "VSX"}, "no bfloat16 instructions"),
    ],
    ids=str,
)
def test_which_cpu_has_fast_bfloat16(fake: Any, machine: dict[str, Any], reason: str | None) -> None:
    fake(**machine)
    assert has_fast_bfloat16(CPU) == (reason is None)
    assert reason is None or reason in str(lack_of_bfloat16(CPU))


@pytest.mark.parametrize(
    ("major", "hip", "fast"), [(9, None, True), (8, None, True), (7, None, False), (7, "6", True)]
)
def test_which_gpu_has_fast_bfloat16(
    fake: Any, monkeypatch: pytest.MonkeyPatch, major: int, hip: str | None, fast: bool
) -> None:
    fake(bf16=False)  # the CPU's instructions do not matter
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    assert has_fast_bfloat16(GPU) == fast
    assert not has_fast_bfloat16(torch.device("mps"))
    assert has_fast_bfloat16(torch.device("xpu"))


def test_the_hardware_is_asked_once(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fake()
    assert has_fast_bfloat16(CPU)
    monkeypatch.setattr("platform.machine", lambda: pytest.fail("asked again"))
    assert has_fast_bfloat16(torch.device("cpu"))


def test_which_precision_is_chosen(fake: Any, caplog: pytest.LogCaptureFixture) -> None:
    fake()
    chosen = [resolve_precision(wanted, CPU) for wanted in ("auto", "float32", "bfloat16")]
    assert chosen == [torch.bfloat16, torch.float32, torch.bfloat16]
    fake(bf16=False)
    with caplog.at_level(logging.WARNING):
        assert [resolve_precision(wanted, CPU) for wanted in ("auto", "float32")] == [torch.float32] * 2
        assert not caplog.records
        assert resolve_precision("bfloat16", CPU) == torch.float32
    assert "no bfloat16 instructions (AVX512_BF16 or AMX): computing in float32" in caplog.text
    with pytest.raises(ValueError, match="'half': choose one of 'auto', 'float32', 'bfloat16'"):
        resolve_precision("half", CPU)


@pytest.mark.parametrize("fast", [False, True])
def test_a_recurrence_in_16_bits_runs_in_float32_where_they_are_slow(fake: Any, fast: bool) -> None:
    fake(bf16=fast)
    for dtype in (torch.float32, torch.float64, *NARROW):
        wide = dtype == torch.float16 or (dtype == torch.bfloat16 and not fast)
        assert recurrence_dtype(torch.zeros(1, dtype=dtype)) == (torch.float32 if wide else None)
    for dtype in NARROW:
        with torch.autocast("cpu", dtype):
            wide = dtype == torch.float16 or not fast
            assert recurrence_dtype(torch.zeros(1)) == (torch.float32 if wide else None)
            assert recurrence_dtype(torch.zeros(1, dtype=torch.float64)) is None
            assert recurrence_dtype(torch.zeros(1, device="meta")) is None


def test_a_model_is_widened_and_autocast_while_it_computes(fake: Any) -> None:
    model = make_language_model().bfloat16()
    model.model.stack.float()  # as where a module is kept in float32
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for fast in (False, True):
        fake(bf16=fast)
        with in_precision(model, "auto"):
            assert {value.dtype for value in model.parameters()} == {torch.float32}
            assert model.lm_head.weight is model.model.embed_tokens.weight
            assert torch.is_autocast_enabled("cpu") == fast
        with pytest.raises(ValueError, match="ids"), in_precision(model, "auto"):
            model()
        assert not torch.is_autocast_enabled("cpu")
        for name, value in model.state_dict().items():
            assert value.dtype == before[name].dtype
            assert value.equal(before[name])


def low(model: Any, dtype: torch.dtype, how: str) -> tuple[Any, Any]:
    """A model in 16 bits, and the context in which it computes so."""
    if how == "weights":
        return copy.deepcopy(model).to(dtype), torch.autocast("cpu", enabled=False)
    return copy.deepcopy(model), torch.autocast("cpu", dtype)


def train(loss: Tensor, model: Any) -> None:
    loss.backward()
    gradients = [value.grad for value in model.parameters() if value.requires_grad]
    assert any(gradient is not None and bool(gradient.any()) for gradient in gradients)
    assert all(gradient is None or bool(gradient.isfinite().all()) for gradient in gradients)


every_dtype = pytest.mark.parametrize("dtype", NARROW, ids=str)
every_way = pytest.mark.parametrize("how", ["weights", "autocast"])


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got.float(), want.float(), atol=0.06, rtol=0.06)


@every_way
@every_dtype
@pytest.mark.parametrize("recurrence", ["lstm", "gru", "qrnn"])
def test_a_language_model_in_16_bits(recurrence: str, dtype: torch.dtype, how: str) -> None:
    model = make_language_model(5, recurrence, "residual", initializer_range=0.3, hidden_dropout=0.1)
    ids, mask = make_ids(2, 12), torch.ones(2, 12, dtype=torch.long)
    mask[1, :4] = 0
    narrow, context = low(model, dtype, how)
    with context:
        for given in (None, mask):
            labels = ids if given is None else ids.masked_fill(given == 0, -100)
            want = model(ids, attention_mask=given, labels=labels)
            got = narrow(ids, attention_mask=given, labels=labels)
            close(got.loss, want.loss)
            used = slice(None) if given is None else given.bool()
            close(got.logits[used].softmax(-1), want.logits[used].softmax(-1))
            assert narrow.generate(ids, attention_mask=given, max_new_tokens=3, pad_token_id=0).shape == (2, 15)
            train(narrow.train()(ids, attention_mask=given, labels=labels).loss, narrow)
            narrow.eval().zero_grad()
        scored = narrow.score(ids[:, :-1], ids[:, 1:])
        close(scored.log_probs, model.score(ids[:, :-1], ids[:, 1:]).log_probs)


@every_way
@every_dtype
@pytest.mark.parametrize(
    ("recurrence", "of_tokens"), [("lstm", False), ("qrnn", False), ("lstm", True)], ids=["lstm", "qrnn", "tokens"]
)
def test_a_classifier_in_16_bits(recurrence: str, dtype: torch.dtype, how: str, of_tokens: bool) -> None:
    model = make_classifier(of_tokens=of_tokens, recurrence=recurrence, initializer_range=0.3)
    narrow, context = low(model, dtype, how)
    batch = encode_texts("a b c", "d", "e f g h a")
    labels = torch.tensor([0, 1, 2])
    labels = labels[:, None].expand(3, batch["input_ids"].shape[1]) if of_tokens else labels
    with context:
        close(narrow(**batch).logits, model(**batch).logits)
        train(narrow.train()(**batch, labels=labels).loss, narrow)
        narrow.eval()
        if not of_tokens:
            assert narrow.learn(["a b", "c d e"], ["label-0", "label-1"], WORD_TOKENIZER) == 2
            assert narrow(**batch).logits.isfinite().all()


@every_way
@every_dtype
@pytest.mark.parametrize("recurrence", ["lstm", "qrnn"])
def test_a_translator_in_16_bits(recurrence: str, dtype: torch.dtype, how: str, tmp_path: Path) -> None:
    model = make_word_translator(recurrence=recurrence, initializer_range=0.3)
    narrow, context = low(model, dtype, how)
    tokenizer = WORD_PAIRS_TOKENIZER
    batch = tokenizer(["a b c", "d"], return_tensors="pt", padding=True)
    labels = tokenizer(["x y", "z"], return_tensors="pt", padding=True)["input_ids"]
    with context:
        close(narrow(**batch, labels=labels).loss, model(**batch, labels=labels).loss)
        train(narrow.train()(**batch, labels=labels).loss, narrow)
        narrow.eval()
        bank = HistoryBank.build(narrow, tokenizer, WORD_PAIRS, tmp_path / "bank", source="pairs")
        narrow.attach_history(bank, tokenizer=tokenizer)
        for beams in (1, 2):
            assert narrow.generate(**batch, num_beams=beams, max_new_tokens=3).shape[0] == 2


def _fit(model: Any, answered: Any) -> dict[str, float]:
    """Fits copies of the model's sections."""
    config = copy.deepcopy(model.config)
    return fit_labels(answered, model.space_of(model.history), config.bank, config.classifier, model.kind, 5)


def test_a_search_and_the_rule_are_as_exact_under_autocast() -> None:
    model, texts, labels = make_taught_classifier(15)
    queries = torch.nn.functional.normalize(torch.randn(9, model.key_size), dim=-1)
    batches = [
        {**encode_texts(text), "labels": torch.tensor([int(label[-1])])}
        for text, label in zip(texts, labels, strict=True)
    ]
    features = torch.randn(6, 4)
    want = model.history_bank.search(queries, 5)
    weights = fit_scope(features, features + 1, 9)
    answered = model._answer(batches, model.history.pinned())
    fitted = _fit(model, answered)
    with torch.autocast("cpu", torch.bfloat16):
        got = model.history_bank.search(queries, 5)
        assert got.ids.equal(want.ids)
        assert got.similarity.equal(want.similarity)
        assert fit_scope(features, features + 1, 9).equal(weights)
        assert _fit(model, answered) == fitted
        assert torch.is_autocast_enabled("cpu")


@pytest.mark.slow
def test_a_recurrence_in_16_bits_compiles_whole() -> None:
    stack = make_language_model(0, "qrnn", "residual").bfloat16().model.stack
    x = torch.randn(2, 5, 6, dtype=torch.bfloat16)
    with torch.no_grad():
        compiled: Any = torch.compile(stack, fullgraph=True, backend="eager")
        assert compiled(x)[0].equal(stack(x)[0])
