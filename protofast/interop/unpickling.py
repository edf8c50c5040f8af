"""Reading what `torch.save` wrote without running anything that the file says.

A pickle is a program: it names functions and calls them. Here no name in the file is ever imported.
Tensors, parameters and plain containers are rebuilt by functions of ours; every other name becomes
an empty class of that name, whose instances hold the attributes found in the file. So a whole
module can be read where its code does not exist. Calling a name is an error that says which.

torch.load itself is used for the file format, with this unpickler in place of Python's.
"""

import pickle
import types
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from protofast.errors import CheckpointError

_ZIP, _LEGACY = b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}
_CONTAINERS = {
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "complex"): complex,
    ("builtins", "slice"): slice,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
}


def read_file(path: Path) -> Any:
    """What `torch.save` wrote to `path`, with `StandIn`s for objects of any class.

    Raises:
        CheckpointError: there is no such file, it is damaged, of another kind, or calls something.
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint file {path}")
    _check_kind(path)
    reader = types.SimpleNamespace(
        __name__="protofast", Unpickler=_Unpickler, load=lambda f, **kw: _Unpickler(f, **kw).load()
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on storages and missing sources
            return torch.load(path, map_location="cpu", pickle_module=reader, weights_only=False)
    except Exception as error:  # damaged files fail in as many ways as there are formats
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {reason}") from error


def _check_kind(path: Path) -> None:
    """Only let through the two formats whose reading stays within the unpickler below."""
    with path.open("rb") as file:
        head = file.read(len(_LEGACY))
    if head.startswith(_ZIP):
        try:
            names = zipfile.ZipFile(path).namelist()
        except (zipfile.BadZipFile, ValueError, OSError) as error:
            raise CheckpointError(f"{path} cannot be read as a checkpoint: {error}") from error
        if any(name.endswith("constants.pkl") for name in names):
            raise CheckpointError(
                f"{path} is a TorchScript program, not a checkpoint: save the model's state_dict()"
            )
    elif head != _LEGACY:
        raise CheckpointError(f"{path} was not written by torch.save")


class _Named(type):
    """Type of the stand-in classes: they can neither be called nor changed by the file."""

    def __call__(cls, *args: object, **kwargs: object) -> NoReturn:
        raise pickle.UnpicklingError(
            f"the file calls {cls.__qualname__}, which a checkpoint of tensors and modules has no "
            "need of; nothing was run. Save the model's state_dict() where the file comes from"
        )

    def __setattr__(cls, name: str, value: object) -> NoReturn:
        raise pickle.UnpicklingError(f"the file changes the class {cls.__qualname__}")


class StandIn(metaclass=_Named):
    """An object of a class that is not known here, with the attributes that the file gives it."""

    def __new__(cls, *args: object) -> "StandIn":  # noqa: D102
        if args:
            cls()  # raises: a module is made without arguments
        return object.__new__(cls)

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError(
                f"the state of {type(self).__qualname__} is no dictionary of attributes"
            )
        self.__dict__.update({str(key): value for key, value in state.items()})


def stand_in_name(value: object) -> str | None:
    """`module.Class` of a stand-in class or an instance of one; None for everything else."""
    kind = value if isinstance(value, type) else type(value)
    return kind.__qualname__ if isinstance(kind, _Named) else None


class _Rebuild:
    """A function that the file may call. No attribute can be set on it, unlike on a function."""

    __slots__ = ()


class _RebuildTensor(_Rebuild):
    __slots__ = ()

    def __call__(self, storage: Any, offset: int, size: Any, stride: Any, *rest: Any) -> Tensor:
        grad = bool(rest[0]) if rest else False
        tensor: Tensor = torch._utils._rebuild_tensor_v2(
            storage, offset, size, stride, grad, OrderedDict()
        )
        return tensor


class _RebuildParameter(_Rebuild):
    __slots__ = ()

    def __call__(self, data: Tensor, requires_grad: bool, *_: Any) -> nn.Parameter:
        return nn.Parameter(data.detach(), requires_grad=bool(requires_grad))


class _Reconstruct(_Rebuild):
    """`copyreg._reconstructor`, by which older pickle protocols make an object."""

    __slots__ = ()

    def __call__(self, cls: Any, base: Any, state: Any) -> StandIn:
        if not isinstance(cls, _Named) or state is not None:
            raise pickle.UnpicklingError(f"the file makes an object of {cls!r}")
        made: Any = cls
        instance: StandIn = made.__new__(made)
        return instance


class _RebuildWithState(_Rebuild):
    """A tensor that had attributes of its own, which are dropped."""

    __slots__ = ()

    def __call__(self, function: Any, _kind: Any, arguments: Any, _state: Any) -> Tensor:
        if not isinstance(function, (_RebuildTensor, _RebuildParameter)):
            raise pickle.UnpicklingError(f"the file makes a tensor by {function!r}")
        return function(*arguments)


class _Ignored(_Rebuild):
    """NumPy's numbers and arrays (a checkpoint's accuracy, say): read over, never made."""

    __slots__ = ()

    def __call__(self, *_: Any) -> "_Ignored":
        return _Ignored()

    def __setstate__(self, _: object) -> None:
        pass


class _Bytes(_Rebuild):
    """`_codecs.encode`, by which older pickle protocols write bytes."""

    __slots__ = ()

    def __call__(self, text: str, encoding: str) -> bytes:
        if encoding not in ("latin1", "latin-1"):
            raise pickle.UnpicklingError(f"the file encodes text as {encoding!r}")
        return str(text).encode("latin-1")


_CALLS: dict[tuple[str, str], type[_Rebuild]] = {
    ("torch._utils", "_rebuild_tensor"): _RebuildTensor,
    ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor,
    ("torch._utils", "_rebuild_parameter"): _RebuildParameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _RebuildParameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _RebuildWithState,
    ("numpy", "dtype"): _Ignored,
    ("numpy.core.multiarray", "scalar"): _Ignored,
    ("numpy.core.multiarray", "_reconstruct"): _Ignored,
    ("numpy._core.multiarray", "scalar"): _Ignored,
    ("numpy._core.multiarray", "_reconstruct"): _Ignored,
    ("copyreg", "_reconstructor"): _Reconstruct,
    ("_codecs", "encode"): _Bytes,
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, **options: Any) -> None:
        super().__init__(file, **options)
        self._classes: dict[str, type] = {}

    def find_class(self, module: str, name: str, /) -> Any:
        """Never imports; see the module's docstring."""
        module = _PYTHON_2.get(module, module)
        if (module, name) in _CONTAINERS:
            return _CONTAINERS[module, name]
        if (module, name) in _CALLS:
            return _CALLS[module, name]()
        dtype = vars(torch).get(name) if module == "torch" else None
        if isinstance(dtype, torch.dtype):
            return dtype
        if (module, name) == ("builtins", "object"):
            return object
        full = f"{module}.{name}"
        if full not in self._classes:
            self._classes[full] = _Named(full, (StandIn,), {"__qualname__": full})
        return self._classes[full]

    # torch.load sets this after making the unpickler. Its own function would look at the source of
    # the classes that a file names, and could be led to write a file.
    @property
    def persistent_load(self) -> Any:
        """Takes ("module", class, ...) to the class, and leaves storages to torch."""

        def load(saved: Any) -> Any:
            if not isinstance(saved, tuple) or not saved or type(saved[0]) is not str:
                raise pickle.UnpicklingError(f"unknown kind of reference {saved!r}")
            if saved[0] == "module" and len(saved) > 1:
                return saved[1]
            if saved[0] != "storage":
                raise pickle.UnpicklingError(f"unknown kind of reference {saved[0]!r}")
            return self._torch_load(saved)

        return load

    @persistent_load.setter
    def persistent_load(self, function: Any) -> None:
        self._torch_load = function
