"""Start-up time and peak memory of programs, each in a process of its own. Needs Linux."""

import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

STATUS = Path("/proc/self/status")
# Runs a program and then prints its peak memory; the kernel's own report on a child begins with that of its parent.
_MEASURED = f"""
import atexit, runpy, sys
def report():
    with open("{STATUS}") as status:
        print(next(line for line in status if line.startswith("VmHWM")), end="", file=sys.stderr)
atexit.register(report)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Start(NamedTuple):
    """Medians over the runs of a program.

    Attributes:
        seconds: From its start to its end.
        megabytes: Largest resident memory.
    """

    seconds: float
    megabytes: float


def measure_starts(
    programs: Mapping[str, Sequence[str]], repeats: int, environment: Mapping[str, str]
) -> dict[str, Start]:
    """Runs programs in turn, and once before to fill the cache of files.

    Args:
        programs: A Python file with its arguments, by name.
        repeats: Measured runs of each.
        environment: Environment of the processes.

    Raises:
        OSError: The system is not Linux.
        RuntimeError: A program failed.
    """
    if not STATUS.exists():
        raise OSError(f"peak memory is read from {STATUS}, which only Linux has")
    runs: dict[str, list[Start]] = {name: [] for name in programs}
    for repeat in range(1 + repeats):
        for name, program in programs.items():
            begin = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-c", _MEASURED, *program], env=dict(environment), capture_output=True, text=True
            )
            seconds = time.perf_counter() - begin
            if done.returncode != 0:
                raise RuntimeError(f"{name} failed: {done.stderr.strip()}")
            peak = done.stderr.strip().splitlines()[-1].split()  # VmHWM: 123456 kB
            if repeat:
                runs[name].append(Start(seconds, int(peak[1]) / 1024))
    return {name: Start(*map(statistics.median, zip(*own, strict=True))) for name, own in runs.items()}
