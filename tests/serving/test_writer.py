"""Text as it is generated is the text at the end."""

import random

import pytest

from modeling_lle import LLETokenizer
from modeling_lle.serving.writer import Writer, pieces

TEXT = "Grüße, 你好 und 👋🏽! a \n b"
TOKENIZER = LLETokenizer.train(["ab ba abc"], kind="bpe", vocab_size=300)


def written(tokens: list[int], stops: tuple[str, ...] = (), prompt: int = 0) -> tuple[list[str], bool]:
    writer, parts = Writer(TOKENIZER, tokens[:prompt], stops), []
    for token in tokens[prompt:]:
        writer.take(token)
        parts.append(writer.sure())
        if writer.stopped:
            break
    return [*parts, writer.finish()], writer.stopped


def test_parts_join_to_the_text_and_halves_of_characters_are_held_back() -> None:
    tokens = TOKENIZER(TEXT)["input_ids"]
    for prompt in (0, 1, 5):
        parts, _ = written(tokens, prompt=prompt)
        assert all("\ufffd" not in part for part in parts[:-1])
    assert "".join(written(tokens)[0]) == TOKENIZER.decode(tokens, skip_special_tokens=True)


@pytest.mark.parametrize("stop", ["d 👋", "好", "\n", "b"])
def test_a_stop_string_that_spans_tokens_ends_the_text_before_it(stop: str) -> None:
    tokens = TOKENIZER(TEXT)["input_ids"]
    whole = TOKENIZER.decode(tokens, skip_special_tokens=True)
    parts, stopped = written(tokens, ("never", stop))
    assert stopped
    assert "".join(parts) == whole[: whole.index(stop)]


def test_a_beginning_of_a_stop_string_is_written_when_it_is_none() -> None:
    parts, stopped = written(TOKENIZER("ababab")["input_ids"], ("abababa",))
    assert ("".join(parts), stopped) == ("ababab", False)


def test_random_tokens_never_lose_a_character() -> None:
    generator = random.Random(0)
    for _ in range(50):
        tokens = [generator.randrange(3, len(TOKENIZER)) for _ in range(30)]
        joined = "".join(written(tokens)[0])
        assert joined.replace("\ufffd", "") == TOKENIZER.decode(tokens, skip_special_tokens=True).replace("\ufffd", "")


def test_pieces_join_to_the_text() -> None:
    tokens = TOKENIZER("ab ba abc")["input_ids"]
    assert "".join(pieces(TOKENIZER, tokens)) == TOKENIZER.decode(tokens)
