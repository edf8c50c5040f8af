import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from explained_run import copy_run, explain_tiny, train_tiny
from PIL import Image

from protofast.data import Batches, ImageSet, MemoryImageSet, Splits
from protofast.errors import DataError, RunFolderError
from protofast.explain import explain_run, save_prototype_figure
from protofast.explain.album import longest_side
from protofast.explain.files import read_summary
from protofast.explain.gallery import Likeness, Source, likenesses
from protofast.explain.passes import Decisions, training_facts
from protofast.explain.pictures import jpeg
from protofast.explain.samples import choose_right, choose_wrong
from protofast.projection import project_prototypes
from protofast.pruning import nearest_images
from protofast.report import build_report
from protofast.training import RunFolder
from protofast.training.health import own_class_winners

Trained = tuple[RunFolder, Splits]


@pytest.fixture
def summary(explained: Path) -> dict[str, Any]:
    found = read_summary(explained)
    assert found is not None
    return found


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
    trained: Trained, explained: Path, tmp_path: Path, summary: dict[str, Any]
) -> None:
    run = RunFolder.open(copy_run(explained, tmp_path / "copy"))
    explain_tiny(run, trained[1], nearest=3, samples=4, top=2)
    again = read_summary(run.path)
    assert again is not None
    assert again["predictions"] == summary["predictions"]
    assert again["images"] == summary["images"]
    for now, before in zip(again["prototypes"], summary["prototypes"], strict=True):
        assert now == before


def test_sampling_takes_turns_and_shows_the_worst() -> None:
    generator = torch.Generator().manual_seed(3)
    labels = torch.tensor([0] * 30 + [1] * 3 + [2] * 3)
    logits = torch.randn(36, 3, generator=generator)
    logits[:20, 0] += 9  # twenty right ones of class 0
    found = Decisions(logits, labels)
    right = choose_right(found, 3, seed=0)
    assert len({int(labels[i]) for i in right}) == min(
        3, len(set(labels[found.predicted == labels].tolist()))
    )
    assert right == choose_right(found, 3, seed=0)
    wrong = choose_wrong(found, 100)
    assert sorted(wrong) == (found.predicted != labels).nonzero()[:, 0].tolist()
    behind = logits.amax(1) - logits.gather(1, labels[:, None])[:, 0]
    worst = [
        max((i for i in wrong if labels[i] == c), key=lambda i: float(behind[i])) for c in range(3)
    ]
    assert {*wrong[: len(worst)]} == {*worst}
    assert choose_wrong(Decisions(torch.eye(3), torch.arange(3)), 5) == []


def test_without_projection_the_nearest_patches_are_shown(tmp_path: Path) -> None:
    run, data = train_tiny(tmp_path / "run", projected=False)
    folder = explain_tiny(run, data, samples=1)
    summary = read_summary(run.path)
    assert summary is not None
    assert "never projected" in summary["notes"][0]
    assert not list(folder.glob("prototypes/*"))
    for prototype in summary["prototypes"]:
        assert prototype["source"] is None
        assert "not_projected" in prototype["flags"]
        assert len(prototype["nearest"]["train"]) == 5


def test_images_that_changed_since_the_projection_are_noticed(
    trained: Trained, explained: Path, tmp_path: Path
) -> None:
    run = RunFolder.open(copy_run(explained, tmp_path / "copy"))
    before = (run.path / "explanations" / "summary.json").read_bytes()
    _, data = trained
    shuffled = data.project.subset(list(range(len(data.project)))[::-1])
    with pytest.raises(RunFolderError, match="project again"):
        explain_tiny(run, Splits(shuffled, shuffled, data.test), evaluate=False)
    assert (run.path / "explanations" / "summary.json").read_bytes() == before
    assert not list(run.path.glob(".explanations*"))
    assert isinstance(data.project, MemoryImageSet)
    other = MemoryImageSet(255 - data.project.pixels, source=data.project)
    explain_tiny(run, Splits(other, other, data.test), evaluate=False, samples=0)
    summary = read_summary(run.path)
    assert summary is not None
    assert "changed since the projection" in summary["notes"][0]


