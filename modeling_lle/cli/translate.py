"""Commands of translators: `lle translate | memory`. Heavy imports are deferred until a command runs."""

import os
import random
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..common.paths import names_file
from ..common.remembered import remembered
from ..common.terminal import counted, printable, printable_lines, progress, say
from .options import (
    Bank,
    BatchSize,
    Data,
    Folder,
    InPrecision,
    Language,
    Name,
    Namespace,
    Namespaces,
    Precision,
    SourceName,
    TextColumn,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..bank import protocol
    from ..models.seq2seq import LLEForSeq2SeqLM

Given = Annotated[
    str,
    typer.Argument(
        metavar="TEXT",
        help="A text, or a text file, or a .csv, .tsv, .json or .jsonl file, or a .po or .pot catalogue.",
    ),
]
CATALOGUES = (".po", ".pot")
COLUMNS = (
    "translation",
    "confidence",
    "exact",
    "lost",
    "added",
    "terms",
    "base_share",
    "history",
)  # of a written table
SHOWN = 60  # characters of a text of the memory
BATCH = 32  # pairs of a batch of calibration
FITTED = 200  # pairs of a memory to which the rule is fitted unasked
PLACES = 5  # of texts without a translation


@dataclass(frozen=True)
class _Document:
    """Texts to translate.

    Attributes:
        texts: Texts, possibly blank.
        places: Place of each text, for messages.
        write: Writes the output file from the results of the pipeline.
    """

    texts: list[str]
    places: list[str]
    write: Callable[[Path, list[dict[str, Any]]], None]


def translate(
    model: Folder,
    given: Given,
    output: Annotated[
        Path | None, typer.Option(help="File to write: .txt, .csv, .tsv or .jsonl; for a catalogue .po.")
    ] = None,
    text_column: TextColumn = None,
    bank_path: Bank = None,
    namespace: Namespaces = None,
    beams: Annotated[int, typer.Option(min=1, help="Beam size; 1 is fastest.")] = 5,
    batch_size: BatchSize = 32,
    history_top: Annotated[
        int, typer.Option(min=0, help="Number of sentence pairs behind a translation to show.")
    ] = 0,
    exact_matches: Annotated[
        bool, typer.Option("--exact-matches", help="Use the memory's translation for sources that it holds.")
    ] = False,
    glossary: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Terms to follow: a .csv or .tsv with a column a language, or a .tbx."),
    ] = None,
    source_language: Language = None,
    target_language: Language = None,
    fuzzy: Annotated[
        bool, typer.Option("--fuzzy/--no-fuzzy", help="Mark translations filled into a catalogue as fuzzy.")
    ] = True,
    confidence: Annotated[
        float | None,
        typer.Option(
            min=0.0, max=1.0, help="Shows how sure each translation is; in a catalogue, those above are not fuzzy."
        ),
    ] = None,
    precision: InPrecision = Precision.auto,
) -> None:
    """Translates a text, or all texts of a file; in a PO catalogue, the untranslated ones."""
    needed = glossary is not None or Path(given).suffix.lower() in CATALOGUES
    trained = remembered(model) if needed else {}
    sides = source_language or trained.get("source_language"), target_language or trained.get("target_language")
    document = _read(given, output, text_column or "text", fuzzy, confidence, sides[1])
    if history_top and output is not None and output.suffix.lower() in (".txt", *CATALOGUES):
        raise ValueError(f"{str(output)!r} can hold translations only: leave out --history-top, or write a .jsonl")
    options: dict[str, Any] = {"num_beams": beams, "exact_matches": exact_matches, "return_match": exact_matches}
    if glossary is not None:
        from ..data.glossary import load_glossary

        options["glossary"] = load_glossary(glossary, source_language=sides[0], target_language=sides[1])
    options |= {"return_history": True, "history_top": history_top} if history_top else {}
    options |= {"return_confidence": True} if confidence is not None else {}
    begin = time.perf_counter()
    results = _translate(model, document.texts, bank_path, namespace, batch_size, precision.value, options)
    seconds = time.perf_counter() - begin
    if output is None:
        for text, result in zip(document.texts, results, strict=True):
            typer.echo(_format(text, result))
    else:
        document.write(output, results)
    said = _summary(document, results, seconds, exact_matches, confidence)
    say(", ".join([*said, *([f"in {output}"] if output is not None else [])]) + ".", err=output is None)


