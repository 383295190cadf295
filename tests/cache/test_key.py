"""Every property that distinguishes engines is part of the key."""

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cache.conftest import KEY, Builder, read
from vsfdatrd.cache.engine_cache import EngineCache
from vsfdatrd.cache.manifest import Key


def test_digest_is_fixed() -> None:
    """Changing how keys are hashed makes every user rebuild: not by accident."""
    assert KEY.digest == "05c99514fdf863663f3427956109ef5d5b004702dbdfd212365bfdf2568adf55"


@pytest.mark.parametrize("name", [f.name for f in fields(Key)])
def test_every_field_counts(name: str, store: EngineCache) -> None:
    builder = Builder()
    store.open(KEY, builder, read)
    store.open(replace(KEY, **{name: "another"}), builder, read)
    assert builder.count == 2


@given(st.lists(st.text(max_size=8), min_size=7, max_size=7), st.lists(st.text(max_size=8), min_size=7, max_size=7))
def test_different_keys_differ(one: list[str], other: list[str]) -> None:
    assert (Key(*one).digest == Key(*other).digest) == (one == other)
