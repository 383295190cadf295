"""ONNX files with unusual structures: functions, branches, loops, dynamic axes, cropped borders, links. All double."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from vsfdatrd.archs.onnx import OnnxConfig
from vsfdatrd.archs.onnx_checks import read_model
from vsfdatrd.backends.openvino.probe import describe
from vsfdatrd.errors import CheckpointError
from vsfdatrd.graph.adapt_io import wrap_io

type Planes = NDArray[np.float32]

node, value = helper.make_node, helper.make_tensor_value_info
X, Y = (value(name, TensorProto.FLOAT, [1, 3, f"{name}h", f"{name}w"]) for name in "xy")
CONSTANTS = {
    "s": np.array([1, 1, 2, 2], np.float32),
    "yes": np.array(True),
    "two": np.array(2),
    "one": np.array(1, np.float32),
    "w": np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1),
}


def doubled(source: str, target: str, scales: str = "s") -> onnx.NodeProto:
    return node(
        "Resize",
        [source, "", scales],
        [target],
        mode="nearest",
        nearest_mode="floor",
        coordinate_transformation_mode="asymmetric",
    )


def save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto] = (X,),
    functions: Sequence[onnx.FunctionProto] = (),
    output: onnx.ValueInfoProto = Y,
    **constants: NDArray[Any],
) -> Path:
    tensors = [numpy_helper.from_array(values, name) for name, values in (CONSTANTS | constants).items()]
    graph = helper.make_graph(list(nodes), "g", list(inputs), [output], tensors)
    domains = [
        helper.make_opsetid("", 17),
        *(helper.make_opsetid(domain, 1) for domain in {f.domain for f in functions}),
    ]
    model = helper.make_model(graph, functions=list(functions), opset_imports=domains, ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def found(path: Path) -> OnnxConfig:
    """Open the file, run a random picture, check the result, and return the detected configuration."""
    config = OnnxConfig(**describe(path, None, None)["config"])
    height, width = config.fixed_size or (60, 80)
    model = wrap_io(read_model(path)[0], config, height, width)
    picture = np.random.default_rng(0).random((config.in_channels, height, width), np.float32)
    compiled = openvino.Core().compile_model(
        openvino.Core().read_model(model.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    result: Planes = compiled(picture[None])[0][0]
    np.testing.assert_allclose(result, picture.repeat(2, 1).repeat(2, 2), atol=1e-5)
    assert config.scale == 2
    return config


def branch(name: str, source: str = "x") -> onnx.GraphProto:
    return helper.make_graph([node("Conv", [source, "w"], [name])], name, [], [value(name, TensorProto.FLOAT, None)])


def _function(name: str, body: Sequence[onnx.NodeProto], domain: str = "pkg") -> onnx.FunctionProto:
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("pkg", 1)]
    return helper.make_function(domain, name, ["a", "s"], ["b"], list(body), domains)


def function(path: Path) -> Path:
    return save(path, [node("Up", ["x", "s"], ["y"], domain="pkg")], functions=[_function("Up", [doubled("a", "b")])])


def functions_in_functions(path: Path) -> Path:
    inner = _function("Inner", [doubled("a", "b")])
    outer = _function("Outer", [node("Relu", ["a"], ["r"]), node("Inner", ["r", "s"], ["b"], domain="pkg")])
    calls = [node("Outer", ["x", "s"], ["k"], domain="pkg"), node("Identity", ["k"], ["y"])]
    return save(path, calls, functions=[outer, inner])


def function_called_like_an_operator(path: Path) -> Path:
    own = _function("Relu", [doubled("a", "b")], "mine")
    return save(path, [node("Relu", ["x", "s"], ["y"], domain="mine")], functions=[own])


def function_with_a_branch(path: Path) -> Path:
    then, other = (
        helper.make_graph([doubled("a", name)], name, [], [value(name, TensorProto.FLOAT, None)]) for name in "pq"
    )
    body = [
        node("Constant", [], ["c"], value=helper.make_tensor("c", TensorProto.BOOL, [], [True])),
        node("If", ["c"], ["b"], then_branch=then, else_branch=other),
    ]
    return save(path, [node("Up", ["x", "s"], ["y"], domain="pkg")], functions=[_function("Up", body)])


def weights_in_branches(path: Path) -> Path:
    choose = node("If", ["yes"], ["k"], then_branch=branch("p"), else_branch=branch("q"))
    return save(path, [choose, doubled("k", "y")])


def branches_in_branches(path: Path) -> Path:
    inner = node("If", ["yes"], ["i"], then_branch=branch("p"), else_branch=branch("q"))
    then = helper.make_graph([inner, doubled("i", "t")], "then", [], [value("t", TensorProto.FLOAT, None)])
    other = helper.make_graph([doubled("x", "e")], "else", [], [value("e", TensorProto.FLOAT, None)])
    return save(path, [node("If", ["yes"], ["y"], then_branch=then, else_branch=other)])


def condition_from_the_picture(path: Path) -> Path:
    nodes = [
        node("ReduceMean", ["x"], ["m"], keepdims=0),
        node("Less", ["m", "one"], ["c"]),
        node("If", ["c"], ["k"], then_branch=branch("p"), else_branch=branch("q")),
        doubled("k", "y"),
    ]
    return save(path, nodes)


def loop(path: Path) -> Path:
    dims: list[str | int | None] = [1, 3, "p", "q"]
    body = helper.make_graph(
        [node("Conv", ["in", "w"], ["out"]), node("Identity", ["go"], ["still"])],
        "body",
        [value("i", TensorProto.INT64, []), value("go", TensorProto.BOOL, []), value("in", TensorProto.FLOAT, dims)],
        [value("still", TensorProto.BOOL, []), value("out", TensorProto.FLOAT, None)],
    )
    return save(path, [node("Loop", ["two", "yes", "x"], ["k"], body=body), doubled("k", "y")])


def scan(path: Path) -> Path:
    body = helper.make_graph(
        [node("Mul", ["row", "one"], ["out"])],
        "body",
        [value("row", TensorProto.FLOAT, None)],
        [value("out", TensorProto.FLOAT, None)],
    )
    nodes = [node("Scan", ["x"], ["k"], body=body, num_scan_inputs=1, scan_input_axes=[2], scan_output_axes=[2])]
    return save(path, [*nodes, doubled("k", "y")])


def names_of_our_own(path: Path) -> Path:
    nodes = [node("Conv", ["input", "w"], ["output"], name="output"), doubled("output", "end/cropped")]
    return save(
        path,
        nodes,
        [value("input", TensorProto.FLOAT, [1, 3, "h", "w"])],
        output=value("end/cropped", TensorProto.FLOAT, None),
    )


GRAPHS: list[Callable[[Path], Path]] = [
    function,
    functions_in_functions,
    function_called_like_an_operator,
    function_with_a_branch,
    weights_in_branches,
    branches_in_branches,
    condition_from_the_picture,
    loop,
    scan,
    names_of_our_own,
]


@pytest.mark.parametrize("make", GRAPHS)
def test_graphs_within_graphs(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    assert found(make(tmp_path / "x.onnx")).multiple == 1


def _gray(channels: int) -> NDArray[np.float32]:
    return np.eye(channels, dtype=np.float32).reshape(channels, channels, 1, 1)


@pytest.mark.parametrize(
    ("dims", "channels", "size"),
    [
        (["n", "c", "h", "w"], 3, None),
        (["unk__0", "unk__1", "unk__2", "unk__3"], 1, None),
        ([1, "c", "h", "w"], 3, None),
        ([-1, -1, -1, -1], 3, None),
        ([1, "c", 40, 48], 1, (40, 48)),
        ([1, 3, 32, "w"], 3, (32, 32)),
        ([1, 3, "h", 48], 3, (48, 48)),
        (["n", "c", 32, "w"], 3, (32, 32)),
        ([1, 1, 0, 0], 1, None),
        (None, 3, None),
    ],
    ids=str,
)
def test_axes_that_are_open(tmp_path: Path, dims: Any, channels: int, size: tuple[int, int] | None) -> None:
    frame = value("x", TensorProto.FLOAT, dims)
    path = save(tmp_path / "x.onnx", [node("Conv", ["x", "v"], ["k"]), doubled("k", "y")], [frame], v=_gray(channels))
    about = found(path)
    assert about.channels == channels
    assert about.fixed_size == size


def test_open_axes_with_channels_last(tmp_path: Path) -> None:
    nodes = [
        node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
        node("Conv", ["t", "w"], ["k"]),
        doubled("k", "d"),
        node("Transpose", ["d"], ["y"], perm=[0, 2, 3, 1]),
    ]
    about = found(save(tmp_path / "x.onnx", nodes, [value("x", TensorProto.FLOAT, ["n", "h", "w", "c"])]))
    assert (about.layout, about.output_layout) == ("NHWC", "NHWC")


def test_open_channels_of_a_network_for_something_else(tmp_path: Path) -> None:
    frame = value("x", TensorProto.FLOAT, [1, "c", "h", "w"])
    path = save(tmp_path / "x.onnx", [node("Conv", ["x", "v"], ["y"])], [frame], v=_gray(16))
    with pytest.raises(CheckpointError, match=r"does not say how many channels its input 'x' has, and its .* takes 16"):
        describe(path, None, None)


def _middle(side: int) -> NDArray[np.float32]:
    kernel = np.zeros((3, 3, side, side), np.float32)
    kernel[range(3), range(3), side // 2, side // 2] = 1
    return kernel


@pytest.mark.parametrize(
    ("nodes", "margin", "crop"),
    [
        ([node("Conv", ["x", "v"], ["k"]), doubled("k", "y")], 3, 0),  # as waifu2x's upconv
        ([doubled("x", "d"), node("Conv", ["d", "v"], ["y"])], 2, 1),  # an odd number of rows of the output
        ([doubled("x", "d"), node("Pad", ["d", "around"], ["y"], mode="edge")], 0, 4),  # more than the frame
    ],
    ids=["before", "after", "more"],
)
@pytest.mark.parametrize("size", [None, (40, 52), (48, 48)])
def test_borders_that_are_cut_off(
    tmp_path: Path, nodes: list[onnx.NodeProto], margin: int, crop: int, size: tuple[int, int] | None
) -> None:
    frame = value("x", TensorProto.FLOAT, [1, 3, *(size or ("h", "w"))])
    around = np.array([0, 0, 4, 4, 0, 0, 4, 4])
    config = found(save(tmp_path / "x.onnx", nodes, [frame], v=_middle(7), around=around))
    assert (config.margin, config.crop, config.crop_end) == (margin, crop, crop)
    assert config.fixed_size == (size and (size[0] - 2 * margin, size[1] - 2 * margin))


def test_borders_and_multiples(tmp_path: Path) -> None:
    """As waifu2x's cunet: sides are multiples of 4, and 3 pixels are cut off on every side."""
    nodes = [
        node("SpaceToDepth", ["x"], ["a"], blocksize=4),
        node("DepthToSpace", ["a"], ["b"], blocksize=4),
        node("Conv", ["b", "v"], ["k"]),
        doubled("k", "y"),
    ]
    config = found(save(tmp_path / "x.onnx", nodes, v=_middle(7)))
    assert config.multiple == 4
    assert (config.margin, config.crop, config.crop_end) == (4, 2, 2)  # the least multiple of 4 in all is 8


