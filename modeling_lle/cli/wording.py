"""Messages of the library in the words of the command line: options, where the library names arguments of Python."""

import re

_ARGUMENTS = {
    "columns=[...]": "--keep",
    "key_width": "--key-width",
    "namespace=": "--namespace",
    "namespace=...": "--namespace",
    "new_labels=True": "--new-labels",
    "relabel=True": "--relabel",
    "resume=True": "--resume",
    "skip_broken=True": "--skip-broken",
    "with text_column": "with --text-column",
    "with label_column": "with --label-column",
    "with source_column": "with --source-column",
    "with target_column": "with --target-column",
    "with out_of_scope": "with --out-of-scope-label",
    "the out_of_scope label": "the label of --out-of-scope-label,",
    "limit_tokens": "--limit-tokens",
    "segment_length": "--segment-length",
    "source_language": "--source-language",
    "target_language": "--target-language",
    "source_column": "--source-column",
    "target_column": "--target-column",
    "sample_by": "--sample-by",
}
_SENTENCES = {
    "; pass missing_ok=True if that is fine": "",
    "teach it with learn(new_labels=True)": "teach it with `lle learn ... --new-labels`",
    "fix them, or leave out the rows that check_labelled(..., refuse=False) returns": "fix or remove these rows",
    "call its fit_out_of_scope() first": "fit one with `lle calibrate MODEL DATA --out-of-scope-label NAME`, with "
    "texts of that label in DATA",
    "open a bank that its learn() made": "name one that `lle learn` made",
    "open a bank that learn() made": "name one that `lle learn` made",
    "open a bank that HistoryBank.build made of texts": "name one that `lle bank build` made",
    "open another bank": "name one that `lle bank build` made",
    ", or with HistoryBank.build and a translator": "",
    ", or call detach_history()": "",
    "; teach some examples with learn() first": "; teach some examples with `lle learn` first",
}


def for_command_line(message: str) -> str:
    """A message in which options replace arguments of Python, and commands replace methods."""
    for sentence, words in _SENTENCES.items():
        message = message.replace(sentence, words)
    return _ARGUMENT.sub(lambda match: _ARGUMENTS[match[0]], message)


# Longest first; no part of a longer name or of a quoted one, such as a column called source_column.
_ARGUMENT = re.compile(
    r"(?<![\w.\'\"`-])(" + "|".join(map(re.escape, sorted(_ARGUMENTS, key=len, reverse=True))) + r")(?![\w\'\"=])"
)
