"""Which type each tensor of a GGUF file gets: the mixtures of llama.cpp, so that q4_k_m means here what it means there.

Types are named as in GGUF, in lower case. Source of the mixtures and of what replaces a type whose blocks do not fit a row:
`llama_tensor_get_type_impl` and `tensor_type_fallback` in llama.cpp's src/llama-quant.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass

HEAD, TABLE, POSITIONS = "output.weight", "token_embd.weight", "position_embd.weight"
BLOCKS = {"f32": 1, "f16": 1, "q4_0": 32, "q4_1": 32, "q5_0": 32, "q5_1": 32, "q8_0": 32, "q4_k": 256, "q5_k": 256, "q6_k": 256}
EXACT = ("f32", "f16", "q8_0")  # rounded to the nearest, whatever the importance; a head has no better type
INSTEAD = {"q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}  # where rows are no multiple of 256


@dataclass(frozen=True)
class Recipe:
    """A mixture of types.

    Attributes:
        file: its number among llama.cpp's file types.
        plain: the type of most matrices.
        better: the type of the matrices that make values, and of those that end the feed-forward part, in some blocks.
        values, outputs: which blocks those are: none, four (the first four), eighth (the first eighth), or some (the first and the last
            eighth, and every third between).
    """

    file: int
    plain: str
    better: str = ""
    values: str = "none"
    outputs: str = "none"

    @property
    def weighs(self) -> bool:
        """Whether an importance matrix changes what it gives."""
        return self.plain not in EXACT


RECIPES: dict[str, Recipe] = {
    "f32": Recipe(0, "f32"),
    "f16": Recipe(1, "f16"),
    "q8_0": Recipe(7, "q8_0"),
    "q6_k": Recipe(18, "q6_k"),
    "q5_k_m": Recipe(17, "q5_k", "q6_k", values="some", outputs="some"),
    "q4_k_m": Recipe(15, "q4_k", "q6_k", values="some", outputs="some"),
    "q4_k_s": Recipe(14, "q4_k", "q5_k", values="four", outputs="eighth"),
    "q4_0": Recipe(2, "q4_0"),
}


def choose_type(recipe: Recipe, name: str, shape: tuple[int, ...], layers: int, *, tied: bool, weighted: bool) -> tuple[str, str]:
    """The type that the recipe wants for a tensor, and the one that its rows allow.

    Args:
        name, shape: the tensor's, in GGUF. layers: how many blocks the model has.
        tied: whether the token table is the head too. weighted: whether there is an importance matrix.
    """
    if len(shape) < 2 or not name.endswith(".weight") or name.endswith("_norm.weight") or name == POSITIONS:
        return "f32", "f32"
    wanted = _wanted(recipe, name, shape[-1], layers, tied, weighted)
    if shape[-1] % BLOCKS[wanted] == 0:
        return wanted, wanted
    allowed = INSTEAD.get(wanted, "f16")
    return wanted, allowed if shape[-1] % BLOCKS[allowed] == 0 else "f16"


def _wanted(recipe: Recipe, name: str, columns: int, layers: int, tied: bool, weighted: bool) -> str:
    if name == HEAD or (tied and name == TABLE):
        if not recipe.weighs:
            return recipe.plain
        return "q6_k" if columns % BLOCKS[recipe.plain] == 0 else "q8_0"
    if not name.startswith("blk."):
        return recipe.plain
    number, part = int(name.split(".")[1]), name.split(".")[2]
    if part in ("attn_v", "attn_qkv"):
        return recipe.better if _is_better(recipe.values, number, layers) else recipe.plain
    if part == "ffn_down":
        if recipe.plain == "q4_0" and weighted and number < layers // 8:
            return "q4_1"
        return recipe.better if _is_better(recipe.outputs, number, layers) else recipe.plain
    return recipe.plain


def _is_better(which: str, number: int, layers: int) -> bool:
    """Whether a block's matrix is one of those with more bits."""
    eighth = layers // 8
    if which == "some":
        return number < eighth or number >= 7 * layers // 8 or (number - eighth) % 3 == 2
    return number < {"none": 0, "four": 4, "eighth": eighth}[which]
