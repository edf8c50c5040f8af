"""The two file formats of `torch.save`, read by the unpickler that runs nothing.

ZIP archives are read by Python's zipfile alone. torch would look at such a file with a parser of
its own, for which the same bytes may hold other records (a TorchScript program, say), and would
believe the pickle's word for the length of a record. Older files go through torch.load, as bytes in
memory: of a file on disk it would first try whether that is a tar archive, and unpack it.
"""

import io
import os
import sys
import types
import warnings
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from protofast.errors import CheckpointError
from protofast.interop.unpickling import Unpickler

_ZIP, _LEGACY = b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_FORCED = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def read_file(path: Path) -> Any:
    """What `torch.save` wrote to `path`, with `StandIn`s for objects of any class.

    Takes memory for the file and for its tensors, and no more than that whatever the file says.

    Raises:
        CheckpointError: there is no such file, it is damaged, of another kind, or calls something.
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint file {path}")
    with path.open("rb") as file:
        head = file.read(len(_LEGACY))
    if not head.startswith(_ZIP) and head != _LEGACY:
        raise CheckpointError(f"{path} was not written by torch.save")
    try:
        return _Archive(path).load() if head.startswith(_ZIP) else _read_legacy(path)
    except Exception as error:  # damaged files fail in as many ways as there are formats
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {reason}") from error


def _bytes_of(storage: Any, numel: Any) -> int:
    if (
        type(numel) is not int
        or numel < 0
        or not isinstance(storage, torch.serialization.StorageType)
    ):
        raise UnpicklingError("a reference to a storage is not of the form that torch.save writes")
    size: int = numel * storage.dtype.itemsize
    return size


class _Archive:
    """A ZIP archive: `name/data.pkl` and the tensors' bytes in `name/data/0` and so on."""

    def __init__(self, path: Path) -> None:
        self._file = zipfile.ZipFile(path)
        self._room = path.stat().st_size
        self._records: dict[str, zipfile.ZipInfo] = {}
        self._storages: dict[str, Any] = {}

    def load(self) -> Any:
        """The object in it."""
        with self._file:
            for info in self._file.infolist():
                _, _, name = info.filename.partition("/")
                if name in self._records:
                    raise UnpicklingError(f"it holds two records {name}")
                self._records[name] = info
            if sum(info.file_size for info in self._records.values()) > self._room:
                raise UnpicklingError("its records, unpacked, are larger than the file")
            if "constants.pkl" in self._records:
                raise UnpicklingError(
                    "it is a TorchScript program, not a checkpoint: save the model's state_dict()"
                )
            order = self._read("byteorder").decode() if "byteorder" in self._records else "little"
            if order not in ("little", "big"):
                raise UnpicklingError(f"its byte order is {order!r}, not little or big")
            self._swapped = order != sys.byteorder
            unpickler: Any = Unpickler(io.BytesIO(self._read("data.pkl")), encoding="utf-8")
            unpickler.persistent_load = self._storage
            return unpickler.load()

    def _read(self, name: str) -> bytes:
        """A record's bytes; torch.save stores them as they are, so that they cannot swell."""
        if name not in self._records:
            raise UnpicklingError(f"it has no record {name}")
        info = self._records[name]
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise UnpicklingError(f"its record {name} is compressed, which torch.save never does")
        return self._file.read(info)

    def _storage(self, saved: Any) -> Any:
        _, kind, key, _location, numel = saved
        name, size = f"data/{key}", _bytes_of(kind, numel)
        if name not in self._storages:
            there = self._records[name].file_size if name in self._records else 0
            if there != size:
                raise UnpicklingError(
                    f"its record {name} has {there} bytes where the tensors need {size}"
                )
            content = bytearray(self._read(name)) if size else bytearray()
            made = torch.frombuffer(content, dtype=torch.uint8) if size else torch.empty(0)
            storage = made.untyped_storage()
            if self._swapped:
                storage.byteswap(kind.dtype)
            self._storages[name] = storage
        storage = self._storages[name]
        if storage.nbytes() != size:
            raise UnpicklingError(f"its record {name} is used with {size} bytes and with others")
        return torch.storage.TypedStorage(wrap_storage=storage, dtype=kind.dtype, _internal=True)


class _LegacyUnpickler(Unpickler):
    """Counts the bytes of the storages that torch is about to make; the file must hold them all."""

    def __init__(self, file: io.BytesIO, **options: Any) -> None:
        super().__init__(file, **options)
        self._room = file.getbuffer().nbytes
        self._sizes: dict[Any, int] = {}

    def check_storage(self, saved: Any) -> None:
        """Refuse a storage that makes the sum larger than the file."""
        _, kind, key, _location, numel, _view = saved
        self._sizes[key] = max(_bytes_of(kind, numel), self._sizes.get(key, 0))
        if sum(self._sizes.values()) > self._room:
            raise UnpicklingError("its tensors need more bytes than the file has")


def _read_legacy(path: Path) -> Any:
    """What torch before 1.6 wrote."""
    if os.environ.get(_FORCED, "0").lower() in ("1", "y", "yes", "true"):
        raise UnpicklingError(
            f"the environment variable {_FORCED} keeps torch from reading files of its old format "
            "with an unpickler that runs nothing; unset it for this call"
        )
    reader = types.SimpleNamespace(
        __name__="protofast",
        Unpickler=_LegacyUnpickler,
        load=lambda f, **kw: _LegacyUnpickler(f, **kw).load(),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's remarks on storages and missing sources
        content = io.BytesIO(path.read_bytes())
        return torch.load(content, map_location="cpu", pickle_module=reader, weights_only=False)
