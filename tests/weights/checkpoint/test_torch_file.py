"""PyTorch files read without PyTorch: the same tensors as torch.load, for every protocol and type; malicious files."""

import argparse
import collections
import datetime
import enum
import io
import os
import pathlib
import pickle
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.artcnns import C_LUMA, random_tensors
from tests.weights.checkpoint.conftest import Tensors, refused
from vsfdatrd.checkpoint import open_checkpoint
from vsfdatrd.errors import CheckpointError
from vsfdatrd.weights.torch_file import TorchFile


class Color(enum.Enum):
    RED = 1


class Settings:
    """Settings object that a training program may store with the weights."""

    def __init__(self) -> None:
        self.rate = 1e-4
        self.place = Path("data")


def _read(path: Path) -> Tensors:
    file = TorchFile(path)
    return dict(file.read({name: name for name in file.entries}))


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("zipped", [True, False])
def test_every_protocol(tmp_path: Path, state: Tensors, tensors: Tensors, protocol: int, zipped: bool) -> None:
    path = tmp_path / "a.pth"
    torch.save({"params": state, "n": protocol}, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    result = open_checkpoint(path).tensors()
    assert result.keys() == tensors.keys()
    assert all(np.array_equal(result[name], values) for name, values in tensors.items())


def _views() -> dict[str, torch.Tensor]:
    base = torch.arange(120.0).reshape(4, 5, 6)
    return {
        "whole": base,
        "shared": base,
        "part": base[1:3, 2:],
        "columns": base[..., ::2],
        "turned": base.mT,
        "spread": base[:, :1, :1].expand(4, 3, 2),
        "number": torch.tensor(7.5),
        "empty": torch.zeros(0, 3),
        "channels_last": torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        "parameter": torch.nn.Parameter(torch.rand(3)),
        "flipped": torch.rand(3, 2).t(),
    }


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_lie_in_the_file_in_any_way(tmp_path: Path, zipped: bool) -> None:
    views = _views()
    views["parameter"].note = "of its own"  # type: ignore[attr-defined]
    torch.save(views, path := tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    result = _read(path)
    assert result.keys() == views.keys()
    for name, tensor in views.items():
        np.testing.assert_array_equal(result[name], tensor.detach().numpy(), err_msg=name)
        assert result[name].flags.c_contiguous


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("float64", "fp64"),
        ("float32", "fp32"),
        ("float16", "fp16"),
        ("bfloat16", "bf16"),
        ("int64", "int64"),
        ("float8_e4m3fn", "fp8_e4m3"),
        ("float8_e5m2", "fp8_e5m2"),
        ("int32", "int32"),
        ("int16", "int16"),
        ("int8", "int8"),
        ("uint8", "uint8"),
        ("bool", "bool"),
        ("uint16", "uint16"),
        ("uint32", "uint32"),
    ],
)
def test_every_type(tmp_path: Path, kind: str, name: str) -> None:
    from safetensors.torch import save_file

    values = torch.linspace(0 if name[0] in "ub" else -100, 100, 64).to(getattr(torch, kind))
    torch.save({"a": values}, path := tmp_path / "a.pth")
    save_file({"a": values}, other := tmp_path / "a.safetensors")
    for file in (TorchFile(path), _open(other)):
        assert file.entries["a"].dtype == name
        ((_, result),) = file.read({"a": "a"})
        expected = values.float() if values.is_floating_point() else values
        np.testing.assert_array_equal(result, expected.numpy())


def _open(path: Path) -> Any:
    from vsfdatrd.weights.format import open_weights

    return open_weights(path)


