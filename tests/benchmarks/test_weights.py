"""The weights that are measured."""

from pathlib import Path

import pytest

from benchmarks.weights import weights_file
from vsfdatrd.archs.fdat_rd import META_UPSAMPLE, variant_config
from vsfdatrd.checkpoint import open_checkpoint
from vsfdatrd.errors import FdatrdError
from vsfdatrd.weights import catalog


def test_random_weights_stand_in_for_those_that_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "weights_folders", lambda: (tmp_path / "absent", tmp_path / "nowhere"))
    file, trained = weights_file("small", tmp_path)
    again, _ = weights_file("small", tmp_path)
    assert file == again
    assert open_checkpoint(file).descriptor.scale == 2
    assert not trained
    assert weights_file("my.safetensors", tmp_path) == (Path("my.safetensors"), True)
    with pytest.raises(FdatrdError, match="nowhere"):
        weights_file("nowhere", tmp_path)


def test_what_is_measured_has_all_parts_at_work(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    file, trained = weights_file("medium", tmp_path)
    assert trained
    assert open_checkpoint(file).descriptor.config == variant_config("medium"), "blocks are missing"
    assert all((values != 0).mean() > 0.999 for name, values in load_file(file).items() if name != META_UPSAMPLE)
    assert weights_file("medium", tmp_path)[0] == weights_file("dvd", tmp_path)[0] == file