def test_a_network_that_changed_since_the_projection_is_noticed(
    trained: Trained, explained: Path, tmp_path: Path
) -> None:
    run, data = RunFolder.open(copy_run(explained, tmp_path / "copy")), trained[1]
    name = run.resolve("best")
    rows = run.read(name)[2]["prototypes"]
    model = run.load_model(name).model
    changed = 5.0 * torch.linspace(-1, 1, model.add_on[-2].bias.numel())
    with torch.no_grad():
        model.add_on[-2].bias += changed
    explain_run(run.path, model, data, checkpoint=name, prototypes=rows, samples=0)
    summary = read_summary(run.path)
    assert summary is not None
    assert summary["notes"][0].startswith("12 of 12 prototypes no longer equal the patch")
    for prototype, row in zip(summary["prototypes"], rows, strict=True):
        source = prototype["source"]
        pixels = data.project.image(row["image_index"])[None] / 255
        with torch.no_grad():
            features = model.eval().features(pixels)
            index = torch.tensor([[prototype["prototype"]]])
            there = model.similarity_map(features, index)[0, 0, row["row"], row["col"]]
        assert source["similarity"] == pytest.approx(float(there), rel=1e-4)
        assert source["apart"] > 0.1
        assert "strayed" in prototype["flags"]
        x0, y0, x1, y1 = source["box"]  # holds the middle of the patch's cell
        assert x0 <= (row["col"] + 0.5) * 64 / features.shape[3] <= x1
        assert y0 <= (row["row"] + 0.5) * 48 / features.shape[2] <= y1
    rows[3] = rows[3] | {"location": 99}
    with pytest.raises(RunFolderError, match="prototype 3 comes from location 99"):
        explain_run(run.path, model, data, checkpoint=name, prototypes=rows)


def test_images_of_different_sizes_have_places_of_their_own(
    trained: Trained, explained: Path, tmp_path: Path
) -> None:
    run = RunFolder.open(copy_run(explained, tmp_path / "copy"))
    images = _Cropped(trained[1].project)
    splits = Splits(images, images, images)
    name = run.resolve("best")
    model = run.load_model(name).model
    found = project_prototypes(model, Batches(images, 1))
    rows = [
        {"image_index": int(image), "image": images.names[int(image)], "location": int(location)}
        for image, location in zip(found.images, found.locations, strict=True)
    ]
    explain_run(run.path, model, splits, checkpoint=name, prototypes=rows, samples=1)
    summary = read_summary(run.path)
    assert summary is not None
    assert summary["model"]["grid"] is None
    assert summary["notes"] == []
    widths = set()
    for prototype, row in zip(summary["prototypes"], rows, strict=True):
        with torch.no_grad():
            pixels = images.image(row["image_index"])[None] / 255
            width = model.features(pixels).shape[3]
        widths.add(width)
        source = prototype["source"]
        assert source["row"] * width + source["column"] == row["location"]
        assert source["column"] < width
    assert len(widths) > 1
    build_report(run.path)


class _Cropped(ImageSet):
    """Every other image is half as wide."""

    def __init__(self, images: ImageSet) -> None:
        super().__init__(
            classes=images.classes,
            labels=images.labels.tolist(),
            names=images.names,
            channels=3,
            size=None,
        )
        self._images = images

    def image(self, index: int) -> torch.Tensor:
        return self._images.image(index)[:, :, : 64 >> index % 2]


