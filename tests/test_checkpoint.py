"""Weights files: what is found in sound ones, and what is said of all others."""

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save, save_file

from vsfdatrd.checkpoint import Description, load_model, network_names, open_checkpoint
from vsfdatrd.errors import CheckpointError
from vsfdatrd.nn.config import META
from vsfdatrd.nn.fdat_rd import FdatRd
from vsfdatrd.nn.layout import is_buffer
from vsfdatrd.weights_file import SafetensorsFile

type Tensors = dict[str, Any]
type Maker = Callable[..., Tensors]


@pytest.fixture(scope="module")
def tensors(make_tensors: Maker) -> Tensors:
    """Weights of a small FDAT-RD; its window bias, most of the file, is left out."""
    return make_tensors(groups=(("channel", "dictionary"),))


@pytest.fixture(scope="module")
def state(tensors: Tensors) -> dict[str, torch.Tensor]:
    """The same as torch tensors."""
    return {name: torch.from_numpy(values) for name, values in tensors.items()}


def _refused(path: Path) -> str:
    """What is said of a file that must be refused; it has to name it."""
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    said = str(caught.value)
    assert str(path) in said
    return said.replace(str(path), "FILE")


def _same(found: Mapping[str, Any], expected: Mapping[str, Any], tolerance: float = 0) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=tolerance, atol=0, err_msg=name)


# --- sound files -----------------------------------------------------------------------------------------------------


def test_every_fixture_is_described_and_read(shared: Path) -> None:
    index = json.loads((shared / "fixtures/index.json").read_text())
    for name, facts in index.items():
        path = shared / f"fixtures/{name}.safetensors"
        checkpoint = open_checkpoint(path)
        found = checkpoint.description
        assert (found.architecture, found.scale, found.dtype) == ("FDAT-RD", facts["config"]["scale"], "fp32"), name
        assert found.config is not None
        assert (found.multiple, found.minimum) == (30 * found.config.unshuffle, 0), name
        assert found.parameters == sum(p.numel() for p in checkpoint.network().parameters()), name
        _same(checkpoint.tensors(), load_file(path))


def test_shipping_size(shared: Path) -> None:
    found = open_checkpoint(shared / "weights/fdat_rd_medium_2x_standin.safetensors").description
    assert (found.parameters, found.dtype, found.scale, found.multiple) == (7_728_503, "fp16", 2, 60)
    assert found.sha256 == "d1e6dcf5017b4c2760994271649952d091a9d4474ec7d187ed01cf647b0507bd"
    assert Description.from_dict(json.loads(json.dumps(found.to_dict()))) == found


@pytest.mark.parametrize(("dtype", "name", "tolerance"), [
    ("float16", "fp16", 1e-3), ("bfloat16", "bf16", 1e-2), ("float32", "fp32", 0), ("float64", "fp64", 0),
])  # fmt: skip
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_every_precision(
    tmp_path: Path, tensors: Tensors, state: Tensors, dtype: str, name: str, tolerance: float, suffix: str
) -> None:
    from safetensors.torch import save_file as save_torch

    path = tmp_path / f"a{suffix}"
    kind = getattr(torch, dtype)
    converted = {key: (value if is_buffer(key) else value.to(kind)) for key, value in state.items()}
    if suffix == ".pth":
        torch.save(converted, path)
    else:
        save_torch(converted, path)
    checkpoint = open_checkpoint(path)
    assert checkpoint.description.dtype == name
    found = checkpoint.tensors()
    assert {key for key, values in found.items() if values.dtype != np.float32} == {META}
    exact = {key: (value if is_buffer(key) else value.float()).numpy() for key, value in converted.items()}
    _same(found, exact)
    np.testing.assert_allclose(found["conv_first.weight"], tensors["conv_first.weight"], rtol=tolerance, atol=1e-6)


def test_precisions_may_be_mixed_and_meta_may_be_a_fraction(tmp_path: Path, tensors: Tensors) -> None:
    mixed = tensors | {"conv_after.weight": tensors["conv_after.weight"].astype(np.float16)}
    mixed[META] = tensors[META].astype(np.float16)
    save_file(mixed, path := tmp_path / "a.safetensors")
    checkpoint = open_checkpoint(path)
    assert checkpoint.description.dtype == "fp16+fp32"
    network = checkpoint.network()
    assert network.get_buffer(META).tolist() == tensors[META].tolist()


