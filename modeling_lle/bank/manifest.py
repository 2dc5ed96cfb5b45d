"""The manifest of a bank: its files, and the import progress of its sources.

Notable: it holds the SHA-256 of every file and of itself. Reading it checks every value, so that a manifest from
elsewhere can neither name files outside its folder nor hold values that fail later.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..common.checks import check_unicode

FORMAT, VERSION = "modeling_lle.bank", 3
MANIFEST = "manifest.json"
FILE_NAME = re.compile(r"(segment|forgotten|projection)-[0-9a-f]{16}\.safetensors")
LARGEST = 1 << 25  # bytes of a manifest: about 350,000 sources; one that is larger takes seconds to read
# Lines of a manifest: a text in it cannot look like one, as its line breaks are escaped, and deeper ones are indented.
_DIGEST_LINE = re.compile(rb'\n "sha256": "([0-9a-f]{64})",(?=\n)')
_VERSION_LINE = re.compile(rb'\n "version": (\d{1,9}),\n')
_FORMAT_LINE = f'\n "format": "{FORMAT}",\n'.encode()
_SURROGATE = re.compile(rb"(?<!\\)(?:\\\\)*\\u[dD][89a-fA-F]")  # it is never written: characters stand as they are
_INTEGER = 1 << 63


HISTORY_FOLDER = "history"  # where a saved model keeps its bank


class BankError(ValueError):
    """A bank cannot do what was asked; the message names the bank or its file, and the remedy."""


@dataclasses.dataclass(frozen=True)
class File:
    """A file of the bank, with its size and checksum."""

    name: str
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class SegmentInfo:
    """A segment: its file, its namespace, and its numbers of entries, tokens and documents."""

    file: File
    namespace: str
    entries: int
    tokens: int
    documents: int


@dataclasses.dataclass(frozen=True)
class Added:
    """Import progress of a source in a namespace: complete rows, plus tokens of the next row, where `add` resumes."""

    namespace: str
    source: str
    rows: int
    tokens: int = 0


@dataclasses.dataclass(frozen=True)
class Projected:
    """That keys are projections of states (bank/projection.py): the width of these, and the file of the projection."""

    width: int
    file: File


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The state of a bank.

    Attributes:
        fingerprint: Fingerprint of the backbone that encoded the entries.
        width, vocab_size: Width of the keys, size of the vocabulary.
        generation: Number of changes so far.
        next_id: The id of the next entry; ids are never given twice.
        segments: Segments in the order in which they were added.
        forgotten: File with the ids that were forgotten since the last `compact`, or None.
        added: Import progress of each source.
        labels: Names of the outcomes, by their numbers, in a bank of labels; None in a bank of tokens.
        identity: Random name that no other bank has; empty in banks of version 1.
        copy_of: Identity and generation of the original, in a copy that `save_pretrained` wrote.
        projection: How keys are made of the states of the model; None: they are the states.
    """

    fingerprint: str
    width: int
    vocab_size: int
    generation: int = 0
    next_id: int = 0
    segments: tuple[SegmentInfo, ...] = ()
    forgotten: File | None = None
    added: tuple[Added, ...] = ()
    labels: tuple[str, ...] | None = None
    identity: str = ""
    copy_of: tuple[str, int] | None = None
    projection: Projected | None = None

    @property
    def files(self) -> list[File]:
        """All files of the bank except the manifest."""
        others = self.forgotten, None if self.projection is None else self.projection.file
        return [*(segment.file for segment in self.segments), *(file for file in others if file is not None)]

    @property
    def state_width(self) -> int:
        """Width of the states that keys are made of."""
        return self.width if self.projection is None else self.projection.width

    def is_older_copy(self, original: "Manifest") -> bool:
        """Whether this is a copy of `original` or of an earlier generation of it, unchanged since it was written."""
        return (
            self.copy_of is not None
            and self.copy_of[0] == original.identity != ""
            and self.copy_of[1] == self.generation <= original.generation
        )

    def to_bytes(self) -> bytes:
        """Canonical bytes of the manifest."""
        # Banks of version 1 stay what they are, and those without a projection can be read by older versions.
        version = VERSION if self.projection else 2 if self.identity else 1
        values = {"format": FORMAT, "version": version, **dataclasses.asdict(self)}
        for name, absent in (("labels", None), ("identity", ""), ("copy_of", None), ("projection", None)):
            if values[name] == absent:
                del values[name]
        return _canonical({**values, "sha256": hashlib.sha256(_canonical(values)).hexdigest()})

    @classmethod
    def from_bytes(cls, data: bytes, where: Path | str) -> "Manifest":
        """Reads a manifest; raises a BankError if a byte was changed, or a value is invalid."""
        if len(data) > LARGEST:
            raise BankError(f"{where} has {len(data):,} bytes, and {LARGEST:,} at most are read: build the bank again")
        version = _VERSION_LINE.search(data)
        if version and _FORMAT_LINE in data and int(version[1]) > VERSION:
            raise BankError(
                f"{where} has version {int(version[1])}, the installed modeling_lle reads up to {VERSION}: "
                "upgrade with `pip install -U modeling_lle`"
            )
        if not _is_sealed(data):
            raise BankError(f"{where} is damaged or was edited: restore it from a copy, or build the bank again")
        if _SURROGATE.search(data):
            raise BankError(f"{where} holds half of a character and no proper Unicode: build the bank again")
        try:
            manifest = cls._from_values(json.loads(data))
            manifest.check()
        except BankError as error:
            raise BankError(f"{where} {error}") from None
        except (TypeError, ValueError, KeyError, IndexError, AttributeError, RecursionError) as error:
            raise BankError(f"{where} is no manifest of a bank: build the bank again") from error
        return manifest

    @classmethod
    def _from_values(cls, values: dict[str, Any]) -> "Manifest":
        for name in ("format", "version", "sha256"):
            del values[name]
        segments = [SegmentInfo(**{**part, "file": File(**part["file"])}) for part in values.pop("segments")]
        forgotten, added, labels = values.pop("forgotten"), values.pop("added"), values.pop("labels", None)
        copy_of, projection = values.pop("copy_of", None), values.pop("projection", None)
        if projection is not None:
            projection = Projected(**{**projection, "file": File(**projection["file"])})
        return cls(
            segments=tuple(segments),
            forgotten=None if forgotten is None else File(**forgotten),
            added=tuple(Added(**part) for part in added),
            labels=None if labels is None else tuple(labels),
            copy_of=None if copy_of is None else tuple(copy_of),
            projection=projection,
            **values,
        )

    def check(self) -> None:
        """Raises a BankError that names the first invalid value."""
        sizes = {"width": self.width, "vocab_size": self.vocab_size, "width of the states": self.state_width}
        numbers = {"generation": self.generation, "next_id": self.next_id}
        texts = {"fingerprint": self.fingerprint, "identity": self.identity}
        for file in self.files:
            _check_file(file)
        for info in self.segments:
            check_segment(info)
        for item in self.added:  # there may be very many
            if not (_is_text(item.namespace) and _is_text(item.source) and _is_count(item.rows, item.tokens)):
                given = {"rows": item.rows, "tokens": item.tokens}
                _check_values({"namespace": item.namespace, "source": item.source}, given, {})
        _check_values(texts, numbers, sizes)
        for number, label in enumerate(self.labels or ()):
            if not _is_text(label):
                _check_values({f"label {number}": label}, {}, {})
        if self.copy_of is not None:
            _check_values({"copy_of": self.copy_of[0]}, {"copy_of": self.copy_of[1]}, {})
        for what, names in (
            ("file", [file.name for file in self.files]),
            ("source", [(item.namespace, item.source) for item in self.added]),
            ("label", self.labels or ()),
        ):
            if len(set(names)) < len(names):
                raise BankError(f"names a {what} twice: build the bank again")
        if sum(info.entries for info in self.segments) > self.next_id:
            raise BankError("has more entries than ids were given: build the bank again")


