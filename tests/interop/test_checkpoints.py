"""`load_checkpoint`: what it reads, what it fills, and that no file can make it run anything."""

import collections
import io
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from stand_ins import PPNet, TESNet, reciprocal
from torch import nn

import protofast
from protofast import ProtoPNet, interop
from protofast.errors import CheckpointError

IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def same_tensors(one, other):
    assert list(one) == list(other)
    return all(torch.equal(one[name], other[name]) for name in one)


def pruned():
    model = PPNet()
    model.prune_prototypes([0, 3, 4, 5, 6, 11])
    return model.eval()


def written(value, path, legacy):
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    return path


FORMS = {
    "module": lambda model: model,
    "wrapped module": nn.DataParallel,
    "accelerated module": protofast.accelerate,
    "state dict": lambda model: model.state_dict(),
    "wrapped state dict": lambda model: nn.DataParallel(model).state_dict(),
    "state dict in a dictionary": lambda model: {
        "model_state_dict": model.state_dict(),
        "epoch": 10,
    },
    "module in a dictionary": lambda model: {"model": model, "accuracy": 0.8},
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("make", [lambda: PPNet().eval(), pruned], ids=["whole", "pruned"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_every_form_fills_a_fresh_network(form, make, legacy, tmp_path) -> None:
    model = make()
    expected, state = model(IMAGES), model.state_dict()
    checkpoint = interop.load_checkpoint(written(FORMS[form](model), tmp_path / "c.pth", legacy))
    assert same_tensors(checkpoint.state_dict, state)
    assert checkpoint.prototype_class.tolist() == model.prototype_class_identity.argmax(1).tolist()
    assert checkpoint.class_name == ("stand_ins.PPNet" if "module" in form else None)
    fresh = PPNet().eval()
    checkpoint.fill(nn.DataParallel(fresh))
    for one, other in zip(fresh(IMAGES), protofast.restore(model)(IMAGES), strict=True):
        assert torch.equal(one, other)
    assert torch.allclose(fresh(IMAGES)[0], expected[0], atol=1e-5)
    assert torch.equal(fresh.prototype_class_identity, model.prototype_class_identity)
    assert list(fresh.prototype_shape) == list(model.prototype_shape)
    protofast.accelerate(fresh)


def test_a_module_tells_its_attributes(tmp_path) -> None:
    model = PPNet(prototype_activation_function=reciprocal, img_size=32)
    checkpoint = interop.load_checkpoint(written(model, tmp_path / "c.pth", legacy=False))
    assert checkpoint.attributes == {
        "img_size": 32,
        "prototype_shape": (12, 8, 1, 1),
        "num_prototypes": 12,
        "num_classes": 3,
        "epsilon": 1e-4,
        "prototype_activation_function": "stand_ins.reciprocal",
        "proto_layer_rf_info": [4, 8, 11, 3.5],
    }


def test_a_file_is_read_where_its_classes_do_not_exist(tmp_path) -> None:
    torch.save(PPNet(), tmp_path / "c.pth")
    program = (
        "from protofast.interop import load_checkpoint\n"
        "checkpoint = load_checkpoint('c.pth')\n"
        "import sys; assert 'stand_ins' not in sys.modules\n"
        "print(checkpoint.class_name, checkpoint.num_prototypes, checkpoint.num_classes)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "stand_ins.PPNet 12 3"


@pytest.mark.parametrize("make", [lambda: PPNet().eval(), pruned], ids=["whole", "pruned"])
def test_protopnet_gives_the_originals_logits(make, tmp_path) -> None:
    model = make()
    checkpoint = interop.load_checkpoint(written(model, tmp_path / "c.pth", legacy=False))
    ours = checkpoint.protopnet(PPNet().features)
    assert isinstance(ours, ProtoPNet)
    assert ours.input_size == (32, 32)
    normalised = (IMAGES - ours.mean.view(3, 1, 1)) / ours.std.view(3, 1, 1)
    logits, distances = model(normalised)
    output = ours(IMAGES)
    assert torch.allclose(output.logits, logits, atol=1e-5)
    assert torch.allclose(output.distances, distances, atol=1e-5)
    assert ours.prototype_class.tolist() == checkpoint.prototype_class.tolist()


def test_protopnet_on_a_backbone_by_name(tmp_path) -> None:
    model = PPNet().eval()
    model.features = protofast.models.build_backbone("small").eval()
    model.add_on_layers[0] = nn.Conv2d(model.features.out_channels, 8, 1)
    state = nn.DataParallel(model).state_dict()
    checkpoint = interop.load_checkpoint(written(state, tmp_path / "c.pth", legacy=False))
    ours = checkpoint.protopnet("small", input_size=(32, 32), mean=[0.0] * 3, std=[1.0] * 3)
    assert torch.allclose(ours(IMAGES).logits, model(IMAGES)[0], atol=1e-5)


def test_numbers_of_numpy_and_attributes_of_tensors_are_read_over(tmp_path) -> None:
    model = PPNet()
    model.prototype_vectors.note = "mine"
    state = model.state_dict()
    state["prototype_vectors"].note = "mine too"
    value = {
        "state_dict": state,
        "accuracy": np.float64(0.8),
        "history": np.arange(3.0),
        "name": b"bytes",
    }
    for saved in (value, model):
        checkpoint = interop.load_checkpoint(written(saved, tmp_path / "c.pth", legacy=False))
        assert same_tensors(checkpoint.state_dict, model.state_dict())


def test_what_does_not_fit_is_named_and_nothing_changed(tmp_path) -> None:
    checkpoint = interop.load_checkpoint(written(pruned(), tmp_path / "c.pth", legacy=False))
    other = PPNet((12, 4, 1, 1))
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(CheckpointError, match="of wrong shape"):
        checkpoint.fill(other)
    assert same_tensors(other.state_dict(), before)
    with pytest.raises(CheckpointError, match="does not fit the network"):
        checkpoint.protopnet(nn.Conv2d(3, 6, 3))
    tesnet = interop.load_checkpoint(written(TESNet(), tmp_path / "t.pth", legacy=False))
    with pytest.raises(CheckpointError, match="TESNet"):
        tesnet.protopnet(PPNet().features)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no checkpoint file"),
        (b"", "not written by torch.save"),
        (b"PK\x03\x04 and so on", "cannot be read"),
        (pickle.dumps({"a": 1}), "not written by torch.save"),
    ],
)
def test_files_of_other_kinds(content, words, tmp_path) -> None:
    path = tmp_path / "c.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=words):
        interop.load_checkpoint(path)


def test_a_checkpoint_of_something_else(tmp_path) -> None:
    path = written(nn.Linear(2, 2).state_dict(), tmp_path / "c.pth", legacy=False)
    with pytest.raises(CheckpointError, match=r"no prototype_vectors and no last_layer\.weight"):
        interop.load_checkpoint(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/constants.pkl", b"")
    with pytest.raises(CheckpointError, match="TorchScript"):
        interop.load_checkpoint(path)


# ----- files that mean harm: each would leave a file called `harm` if anything of theirs ran -----


class Calls:
    def __init__(self, function, *arguments):
        self.what = function, arguments

    def __reduce__(self):
        return self.what


def harm(path):
    Path(path).touch()


def harmful(path):
    """(value to save, name that the refusal must bear)"""
    command = f"open({str(path)!r}, 'w')"
    return {
        "os.system": (Calls(os.system, f"touch {path}"), "posix.system"),
        "eval": (Calls(eval, command), "builtins.eval"),
        "getattr": (Calls(getattr, os, "system"), "builtins.getattr"),
        "own function": (Calls(harm, str(path)), "test_checkpoints.harm"),
        "Popen": (Calls(subprocess.Popen, ["touch", str(path)]), "Popen"),
        "nested torch.load": (
            Calls(torch.storage._load_from_bytes, b"anything"),
            "torch.storage._load_from_bytes",
        ),
        "partial": (Calls(__import__("functools").partial, eval, command), "functools.partial"),
    }


@pytest.mark.parametrize("place", ["alone", "in a state dict", "in a module"])
@pytest.mark.parametrize("kind", sorted(harmful("x")))
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_harmful_calls_are_refused_by_name(kind, place, legacy, tmp_path) -> None:
    if kind == "getattr":
        value, name = Calls(getattr, "text", "upper"), "builtins.getattr"
    else:
        value, name = harmful(tmp_path / "harm")[kind]
    if place == "in a state dict":
        value = {**PPNet().state_dict(), "more": value}
    elif place == "in a module":
        module = PPNet()
        module.__dict__["more"] = value
        value = module
    path = written(value, tmp_path / "c.pth", legacy)
    with pytest.raises(CheckpointError, match=f"calls .*{name.replace('.', '[.]')}"):
        interop.load_checkpoint(path)
    assert not (tmp_path / "harm").exists()


def forged(path, program):
    """A file of torch.save's format whose pickle is written by hand."""
    torch.save({}, path)
    with zipfile.ZipFile(path) as old:
        records = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, content in records.items():
            new.writestr(name, program if name.endswith("data.pkl") else content)
    return path


def test_no_global_state_can_be_changed(tmp_path) -> None:
    """BUILD with a pair sets attributes on whatever is on the stack: functions, classes."""
    defaults = torch._utils._rebuild_tensor_v2.__defaults__
    for name in (b"torch._utils\n_rebuild_tensor_v2", b"collections\nOrderedDict", b"os\npath"):
        program = (
            b"\x80\x02c" + name + b"\n(N}X\x0c\x00\x00\x00__defaults__NsX\x04\x00\x00\x00harmNstb."
        )
        with pytest.raises(CheckpointError):
            interop.load_checkpoint(forged(tmp_path / "c.pth", program))
    assert torch._utils._rebuild_tensor_v2.__defaults__ == defaults
    assert not hasattr(collections.OrderedDict, "harm")


class Patched:
    """A class whose source torch.load finds different from the file's, and writes down."""

    dump_patches = True


def test_a_module_reference_cannot_write_files(tmp_path, monkeypatch) -> None:
    """Legacy files carry sources, which torch.load would compare and write a patch of."""
    monkeypatch.chdir(tmp_path)

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return ("module", Patched, "model.py", "class Patched: 1") if value == "it" else None

    body = io.BytesIO()
    for value in (torch.serialization.MAGIC_NUMBER, torch.serialization.PROTOCOL_VERSION, {}):
        body.write(pickle.dumps(value, 2))
    Pickler(body, 2).dump({"a": "it"})
    Path("c.pth").write_bytes(body.getvalue() + pickle.dumps([], 2))
    with pytest.warns(torch.serialization.SourceChangeWarning):
        torch.load("c.pth", weights_only=False)
    Path("Patched.patch").unlink()  # so the file does what it is meant to, where it is let

    name = (Patched.__module__, Patched.__qualname__)
    monkeypatch.setitem(interop.unpickling._CONTAINERS, name, Patched)
    with pytest.raises(CheckpointError, match="does not hold"):
        interop.load_checkpoint("c.pth")
    assert [path.name for path in tmp_path.iterdir()] == ["c.pth"]


def test_a_module_that_holds_itself_ends(tmp_path) -> None:
    model = PPNet()
    model._modules["itself"] = model
    checkpoint = interop.load_checkpoint(written(model, tmp_path / "c.pth", legacy=False))
    assert checkpoint.num_prototypes == 12


def test_classes_that_a_bare_state_dict_does_not_say_are_left_alone(tmp_path) -> None:
    """After its last stage of training a network may have its largest weights anywhere."""
    model = PPNet()
    model.last_layer.weight.data[2] = 5
    checkpoint = interop.load_checkpoint(
        written(model.state_dict(), tmp_path / "c.pth", legacy=False)
    )
    assert not checkpoint.class_is_known
    fresh = PPNet()
    checkpoint.fill(fresh)
    assert torch.equal(fresh.prototype_class_identity, PPNet().prototype_class_identity)


@pytest.mark.parametrize("weight", [0.0, 1.0, float("nan")])
def test_classes_of_a_bare_pruned_state_dict_are_not_guessed_from_ties(weight, tmp_path) -> None:
    model = pruned()
    model.last_layer.weight.data[:, 1] = weight
    checkpoint = interop.load_checkpoint(
        written(model.state_dict(), tmp_path / "c.pth", legacy=False)
    )
    fresh = PPNet()
    for use in (checkpoint.fill, lambda network: checkpoint.protopnet(network.features)):
        with pytest.raises(CheckpointError, match="prototype 1 has no single largest weight"):
            use(fresh)
    assert fresh.num_prototypes == 12
