"""What the explanations of a whole run say."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from explained_run import Trained, explain_tiny, summary_of, train_tiny
from PIL import Image

from protofast.data import Batches
from protofast.errors import RunFolderError
from protofast.explain import explain_run, save_prototype_figure
from protofast.explain.passes import training_facts
from protofast.pruning import nearest_images
from protofast.report import build_report
from protofast.training import RunFolder
from protofast.training.health import own_class_winners


@pytest.fixture
def summary(explained: Path) -> dict[str, Any]:
    return summary_of(explained)


def test_every_file_is_there_and_readable(explained: Path, summary: dict[str, Any]) -> None:
    folder = explained / "explanations"
    named = [entry["file"] for entry in summary["images"].values()]
    for prototype in summary["prototypes"]:
        named += [name for name in (prototype["crop"], prototype["heatmap"]) if name]
    for prediction in summary["predictions"]:
        named += [term["heatmap"] for part in prediction["classes"] for term in part["shown"]]
    for name in named:
        with Image.open(folder / name) as picture:
            picture.load()
    there = {str(path.relative_to(folder)) for path in folder.rglob("*.*")}
    assert there == {*named, "summary.json"}


def test_a_projected_prototype_is_its_source(
    trained: Trained, explained: Path, summary: dict[str, Any]
) -> None:
    _, data = trained
    rows = json.loads((explained / "prototypes" / "prototypes.json").read_text())
    assert summary["notes"] == []
    for prototype, row in zip(summary["prototypes"], rows, strict=True):
        source, image = prototype["source"], summary["images"][prototype["source"]["image"]]
        assert (image["set"], image["index"]) == ("train", row["image_index"])
        assert image["label"] == prototype["class"] == row["class"]
        assert (source["row"], source["column"]) == (row["row"], row["col"])
        assert source["box"] == row["box"]
        assert source["similarity"] == pytest.approx(math.log(1e4))
        assert source["apart"] < 1e-5
        nearest = prototype["nearest"]["train"][0]
        assert nearest["distance"] == 0
        x0, y0, x1, y1 = source["box"]
        with Image.open(explained / "explanations" / prototype["crop"]) as crop:
            shown = np.asarray(crop.convert("RGB"))
        pixels = data.project.image(row["image_index"]).permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(shown, pixels[y0:y1, x0:x1])


def test_nearest_images_are_those_of_pruning(trained: Trained, summary: dict[str, Any]) -> None:
    run, data = trained
    model = run.load_model("best").model
    for name, images in (("train", data.project), ("test", data.test)):
        expected = nearest_images(model, Batches(images, 7), k=3)
        for prototype in summary["prototypes"]:
            rows = prototype["nearest"][name]
            found = [summary["images"][row["image"]]["index"] for row in rows]
            assert found == expected.images[prototype["prototype"]].tolist()
            for row in rows:
                height, width = summary["images"][row["image"]]["size"]
                x0, y0, x1, y1 = row["box"]
                assert 0 <= x0 < x1 <= width
                assert 0 <= y0 < y1 <= height


def test_wins_are_counted_as_training_counts_them(trained: Trained) -> None:
    run, data = trained
    model = run.load_model("best").model
    facts = training_facts(model, data.project, batch_size=7)
    (batch,) = Batches(data.project, 1000)
    with torch.no_grad():
        distances = model(batch.images).distances
    expected = own_class_winners(distances, batch.labels, model.prototype_class)
    assert facts.wins.tolist() == expected.long().tolist()
    assert facts.of.tolist() == [10] * model.num_prototypes


def test_predictions_add_up_and_are_counted(explained: Path, summary: dict[str, Any]) -> None:
    metrics = json.loads((explained / "evaluation" / "metrics.json").read_text())
    test = summary["test"]
    assert test["right"] / test["images"] == pytest.approx(metrics["accuracy"])
    right = [one for one in summary["predictions"] if one["right"]]
    assert len(right) == min(4, test["right"])
    assert len(summary["predictions"]) - len(right) == min(4, test["images"] - test["right"])
    for prediction in summary["predictions"]:
        label = summary["images"][prediction["image"]]["label"]
        assert prediction["label"] == label
        assert prediction["right"] == (label == prediction["predicted"])
        assert label in [part["class"] for part in prediction["classes"]]
        for part in prediction["classes"]:
            total = sum(term["contribution"] for term in part["shown"])
            total += part["own"]["contribution"] + part["others"]["contribution"]
            assert total == pytest.approx(part["logit"], abs=1e-4)


def test_the_same_seed_gives_the_same_explanations(
    trained: Trained, copy: RunFolder, summary: dict[str, Any]
) -> None:
    explain_tiny(copy, trained[1], nearest=3, samples=4, top=2)
    again = summary_of(copy.path)
    assert again["predictions"] == summary["predictions"]
    assert again["images"] == summary["images"]
    for now, before in zip(again["prototypes"], summary["prototypes"], strict=True):
        assert now == before


def test_without_projection_the_nearest_patches_are_shown(tmp_path: Path) -> None:
    run, data = train_tiny(tmp_path / "run", projected=False)
    folder = explain_tiny(run, data, samples=1)
    summary = summary_of(run.path)
    assert "never projected" in summary["notes"][0]
    assert not list(folder.glob("prototypes/*"))
    for prototype in summary["prototypes"]:
        assert prototype["source"] is None
        assert "not_projected" in prototype["flags"]
        assert len(prototype["nearest"]["train"]) == 5


def test_a_pruned_run_is_explained(trained: Trained, copy: RunFolder) -> None:
    data = trained[1]
    name = copy.resolve("best")
    model = copy.load_model(name).model
    rows = copy.read(name)[2]["prototypes"]
    keep = [0, 1, 2, 4, 9, 10, 11]  # class 2 loses all of its prototypes
    model.prune(torch.tensor(keep))
    with pytest.raises(RunFolderError, match="tells of 12 prototypes, but the checkpoint has 7"):
        explain_run(copy.path, model, data, checkpoint=name)
    kept = [rows[old] | {"prototype": new} for new, old in enumerate(keep)]
    explain_run(copy.path, model, data, checkpoint=name, prototypes=kept, samples=2)
    summary = summary_of(copy.path)
    assert [entry["class"] for entry in summary["prototypes"]] == [0, 0, 0, 1, 3, 3, 3]


def test_prototypes_that_belong_to_no_class_are_explained(
    trained: Trained, copy: RunFolder, tmp_path: Path
) -> None:
    data = trained[1]
    model = copy.load_model("best").model
    model.prototype_class = None  # as of a model whose classes share their prototypes
    explain_run(copy.path, model, data, checkpoint=copy.resolve("best"), samples=2, top=1)
    summary = summary_of(copy.path)
    assert {entry["class"] for entry in summary["prototypes"]} == {None}
    assert sum(entry["wins"] for entry in summary["prototypes"]) == len(data.project)
    for prediction in summary["predictions"]:
        for part in prediction["classes"]:
            assert part["own"]["prototypes"] + len(part["shown"]) == 12
            assert part["others"] == {"prototypes": 0, "contribution": 0.0}
    html = build_report(copy.path).read_text(encoding="utf-8")
    assert "11 other prototypes<" in html
    for words in (
        "of other classes",
        "of this class<",
        "of its class</",
        "Own class",
        'class="foreign',
    ):
        assert words not in html.partition("</style>")[2].partition("<script>")[0], words
    figure = save_prototype_figure(tmp_path / "p.svg", copy.path, 0)
    assert "no class" not in figure.read_text(encoding="utf-8")


def test_progress_reaches_its_end(trained: Trained, copy: RunFolder) -> None:
    seen: dict[str, tuple[int, int]] = {}
    explain_run(
        copy.path,
        copy.load_model("best").model,
        trained[1],
        checkpoint=copy.resolve("best"),
        samples=0,
        progress=lambda what, done, total: seen.update({what: (done, total)}),
    )
    assert seen
    assert all(done == total for done, total in seen.values())
