"""A Space of the Hub that serves models with a page to teach them.

It serves the models that the variable LLE_MODELS names, such as `intents=me/intents en-de=me/en-de`, with the banks
of LLE_BANKS, such as `intents=me/intents`; without it, a small classifier and a small translator that it trains when
it starts, in a minute. Who has a key of LLE_KEYS, a secret with a line `KEY: TENANT` for each, has a history of their
own; without LLE_KEYS all visitors share one.

python app.py    http://localhost:7860
"""

import os
import tempfile
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from modeling_lle.serving.app import create_app
from modeling_lle.serving.keys import Keys
from modeling_lle.serving.limits import Limits
from modeling_lle.serving.page_demo import make_demo_models
from modeling_lle.serving.served import Models, Place

# A small machine and visitors in haste.
LIMITS = Limits(prompt_tokens=4_096, new_tokens=128, inputs=64, queue=64, batch=16, seconds=60.0, sessions=4)
FOLDER = Path("/data" if os.access("/data", os.W_OK) else "runs")  # /data outlives restarts


def read_keys(text: str | None) -> Keys | None:
    """The keys of a secret; None: everybody is one tenant."""
    if not text:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "keys.txt"
        path.write_text(text, encoding="utf-8")
        return Keys.read(path)


def named(text: str) -> dict[str, str]:
    """What stands in a variable, by name: NAME=PLACE, or a place that is called like its last part."""
    pairs = (value.partition("=") for value in text.split())
    return {name if equals else name.rpartition("/")[2]: place if equals else name for name, equals, place in pairs}


def build(models: str = "", banks: str = "", keys: str | None = None, folder: Path = FOLDER) -> FastAPI:
    """The application.

    Args:
        models: Names of models on the Hub or folders, see `named`; "": those that are trained here.
        banks: The banks that all visitors recall from too, by the names of their models.
        keys: Lines `KEY: TENANT`; None: no keys.
        folder: Where histories, and the models that are trained here, lie.
    """
    histories = folder / "histories"
    of = named(banks)
    places = [Place(name, place, histories, of.get(name)) for name, place in named(models).items()]
    places = places or make_demo_models(folder, histories)
    return create_app(Models.load(places, LIMITS), read_keys(keys), LIMITS, page=True)


if __name__ == "__main__":
    app = build(os.environ.get("LLE_MODELS", ""), os.environ.get("LLE_BANKS", ""), os.environ.get("LLE_KEYS"))
    uvicorn.run(app, host="0.0.0.0", port=7860, log_level="warning", lifespan="off")
