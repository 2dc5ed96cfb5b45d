"""Words, in scripts with spaces and without."""

from modeling_lle.common.words import find_words, words


def test_words_and_their_places() -> None:
    text = "L'été, 2 猫が!"
    assert words(text) == ["L", "'", "été", ",", "2", "猫", "が", "!"]
    assert [text[match.start() : match.end()] for match in find_words(text)] == words(text)
