from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import pytest

from llama_gguf.values import Value, replace

SECRET = "sk-Zq8vN2xLw5TfR7mB"


class Point(Value):
    x: int
    y: int = 2
    notes: Mapping[str, str] = {}
    origin: ClassVar[str] = "here"

    @property
    def sum(self) -> int:
        return self.x + self.y


class Login(Value, hidden=("password",)):
    user: str
    password: str


class Named(Point):
    name: str = "P"


class Empty(Value):
    pass


def double(number: int) -> int:
    return 2 * number


class Work(Value):
    run: Callable[[int], int] = double


def test_the_fields_are_given_by_position_or_name_and_have_defaults() -> None:
    assert vars(Point(1)) == {"x": 1, "y": 2, "notes": {}}
    assert vars(Point(1, 3, notes={"a": "b"})) == {"x": 1, "y": 3, "notes": {"a": "b"}}
    assert Point(y=4, x=3).sum == 7
    assert vars(Empty()) == {}


def test_fields_stay_in_their_order() -> None:
    assert [*vars(Point(notes={}, y=1, x=2))] == ["x", "y", "notes"]


@pytest.mark.parametrize(
    ("values", "named"),
    [((), {}), ((), {"y": 1}), ((1,), {"z": 1}), ((), {"y": 1, "z": 1}), ((1, 2, {}, 3), {})],
)
def test_a_missing_and_an_unknown_field_are_errors(
    values: tuple[Any, ...], named: dict[str, Any]
) -> None:
    with pytest.raises(TypeError, match="Point has the fields x, y, notes"):
        Point(*values, **named)


def test_a_value_does_not_change() -> None:
    point = Point(1)

    with pytest.raises(AttributeError, match="Point is immutable"):
        point.x = 2  # type: ignore[misc]
    with pytest.raises(AttributeError, match="Point is immutable"):
        del point.x
    with pytest.raises(AttributeError, match="Point is immutable"):
        point.z = 2  # type: ignore[attr-defined]
    assert point == Point(1)


def test_a_replaced_field_is_that_of_a_copy() -> None:
    point = Point(1, notes={"a": "b"})

    assert replace(point, y=5) == Point(1, 5, {"a": "b"})
    assert replace(point) == point == Point(1, 2, {"a": "b"})
    with pytest.raises(TypeError, match="Point has the fields"):
        replace(point, z=1)  # type: ignore[call-arg]


def test_values_are_equal_if_class_and_fields_are() -> None:
    assert Login("a", "b") == Login(password="b", user="a")
    assert hash(Login("a", "b")) == hash(Login(password="b", user="a"))
    assert Login("a", "b") != Login("a", "c")
    assert {Login("a", "b"), Login("a", "b")} == {Login("a", "b")}
    pair: object = ("a", "b")
    assert Login("a", "b") != pair
    assert Point(1) != Named(1)


def test_what_is_hidden_is_not_printed() -> None:
    assert repr(Point(1)) == "Point(x=1, y=2, notes={})"
    assert repr(Login("a", SECRET)) == "Login(user='a')"


def test_fields_are_inherited() -> None:
    assert repr(Named(1, name="Q")) == "Named(x=1, y=2, notes={}, name='Q')"


def test_a_function_can_be_a_default() -> None:
    assert Work().run(2) == 4
    assert Work(lambda number: number).run(2) == 2


def test_a_value_can_be_matched() -> None:
    match Point(1, 3):
        case Point(x, 3):
            found = x
    assert found == 1


def test_a_value_can_be_copied() -> None:
    point = Point(1, notes={"a": "b"})

    assert copy.deepcopy(point) == copy.copy(point) == point
