"""Numbers against hand calculation, and the files that are written."""

import csv
import json
from pathlib import Path

import pytest
import torch

from protofast.data import Batches, open_birds
from protofast.errors import DataError
from protofast.evaluation import Predictions, compute_metrics, predict, write_evaluation
from protofast.models import ProtoPNet, build_backbone


def _predictions(logits: list[list[float]], labels: list[int]) -> Predictions:
    return Predictions(
        torch.tensor(logits, dtype=torch.float64),
        torch.tensor(labels),
        torch.arange(len(labels)),
    )


def test_numbers_of_a_small_case_by_hand() -> None:
    # Classes 0, 0, 0, 1: predicted 0, 0, 1, 1. Class 2 has no image.
    metrics = compute_metrics(
        _predictions([[3, 0, 0], [2, 1, 0], [0, 1, 0], [0, 2, 0]], [0, 0, 0, 1])
    )
    assert metrics.images == 4
    assert metrics.accuracy == 0.75
    assert metrics.balanced_accuracy == pytest.approx((2 / 3 + 1) / 2)
    assert metrics.confusion.tolist() == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
    first, second, third = metrics.classes
    assert (first.support, first.precision, first.recall) == (3, 1.0, 2 / 3)
    assert (second.support, second.precision, second.recall) == (1, 0.5, 1.0)
    assert (third.support, third.precision, third.recall, third.auroc) == (0, None, None, None)
    # All three images of class 0 but the last have a higher probability of class 0 than image 3.
    assert first.auroc == 1.0
    assert metrics.top5_accuracy == 1.0


def test_equal_logits_go_to_the_first_class_and_give_an_even_auroc() -> None:
    metrics = compute_metrics(_predictions([[1, 1], [1, 1]], [0, 1]))
    assert metrics.accuracy == 0.5
    assert metrics.auroc == 0.5


def test_auroc_tells_images_apart_whose_probabilities_round_to_one() -> None:
    # A perfect order by log-odds: 40, 50, 60 against 70, 80, 90; all probabilities are 1.0.
    logits = [[0.0, odds] for odds in (40, 50, 60, 70, 80, 90)]
    metrics = compute_metrics(_predictions(logits, [0, 0, 0, 1, 1, 1]))
    assert metrics.auroc == 1.0
    assert [row.auroc for row in metrics.classes] == [1.0, 1.0]
    # Three classes; class 2's log-odds are its logit less the others' log-sum-exp.
    generator = torch.Generator().manual_seed(0)
    logits = 100 * torch.randn(40, 3, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (40,), generator=generator)
    found = compute_metrics(Predictions(logits, labels, torch.arange(40)))
    for label, row in enumerate(found.classes):
        rest = [other for other in range(3) if other != label]
        odds = logits[:, label] - logits[:, rest].logsumexp(dim=1)
        own, others = odds[labels == label, None], odds[labels != label]
        expected = (own > others).double() + 0.5 * (own == others).double()
        assert row.auroc == pytest.approx(float(expected.mean()), abs=1e-12)


def test_one_class_alone_has_no_auroc() -> None:
    metrics = compute_metrics(_predictions([[1, 0], [2, 0]], [0, 0]))
    assert metrics.auroc is None
    assert metrics.balanced_accuracy == 1.0


def test_top5_looks_at_five_classes() -> None:
    logits = [[7, 6, 5, 4, 3, 2, 1.0]] * 2
    assert compute_metrics(_predictions(logits, [4, 5])).top5_accuracy == 0.5


@pytest.fixture(scope="module")
def model() -> ProtoPNet:
    torch.manual_seed(0)
    return ProtoPNet(
        build_backbone("small"),
        num_classes=3,
        prototypes_per_class=2,
        depth=16,
        input_size=(32, 32),
    )


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def test_files_say_what_the_numbers_say(model: ProtoPNet, tmp_path: Path) -> None:
    images = open_birds(classes=3, train_per_class=1, test_per_class=4, size=(32, 32)).test
    done: list[int] = []
    model.train()
    predictions = predict(model, Batches(images, 5), progress=done.append)
    assert model.training, "the mode must be as it was"
    assert done == [5, 10, 12]
    metrics = write_evaluation(tmp_path, predictions, images, checkpoint="joint-3")
    folder = tmp_path / "evaluation"
    numbers = json.loads((folder / "metrics.json").read_text())
    assert numbers["checkpoint"] == "joint-3"
    assert numbers["accuracy"] == metrics.accuracy
    rows = list(csv.DictReader(_lines(folder / "predictions.csv")))
    assert [row["image"] for row in rows] == list(images.names)
    assert sum(int(row["right"]) for row in rows) / 12 == pytest.approx(metrics.accuracy)
    confusion = list(csv.reader(_lines(folder / "confusion.csv")))
    assert [row[0] for row in confusion[1:]] == list(images.classes)
    assert sum(int(cell) for row in confusion[1:] for cell in row[1:]) == 12
    per_class = list(csv.DictReader(_lines(folder / "per_class.csv")))
    assert [int(row["images"]) for row in per_class] == [4, 4, 4]


def test_the_result_does_not_depend_on_the_batch(model: ProtoPNet) -> None:
    images = open_birds(classes=3, train_per_class=1, test_per_class=4, size=(32, 32)).test
    one, all_ = (predict(model, Batches(images, size)) for size in (1, 12))
    # Convolutions in float32 may sum in another order.
    torch.testing.assert_close(one.logits, all_.logits, rtol=1e-5, atol=1e-5)
    assert torch.equal(one.index, all_.index)


def test_no_images_and_broken_weights_are_refused(model: ProtoPNet) -> None:
    images = open_birds(classes=3, train_per_class=1, test_per_class=4, size=(32, 32)).test
    with pytest.raises(DataError, match="no images"):
        predict(model, Batches(images.subset([]), 4))
    broken = ProtoPNet.from_config(model.config)
    with torch.no_grad():
        broken.last_layer.weight[0, 0] = torch.nan
    with pytest.raises(DataError, match=r"not finite for image 0 of the set \(.+\) and 11 others"):
        predict(broken, Batches(images, 4))
