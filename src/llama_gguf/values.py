"""Immutable values whose classes cost little to define.

A frozen dataclass writes the source of its methods and compiles it: 0.3 to 0.5 ms a class, together
a quarter of the work of a start. The subclasses of ``Value`` share its methods, and cost 6 µs each.
An object takes 1 µs to create: what each request or event creates, or what there are thousands of,
is a ``NamedTuple`` or a class with slots instead.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, ClassVar, Final, dataclass_transform

if TYPE_CHECKING:
    # Type checkers know it by its name, and check the changes.
    from dataclasses import replace as replace  # noqa: PLC0414  # it is public here
else:

    def replace(value, /, **changes):
        """A copy of *value*, with *changes* by field."""
        return type(value)(**vars(value) | changes)


_MISSING: Final = object()


@dataclass_transform(frozen_default=True)
class Value:
    """The base class of values: annotations declare their fields, as in a dataclass.

    Defaults are shared by all objects, so that nothing may change them. ``vars`` returns the values
    by field, in order. Fields that the argument ``hidden`` of the class names are not in its
    ``repr``.
    """

    __match_args__: ClassVar[tuple[str, ...]] = ()
    _defaults: ClassVar[Mapping[str, object]] = {}
    """By field, ``_MISSING`` among them."""
    _hidden: ClassVar[Collection[str]] = ()

    def __init_subclass__(cls, *, hidden: Collection[str] = ()) -> None:
        own, kinds = vars(cls), cls.__annotations__
        fields = [name for name, kind in kinds.items() if not kind.startswith("ClassVar")]
        cls._defaults = {**cls._defaults, **{name: own.get(name, _MISSING) for name in fields}}
        cls._hidden = (*cls._hidden, *hidden)
        cls.__match_args__ = tuple(cls._defaults)  # type: ignore[misc]  # no field

    def __init__(self, *values: object, **named: object) -> None:
        fields, count = vars(self), len(self._defaults)
        fields.update(self._defaults)
        fields.update(zip(self._defaults, values, strict=False))
        fields.update(named)
        if len(values) > count or len(fields) > count or _MISSING in fields.values():
            raise TypeError(f"{type(self).__name__} has the fields {', '.join(self._defaults)}")

    if not TYPE_CHECKING:  # by its signature, any name could be assigned

        def __setattr__(self, name, value):
            raise AttributeError(f"{type(self).__name__} is immutable")

        def __delattr__(self, name):
            raise AttributeError(f"{type(self).__name__} is immutable")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(tuple(vars(self).values()))

    def __repr__(self) -> str:
        shown = [
            f"{name}={value!r}" for name, value in vars(self).items() if name not in self._hidden
        ]
        return f"{type(self).__name__}({', '.join(shown)})"
