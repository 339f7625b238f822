"""The dense prediction cell that was published, the JSON in which it was, and the cell on MobileNet-v2.

The file is `dense_prediction_cell_branch5_top1_cityscapes.json` of tensorflow/models, research/deeplab/core: a list of branches with `op` (`conv` or
`pyramid_pooling`), `kernel`, `rate` (height, width), `grid_size`, and `input`, -1 for the backbone's feature, else the number of a branch from 0.
"""

import json
from collections.abc import Sequence
from typing import Any, cast

from segnas.arch import Architecture
from segnas.errors import InputError
from segnas.files import unplain
from segnas.kinds import Kind, kind
from segnas.search.draft import Draft
from segnas.search.spaces.backbone import mobilenet_v2
from segnas.search.spaces.dpc import POINT, WIDTH, Branch, finish, fixed_cell

BEST = (
    Branch(kind("separable", dilation=(1, 6)), 0),
    Branch(kind("separable", dilation=(18, 15)), 1),
    Branch(kind("separable", dilation=(6, 3)), 2),
    Branch(kind("separable", dilation=(1, 1)), 1),
    Branch(kind("separable", dilation=(6, 21)), 1),
)
"""The best cell of the paper's search (its figure 5 and the released file)."""


def dpc_mobilenet(classes: int) -> Architecture:
    """The best cell on MobileNet-v2 at 1/16: published with .36 M parameters and 3.00 B multiply-adds in the cell, and 75.38 % on Cityscapes val."""
    return published(BEST, classes)


def published(cell: Sequence[Branch], classes: int, *, output_stride: int = 16) -> Architecture:
    """A cell of 256 channels on MobileNet-v2 at 1/16, or at 1/8 with its rates doubled. InputError for any other stride."""
    if output_stride not in (8, 16):
        raise InputError(f"output stride {output_stride} was given; a dense prediction cell stands at 8 or 16")
    draft = Draft("dpc")
    feature = mobilenet_v2(draft, output_stride=output_stride)[-1]
    finish(draft, fixed_cell(draft, feature, cell, multiplier=16 // output_stride), classes, WIDTH)
    return draft.space().decode({}).architecture


def cell_from_json(text: str) -> tuple[Branch, ...]:
    """The cell that such a file holds; InputError says which branch is none, and what is allowed."""
    try:
        found: object = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"this is no JSON of a dense prediction cell: {error}") from None
    if not isinstance(found, list) or not found:
        raise InputError("a dense prediction cell is a list of branches; see dense_prediction_cell_branch5_top1_cityscapes.json")
    return tuple(_branch(number, value) for number, value in enumerate(cast(list[object], found)))


def json_from_cell(cell: Sequence[Branch]) -> str:
    """The cell in the published format, on one line."""
    return json.dumps([{**_written(branch.operation), "input": branch.source - 1} for branch in cell])


def _branch(number: int, value: object) -> Branch:
    where = f"branch {number} of a dense prediction cell"
    if not isinstance(value, dict):
        raise InputError(f"{where} is {value!r}; an object with op and input is needed")
    given = cast(dict[str, Any], value)
    source = unplain(int, given.get("input"), f"{where}: input")
    if not -1 <= source < number:
        raise InputError(f"{where} has input {source}; -1 (the backbone) to {number - 1} are allowed")
    match given.get("op"):
        case "conv" if given.get("kernel") in (1, [1, 1]):
            made = POINT
        case "conv" if given.get("kernel") in (3, [3, 3]):
            made = kind("separable", dilation=unplain(tuple[int, ...], given.get("rate"), f"{where}: rate"))
        case "pyramid_pooling":
            made = kind("grid_pool", grid=unplain(tuple[int, ...], given.get("grid_size"), f"{where}: grid_size"))
        case _:
            raise InputError(
                f"{where} has op {given.get('op')!r} with kernel {given.get('kernel')!r}; conv of 1 or 3, or pyramid_pooling, is allowed"
            )
    return Branch(made, source + 1)


def _written(operation: Kind) -> dict[str, Any]:
    if operation.op == "grid_pool":
        return {"op": "pyramid_pooling", "grid_size": list(operation.integers("grid"))}
    if operation.op == "conv":
        return {"kernel": 1, "rate": [1, 1], "op": "conv"}
    return {"kernel": 3, "rate": list(operation.integers("dilation")), "op": "conv"}