BESIDE: dict[str, object] = {
    "NumPy numbers": {"best": np.float64(31.5), "step": np.int64(7), "flag": np.bool_(True), "name": np.str_("a")},
    "NumPy arrays": {"history": np.zeros((3, 2)), "seeds": np.arange(3), "order": np.ones((2, 3), order="F")},
    "NumPy objects": [np.random.RandomState(0), np.dtype("f4"), np.array(["a", None], object)],
    "containers": [
        collections.defaultdict(int, a=1),
        collections.Counter("ab"),
        collections.deque([1]),
        {1, 2},
        frozenset((3,)),
        bytearray(3),
        b"bytes",
        1j,
        slice(1),
        range(3),
        type(None),
    ],
    "settings": [
        argparse.Namespace(a=1),
        Settings(),
        pathlib.PurePosixPath("a"),
        Color.RED,
        datetime.date(2026, 1, 2),
    ],
    "numbers": [2**70, -5, 1e300, None, True, float("nan")],
    "tensors that are no weights": [torch.zeros(2, dtype=torch.complex64), torch.zeros(2, 2).to_sparse()],
    "optimizer": torch.optim.Adam([torch.nn.Parameter(torch.zeros(2, 2))]).state_dict(),
    "random states": [torch.get_rng_state(), np.random.get_state()],
}


@pytest.mark.parametrize("what", BESIDE)
@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*sparse:UserWarning")
def test_what_is_beside_the_weights_does_not_matter(
    tmp_path: Path, state: Tensors, tensors: Tensors, what: str, protocol: int
) -> None:
    torch.save(
        {"beside": BESIDE[what], "params": state, "and": BESIDE[what]},
        path := tmp_path / "a.pth",
        pickle_protocol=protocol,
    )
    result = open_checkpoint(path).tensors()
    assert all(np.array_equal(result[name], values) for name, values in tensors.items())


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_weights_as_numpy_arrays(tmp_path: Path, tensors: Tensors, protocol: int) -> None:
    arrays = {name: np.asfortranarray(values) for name, values in tensors.items()}
    torch.save({"state_dict": arrays}, path := tmp_path / "a.pth", pickle_protocol=protocol)
    bare = tmp_path / "b.pth"
    bare.write_bytes(pickle.dumps(arrays, protocol=protocol))
    for file in (path, bare):
        result = open_checkpoint(file).tensors()
        assert all(np.array_equal(result[name], values) for name, values in tensors.items())