def _wrapped(state: Tensors) -> Iterator[tuple[str, object]]:
    other = {name: torch.zeros_like(value) for name, value in state.items()}
    for key in ("params", "params_ema", "state_dict", "model", "net"):
        yield key, {key: state, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}}
    yield "averaged first", {"params": other, "params_ema": state}
    yield "averaged by name", {"net": other, "ema": state, "opt": {}, "step": 5}
    yield "twice", {"model": {"state_dict": state}}
    yield "only key", {"weights_of_the_generator": state}
    yield "unknown key", {"weights_of_the_generator": state, "epoch": 1, "log": ["a"]}
    yield "ordered", OrderedDict(state)
    for prefix in ("module.", "net_g.", "_orig_mod.", "module._orig_mod.", "my.own.prefix."):
        yield prefix, {f"{prefix}{name}": value for name, value in state.items()}
    yield "compiled inside", {name.replace("groups.0.", "groups.0._orig_mod."): value for name, value in state.items()}
    both = {f"net_d.{name}": value for name, value in list(other.items())[:3]}
    yield "with a discriminator", {"state_dict": {f"net_g.{name}": value for name, value in state.items()} | both}
    yield "parameters", {name: torch.nn.Parameter(v) if v.is_floating_point() else v for name, v in state.items()}


def test_weights_are_found_wherever_training_programs_put_them(
    tmp_path: Path, tensors: Tensors, state: Tensors
) -> None:
    for number, (what, tree) in enumerate(_wrapped(state)):
        path = tmp_path / f"{number}.pth"
        torch.save(tree, path)
        checkpoint = open_checkpoint(path)
        assert checkpoint.description.architecture == "FDAT-RD", what
        _same(checkpoint.tensors(), tensors)


def test_prefixes_in_safetensors(tmp_path: Path, tensors: Tensors) -> None:
    for number, prefix in enumerate(("params_ema.", "module.", "net_g.")):
        path = tmp_path / f"{number}.safetensors"
        zeros = {f"params.{name}": np.zeros_like(values) for name, values in tensors.items()}
        save_file({f"{prefix}{name}": values for name, values in tensors.items()} | zeros, path)
        if prefix == "params_ema.":
            _same(open_checkpoint(path).tensors(), tensors)
        save_file({f"{prefix}{name}": values for name, values in tensors.items()}, path)
        _same(open_checkpoint(path).tensors(), tensors)


def test_names_of_other_networks() -> None:
    assert network_names(["module.a.weight", "module.b"]) == {"a.weight": "module.a.weight", "b": "module.b"}
    assert network_names(["model.0.weight", "model.1.weight"]) == {
        "model.0.weight": "model.0.weight", "model.1.weight": "model.1.weight",
    }  # fmt: skip
    assert network_names(["params_ema.a", "params.a"]) == {"a": "params_ema.a"}
    assert network_names([]) == {}


