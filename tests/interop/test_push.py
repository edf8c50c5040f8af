"""`push_prototypes`: the same patches as a literal loop in float64, and the same files."""

import numpy as np
import pytest
import torch
from literal import push
from stand_ins import Focal, PPNet, TESNet, on_features, reciprocal
from torch import nn

import protofast
from protofast import interop
from protofast.errors import DataError

CLASSES = 4


def quiet(_: str) -> None:
    pass


def batches_of(count, shape, batch_size, values="random"):
    """Features as images; `tied` ones repeat in few steps, so that most distances are equal."""
    images = torch.rand(count, *shape)
    if values == "tied":
        images = (images * 2).round() / 2
    labels = torch.randint(0, CLASSES, (count,))
    return list(zip(images.split(batch_size), labels.split(batch_size), strict=True))


def in_numpy(batches):
    return [(images.numpy(), labels.numpy()) for images, labels in batches]


@pytest.mark.parametrize("accelerated", [False, True])
@pytest.mark.parametrize("class_specific", [False, True])
@pytest.mark.parametrize("values", ["random", "tied"])
@pytest.mark.parametrize("shape", [(20, 6, 1, 1), (20, 6, 2, 3)], ids=str)
@pytest.mark.parametrize(
    ("kind", "activation"),
    [(PPNet, "log"), (PPNet, "linear"), (PPNet, reciprocal), (TESNet, "log"), (Focal, "log")],
)
def test_chooses_what_the_literal_loop_chooses(
    kind, activation, shape, values, class_specific, accelerated
) -> None:
    model = on_features(kind, shape, CLASSES, activation)
    if values == "tied":
        model.prototype_vectors.data = (model.prototype_vectors.data * 2).round() / 2
        if kind is TESNet:  # its normalised prototypes would not be tied but nearly so
            model.prototype_vectors.data = torch.zeros(shape)
            model.prototype_vectors.data[torch.arange(20), torch.arange(20) % 6] = 1.0
    batches = batches_of(50, (6, 4, 5), 16, values)
    before = model.prototype_vectors.detach().numpy().copy()
    identity = model.prototype_class_identity.numpy()
    images, locations, patches = push(
        in_numpy(batches), before, identity, class_specific, kind is TESNet
    )
    if accelerated and kind is not Focal:
        protofast.accelerate(model)
    result = interop.push_prototypes(
        batches, nn.DataParallel(model), class_specific=class_specific, log=quiet
    )
    assert result.images.tolist() == images.tolist()
    assert result.locations.tolist() == locations.tolist()
    assert np.array_equal(model.prototype_vectors.detach().numpy(), patches.astype(np.float32))
    assert not model.training


def test_a_pruned_model_with_uneven_classes() -> None:
    model = on_features(PPNet, (20, 6, 1, 1), CLASSES)
    model.prune_prototypes([0, 1, 2, 3, 7, 19])
    batches = batches_of(40, (6, 3, 3), 7)
    before = model.prototype_vectors.detach().numpy().copy()
    images, _, patches = push(in_numpy(batches), before, model.prototype_class_identity.numpy())
    result = interop.push_prototypes(batches, model, log=quiet)
    assert result.images.tolist() == images.tolist()
    assert np.array_equal(model.prototype_vectors.detach().numpy(), patches.astype(np.float32))


@pytest.mark.parametrize("zero", [False, True])
def test_a_class_without_images(zero) -> None:
    model = on_features(PPNet, (8, 6, 1, 1), CLASSES)
    batches = [(torch.rand(9, 6, 2, 2), torch.tensor([0, 1, 3] * 3))]
    before = model.prototype_vectors.detach().clone()
    with pytest.warns(UserWarning, match=r"no image of class 2: 2 prototype\(s\)"):
        result = interop.push_prototypes(batches, model, log=quiet, zero_empty_classes=zero)
    expected = torch.zeros_like(before[4:6]) if zero else before[4:6]
    assert torch.equal(model.prototype_vectors[4:6], expected)
    assert result.empty_classes == (2,)
    assert result.images[4:6].tolist() == [-1, -1]


