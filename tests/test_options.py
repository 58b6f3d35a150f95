from dataclasses import dataclass
from typing import Any

import pytest

from lightune.errors import InputError
from lightune.options import as_dict, build, check, format_spec, option, parse_spec


@dataclass(frozen=True)
class Baking:
    grams: int = option(500, "flour", low=1, high=2000)
    share: float = option(0.5, "water", above=0.0, high=1.0)
    oven: str = option("stone", "kind of oven", choices=("stone", "steel"))
    spices: tuple[str, ...] = option((), "what else")
    minutes: int | None = option(None, "time", low=1)
    salted: bool = option(False, "with salt")

    def __post_init__(self) -> None:
        check(self)


def test_defaults_and_good_values_pass() -> None:
    assert Baking(grams=1, share=1, oven="steel", minutes=None).share == 1  # a whole number serves as a float


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"grams": 0}, "grams is 0, expected at least 1."),
        ({"grams": 2001}, "grams is 2001, expected at most 2000."),
        ({"share": 0.0}, "share is 0.0, expected more than 0.0."),
        ({"share": float("nan")}, "share is nan, expected at most 1.0."),
        ({"grams": 2.5}, "grams is 2.5, expected int."),
        ({"grams": True}, "grams is True, expected int."),
        ({"salted": 1}, "salted is 1, expected bool."),
        ({"minutes": "ten"}, "minutes is 'ten', expected int."),
        ({"oven": "steal"}, "oven is 'steal', expected one of stone, steel. Did you mean 'steel'?"),
        ({"oven": "x"}, "oven is 'x', expected one of stone, steel."),
    ],
)
def test_bad_values_are_told_with_their_bounds(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        Baking(**values)
    assert str(caught.value) == message


def test_all_problems_come_at_once() -> None:
    with pytest.raises(InputError, match=r"grams is 0.*; share is 2.*; oven is 'tin'"):
        Baking(grams=0, share=2, oven="tin")


def test_build_names_unknown_keys_and_turns_lists_into_tuples() -> None:
    assert build(Baking, {"spices": ["anise", "fennel"]}, "bread").spices == ("anise", "fennel")
    with pytest.raises(InputError, match=r"unknown option 'gram' for bread; known: grams, .* Did you mean 'grams'\?"):
        build(Baking, {"gram": 3}, "bread")


def test_as_dict_leaves_out_none_and_gives_lists() -> None:
    assert as_dict(Baking(spices=("anise",))) == {"grams": 500, "share": 0.5, "oven": "stone", "spices": ["anise"], "salted": False}


@pytest.mark.parametrize(
    ("spec", "values"),
    [
        ("bread", {}),
        ("bread:grams=16,share=0.25", {"grams": 16, "share": 0.25}),
        ("bread: grams = 16 ", {"grams": 16}),
        ("bread:share=1e-05", {"share": 1e-05}),
        ("bread:spices=anise+fennel,salted=true", {"spices": ["anise", "fennel"], "salted": True}),
        ("bread:over-night=False", {"over_night": False}),
    ],
)
def test_specs_are_parsed(spec: str, values: dict[str, Any]) -> None:
    assert parse_spec(spec) == ("bread", values)


def test_a_spec_without_a_value_is_refused() -> None:
    with pytest.raises(InputError, match=r"'grams' in 'bread:grams' is not KEY=VALUE. Write bread:key=value"):
        parse_spec("bread:grams")


@pytest.mark.parametrize(
    "made", [Baking(), Baking(grams=7, share=0.125), Baking(spices=("anise", "fennel"), salted=True), Baking(minutes=9, share=1e-5)]
)
def test_format_spec_is_the_inverse_of_parse_spec(made: Baking) -> None:
    name, values = parse_spec(format_spec("bread", made))
    assert name == "bread"
    assert build(Baking, values, "bread") == made
