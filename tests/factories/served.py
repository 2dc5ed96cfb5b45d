"""Tiny models behind the server, without a folder to load them from."""

from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

from modeling_lle.bank.bank import HistoryBank
from modeling_lle.serving.app import create_app
from modeling_lle.serving.keys import Keys
from modeling_lle.serving.limits import Limits
from modeling_lle.serving.served import Models, Place, Served
from modeling_lle.tasks import CLASSIFICATION, LANGUAGE, TRANSLATION
from tests.factories.classifiers import make_classifier
from tests.factories.language_models import make_language_model
from tests.factories.pairs import WORD_PAIRS_TOKENIZER
from tests.factories.texts import WORD_TOKENIZER
from tests.factories.translators import TRUSTED_MEMORY, make_word_translator

ANN, BOB, READER = "key-of-ann-0123456789", "key-of-bob-0123456789", "key-of-metrics-012345"
KEYS = {ANN: "ann", BOB: "bob", READER: "metrics"}


def make_served(
    folder: Path,
    name: str = "text",
    limits: Limits | None = None,
    shared: HistoryBank | None = None,
    namespaces: tuple[str, ...] | None = None,
    **values: Any,
) -> Served:
    """A model called "text", "label" or "pair", by its task; `values` are those of its factory."""
    makers: dict[str, Any] = {
        "text": (make_language_model, WORD_TOKENIZER, LANGUAGE),
        "label": (make_classifier, WORD_TOKENIZER, CLASSIFICATION),
        "pair": (make_word_translator, WORD_PAIRS_TOKENIZER, TRANSLATION),
    }
    make, tokenizer, task = makers[name]
    if name == "pair":
        values = {"history": TRUSTED_MEMORY, **values}
    place = Place(name, name, folder, shared=namespaces, languages=("en", "de"))
    return Served(place, make(**values), tokenizer, task, limits or Limits(), shared=shared)


def make_client(
    folder: Path,
    *names: str,
    keys: dict[str, str] | None = None,
    limits: Limits | None = None,
    **options: Any,
) -> TestClient:
    """A client of a server with some models, in one event loop; end them with `close`."""
    limits = limits or Limits()
    models = Models({name: make_served(folder, name, limits, **options) for name in names or ("text",)})
    app = create_app(models, None if keys is None else Keys(keys), limits)
    client = TestClient(app, raise_server_exceptions=False)
    client.__enter__()
    return client


def close(client: TestClient) -> None:
    """Ends the threads of the models of a client, and its event loop."""
    client.__exit__()
    app: Any = client.app
    assert app.state.serving.models.close(20)


def bearer(key: str) -> dict[str, str]:
    """The header for a key."""
    return {"Authorization": f"Bearer {key}"}
