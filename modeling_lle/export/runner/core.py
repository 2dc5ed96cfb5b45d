"""What the runners of all tasks share: files, tokenizer and graphs, the bank, and the rule of the history in NumPy.

Notable: `runner_source` (export/source.py) joins this file and that of a task to the one file run.py, so neither
imports anything but the standard library, onnxruntime, numpy and tokenizers.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

try:
    import numpy as np
    import onnxruntime as ort
    from tokenizers import Tokenizer
except ImportError as error:
    missing = f"{error}: an exported model needs `pip install onnxruntime numpy tokenizers`"
    if __name__ == "__main__":
        sys.exit(f"run.py: {missing}")
    raise ImportError(missing) from error

HERE = Path(__file__).resolve().parent
FORMAT = 1
CANDIDATES = 1024  # entries whose exact similarity is computed, at least
HASHED = 1 << 26  # bytes; of larger files only the size is checked when a model is loaded
SMALL = 1 << 20  # bytes; larger files of a bank are mapped
KEPT = 1 << 24  # bytes; arrays of a bank up to this size are kept in float32
TINY = np.finfo(np.float32).tiny


class RunError(ValueError):
    """What cannot be run, and what to do about it."""


def read_export(folder: Path, tasks: Sequence[str]) -> dict[str, Any]:
    """What export.json says of a folder, whose files are checked.

    Raises:
        RunError: The folder holds no exported model of these tasks, or a file is missing, truncated or changed.
    """
    try:
        export = json.loads((folder / "export.json").read_text(encoding="utf-8"))
        known = export["format"] == FORMAT and export["task"] in tasks
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{folder} holds no exported model ({error}): export one with `lle export`") from None
    if not known:
        what = f"{export['task']}, format {export['format']}"
        raise RunError(f"{folder} is for another run.py ({what}): use the one that was exported with it")
    check(folder, export)
    return dict(export)


def check(folder: Path, export: dict[str, Any], most: int = HASHED) -> None:
    """Raises a RunError unless each file is there and as it was written; of those above `most` bytes by their size."""
    for name, due in export["files"].items():
        path = folder / name
        if not path.is_file():
            raise RunError(f"{path} is missing: copy the whole folder, or export the model again")
        size = path.stat().st_size
        if size == due["bytes"] and size <= most:
            with path.open("rb") as file:
                digest = hashlib.sha256()
                while data := file.read(1 << 20):
                    digest.update(data)
            size = size if digest.hexdigest() == due["sha256"] else -1
        if size != due["bytes"]:
            raise RunError(f"{path} is damaged: it was truncated or changed; copy it or export the model again")


class Model:
    """Tokenizer, graphs and bank of the exported model in a folder.

    Args:
        folder: What `lle export` wrote.
        int8: Whether to take the graphs whose matrices are int8.
        threads: Threads of a step; 0: all cores.

    Attributes:
        export: What export.json says.
    """

    tasks: tuple[str, ...] = ()  # as transformers calls them

    def __init__(self, folder: str | Path = HERE, int8: bool = False, threads: int = 1) -> None:
        self.folder = Path(folder)
        self.export = export = read_export(self.folder, self.tasks)
        self.tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.vocab_size, self.tokens = export["vocab_size"], export["tokens"]
        self.graphs = {name: self._session(files, int8, threads) for name, files in export["graphs"].items()}
        self.bank = Bank.read(self.folder / "bank")

    def _session(self, files: dict[str, str], int8: bool, threads: int) -> Any:
        if int8 and "int8" not in files:
            raise RunError(f"{self.folder} has no int8 graphs: export the model with `lle export --int8`")
        path, options = self.folder / files["int8" if int8 else "float32"], ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        try:
            return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has no class of its own for what it cannot read
            reason = str(error).strip().partition("\n")[0]
            raise RunError(
                f"onnxruntime {ort.__version__} cannot load {path} ({reason}): `pip install -U onnxruntime`"
            ) from None

    def encode(self, text: str, what: str = "text") -> list[int]:
        """The token ids of a text; raises a RunError if there is none."""
        ids = self.tokenizer.encode(text).ids
        if not ids:
            raise RunError(f"the {what} {text!r:.60} has no token: give another one")
        return self.checked(ids)

    def checked(self, ids: Sequence[int]) -> list[int]:
        """Token ids as they are; raises a RunError if there is none, or one is not in the vocabulary."""
        if not len(ids):
            raise RunError("the text has no token: encode it with tokenizer.json")
        for wrong in (min(ids), max(ids)):
            if not 0 <= wrong < self.vocab_size:
                found = f"the text has the token {wrong}, and ids are 0 to {self.vocab_size - 1}"
                raise RunError(f"{found}: encode it with tokenizer.json")
        return list(ids)

    def most_new_tokens(self, asked: int | None, usual: int) -> int:
        """The limit of a generated text: as asked, else as export.json says, else `usual`."""
        most = (self.export["generation"].get("max_new_tokens") or usual) if asked is None else asked
        if most < 1:
            raise RunError(f"max_new_tokens is {most}: ask for at least 1 token")
        return int(most)


# The history


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log probabilities of logits (..., V)."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def features(log_p: np.ndarray, p: np.ndarray | None = None) -> np.ndarray:
    """Entropy and largest log probability, (..., 2), of log p (..., V), and of p where it is known."""
    return np.stack([-((np.exp(log_p) if p is None else p) * log_p).sum(-1), log_p.max(-1)], -1)


def recall(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights (n, N) and mass (n,) of kernel scores (n, N), -inf where there is no entry."""
    most = scores.max(-1, initial=-np.inf)
    weights = np.exp(scores - np.where(np.isfinite(most), most, 0)[:, None])
    total = weights.sum(-1)
    with np.errstate(divide="ignore"):
        return weights / np.maximum(total, TINY)[:, None], most + np.log(total)