def _summary(
    document: _Document, results: list[dict[str, Any]], seconds: float, exact_matches: bool, confidence: float | None
) -> list[str]:
    """Reports what is wrong with translations; returns what to say of all of them."""
    faults = _report(document, results)
    given_texts = sum(bool(text.strip()) for text in document.texts)
    exact = sum("exact" in result for result in results)
    said = [f"{counted(given_texts - faults['empty'], 'text')} translated in {seconds:.1f} s"]
    said += [f"{faults['empty']:,} of {given_texts:,} left empty"] if faults["empty"] else []
    said += [f"{exact:,} of them from the memory"] if exact_matches else []
    if confidence is not None:
        sure = sum(result["confidence"] >= confidence for result in results)
        said.append(f"{sure:,} with a confidence of {confidence:g} or more")
    said += [f"{faults['changed']:,} with other placeholders"] if faults["changed"] else []
    return said + ([f"{faults['terms']:,} without a term of the glossary"] if faults["terms"] else [])


def _report(document: _Document, results: list[dict[str, Any]]) -> dict[str, int]:
    """Says what is wrong with translations, with their places; returns the number of translations with each fault."""
    changed = terms = 0
    for place, result in zip(document.places, results, strict=True):
        wrong = [f"{name} {' '.join(result[name])}" for name in ("lost", "added") if name in result]
        missing = [f"{use['target']!r} for {use['source']!r}" for use in result.get("terms", []) if not use["found"]]
        changed, terms = changed + bool(wrong), terms + bool(missing)
        wrong += [f"lacks {', '.join(missing)}"] if missing else []
        if wrong:
            say(f"{place}: the translation {' and '.join(wrong)}", err=True)
        if "exact" in result and (others := result["match"].get("alternatives")):
            named = ", ".join(f"{_short(pair['translation'])} ({printable(pair['where'])})" for pair in others)
            say(f"{place}: the memory has other translations too: {named}", err=True)
    empty = [
        place
        for place, text, result in zip(document.places, document.texts, results, strict=True)
        if text.strip() and not result["translation_text"].strip()
    ]
    if empty:
        more = f" and {len(empty) - PLACES:,} more" if len(empty) > PLACES else ""
        say(f"no translation of {', '.join(empty[:PLACES])}{more}", err=True)
    return {"changed": changed, "terms": terms, "empty": len(empty)}


def _read(
    given: str, output: Path | None, text_column: str, fuzzy: bool, least: float | None, language: str | None
) -> _Document:
    """Texts of a file, or a single text; raises an error if they cannot be written to `output`.

    What is filled into a catalogue is marked fuzzy unless its confidence is at least `least`. A catalogue must not be
    of another target language; None: unknown.
    """
    path = Path(given)
    if path.suffix.lower() in CATALOGUES and names_file(given):
        return _read_catalogue(path, output, fuzzy, least, language)
    return _read_table(given, output, text_column)


def _read_catalogue(
    path: Path, output: Path | None, fuzzy: bool, least: float | None, language: str | None
) -> _Document:
    """Untranslated texts of a catalogue."""
    from ..data.catalogue import check_language, read_catalogue, write_catalogue
    from ..data.tables import check_output

    catalogue = read_catalogue(path)
    if language is not None:
        check_language(catalogue.header, language, path)
    entries = catalogue.untranslated
    if output is not None:
        check_output(output, CATALOGUES)

    def write(output: Path, results: list[dict[str, Any]]) -> None:
        left = iter(results)
        found = [[next(left) for _ in entry.texts] for entry in entries]
        translations = [[result["translation_text"] for result in own] for own in found]
        marks = [
            fuzzy and (least is None or any(result["confidence"] < least or _is_faulty(result) for result in own))
            for own in found
        ]
        write_catalogue(catalogue, translations, None if _is_same(output, path) else output, fuzzy=marks)

    return _Document(
        texts=[text for entry in entries for text in entry.texts],
        places=[f"line {entry.line} of {str(path)!r}" for entry in entries for _ in entry.texts],
        write=write,
    )


def _read_table(given: str, output: Path | None, text_column: str) -> _Document:
    """Texts of a table or text file, or a single text."""
    from ..data.tables import KINDS, check_output, free_names, read_table, write_lines, write_table

    table = read_table(given, text_column)
    texts = ["" if text is None else text for text in table.values(text_column)]
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"the text in row {row} of {table.where} is {text!r:.80}, no string: remove the row")
    if not any(text.strip() for text in texts):
        raise ValueError(f"there is nothing to translate in {table.where}: it is blank")
    names = {}
    if output is not None:
        check_output(output, KINDS)
        if output.suffix.lower() != ".txt":
            names = free_names(COLUMNS, table.columns, table.where)
        elif _is_same(output, given):
            raise ValueError(f"{str(output)!r} would be replaced by its translation: name another --output")

    def write(output: Path, results: list[dict[str, Any]]) -> None:
        if output.suffix.lower() == ".txt":
            write_lines(output, [result["translation_text"] for result in results])
            return
        found = [{"translation": result["translation_text"], **result} for result in results]
        new = [{names[name]: own[name] for name in COLUMNS if name in own} for own in found]
        write_table(output, [{**row, **columns} for row, columns in zip(table.rows, new, strict=True)])

    places = ["the text"]
    if os.path.exists(given):
        what, first = ("line", 1) if Path(given).suffix.lower() == ".txt" else ("row", 0)
        places = [f"{what} {number} of {table.where}" for number in range(first, first + len(texts))]
    return _Document(texts, places, write)


