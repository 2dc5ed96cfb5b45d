"""Batches of texts of similar length, so that little is padded."""

from collections.abc import Iterator, Sequence

TOKENS = 8192  # tokens of a batch, padding included, unless a single text is longer
TEXTS = 256  # texts of a batch


def batches(lengths: Sequence[int], most: int = TEXTS) -> Iterator[list[int]]:
    """Yields the indices of texts in batches of similar length.

    Args:
        lengths: Number of tokens of each text.
        most: Largest number of texts of a batch; fewer where they have more than `TOKENS` tokens, padding included.

    Raises:
        ValueError: A text has no token.
    """
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    batch: list[int] = []
    for row in order:
        if not lengths[row]:
            raise ValueError(f"the tokenizer makes no token of text {row}: leave it out")
        if batch and ((len(batch) + 1) * lengths[row] > TOKENS or len(batch) == most):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
