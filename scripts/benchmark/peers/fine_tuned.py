"""all-MiniLM-L6-v2 fine-tuned on pairs of examples, with a logistic regression after it: SetFit, by its package.

Tunstall et al. 2022, arXiv:2209.11055. A pair is trained to a cosine of 1 if both have the same intent, else of 0;
half of the pairs are of each kind. All but the number of steps is as the package has it.

Notable: the package is optional, and imported on use. What is fine-tuned has the layers of the encoder that it was
made of, so it is read, and timed, in the same way as that.
"""

import tempfile
from typing import Any

from datasets import Dataset

from ..intents import Examples
from .encoders import MiniLM
from .exported import encoder_folder
from .logistic_regression import EmbeddingClassifier

PAIRS = 16  # of a step, as the package has it
STEPS = 400  # eight minutes of one core


class FineTuned(MiniLM):
    """The encoder with other weights.

    Args:
        body: Fine-tuned encoder of sentence-transformers.
    """

    def __init__(self, body: Any) -> None:
        super().__init__()
        kind = type(self.encoder.model)
        self.encoder.model = next(part for part in body.modules() if isinstance(part, kind)).eval()


def fine_tune(examples: Examples, seed: int, steps: int = STEPS) -> EmbeddingClassifier:
    """Fine-tunes the encoder on pairs of examples, and fits a logistic regression to what it makes of them.

    Args:
        examples: Queries with their intents.
        seed: Of the order of the pairs.
        steps: Number of updates.

    Raises:
        ImportError: setfit or the package with the encoder is missing.
    """
    try:
        from setfit import SetFitModel, Trainer, TrainingArguments
    except ImportError as error:
        raise ImportError("fine-tuning the encoder needs setfit: pip install setfit") from error
    model = SetFitModel.from_pretrained(str(encoder_folder()))
    rows = Dataset.from_dict({"text": examples.texts, "label": examples.labels.tolist()})
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            batch_size=PAIRS,
            num_epochs=1,
            max_steps=steps,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            seed=seed,
        )
        Trainer(model=model, args=arguments, train_dataset=rows).train()
    return EmbeddingClassifier(FineTuned(model.model_body), model.model_head)
