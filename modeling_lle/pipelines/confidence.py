"""The confidence in a translation: a calibrated probability that it can stay as it is.

    confidence = sigmoid(w . (1, mean log P, least log P, share of the memory, best fuzzy match score))

over the tokens of the translation, of which P is what the translator says with its memory. The five numbers w are
fitted by `fit_confidence` to translations of sentence pairs whose target is known, each translated without its own
pair (a quality estimate as that of Platt 1999, with the features of Fomicheva et al. 2020, arXiv:2005.10608, section
3.1, and the memory's). Shapes: B translations, T tokens, F features.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..common.modes import evaluating
from ..configuration_fields import MAX_FITTED
from ..entries.pairs import pair_batches
from ..history.attachment import Attachment
from ..history.calibration import fit
from ..history.loss import IGNORED
from ..models.encoder_decoder import LLESource
from ..models.seq2seq import LLEForSeq2SeqLM

RIDGE = 0.01  # penalty of the weights of standardised features, for a few pairs that are easily told apart
STEPS = 60
BATCH = 32


@torch.no_grad()
def features(model: LLEForSeq2SeqLM, source: LLESource, labels: Tensor) -> Tensor:
    """What is known of translations: (B, F) float32, on the CPU.

    Args:
        model: Translator.
        source: Their sources, with the candidates of a memory if there is one.
        labels: (B, T) int64, the translations with their end token, -100 at padding.
    """
    known = source.candidates is not None
    output = model(encoder_outputs=source, labels=labels, use_history=known, output_history=True, return_logits=True)
    real = labels != IGNORED
    log_p = output.logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    number = real.sum(1).clamp(min=1)
    mean = log_p.masked_fill(~real, 0).sum(1) / number
    least = log_p.masked_fill(~real, 0).amin(1)
    share, match = torch.zeros_like(mean), torch.zeros_like(mean)
    if source.candidates is not None and source.candidates.match.shape[1]:
        share = (1 - output.history.base_share).masked_fill(~real, 0).sum(1) / number
        match = source.candidates.match.amax(1)
    return torch.stack([mean, least, share, match], dim=1).float().cpu()


def confidence(model: LLEForSeq2SeqLM, found: Tensor) -> Tensor:
    """The confidence (B,) float32 in translations with these `features` (B, F).

    Raises:
        ValueError: It has not been fitted.
    """
    bias, *weights = _numbers(model)
    return (found @ torch.tensor(weights) + bias).sigmoid()


def _numbers(model: LLEForSeq2SeqLM) -> list[float]:
    numbers = model.config.translator.confidence
    if not numbers:
        raise ValueError(
            "the confidence in translations has not been fitted: run `lle memory MODEL PAIRS --confidence`, or "
            "fit_confidence(model, tokenizer, sources, targets)"
        )
    return [float(number) for number in numbers]


def fit_confidence(
    model: LLEForSeq2SeqLM,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[str],
    targets: Sequence[str],
    beams: int = 1,
    history: Attachment | None = None,
) -> dict[str, float]:
    """Fits the confidence in translations, and writes its numbers into the configuration.

    Args:
        model: Translator, perhaps with a memory.
        tokenizer: Its tokenizer.
        sources: Sentences, which may be of the memory: their own pairs are left out for them.
        targets: What each is to be translated as.
        beams: Beam size of the search; 1 is fastest.
        history: The memory; None: the one that is attached.

    Returns:
        `translations`, how many were made; `unedited`, the share of them that are as their target; `before_nats`
        and `after_nats` of that share alone and of the confidence, a translation.

    Raises:
        ValueError: All translations, or none, are as their targets, so that nothing can be told apart.
    """
    found, right = [], []
    attachment = model.recalled_from(history, True)
    with evaluating(model), torch.no_grad():
        for batch in pair_batches(sources, targets, tokenizer, BATCH):
            own = {name: value.to(model.device) for name, value in batch.items()}
            ids, mask = own["input_ids"], own["attention_mask"]
            source = model.read_source(ids, mask, leave_out=True, history=attachment)
            options = {"num_beams": beams, "do_sample": False, "use_history": source.candidates is not None}
            drafts = model.generate(ids, attention_mask=mask, encoder_outputs=source, **options)[:, 1:]
            labels = _until_end(drafts, tokenizer.eos_token_id)
            found.append(features(model, source, labels))
            texts = [
                tokenizer.batch_decode(side, skip_special_tokens=True)
                for side in (drafts, _ids(own["labels"], tokenizer))
            ]
            right += [draft.strip() == target.strip() for draft, target in zip(*texts, strict=True)]
    return _fit(model, torch.cat(found), torch.tensor(right).float())


def _until_end(drafts: Tensor, end: int) -> Tensor:
    """Generated tokens (B, T) as labels: -100 after the first end token."""
    after = (drafts == end).long().cumsum(1) - (drafts == end).long() > 0
    return drafts.masked_fill(after, IGNORED)


def _ids(labels: Tensor, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    return labels.masked_fill(labels == IGNORED, int(tokenizer.pad_token_id))


def _fit(model: LLEForSeq2SeqLM, found: Tensor, right: Tensor) -> dict[str, float]:
    """Fits by penalised logistic regression on standardised features."""
    share = float(right.mean())
    if not 0 < share < 1:
        raise ValueError(
            f"{'all' if share else 'none'} of the {len(right)} translations are as they should be: the confidence "
            "needs some of both, so give more sentence pairs, or build the memory first"
        )
    mean, deviation = found.mean(0), found.std(0).clamp(min=1e-3)
    scaled = (found - mean) / deviation

    def nats(values: Tensor) -> Tensor:
        logits = values[0] + scaled @ values[1:]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, right)
        return loss + RIDGE * values[1:].square().sum()

    start = torch.zeros(1 + found.shape[1])
    start[0] = torch.tensor(share).logit()
    values = fit(nats, start, STEPS).values
    weights = values[1:] / deviation
    numbers = torch.cat([(values[0] - weights @ mean)[None], weights]).clamp(-MAX_FITTED, MAX_FITTED)
    model.config.translator.confidence = numbers.tolist()
    said = confidence(model, found)
    return {
        "translations": float(len(right)),
        "unedited": share,
        "before_nats": float(torch.nn.functional.binary_cross_entropy(torch.full_like(said, share), right)),
        "after_nats": float(torch.nn.functional.binary_cross_entropy(said, right)),
    }
