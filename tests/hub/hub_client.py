"""What the Hub tests run in processes of their own, since huggingface_hub reads its endpoint when it is imported.

    python hub_client.py push FOLDER REPO         where modeling_lle is installed: pushes, and loads without trust
    python hub_client.py load SOURCE COPY [SITE [TRANSLATOR BANKED WRAPPED]]
                                                  where only torch and transformers are: loads with trust, saves again

Each prints the logits of `IDS` as JSON, on its last line. With SITE, packages are taken from that folder alone.
TRANSLATOR is a folder with a translator and its memory, BANKED one with a language model and its bank, WRAPPED one
with a model of transformers in hub/ and LLE around it in lle/: they are loaded as well.
"""

import gc
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

IDS = [[5, 6, 7, 5, 6, 7, 5, 6]]


def logits(model: Any) -> list[list[float]]:
    import torch

    with torch.no_grad():
        return model.eval()(torch.tensor(IDS)).logits[0].tolist()


def push(folder: str, repo: str) -> Any:
    from huggingface_hub import ModelCard
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import modeling_lle

    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model.push_to_hub(repo, private=True)
    tokenizer.push_to_hub(repo)
    ModelCard.load(Path(folder) / "README.md").push_to_hub(repo)
    model.push_to_hub(repo)  # keeps the card
    loaded = AutoModelForCausalLM.from_pretrained(repo)
    assert type(loaded) is modeling_lle.LLEForCausalLM
    assert AutoTokenizer.from_pretrained(repo)("the mat\n").input_ids == tokenizer("the mat\n").input_ids
    return logits(loaded)


def translate(source: str) -> None:
    from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM, AutoTokenizer

    config = AutoConfig.from_pretrained(source, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=True)
    model = AutoModelForSeq2SeqLM.from_pretrained(source, trust_remote_code=True)
    backbone = AutoModel.from_pretrained(source, trust_remote_code=True)
    names = [type(thing).__name__ for thing in (config, tokenizer, model, backbone)]
    assert names == ["LLESeq2SeqConfig", "LLETokenizer", "LLEForSeq2SeqLM", "LLESeq2SeqModel"], names
    inputs = tokenizer("a b", return_tensors="pt")
    model.generate(**inputs, max_new_tokens=3)
    state = backbone(**inputs, decoder_input_ids=inputs.input_ids)[0]
    assert state.equal(model.model(**inputs, decoder_input_ids=inputs.input_ids)[0])
    message = ""
    try:
        model.attach_history(open_bank(source), tokenizer=tokenizer)
    except ImportError as error:
        message = str(error)
    assert "pip install modeling_lle" in message, "a memory is attached that no module can search"
    model.generate(**inputs, max_new_tokens=3)


def open_bank(source: str) -> Any:
    """The bank in a saved folder, by the code that lies there."""
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    return get_class_from_dynamic_module("bank_bank.HistoryBank", source).from_pretrained(source)


def recall(source: str) -> None:
    """A language model recalls from the bank that lies with it."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, trust_remote_code=True)
    alone = logits(model)
    model.attach_history(open_bank(source))
    assert logits(model) != alone


def unwrap(folder: str) -> None:
    """A model around one of transformers predicts what the wrapped one does."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(f"{folder}/lle", trust_remote_code=True)
    assert type(model).__name__ == "LLEForCausalLM"
    due = torch.tensor(logits(AutoModelForCausalLM.from_pretrained(f"{folder}/hub")))
    torch.testing.assert_close(torch.tensor(logits(model)), due, rtol=1e-4, atol=1e-4)


def load(source: str, copy: str, site: str | None = None, *others: str) -> Any:
    if site is not None:
        sys.path.append(site)
    assert not any(map(importlib.util.find_spec, ("modeling_lle", "numba")))
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, pipeline

    config = AutoConfig.from_pretrained(source, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(source, trust_remote_code=True)
    backbone = AutoModel.from_pretrained(source, trust_remote_code=True)
    names = [type(thing).__name__ for thing in (config, tokenizer, model, backbone)]
    assert names == ["LLEConfig", "LLETokenizer", "LLEForCausalLM", "LLEModel"], names
    assert backbone.embed_tokens.weight.equal(model.lm_head.weight)
    assert AutoModelForCausalLM.from_config(config, trust_remote_code=True).config.hidden_size == config.hidden_size

    inputs = tokenizer("the cat", return_tensors="pt")
    generated = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    generate = pipeline("text-generation", model=source, trust_remote_code=True)
    text = generate("the cat", max_new_tokens=5, do_sample=False)[0]["generated_text"]
    assert text == tokenizer.decode(generated[0], skip_special_tokens=True)

    for check, folder in zip((translate, recall, unwrap), others, strict=bool(others)):
        check(folder)
    model.save_pretrained(copy)
    tokenizer.save_pretrained(copy)
    again = AutoModelForCausalLM.from_pretrained(copy, trust_remote_code=True)
    assert logits(again) == logits(model)
    return logits(model)


if __name__ == "__main__":
    gc.disable()  # importing takes most of the time
    commands: dict[str, Callable[..., Any]] = {"push": push, "load": load}
    print(json.dumps(commands[sys.argv[1]](*sys.argv[2:])))
