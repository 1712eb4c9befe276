"""Plain values become dataclasses strictly, and every problem is reported at once, with its place."""

import json
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from saccade.errors import BundleError, ConfigError
from saccade.structure import structure, unstructure


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    radius: float
    spokes: int = 36

    def __post_init__(self) -> None:
        if self.radius <= 0:
            raise ConfigError(f"radius must be above 0, got {self.radius}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bicycle:
    name: str
    wheels: tuple[Wheel, ...]
    brakes: bool
    kind: Literal["road", "town"] = "town"
    place: tuple[int | str, ...] = ()
    colour: tuple[float, float, float] = (1.0, 0.0, 0.0)
    gears: dict[str, int] = field(default_factory=dict)
    rider: str | None = None
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Boat:
    kind: Literal["sloop", "yawl"]
    sails: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Horse:
    kind: Literal["horse"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Journey:
    by: Boat | Horse


WHOLE: dict[str, Any] = {"name": "red", "wheels": [{"radius": 0.3}, {"radius": 1, "spokes": 8}], "brakes": True}


def problems_of(values: object) -> str:
    with pytest.raises(BundleError) as caught:
        structure(values, Bicycle, source="bicycle.json", error=BundleError)
    return str(caught.value)


def test_values_become_the_dataclass() -> None:
    values = WHOLE | {"place": [1, "hall"], "gears": {"front": 2}, "rider": "Ada", "notes": {"any": [1, None]}}
    assert structure(values, Bicycle, source="", error=BundleError) == Bicycle(
        name="red",
        wheels=(Wheel(radius=0.3), Wheel(radius=1.0, spokes=8)),
        brakes=True,
        place=(1, "hall"),
        gears={"front": 2},
        rider="Ada",
        notes={"any": [1, None]},
    )


def test_a_dataclass_survives_json() -> None:
    whole = structure(WHOLE | {"place": ["hall", 3]}, Bicycle, source="", error=BundleError)
    assert structure(json.loads(json.dumps(unstructure(whole))), Bicycle, source="", error=BundleError) == whole


def test_an_integer_may_stand_for_a_float_and_nothing_else_is_converted() -> None:
    wheel = structure({"radius": 2}, Wheel, source="", error=BundleError)
    assert type(wheel.radius) is float
    for wrong in ({"spokes": 8.0}, {"spokes": True}, {"spokes": "8"}, {"radius": "0.3"}, {"radius": True}):
        with pytest.raises(BundleError, match=f"expected (int|float), got {next(iter(wrong.values()))!r}"):
            structure({"radius": 0.3} | wrong, Wheel, source="", error=BundleError)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"brakes": 1}, "expected bool, got 1 in brakes"),
        ({"brakes": None}, "expected bool, got None in brakes"),
        ({"name": 7}, "expected str, got 7 in name"),
        ({"rider": 7}, "expected str, got 7 in rider"),
        ({"kind": "boat"}, "expected 'road' or 'town', got 'boat' in kind"),
        ({"kind": ["town"]}, r"expected 'road' or 'town', got \['town'\] in kind"),
        ({"place": [1, 2.5]}, r"expected int or str, got 2\.5 in place\[1\]"),
        ({"place": "hall"}, "expected a list, got 'hall' in place"),
        ({"place": {"hall": 1}}, r"expected a list, got \{'hall': 1\} in place"),
        ({"colour": 3}, "expected a list, got 3 in colour"),
        ({"colour": [1, 0]}, r"expected 3 values, got \[1, 0\] in colour"),
        ({"colour": [1, 0, None]}, r"expected float, got None in colour\[2\]"),
        ({"gears": {"front": "2"}}, r"expected int, got '2' in gears\['front'\]"),
        ({"gears": [1]}, r"expected an object, got \[1\] in gears"),
        ({"notes": None}, "expected an object, got None in notes"),
        ({"wheels": 4}, "expected a list, got 4 in wheels"),
        ({"wheels": [7]}, r"expected an object, got 7 in wheels\[0\]"),
        ({"wheels": [{"radius": 1}, {}]}, r"'radius' is missing in wheels\[1\]"),
        ({"wheels": [{"radius": 1, "tyre": 2}]}, r"unknown key tyre in wheels\[0\]"),
        ({"wheels": [{"radius": -1}]}, r"radius must be above 0, got -1\.0 in wheels\[0\]"),
        ({"bell": 1, "light": 2}, "unknown keys bell, light"),
    ],
)
def test_a_problem_is_told_with_its_place(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(BundleError, match=f"^bicycle.json: {problem}$"):
        structure(WHOLE | change, Bicycle, source="bicycle.json", error=BundleError)


def test_every_problem_is_reported_at_once() -> None:
    message = problems_of(
        {
            "wheels": [{"spokes": "many"}, {"radius": -2}, {"radius": 1, "tyre": 0}],
            "brakes": "yes",
            "gears": {"front": None, "rear": 9.5},
            "bell": True,
        }
    )
    assert sorted(message.removeprefix("bicycle.json: ").split("; ")) == sorted(
        [
            "'name' is missing",
            "'radius' is missing in wheels[0]",
            "expected int, got 'many' in wheels[0].spokes",
            "radius must be above 0, got -2.0 in wheels[1]",
            "unknown key tyre in wheels[2]",
            "expected bool, got 'yes' in brakes",
            "expected int, got None in gears['front']",
            "expected int, got 9.5 in gears['rear']",
            "unknown key bell",
        ]
    )


@pytest.mark.parametrize("values", [None, 7, "text", [], [1], True], ids=repr)
def test_what_is_no_object_is_refused(values: object) -> None:
    assert problems_of(values) == f"bicycle.json: expected an object, got {values!r}"


def test_a_long_value_is_shown_in_short() -> None:
    assert len(problems_of(WHOLE | {"name": ["word"] * 10_000})) < 100


def test_the_error_is_of_the_kind_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"^run\.toml: unknown key bell$"):
        structure(WHOLE | {"bell": 1}, Bicycle, source="run.toml", error=ConfigError)


@pytest.mark.parametrize("by", [Boat(kind="sloop", sails=1), Boat(kind="yawl", sails=2), Horse(kind="horse")])
def test_the_kind_says_which_dataclass_it_is(by: Boat | Horse) -> None:
    journey = Journey(by=by)
    assert structure(unstructure(journey), Journey, source="", error=ConfigError) == journey


@pytest.mark.parametrize(
    ("by", "problem"),
    [
        ({"kind": "train"}, "expected kind 'sloop' or 'yawl' or 'horse', got 'train' in by"),
        ({"kind": ["horse"]}, r"expected kind 'sloop' or 'yawl' or 'horse', got \['horse'\] in by"),
        ({"sails": 1}, "expected kind 'sloop' or 'yawl' or 'horse', got none in by"),
        ("horse", "expected an object, got 'horse' in by"),
        ({"kind": "yawl"}, "'sails' is missing in by"),
        ({"kind": "horse", "sails": 1}, "unknown key sails in by"),
    ],
)
def test_a_kind_that_there_is_not_is_told_with_those_there_are(by: object, problem: str) -> None:
    with pytest.raises(ConfigError, match=f"^trip.toml: {problem}$"):
        structure({"by": by}, Journey, source="trip.toml", error=ConfigError)
