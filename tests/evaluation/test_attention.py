import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("bm25s")
pytest.importorskip("matplotlib")

from modeling_lle.evaluation import attention
from modeling_lle.evaluation.pictures import save_figure
from tests.factories.pairs import make_capitals_tokenizer
from tests.factories.translators import make_trained_translator, make_translator


def names(labels: Any) -> list[str]:
    return [label.get_text() for label in labels]


def test_bytes_of_a_letter_are_one_piece_and_words_that_go_on_are_marked() -> None:
    tokenizer = make_capitals_tokenizer("bpe")
    ids = tokenizer("süt {x} 日本")["input_ids"]
    pieces = attention.readable(tokenizer, ids)
    shown = [name for name, _ in pieces]
    assert shown[:3] == ["s", "·ü", "·t"]
    assert shown[-3:] == ["日", "·本", "<eos>"]
    assert [own.stop - own.start for _, own in pieces][-3:] == [3, 3, 1]
    assert "␣" in shown
    assert shown[shown.index("␣") + 1] == "{"
    assert [i for _, own in pieces for i in range(own.start, own.stop)] == list(range(len(ids)))
    whole = attention.readable(tokenizer, tokenizer("ab")["input_ids"][:-1])
    assert whole[-1][0] != "<eos>"


def test_bytes_that_are_no_text_end_somewhere() -> None:
    tokenizer = make_capitals_tokenizer("bpe")
    (byte,) = {tokenizer.convert_tokens_to_ids("Ã")}
    pieces = attention.readable(tokenizer, [byte] * 6)
    assert sum(own.stop - own.start for _, own in pieces) == 6
    assert attention.readable(tokenizer, []) == []


def test_words_are_shown_as_they_are() -> None:
    tokenizer = make_capitals_tokenizer()
    pieces = attention.readable(tokenizer, tokenizer("ab nöp {x} klm")["input_ids"])
    assert [name for name, _ in pieces] == ["ab", "nöp", "{x}", "klm", "<eos>"]


def test_the_weights_are_the_models_mean() -> None:
    model, tokenizer = make_trained_translator(translator={"num_attention_heads": 2})
    source, target = tokenizer("ab cde fgh")["input_ids"], tokenizer("AB CDE FGH")["input_ids"]
    weights = attention.source_attention(model.train(), source, target, tokenizer.pad_token_id)
    assert model.training
    model.eval()
    with torch.no_grad():
        output = model(torch.tensor([source]), labels=torch.tensor([target]), output_attentions=True)
    expected = sum(layer[0].mean(0) for layer in output.cross_attentions) / len(output.cross_attentions)
    np.testing.assert_allclose(weights, expected.numpy(), atol=1e-6)
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-5)
    assert weights.argmax(1).tolist()[:2] == [0, 1]  # it has learned to look at the word that it writes


def test_the_picture_has_every_token(tmp_path: Path) -> None:
    tokenizer = make_capitals_tokenizer("bpe")
    figure = attention.draw_translation(make_translator(tokenizer), tokenizer, "süt", "SÜT $a$", title="$5 for $6")
    axes = figure.axes[0]
    assert names(axes.get_xticklabels()) == ["s", "·ü", "·t", "<eos>"]
    assert names(axes.get_yticklabels())[:3] == ["S", "·Ü", "·T"]
    cells = np.asarray(axes.collections[0].get_array())
    assert cells.shape == (len(axes.get_yticklabels()), 4)
    np.testing.assert_allclose(cells.sum(1), 1, atol=1e-5)  # the bytes of a letter are added up
    save_figure(figure, tmp_path / "attention.png")
    assert (tmp_path / "attention.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("columns", "rows", "title"), [(1, 1, None), (3, 12, "A title"), (40, 45, None)])
def test_nothing_is_clipped_and_labels_stand_apart(columns: int, rows: int, title: str | None) -> None:
    weights = np.random.default_rng(0).dirichlet(np.ones(columns), rows)
    source, target = ([f"Wörter-{i:02}" for i in range(number)] for number in (columns, rows))
    figure = attention.draw_attention(weights, source, target, title)
    figure.draw_without_rendering()
    axes = figure.axes[0]
    width, height = figure.get_size_inches() * figure.dpi
    labels = [*axes.get_xticklabels(), *axes.get_yticklabels(), axes.xaxis.label, axes.yaxis.label]
    for box in [label.get_window_extent() for label in labels]:
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= width
        assert box.y1 <= height
    heights = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert all(not one.overlaps(other) for one, other in itertools.pairwise(heights))
    assert not any(label.get_parse_math() for label in axes.get_xticklabels())


def test_labels_have_to_fit() -> None:
    with pytest.raises(ValueError, match=r"the shape \(2, 3\), and there are 2 tokens of the target and 2"):
        attention.draw_attention(np.zeros((2, 3)), ["a", "b"], ["a", "b"])
