"""What pytest-benchmark wrote, as the report asks for it."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layer_runs import Shape


@dataclass(frozen=True)
class Result:
    """One timed thing: seconds, and what the benchmark said of it."""

    median: float
    least: float
    spread: float  # between the quartiles
    rounds: int
    info: dict[str, Any]


class Results:
    """All results of one run or several; of what was measured twice the later file counts."""

    def __init__(self, documents: Iterable[dict[str, Any]]) -> None:
        self.documents = list(documents)
        self._results: dict[str, Result] = {}
        for document in self.documents:
            for row in document["benchmarks"]:
                stats = row["stats"]
                self._results[row["fullname"]] = Result(
                    stats["median"],
                    stats["min"],
                    stats["iqr"],
                    stats["rounds"],
                    row["extra_info"],
                )

    @staticmethod
    def read(paths: Iterable[Path]) -> "Results":
        return Results(json.loads(path.read_text(encoding="utf-8")) for path in paths)

    def layer(
        self,
        shape: Shape,
        steps: str,
        layer: str,
        *,
        layout: str = "nchw",
        dtype: str = "float32",
        device: str = "cpu",
    ) -> Result | None:
        """One layer's time, or None where it was not measured."""
        wanted = (shape, steps, layer, layout, dtype, device)
        for result in self.of("layer"):
            if (shape_of(result), *_kind(result)) == wanted:
                return result
        return None

    def peak_bytes(self, shape: Shape, steps: str, layer: str, device: str = "cpu") -> int | None:
        result = self.layer(shape, steps, layer, device=device)
        return None if result is None else result.info.get("peak_bytes")

    def groups(self, device: str) -> list[dict[str, Result]]:
        """The layers that ran on the same inputs, by name, for each group that has ours."""
        found: dict[tuple[object, ...], dict[str, Result]] = {}
        for result in self.of("layer"):
            steps, layer, *rest = _kind(result)
            if result.info["device"] == device:
                found.setdefault((shape_of(result), steps, *rest), {})[layer] = result
        return [group for group in found.values() if "ours" in group]

    def of(self, measured: str) -> list[Result]:
        return [r for r in self._results.values() if r.info.get("measured") == measured]

    def one(self, measured: str, layer: str, device: str) -> Result | None:
        for result in self.of(measured):
            if (result.info["layer"], result.info["device"]) == (layer, device):
                return result
        return None

    def fma_peak(self) -> float | None:
        """Floating-point operations a second, at best."""
        rates = [r.info["flops"] / r.least for r in self.of("roofline") if _is_fma(r)]
        return max(rates, default=None)

    def bandwidth(self, device: str) -> float | None:
        """Bytes a second, read and written."""
        rates = [
            result.info["bytes"] / result.median
            for result in self.of("roofline")
            if "bytes" in result.info and result.info["device"] == device
        ]
        return max(rates, default=None)

    def matrix_rates(self, device: str) -> dict[str, float]:
        """Floating-point operations a second of torch's product, by its size."""
        return {
            "x".join(map(str, result.info["size"])): result.info["flops"] / result.median
            for result in self.of("roofline")
            if "size" in result.info and result.info["device"] == device
        }


def shape_of(result: Result) -> Shape:
    return Shape(**result.info["shape"])


def _kind(result: Result) -> tuple[str, str, str, str, str]:
    info = result.info
    return info["steps"], info["layer"], info["layout"], info["dtype"], info["device"]


def _is_fma(result: Result) -> bool:
    return "flops" in result.info and "size" not in result.info