def check_segment(info: SegmentInfo) -> None:
    """Raises a BankError that names the first invalid value of a segment's item in a manifest."""
    _check_file(info.file)
    numbers = {"entries": info.entries, "tokens": info.tokens, "documents": info.documents}
    _check_values({"namespace": info.namespace}, numbers, {})


def _check_file(file: File) -> None:
    if not isinstance(file.name, str) or not FILE_NAME.fullmatch(file.name):
        raise BankError(f"names {file.name!r:.80}, which is no file of a bank: do not use it")
    _check_values({"sha256": file.sha256}, {"bytes": file.bytes}, {})


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(*values: Any) -> bool:
    return all(type(value) is int and 0 <= value < _INTEGER for value in values)


def _check_values(texts: dict[str, Any], numbers: dict[str, Any], sizes: dict[str, Any]) -> None:
    """Raises a BankError unless `texts` are strings, `numbers` integers from 0 and `sizes` integers from 1."""
    for name, text in texts.items():
        if not _is_text(text):
            raise BankError(f"has {text!r:.80} as {name}, which should be a text: build the bank again")
    for least, values in ((0, numbers), (1, sizes)):
        for name, number in values.items():
            if not _is_count(number) or number < least:
                raise BankError(f"has {number!r:.80} as {name}, which should be a number: build the bank again")


def check_names(names: Iterable[tuple[str, Any]]) -> None:
    """Raises a ValueError unless the values are non-empty strings in valid Unicode.

    Args:
        names: Pairs of what is named, such as "source", and the name.
    """
    for what, name in names:
        if not isinstance(name, str) or not name:
            raise ValueError(f"a {what} needs a name, a text that is not empty; got {name!r}")
        check_unicode(name, f"the name of the {what}")


def _is_sealed(data: bytes) -> bool:
    """Whether the checksum of a manifest fits its bytes; nothing is parsed before that is known."""
    line = _DIGEST_LINE.search(data)
    if line is None or _FORMAT_LINE not in data:
        return False
    return hashlib.sha256(data[: line.start()] + data[line.end() :]).hexdigest().encode() == line[1]


def _canonical(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
