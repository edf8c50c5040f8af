import sys

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from protofast.errors import CheckpointError, InstallError, SettingsError
from protofast.models import BACKBONES, ProtoPNet, build_backbone


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_gives_what_it_says(name):
    backbone = build_backbone(name).eval()
    with torch.no_grad():
        features = backbone(torch.randn(1, 3, 64, 96))
    assert features.shape == (
        1,
        backbone.out_channels,
        64 // backbone.stride,
        96 // backbone.stride,
    )
    assert features.isfinite().all()
    assert features.min() >= 0  # each ends in a ReLU
    assert features.std() > 0
    assert backbone.config == {"name": name, "num_channels": 3}


@pytest.mark.parametrize("name", ["resnet18", "vgg16_bn", "densenet121"])
def test_backbones_are_torchvisions_classifiers_without_their_heads(name):
    torch.manual_seed(0)
    net = torchvision.models.get_model(name, weights=None).eval()
    backbone = build_backbone(name).eval()
    state = net.state_dict()
    assert backbone.load_state_dict({key: state[key] for key in backbone.state_dict()}, strict=True)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        if name == "resnet18":
            kept = list(net.children())[:-2]
            expected = torch.nn.Sequential(*kept)(images)
        else:
            expected = net.features(images).relu()
        assert torch.equal(backbone(images), expected)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_from_a_file(tmp_path, suffix):
    net = torchvision.models.resnet18(weights=None)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": {"module." + k: v for k, v in net.state_dict().items()}}, path)
    else:
        save_file(net.state_dict(), path)
    backbone = build_backbone("resnet18", weights=path)
    assert torch.equal(backbone.layer4[1].conv2.weight, net.layer4[1].conv2.weight)
    assert torch.equal(backbone.conv1.weight, net.conv1.weight)
    assert build_backbone("resnet18", weights=str(path)).conv1.weight.requires_grad


def test_one_channel_passes_as_three_equal_ones(tmp_path):
    net = torchvision.models.resnet18(weights=None)
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    grey = build_backbone("resnet18", num_channels=1, weights=tmp_path / "weights.pth").eval()
    colour = build_backbone("resnet18", weights=tmp_path / "weights.pth").eval()
    images = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(
            grey(images), colour(images.expand(-1, 3, -1, -1)), atol=1e-4, rtol=1e-4
        )
    assert grey.config == {"name": "resnet18", "num_channels": 1}
    # Its own weights fit it as they are.
    torch.save(grey.state_dict(), tmp_path / "grey.pth")
    again = build_backbone("resnet18", num_channels=1, weights=tmp_path / "grey.pth")
    assert torch.equal(again.conv1.weight, grey.conv1.weight)


@pytest.mark.parametrize("name", ["small", "vgg16", "densenet121"])
def test_other_numbers_of_channels(name):
    with torch.no_grad():
        assert build_backbone(name, num_channels=5).eval()(torch.rand(1, 5, 64, 64)).dim() == 4


def test_densenets_old_names_are_understood(tmp_path):
    state = torchvision.models.densenet121(weights=None).state_dict()
    old = {
        key.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): value
        for key, value in state.items()
        if not key.endswith("num_batches_tracked")
    }
    torch.save(old, tmp_path / "old.pth")
    backbone = build_backbone("densenet121", weights=tmp_path / "old.pth")
    name = "features.denseblock2.denselayer3.conv2.weight"
    assert torch.equal(backbone.state_dict()[name], state[name])


def test_weights_that_do_not_fit_are_named(tmp_path):
    state = build_backbone("small").state_dict()
    torch.save(build_backbone("resnet18").state_dict(), tmp_path / "resnet.pth")
    with pytest.raises(CheckpointError, match=r"does not fit.*missing \(conv1.0.weight.*unknown"):
        build_backbone("small", weights=tmp_path / "resnet.pth")
    state["conv3.0.weight"] = torch.zeros(2, 2)
    torch.save(state, tmp_path / "shape.pth")
    with pytest.raises(
        CheckpointError, match=r"wrong shape \(conv3.0.weight \[2, 2\] instead of \["
    ):
        build_backbone("small", weights=tmp_path / "shape.pth")


def test_weights_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"no weights file .*nowhere.pth"):
        build_backbone("small", weights=tmp_path / "nowhere.pth")
    torch.save(build_backbone("small").state_dict(), tmp_path / "cut.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "cut.pth").read_bytes()[:5000])
    (tmp_path / "text.safetensors").write_text("not a file of tensors")
    (tmp_path / "empty.pth").write_bytes(b"")
    torch.save(build_backbone("small"), tmp_path / "pickled.pth")  # code, which is not executed
    for name in ("cut.pth", "text.safetensors", "empty.pth", "pickled.pth"):
        with pytest.raises(
            CheckpointError, match=f"{name} cannot be read as a state dict"
        ) as error:
            build_backbone("small", weights=tmp_path / name)
        assert "\n" not in str(error.value)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="does not hold a state dict"):
        build_backbone("small", weights=tmp_path / "list.pth")


def test_a_download_that_fails_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(
        CheckpointError, match=r"could not be downloaded .*download https://.*path"
    ) as e:
        build_backbone("resnet18", weights="imagenet")
    assert "\n" not in str(e.value)


def test_unknown_names_and_missing_libraries(monkeypatch):
    with pytest.raises(SettingsError, match="unknown backbone 'resnet19'; choose one of small"):
        build_backbone("resnet19")
    with pytest.raises(SettingsError, match="'small' has no ImageNet weights"):
        build_backbone("small", weights="imagenet")
    with pytest.raises(ValueError, match="num_channels must be at least 1; got 0"):
        build_backbone("small", num_channels=0)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(InstallError, match=r"'vgg16' needs torchvision: pip install '\w+\[all\]'"):
        build_backbone("vgg16")
    assert build_backbone("small").out_channels > 0


@pytest.mark.parametrize("name", ["resnet18", "vgg16", "densenet121", "small"])
def test_protopnet_on_each_family_learns_end_to_end(name):
    model = ProtoPNet(
        build_backbone(name), num_classes=2, prototypes_per_class=2, depth=16, input_size=(64, 64)
    )
    output = model(torch.rand(2, 3, 64, 64))
    output.logits.square().sum().backward()
    first = next(model.backbone.parameters())
    assert first.grad is not None
    assert first.grad.abs().sum() > 0
    assert model.receptive_field().grid == (64 // model.backbone.stride,) * 2
