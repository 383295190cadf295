"""Frame sizes that networks take, compared with spandrel's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsfdatrd.archs.size import SizeRequirements, round_up

sides = st.integers(1, 130)


@given(sides, st.integers(1, 64))
def test_padded_is_the_next_multiple(side: int, multiple: int) -> None:
    result = round_up(side, multiple)
    assert result % multiple == 0
    assert side <= result < side + multiple


@given(sides, sides, st.integers(1, 64), st.integers(0, 128), st.booleans())
def test_sizes_are_those_spandrel_asks_for(height: int, width: int, multiple: int, least: int, square: bool) -> None:
    spandrel = pytest.importorskip("spandrel")
    expected = spandrel.SizeRequirements(minimum=least, multiple_of=multiple, square=square)
    right, below = expected.get_padding(width, height)
    assert SizeRequirements(multiple, least, square).padded(height, width) == (height + below, width + right)
