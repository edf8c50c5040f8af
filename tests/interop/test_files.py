"""Checkpoints that mean harm otherwise than by calls: to other files, to memory, to time."""

import io
import os
import pickle
import tarfile
import zipfile

import pytest
import torch
from stand_ins import PPNet

from protofast import interop
from protofast.errors import CheckpointError
from protofast.interop.unpickling import Unpickler


def records(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path, contents, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)


def refused(path, words):
    with pytest.raises(CheckpointError, match=words):
        interop.load_checkpoint(path)


def test_a_tar_archive_is_not_unpacked(tmp_path) -> None:
    """Its first member may be called what files of the old format begin with."""
    torch.save({}, tmp_path / "c.pth", _use_new_zipfile_serialization=False)
    magic = (tmp_path / "c.pth").read_bytes()[:15]
    victim = tmp_path / "victim"
    victim.write_text("mine")
    victim.chmod(0o600)
    os.utime(victim, (1, 1))
    with tarfile.open(
        tmp_path / "c.pth", "w:", format=tarfile.GNU_FORMAT, encoding="latin1"
    ) as archive:
        archive.addfile(tarfile.TarInfo(magic.decode("latin1")))
        for name in ("storages", "tensors", "pickle"):
            link = tarfile.TarInfo(name)
            link.type, link.linkname, link.mode, link.mtime = tarfile.LNKTYPE, str(victim), 0o777, 9
            archive.addfile(link)
    content = (tmp_path / "c.pth").read_bytes()
    assert content.startswith(magic)
    assert tarfile.is_tarfile(tmp_path / "c.pth")
    refused(tmp_path / "c.pth", "cannot be read")
    assert victim.stat().st_mtime == 1
    assert victim.stat().st_mode & 0o777 == 0o600


def test_archives_are_read_by_one_parser(tmp_path, monkeypatch) -> None:
    torch.save(PPNet(), tmp_path / "c.pth")

    def other(*_, **__):
        raise AssertionError("another parser")

    for owner, name in ((torch, "load"), (torch.jit, "load"), (torch._C, "PyTorchFileReader")):
        monkeypatch.setattr(owner, name, other)
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
    assert interop.load_checkpoint(tmp_path / "c.pth").num_prototypes == 12


def test_a_variable_that_prevents_reading_old_files_is_named(tmp_path, monkeypatch) -> None:
    torch.save(PPNet().state_dict(), tmp_path / "c.pth", _use_new_zipfile_serialization=False)
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
    refused(tmp_path / "c.pth", "TORCH_FORCE_WEIGHTS_ONLY_LOAD")


def test_a_far_place_in_the_memo_takes_no_memory() -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert Unpickler(io.BytesIO(b"\x80\x02}r\xff\xff\xff\x7f.")).load() == {}
    with pytest.raises(pickle.UnpicklingError, match="bytearray"):
        Unpickler(io.BytesIO(b"\x80\x05\x96" + (2**34).to_bytes(8, "little") + b".")).load()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB


def test_compressed_records_are_refused(tmp_path) -> None:
    path = tmp_path / "c.pth"
    torch.save(PPNet().state_dict(), path)
    contents = records(path)
    write(path, contents, zipfile.ZIP_DEFLATED)
    refused(path, "compressed")
    write(path, {**contents, "c/data/bomb": bytes(2**24)}, zipfile.ZIP_DEFLATED)
    refused(path, "larger than the file")


@pytest.mark.parametrize("change", [lambda content: content[:-4], lambda content: content * 2])
def test_records_have_the_length_that_the_pickle_says(change, tmp_path) -> None:
    path = tmp_path / "c.pth"
    torch.save(PPNet().state_dict(), path)
    write(path, {n: change(c) if "/data/0" in n else c for n, c in records(path).items()})
    refused(path, "bytes where the tensors need")


def test_storages_of_an_old_file_lie_inside_it(tmp_path) -> None:
    path = tmp_path / "c.pth"
    torch.save({"a": torch.zeros(77)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    assert content.count(b"KM") >= 1  # BININT1 77, the number of elements
    path.write_bytes(content.replace(b"KM", b"J\xff\xff\xff\x7f", 1))
    refused(path, "more bytes than the file has")


class Rebuilt:
    def __init__(self, *arguments):
        self.arguments = arguments

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, (*self.arguments, False, {})


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("offset", "size", "stride", "fits"),
    [
        (0, (2, 3), (3, 1), True),
        (5, (1,), (1,), True),
        (6, (0, 4), (4, 1), True),
        (0, (4, 6), (0, 1), True),
        (0, (7,), (1,), False),
        (1, (2, 3), (3, 1), False),
        (0, (2, 3), (4, 1), False),
        (5, (2,), (-1,), False),
        (-1, (2,), (1,), False),
        (0, (2**40,), (0,), False),
        (0, (2,), (1, 1), False),
        (0, (2.0,), (1,), False),
    ],
)
def test_tensors_lie_inside_their_storage(offset, size, stride, fits, legacy, tmp_path) -> None:
    storage = torch.arange(6.0)._typed_storage()
    value = {"a": Rebuilt(storage, offset, size, stride)}
    torch.save(value, tmp_path / "c.pth", _use_new_zipfile_serialization=not legacy)
    refused(tmp_path / "c.pth", "no prototype_vectors" if fits else "the file makes a tensor")


def test_a_tensor_takes_no_other_state(tmp_path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "c.pth")
    contents = records(tmp_path / "c.pth")
    for name, content in contents.items():
        if name.endswith("data.pkl"):
            contents[name] = content.replace(b"s.", b"}bs.")
            assert contents[name] != content
    write(tmp_path / "c.pth", contents)
    refused(tmp_path / "c.pth", "changes a Tensor")


def many_times():
    inner = PPNet()
    for _ in range(40):
        outer = torch.nn.Module()
        outer._modules = {"a": inner, "b": inner}
        inner = outer
    return inner


def deep():
    inner = PPNet()
    for _ in range(130):
        outer = torch.nn.Module()
        outer._modules = {"a": inner}
        inner = outer
    return inner


@pytest.mark.parametrize("make", [many_times, deep])
def test_modules_without_end_are_refused(make, tmp_path) -> None:
    torch.save(make(), tmp_path / "c.pth")
    refused(tmp_path / "c.pth", "holds modules more than")


def test_a_module_under_two_names_is_there_twice(tmp_path) -> None:
    model = PPNet()
    model._modules["again"] = model.last_layer
    torch.save(model, tmp_path / "c.pth")
    found = interop.load_checkpoint(tmp_path / "c.pth").state_dict
    assert list(found) == list(model.state_dict())
