"""The pictures of the report: each takes one bench's JSON and gives an SVG, or nothing when that was not measured."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from statistics import median
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

Json = dict[str, Any]
WIDE = (8.0, 4.0)


def _drawn(title: str, draw: Callable[[Axes], None], size: tuple[float, float] = WIDE) -> str:
    """A data URI of what `draw` puts on one pair of axes."""
    figure, axes = pyplot.subplots(figsize=size, layout="constrained")
    axes.set_title(title)
    draw(axes)
    held = io.BytesIO()
    figure.savefig(held, format="svg")
    pyplot.close(figure)
    return "data:image/svg+xml;base64," + base64.b64encode(held.getvalue()).decode()


def cpu(made: Json) -> str:
    """Server CPU per call by side, with one and with a hundred calls outstanding."""
    sides, found = list(made["samples"]), made["results"]
    if not sides:
        return ""

    def draw(axes: Axes) -> None:
        for at, load in enumerate(("m1", "m100")):
            heights = [found[f"{side}_cpu_us_{load}"] for side in sides]
            axes.bar([i + 0.4 * at for i in range(len(sides))], heights, 0.4, label=f"{load[1:]} outstanding")
        axes.set_xticks([i + 0.2 for i in range(len(sides))], sides, rotation=30, ha="right")
        axes.set(yscale="log", ylabel="µs of CPU per call")
        axes.grid(visible=True, axis="y", alpha=0.3)
        axes.legend()

    return _drawn("CPU per call", draw)


def stages(made: Json) -> str:
    """CPU per call by stage."""
    profiles = {name: one["stages_us"] for name, one in made.get("profiles", {}).items() if one["stages_us"]}
    if not profiles:
        return ""

    def draw(axes: Axes) -> None:
        names = list(dict.fromkeys(stage for one in profiles.values() for stage in one))
        left = [0.0] * len(profiles)
        for number, stage in enumerate(names):
            widths = [one.get(stage, 0.0) for one in profiles.values()]
            axes.barh(list(profiles), widths, left=left, label=stage, color=pyplot.get_cmap("tab20")(number % 20))
            left = [a + b for a, b in zip(left, widths, strict=True)]
        axes.set(xlabel="µs of CPU per call")
        axes.invert_yaxis()
        axes.legend(fontsize=7, ncols=2, loc="lower right")

    return _drawn("CPU per call by stage", draw)


def throughput(made: Json) -> str:
    """Calls per second over the calls outstanding on each connection."""
    if not made.get("curve"):
        return ""

    def draw(axes: Axes) -> None:
        for side, points in made["curve"].items():
            axes.plot([int(m) for m in points], list(points.values()), marker="o", label=side)
        axes.set(
            xscale="log", yscale="log", xlabel="outstanding per connection, 8 connections", ylabel="calls/s of one core"
        )
        axes.grid(visible=True, which="both", alpha=0.3)
        axes.legend()

    return _drawn("Throughput against concurrency", draw)


def latency(made: Json, key: str = "latency_us", title: str = "Latency at half of capacity") -> str:
    """Latency by percentile, each side the median over rounds; the band is the middle half of the rounds."""
    if not made.get(key):
        return ""

    def draw(axes: Axes) -> None:
        for side, rounds in made[key].items():
            shares = [share for share in rounds[0] if share != "late_p99" and 0.25 <= float(share) < 1]
            at = [1 / (1 - float(share)) for share in shares]
            taken = [sorted(one[share] for one in rounds) for share in shares]
            line = axes.plot(at, [median(one) for one in taken], marker=".", label=side)
            low, high = [one[len(one) // 4] for one in taken], [one[-1 - len(one) // 4] for one in taken]
            axes.fill_between(at, low, high, alpha=0.15, color=line[0].get_color())
        axes.set(xscale="log", yscale="log", xlabel="percentile", ylabel="µs from the scheduled start")
        axes.set_xticks([2, 10, 100, 1000, 10000], ["50", "90", "99", "99.9", "99.99"])
        axes.grid(visible=True, which="both", alpha=0.3)
        axes.legend()

    return _drawn(title, draw)


def cost(made: Json) -> str:
    """CPU per call over the number of policies."""
    points = made.get("by_policies", {})
    if len(points) < 2:
        return ""

    def draw(axes: Axes) -> None:
        axes.plot([int(count) for count in points], list(points.values()), marker="o", label="native")
        axes.axhline(made["results"]["nghttpd_cpu_us_m100"], linestyle=":", label="nghttpd")
        axes.set(xscale="log", ylim=0, xlabel="policies in force", ylabel="µs of CPU per call, 100 outstanding")
        axes.grid(visible=True, alpha=0.3)
        axes.legend()

    return _drawn("Cost against policies", draw)


def envoy(made: Json) -> str:
    """Calls per second of an Envoy by what it asks."""

    def draw(axes: Axes) -> None:
        for number, taken in enumerate(made["samples"].values()):
            values = sorted(one["calls_per_s"] for one in taken)
            axes.barh(
                number, median(values), xerr=[[median(values) - values[0]], [values[-1] - median(values)]], capsize=3
            )
            axes.annotate(f" {median(values):,.0f}", (values[-1], number), va="center")
        axes.set_yticks(range(len(made["samples"])), list(made["samples"]))
        axes.set(xlabel="calls/s; Envoy and sidecar on one core (bar: median, line: all rounds)")
        axes.invert_yaxis()

    return _drawn("Envoy asking", draw, (8.0, 2.6))


def attacks(made: Json) -> str:
    """What others notice of each attack."""
    names = sorted(made["attacks"], key=lambda name: -made["attacks"][name]["p99_ratio"])

    def draw(axes: Axes) -> None:
        axes.barh(names, [made["attacks"][name]["p99_ratio"] for name in names])
        axes.axvline(made["goals"]["worst_p99_ratio"][1], color="tab:red", linestyle="--", label="goal")
        axes.set(xlabel="p99 of others, attacked over quiet", xscale="log")
        axes.invert_yaxis()
        axes.tick_params(axis="y", labelsize=7)
        axes.legend()

    return _drawn("Attacks", draw, (8.0, 1.2 + 0.2 * len(names)))


def pictures(made: Json) -> list[str]:
    """All that fits to one bench's JSON."""
    by_question: dict[str, list[Callable[[Json], str]]] = {
        "check": [cpu, stages, throughput, latency, cost],
        "envoy": [envoy, lambda one: latency(one, title="Latency through Envoy at a quarter of capacity")],
        "attack": [attacks],
    }
    return [picture for draw in by_question.get(made.get("question", ""), []) if (picture := draw(made))]
