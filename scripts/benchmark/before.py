"""`generate` of another checkout of the package, such as the commit before a change, in a process of its own.

Notable: the process runs this file with the other checkout first on its path, so the file imports nothing of the
benchmarks. It answers one request a line, so that its rounds can take turns with those of this process.
"""

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any


class Clock:
    """A streamer of transformers that notes when each token was chosen."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        """Notes the time; the first call is for the prompt."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """The text is complete."""

    def seconds(self) -> list[float]:
        """Seconds of each token but the first, whose time is that of reading the prompt."""
        chosen = self.times[1:]
        return [after - before for before, after in itertools.pairwise(chosen)]


def timed_generate(model: Any, ids: Sequence[int], tokens: int, **options: Any) -> list[float]:
    """Seconds of each of `tokens` - 1 greedily chosen tokens after the first, by transformers' `generate`.

    Args:
        model: Any language model of transformers; none of its tokens ends the text.
        ids: Prompt.
        tokens: At least two.
        options: Further arguments of `generate`.
    """
    import torch

    clock, model.generation_config.eos_token_id = Clock(), None
    with torch.inference_mode():
        model.generate(torch.tensor([ids]), max_new_tokens=tokens, do_sample=False, streamer=clock, **options)
    return clock.seconds()


class Before:
    """The process, which holds a language model of the other checkout.

    Args:
        checkout: Folder of the checkout.
        model: Folder of the model.
        threads: Of torch and numba.

    Raises:
        ValueError: The folder has no checkout, or the process took the package from elsewhere.
    """

    def __init__(self, checkout: Path, model: Path, threads: int) -> None:
        checkout = checkout.resolve()
        if not (checkout / "modeling_lle" / "__init__.py").is_file():
            raise ValueError(f"{checkout} is no checkout of this project: give the folder that holds modeling_lle")
        environment = {
            **os.environ,
            "PYTHONPATH": str(checkout),
            "OMP_NUM_THREADS": str(threads),
            "NUMBA_NUM_THREADS": str(threads),
        }
        command = [sys.executable, str(Path(__file__).resolve()), str(model.resolve()), str(threads)]
        self._process = subprocess.Popen(
            command, cwd=checkout, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        home = self._answer()["package"]
        if Path(home) != checkout / "modeling_lle":
            self.close()
            raise ValueError(f"the process took the package from {home}, not from {checkout}")

    def generate(self, ids: Sequence[int], tokens: int, use_history: bool) -> list[float]:
        """Seconds per token, as `timed_generate` of the other checkout."""
        assert self._process.stdin is not None
        request = {"ids": list(ids), "tokens": tokens, "use_history": use_history}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()["seconds"]

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the process of the other checkout ended: its message is above")
        return json.loads(line)

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> "Before":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def answer_requests(folder: str, threads: int) -> None:
    """Answers requests from standard input until it ends, in the process of the other checkout."""
    import torch

    import modeling_lle

    torch.set_num_threads(threads)
    model = modeling_lle.LLEForCausalLM.from_pretrained(folder).eval()
    print(json.dumps({"package": str(Path(modeling_lle.__file__).parent)}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        seconds = timed_generate(model, request["ids"], request["tokens"], use_history=request["use_history"])
        print(json.dumps({"seconds": seconds}), flush=True)


if __name__ == "__main__":
    answer_requests(sys.argv[1], int(sys.argv[2]))