def _is_faulty(result: dict[str, Any]) -> bool:
    """Whether placeholders or a term are not as they should be."""
    return bool({"lost", "added"} & result.keys()) or not all(use["found"] for use in result.get("terms", []))


def _is_same(output: Path, given: str | Path) -> bool:
    return output.exists() and os.path.exists(given) and os.path.samefile(output, given)


def _translate(
    model: str,
    texts: list[str],
    bank_path: Path | None,
    namespaces: list[str] | None,
    batch_size: int,
    precision: str,
    options: dict[str, Any],
) -> list[dict[str, Any]]:
    """Results of the pipeline for each text; equal texts are translated once."""
    from ..common.batches import batches
    from ..common.precision import in_precision
    from ..pipelines.translation import LLETranslationPipeline
    from ..saved import attach_bank, load_translator

    loaded, tokenizer = load_translator(model)
    attach_bank(loaded, tokenizer, model, bank_path, namespaces or None)
    if options["exact_matches"] and loaded.history_bank is None:
        raise ValueError(
            f"{model} has no memory for exact matches: name one with --bank, or make it with `lle memory`"
        )
    pipe = LLETranslationPipeline(model=loaded, tokenizer=tokenizer, task="translation")
    different = list(dict.fromkeys(texts))
    results: dict[str, dict[str, Any]] = {}
    bar = progress(len(different), "Translating", "texts", len(different) > 1)
    with bar, in_precision(loaded, precision):
        # Batches of similar length; the number of bytes bounds the number of tokens.
        for rows in batches([len(text.encode()) + 1 for text in different], batch_size):
            own = [different[row] for row in rows]
            results |= zip(own, pipe(own, batch_size=len(own), **options), strict=True)
            bar.update(len(own))
    return [results[text] for text in texts]


def _format(text: str, result: dict[str, Any]) -> str:
    """Lines of a result for the terminal."""
    if not text.strip():
        return ""
    translation = typer.style(printable_lines(result["translation_text"]), bold=True)
    sure = f"  (confidence {result['confidence']:.2f})" if "confidence" in result else ""
    lines = [f"{printable_lines(text)} -> {translation}{sure}"]
    if "history" in result:
        lines += [
            f"  {pair['share']:+.4f}  {_short(pair['text'])} -> {_short(pair['translation'])} "
            f"(match {pair['match']:.2f}, {printable(pair['where'])})"
            for pair in result["history"]
        ]
        lines.append(f"  {result['base_share']:+.4f}  the base")
    return "\n".join(lines)


def _short(text: str) -> str:
    return repr(text if len(text) <= SHOWN else text[: SHOWN - 3] + "...")


