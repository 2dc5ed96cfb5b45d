"""A translator with a translation memory.

Trains a tiny translator on the sentences that the script makes, then gives it a memory with other words: they are used
in the next sentence, without training, also in sentences that the memory does not have. It forgets them exactly.

Twenty seconds on one core; prints, with other figures on other machines:

    'the cow sings in the barn' -> 'die Kuh singt im Stall'
    'the dog barks in the garden' -> 'die Kuh isst im Garten'
    23 pairs: 3.35 nats a token without them, 0.00 with the others
    'the dog barks in the garden' -> 'der Hund bellt im Garten'  (best match 83%: 'the dog waits in the garden')
    'the dog waits at the gate' -> 'der Hund wartet am Tor'  (best match 83%: 'the dog barks at the gate')
    'the dog sings at the lake' -> 'der Hund singt am See'  (best match 83%: 'the dog barks at the lake')
    'the cow sings in the barn' -> 'die Kuh singt im Stall'  (best match 67%: 'the cow sings at the gate')
    'the cat sleeps at the gate' -> 'die Kuh schläft am Tor'  (best match 83%: 'the dog sleeps at the gate')
    'the dog barks in the garden' -> 'die Kuh isst im Garten'
"""

# %%
import tempfile
from itertools import product

from datasets import Dataset
from transformers import pipeline

from modeling_lle import HistoryBank
from modeling_lle.training import make_recipe, run

# %% [markdown]
# The training pairs: everybody does everything everywhere.

# %%
WHO = {
    **{"the cat": "die Katze", "the cow": "die Kuh", "the duck": "die Ente", "the mouse": "die Maus"},
    **{"the horse": "das Pferd", "the pig": "das Schwein", "the man": "der Mann", "the child": "das Kind"},
}
DOES = {"sleeps": "schläft", "waits": "wartet", "eats": "isst", "sings": "singt", "plays": "spielt", "runs": "läuft"}
WHERE = {
    **{"in the house": "im Haus", "in the garden": "im Garten", "at the lake": "am See"},
    **{"in the barn": "im Stall", "on the road": "auf der Straße", "in the snow": "im Schnee"},
}


def sentences(*parts: dict[str, str]) -> list[dict[str, str]]:
    """All combinations of the parts, with their translations."""
    combinations = [zip(*words, strict=True) for words in product(*(part.items() for part in parts))]
    return [{"source": " ".join(source), "target": " ".join(target)} for source, target in combinations]


pairs = sentences(WHO, DOES, WHERE)

# %% [markdown]
# Train: a quarter of a minute.

# %%
folder = tempfile.mkdtemp()
training = {"output_dir": folder, "num_train_epochs": 12, "per_device_train_batch_size": 16, "learning_rate": 0.005}
recipe = {
    "task": "translation",
    "data": {"source_language": "en", "target_language": "de", "source_column": "source", "target_column": "target"},
    "tokenizer": {"vocab_size": 320},
    "model": {"hidden_size": 64, "num_hidden_layers": 1},
    "training": {**training, "save_strategy": "no", "disable_tqdm": True},
}
run(make_recipe(recipe), {"train": Dataset.from_list(pairs), "validation": Dataset.from_list(pairs[::19])})
translate = pipeline("translation", model=folder)
model, tokenizer = translate.model, translate.tokenizer


def show(text: str) -> None:
    """Prints a translation, and with a memory the fuzzy match score of the pair that resembles the text most."""
    (found,) = translate([text], return_match=True, num_beams=1)
    match = f"  (best match {found['match']['score']:.0%}: {found['match']['text']!r})" if found["match"] else ""
    print(f"{text!r} -> {found['translation_text']!r}{match}")


show("the cow sings in the barn")
show("the dog barks in the garden")

# %% [markdown]
# Remember: pairs with words that it was not trained on. `calibrate` fits how much the memory counts, by predicting
# each of its pairs from the others. The words then join others in sentences that no pair has. Where it resembles the
# sentence, a memory of so few pairs also misleads, as in the last one here.

# %%
place = {"at the gate": "am Tor"}
new = sentences({"the dog": "der Hund"}, {"barks": "bellt", "waits": "wartet", "sleeps": "schläft"}, WHERE | place)
new += sentences({"the cow": "die Kuh", "the pig": "das Schwein"}, {"eats": "isst", "sings": "singt"}, place)
asked = ["the dog barks in the garden", "the dog waits at the gate", "the dog sings at the lake"]
new = [pair for pair in new if pair["source"] not in asked]
memory = HistoryBank.build(model, tokenizer, new, f"{folder}/memory", source="gate")
model.attach_history(memory, tokenizer=tokenizer)
fitted = model.calibrate()
alone, others = fitted["base_nats"], fitted["after_nats"]
print(f"{len(new)} pairs: {alone:.2f} nats a token without them, {others:.2f} with the others")
for text in (*asked, "the cow sings in the barn", "the cat sleeps at the gate"):
    show(text)

# %% [markdown]
# Forget: as if it had never been there.

# %%
memory.forget(source="gate")
show("the dog barks in the garden")
