"""How good a model is on a set of images: accuracy, AUROC, confusion, a table per class."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn import metrics as sklearn_metrics
from torch import Tensor

from protofast.data import Batch, ImageSet
from protofast.errors import DataError
from protofast.files import sha256_of, write_together
from protofast.models.protocol import PrototypeModel
from protofast.scan import evaluating, name_of_image

FOLDER = "evaluation"
_TOP = 5


@dataclass(frozen=True)
class Predictions:
    """What a model said of every image, in the order of the set; on the CPU.

    Attributes:
        logits: [n, C] float64.
        labels: [n] int64.
        index: [n] int64, position in the set.
    """

    logits: Tensor
    labels: Tensor
    index: Tensor


@dataclass(frozen=True)
class ClassMetrics:
    """One class: its test images, and how well it is told from the others.

    Attributes:
        support: Number of images.
        precision: Share of the predictions of this class that are right; None if there are none.
        recall: Share of its images that are recognised; None if there are none.
        auroc: Of this class against all others, by its log-odds (which order the images as its
            probability does, but do not run out of digits near 0 and 1); None unless there are
            images of both.
    """

    support: int
    precision: float | None
    recall: float | None
    auroc: float | None


@dataclass(frozen=True)
class Metrics:
    """Numbers over a whole set.

    Attributes:
        images: How many.
        accuracy: Share of images whose largest logit is right; equal logits go to the first class.
        top5_accuracy: Share whose class is among the five largest (all, if there are fewer).
        balanced_accuracy: Mean recall over the classes that have images.
        auroc: Mean of the classes' one-against-all AUROC, over those that have one; for two classes
            that of the second. None if no class has one.
        cross_entropy: Mean over the images.
        confusion: [C, C], row: true class, column: predicted.
        classes: One row per class.
    """

    images: int
    accuracy: float
    top5_accuracy: float
    balanced_accuracy: float
    auroc: float | None
    cross_entropy: float
    confusion: np.ndarray[Any, np.dtype[np.int64]]
    classes: tuple[ClassMetrics, ...]


def predict(
    model: PrototypeModel,
    batches: Iterable[Batch],
    *,
    progress: Callable[[int], None] | None = None,
) -> Predictions:
    """Runs a model over a set, in eval mode and without gradients.

    Args:
        model: Any prototype model; the batches are moved to its device.
        batches: The images.
        progress: Called after each batch with the number of images done.

    Raises:
        DataError: There are no images, or the model gives logits that are not finite.
    """
    device = model.mean.device
    logits, labels, index = [], [], []
    done = 0
    with evaluating(model):
        for batch in batches:
            output = model(batch.images.to(device))
            logits.append(output.logits.double().cpu())
            labels.append(batch.labels.cpu())
            index.append(batch.index.cpu())
            done += len(batch.labels)
            if progress is not None:
                progress(done)
    if not done:
        raise DataError("there are no images to evaluate the model on")
    predictions = Predictions(torch.cat(logits), torch.cat(labels), torch.cat(index))
    bad = ~predictions.logits.isfinite().all(dim=1)
    if bool(bad.any()):
        name = name_of_image(batches, int(predictions.index[bad][0]))
        raise DataError(
            f"the model gives logits that are not finite for {name} and {int(bad.sum()) - 1} "
            "others; its weights are damaged or training diverged"
        )
    return predictions


def compute_metrics(predictions: Predictions) -> Metrics:
    """The numbers that follow from predictions."""
    labels = predictions.labels.numpy()
    logits = predictions.logits
    odds = _log_odds(logits).numpy()
    count = logits.shape[1]
    guessed = logits.argmax(dim=1).numpy()
    confusion = sklearn_metrics.confusion_matrix(labels, guessed, labels=np.arange(count))
    classes = tuple(
        _class_metrics(confusion, label, labels, odds[:, label]) for label in range(count)
    )
    recalls = [row.recall for row in classes if row.recall is not None]
    curves = [row.auroc for row in classes[count == 2 :] if row.auroc is not None]
    best = logits.topk(min(_TOP, count), dim=1).indices
    return Metrics(
        images=len(labels),
        accuracy=float((guessed == labels).mean()),
        top5_accuracy=float((best == predictions.labels[:, None]).any(dim=1).double().mean()),
        balanced_accuracy=float(np.mean(recalls)),
        auroc=float(np.mean(curves)) if curves else None,
        cross_entropy=float(
            torch.nn.functional.cross_entropy(logits, predictions.labels, reduction="mean")
        ),
        confusion=confusion.astype(np.int64),
        classes=classes,
    )


def write_evaluation(
    run_folder: Path | str, predictions: Predictions, images: ImageSet, *, checkpoint: str
) -> Metrics:
    """Writes ``evaluation/`` into a run folder and returns the numbers.

    ``metrics.json`` (with the checkpoint's name and its file's SHA-256), ``confusion.csv`` (rows
    true, columns predicted), ``per_class.csv``, ``predictions.csv`` (one row per image, in order).
    """
    metrics = compute_metrics(predictions)
    folder = Path(run_folder) / FOLDER
    folder.mkdir(exist_ok=True)
    names = images.classes
    confusion = _csv(
        ["true / predicted", *names],
        [[name, *row] for name, row in zip(names, metrics.confusion.tolist(), strict=True)],
    )
    per_class = _csv(
        ["class", "images", "precision", "recall", "auroc"],
        [
            [name, row.support, row.precision, row.recall, row.auroc]
            for name, row in zip(names, metrics.classes, strict=True)
        ],
    )
    numbers = {
        "checkpoint": checkpoint,
        "sha256": sha256_of(Path(run_folder) / "checkpoints" / f"{checkpoint}.safetensors"),
        "images": metrics.images,
        "accuracy": metrics.accuracy,
        "top5_accuracy": metrics.top5_accuracy,
        "balanced_accuracy": metrics.balanced_accuracy,
        "auroc": metrics.auroc,
        "cross_entropy": metrics.cross_entropy,
    }
    write_together(
        {
            folder / "confusion.csv": confusion,
            folder / "per_class.csv": per_class,
            folder / "predictions.csv": _predictions_csv(predictions, images),
            folder / "metrics.json": json.dumps(numbers, indent=2, allow_nan=False) + "\n",
        }
    )
    return metrics


def _log_odds(logits: Tensor) -> Tensor:
    """Each logit minus the log-sum-exp of the other classes' logits: [n, C] -> [n, C]."""
    largest, first = logits.max(dim=1, keepdim=True)  # [n, 1]
    shares = (logits - largest).exp()
    # Each share but the largest is small beside the sum, so nothing is lost in the difference.
    others = largest + (shares.sum(dim=1, keepdim=True) - shares).log()
    beside_largest = logits.scatter(1, first, -torch.inf).logsumexp(dim=1, keepdim=True)
    return logits - others.scatter(1, first, beside_largest)