def test_legacy_pth_and_names_that_mislead(tmp_path: Path, tensors: Tensors, state: Tensors) -> None:
    torch.save(state, path := tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    _same(open_checkpoint(path).tensors(), tensors)
    torch.save(state, path := tmp_path / "torch.safetensors")
    _same(open_checkpoint(path).tensors(), tensors)
    save_file(tensors, path := tmp_path / "safetensors.pth")
    _same(open_checkpoint(path).tensors(), tensors)
    save_file(tensors, path := tmp_path / "no suffix")
    _same(open_checkpoint(path).tensors(), tensors)


def test_network_has_the_weights_and_is_new_each_time(tmp_path: Path, tensors: Tensors) -> None:
    save_file(tensors, path := tmp_path / "a.safetensors")
    network = load_model(path)
    assert isinstance(network, FdatRd)
    assert not network.training
    _same({name: value.numpy() for name, value in network.state_dict().items()}, tensors)
    assert all(parameter.requires_grad for parameter in network.parameters())
    checkpoint = open_checkpoint(path)
    assert checkpoint.network() is not checkpoint.network()


def test_load_model_is_public(tiny_model: Path) -> None:
    import vsfdatrd

    assert isinstance(vsfdatrd.load_model(str(tiny_model)), FdatRd)


def test_identity_networks_are_exact(identity_1x: Path, identity_2x: Path) -> None:
    x = torch.rand(1, 3, 33, 47)
    with torch.inference_mode():
        assert torch.equal(load_model(identity_1x)(x), x)
        assert torch.equal(load_model(identity_2x)(x), x.repeat_interleave(2, -1).repeat_interleave(2, -2))


# --- what is remembered, and what is not imported --------------------------------------------------------------------


class _Memory:
    def __init__(self) -> None:
        self.kept: dict[str, str] = {}

    def recall(self, sha256: str) -> Mapping[str, Any] | None:
        return json.loads(self.kept[sha256]) if sha256 in self.kept else None

    def remember(self, sha256: str, description: Mapping[str, Any]) -> None:
        self.kept[sha256] = json.dumps(description)


def test_descriptions_are_remembered_by_content(
    tmp_path: Path, state: Tensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(state, path := tmp_path / "a.pth")
    memory = _Memory()
    first = open_checkpoint(path, memory=memory)
    assert memory.kept.keys() == {first.description.sha256}
    monkeypatch.setattr("vsfdatrd.checkpoint._describe", lambda *_: pytest.fail("it was looked at again"))
    assert open_checkpoint(path, memory=memory).description == first.description
    path.rename(moved := tmp_path / "b.pth")
    assert open_checkpoint(moved, memory=memory).description == first.description


@pytest.mark.parametrize("change", [{"scale": "2"}, {"config": 5}, {"sha256": "0" * 64}, {"config": {"heads": 1}}])
def test_memories_that_do_not_fit_are_ignored(tmp_path: Path, tensors: Tensors, change: dict[str, Any]) -> None:
    save_file(tensors, path := tmp_path / "a.safetensors")
    memory = _Memory()
    expected = open_checkpoint(path, memory=memory).description
    memory.kept[expected.sha256] = json.dumps(expected.to_dict() | change)
    assert open_checkpoint(path, memory=memory).description == expected
    memory.kept[expected.sha256] = "{}"
    assert open_checkpoint(path, memory=memory).description == expected


def test_no_torch_for_safetensors_nor_for_what_is_remembered(tmp_path: Path, tiny_model: Path, state: Tensors) -> None:
    torch.save(state, path := tmp_path / "a.pth")
    known = open_checkpoint(path).description.to_dict()
    (tmp_path / "known.json").write_text(json.dumps(known))
    script = f"""
import json, sys
from pathlib import Path
from vsfdatrd.checkpoint import open_checkpoint
open_checkpoint({str(tiny_model)!r}).tensors()
class Memory:
    def recall(self, sha256): return json.loads(Path({str(tmp_path / "known.json")!r}).read_text())
open_checkpoint({str(path)!r}, memory=Memory())
sys.exit(any(name in sys.modules for name in ("torch", "spandrel", "vapoursynth")))
"""
    assert subprocess.run([sys.executable, "-W", "error", "-c", script], timeout=60).returncode == 0


def test_a_file_that_changes_meanwhile(tmp_path: Path, make_tensors: Maker) -> None:
    groups = (("channel", "dictionary"),)
    save_file(make_tensors(1, groups=groups), path := tmp_path / "a.safetensors")
    checkpoint = open_checkpoint(path)
    save_file(make_tensors(2, groups=groups), path)
    os.utime(path, ns=(1, 1))
    for read in (checkpoint.tensors, checkpoint.network):
        with pytest.raises(CheckpointError, match="was changed while it was in use; run the script again"):
            read()
    path.unlink()
    with pytest.raises(CheckpointError, match="does not exist"):
        checkpoint.tensors()


# --- files that are no weights ---------------------------------------------------------------------------------------


def test_missing(tmp_path: Path) -> None:
    said = _refused(tmp_path / "no.pth")
    assert said == "the weights file 'FILE' does not exist; check the path, or give a name of the catalogue"
    with pytest.raises(CheckpointError, match="cannot be opened"):
        open_checkpoint("a\0b.pth")


def test_directory(tmp_path: Path) -> None:
    assert "is a directory; give the path of a .safetensors or .pth file in it" in _refused(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(path := tmp_path / "pipe.pth")
    assert "is a device or a pipe" in _refused(path)


def test_unreadable(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(tiny_model.read_bytes())
    opened = Path.open

    def refuse(self: Path, *arguments: Any) -> Any:  # what the system does to users who may not read it
        if self == path:
            raise PermissionError(13, "Permission denied")
        return opened(self, *arguments)

    monkeypatch.setattr(Path, "open", refuse)
    assert "cannot be read ([Errno 13] Permission denied); check its permissions" in _refused(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ""])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty; download it again"),
        (b"<!DOCTYPE html><html><title>Not Found</title></html>", "is a web page or an XML file, not weights; the dow"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "is a Git LFS pointer, not the weights; fetch"),
        (np.random.default_rng(3).bytes(5000), "is neither a safetensors nor a PyTorch file|is damaged: it announces"),
        (b"\0", "is neither a safetensors nor a PyTorch file|is damaged: it announces a header"),
    ],
    ids=["empty", "web page", "lfs", "random", "one byte"],
)
def test_other_content(tmp_path: Path, content: bytes, said: str, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    found = _refused(path)
    assert any(part in found for part in said.split("|"))


@pytest.mark.parametrize("content", [b"GGUF\3\0\0\0", b"\x89HDF\r\n", b"\x08\x07\x12\x07pytorch"])
def test_weights_of_other_programs(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(content + bytes(100))
    assert "; " in _refused(path) or "not an image network" in _refused(path)


# --- damaged safetensors ---------------------------------------------------------------------------------------------


def _with_header(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def _entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (b"{not json at all", "its header is no JSON"),
        (b'{"a":' + b"[" * 100_000, "its header is no JSON"),
        (b'{"a":' + b"9" * 5000 + b"}", "its header"),
        (b'{"\xff\xfe":1}', "its header is no JSON"),
        ({"a": 5}, "its header does not describe the tensor 'a'"),
        ({"a": {"dtype": "F32"}}, "its header does not describe the tensor 'a'"),
        ({"a": _entry(dtype="F8_E4M3", offsets=(0, 2))}, "stores 'a' as F8_E4M3; convert it to fp16"),
        ({"a": _entry(dtype=7)}, "its header does not describe the tensor 'a'"),
        ({"a": _entry(shape=(-2,))}, "has the shape [-2]"),
        ({"a": _entry(shape=("2",))}, "has the shape ['2']"),
        ({"a": _entry(shape=(True, 2))}, "has the shape [True, 2]"),
        ({"a": _entry(shape=(2.0,))}, "has the shape [2.0]"),
        ({"a": _entry(shape=(10**15,))}, "has the shape"),
        ({"a": _entry(shape=(1,) * 40)}, "has the shape"),
        ({"a": _entry(shape=(3,))}, "does not fill bytes 0 to 8"),
        ({"a": _entry(shape=(2**39,), offsets=(0, 2**41))}, "it is truncated"),
        ({"a": _entry(offsets=(8, 0))}, "does not fill bytes 8 to 0"),
        ({"a": _entry(offsets=(-8, 0))}, "does not fill bytes -8 to 0"),
        ({"a": _entry(offsets=(4, 12))}, "overlap others or leave a gap"),
        ({"a": _entry(), "b": _entry()}, "overlap others or leave a gap"),
        ({"a": _entry(), "b": _entry(offsets=(16, 24))}, "overlap others or leave a gap"),
        ({"a": _entry(shape=(1,), offsets=(0, 4))}, "followed by data that belong to no tensor"),
        ({"a": _entry(shape=(4,), offsets=(0, 16))}, "it is truncated: "),
        ({}, "followed by data"),
    ],
)  # fmt: skip
def test_header_that_is_wrong(tmp_path: Path, header: object, said: str) -> None:
    found = _refused(_with_header(tmp_path / "a.safetensors", header, bytes(8)))
    assert said in found
    assert "download it again" in found or "convert it" in found


@pytest.mark.parametrize("length", [0, 1, 10**6, 2**40, 2**63, 2**64 - 1])
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_header_length_that_is_absurd(tmp_path: Path, length: int, suffix: str) -> None:
    path = _with_header(tmp_path / f"a{suffix}", {"a": _entry()}, bytes(8), length)
    assert "header" in _refused(path) or "is neither" in _refused(path)


def test_lying_headers_allocate_nothing(tmp_path: Path) -> None:
    huge = {"a": _entry(shape=(2**20, 2**20), offsets=(0, 2**42))}
    paths = [_with_header(tmp_path / "a.safetensors", huge), _with_header(tmp_path / "b.safetensors", huge, b"", 2**35)]
    with (tmp_path / "c.safetensors").open("wb") as file:  # sparse: the file is as large as its length says
        file.write(struct.pack("<Q", 2**33) + b"{")
        file.truncate(2**33 + 8)
    tracemalloc.start()
    for path in paths:
        _refused(path)
    with pytest.raises(CheckpointError, match="header cannot be"):
        SafetensorsFile(tmp_path / "c.safetensors")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000


def test_no_tensors_at_all(tmp_path: Path) -> None:
    assert "holds no weights" in _refused(_with_header(tmp_path / "a.safetensors", {"__metadata__": {"a": "b"}}))
    torch.save({"epoch": 5}, path := tmp_path / "a.pth")
    assert "holds no weights" in _refused(path)
    torch.save([1, 2], path)
    assert "holds no weights" in _refused(path)


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_truncated_anywhere(tmp_path: Path, tensors: Tensors, state: Tensors, kind: str) -> None:
    path = tmp_path / "a.weights"
    if kind == "safetensors":
        save_file(tensors, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    for length in (*range(1, 24), 100, 600, 2000, len(whole) // 2, len(whole) - 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        os.utime(path, ns=(length, length))
        assert "; " in _refused(path), length


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), kind=st.sampled_from(["safetensors", "zip", "legacy"]))
def test_flipped_bytes_never_crash(
    tmp_path: Path, tensors: Tensors, state: Tensors, data: st.DataObject, kind: str
) -> None:
    if kind == "safetensors":
        content = bytearray(save(tensors))
        limit = 8 + int.from_bytes(content[:8], "little")
    else:
        torch.save(state, buffer := io.BytesIO(), _use_new_zipfile_serialization=kind == "zip")
        content = bytearray(buffer.getvalue())
        limit = 6000
    for place in data.draw(st.lists(st.integers(0, limit - 1), min_size=1, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    path = tmp_path / "a.weights"
    path.write_bytes(content)
    os.utime(path, ns=(data.draw(st.integers(0, 10**15)), 10**9 * data.draw(st.integers(0, 10**6))))
    try:
        open_checkpoint(path, any_channels=True).tensors()
    except CheckpointError as error:
        assert str(path) in str(error)  # noqa: PT017 - it may also load: a flipped bit in a value is still a value


# --- pickles ---------------------------------------------------------------------------------------------------------


class _Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.target),))


@pytest.mark.parametrize("how", ["zip", "legacy", "bare pickle 0", "bare pickle 2", "bare pickle 4", "bare pickle 5"])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, state: Tensors, how: str) -> None:
    ran, path = tmp_path / "ran", tmp_path / "a.pth"
    tree = {**state, "extra": _Payload(ran)}
    if how == "zip":
        torch.save(tree, path)
    elif how == "legacy":
        torch.save(tree, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps(_Payload(ran), protocol=int(how[-1])))
    said = _refused(path)
    assert not ran.exists()
    if how.endswith("0"):  # nothing tells such a file from any other text
        assert "is neither a safetensors nor a PyTorch file" in said
    elif how.endswith(("4", "5")):
        assert "was refused because it holds more than tensors" in said
    else:
        assert f"was refused because reading it would run code ({os.name}.mkdir)" in said
        assert "save its state_dict() as .safetensors" in said
    assert pickle.loads(pickle.dumps(_Payload(ran))) is None  # the payload does work
    assert ran.exists()