def test_refusals_leave_the_model_as_it_was() -> None:
    model = on_features(PPNet, (8, 6, 1, 1), CLASSES)
    before = model.prototype_vectors.detach().clone()
    images = torch.rand(4, 6, 2, 2)
    images[2, 0, 1, 1] = torch.nan
    with pytest.raises(DataError, match="image 2 of the set"):
        interop.push_prototypes([(images, torch.arange(4))], model, log=quiet)
    with pytest.raises(ValueError, match=r"classes 0\.\.\.3"):
        interop.push_prototypes([(images, torch.arange(4) + 1)], model, log=quiet)
    with pytest.raises(ValueError, match="stride"):
        interop.push_prototypes([], model, prototype_layer_stride=2, log=quiet)
    with pytest.raises(TypeError, match="prototype_vectors"):
        interop.push_prototypes([], nn.Linear(1, 1), log=quiet)
    assert torch.equal(model.prototype_vectors, before)


@pytest.mark.parametrize("activation", ["log", "linear", reciprocal])
def test_files_have_the_originals_names_and_columns(tmp_path, activation) -> None:
    Image = pytest.importorskip("PIL.Image")
    model = PPNet(num_classes=3, prototype_activation_function=activation)
    images, labels = torch.rand(9, 3, 32, 32), torch.arange(9) % 3
    batches = [(images[:5], labels[:5]), (images[5:], labels[5:])]
    lines = []
    result = interop.push_prototypes(
        batches,
        model,
        preprocess_input_function=lambda images: (images - 0.5) / 0.2,
        root_dir_for_saving_prototypes=tmp_path,
        epoch_number=10,
        prototype_img_filename_prefix="prototype-img",
        prototype_self_act_filename_prefix="prototype-self-act",
        proto_bound_boxes_filename_prefix="bb",
        log=lines.append,
    )
    folder = tmp_path / "epoch-10"
    boxes, fields = np.load(folder / "bb10.npy"), np.load(folder / "bb-receptive_field10.npy")
    assert boxes.shape == fields.shape == (12, 6)
    assert boxes[:, 0].tolist() == fields[:, 0].tolist() == result.images.tolist()
    assert boxes[:, 5].tolist() == labels[result.images].tolist()
    # Grid 4, jump 8, size 11, start 3.5: the field of a location, clipped to the image.
    rows, columns = result.locations // 4, result.locations % 4
    for start, places in ((1, rows), (3, columns)):
        centres = 3.5 + 8 * places.double()
        assert fields[:, start].tolist() == (centres - 5.5).clamp(min=0).int().tolist()
        assert fields[:, start + 1].tolist() == (centres + 5.5).int().clamp(max=32).tolist()
    expected = {"bb10.npy", "bb-receptive_field10.npy"}
    for j in range(12):
        expected |= {f"prototype-img{name}{j}.png" for name in ("", "-original")}
        expected |= {f"prototype-img-original_with_self_act{j}.png", f"prototype-self-act{j}.npy"}
        expected |= {
            f"prototype-img-receptive_field{name}{j}.png" for name in ("", "_with_self_act")
        }
        y0, y1, x0, x1 = boxes[j, 1:5]
        crop = np.asarray(Image.open(folder / f"prototype-img{j}.png"))
        whole = np.asarray(Image.open(folder / f"prototype-img-original{j}.png"))
        assert np.array_equal(crop, whole[y0:y1, x0:x1])
        source = images[result.images[j]].numpy().transpose(1, 2, 0)
        assert np.array_equal(whole, (source * 255).astype(np.uint8))
        activation_map = np.load(folder / f"prototype-self-act{j}.npy")
        assert activation_map.shape == (4, 4)
        assert activation_map.argmax() == result.locations[j]
    assert {path.name for path in folder.iterdir()} == expected
    assert lines[0] == "\tpush"


def test_files_without_a_number_or_a_class(tmp_path) -> None:
    model = PPNet(num_classes=3)
    interop.push_prototypes(
        [(torch.rand(6, 3, 32, 32), torch.arange(6) % 3)],
        model,
        root_dir_for_saving_prototypes=str(tmp_path),
        proto_bound_boxes_filename_prefix="bb",
        save_prototype_class_identity=False,
        log=quiet,
    )
    assert {path.name for path in tmp_path.iterdir()} == {
        "bbNone.npy",
        "bb-receptive_fieldNone.npy",
    }
    assert np.load(tmp_path / "bbNone.npy").shape == (12, 5)


def test_files_need_the_receptive_field(tmp_path) -> None:
    model = PPNet(num_classes=3)
    model.proto_layer_rf_info = None
    with pytest.raises(ValueError, match="proto_layer_rf_info"):
        interop.push_prototypes([], model, root_dir_for_saving_prototypes=tmp_path, log=quiet)
