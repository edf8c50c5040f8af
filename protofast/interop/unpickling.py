"""Reading what `torch.save` wrote without running anything that the file says.

A pickle is a program: it names functions and calls them. Here no name in the file is ever imported.
Tensors, parameters and plain containers are rebuilt by functions of ours; every other name becomes
an empty class of that name, whose instances hold the attributes found in the file. So a whole
module can be read where its code does not exist. Calling a name is an error that says which.

The unpickler is Python's own in Python: the one in C makes room for as many objects as the file
says there will be, before there is one.
"""

import math
import pickle
from collections import OrderedDict
from pickle import UnpicklingError
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor, nn

_STORAGES = frozenset(
    f"{kind}Storage"
    for kind in (
        *("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool"),
        *("ComplexDouble", "ComplexFloat"),
    )
)
_build: Any = pickle._Unpickler.dispatch[pickle.BUILD[0]]
_MOST_EXPANDED = 2**24  # elements of a tensor that repeats those of its storage
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


class _Named(type):
    """Type of the stand-in classes: they can neither be called nor changed by the file."""

    def __call__(cls, *args: object, **kwargs: object) -> NoReturn:
        raise UnpicklingError(
            f"the file calls {cls.__qualname__}, which a checkpoint of tensors and modules has no "
            "need of; nothing was run. Save the model's state_dict() where the file comes from"
        )

    def __setattr__(cls, name: str, value: object) -> NoReturn:
        raise UnpicklingError(f"the file changes the class {cls.__qualname__}")


class StandIn(metaclass=_Named):
    """An object of a class that is not known here, with the attributes that the file gives it."""

    def __new__(cls, *args: object) -> "StandIn":  # noqa: D102
        if args:
            cls()  # raises: a module is made without arguments
        return object.__new__(cls)

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, dict):
            raise UnpicklingError(
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


def _check_inside(
    storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...]
) -> None:
    """Refuse a tensor that reaches out of its storage, for which torch would enlarge it."""
    if not isinstance(storage, torch.storage.TypedStorage):
        raise UnpicklingError("the file makes a tensor of something else than a storage")
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or any(type(n) is not int or n < 0 for n in numbers):
        raise UnpicklingError("the file makes a tensor whose sizes and strides are none")
    there = storage._untyped_storage.nbytes() // storage.dtype.itemsize
    count = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if (count and last >= there) or count > max(there, _MOST_EXPANDED):
        raise UnpicklingError(
            f"the file makes a tensor {list(size)} of a storage of {there} elements"
        )


class _RebuildTensor(_Rebuild):
    __slots__ = ()

    def __call__(self, storage: Any, offset: int, size: Any, stride: Any, *rest: Any) -> Tensor:
        _check_inside(storage, offset, tuple(size), tuple(stride))
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
            raise UnpicklingError(f"the file makes an object of a {type(cls).__name__}")
        made: Any = cls
        instance: StandIn = made.__new__(made)
        return instance


class _RebuildWithState(_Rebuild):
    """A tensor that had attributes of its own, which are dropped."""

    __slots__ = ()

    def __call__(self, function: Any, _kind: Any, arguments: Any, _state: Any) -> Tensor:
        if not isinstance(function, (_RebuildTensor, _RebuildParameter)):
            raise UnpicklingError(f"the file makes a tensor by a {type(function).__name__}")
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
            raise UnpicklingError("the file encodes text as something else than latin1")
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


class Unpickler(pickle._Unpickler):
    """Reads one pickle; `persistent_load` must be set to what makes storages."""

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]

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
        if module == "torch" and name in _STORAGES:
            return torch.serialization.StorageType(name)
        if (module, name) == ("builtins", "object"):
            return object
        full = f"{module}.{name}"
        if full not in self._classes:
            self._classes[full] = _Named(full, (StandIn,), {"__qualname__": full})
        return self._classes[full]

    def load_build(self) -> None:
        """Objects take attributes; a tensor would take another storage, unchecked."""
        if isinstance(self.stack[-2], (Tensor, type)):
            raise UnpicklingError(f"the file changes a {type(self.stack[-2]).__name__}")
        _build(self)

    dispatch[pickle.BUILD[0]] = load_build

    def load_bytearray8(self) -> NoReturn:
        """No checkpoint has one, and Python makes room for it before it looks for its bytes."""
        raise UnpicklingError("the file holds a bytearray")

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8

    def check_storage(self, saved: Any) -> None:
        """Raise UnpicklingError for a storage that is not to be made."""

    # torch.load sets this after making the unpickler. Its own function would look at the source of
    # the classes that a file names, and could be led to write a file.
    @property
    def persistent_load(self) -> Any:
        """Takes ("module", class, ...) to the class, and leaves storages to whoever set this."""

        def load(saved: Any) -> Any:
            if not isinstance(saved, tuple) or not saved or type(saved[0]) is not str:
                raise UnpicklingError(f"unknown kind of reference: a {type(saved).__name__}")
            if saved[0] == "module" and len(saved) > 1:
                return saved[1]
            if saved[0] != "storage":
                raise UnpicklingError(f"unknown kind of reference {saved[0]!r}")
            self.check_storage(saved)
            return self._load_storage(saved)

        return load

    @persistent_load.setter
    def persistent_load(self, function: Any) -> None:
        self._load_storage = function
