"""The emulation of half precision rounds like a GPU and reports where values overflow."""

import numpy as np
import pytest

from tests.graph.emulation import emulate
from vsfdatrd.graph.builder import Writer


def test_the_emulation_names_where_it_overflows() -> None:
    g = Writer("overflow", np.float16)
    x = g.cast("input", np.float32, np.float16)
    squares = g.op("Mul", x, x)
    out = g.op("Sqrt", squares)
    model = g.model((1, 4), g.cast(out, np.float16, np.float32), (1, 4))
    run = emulate(model, np.array([[1, 2, 255, 254]], np.float32))
    assert run.first_bad is None
    assert run.seen[squares].largest == 65024
    run = emulate(model, np.array([[1, 2, 256, 254]], np.float32))
    assert run.first_bad is not None
    assert (run.first_bad.name, run.first_bad.largest) == (
        squares,
        64512,
    )  # 254² = 64516; numbers of fp16 are 32 apart there
    model.graph.node[1].input[1] = "input"
    with pytest.raises(TypeError, match=r"Mul of torch.float16, torch.float32"):
        emulate(model, np.ones((1, 4), np.float32))


def test_the_emulation_rounds_results_not_sums() -> None:
    x = np.full((1, 4096), 1 + 2**-9, np.float32)
    g = Writer("sum", np.float16)
    half = g.cast("input", np.float32, np.float16)
    product = g.op("MatMul", half, g.constant(np.ones((4096, 1))))
    total = g.op("Add", product, g.constant([[1]]))
    model = g.model((1, 4096), g.cast(total, np.float16, np.float32), (1, 1))
    assert emulate(model, x).output.item() == 4104  # 4096 · (1 + 2⁻⁹) = 4104; numbers of fp16 are 4 apart there
