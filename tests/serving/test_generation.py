"""What a row generates reaches its request: each token as it comes, or all of them at the end."""

import asyncio
import threading

from modeling_lle.serving.generation import Delta, Generation, Mailbox
from modeling_lle.serving.rows import Score
from tests.factories.texts import WORD_TOKENIZER

TOKENS = WORD_TOKENIZER("a b c d")["input_ids"]


async def told(is_streamed: bool, stops: tuple[str, ...] = ()) -> list[Delta]:
    """The parts of a generation of some tokens, the last of which ends it."""
    mailbox = Mailbox()
    ends = frozenset([WORD_TOKENIZER.eos_token_id])
    generation = Generation(mailbox, 0, WORD_TOKENIZER, TOKENS[:1], stops, ends, is_streamed)
    for token in (*TOKENS, WORD_TOKENIZER.eos_token_id):
        if generation.token(token, Score(-1.0)):
            break
    generation.done("stop", None)
    return [part for _, part in await mailbox.get() if isinstance(part, Delta)]


def test_an_answer_that_is_not_streamed_is_one_part() -> None:
    for stops in ((), ("c",)):
        streamed, whole = (asyncio.run(told(is_streamed, stops)) for is_streamed in (True, False))
        assert len(whole) == 1
        assert whole[0].text == "".join(part.text for part in streamed)
        assert whole[0].tokens == [token for part in streamed for token in part.tokens]
        assert len(whole[0].scores) == len(whole[0].tokens)
        assert [part.reason for part in streamed] == [None] * (len(streamed) - 1) + ["stop"]
    assert "c" not in whole[0].text


def test_a_mailbox_that_another_thread_fills_loses_nothing() -> None:
    async def read() -> list[int]:
        mailbox, found = Mailbox(), list[int]()
        thread = threading.Thread(target=lambda: [mailbox.put(number, Delta()) for number in range(2000)])
        thread.start()
        while len(found) < 2000:
            found += [number for number, _ in await mailbox.get()]
        thread.join()
        return found

    assert asyncio.run(read()) == list(range(2000))
