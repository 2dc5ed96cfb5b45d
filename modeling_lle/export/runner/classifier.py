"""Runs an exported LLE classifier: it labels texts, learns examples without training, and forgets them.

It needs no torch: `pip install onnxruntime numpy tokenizers`. Examples lie in the folder `bank`.

    python run.py classify "Where is my card?"
    python run.py learn "Is the moon a planet?" --label astronomy --new-labels
    python run.py forget "Is the moon a planet?"
    python run.py check

    >>> import run
    >>> model = run.load()  # the folder of run.py; int8=True takes the smaller graphs, if they were exported
    >>> model.learn(["Is the moon a planet?"], ["astronomy"], new_labels=True)
    >>> model.classify(["What is the moon?"])

Shapes: B texts, T tokens, D width of keys, N entries, K neighbours, C trained labels, L labels, O outcomes.
"""

import argparse
import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from .core import (
    HERE,
    TINY,
    Bank,
    Model,
    RunError,
    features,
    from_bfloat16,
    log_softmax,
    np,
    run_command,
    to_bfloat16,
)

try:
    import fcntl
except ImportError:  # Windows: there only one program at a time may teach
    fcntl = None  # type: ignore[assignment]

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"


def outcome(label: Any, kind: str) -> str:
    """The name by which a bank knows a label: itself, a JSON list of labels, or a number."""
    if kind == SINGLE and isinstance(label, str) and label.strip():
        return label
    if kind == MULTI and not isinstance(label, str):
        return json.dumps(sorted(set(label)), ensure_ascii=False)
    if kind == REGRESSION and np.isfinite(float(label)):
        return repr(float(label))
    raise RunError(f"the label {label!r} does not suit the model, whose problem_type is {kind!r}")


def base_of(logits: np.ndarray, kind: str) -> np.ndarray:
    """What the base gives to each label (C,), from logits (C,)."""
    if kind == SINGLE:
        weights = np.exp(logits - logits.max())
        return weights / weights.sum()
    return np.exp(-np.logaddexp(0, -logits)) if kind == MULTI else logits


def seen_of(logits: np.ndarray, kind: str) -> np.ndarray:
    """What the gate sees of the base: `features` (2,) from logits (C,)."""
    if kind == SINGLE:
        return features(np.maximum(log_softmax(logits), np.log(TINY)))
    if kind == MULTI:
        both = -np.logaddexp(0, np.stack([-logits, logits], -1))
        return features(np.maximum(both, np.log(TINY))).mean(0)
    return np.zeros(2)


def recall_one(scores: np.ndarray) -> tuple[np.ndarray, float]:
    """Weights (K,) and mass of the kernel scores (K,) of one text; `recall` for several of them."""
    most = float(scores.max(initial=-np.inf))
    if most == -math.inf:
        return np.zeros_like(scores), most
    weights = np.exp(scores - most)
    total = float(weights.sum())
    return weights / total, most + math.log(total)


def share_of(mass: float, seen: np.ndarray, numbers: Sequence[float]) -> float:
    """Share of the bank in the prediction of one text; `gate` for several of them."""
    if mass == -math.inf:
        return 0.0
    bias, of_mass, *weights = numbers
    return float(np.exp(-np.logaddexp(0, -(bias + of_mass * mass + float(seen @ np.asarray(weights))))))