def _bomb(steps: bytes) -> bytes:
    """A file of torch.save's format with this pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + steps + b".")
        archive.writestr("a/data/0", bytes(64))
    return buffer.getvalue()


def _tensor(shape: bytes, strides: bytes, offset: bytes = b"K\0", count: bytes = b"K\x10") -> bytes:
    storage = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0" + b"0" + b"X\3\0\0\0cpu" + count + b"tQ"
    return b"X\1\0\0\0a" + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + offset + shape + strides + b"\x89}tRs"


def _text(text: bytes) -> bytes:
    return b"X" + len(text).to_bytes(4, "little") + text


TUPLES = b")" + b"2\x86" * 45
"""Tuples in tuples: printed, they would be 2^45 pairs of brackets."""
LONG_NUMBER = b"\x8b" + (4000).to_bytes(4, "little") + b"\x7f" * 4000


def _fan() -> bytes:
    """Dicts in dicts, each used forty times in the next."""
    steps = b"}q\0"
    for level in range(1, 7):
        steps += b"}q" + bytes([level])
        for i in range(40):
            steps += b"X\2\0\0\0%02d" % i + b"h" + bytes([level - 1]) + b"s"
    return steps


BOMBS: dict[str, tuple[bytes, str]] = {
    "shared dicts": (_fan(), "more entries than any weights file"),
    "tuples in tuples as a key": (b"})q\0" + b"h\0h\0\x86q\0" * 60 + b"K\1s", "no weights"),
    "a list in itself": (b"]q\0h\0a", "no weights"),
    "8 GB of zeros": (b"c__builtin__\nbytearray\n\x8a\5\0\0\0\0\2\x85R", "builtins.bytearray"),
    "a string many times": (
        b"X"
        + (10**6).to_bytes(4, "little")
        + b"a" * 10**6
        + b"q\0"
        + b"c_codecs\nencode\nq\1"
        + b"]"
        + b"h\1h\0X\6\0\0\0latin1\x86Ra" * 20_000,
        "no weights",
    ),
    "many steps": (b"]" + b"Na" * 1_100_000, "more than 2,000,000 steps"),
    "deep": (b"]" * 500_000 + b"a" * 499_999, "no weights"),
    "long numbers as keys": (
        b"}\x8b" + (10**6).to_bytes(4, "little") + b"\x7f" * 10**6 + b"q\x000" + b"h\0Ns" * 100_000,
        "no weights",
    ),
    "tuples in tuples as a type": (b"cnumpy\ndtype\n" + TUPLES + b"\x85R", "no weights"),
    "tuples in tuples as a side": (b"}" + _tensor(TUPLES + b"\x85", b"K\1\x85"), "has the shape (None,)"),
    "a long number as a side": (b"}" + _tensor(LONG_NUMBER + b"\x85", b"K\1\x85"), "has the shape (None,)"),
    "a long shape many times": (
        b"](" + b"N" * 500_000 + b"eq\0" + b"0}" + _tensor(b"h\0", b"h\0") * 20_000,
        "arguments that it does not take",
    ),
    "a long list of pairs many times": (
        _text(b"ab")
        + b"q\0]("
        + b"h\0" * 500_000
        + b"eq\1"
        + b"ccollections\nOrderedDict\nq\2"
        + b"h\2h\1\x85R0" * 50_000,
        "no weights",
    ),
    "long bytes as keys": (
        b"B" + (10**7).to_bytes(4, "little") + bytes(10**7) + b"q\1}q\2h\1}s](" + b"h\2" * 100_000 + b"e",
        "no weights",
    ),
    "long equal texts as keys": (
        _text(b"a" * 10**7) + b"q\0" + _text(b"a" * 10**7) + b"q\1}" + b"h\0Ns" + b"h\1Ns" * 100_000,
        "no weights",
    ),
    "a long name many times": (
        _text(b"a" * 10**7) + b"q\0]" + b"h\0h\0\x93a" * 50_000,
        "names something that is not text, or too long",
    ),
    "long flags many times": (
        b"}("
        + b"".join(b"J" + n.to_bytes(4, "little") + b"\x89" for n in range(200_000))
        + b"uq\1"
        + b"0}"
        + _tensor(b"K\1\x85", b"K\1\x85").replace(b"}t", b"}h\1t") * 20_000,
        "(torch.Tensor) instead of weights",
    ),
    "a tensor outside": (b"}" + _tensor(b"K\x11\x85", b"K\1\x85"), "are incomplete"),
    "a tensor before the beginning": (
        b"}" + _tensor(b"K\2\x85", b"K\1\x85", b"J\xff\xff\xff\xff"),
        "has an impossible position",
    ),
    "a step backwards": (b"}" + _tensor(b"K\2\x85", b"J\xff\xff\xff\xff\x85", b"K\4"), "has an impossible position"),
    "a shape that is none": (b"}" + _tensor(b"K\2N\x86", b"K\1K\1\x86"), "has the shape (2, None)"),
    "strides that are missing": (b"}" + _tensor(b"K\2K\2\x86", b"K\1\x85"), "has an impossible position"),
    "one value for all": (b"}" + _tensor(b"J\0\0\0\1\x85", b"K\0\x85"), "claim to hold 67,108,864"),
    "huge, and nothing": (b"}" + _tensor(b"(K\0J\0\0\0\x40J\0\0\0\x40t", b"(K\1K\1K\1t"), "has the shape (0, "),
    "arguments that do not fit": (b"ctorch._utils\n_rebuild_tensor_v2\nK\1\x85R", "arguments that it does not take"),
    "an empty stack": (b"0", "pickle is damaged"),
    "no value for a key": (b"}(K\1K\2K\3u", "has no value"),
    "an instruction of nobody": (b"\x82\1", "uses the instruction EXT1"),
}


@pytest.mark.parametrize("what", BOMBS)
def test_hostile_pickles_end_soon_and_small(tmp_path: Path, what: str) -> None:
    steps, output = BOMBS[what]
    (path := tmp_path / "a.pth").write_bytes(_bomb(steps))
    resource = pytest.importorskip("resource")
    begin, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert output in refused(path)
    assert time.process_time() - begin < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 << 10  # KiB


def _parts(change: Callable[[zipfile.ZipFile], None]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        change(archive)
    return buffer.getvalue()


def test_directories_that_lie(tmp_path: Path, state: Tensors) -> None:
    path = tmp_path / "a.pth"
    torch.save(state, path)
    content = bytearray(path.read_bytes())
    end = content.rindex(b"PK\5\6")
    start = int.from_bytes(content[end + 16 : end + 20], "little")
    first = bytearray(content)
    first[start + 42 : start + 46] = (10**6).to_bytes(4, "little")  # where the first part begins
    path.write_bytes(first)
    assert "; download it again" in refused(path)
    far = bytearray(content)  # the first part gets an offset of 64 bits, as in zip64
    name, extra = int.from_bytes(far[start + 28 : start + 30], "little"), b"\1\0\x08\0" + b"\xff" * 7 + b"\x7f"
    far[start + 30 : start + 32] = len(extra).to_bytes(2, "little")
    far[start + 42 : start + 46] = b"\xff" * 4
    far[start + 46 + name : start + 46 + name] = extra
    size = int.from_bytes(content[end + 12 : end + 16], "little") + len(extra)
    far[end + len(extra) + 12 : end + len(extra) + 16] = size.to_bytes(4, "little")
    path.write_bytes(far)
    assert "; download it again" in refused(path)
    long = bytearray(content)
    long[start + 20 : start + 28] = b"\xf0\xff\xff\x7f" * 2  # how long it is
    path.write_bytes(long)
    assert "; download it again" in refused(path)


def test_a_file_that_is_truncated_while_it_is_used_is_an_error(tmp_path: Path, state: Tensors) -> None:
    torch.save(state, path := tmp_path / "a.pth")
    file = TorchFile(path)
    os.truncate(path, 3000)
    with pytest.raises(CheckpointError, match="it ends within its tensor"):
        dict(file.read({name: name for name in state}))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_that_vanishes_while_it_is_used_is_an_error(tmp_path: Path, tensors: Tensors, suffix: str) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / f"a{suffix}"
    if suffix == ".pth":
        torch.save({name: torch.from_numpy(values) for name, values in tensors.items()}, path)
    else:
        save_file(tensors, path)
    file = _open(path)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"a\..* cannot be read .*No such file"):
        dict(file.read({name: name for name in tensors}))


def test_old_formats(tmp_path: Path, state: Tensors) -> None:
    import tarfile

    with tarfile.open(path := tmp_path / "a.pth", "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    assert "is in PyTorch's format from before 2017, which is not supported; save its state_dict()" in refused(path)
    torch.save(state, path)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(other := tmp_path / "b.pth", "w") as new:
        for record in old.infolist():
            new.writestr(record.filename, b"big" if record.filename.endswith("byteorder") else old.read(record))
    assert "with another byte order" in refused(other)


def test_torch_is_not_needed(tmp_path: Path, state: Tensors) -> None:
    torch.save({"params": state}, path := tmp_path / "a.pth")
    torch.save(state, old := tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    artcnn = {name: torch.from_numpy(values) for name, values in random_tensors(C_LUMA).items()}
    torch.save({"params_ema": artcnn, "params": artcnn}, luma := tmp_path / "artcnn.pth")
    script = f"""
import sys
sys.modules["torch"] = None
from vsfdatrd.checkpoint import open_checkpoint
for path in ({str(path)!r}, {str(old)!r}, {str(luma)!r}):
    print(len(open_checkpoint(path).tensors()))
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], timeout=250, capture_output=True, text=True)
    assert done.stdout.split() == [str(len(state))] * 2 + [str(len(artcnn))], done.stderr