def test_whole_modules_are_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Conv2d(3, 3, 3), path := tmp_path / "a.pt")
    assert "would run code (torch.nn.modules.conv.Conv2d); save its state_dict()" in _refused(path)


def test_torchscript_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (("a/constants.pkl", b"\x80\x02)."), ("a/data.pkl", b"\x80\x02}."), ("a/version", b"3\n")):
            archive.writestr(name, content)
    assert "is a TorchScript program, which would run code" in _refused(path)


def test_archives_that_are_no_weights(tmp_path: Path, state: Tensors) -> None:
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "weights are elsewhere")
    assert "is a zip archive without PyTorch weights; unpack it" in _refused(path)


def test_compressed_archives_are_not_unpacked(tmp_path: Path, state: Tensors) -> None:
    torch.save(state, buffer := io.BytesIO())
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for record in old.infolist():
            new.writestr(record.filename, old.read(record))
    assert "has compressed parts, which PyTorch does not write" in _refused(path)


def test_tensors_that_claim_more_than_the_file_holds(tmp_path: Path, state: Tensors) -> None:
    torch.save(state | {"conv_after.weight": torch.zeros(1).expand(2**20, 2**20)}, path := tmp_path / "a.pth")
    assert "claim to hold 4,398," in _refused(path)


def test_sparse_tensors_are_not_weights(tmp_path: Path, state: Tensors) -> None:
    name = "conv_after.weight"
    torch.save(state | {name: state[name].to_sparse()}, path := tmp_path / "a.pth")
    assert f"lacks '{name}'" in _refused(path)


