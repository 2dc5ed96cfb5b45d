"""Measures the claims of the README, and writes model_cards/results/NAME.json; timings are ratios within one run.

    python -m scripts.benchmark speed                          a training step, reading and generating (4 minutes)
    python -m scripts.benchmark recurrences data/ptb           every recurrence and stack, 1 minute each (35 minutes)
    python -m scripts.benchmark search runs/ptb data/ptb       exact and approximate search of a bank of real text
    python -m scripts.benchmark synthetic                      search of ten million entries: memory, speed, recall
    python -m scripts.benchmark selection runs/ptb data/ptb    size of a bank against perplexity; asking less often
    python -m scripts.benchmark domain runs/wikitext-2-subwords data/ptb    a model reads text of another domain
    python -m scripts.benchmark bank-keys MODEL... --source data/ptb    width of keys against perplexity and size
    python -m scripts.benchmark bank-ranks                     building by 2 and 4 ranks, beside one process
    python -m scripts.benchmark bank-scale                     what an entry costs, and banks of 10^6 to 10^10 of them
    python -m scripts.benchmark bank-milvus runs/ptb data/ptb  a bank in Milvus beside its folder: recall, speed, ppl
    python -m scripts.benchmark bank                           gathers the figures of banks
    python -m scripts.benchmark history runs/ptb data/ptb      LLE against other methods that learn from text read
    python -m scripts.benchmark overfitting data/ptb           the gap between training and test, by size and dropout
    python -m scripts.benchmark classification data/banking77 --recipe FILE    trains and compares classifiers
    python -m scripts.benchmark few data/banking77 data/clinc150    classifiers from 5, 10, 20 and all examples a class
    python -m scripts.benchmark suggest data/banking77         which texts to label next: accuracy by labelled texts
    python -m scripts.benchmark translation DATA TEST --recipe FILE    LLE and a Transformer, equal training time
    python -m scripts.benchmark memory MODEL CATALOGUE         a translator in another domain, its memory and its peers
    python -m scripts.benchmark generation FOLDER data/wikitext-2    what recalling its own output does to a text
    python -m scripts.benchmark deployment --language-model FOLDER    every form of the three heads, and their peers
    python -m scripts.benchmark peers data/wikitext-2 FOLDER    LLE and transformers' models of equal size (3 hours)
    python -m scripts.benchmark backbones MODEL... data/ptb    pretrained recurrent models with history
    python -m scripts.benchmark history-time data/wikitext-2   what the history costs, by size of the model
    python -m scripts.benchmark device data/wikitext-2         a GPU: kernels, heads, training (12 minutes)
    python -m scripts.benchmark recall data/wikitext-2         copies, pairs and a phone book: what the history recalls
    python -m scripts.benchmark budget                         a training step: operations, floor, where time goes
    python -m scripts.benchmark serving MODEL TEXTS            requests of many clients, beside transformers serve
    python -m scripts.benchmark damage                         200 kills, and 500 corruptions of each kind of file

Close other programs first: the benchmarks use all cores.
"""

import typer

from .backbones import backbones
from .bank import bank, domain, search, selection, synthetic
from .bank_keys import bank_keys
from .bank_milvus import bank_milvus
from .bank_ranks import bank_ranks
from .bank_scale import bank_scale
from .budget import budget
from .classification import classification
from .damage import damage
from .deployment import deployment
from .device import device
from .few import few
from .generation import generation
from .history import history
from .history_time import history_time
from .language_models import peers
from .memory import memory
from .overfitting import overfitting
from .recall import recall
from .recurrences import recurrences
from .serving import serving
from .speed import speed
from .suggest import suggest
from .translation import translation

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)
for command in (
    speed,
    recurrences,
    search,
    synthetic,
    selection,
    domain,
    bank_keys,
    bank_ranks,
    bank_scale,
    bank_milvus,
    damage,
    bank,
    history,
    overfitting,
    classification,
    few,
    suggest,
    translation,
    memory,
    generation,
    deployment,
    peers,
    backbones,
    history_time,
    device,
    budget,
    recall,
    serving,
):
    app.command()(command)

if __name__ == "__main__":
    app()