def test_flags_name_duplicates_and_empty_classes(
    trained: Trained, explained: Path, tmp_path: Path
) -> None:
    folder = copy_run(explained, tmp_path / "copy")
    run, data = RunFolder.open(folder), trained[1]
    name = run.resolve("best")
    model = run.load_model(name).model
    rows = run.read(name)[2]["prototypes"]
    with torch.no_grad():
        model.prototypes.uniform_()
        model.prototypes[1] = model.prototypes[0]
        model.prototypes[4] = model.prototypes[3] + 1e-7
    rows[1] = rows[0] | {"prototype": 1}
    empty = data.project.labels != 2
    project = data.project.subset(empty.nonzero()[:, 0])
    position = {name: index for index, name in enumerate(project.names)}
    for row in rows:
        row["image_index"] = position.get(row["image"])
    explain_run(
        folder, model, Splits(project, project, data.test), checkpoint=name, prototypes=rows
    )
    summary = read_summary(folder)
    assert summary is not None
    flags = {entry["prototype"]: entry["flags"] for entry in summary["prototypes"]}
    assert "duplicate" in flags[0]
    assert "duplicate" in flags[1]
    assert summary["prototypes"][0]["same_as"] == [1]
    assert "never_wins" in flags[1]  # the first of two equal ones always wins
    assert "collapsed" in flags[3]
    assert "collapsed" not in flags[0]
    assert all("empty_class" in flags[j] for j in (6, 7, 8))
    assert "3 of 12 prototypes have no source" in summary["notes"][0]


def test_a_pruned_run_is_explained(trained: Trained, explained: Path, tmp_path: Path) -> None:
    folder = copy_run(explained, tmp_path / "copy")
    run, data = RunFolder.open(folder), trained[1]
    name = run.resolve("best")
    model = run.load_model(name).model
    rows = run.read(name)[2]["prototypes"]
    keep = [0, 1, 2, 4, 9, 10, 11]  # class 2 loses all of its prototypes
    model.prune(torch.tensor(keep))
    with pytest.raises(RunFolderError, match="tells of 12 prototypes, but the checkpoint has 7"):
        explain_run(folder, model, data, checkpoint=name)
    kept = [rows[old] | {"prototype": new} for new, old in enumerate(keep)]
    explain_run(folder, model, data, checkpoint=name, prototypes=kept, samples=2)
    summary = read_summary(folder)
    assert summary is not None
    assert [entry["class"] for entry in summary["prototypes"]] == [0, 0, 0, 1, 3, 3, 3]


def test_prototypes_that_belong_to_no_class_are_explained(
    trained: Trained, explained: Path, tmp_path: Path
) -> None:
    folder = copy_run(explained, tmp_path / "copy")
    run, data = RunFolder.open(folder), trained[1]
    model = run.load_model("best").model
    model.prototype_class = None  # as of a model whose classes share their prototypes
    explain_run(folder, model, data, checkpoint=run.resolve("best"), samples=2, top=1)
    summary = read_summary(folder)
    assert summary is not None
    assert {entry["class"] for entry in summary["prototypes"]} == {None}
    assert sum(entry["wins"] for entry in summary["prototypes"]) == len(data.project)
    for prediction in summary["predictions"]:
        for part in prediction["classes"]:
            assert part["own"]["prototypes"] + len(part["shown"]) == 12
            assert part["others"] == {"prototypes": 0, "contribution": 0.0}
    html = build_report(folder).read_text(encoding="utf-8")
    assert "11 other prototypes<" in html
    for words in (
        "of other classes",
        "of this class<",
        "of its class</",
        "Own class",
        'class="foreign',
    ):
        assert words not in html.partition("</style>")[2].partition("<script>")[0], words
    figure = save_prototype_figure(tmp_path / "p.svg", folder, 0)
    assert "no class" not in figure.read_text(encoding="utf-8")


def test_problems_are_said_in_one_line(trained: Trained, tmp_path: Path) -> None:
    run, data = trained
    model = run.load_model("best").model
    with pytest.raises(RunFolderError, match="no such run folder"):
        explain_run(tmp_path / "none", model, data, checkpoint="x")
    empty = data.test.subset([])
    with pytest.raises(DataError, match="no test images"):
        explain_run(run.path, model, Splits(data.train, data.project, empty), checkpoint="x")
    more = MemoryImageSet(data.test.pixels, source=data.test)
    more.classes = (*more.classes, "a fifth")
    with pytest.raises(DataError, match="the test images have 5 classes, the model knows 4"):
        explain_run(run.path, model, Splits(data.train, data.project, more), checkpoint="x")
    with torch.no_grad():
        model.last_layer.weight[0, 0] = torch.nan
    with pytest.raises(DataError, match="not finite"):
        explain_run(run.path, model, data, checkpoint="x")
    model = run.load_model("best").model
    bad = tmp_path / "run"
    shutil.copytree(run.path, bad)
    (bad / "prototypes" / "prototypes.json").write_text('[{"proto')
    with pytest.raises(RunFolderError, match="not readable as JSON"):
        explain_run(bad, model, data, checkpoint="x")
    for rows in ([{"image_index": 0}], [{"image_index": "0"}], [{"image_index": [1]}]):
        with pytest.raises(RunFolderError, match=r"not what protofast writes .* project again"):
            explain_run(bad, model, data, checkpoint="x", prototypes=rows * 12)
    (bad / "explanations").mkdir(exist_ok=True)
    (bad / "explanations" / "summary.json").write_text("{")
    with pytest.raises(RunFolderError, match="make it again with"):
        read_summary(bad)