def memory(
    model: Folder,
    source: Data,
    place: Annotated[
        Path | None,
        typer.Argument(metavar="[BANK]", help="Folder of the memory, made if missing; by default that in MODEL."),
    ] = None,
    source_language: Language = None,
    target_language: Language = None,
    name: Name = None,
    split: Annotated[str | None, typer.Option(help="Split to read; by default train, else all pairs.")] = None,
    source_column: Annotated[str | None, typer.Option(help="Column of the source in a table.")] = None,
    target_column: Annotated[str | None, typer.Option(help="Column of the translation in a table.")] = None,
    source_name: SourceName = None,
    namespace: Namespace = "default",
    skip_broken: Annotated[bool, typer.Option("--skip-broken", help="Skip pairs that lack a side.")] = False,
    calibrate: Annotated[
        bool | None,
        typer.Option(
            "--calibrate/--no-calibrate",
            help=f"Fit the rule to the memory; writes the model's config.json. By default once, from {FITTED} pairs.",
        ),
    ] = None,
    confidence: Annotated[
        bool,
        typer.Option("--confidence", help="Fit the confidence in translations, by translating pairs of the memory."),
    ] = False,
    precision: InPrecision = Precision.auto,
) -> None:
    """Builds a translation memory from sentence pairs, or adds to it, without training; effective at once.

    DATA may also be a TMX, PO or MO file, or parallel files of lines named by language.
    """
    from ..common.precision import in_precision
    from ..common.temporary import TemporaryFolder
    from ..data import load_pairs
    from ..saved import bank_place, languages_of, load_translator, remember

    if (calibrate or confidence) and not Path(model).is_dir():
        raise ValueError(f"{model} is not a local folder, so --calibrate and --confidence cannot save there")
    path = bank_place(model, place, "BANK")
    sides = languages_of(model, source_language, target_language)
    with TemporaryFolder("lle-texts-") as cache:  # else a copy stays in the cache of `datasets`
        pairs = load_pairs(
            source,
            source_language=sides[0],
            target_language=sides[1],
            name=name,
            split=split or ("train",),
            source_column=source_column,
            target_column=target_column,
            skip_broken=skip_broken,
            cache_dir=cache,
        )
    loaded, tokenizer = load_translator(model)
    called = source_name or source
    begin = time.perf_counter()
    with in_precision(loaded, precision.value):
        added = remember(loaded, tokenizer, path, pairs, source=called, namespace=namespace, progress=True)
        say(_of_memory(loaded.history_bank, path, added, len(pairs), time.perf_counter() - begin))
        _fit_all(loaded, tokenizer, model, calibrate, confidence)
    if added:
        where = shlex.quote(str(path))
        say(f"The source is {called!r}: lle bank forget {where} --source {shlex.quote(called)} takes it back.")


def _of_memory(bank: "protocol.Bank | None", path: Path, added: int, given: int, seconds: float) -> str:
    """What to say of a memory that pairs were added to."""
    from ..saved import count_pairs

    assert bank is not None
    return (
        f"{added:,} of {counted(given, 'pair')} {'is' if added == 1 else 'are'} new, in {seconds:.1f} s; the "
        f"memory {path} has {counted(count_pairs(bank), 'pair')}, {counted(len(bank), 'entry', 'entries')}."
    )


def _fit_all(
    model: "LLEForSeq2SeqLM",
    tokenizer: "PreTrainedTokenizerBase",
    folder: str,
    calibrate: bool | None,
    confidence: bool,
) -> None:
    """Fits what is asked for to the attached memory, says so, and saves the configuration."""
    if calibrate is None:
        calibrate = Path(folder).is_dir() and _never_fitted(model)
    fits = [_fit] * calibrate + [_fit_confidence] * confidence
    for fit in fits:
        say(fit(model, tokenizer))
    if fits:
        model.config.save_pretrained(folder)


def _never_fitted(model: "LLEForSeq2SeqLM") -> bool:
    """Whether the attached memory is large enough to fit the rule to, which is as it was before any fit."""
    from ..configuration_sections import BankConfig
    from ..saved import count_pairs

    assert model.history_bank is not None
    plain, own = BankConfig(), model.config.bank
    numbers = ("sharpness", "gate", "match", "continuation", "length")
    return count_pairs(model.history_bank) >= FITTED and all(
        getattr(plain, name) == getattr(own, name) for name in numbers
    )


def _fit(model: "LLEForSeq2SeqLM", tokenizer: "PreTrainedTokenizerBase") -> str:
    """Fits the parameters of the rule to the attached memory; returns what to say of it."""
    from .calibrate import fit_pairs

    outcome, lines = fit_pairs(model, tokenizer, *_own_pairs(model, seed=0), BATCH)
    return "\n".join([*outcome.lines(), "", *lines])


def _own_pairs(model: "LLEForSeq2SeqLM", seed: int) -> tuple[list[str], list[str]]:
    """Sources and targets of pairs of the attached memory, drawn by a seed."""
    from ..entries.pairs import Memory
    from ..models.seq2seq import OWN_PAIRS

    assert model.history is not None
    pairs = Memory.of(model.history).pairs
    chosen = random.Random(seed).sample(pairs, min(OWN_PAIRS, len(pairs)))
    sources, targets = ([str(pair[side]) for pair in chosen] for side in ("text", "translation"))
    return sources, targets


def _fit_confidence(model: "LLEForSeq2SeqLM", tokenizer: "PreTrainedTokenizerBase") -> str:
    """Fits the confidence in translations to pairs of the attached memory, drawn anew; returns what to say of it."""
    from ..pipelines.confidence import fit_confidence

    found = fit_confidence(model, tokenizer, *_own_pairs(model, seed=1))
    return (
        f"{found['unedited']:.0%} of {found['translations']:,.0f} pairs are translated as they stand, each from other "
        f"pairs; the confidence takes {found['before_nats']:.3f} nats a translation to {found['after_nats']:.3f}."
    )