def _external(folder: Path) -> Path:
    folder.mkdir(parents=True)
    model = onnx.load(save(folder / "x.onnx", [node("Conv", ["x", "w"], ["k"]), doubled("k", "y")]))
    onnx.save(model, folder / "x.onnx", save_as_external_data=True, location="x.onnx_data", size_threshold=0)
    return folder / "x.onnx"


def test_links_to_a_model_and_its_weights(tmp_path: Path) -> None:
    plain = _external(tmp_path / "plain")
    blobs, snapshot = tmp_path / "cache/blobs", tmp_path / "cache/snapshots/abc/onnx"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for name in ("x.onnx", "x.onnx_data"):
        (blobs / f"sum of {name}").write_bytes((plain.parent / name).read_bytes())
        (snapshot / name).symlink_to(f"../../../blobs/sum of {name}")
    (tmp_path / "link.onnx").symlink_to(plain)
    (tmp_path / "link to link.onnx").symlink_to("link.onnx")
    (tmp_path / "folder").symlink_to(plain.parent)
    for path in (
        plain,
        snapshot / "x.onnx",
        tmp_path / "link.onnx",
        tmp_path / "link to link.onnx",
        tmp_path / "folder/x.onnx",
    ):
        assert read_model(path)[1] == read_model(plain)[1]
    (tmp_path / "broken.onnx").symlink_to("nowhere")
    with pytest.raises(CheckpointError, match="does not exist"):
        read_model(tmp_path / "broken.onnx")
    (snapshot / "x.onnx_data").unlink()
    with pytest.raises(CheckpointError, match=r"stores its weights in 'x.onnx_data', which is not in its folder"):
        read_model(snapshot / "x.onnx")