@pytest.mark.parametrize(("part", "number"), [("project", 7), ("test", 3)])
def test_an_image_that_the_model_cannot_cope_with_is_named(
    trained: Trained, explained: Path, tmp_path: Path, part: str, number: int
) -> None:
    run, data = RunFolder.open(copy_run(explained, tmp_path / "copy")), trained[1]
    model = run.load_model("best").model
    images = getattr(data, part)
    whole, spoilt = model.features, images.image(number)[None] / 255

    def features(batch: torch.Tensor) -> torch.Tensor:
        found = whole(batch).detach().clone()
        found[(batch == spoilt).flatten(1).all(dim=1)] = torch.inf  # far from all: logits of 0
        return found

    model.features = features  # type: ignore[method-assign]
    with pytest.raises(DataError) as caught:
        explain_run(run.path, model, data, checkpoint="x")
    said = f"features or distances that are not finite for image {images.names[number]};"
    assert said in str(caught.value)


def test_thousands_that_are_the_same_are_counted_and_not_listed() -> None:
    vectors = torch.zeros(600, 4)
    vectors[300:] = torch.rand(300, 4) + 1
    sources = [Source(j // 2, 5, None, None) if j >= 298 else None for j in range(600)]
    alike = likenesses(vectors, sources)
    assert [len(one.first) for one in alike] == [12] * 300 + [1] * 300
    assert alike[0].first == list(range(1, 13))
    assert alike[5].first == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12]
    assert (alike[0].count, alike[0].duplicate, alike[0].collapsed) == (299, False, True)
    assert (alike[298].count, alike[298].duplicate, alike[298].collapsed) == (299, True, True)
    assert alike[301] == Likeness(True, False, [300], 1)


def test_what_a_killed_process_left_is_swept_away(
    trained: Trained, explained: Path, tmp_path: Path
) -> None:
    folder = copy_run(explained, tmp_path / "copy")
    for name in (".explanations-999999999", ".explanations-999999999-old"):
        (folder / name / "images").mkdir(parents=True)
    mine = folder / f".explanations-{os.getppid()}"  # of a process that is alive
    mine.mkdir()
    explain_tiny(RunFolder.open(folder), trained[1], evaluate=False, samples=0)
    assert [path.name for path in folder.glob(".explanations*")] == [mine.name]


@pytest.mark.parametrize("pictures", [10, 1_200, 3_000, 8_000])
def test_many_pictures_become_small(trained: Trained, pictures: int) -> None:
    side = longest_side(pictures)
    assert 48 <= side <= 224
    images = trained[1].project
    some = [jpeg(images.image(index), longest=side) for index in range(0, 40, 8)]
    assert pictures * sum(map(len, some)) / len(some) < 10.5e6
    assert longest_side(100_000) == 48


def test_progress_reaches_its_end(trained: Trained, explained: Path, tmp_path: Path) -> None:
    folder = copy_run(explained, tmp_path / "copy")
    run, data = RunFolder.open(folder), trained[1]
    seen: dict[str, tuple[int, int]] = {}
    explain_run(
        folder,
        run.load_model("best").model,
        data,
        checkpoint=run.resolve("best"),
        samples=0,
        progress=lambda what, done, total: seen.update({what: (done, total)}),
    )
    assert seen
    assert all(done == total for done, total in seen.values())
