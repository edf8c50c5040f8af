"""`accelerate` and `restore`: fused operators inside somebody else's PPNet or TESNet."""

import copy
import copyreg
import functools
import inspect
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from torch import nn

from protofast.interop.contract import (
    FROM_FEATURES,
    METHODS,
    Formulas,
    check_behaviour,
    formulas_of,
    unwrapped,
)

Model = TypeVar("Model", bound=nn.Module)


class Accelerated:
    """What the generated subclasses share: they pickle as the class they stand for.

    A file written by `torch.save(model)` names the original class and loads where protofast is not
    installed; the state is the original's, nothing is added to it. Copies stay accelerated.
    """

    _protofast_plain: ClassVar[type[nn.Module]]
    _protofast_formulas: ClassVar[Formulas]

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(protocol)
        make, arguments, *rest = reduced
        own, plain = type(self), self._protofast_plain
        if make is copyreg.__newobj__ and arguments == (own,):  # type: ignore[attr-defined]
            # pickle insists on the object's own class after __newobj__, but not after this.
            make, arguments = copyreg._reconstructor, (plain, object, None)  # type: ignore[attr-defined]
        arguments = tuple(plain if item is own else item for item in arguments)
        return plain if make is own else make, arguments, *rest

    def __copy__(self) -> Any:
        own = getattr(super(), "__copy__", None)
        return _copied(self, lambda value: value, None) if own is None else _same_kind(self, own())

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        own = getattr(super(), "__deepcopy__", None)
        if own is not None:  # a descendant's, which knows better
            return _same_kind(self, own(memo))
        return _copied(self, lambda value: copy.deepcopy(value, memo), memo)


def accelerate(model: Model) -> Model:
    """Make a live PPNet or TESNet use the fused operators, in place; signatures stay as they are.

    `forward`, `push_forward` and `prototype_distances` give what they gave, with distances as
    direct differences in place of the expanded formula; the state dict, its keys, the parameters
    and optimisers made of them are untouched. `forward` never builds the map of distances; the
    other two return it, so they do. The model is recognised by its attributes (`prototype_vectors`,
    `add_on_layers`, `last_layer`, `epsilon`, `prototype_activation_function`), and each of its
    three methods is compared with the formulas on a few numbers first. That is done once: set a
    descendant's own switches before, not after.

    The instance gets a generated subclass of its class: `isinstance`, `copy.deepcopy`,
    `nn.DataParallel`, `DistributedDataParallel` and `torch.compile` work. `torch.save(model)`
    writes the original class; accelerate again after loading. A method called with arguments that
    the original does not have (a descendant's own) runs the descendant's code.

    A function as `prototype_activation_function` is applied to the least distances, as in the
    original, which takes for granted that it decreases. Gradients differ from the original's only
    where that clamps a distance at 0: its ReLU stops them there.

    Args:
        model: the network, or `nn.DataParallel` or `DistributedDataParallel` around it. One that is
            accelerated already stays so.

    Returns:
        The same object.

    Raises:
        TypeError: attributes are missing or of a wrong type; they are named.
        ValueError: the model computes something else; the message says which method or attribute.
    """
    network = unwrapped(model)
    plain = type(network)
    if issubclass(plain, Accelerated):
        return model
    formulas = formulas_of(network)
    own = [name for name in METHODS if name in network.__dict__]
    if own:
        raise ValueError(
            f"{', '.join(own)} is set on this very object and would go on to be used; delete it "
            "there first, or define it in a class"
        )
    check_behaviour(network, plain, formulas)
    network.__class__ = _subclass(plain, formulas)
    return model


def restore(model: Model) -> Model:
    """Undo `accelerate`, in place; a model that is not accelerated stays as it is.

    Args:
        model: as for `accelerate`.

    Returns:
        The same object.
    """
    network = unwrapped(model)
    kind = type(network)
    if issubclass(kind, Accelerated):
        network.__class__ = kind._protofast_plain
    return model


def plain_class(network: nn.Module) -> type[nn.Module]:
    """The class of a network as its author wrote it, accelerated or not."""
    kind = type(network)
    return kind._protofast_plain if issubclass(kind, Accelerated) else kind


def _subclass(plain: type[nn.Module], formulas: Formulas) -> type[nn.Module]:
    """The accelerated subclass of `plain`; made once, kept as long as something uses it."""
    for existing in plain.__subclasses__():
        if existing.__dict__.get("_protofast_plain") is plain:
            return existing
    members: dict[str, Any] = {
        "__module__": plain.__module__,
        "__qualname__": plain.__qualname__,
        "__doc__": plain.__doc__,
        "_protofast_plain": plain,
        "_protofast_formulas": formulas,
    }
    for name in METHODS:
        members[name] = _method(getattr(plain, name), FROM_FEATURES[name], formulas)
    return type(plain.__name__, (Accelerated, plain), members)


def _method(
    own: Callable[..., Any], from_features: Callable[..., Any], formulas: Formulas
) -> Callable[..., Any]:
    signature = inspect.signature(own)
    images_name = list(signature.parameters)[1]

    @functools.wraps(own)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and not kwargs:
            return from_features(formulas, self, self.conv_features(args[0]))
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        _, images, *others = bound.arguments.items()
        defaults = all(signature.parameters[name].default is value for name, value in others)
        if images[0] == images_name and defaults:
            return from_features(formulas, self, self.conv_features(images[1]))
        return own(self, *args, **kwargs)

    return method


def _same_kind(network: Any, copied: Any) -> Any:
    """A copy that a descendant made of itself, accelerated where it is of the same class."""
    if type(copied) is network._protofast_plain:
        copied.__class__ = type(network)
    return copied


def _copied(
    network: Accelerated, copy_value: Callable[[Any], Any], memo: dict[int, Any] | None
) -> Any:
    """A copy by way of what pickle would write, in the accelerated class again."""
    make, arguments, *rest = network.__reduce_ex__(4)
    copied = make(*copy_value(arguments))
    copied.__class__ = type(network)
    if memo is not None:
        memo[id(network)] = copied  # before the state, which may point back
    state = copy_value(rest[0]) if rest else None
    if state is not None and hasattr(copied, "__setstate__"):
        copied.__setstate__(state)
    elif state is not None:
        copied.__dict__.update(state)
    return copied