def gate(masses: Sequence[np.ndarray], own: np.ndarray, numbers: Sequence[Sequence[float]]) -> np.ndarray:
    """Shares (n, 1 + S) of the base and of S sources with masses (n,), given `features` (n, 2) of the base."""
    logits = [np.zeros(len(own))]
    for mass, (bias, *weights) in zip(masses, numbers, strict=True):
        logit = bias + np.where(np.isfinite(mass), mass, 0) * weights[0] + own @ np.asarray(weights[1:], np.float32)
        logits.append(np.where(np.isfinite(mass), logit, -np.inf))
    return np.exp(log_softmax(np.stack(logits, -1))).astype(np.float32)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """float32 of bfloat16 numbers that are stored as uint16."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """bfloat16 numbers, as uint16, next to float32 ones."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


class Bank:
    """Entries in a folder: keys (N, D) in bfloat16, mapped from their file, and an int8 index of large banks.

    The index has keys along their m principal axes: `codes` (N, m) int8 with their `steps` (m,). In a very large bank
    the entries lie in lists of near ones, and by `centroids` (C, m + 1) some are chosen for a query. What the codes
    choose is compared by the keys themselves. Keys may be shorter than the states that they are made of: then there is
    a `projection` (S, D).
    """

    def __init__(self, folder: Path, about: dict[str, Any], arrays: dict[str, Any]) -> None:
        self.folder, self.about, self.arrays = folder, about, arrays
        self._kept: dict[str, np.ndarray] = {}

    @classmethod
    def read(cls, folder: Path) -> "Bank | None":
        """The bank in a folder; None if there is none."""
        if not (folder / "bank.json").is_file():
            return None
        text = (folder / "bank.json").read_text(encoding="utf-8")
        about, arrays = json.loads(text), {}
        for name, file in about["files"].items():
            path = folder / file
            try:
                if file.endswith(".npy"):  # as a plain array, since parts of a memmap are slow to make
                    arrays[name] = np.asarray(np.load(path, "r" if path.stat().st_size > SMALL else None))
                else:
                    arrays[name] = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                if text != (folder / "bank.json").read_text(encoding="utf-8"):
                    return cls.read(folder)  # another program has just taught
                raise RunError(f"{path} is missing or damaged ({error}): copy the bank again") from None
        return cls(folder, about, arrays)

    def __len__(self) -> int:
        return len(self.arrays["keys"])

    def _floats(self, name: str, converted: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """An array in float32, kept if it is small, as its conversion takes most of the time of a search."""
        if name in self._kept:
            return self._kept[name]
        floats = converted(self.arrays[name])
        if floats.nbytes <= KEPT:
            self._kept[name] = floats
        return floats

    def search(self, queries: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Cosines (n, K) and indices (n, K) of the nearest entries of states (n, S), K = min(number, N)."""
        found = [self._nearest(query, min(number, len(self))) for query in self.keys_of(queries)]
        return np.stack([cosine for cosine, _ in found]), np.stack([index for _, index in found])

    def keys_of(self, states: np.ndarray) -> np.ndarray:
        """The keys (n, D) that normalised states (n, S) make: normalised, and the states themselves by default."""
        if "projection" not in self.arrays:
            return states
        keys = states @ self.arrays["projection"]
        return keys / np.maximum(np.linalg.norm(keys, axis=-1, keepdims=True), 1e-12)

    def _nearest(self, query: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
        index = self._candidates(query, max(CANDIDATES, 4 * number))
        keys = self._floats("keys", from_bfloat16) if index is None else from_bfloat16(self.arrays["keys"][index])
        cosines = keys @ query
        best = np.argsort(-cosines, kind="stable")[:number]
        return cosines[best], best if index is None else index[best]

    def _candidates(self, query: np.ndarray, number: int) -> np.ndarray | None:
        """Indices of the entries that are nearest by their codes, ascending; None for all."""
        if "codes" not in self.arrays or number >= len(self):
            return None
        along, codes = self.arrays["axes"] @ query, self.arrays["codes"]
        weights = along * self.arrays["steps"]
        if "starts" not in self.arrays:
            return np.sort(_largest(self._floats("codes", np.float32) @ weights, number))
        starts = self.arrays["starts"]
        lists = np.sort(_largest(self.arrays["centroids"] @ np.append(along, np.float32(1)), self.about["probes"]))
        ranges = list(zip(starts[lists].tolist(), starts[lists + 1].tolist(), strict=True))
        near = np.concatenate([codes[start:stop] for start, stop in ranges]).astype(np.float32) @ weights
        index = np.concatenate([np.arange(start, stop) for start, stop in ranges])
        return np.sort(index[_largest(near, number)])


def _largest(values: np.ndarray, number: int) -> np.ndarray:
    """Indices of the largest values, at most `number`, in any order."""
    return np.arange(len(values)) if number >= len(values) else np.argpartition(values, -number)[-number:]


def mixed(
    log_p: np.ndarray, sources: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], numbers: Sequence[Sequence[float]]
) -> np.ndarray:
    """The prediction with history, (n, V) float32, from the base's log p (n, V).

    For a normalised state h and the entries (key k_i, outcome y_i) of each source s:

        kernel      l_i = sharpness (h . k_i - 1) - recency log(age_i) + log(count_i)
        recall      r_s(y) = sum of softmax(l)_i over the entries with outcome y;   mass m_s = logsumexp(l)
        gate        g = softmax over (0, a_s + b_s . (m_s, entropy of p, max log p))
        prediction  P(y) = g_0 p(y) + sum of g_s r_s(y) over the sources

    Args:
        log_p: (n, V).
        sources: Weights (n, N) and masses (n,) as of `recall`, with the outcomes (N,) or (n, N) between them.
        numbers: a and b of each source.
    """
    mixture = np.exp(log_p)
    shares = gate([mass for _, _, mass in sources], features(log_p, mixture), numbers)
    mixture *= shares[:, :1]
    for share, (weights, outcomes, _) in zip(shares.T[1:], sources, strict=True):
        np.add.at(mixture, (np.arange(len(mixture))[:, None], outcomes), weights * share[:, None])
    return mixture


# The command


def run_command(
    model_class: type[Model],
    build: Callable[[Any], None],
    answer: Callable[[Any, argparse.Namespace], Any],
    description: str | None,
    arguments: Sequence[str] | None,
) -> int:
    """Runs `python run.py`: parses the arguments that `build` adds to the subcommands, and prints what `answer` gives.

    Returns:
        The exit status, 2 after a RunError, whose message is printed.
    """
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--folder", default=str(HERE), help="the exported folder; by default that of this file")
    shared.add_argument("--int8", action="store_true", help="take the graphs whose matrices are int8")
    shared.add_argument("--threads", type=int, default=1, help="threads of a step; 0: all cores")
    shared.add_argument("--no-history", action="store_true", help="leave the history out")
    parser = argparse.ArgumentParser(
        "run.py", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    build(lambda name, says: commands.add_parser(name, parents=[shared], help=says))
    commands.add_parser("check", parents=[shared], help="compare every file with what was exported")
    given = parser.parse_args(arguments)
    try:
        if given.command == "check":
            check(Path(given.folder), read_export(Path(given.folder), model_class.tasks), sys.maxsize)
            result: Any = "All files are as they were exported."
        else:
            result = answer(model_class(given.folder, given.int8, given.threads), given)
    except (OSError, RunError) as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 2
    print(result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, indent=1))
    return 0