def test_functions_that_would_fill_the_memory(tmp_path: Path) -> None:
    def twice(name: str, inner: str) -> onnx.FunctionProto:
        calls = [node(inner, ["a", "s"], ["m"], domain="pkg"), node(inner, ["m", "s"], ["b"], domain="pkg")]
        return _function(name, calls)

    bomb = [_function("f0", [node("Relu", ["a"], ["b"])]), *(twice(f"f{i}", f"f{i - 1}") for i in range(1, 25))]
    path = save(tmp_path / "x.onnx", [node("f24", ["x", "s"], ["y"], domain="pkg")], functions=bomb)
    with pytest.raises(CheckpointError, match="operators, more than the limit of 50,000"):
        read_model(path)
    endless = [_function("f", [node("f", ["a", "s"], ["b"], domain="pkg")])]
    path = save(tmp_path / "x.onnx", [node("f", ["x", "s"], ["y"], domain="pkg")], functions=endless)
    with pytest.raises(CheckpointError, match="'f' that calls itself"):
        read_model(path)


def test_too_many_operators(tmp_path: Path) -> None:
    chain = [node("Relu", ["x" if i == 0 else f"r{i}"], [f"r{i + 1}"]) for i in range(60_000)]
    with pytest.raises(CheckpointError, match="has 50,001 operators, more than the limit of 50,000"):
        read_model(save(tmp_path / "x.onnx", chain, output=value("r60000", TensorProto.FLOAT, None)))


def test_a_loop_without_end(tmp_path: Path) -> None:
    path = loop(tmp_path / "x.onnx")
    model = onnx.load(path)
    model.graph.initializer.append(numpy_helper.from_array(np.array(2**62), "turns"))
    model.graph.node[0].input[0] = "turns"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match="has a loop of 4,611,686,018,427,387,904 iterations"):
        read_model(path)
