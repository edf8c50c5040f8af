"""An accelerated model copied, wrapped, replicated, saved and loaded."""

import copy
import io
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from stand_ins import PPNet, TESNet, reciprocal
from torch import nn

import protofast

HERE = Path(__file__).parent
IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one(IMAGES), other(IMAGES), strict=True))


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_copies_are_accelerated_too(copied) -> None:
    model = protofast.accelerate(PPNet(prototype_activation_function=reciprocal)).eval()
    twin = copied(model)
    assert type(twin) is type(model)
    assert same(twin, model)
    shared = twin.prototype_vectors is model.prototype_vectors
    assert shared == (copied is copy.copy)
    twin.prototype_vectors.data.zero_()
    assert same(twin, model) == shared  # a shallow copy shares its parameters, as any module's
    assert type(protofast.restore(twin)) is PPNet
    assert type(model) is not PPNet


class Named(PPNet):
    """A descendant that says how it is copied."""

    def __deepcopy__(self, memo):
        twin = Named()
        twin.load_state_dict(self.state_dict())
        twin.name = "a copy"
        return twin

    def __copy__(self):
        return self.__deepcopy__({})


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_descendants_own_way_of_copying_is_used(copied) -> None:
    model = protofast.accelerate(Named()).eval()
    twin = copied(model).eval()
    assert twin.name == "a copy"
    assert type(twin) is type(model)
    assert same(twin, model)


def test_a_deep_copy_keeps_what_points_back() -> None:
    model = PPNet()
    model.__dict__["itself"] = model
    twin = copy.deepcopy(protofast.accelerate(model))
    assert twin.itself is twin


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_name_the_original_class(protocol) -> None:
    model = protofast.accelerate(TESNet()).eval()
    written = pickle.dumps(model, protocol)
    assert b"protofast" not in written
    loaded = pickle.loads(written)
    assert type(loaded) is TESNet
    assert same(protofast.accelerate(loaded), model)


def test_torch_save_and_load_of_module_and_state_dict() -> None:
    model = protofast.accelerate(PPNet()).eval()
    file = io.BytesIO()
    torch.save(nn.DataParallel(model), file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False).module
    assert type(loaded) is PPNet
    assert same(protofast.accelerate(loaded), model)
    fresh = protofast.accelerate(PPNet()).eval()
    fresh.load_state_dict(model.state_dict())
    assert same(fresh, model)


def test_a_process_without_protofast_loads_what_was_saved(tmp_path) -> None:
    model = protofast.accelerate(PPNet()).eval()
    torch.save(model, tmp_path / "model.pth")
    torch.save(IMAGES, tmp_path / "images.pt")
    program = (
        "import sys; sys.modules['protofast'] = None\n"
        "import torch\n"
        "model = torch.load('model.pth', weights_only=False)\n"
        "logits, distances = model(torch.load('images.pt'))\n"
        "torch.save(distances.detach(), 'distances.pt'); print(type(model))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "<class 'stand_ins.PPNet'>"
    distances = torch.load(tmp_path / "distances.pt")
    assert torch.allclose(distances, model(IMAGES)[1], atol=1e-5)


def test_replicas_of_data_parallel_use_their_own_parameters() -> None:
    """`nn.DataParallel` on several devices makes replicas as `torch.nn.parallel.replicate` does."""
    model = protofast.accelerate(PPNet()).eval()
    expected = model(IMAGES)
    replica = model._replicate_for_data_parallel()
    for name, child in model.named_children():
        setattr(replica, name, child)
    for name, value in model._parameters.items():
        replica._parameters.pop(name, None)
        setattr(replica, name, value.detach().clone())  # a plain tensor, as on another device
    for one, other in zip(replica(IMAGES), expected, strict=True):
        assert torch.equal(one, other)
    replica.prototype_vectors.zero_()
    assert not torch.equal(replica(IMAGES)[1], expected[1])
    assert torch.equal(model(IMAGES)[1], expected[1])


def test_data_parallel_is_seen_through() -> None:
    parallel = nn.DataParallel(PPNet()).eval()
    assert protofast.accelerate(parallel) is parallel
    assert type(parallel.module) is not PPNet
    assert same(parallel, parallel.module)
    assert protofast.restore(parallel) is parallel
    assert type(parallel.module) is PPNet


def test_compiled_without_graph_breaks() -> None:
    model = protofast.accelerate(PPNet()).eval()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for one, other in zip(compiled(IMAGES), model(IMAGES), strict=True):
        assert torch.equal(one, other)


def test_two_ranks_of_distributed_data_parallel(tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, str(HERE / "ddp_ranks.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