def _class_metrics(
    confusion: np.ndarray[Any, Any],
    label: int,
    labels: np.ndarray[Any, Any],
    odds: np.ndarray[Any, Any],
) -> ClassMetrics:
    right = int(confusion[label, label])
    support, predicted = int(confusion[label].sum()), int(confusion[:, label].sum())
    both = 0 < support < len(labels)
    return ClassMetrics(
        support=support,
        precision=right / predicted if predicted else None,
        recall=right / support if support else None,
        auroc=float(sklearn_metrics.roc_auc_score(labels == label, odds)) if both else None,
    )


def _predictions_csv(predictions: Predictions, images: ImageSet) -> str:
    probabilities, guessed = predictions.logits.softmax(dim=1).max(dim=1)
    rows = [
        [
            images.names[index],
            images.classes[label],
            images.classes[guess],
            f"{probability:.6f}",
            int(label == guess),
        ]
        for index, label, guess, probability in zip(
            predictions.index.tolist(),
            predictions.labels.tolist(),
            guessed.tolist(),
            probabilities.tolist(),
            strict=True,
        )
    ]
    return _csv(["image", "class", "predicted", "probability", "right"], rows)


def _csv(header: list[str], rows: list[list[Any]]) -> str:
    """Comma-separated values; None becomes an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()
