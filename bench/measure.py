"""How we measure: sides take turns in one process, raw samples are kept, a claim is a ratio within one run."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from statistics import median

Samples = dict[str, list[float]]


def interleaved(sides: Mapping[str, Callable[[], int]], *, rounds: int) -> Samples:
    """Nanoseconds per call of each side, one sample per round.

    Each side runs its calls and returns how many it made. Within a round the sides follow each other, and every other
    round turns the order round, so that drift of the machine meets all alike.
    """
    samples: Samples = {name: [] for name in sides}
    order = list(sides)
    for name in order:
        sides[name]()
    for number in range(rounds):
        for name in order if number % 2 == 0 else reversed(order):
            started = time.perf_counter_ns()
            calls = sides[name]()
            samples[name].append((time.perf_counter_ns() - started) / calls)
    return samples


def ratio(samples: Samples, of: str, to: str) -> float:
    """How many times longer `of` took than `to`: the median over rounds of the ratio within a round."""
    return median(a / b for a, b in zip(samples[of], samples[to], strict=True))


def digest(answers: object) -> str:
    """SHA-256 over answers as canonical JSON: equal answers, equal hash, on any machine."""
    return hashlib.sha256(json.dumps(answers, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def machine() -> dict[str, object]:
    """What the numbers were measured on."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "cedarpy": version("cedarpy"),
    }


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
    except OSError:
        return platform.processor() or "unknown"
