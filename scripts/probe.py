"""Runs every kind of model once, tiny and with fixed seeds, and writes down every number that comes out.

    PYTHONPATH=CHECKOUT python probe.py CHECKOUT values.safetensors

`scripts/compare.py` runs it in two checkouts and compares the files. It takes half a minute, longer where the kernels
have to be compiled first. It uses public names only, and configurations of version 1, which every later version reads,
so that the same text runs before and after a change; where a public call changes, edit it here for both.
"""

import functools
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import Tensor

import modeling_lle
from modeling_lle import (
    HistoryBank,
    LLECache,
    LLEConfig,
    LLEForCausalLM,
    LLEForSeq2SeqLM,
    LLEForSequenceClassification,
    LLEForTokenClassification,
    LLETokenizer,
)
from modeling_lle.data import collect, tokenize
from modeling_lle.evaluation import evaluate_classifier, evaluate_stream, evaluate_translator
from modeling_lle.training import calibrate, make_recipe, run, segments

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "that", "dog"]
LINES = [
    " ".join(WORDS[(3 * line + line // 10 + place * place) % 10] for place in range(4 + line % 5))
    for line in range(40)
]
PAIRS = [{"source": line, "target": " ".join(reversed(line.upper().split()))} for line in dict.fromkeys(LINES)]
# What calibration fits, by the sections of a configuration.
FITTED = {
    "stream": ("sharpness", "recency", "gate"),
    "bank": ("sharpness", "background", "gate"),
    "training": ("sharpness", "gate"),
    "out_of_scope": ("weights", "threshold"),
}
MEASURED_TIME = ("seconds", "per_second", "minutes", "runtime")  # what metrics that differ from run to run end with

STREAM = {"window": 9, "sharpness": 5.0, "recency": 0.5, "gate": [-0.7, 0.4, 0.3, -0.2]}
BANK = {"neighbours": 4, "sharpness": 6.0, "gate": [-0.5, 0.2, 0.1, -0.3]}
LABEL_BANK = {**BANK, "background": 0.5, "margin": 0.05}
HEADS = {"num_attention_heads": 2}
OFF = {"window": 0}
SIZES = {"hidden_size": 8, "num_hidden_layers": 2, "initializer_range": 0.2}
DROPOUT = {f"{part}_dropout": 0.2 for part in ("token", "embedding", "input", "hidden", "output", "weight")}
PENALTIES = {"activation_penalty": 2.0, "smoothness_penalty": 1.0}

LARGE = 52_000  # entries of a bank that is searched by an index
Values = dict[str, Any]


def make(kind: Any, tokenizer: LLETokenizer, **values: Any) -> Any:
    """A model of a class in evaluation mode; `values` are fields of a configuration of version 1."""
    torch.manual_seed(0)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    own = {"model_type": "lle", "config_version": 1, "vocab_size": len(tokenizer), "is_encoder_decoder": False}
    return kind(LLEConfig.from_dict({**own, **ids, **SIZES, **values})).eval()


@functools.cache
def words(ends_texts: bool = False) -> LLETokenizer:
    """The tokenizer of all texts."""
    texts = [*LINES, *(pair["target"] for pair in PAIRS)]
    return LLETokenizer.train(texts, kind="word", ends_texts=ends_texts)


def batch(texts: Sequence[str], tokenizer: LLETokenizer) -> dict[str, Tensor]:
    """Tokens and mask of texts, padded."""
    return dict(tokenizer(list(texts), return_tensors="pt", padding=True))


def fitted(config: Any) -> Values:
    """The parameters of a configuration that calibration and training with history fit."""
    history: Any = config.history
    classifier: Any = getattr(config, "classifier", None)  # since version 2 of the configuration
    found: Values = {}
    for section, names in FITTED.items():
        own = getattr(history, section, None) or classifier.out_of_scope
        found[section] = {name: getattr(own if hasattr(own, name) else classifier, name) for name in names}
    return found


def step(model: Any, *inputs: dict[str, Any]) -> Values:
    """Losses, further outputs and gradients of a training step on batches that follow each other."""
    torch.manual_seed(1)
    model.train()
    outputs = [model(**own) for own in inputs]
    torch.stack([output.loss for output in outputs]).sum().backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    model.eval()
    return {"outputs": [dict(output.items()) for output in outputs], "gradient": gradients}


def text_batch() -> dict[str, Tensor]:
    """Texts for a language model, which predicts their tokens."""
    own = batch(LINES[:6], words())
    return {**own, "labels": own["input_ids"].masked_fill(own["attention_mask"] == 0, -100)}


def stream_batches(cache: LLECache | None) -> list[dict[str, Any]]:
    """Two segments of the same texts, with the cache that carries one's history into the next."""
    whole = batch(LINES[:2] * 3, words())["input_ids"].view(2, -1)
    cuts = [(0, 5), (5, 5 + (whole.shape[1] - 6))]
    more = {} if cache is None else {"past_key_values": cache, "use_cache": True}
    return [{"input_ids": whole[:, a:b], "shift_labels": whole[:, a + 1 : b + 1], **more} for a, b in cuts]


def recurrences() -> Values:
    """Each recurrence in each stack, forwards and backwards."""
    values: Values = {}
    for recurrence in ("lstm", "gru", "qrnn"):
        for stack in ("plain", "residual"):
            sizes = {"intermediate_size": 10, "tie_word_embeddings": stack == "plain", "history": {"stream": OFF}}
            model = make(LLEForCausalLM, words(), recurrence=recurrence, stack=stack, **sizes, **DROPOUT, **PENALTIES)
            found: Values = {"training": step(model, text_batch())}
            with torch.no_grad():
                output = model(**text_batch(), output_hidden_states=True)
            found |= {"loss": output.loss, "logits": output.logits, "states": list(output.hidden_states)}
            values[f"{recurrence}/{stack}"] = found
    return values


@torch.no_grad()
def histories() -> Values:
    """What the stream, a bank and the test-time update make of predictions, of scores and of whole texts."""
    values: Values = {}
    tokens = collect(tokenize(Dataset.from_dict({"text": LINES}), words()), start=words().eos_token_id)
    for name in ("stream", "bank", "head", "low-rank", "all"):
        update = {"scope": name, "every": 3, "rate": 0.005, "momentum": 0.3, "rank": 4}
        history: Values = {"stream": OFF if name == "bank" else STREAM, "bank": BANK}
        history |= {"update": update} if name in ("head", "low-rank", "all") else {}
        model = make(LLEForCausalLM, words(), recurrence="qrnn", history=history)
        if "update" in history:
            model.collect_update_statistics(segments(tokens.ids, 100, 12))
        if name in ("bank", "all"):
            model.attach_history(HistoryBank.build(model, words(), LINES[:8], source="lines"), tokenizer=words())
        cache = LLECache(history["stream"]["window"])
        found: Values = {"statistics": model.update_statistics or {}, "padded": model(**text_batch()).logits}
        outputs = [model(**own) for own in stream_batches(cache)]
        found["segments"] = [{"loss": output.loss, "logits": output.logits} for output in outputs]
        scores = model.score(**stream_batches(None)[1])
        found["score"] = {key: value for key, value in scores.items() if isinstance(value, Tensor)}
        found["evaluation"] = evaluate_stream(model, tokens, rows=2, segment_length=32).metrics()
        found["calibration"] = calibrate(model, tokens.ids, 120, 32)
        found["calibrated"] = fitted(model.config)
        values[name] = found
    return values


def training_with_history() -> Values:
    """The rule in the training loss, with the other rows of the batch and without."""
    values: Values = {}
    for other_rows in (True, False):
        training = {"window": 6, "other_rows": other_rows, "sharpness": 7.0, "gate": [-0.5, 0.2, 0.1, -0.3]}
        model = make(LLEForCausalLM, words(), history={"stream": STREAM, "training": training}, **PENALTIES)
        found = step(model, *stream_batches(LLECache(6)))
        values["other_rows" if other_rows else "own_row"] = found
    return values


@torch.no_grad()
def banks() -> Values:
    """What a bank holds, finds and forgets."""
    model = make(LLEForCausalLM, words(), recurrence="gru", history={"bank": BANK})
    bank = HistoryBank.build(model, words(), LINES[:9], source="first")
    bank.add(LINES[9:20], source="second", namespace="own", keep_below=0.2, merge=True)
    queries = torch.randn(5, 8, generator=torch.Generator().manual_seed(2))
    queries = torch.nn.functional.normalize(queries, dim=-1)
    found: Values = {"fingerprint": bank.manifest.fingerprint, "entries": len(bank)}
    for name, space in (("all", None), ("own", ["own"])):
        for how in ("exact", "balanced", "fast"):
            found[f"{name}/{how}"] = vars(bank.search(queries, 6, space, how))
    found["texts"] = [entry.before + entry.after for entry in bank.describe(range(4))]
    found["forgotten"] = bank.forget(source="first", where={"row": 3})
    found["after"] = vars(bank.search(queries, 6))
    drawn = torch.randint(10, (LARGE // 500, 500), generator=torch.Generator().manual_seed(4))
    large = HistoryBank.build(model, words(), [" ".join(WORDS[i] for i in row) for row in drawn.tolist()])
    found["large"] = {how: vars(large.search(queries, 6, None, how)) for how in ("exact", "balanced", "fast")}
    return found


@torch.no_grad()
def generation() -> Values:
    """Texts from a language model with a stream and a bank: greedy, by beams, and drawn."""
    model = make(LLEForCausalLM, words(), recurrence="qrnn", history={"stream": STREAM, "bank": BANK})
    model.attach_history(HistoryBank.build(model, words(), LINES[:8], source="lines"), tokenizer=words())
    prompt = batch([LINES[1], LINES[2][:7]], words())
    values = {}
    ways: dict[str, Values] = {"greedy": {}, "beams": {"num_beams": 3}, "drawn": {"do_sample": True}}
    for name, how in ways.items():
        torch.manual_seed(3)
        values[name] = model.generate(**prompt, max_new_tokens=12, **{"do_sample": False, **how})
    return values


def classifiers() -> Values:
    """Classifiers of texts and of tokens: training, what they are taught, what is out of scope, calibration."""
    names = {0: "A", 1: "B", 2: "C"}
    own = {"bidirectional": True, "id2label": names, "history": {"bank": LABEL_BANK}, "recurrence": "gru"}
    whole = {"members": 2, "pooling": ["last", "mean", "max", "attention"], **own}
    texts = list(dict.fromkeys(LINES))
    taught = {text: "ABCD"[len(text) % 4] for text in texts[:12]}
    inputs = batch(texts[12:18], words())
    values: Values = {}

    model = make(LLEForSequenceClassification, words(), **whole, **DROPOUT)
    labelled = {**inputs, "labels": torch.tensor([0, 1, 2, 2, 1, 0])}
    values["texts"] = found = {"training": step(model, labelled), "base": scoped(model, labelled)}
    found["taught"] = model.learn(list(taught), list(taught.values()), words(), new_labels=True)
    found["with_bank"] = scoped(model, labelled)
    found["calibration"] = model.calibrate([labelled])
    found["scope"] = model.fit_out_of_scope([labelled], [batch(texts[18:22], words())], keep=0.9)
    found["calibrated"] = fitted(model.config)
    found["forgotten"] = model.forget(label="D")
    rows = Dataset.from_dict({"text": texts[12:18], "label": list("ABCCBA")})
    found["evaluation"] = evaluate_classifier(model, words(), rows, 4).metrics()

    model = make(LLEForTokenClassification, words(), **own, **DROPOUT)
    labelled["labels"] = (inputs["input_ids"] % 3).masked_fill(inputs["attention_mask"] == 0, -100)
    values["tokens"] = found = {"training": step(model, labelled)}
    split = [text.split() for text in texts[:8]]
    given = [["ABCD"[len(word) % 4] if place % 3 else None for place, word in enumerate(text)] for text in split]
    found["taught"] = model.learn(split, given, words(), new_labels=True)
    found["with_bank"] = scoped(model, labelled)
    found["calibration"] = model.calibrate([labelled])
    found["calibrated"] = fitted(model.config)
    return values


@torch.no_grad()
def scoped(model: Any, inputs: dict[str, Tensor]) -> Values:
    """Outputs of a classifier, with the score of "none of these"."""
    return dict(model(**inputs, output_out_of_scope=True).items())


def translators() -> Values:
    """Translators with and without a memory: training, translating, calibration."""
    values: Values = {}
    for name, more in {"shared": {}, "apart": {"share_embeddings": False, "tie_word_embeddings": False}}.items():
        recurrence = "qrnn" if name == "shared" else "lstm"
        translator = {"is_encoder_decoder": True, "model_type": "lle_seq2seq", "num_encoder_layers": 2, **HEADS}
        history = {"bank": {**BANK, "sentences": 2}}
        tokenizer = words(ends_texts=True)
        model = make(
            LLEForSeq2SeqLM, tokenizer, recurrence=recurrence, history=history, **translator, **more, **DROPOUT
        )
        inputs = batch([pair["source"] for pair in PAIRS[6:10]], tokenizer)
        target = batch([pair["target"] for pair in PAIRS[6:10]], tokenizer)
        labels = target["input_ids"].masked_fill(target["attention_mask"] == 0, -100)
        found = {"training": step(model, {**inputs, "labels": labels})}
        bank = HistoryBank.build(model, tokenizer, PAIRS[:8], source="pairs")
        model.attach_history(bank, tokenizer=tokenizer)
        with torch.no_grad():
            output = model(**inputs, labels=labels)
            found |= {"loss": output.loss, "logits": output.logits}
            for beams in (1, 3):
                found[f"beams_{beams}"] = model.generate(**inputs, num_beams=beams, do_sample=False, max_new_tokens=9)
        found["calibration"] = model.calibrate()
        found["calibrated"] = fitted(model.config)
        rows = Dataset.from_list(PAIRS[6:10])
        evaluation = evaluate_translator(model, tokenizer, rows, 2, 4)
        found |= {"evaluation": evaluation.metrics(), "translations": evaluation.translations}
        values[name] = found
    return values


def recipes() -> Values:
    """A tiny recipe of each task, from a model that is made here: what is logged, the metrics and the weights."""
    labels = [line.split()[0] for line in LINES]
    names = dict(enumerate(sorted(set(labels))))
    text = Dataset.from_dict({"text": LINES})
    pairs = Dataset.from_dict({"en": [p["source"] for p in PAIRS], "de": [p["target"] for p in PAIRS]})
    languages = {"source_language": "en", "target_language": "de"}
    translator = {"is_encoder_decoder": True, "model_type": "lle_seq2seq", "num_encoder_layers": 1, **HEADS}
    learner = {"history": {"stream": STREAM, "training": {"window": 6}}}
    two_ways = {"bidirectional": True, "id2label": names, "label2id": {name: i for i, name in names.items()}}
    kinds: dict[str, tuple[Any, Values, Values, Values, Values]] = {
        "text-generation": (
            LLEForCausalLM,
            learner,
            {},
            {"segment_length": 6, "calibration_tokens": 60},
            {"train": text, "validation": text.select(range(12))},
        ),
        "text-classification": (
            LLEForSequenceClassification,
            two_ways,
            {"held_out": 0.25},
            {"pretraining_epochs": 1.0, "adversarial": 0.1},
            {"train": text.add_column("label", labels)},
        ),
        "translation": (
            LLEForSeq2SeqLM,
            translator,
            languages,
            {},
            {"train": pairs, "validation": pairs.select(range(6))},
        ),
    }
    return {task: recipe(task, *kind) for task, kind in kinds.items()}


def recipe(task: str, kind: Any, values: Values, data: Values, training: Values, rows: Values) -> Values:
    """Trains a model of a class, with `values` in its configuration, for six steps."""
    with tempfile.TemporaryDirectory() as name:
        start, made = Path(name) / "start", Path(name) / "made"
        tokenizer = words(ends_texts=task == "translation")
        make(kind, tokenizer, recurrence="qrnn", input_dropout=0.2, **values).save_pretrained(start)
        tokenizer.save_pretrained(start)
        sizes = {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 10, "learning_rate": 0.01}
        steps = {"max_steps": 6, "save_strategy": "steps", "save_steps": 6, "logging_steps": 1, "disable_tqdm": True}
        section = {"output_dir": str(made), "precision": "float32", **sizes, **steps, **training}
        metrics = run(
            make_recipe({"task": task, "data": data, "model": {"path": str(start)}, "training": section}), rows
        )
        state = json.loads((made / "checkpoint-6" / "trainer_state.json").read_text())
        calibrated, weights = fitted(kind.from_pretrained(made).config), load_file(made / "model.safetensors")
        return {"logged": state["log_history"], "metrics": metrics, "calibrated": calibrated, "weights": weights}


PARTS: list[Callable[[], Values]] = [
    recurrences,
    histories,
    training_with_history,
    banks,
    generation,
    classifiers,
    translators,
    recipes,
]


def flat(values: Any, name: str) -> dict[str, Tensor]:
    """Nested values as tensors by their paths, numbers as float64 and texts as bytes, without measured times."""
    if name.endswith(MEASURED_TIME) or values is None:
        return {}
    if isinstance(values, dict):
        return {path: value for key, own in values.items() for path, value in flat(own, f"{name}/{key}").items()}
    if isinstance(values, list | tuple) and not all(isinstance(own, int | float) for own in values):
        return flat(dict(enumerate(values)), name)
    if isinstance(values, Tensor):
        return {name: values.detach().cpu().contiguous().clone()}
    if isinstance(values, str):
        return {name: torch.frombuffer(bytearray(values.encode() or b"\0"), dtype=torch.uint8)}
    if isinstance(values, int | float | list | tuple):
        return {name: torch.tensor(values, dtype=torch.float64)}
    return {}  # a cache


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs all parts with the package in the folder that is named first, and writes the file that is named then."""
    checkout, path = sys.argv[1:] if arguments is None else arguments
    if not Path(modeling_lle.__file__).is_relative_to(checkout):
        raise ImportError(f"the package is that of {modeling_lle.__file__}: set PYTHONPATH={checkout}")
    torch.set_num_threads(1)
    found: dict[str, Tensor] = {}
    for part in PARTS:
        found |= flat(part(), part.__name__)
    save_file(found, path)


if __name__ == "__main__":
    main()