class Classifier(Model):
    """Labels texts or their tokens; examples of texts are learned and forgotten without training.

    A text is first of a label that only examples have, as far as it is nearer to them than to the others by `margin`
    and than `background`; with what is left over, the examples of the other labels join the base by the rule.
    """

    tasks = ("text-classification", "token-classification")

    def classify(self, texts: Sequence[str], use_history: bool = True, top: int = 3) -> list[Any]:
        """For each text, or each of its tokens, the `label` with its `score`, the `scores` of all labels, the share of
        the base and of the `top` examples, and where it was fitted the score of `out_of_scope`."""
        _check_listed(texts)
        results: list[Any] = []
        for start in range(0, len(texts), 32):
            logits, keys, mask = self._run(texts[start : start + 32])
            for row in range(len(logits)):
                if logits.ndim == 2:
                    results.append(self._decide(logits[row], keys[row], use_history, top))
                else:
                    real = np.flatnonzero(mask[row])
                    results.append([self._decide(logits[row, t], keys[row, t], use_history, top) for t in real])
        return results

    def _run(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Logits (B, C), or (B, T, C) of tokens, keys alike, and the mask (B, T)."""
        rows = [self.encode(text) for text in texts]
        longest, pad = max(map(len, rows)), self.tokens["pad"] or 0
        ids = np.array([row + [pad] * (longest - len(row)) for row in rows], np.int64)
        mask = np.array([[1] * len(row) + [0] * (longest - len(row)) for row in rows], np.int64)
        logits, keys = self.graphs["model"].run(["logits", "keys"], {"input_ids": ids, "attention_mask": mask})
        return logits, keys, mask

    @cached_property
    def _space(self) -> tuple[list[str], np.ndarray, np.ndarray]:
        """The L labels, what each outcome of the bank says of them (O, L), and the outcome of each entry (N,)."""
        trained, kind = self.export["classifier"]["labels"], self.export["classifier"]["kind"]
        examples = self.bank.arrays["examples"] if self.bank else []
        outcomes = {name: place for place, name in enumerate(dict.fromkeys(name for _, name, _ in examples))}
        each = [json.loads(name) if kind == MULTI else [name] for name in outcomes]
        if kind == REGRESSION:
            names, votes = trained, np.array([[float(name)] for name in outcomes], np.float32)
        else:
            names = list(dict.fromkeys([*trained, *(label for labels in each for label in labels)]))
            votes = np.array([[label in labels for label in names] for labels in each], np.float32)
        return names, votes, np.array([outcomes[name] for _, name, _ in examples], np.int64)

    def _decide(self, logits: np.ndarray, key: np.ndarray, use_history: bool, top: int) -> dict[str, Any]:
        """The result for one text or token with logits (C,) and key (D,)."""
        own, numbers = self.export["classifier"], self.export["history"]["bank"]
        base = base_of(logits, own["kind"])
        names, base_share, examples = own["labels"], 1.0, []
        labels = scope = base
        mass = -math.inf
        if use_history and self.bank:
            names, votes, outcomes = self._space
            cosines, index = (part[0] for part in self.bank.search(key[None], numbers["neighbours"]))
            said, scores = votes[outcomes[index]], numbers["sharpness"] * (cosines - 1)
            unseen, taken, unseen_mass = np.zeros_like(scores), 0.0, -math.inf
            if own["kind"] == SINGLE and len(names) > len(base):
                strange = said[:, len(base) :].any(1)
                unseen, unseen_mass = recall_one(np.where(strange, scores, -np.inf))
                scores = np.where(strange, -np.inf, scores)
            seen, seen_mass = recall_one(scores)
            if unseen_mass > -math.inf:
                known = np.logaddexp(
                    seen_mass + numbers["sharpness"] * own["margin"], numbers["sharpness"] * (own["background"] - 1)
                )
                unseen = unseen * np.exp(-np.logaddexp(0, known - unseen_mass))
                taken = float(unseen.sum())
            share = share_of(seen_mass, seen_of(logits, own["kind"]), numbers["gate"]) * (1 - taken)
            base_share, moved = 1 - taken - share, share * seen + unseen
            recalled = (seen + unseen) @ said
            labels = np.concatenate([base_share * base + share * recalled[: len(base)], recalled[len(base) :]])
            scope = np.concatenate([(1 - taken) * base, recalled[len(base) :]])
            mass = np.logaddexp(seen_mass, unseen_mass)
            for place in np.argsort(-moved, kind="stable")[:top]:
                text, label, _ = self.bank.arrays["examples"][index[place]]
                examples.append({"text": text, "label": label, "share": float(moved[place])})
        best = int(labels.argmax())
        result = {"label": names[best], "score": float(labels[best]), "base_share": base_share, "examples": examples}
        result["scores"] = dict(zip(names, labels.tolist(), strict=True))
        if own["kind"] == SINGLE and own["out_of_scope"]["threshold"] < 1:
            result |= self._scope(scope, mass, numbers["sharpness"])
        return result

    def _scope(self, labels: np.ndarray, mass: float, sharpness: float) -> dict[str, Any]:
        """The score of "none of these", and whether it refuses the text."""
        own = self.export["classifier"]["out_of_scope"]
        seen = seen_of(np.log(np.maximum(labels, TINY)), SINGLE)
        score = np.exp(-np.logaddexp(0, -np.dot([1, max(mass, -2 * sharpness), *seen], own["weights"])))
        return {"out_of_scope": float(score), "refused": bool(score >= own["threshold"])}

    # Teaching

    def learn(
        self,
        texts: Sequence[str],
        labels: Sequence[Any],
        new_labels: bool = False,
        relabel: bool = False,
        source: str = "taught",
    ) -> int:
        """Adds examples to the bank in the folder, all or none, and returns how many were new.

        Args:
            texts: The texts.
            labels: The label of each; a list of labels where a text may have several, a number in regression.
            new_labels: Whether labels may be neither trained nor in the bank.
            relabel: Whether texts that are in the bank with another label get the new one.
            source: A name by which they can be forgotten.
        """
        kind = self.export["classifier"]["kind"]
        if self.export["task"] == "token-classification":
            raise RunError("words are taught with modeling_lle: use `learn` there, and export the model again")
        _check_listed(texts)
        given = dict(zip(texts, (outcome(label, kind) for label in labels), strict=True))
        with _writing(self.folder / "bank"):
            self._read_bank()
            known = {text: name for text, name, _ in self.bank.arrays["examples"]} if self.bank else {}
            names = set(self._space[0])
            for text, name in given.items():
                unknown = set(json.loads(name) if kind == MULTI else [name]) - names
                if unknown and not new_labels and kind != REGRESSION:
                    raise RunError(f"the label {min(unknown)!r} is new: --new-labels (new_labels=True) takes it in")
                if known.get(text, name) != name and not relabel:
                    raise RunError(f"{text!r:.60} has the label {known[text]!r}: --relabel (relabel=True) changes it")
            new = [text for text, name in given.items() if known.get(text) != name]
            if new:
                keys = np.concatenate([self._run(new[start : start + 32])[1] for start in range(0, len(new), 32)])
                keys = from_bfloat16(to_bfloat16(keys))  # as a bank rounds states before it projects them
                keys = keys if self.bank is None else self.bank.keys_of(keys)
                changed = set(new)
                kept = [text not in changed for text, _, _ in self.bank.arrays["examples"]] if self.bank else []
                self._replace_bank(kept, to_bfloat16(keys), [[text, given[text], source] for text in new])
        return len(new)

    def forget(self, texts: Sequence[str] | None = None, label: Any = None, source: str | None = None) -> int:
        """Takes back the examples for which all that is given holds, from the disk as well; returns how many."""
        if texts is None and label is None and source is None:
            raise RunError("nothing to forget: give texts, a label (--label) or a source (--source)")
        _check_listed(texts or ())
        name = None if label is None else outcome(label, self.export["classifier"]["kind"])
        with _writing(self.folder / "bank"):
            self._read_bank()
            examples = self.bank.arrays["examples"] if self.bank else []
            wanted = set(texts or ())
            missing = wanted - {text for text, _, _ in examples}
            kept = [
                (texts is not None and text not in wanted) or name not in (None, own) or source not in (None, origin)
                for text, own, origin in examples
            ]
            if missing or all(kept):
                what = f"the text {min(missing)!r:.60}" if missing else "all that was given"
                raise RunError(f"the bank has no example with {what}")
            assert self.bank is not None
            self._replace_bank(kept, self.bank.arrays["keys"][:0], [])
        return len(kept) - sum(kept)

    def _read_bank(self) -> None:
        """Takes in what others have taught."""
        self.bank = Bank.read(self.folder / "bank")
        self.__dict__.pop("_space", None)  # that of the bank as it was

    def _replace_bank(self, kept: Sequence[bool], keys: np.ndarray, examples: list[list[str]]) -> None:
        """Writes the entries that are kept and new ones; bank.json, which is replaced last, names the new files."""
        folder, arrays = self.folder / "bank", dict(self.bank.arrays if self.bank is not None else {})
        before, own = arrays.get("keys", keys[:0])[np.flatnonzero(kept)], arrays.get("examples", [])
        about: dict[str, Any] = {"generation": 0, "files": {}} if self.bank is None else dict(self.bank.about)
        arrays["keys"] = np.concatenate([before, keys])
        arrays["examples"] = [*(example for example, stays in zip(own, kept, strict=True) if stays), *examples]
        if "codes" in arrays:
            along = from_bfloat16(keys) @ arrays["axes"].T / arrays["steps"]
            codes = np.clip(np.rint(along), -127, 127).astype(np.int8)
            arrays["codes"] = np.concatenate([arrays["codes"][np.flatnonzero(kept)], codes])
        about["generation"] += 1
        about["files"] = {
            name: f"{name}-{about['generation']}.{'npy' if isinstance(value, np.ndarray) else 'json'}"
            for name, value in arrays.items()
        }
        for name, value in [*arrays.items(), ("bank", about)]:
            with (folder / about["files"].get(name, "bank.json.new")).open("wb") as file:
                if isinstance(value, np.ndarray):
                    np.save(file, value)
                else:
                    file.write(json.dumps(value, ensure_ascii=False).encode())
                file.flush()
                os.fsync(file.fileno())
        os.replace(folder / "bank.json.new", folder / "bank.json")
        self._read_bank()
        for path in folder.iterdir():
            if path.name not in {"bank.json", "lock", *about["files"].values()}:
                with contextlib.suppress(OSError):  # Windows keeps files that another program has mapped
                    path.unlink()


def _check_listed(texts: Sequence[str]) -> None:
    """Raises a RunError if texts are a single one, whose characters would be taken for texts."""
    if isinstance(texts, str):
        raise RunError(f"texts are a list: give [{texts!r:.60}]")


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Makes the folder of a bank, and keeps other programs from writing into it."""
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _with_best(results: Any, top: int) -> Any:
    """The results of texts, or of tokens of texts, with the scores of the `top` best labels alone."""
    if isinstance(results, list):
        return [_with_best(result, top) for result in results]
    best = sorted(results["scores"].items(), key=lambda item: -item[1])[:top]
    return {**results, "scores": dict(best)}


def load(folder: str | Path = HERE, int8: bool = False, threads: int = 1) -> Classifier:
    """The classifier in a folder; arguments as for `Model`. Raises a RunError if it cannot be run."""
    return Classifier(folder, int8, threads)


def _add_commands(add: Callable[[str, str], argparse.ArgumentParser]) -> None:
    classify = add("classify", "label texts")
    classify.add_argument("text", nargs="+")
    classify.add_argument("--top", type=int, default=5, help="labels to tell the score of, the best ones (default: 5)")
    learn = add("learn", "teach examples of a label")
    learn.add_argument("text", nargs="+")
    learn.add_argument("--label", required=True, help="their label; where a text may have several, a JSON list")
    learn.add_argument("--new-labels", action="store_true", help="take in a label that the model does not know")
    learn.add_argument("--relabel", action="store_true", help="change the label of texts that were taught before")
    learn.add_argument("--source", default="taught", help="a name by which to forget them")
    forget = add("forget", "take examples back")
    forget.add_argument("text", nargs="*")
    forget.add_argument("--label", help="those of this label")
    forget.add_argument("--source", help="those of this source")


def _answer(model: Classifier, given: argparse.Namespace) -> Any:
    if given.command == "classify":
        return _with_best(model.classify(given.text, not given.no_history), given.top)
    label = given.label
    if label is not None and model.export["classifier"]["kind"] != SINGLE:
        label = json.loads(label)
    if given.command == "learn":
        options = {"new_labels": given.new_labels, "relabel": given.relabel, "source": given.source}
        return f"Learned {model.learn(given.text, [label] * len(given.text), **options)} examples."
    return f"Forgot {model.forget(given.text or None, label, given.source)} examples."


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run_command(Classifier, _add_commands, _answer, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
