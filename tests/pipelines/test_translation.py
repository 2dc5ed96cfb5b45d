"""The translation pipeline: records, batches, the memory's share in them, and other models than LLE."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSeq2SeqLM, GenerationConfig, MarianConfig, MarianMTModel, pipeline
from transformers.pipelines.pt_utils import KeyDataset

import modeling_lle
from modeling_lle import Attachment, LLETokenizer
from modeling_lle.data import Glossary, Term
from modeling_lle.data.text import encode_sentences
from modeling_lle.entries.attribution import attribute
from modeling_lle.entries.pairs import Memory, padded
from tests.factories.language_models import make_language_model
from tests.factories.pairs import WORD_PAIRS, WORD_PAIRS_TOKENIZER
from tests.factories.translators import make_taught_word_translator, make_trained_translator, make_word_translator

SOURCES = [pair["source"] for pair in WORD_PAIRS]
TARGETS = [pair["target"] for pair in WORD_PAIRS]
TEXTS = [*SOURCES[:3], "c b a h g", "unknown", "a b c d e f g h"]
OPTIONS: list[dict[str, int]] = [{}, {"num_beams": 2, "num_return_sequences": 2}]
HISTORY = {"return_history": True, "history_top": 99}


def make_pipe(model: Any, **options: Any) -> Any:
    return pipeline("translation", model=model, tokenizer=WORD_PAIRS_TOKENIZER, device="cpu", **options)


def texts_of(records: list[dict[str, Any]]) -> list[str]:
    return [record["translation_text"] for record in records]


def test_a_folder_and_a_model(tmp_path: Path) -> None:
    model = make_word_translator()
    model.save_pretrained(tmp_path)
    WORD_PAIRS_TOKENIZER.save_pretrained(tmp_path)
    loaded = pipeline("translation", model=str(tmp_path), device="cpu")
    assert type(loaded) is modeling_lle.LLETranslationPipeline
    assert type(loaded.model) is modeling_lle.LLEForSeq2SeqLM
    assert loaded(TEXTS, batch_size=6) == make_pipe(model)(TEXTS, batch_size=6)
    long = "a b c d e f g h " * 100
    assert len(loaded.preprocess(long)["ids"]) == 801  # nothing is cut off
    assert len(loaded(long, max_new_tokens=3)) == 1


def test_records_of_a_text_and_of_lists() -> None:
    pipe = make_pipe(make_taught_word_translator())
    assert pipe("a b c") == [{"translation_text": "x y"}]
    assert pipe(["a b c"]) == [{"translation_text": "x y"}]
    assert pipe(SOURCES) == [{"translation_text": target} for target in TARGETS]
    assert pipe(tuple(SOURCES), batch_size=2) == pipe(SOURCES)
    assert pipe([]) == []


def test_data_sets_and_generators_are_read_as_needed() -> None:
    pipe = make_pipe(make_taught_word_translator())
    rows = Dataset.from_list(WORD_PAIRS)
    assert texts_of(pipe(rows["source"])) == TARGETS
    for given in (KeyDataset(rows, "source"), (text for text in SOURCES)):
        streamed = pipe(given, batch_size=2)
        assert not isinstance(streamed, list)
        assert list(streamed) == [[{"translation_text": target}] for target in TARGETS]


@pytest.mark.parametrize("with_memory", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_batch_equals_its_texts_one_by_one(with_memory: bool, options: dict[str, int]) -> None:
    # The random model rarely ends a translation: most end at the limit of their own text.
    pipe = make_pipe(make_taught_word_translator(history={}) if with_memory else make_word_translator(seed=3))
    texts = [*TEXTS, "", "a"]
    together = pipe(texts, batch_size=5, **options)
    alone = [pipe(text, **options) for text in texts]
    assert together == (alone if "num_return_sequences" in options else [records[0] for records in alone])


def test_the_limit_of_a_translation() -> None:
    model = make_word_translator()
    torch.nn.init.constant_(model.lm_head.bias[:3], -1e4)  # neither the end nor padding ever comes
    pipe = make_pipe(model)
    length = lambda **options: [len(text.split()) for text in texts_of(pipe(["a", "a b c"], **options))]  # noqa: E731
    assert length(batch_size=2) == [20, 24]  # the source's end token counts
    assert length(batch_size=2, num_beams=2) == [20, 24]
    assert length(batch_size=2, max_new_tokens=3) == [3, 3]
    assert length(max_length=5) == [4, 4]
    assert length(generation_config=GenerationConfig(max_new_tokens=2, eos_token_id=0, pad_token_id=1)) == [2, 2]
    stop = [lambda ids, scores, **_: torch.full((len(ids),), ids.shape[1] > 6)]
    assert length(stopping_criteria=stop) == [6, 6]
    model.generation_config.max_length = 8
    assert length() == [7, 7]


def test_blank_texts_and_odd_ones() -> None:
    pipe = make_pipe(make_taught_word_translator())
    assert pipe("") == pipe(" \n\t") == [{"translation_text": ""}]
    assert texts_of(pipe(["", "a b c", "  ", "h", ""], batch_size=3)) == ["", "x y", "", "v u y x", ""]
    assert texts_of(pipe(["", " "], batch_size=2, return_history=True, return_match=True)) == ["", ""]
    odd = ["\0", "a\0b", "\u202eabc", "\x1b[0m a", "a\u2028b", "<eos> <pad> a", "猫", "😀" * 50]
    bpe = LLETokenizer.train(SOURCES, 300, ends_texts=True)
    model = make_word_translator(vocab_size=len(bpe), eos_token_id=bpe.eos_token_id, pad_token_id=bpe.pad_token_id)
    translate = pipeline("translation", model=model, tokenizer=bpe, device="cpu")
    assert translate(odd, batch_size=3) == [translate(text)[0] for text in odd]


def test_placeholders_that_are_lost_or_added() -> None:
    pipe = make_pipe(make_taught_word_translator())
    assert pipe("f g {n}") == [{"translation_text": "u {n} v"}]
    several = {"num_beams": 2, "num_return_sequences": 2}  # as they are
    assert pipe("f g", **several)[0] == {"translation_text": "u {n} v", "added": ["{n}"]}
    assert pipe("a b c %s <b>", **several)[0] == {"translation_text": "x y", "lost": ["%s", "<b>"]}
    assert pipe("a b c %s <b>")[0]["lost"] == ["%s", "<b>"]  # the model has no such tokens


def test_what_would_lose_or_add_a_placeholder_is_searched_again() -> None:
    pipe = make_pipe(make_taught_word_translator())
    assert "added" not in pipe("f g")[0]
    found = pipe(["f g", "d e {n}", "a b c"], batch_size=3)
    assert ["{n}" in text for text in texts_of(found)] == [False, True, False]
    assert found == [pipe(text)[0] for text in ("f g", "d e {n}", "a b c")]
    assert not any("lost" in record or "added" in record for record in found)


def test_of_the_beams_the_best_that_keeps_placeholders_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = make_pipe(make_word_translator())
    hypotheses = {2: ["u v", "u {n}", "u {n} v"], 1: ["x y", "{n}", "x"]}  # by the words of the source
    asked = []

    def generate(input_ids: torch.Tensor, num_beams: int, num_return_sequences: int = 1, **_: Any) -> torch.Tensor:
        asked.append(num_return_sequences)
        each = [
            hypotheses[int((ids == WORD_PAIRS_TOKENIZER.convert_tokens_to_ids("{n}")).sum()) + 1] for ids in input_ids
        ]
        texts = [text for own in each for text in own[:num_return_sequences]]
        rows = WORD_PAIRS_TOKENIZER(texts, padding=True, return_tensors="pt", padding_side="right")["input_ids"]
        return torch.nn.functional.pad(rows, (1, 0), value=WORD_PAIRS_TOKENIZER.pad_token_id)

    monkeypatch.setattr(pipe.model, "generate", generate)
    assert texts_of(pipe(["f {n}", "f g"], num_beams=3, batch_size=2)) == ["u {n}", "x y"]
    assert texts_of(pipe("f {n}", num_beams=3, num_return_sequences=2)) == ["u v", "u {n}"]
    assert asked == [3, 2]
    assert texts_of(pipe("f {n}", num_beams=1)) == ["u {n}"]  # searched again, with beams
    assert texts_of(pipe("f g", num_beams=1)) == ["x y"]
    assert asked[2:] == [1, 4, 1]


def test_accelerators_that_are_lost_or_added() -> None:
    pipe = make_pipe(make_taught_word_translator())
    assert pipe("a _b c {n}") == [{"translation_text": "x y", "lost": ["{n}", "_b"]}]


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=str)
def test_a_glossary_is_followed_where_its_source_stands(options: dict[str, int]) -> None:
    model, tokenizer = make_trained_translator()
    translate: Any = pipeline("translation", model=model, tokenizer=tokenizer, device="cpu", batch_size=3, **options)
    texts = ["ab cde fgh", "fgh ij cde qr", "ab klm", "", "klm fgh"]
    plain = translate(texts)
    assert texts_of(plain) == ["AB CDE FGH", "FGH IJ CDE QR", "AB KLM", "", "KLM FGH"]
    glossary = Glossary([Term("cde", ("SÜT", "NÖP")), Term("klm", ("KLM", "QR")), Term("fgh", ("unknown",))])
    records = translate(texts, glossary=glossary)
    assert texts_of(records) == ["AB SÜT FGH", "FGH IJ SÜT QR", *texts_of(plain)[2:]]
    found = [[(use["source"], use["target"], use["found"]) for use in record["terms"]] for record in records]
    cde, klm, fgh = ("cde", "SÜT", True), ("klm", "KLM", True), ("fgh", "unknown", False)
    assert found == [[cde, fgh], [fgh, cde], [klm], [], [klm, fgh]]
    assert translate(texts, glossary=Glossary([])) == [{**record, "terms": []} for record in plain]


def test_a_glossary_with_a_memory() -> None:
    pipe = make_pipe(make_taught_word_translator())
    glossary = Glossary([Term("b", ("y", "z")), Term("h", ("w",))])
    records = pipe(["a b c", "h", "b"], glossary=glossary, exact_matches=True, return_history=True, history_top=99)
    assert texts_of(records[:2]) == ["x y", "v u y x"]
    assert [[use["found"] for use in record["terms"]] for record in records] == [[True], [False], [True]]
    (record,) = pipe("h", glossary=glossary, use_history=False, num_beams=2)
    assert [use["target"] for use in record["terms"]] == ["w"]


def test_contradicting_translations_of_a_memory_are_told() -> None:
    pipe = make_pipe(make_taught_word_translator())
    pipe.model.history_bank.add([{"source": "a b c", "target": "u u", "file": "new.po", "line": 7}], namespace="ann")
    (record,) = pipe("a b c", exact_matches=True, return_match=True)
    alternatives = [{"translation": "x y", "where": "pairs:0"}]
    assert record["translation_text"] == "u u"
    assert record["match"] == {"score": 1.0, "text": "a b c", "translation": "u u", "alternatives": alternatives}
    first = Attachment(pipe.model.history_bank, ("default", "ann"))
    (record,) = pipe("a b c", exact_matches=True, return_match=True, history=first)
    assert record["translation_text"] == "x y"
    assert record["match"]["alternatives"] == [{"translation": "u u", "where": "new.po:7"}]
    assert "alternatives" not in pipe("h", return_match=True)[0]["match"]


def test_exact_matches_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = make_pipe(make_taught_word_translator(history={"bank": {"gate": [-20.0, 0.0, 0.0, 0.0]}}))
    records = pipe([*SOURCES, "d", ""], exact_matches=True, batch_size=3, return_history=True, return_match=True)
    assert texts_of(records[:5]) == TARGETS
    assert [record.get("exact", False) for record in records] == [True] * 5 + [False] * 2
    assert records[0]["base_share"] == 0
    assert [(pair["text"], pair["share"]) for pair in records[0]["history"]] == [("a b c", 1.0)]
    assert records[0]["match"] == {"score": 1.0, "text": "a b c", "translation": "x y"}
    assert texts_of(pipe(SOURCES)) != TARGETS
    monkeypatch.setattr(pipe.model, "generate", None)
    assert texts_of(pipe(SOURCES, exact_matches=True)) == TARGETS


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("history", [{}, {"bank": {"gate": [0.3, 0.2, 0.1, 0.1], "sharpness": 5.0}}], ids=str)
def test_shares_add_up_to_one(options: dict[str, int], history: dict[str, Any]) -> None:
    pipe = make_pipe(make_taught_word_translator(history=history))
    records = pipe(TEXTS, batch_size=4, **options, **HISTORY)
    for record in [one for own in records for one in (own if isinstance(own, list) else [own])]:
        shares = [pair["share"] for pair in record["history"]]
        assert shares == sorted(shares, reverse=True)
        assert record["base_share"] + sum(shares) == pytest.approx(1, abs=1e-5)
        for token in record["tokens"]:
            assert 0 <= token["base_share"] <= 1
            assert token["prob"] >= token["base_share"] * token["base_prob"] - 1e-6
            effects = sum(cause["effect"] for cause in token["causes"]) + token["rest"]
            assert token["prob"] - token["base_prob"] == pytest.approx(effects, abs=1e-6)
    assert (
        pipe(TEXTS[0], **options, return_history=True, history_top=2)[0]["history"]
        == (pipe(TEXTS[0], **options, **HISTORY)[0]["history"][:2])
    )


def test_the_history_names_the_pairs() -> None:
    pipe = make_pipe(make_taught_word_translator())
    record = pipe("d e", return_history=True, history_top=1, return_match=True)[0]
    assert record["translation_text"] == "y z w v"
    assert record["base_share"] < 1e-6
    (pair,) = record["history"]
    assert pair == {
        "text": "b c d e",
        "translation": "y z w v",
        "share": pytest.approx(pair["share"]),
        "where": "pairs:1",
        "match": 0.5,
        "source": "pairs",
        "row": 1,
    }
    assert pair["share"] > 0.9
    assert record["match"] == {"score": 0.5, "text": "b c d e", "translation": "y z w v"}
    assert "".join(token["text"] for token in record["tokens"][:4]) == "y z w v"
    cause = record["tokens"][1]["causes"][0]
    assert (cause["where"], cause["outcome"]) == ("pairs:1 (entry 4)", " z")
    assert cause["columns"] == {"text": "b c d e", "translation": "y z w v"}
    assert [len(token["causes"]) for token in record["tokens"]] == [1] * len(record["tokens"])
    assert all(token["prob"] > 0.9 > token["base_prob"] for token in record["tokens"])


@torch.no_grad()
def test_the_history_is_that_of_the_model() -> None:
    model = make_taught_word_translator(history={})
    sources, targets = (encode_sentences(texts, WORD_PAIRS_TOKENIZER) for texts in (SOURCES[::-1], TARGETS))
    batch = padded(sources, targets, WORD_PAIRS_TOKENIZER.pad_token_id)
    output, memory = model(**batch, output_history=True), Memory.of(model.history)
    probs = output.logits.exp().gather(-1, batch["labels"].clamp(min=0)[..., None])[..., 0]
    plain = model(**batch, use_history=False).logits.softmax(-1).gather(-1, batch["labels"].clamp(min=0)[..., None])
    source = model.read_source(batch["input_ids"], batch["attention_mask"])
    for row, explained in enumerate(model.explained(source, batch["labels"])):
        number, found = len(targets[row]), attribute(explained.history, memory)
        assert found.base_share == pytest.approx(float(output.history.base_share[row, :number].mean()))
        assert explained.mixed.tolist() == pytest.approx(probs[row, :number].tolist(), rel=1e-4)
        assert explained.base.tolist() == pytest.approx(plain[row, :number, 0].tolist(), rel=1e-4)
        by_pair = dict.fromkeys(found.shares, 0.0)
        shares, ids = output.history.bank_shares[row, :number].mean(0), output.history.bank_ids[row, 0]
        for share, entry in zip(shares.tolist(), ids.tolist(), strict=True):
            if entry >= 0:
                text = model.history_bank.describe([entry])[0].columns["text"]
                by_pair[[pair["text"] for pair in memory.pairs].index(text)] += share
        assert found.shares == pytest.approx(by_pair)


def test_history_after_forgetting_and_of_namespaces() -> None:
    model = make_taught_word_translator()
    model.history_bank.forget(where={"text": "a b c"})
    model.history_bank.add([{"source": "a b c", "target": "u u"}], source="more", namespace="mine")
    pipe = make_pipe(model)
    record = pipe("a b c", **HISTORY)[0]
    assert record["translation_text"] == "u u"
    assert (record["history"][0]["source"], record["history"][0]["row"]) == ("more", 0)
    model.attach_history(model.history_bank, "default", WORD_PAIRS_TOKENIZER)
    record = pipe("a b c", **HISTORY)[0]
    assert {pair["source"] for pair in record["history"]} == {"pairs"}
    assert "a b c" not in {pair["text"] for pair in record["history"]}


def test_threads_with_memories_of_their_own_do_not_see_each_other() -> None:
    model = make_taught_word_translator()
    bank = model.history_bank
    bank.add([{**pair, "target": "u u"} for pair in WORD_PAIRS], source="other", namespace="other")
    model.detach_history()
    pipe, memories = make_pipe(model), [Attachment(bank, (name,)) for name in ("default", "other")]
    asked = {"return_match": True, "batch_size": 3, **HISTORY}

    def translate(number: int) -> Any:
        return pipe(SOURCES, history=memories[number % 2], exact_matches=number > 1, **asked)

    alone = [translate(number) for number in range(4)]
    assert texts_of(alone[0]) == texts_of(alone[2]) == TARGETS
    assert texts_of(alone[1]) == texts_of(alone[3]) == ["u u"] * len(SOURCES)
    assert {pair["source"] for record in alone[1] for pair in record["history"]} == {"other"}
    assert {record["match"]["translation"] for record in alone[1]} == {"u u"}
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(translate, [0, 1, 2, 3] * 2)) == alone * 2
    bank.forget(namespace="other")
    (record,) = pipe("a b c", history=memories[1], exact_matches=True, **asked)  # a namespace that is gone
    assert (record["base_share"], record["history"], record["match"]) == (1.0, [], None)
    assert make_pipe(model, history=bank)(SOURCES) == pipe(SOURCES, history=bank) != pipe(SOURCES)


@pytest.mark.parametrize("how", ["none", "off", "config", "no word"])
def test_without_a_memory_the_base_moves_all(how: str) -> None:
    pipe = make_pipe(make_word_translator() if how == "none" else make_taught_word_translator())
    pipe.model.config.use_history = how != "config"
    options = {"use_history": False} if how == "off" else {}
    records = pipe(["x", "a b c"][: 1 if how == "no word" else 2], **HISTORY, **options)
    for record in records:
        assert (record["base_share"], record["history"]) == (1.0, [])
    assert pipe("zz", return_match=True, exact_matches=True)[0]["match"] is None


def test_a_model_of_transformers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = MarianConfig(
        vocab_size=len(WORD_PAIRS_TOKENIZER),
        d_model=8,
        encoder_ffn_dim=8,
        decoder_ffn_dim=8,
        max_position_embeddings=24,
        pad_token_id=1,
        eos_token_id=0,
        bos_token_id=None,
        decoder_start_token_id=1,
        forced_eos_token_id=None,
        init_std=2.0,
        **sizes,
    )
    MarianMTModel(config).save_pretrained(tmp_path)
    WORD_PAIRS_TOKENIZER.save_pretrained(tmp_path)
    pipe: Any = pipeline("translation", model=str(tmp_path), device="cpu")
    assert isinstance(pipe.model, MarianMTModel)
    texts = ["a b c", "", "f g {n}", "h e d a"]
    records = pipe(texts, batch_size=4)
    assert records == [pipe(text)[0] for text in texts]
    assert all(record["translation_text"] for record, text in zip(records, texts, strict=True) if text)
    assert records[2]["lost"] == ["{n}"]
    assert len(pipe("a b c", num_beams=2, num_return_sequences=2)) == 2
    wrong: dict[str, Any] = dict.fromkeys(("return_history", "return_match", "exact_matches"), True)
    wrong["history"] = make_taught_word_translator().history
    for option, value in wrong.items():
        with pytest.raises(TypeError, match="need an LLE translator; this is a MarianMTModel"):
            pipe("a", **{option: value})


def test_what_is_refused(tmp_path: Path) -> None:
    pipe = make_pipe(make_word_translator())
    for wrong, kind in ((None, "NoneType"), (3, "int"), (["a", 3], "int"), ([["a"]], "list"), ({"text": "a"}, "dict")):
        with pytest.raises(TypeError, match=f"which is {kind}: give texts"):
            pipe(wrong)
    with pytest.raises(ValueError, match=r"not used by the model.*num_beans"):
        pipe("a", num_beans=3)
    with pytest.raises(TypeError, match=r"needs a model from text to text.*LLEForCausalLM"):
        make_pipe(make_language_model(vocab_size=len(WORD_PAIRS_TOKENIZER)))
    with pytest.raises(ValueError, match="default"):
        pipeline("translation")


def test_options_of_the_pipeline_hold_for_every_call(tmp_path: Path) -> None:
    pipe = make_pipe(
        make_taught_word_translator(), num_beams=2, num_return_sequences=2, return_match=True, batch_size=2
    )
    records = pipe(SOURCES)
    assert [len(own) for own in records] == [2] * len(SOURCES)
    assert records[0][0]["match"]["score"] == 1
    assert len(pipe("a", num_return_sequences=1)) == 1
    pipe.save_pretrained(tmp_path)
    assert type(AutoModelForSeq2SeqLM.from_pretrained(tmp_path)) is modeling_lle.LLEForSeq2SeqLM
