"""Runs that are not as they were, images of all sizes, and what cannot be explained."""

import os
from pathlib import Path

import pytest
import torch
from copies import copy_run
from explained_run import Trained, explain_tiny, summary_of

from protofast.data import Batches, ImageSet, MemoryImageSet, Splits
from protofast.errors import DataError, RunFolderError
from protofast.explain import explain_run
from protofast.explain.files import read_summary
from protofast.projection import project_prototypes
from protofast.report import build_report
from protofast.training import RunFolder


def test_images_that_changed_since_the_projection_are_noticed(
    trained: Trained, copy: RunFolder
) -> None:
    before = (copy.path / "explanations" / "summary.json").read_bytes()
    _, data = trained
    shuffled = data.project.subset(list(range(len(data.project)))[::-1])
    with pytest.raises(RunFolderError, match="project again"):
        explain_tiny(copy, Splits(shuffled, shuffled, data.test), evaluate=False)
    assert (copy.path / "explanations" / "summary.json").read_bytes() == before
    assert not list(copy.path.glob(".explanations*"))
    assert isinstance(data.project, MemoryImageSet)
    other = MemoryImageSet(255 - data.project.pixels, source=data.project)
    explain_tiny(copy, Splits(other, other, data.test), evaluate=False, samples=0)
    summary = summary_of(copy.path)
    assert "changed since the projection" in summary["notes"][0]


def test_a_network_that_changed_since_the_projection_is_noticed(
    trained: Trained, copy: RunFolder
) -> None:
    data = trained[1]
    name = copy.resolve("best")
    rows = copy.read(name)[2]["prototypes"]
    model = copy.load_model(name).model
    changed = 5.0 * torch.linspace(-1, 1, model.add_on[-2].bias.numel())
    with torch.no_grad():
        model.add_on[-2].bias += changed
    explain_run(copy.path, model, data, checkpoint=name, prototypes=rows, samples=0)
    summary = summary_of(copy.path)
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
        explain_run(copy.path, model, data, checkpoint=name, prototypes=rows)


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


def test_images_of_different_sizes_have_places_of_their_own(
    trained: Trained, copy: RunFolder
) -> None:
    images = _Cropped(trained[1].project)
    splits = Splits(images, images, images)
    name = copy.resolve("best")
    model = copy.load_model(name).model
    found = project_prototypes(model, Batches(images, 1))
    rows = [
        {"image_index": int(image), "image": images.names[int(image)], "location": int(location)}
        for image, location in zip(found.images, found.locations, strict=True)
    ]
    explain_run(copy.path, model, splits, checkpoint=name, prototypes=rows, samples=1)
    summary = summary_of(copy.path)
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
    build_report(copy.path)


def test_flags_name_duplicates_and_empty_classes(trained: Trained, copy: RunFolder) -> None:
    data = trained[1]
    name = copy.resolve("best")
    model = copy.load_model(name).model
    rows = copy.read(name)[2]["prototypes"]
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
        copy.path, model, Splits(project, project, data.test), checkpoint=name, prototypes=rows
    )
    summary = summary_of(copy.path)
    flags = {entry["prototype"]: entry["flags"] for entry in summary["prototypes"]}
    assert "duplicate" in flags[0]
    assert "duplicate" in flags[1]
    assert summary["prototypes"][0]["same_as"] == [1]
    assert "never_wins" in flags[1]  # the first of two equal ones always wins
    assert "collapsed" in flags[3]
    assert "collapsed" not in flags[0]
    assert all("empty_class" in flags[j] for j in (6, 7, 8))
    assert "3 of 12 prototypes have no source" in summary["notes"][0]


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
    copy_run(run.path, bad)
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
    trained: Trained, copy: RunFolder, part: str, number: int
) -> None:
    data = trained[1]
    model = copy.load_model("best").model
    images = getattr(data, part)
    whole, spoilt = model.features, images.image(number)[None] / 255

    def features(batch: torch.Tensor) -> torch.Tensor:
        found = whole(batch).detach().clone()
        found[(batch == spoilt).flatten(1).all(dim=1)] = torch.inf  # far from all: logits of 0
        return found

    model.features = features  # type: ignore[method-assign]
    with pytest.raises(DataError) as caught:
        explain_run(copy.path, model, data, checkpoint="x")
    said = f"features or distances that are not finite for image {images.names[number]};"
    assert said in str(caught.value)


def test_what_a_killed_process_left_is_swept_away(trained: Trained, copy: RunFolder) -> None:
    for name in (".explanations-999999999", ".explanations-999999999-old"):
        (copy.path / name / "images").mkdir(parents=True)
    mine = copy.path / f".explanations-{os.getppid()}"  # of a process that is alive
    mine.mkdir()
    explain_tiny(copy, trained[1], evaluate=False, samples=0)
    assert [path.name for path in copy.path.glob(".explanations*")] == [mine.name]