def test_pth_without_torch(tmp_path: Path, state: Tensors, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(state, path := tmp_path / "a.pth")
    monkeypatch.setattr("vsfdatrd.weights_file.find_spec", lambda name: None)
    assert "is in PyTorch's format; reading it needs PyTorch: pip install torch" in _refused(path)


# --- tensors that are no image network -------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_values_that_are_not_finite(tmp_path: Path, tensors: Tensors, value: float, suffix: str) -> None:
    broken = tensors | {"conv_after.weight": tensors["conv_after.weight"].copy()}
    broken["conv_after.weight"][3, 4, 1, 1] = value
    path = tmp_path / f"a{suffix}"
    if suffix == ".pth":
        torch.save({name: torch.from_numpy(values) for name, values in broken.items()}, path)
    else:
        save_file(broken, path)
    checkpoint = open_checkpoint(path)
    for read in (checkpoint.tensors, checkpoint.network):
        with pytest.raises(CheckpointError, match=r"values that are not finite numbers, in 'conv_after.weight'.*; use"):
            read()


def test_values_too_large_for_float32(tmp_path: Path, tensors: Tensors) -> None:
    save_file(tensors | {"conv_first.bias": np.full(32, 1e300)}, path := tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"not finite numbers, in 'conv_first.bias'"):
        load_model(path)


BERT = {
    f"encoder.layer.0.attention.self.{part}.{kind}": np.zeros((8, 8) if kind == "weight" else 8, np.float32)
    for part in ("query", "key", "value") for kind in ("weight", "bias")
}  # fmt: skip


def test_network_for_something_else(tmp_path: Path) -> None:
    pytest.importorskip("spandrel")
    save_file(BERT, path := tmp_path / "bert.safetensors")
    said = _refused(path)
    assert "is no image network that is known here (its tensors are encoder.layer.0.attention.self.key.bias, " in said
    assert "give the weights of an FDAT-RD or of an architecture spandrel supports" in said


def test_other_networks_without_spandrel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(BERT, path := tmp_path / "bert.safetensors")
    monkeypatch.setitem(sys.modules, "spandrel", None)
    assert "is not an FDAT-RD; other image networks need the package spandrel: pip install vsfdatrd[spandrel]" in (
        _refused(path)
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"conv_after.weight": None}, "is an incomplete FDAT-RD: it lacks 'conv_after.weight'; download it again"),
        ({"conv_first.weight": None}, "cannot be used: it looks like FDAT-RD but has no tensor 'conv_first.weight'"),
        ({"groups.0.blocks.0.n2.weight": None, "groups.0.blocks.0.n2.bias": None}, "blocks.0.n2.bias' and 1"),
        ({"surplus.weight": np.zeros(2, np.float32)}, "is no FDAT-RD that is known here: it also has 'surplus.weight'"),
        ({"conv_after.weight": np.zeros((32, 32, 1, 1), np.float32)}, "has shape (32, 32, 1, 1) where the others "),
        ({"conv_first.bias": np.zeros(0, np.float32)}, "its tensor 'conv_first.bias' of shape (0,) holds nothing"),
        ({"conv_first.bias": np.zeros(32, np.int32)}, "stores 'conv_first.bias' as int32; convert it to fp16"),
        ({META: np.array([3, 5, 2, 32, 0, 32, 4], np.uint8)}, "contradicts itself: its tensor 'upsampler.0.weight'"),
        ({META: np.array([3, 5, 2, 32, 3, 32, 4.5], np.float32)}, "holds no list of whole numbers"),
        ({META: np.array([3, 5, 2, 32, 3, 32, np.nan], np.float32)}, "not finite numbers"),
        ({META: np.array([[3]], np.uint8)}, "holds no list of whole numbers"),
        ({META: np.array([3, 4, 2, 32, 3, 30, 4], np.uint8)}, "its dysample tail needs a multiple of 4 channels"),
        ({META: np.array([3, 0, 2, 32, 3, 32, 4], np.uint8)}, "a plain convolution, which cannot enlarge 2 times"),
        ({META: np.array([3, 5, 4, 32, 3, 32, 4], np.uint8)}, "FDAT-RD: it lacks 'upsampler.2.bias' and "),
        ({"groups.0.blocks.0.attn.temp": np.ones((5, 1, 1), np.float32)}, "32 channels cannot be split over 5 "),
    ],
)  # fmt: skip
def test_fdat_rd_that_does_not_fit_together(tmp_path: Path, tensors: Tensors, change: Tensors, said: str) -> None:
    changed = {name: values for name, values in (tensors | change).items() if values is not None}
    save_file(changed, path := tmp_path / "a.safetensors")
    assert said in _refused(path)
