import dataclasses
import tomllib
from pathlib import Path

import pytest

from lightune.errors import InputError
from lightune.recipes import SECTIONS, TASK_NAMES, DataOptions, Recipe, TrainOptions, format_recipe, read_recipe, resolve
from lightune.tasks import GENERATIVE, TASKS


def test_flags_win_over_the_file_and_the_file_over_defaults() -> None:
    values = {"model": "bert", "train": {"epochs": 2.0, "seed": 5}, "data": {"text": "body"}}
    recipe = resolve(values, {"epochs": 4.0, "label": "kind", "method": "head", "rate": None})
    assert (recipe.model, recipe.method, recipe.train.epochs, recipe.train.seed, recipe.train.rate) == ("bert", "head", 4.0, 5, None)
    assert (recipe.data.text, recipe.data.label) == ("body", "kind")
    assert recipe.train.batch_size == TrainOptions().batch_size


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(),
        Recipe(method="lora:rank=4", to=("onnx", "onnx-int8"), pooling="cls"),
        Recipe(
            data=DataOptions(train='C:\\a "b" ünï.csv', delimiter="\t", limit=10), train=TrainOptions(rate=1e-5, patience=2, epochs=0.5)
        ),
    ],
)
def test_a_recipe_survives_toml(recipe: Recipe) -> None:
    assert resolve(tomllib.loads(format_recipe(recipe)), {}) == recipe


def test_a_whole_recipe_can_be_overridden_by_flags() -> None:
    recipe = Recipe(method="head", train=TrainOptions(seed=3))
    changed = resolve(dataclasses.asdict(recipe), {"epochs": 2.0})
    assert changed == dataclasses.replace(recipe, train=TrainOptions(seed=3, epochs=2.0))


@pytest.mark.parametrize(
    ("values", "flags", "message"),
    [
        ({"modell": "bert"}, {}, r"Unknown option 'modell' in the recipe. Did you mean 'model'\?"),
        ({}, {"epoch": 3}, r"Unknown option 'epoch' in the recipe. Did you mean 'epochs'\?"),
        ({"train": {"epoch": 3}}, {}, r"unknown option 'epoch' for \[train\].*Did you mean 'epochs'\?"),
        ({"train": {"epochs": -1.0}}, {}, r"epochs is -1.0, expected more than 0"),
        ({"data": "reviews.csv"}, {}, r"data is 'reviews.csv' in the recipe, expected a table. Write \[data\]"),
        ({"to": "onnx"}, {}, r"to is 'onnx', expected tuple"),
        ({}, {"schedule": "cosin"}, r"schedule is 'cosin', expected one of .* Did you mean 'cosine'\?"),
    ],
)
def test_mistakes_are_told(values: dict, flags: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve(values, flags)


def test_a_recipe_file_that_is_missing_or_broken_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no recipe file"):
        read_recipe(tmp_path / "none.toml")
    (tmp_path / "broken.toml").write_text("model = \n")
    with pytest.raises(InputError, match=r"is not valid TOML: .*line 1"):
        read_recipe(tmp_path / "broken.toml")


def test_every_option_has_help_and_its_own_name() -> None:
    names = [item.name for cls in (Recipe, *SECTIONS.values()) for item in dataclasses.fields(cls) if item.name not in SECTIONS]
    assert len(names) == len(set(names))
    for cls in SECTIONS.values():
        assert all(item.metadata["help"] for item in dataclasses.fields(cls))


def test_the_tasks_that_can_be_asked_for_are_those_that_exist() -> None:
    assert set(TASK_NAMES) == set(TASKS) | set(GENERATIVE)
