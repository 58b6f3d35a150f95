"""How many bytes a GGUF file of a smaller model will have, before there is one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lightune.exports.gguf.recipes import HEAD, RECIPES, TABLE, choose_type

Shapes = Mapping[str, tuple[int, ...]]  # of tensors, by their names in GGUF


def count_bytes(shapes: Shapes, kind: str, *, layers: int, neurons: float, tokens: int, tied: bool) -> int:
    """Bytes of all tensors in a file of a type, of a model whose blocks are those of another's first one.

    Args:
        shapes: the tensors of the model before. kind: the file's type, rounded by an importance matrix where it can be.
        layers: blocks that stay. neurons: the share of feed-forward neurons that stays. tokens: rows of the token table.
    """
    import gguf

    sizes = {item.name.lower(): gguf.GGML_QUANT_SIZES[item] for item in gguf.GGMLQuantizationType}
    recipe, total = RECIPES[kind], 0
    for name, (rows, columns) in _tensors(shapes, layers, neurons, tokens):
        shape = (columns,) if rows == 0 else (rows, columns)
        block, size = sizes[choose_type(recipe, name, shape, layers, tied=tied, weighted=recipe.weighs)[1]]
        total += max(rows, 1) * columns // block * size
    return total


def _tensors(shapes: Shapes, layers: int, neurons: float, tokens: int) -> Iterator[tuple[str, tuple[int, int]]]:
    """Every tensor of the smaller model: rows (0 of a vector) and columns."""
    for name, shape in shapes.items():
        rows, columns = (0, shape[0]) if len(shape) == 1 else (shape[0], shape[1])
        part = name.removeprefix("blk.0.")
        if name in (TABLE, HEAD):
            yield name, (tokens, columns)
        elif part == name:
            if not name.startswith("blk."):
                yield name, (rows, columns)
        else:
            wide = part.startswith(("ffn_up.", "ffn_gate."))
            cut = (round(rows * neurons) if wide else rows, round(columns * neurons) if part == "ffn_down.weight" else columns)
            yield from ((f"blk.{number}.{part}", cut) for number in range(layers))
