"""A classifier that is taught labels by examples.

Trains a tiny classifier on the texts below, teaches it a label by one example, refuses what has no label, and takes
the lesson back.

Ten seconds on one core; prints, with other figures on other machines:

    1.0000  lost_card      'someone has stolen my card'
    1.0000  exchange_rate  'can I have a virtual card?'
    1.0000  virtual_card   'can I have a virtual card?'
    1.0000  lost_card      'someone has stolen my card'
    +1.0000 by the example 'I want a virtual card', taught-1:0 (entry 145)
    1.0000  lost_card      'my bank card has gone missing', none of these: 0.2452
    0.7157  out_of_scope   'sing a song for me', none of these: 0.7157
    1.0000  exchange_rate  'can I have a virtual card?'
"""

# %%
import tempfile
from itertools import product

import torch
from datasets import Dataset
from transformers import pipeline

from modeling_lle import HistoryBank
from modeling_lle.training import make_recipe, run

# %% [markdown]
# The training texts: five intents, each with the combinations of a few beginnings and ends.

# %%
PARTS = {
    "lost_card": [
        ("i lost|i can not find|somebody stole|i think i lost", "my card|the card|my bank card|my credit card"),
        ("my card|the card|my bank card|my credit card", "is gone|was stolen|is lost|has been stolen|is missing"),
    ],
    "exchange_rate": [
        ("what is the rate for|how many euros are|what rate do i get for", "dollars|pounds|yen|a hundred dollars"),
        ("what is|how is|where is|when is|why is", "the exchange rate|the exchange rate set|the exchange rate shown"),
    ],
    "top_up": [
        ("how do i top up|can i top up|i want to top up|why can i not top up", "my account|by transfer|with cash|now"),
        ("my|the|why has my", "top up failed|top up not arrived|top up been refused|top up limit"),
    ],
    "change_pin": [
        ("how do i change|i want to change|where can i change", "my pin|the pin|the pin of my card|a pin|it"),
        ("my|the|i think my", "pin does not work|pin is wrong|pin is blocked|pin was refused"),
    ],
    "fees": [
        ("what does|how much does|why does", "it cost|a transfer cost|an account cost|the card cost|a payment cost"),
        ("why was i charged|what is|why is there|i do not understand", "a fee|this fee|the fee for transfers"),
    ],
}
rows = [
    {"text": " ".join(words), "label": label}
    for label, parts in PARTS.items()
    for begin, end in parts
    for words in product(begin.split("|"), end.split("|"))
]

# %% [markdown]
# Train: seconds. A quarter of the texts is held out: on these the bank of the training texts is fitted. The folder has
# the model and its bank.

# %%
folder = tempfile.mkdtemp()
training = {"output_dir": folder, "num_train_epochs": 12, "per_device_train_batch_size": 16, "learning_rate": 0.01}
recipe = {
    "task": "text-classification",
    "data": {"held_out": 0.25},
    "tokenizer": {"vocab_size": 400, "lowercase": True},
    "model": {"hidden_size": 32, "num_hidden_layers": 1, "bidirectional": True},
    "training": {**training, "save_strategy": "no", "disable_tqdm": True},
}
run(make_recipe(recipe), {"train": Dataset.from_list(rows)})
classify = pipeline("text-classification", model=folder)
model, tokenizer = classify.model, classify.tokenizer
model.attach_history(HistoryBank.from_pretrained(folder), tokenizer=tokenizer)


def show(text: str) -> None:
    """Prints the label of a text and its probability."""
    (found,) = classify([text])
    print(f"{found['score']:.4f}  {found['label']:13}  {text!r}")


show("someone has stolen my card")
show("can I have a virtual card?")

# %% [markdown]
# Teach a label by one example: it is known at once, without training. `explain` says why.

# %%
model.learn(["I want a virtual card"], ["virtual_card"], new_labels=True)
show("can I have a virtual card?")
show("someone has stolen my card")
(found,) = classify(["can I have a virtual card?"], return_history=True, history_top=1)
(cause,) = found["history"][0]["causes"]
print(f"{cause['effect']:+.4f} by the example {cause['columns']['text']!r}, {cause['where']}")

# %% [markdown]
# Refuse: the score of "none of these" is fitted on texts that have a label (a number in `labels`) and on others, that
# the model was not trained on; `keep` is the share of right answers that must not be refused.


# %%
def batch(texts: dict[str, str]) -> list[dict[str, torch.Tensor]]:
    """Texts with their labels as one batch; -100 is no label."""
    names = model.label_names()
    labels = [names.index(label) if label in names else -100 for label in texts.values()]
    return [{**tokenizer(list(texts), padding=True, return_tensors="pt"), "labels": torch.tensor(labels)}]


inside = {
    "where did i lose my card": "lost_card",
    "is my card stolen": "lost_card",
    "how many euros is a dollar": "exchange_rate",
    "tell me the exchange rate": "exchange_rate",
    "why was my top up refused": "top_up",
    "i can not top up my account": "top_up",
    "change the pin please": "change_pin",
    "the pin is not right": "change_pin",
    "is there a fee for my card": "fees",
    "how much is a transfer": "fees",
}
outside = [
    "will it rain today",
    "tell me a joke",
    "who won the match",
    "play some music",
    "good morning",
    "read a poem",
]
model.fit_out_of_scope(batch(inside), batch(dict.fromkeys(outside, "none")), keep=0.9)
for text in ("my bank card has gone missing", "sing a song for me"):
    (found,) = classify([text], out_of_scope=True)
    print(f"{found['score']:.4f}  {found['label']:13}  {text!r}, none of these: {found['out_of_scope']:.4f}")

# %% [markdown]
# Take back: as if it had never been taught.

# %%
model.forget(["I want a virtual card"])
show("can I have a virtual card?")
