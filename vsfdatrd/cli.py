"""The command line, `vsfdatrd COMMAND`. Results go to stdout, the rest to stderr."""

import argparse
import errno
import io
import logging
import os
import platform
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NoReturn

from vsfdatrd import __version__
from vsfdatrd.compare import cli as compare
from vsfdatrd.compare import preview_cli as preview
from vsfdatrd.encode import cli as encode
from vsfdatrd.errors import FdatrdError, error_sentence
from vsfdatrd.system.files import format_bytes
from vsfdatrd.system.packages import installed_versions
from vsfdatrd.system.standard_streams import fill_standard_streams
from vsfdatrd.system.terminal import escape_control, printable_stream

if TYPE_CHECKING:
    from vsfdatrd.cache.engine_cache import EngineCache

log = logging.getLogger(__name__)

REPORTED_PACKAGES = (
    *("vapoursynth", "numpy", "torch", "openvino", "onnx", "tensorrt_rtx", "tensorrt", "spandrel"),
    "cuda-bindings",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: Command-line arguments without the program name; None for `sys.argv`.

    Returns:
        The exit status: 0 for success, 1 for failure (one sentence on stderr), 2 for wrong usage.
    """
    _replace_missing_streams()
    _replace_unencodable()
    parser: argparse.ArgumentParser = _Parser(prog="vsfdatrd", description="FDAT-RD super-resolution for VapourSynth.")
    parser.add_argument("--version", action="version", version=f"vsfdatrd {__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="log everything, and where errors come from")
    commands = parser.add_subparsers(required=True, metavar="command")

    _add_info(commands)

    models = commands.add_parser("models", help="list the models that ship, and name files of your own")
    actions = models.add_subparsers(required=True, metavar="action")
    actions.add_parser("list", help="every model that has a name").set_defaults(
        run=lambda a: _import_models().list_models()
    )
    _add_info(actions)
    actions.add_parser("verify", help="compare files with their checksums").set_defaults(
        run=lambda a: _import_models().verify_models()
    )
    add = actions.add_parser("add", help="give a file a name: model=NAME in scripts")
    add.add_argument("file", type=Path)
    add.add_argument("--name", required=True)
    add.set_defaults(run=lambda a: _import_models().add_alias(a.file, a.name))
    remove = actions.add_parser("remove", help="remove a name; its file stays")
    remove.add_argument("name")
    remove.set_defaults(run=lambda a: _import_models().remove_alias(a.name))

    build = commands.add_parser("build", help="build an engine ahead of time")
    build.add_argument("--model", default="medium", help="a name from the catalog, or a weights file")
    build.add_argument("--size", type=parse_size, default=(720, 540), metavar="WxH", help="of the clip (720x540)")
    build.add_argument("--precision", default="auto", help="fp16, mixed, bf16, fp32, int16 or auto")
    build.add_argument("--backend", default="auto", help="tensorrt, native, openvino, torch, cuda or auto")
    build.add_argument("--streams", type=int, help="frames in flight, as in upscale()")
    build.add_argument(
        "--for",
        nargs="+",
        dest="targets",
        default=(),
        metavar="SM",
        help="GPU architectures, such as sm89 sm120, for TensorRT-RTX engines; no GPU is needed",
    )
    build.add_argument("--cache", help="cache directory, if not the default")
    build.set_defaults(run=_run_build)

    export = commands.add_parser("export", help="write a model for other programs: ONNX, safetensors or pth")
    export.add_argument("model", help="a name from the catalog, or a weights file")
    export.add_argument("-o", "--output", type=Path, required=True, help="file to write; its suffix says the format")
    export.add_argument("--format", choices=("onnx", "safetensors", "pth"), help="if the suffix does not")
    export.add_argument("--size", type=parse_size, metavar="WxH", help="of an ONNX graph's frames (720x540)")
    export.add_argument("--dynamic", action="store_true", help="an ONNX graph for frames of any size")
    export.add_argument("--precision", default="fp32", choices=("fp32", "fp16", "bf16"))
    export.add_argument("--no-verify", action="store_true", help="do not compare the result with the original")
    export.set_defaults(run=_run_export)

    doctor = commands.add_parser("doctor", help="versions, backends, cache, and one frame upscaled as a test")
    doctor.add_argument("--cache", type=Path, help="cache directory, if not the default")
    doctor.add_argument(
        "--gpu", action="store_true", help="measure the backends on the NVIDIA GPU, and write a report to post"
    )
    doctor.add_argument("--json", type=Path, metavar="FILE", help="with --gpu: the report (vsfdatrd_gpu_<card>.json)")
    doctor.add_argument("--model", default="medium", help="with --gpu: a name from the catalog, or a weights file")
    doctor.add_argument(
        "--size", type=parse_size, default=(720, 540), metavar="WxH", help="with --gpu: the clip (720x540)"
    )
    doctor.add_argument("--seconds", type=float, default=5.0, help="with --gpu: of each measurement (5)")
    doctor.set_defaults(run=lambda a: _report_gpu(a) if a.gpu else _run_doctor(a.cache))

    cache = commands.add_parser("cache", help="built engines")
    cache.add_argument("action", choices=("list", "clear"))
    cache.add_argument("--cache", type=Path, help="cache directory, if not the default")
    cache.set_defaults(run=lambda a: _run_cache(a.action, a.cache))

    for module in (compare, preview, encode):
        module.add_parser(commands)

    for command in (*commands.choices.values(), *actions.choices.values()):  # -v may also stand behind the command
        command.add_argument(
            "-v", "--verbose", action="store_true", default=argparse.SUPPRESS, help="log everything that happens"
        )

    command_line, further = encode.split_command_line(sys.argv[1:] if argv is None else argv)
    before = sys.stdout, sys.stderr
    try:
        arguments = parser.parse_args(command_line, argparse.Namespace(further=further))
        sys.stdout, sys.stderr = printable_stream(sys.stdout), printable_stream(sys.stderr)
        return _run(arguments)
    finally:
        sys.stdout, sys.stderr = before
        _discard_unwritable()


def _add_info(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("info", help="what a weights file holds")
    parser.add_argument("file", help="a weights file, or a name from the catalog")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=lambda a: _import_models().print_info(a.file, a.json))


def _run(arguments: argparse.Namespace) -> int:
    """Run a parsed command; see `main`."""
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s: %(message)s", level=logging.WARNING)
    if arguments.verbose:
        logging.getLogger("vsfdatrd").setLevel(logging.DEBUG)
    try:
        status = int(arguments.run(arguments))
        sys.stdout.flush()  # so that a closed pipe or a full disk raises here and not at interpreter shutdown
        return status
    except FdatrdError as error:
        print(f"vsfdatrd: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("vsfdatrd: stopped", file=sys.stderr)
        return 130
    except OSError as error:
        if not _is_closed_pipe(error):
            print(f"vsfdatrd: {error_sentence(error)}", file=sys.stderr)
        return 1
    except Exception as error:
        log.debug("where it happened:", exc_info=error)
        print(f"vsfdatrd: {error_sentence(error)}", file=sys.stderr)
        return 1


def _discard_unwritable() -> None:
    """Drop buffered output that cannot be written: at its shutdown, Python would try again and print the error."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _replace_missing_streams() -> None:
    """Open stdin, stdout and stderr on the null device if the program was started without them."""
    fill_standard_streams()
    posix = os.name == "posix"
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            mode = "w" if number else "r"
            file = number if posix else os.devnull
            setattr(sys, name, open(file, mode, encoding="utf-8", closefd=not posix))  # noqa: SIM115 - until this process ends


class _Parser(argparse.ArgumentParser):
    """A parser that escapes control characters in its error messages (typed, or from file names a shell expanded)."""

    def error(self, message: str) -> NoReturn:
        super().error(escape_control(message))


def _replace_unencodable() -> None:
    """Keep characters that the output encoding lacks from ending a command with an error.

    On Windows, files and pipes get UTF-8, as on other systems; its consoles show all characters anyway.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            if os.name == "nt" and not stream.isatty() and "PYTHONIOENCODING" not in os.environ:
                stream.reconfigure(encoding="utf-8")
            # surrogateescape: Python's choice in the C locale, which fails for characters outside ASCII as well
            if stream.errors == "strict" or (stream.errors == "surrogateescape" and stream.encoding != "utf-8"):
                stream.reconfigure(errors="backslashreplace")


def _is_closed_pipe(error: OSError) -> bool:
    """Return whether an error means that the reader closed the pipe; Windows reports that as EINVAL without a name."""
    on_windows = os.name == "nt" and error.errno == errno.EINVAL and error.filename is None
    return isinstance(error, BrokenPipeError) or on_windows


def parse_size(text: str) -> tuple[int, int]:
    """Parse the size of a frame, such as ``720x540``.

    Args:
        text: Width and height in pixels.

    Raises:
        argparse.ArgumentTypeError: It is another text.
    """
    width, _, height = text.lower().replace("×", "x").partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; give width x height, such as 720x540")
    return int(width), int(height)


def _import_models() -> ModuleType:
    from vsfdatrd.commands import models as models_command

    return models_command


def _run_build(arguments: argparse.Namespace) -> int:
    from vsfdatrd.commands.build import build, build_for
    from vsfdatrd.options import Options

    options = Options(
        model=arguments.model,
        backend=arguments.backend,
        precision=arguments.precision,
        streams=arguments.streams,
        cache=arguments.cache,
    )
    width, height = arguments.size
    if arguments.targets:
        engines = build_for(options, width, height, arguments.targets)
    else:
        engines = [build(options, width, height)]
    for built in engines:
        print(f"{built.description}: {format_bytes(built.size)} in {built.path}, {built.seconds:.1f} s")
    return 0


def _run_export(arguments: argparse.Namespace) -> int:
    from vsfdatrd.commands.export import export

    exported = export(
        arguments.model,
        arguments.output,
        format=arguments.format,
        size=arguments.size,
        dynamic=arguments.dynamic,
        precision=arguments.precision,
        verify=not arguments.no_verify,
    )
    print(f"{exported.path}: {exported.format}, {exported.precision}, {format_bytes(exported.bytes)}")
    print(f"verified {exported.verified}" if exported.verified else f"not verified: {exported.unverified}")
    return 0


def _run_cache(action: str, directory: Path | None) -> int:
    from vsfdatrd.cache.engine_cache import EngineCache

    store = EngineCache(directory)
    entries = store.entries()
    if action == "clear":
        print(f"removed {store.clear()} engines from {store.directory}")
        return 0
    for entry in reversed(entries):
        key = entry.fields
        used = datetime.fromtimestamp(entry.used).strftime("%Y-%m-%d %H:%M")
        print(
            f"{entry.digest[:12]}  {format_bytes(entry.size):>10}  last used {used}  {key.get('shape')}  "
            f"{key.get('precision')}  {key.get('options')}  {key.get('engine')}  "
            f"weights {str(key.get('weights'))[:12]}  {key.get('device')}"
        )
    print(f"{len(entries)} engines, {format_bytes(store.size)}, in {store.directory}")
    return 0


def _report_gpu(arguments: argparse.Namespace) -> int:
    from vsfdatrd.commands import gpu_report

    return gpu_report.run(arguments.model, arguments.size, arguments.json, arguments.seconds)


def _run_doctor(directory: Path | None) -> int:
    """Print versions, devices, backends, models and the cache; return 1 if no backend works or the test frame fails."""
    from vsfdatrd.backends.gpu.devices import list_gpus
    from vsfdatrd.backends.native import kernels as native_kernels
    from vsfdatrd.backends.selection import unavailable_reasons
    from vsfdatrd.cache.engine_cache import EngineCache
    from vsfdatrd.weights.catalog import CATALOG

    print(f"vsfdatrd {__version__}, Python {platform.python_version()}, {platform.platform()}")
    installed = installed_versions(REPORTED_PACKAGES)
    for name in REPORTED_PACKAGES:
        print(f"  {name} {installed.get(name, 'is not installed')}")
    names = [f"{gpu.name} (sm{gpu.capability[0]}{gpu.capability[1]})" for gpu in list_gpus()]
    print(f"GPUs: {', '.join(names) or 'none that the NVIDIA driver shows'}")
    print("engines:")
    for name, reason in unavailable_reasons().items():
        instructions = ""
        if name == "native" and not reason:
            maybe_amx = ", and AMX if it is faster" if native_kernels.has_amx_int8() else ""
            instructions = f", with {native_kernels.instruction_set()}{maybe_amx}"
        print(f"  {name}: {reason or 'usable'}{instructions}")
    print("models:")
    for name, model in CATALOG.items():
        print(f"  {name}: {model.file}")
    store = EngineCache(directory)
    entries = store.entries()
    print(f"cache: {store.directory}, {len(entries)} engines, {format_bytes(store.size)}")
    return _self_test(store)


def _self_test(store: "EngineCache") -> int:
    """Upscale one small frame through core.fdatrd, as a script would, and print the engine speeds measured so far."""
    import vapoursynth as vs

    from vsfdatrd.backends.selection import measured_speeds

    if not hasattr(vs.core, "fdatrd"):
        print(
            "self-test: VapourSynth does not load the plugin (core.fdatrd is missing); "
            "install vsfdatrd into the same Python as VapourSynth: pip install --force-reinstall vsfdatrd"
        )
        return 1
    clip = vs.core.std.BlankClip(width=60, height=60, format=vs.YUV420P8, length=1, color=[120, 90, 160])
    clip = clip.std.SetFrameProps(_Matrix=6, _Range=0)
    start = time.perf_counter()
    try:
        frame = vs.core.fdatrd.upscale(clip, cache=str(store.directory)).get_frame(0)
    except vs.Error as error:
        print(f"self-test: failed: {error}")
        return 1
    seconds = time.perf_counter() - start
    for line in measured_speeds(store):
        print(f"timed: {line}")
    print(f"self-test: a 60×60 frame became {frame.width}×{frame.height} in {seconds:.2f} s, start included")
    return 0


if __name__ == "__main__":
    sys.exit(main())
