"""`upscale`: the story of one call, from a clip to a clip.

Everything is checked and made ready while the script is evaluated, cheapest first: arguments, clip, weights, memory,
engine. What runs afterwards, frame by frame, is the node graph that `upscale` returns.
"""

import contextlib
import logging
from collections.abc import Iterable, Sequence
from os import PathLike

import vapoursynth as vs

from vsfdatrd import inference
from vsfdatrd import style_input as styles
from vsfdatrd.archs.descriptor import ModelDescriptor
from vsfdatrd.backends.base import SlotPool
from vsfdatrd.backends.selection import frame_of, open_engine, warm_up
from vsfdatrd.cache.engine_cache import EngineCache
from vsfdatrd.checkpoint import Checkpoint, open_checkpoint
from vsfdatrd.errors import PREFIX, ArgumentError, FdatrdError, InsufficientMemory
from vsfdatrd.options import Options
from vsfdatrd.style_input import Given
from vsfdatrd.system.progress import stdout_to_stderr
from vsfdatrd.system.standard_streams import fill_standard_streams
from vsfdatrd.video import alpha, chroma, color, luma
from vsfdatrd.video import chroma_filter as chroma_filters
from vsfdatrd.video import tiling as geometry
from vsfdatrd.weights.catalog import resolve

log = logging.getLogger(__name__)

MOST_TILES = 16
"""Parts into which a frame is divided at most where the script does not say."""


def upscale(
    clip: vs.VideoNode,
    model: str | PathLike[str] = "medium",
    backend: str = "auto",
    device: int | Iterable[int] = (0,),
    precision: str = "auto",
    format: int | str | None = None,
    matrix: int | str | None = None,
    streams: int | None = None,
    tile: int | Sequence[int] | None = None,
    cache: str | PathLike[str] | None = None,
    reuse: str | float = "exact",
    multiple: int | None = None,
    input_range: str | float | None = None,
    fit: str = "tiles",
    style: str | PathLike[str] | vs.VideoNode | None = None,
    chroma_filter: str = "none",
) -> vs.VideoNode:
    """Upscale a clip with an FDAT-RD (or another image) network.

    clip: constant format and size, progressive; YUV, GRAY or RGB of 8 to 16 bits, half or single float.
    model: a name of the catalogue (``small``, ``medium``, ``dvd``, ``ld``), one of your own (``vsfdatrd models add``),
        or the path of a weights file.
    backend: ``auto``, ``tensorrt``, ``native``, ``openvino`` or ``torch``.
    device: numbers of the GPUs to use; frames go to them in turn.
    precision: ``fp16``, ``mixed`` (fp16 with fp32 sums), ``bf16``, ``fp32``, or ``auto``, the fastest that passes
        verification against fp32.
    format: output format by name or number; by default the input's family and subsampling, 16 bit for integer input.
    matrix: matrix of a YUV or GRAY output: ``auto`` (709 once SD becomes HD, else the source's), ``source``, ``709``,
        ``170m``, ``470bg``, ``2020`` or a number. Networks for luma or chroma convert nothing unless a matrix is named.
    streams: frames in flight; by default what is fastest.
    tile: [width, height] in source pixels of the largest part that goes through the network at once, for GPUs with
        little memory. The network looks at the whole frame, so tiles change the picture a little everywhere.
    cache: directory for built engines; by default $FDATRD_CACHE or the platform's cache directory.
    reuse: what happens to a frame that shows the same picture as one shortly before, as animation does: ``exact`` (the
        default) does not compute it again if they are equal; a number up to 0.1 also if no RGB value (0 to 1) differs
        by more, which film grain does; ``off`` computes every frame. No picture is held for more than twelve frames.
    multiple: of an ONNX file, what the sides of its frames must be multiples of; by default that is found out.
    input_range: of an ONNX file, what white is in its numbers, ``1`` or ``255``; by default what its first operators or
        a trial say, 1 where that leaves doubt.
    fit: how frames go through a network that takes those of one size only: in ``tiles`` of that size, or by a
        ``resize`` to it, and of the result to `scale` times the clip.
    style: for networks with a second input, the picture whose style a frame is given: the path of a picture, or a clip;
        by default the frame itself.
    chroma_filter: ``luma_guided`` averages the chroma of the result over what lies near and has the same luma, so that
        colour which has bled over lines, as on LaserDisc, goes back behind them; ``none``, the default, does nothing.

    -> the clip, `scale` times as large (2 for the models that ship), with its properties and corrected colour tags.
    Raises vapoursynth.Error starting with ``fdatrd.upscale:``. A frame that cannot be upscaled fails alone.
    """
    fill_standard_streams()
    try:
        with stdout_to_stderr():
            options = Options.parse(
                model,
                backend,
                device,
                precision,
                format,
                matrix,
                streams,
                tile,
                cache,
                reuse,
                multiple,
                input_range,
                fit,
                chroma_filter,
            )
            return _upscale(clip, options, style)
    except FdatrdError as error:
        raise vs.Error(f"{PREFIX}{error}") from error


def _upscale(clip: vs.VideoNode, options: Options, style: Given) -> vs.VideoNode:
    warm_up(options.backend, options.device)
    source = color.describe(clip)
    store = EngineCache(options.cache)
    checkpoint = open_checkpoint(
        resolve(options.model),
        memory=store.notes("checkpoint"),
        multiple=options.multiple,
        input_range=options.input_range,
    )
    about = checkpoint.description
    styles.check(style, about)
    scale = about.scale
    if about.planes == "chroma":
        chroma.check(source)
    target = color.target(source, scale, options.format, options.matrix, about.planes)
    size = _network_size(clip, about, options)
    lanes, tiling = _open(*size, checkpoint, options, store)
    if len(tiling.tiles) > 1:
        log.warning(
            "upscaling in %d tiles of %d×%d pixels: the picture differs a little from that of whole frames",
            len(tiling.tiles), tiling.width, tiling.height,
        )  # fmt: skip

    def network(planes: vs.VideoNode) -> vs.VideoNode:
        place = styles.place(about, *frame_of(about, tiling.height, tiling.width))
        whole = planes if size == (clip.height, clip.width) else planes.resize.Spline36(*size[::-1])
        if place:
            whole = styles.attached(whole, style, place)
        reuse = None if styles.moves(style) else options.reuse
        result = inference.run(whole, lanes, tiling, scale, reuse, place)
        wanted = clip.width * scale, clip.height * scale
        return result if wanted == (result.width, result.height) else result.resize.Spline36(*wanted)

    if about.planes == "luma":
        upscaled = luma.enlarge(source, target, scale, network)
    elif about.planes == "chroma":
        upscaled = chroma.reconstruct(source, target, network)
    else:
        upscaled = network(color.to_rgb(source))
    if options.chroma_filter == "luma_guided":
        upscaled = chroma_filters.luma_guided(upscaled, source, target, scale)
    result = color.deliver(upscaled, target)
    return alpha.attach(clip, result) if source.alpha else result


def _network_size(clip: vs.VideoNode, about: ModelDescriptor, options: Options) -> tuple[int, int]:
    """(height, width) in which frames go through the network, tiles aside. Raises ArgumentError."""
    if options.fit != "resize":
        return clip.height, clip.width
    if about.fixed is None:
        raise ArgumentError('fit="resize" is for networks of one fixed size, and this one takes any; leave it out')
    if options.tile is not None:
        raise ArgumentError(f'tile={list(options.tile)} contradicts fit="resize", which sends whole frames; give one')
    return about.fixed


def _open(
    height: int, width: int, checkpoint: Checkpoint, options: Options, store: EngineCache
) -> tuple[SlotPool, geometry.Tiling]:
    """An engine, and the parts of the frame it is for: those the script asks for, else the frame as a whole.

    A frame too large for the memory of a GPU goes there in the fewest parts that fit; a frame too large for the
    machine's own memory is an error, since parts of it would still take hours.
    """
    about, scale = checkpoint.description, checkpoint.description.scale
    largest = options.tile[::-1] if options.tile is not None else about.fixed
    if largest is not None:
        tiling = geometry.tile(height, width, *largest, scale)
        return open_engine(checkpoint, tiling.height, tiling.width, options, store), tiling
    try:
        return open_engine(checkpoint, height, width, options, store), geometry.whole(height, width, scale)
    except InsufficientMemory as error:
        if not error.divide:
            raise
        short = error
    for tiling in geometry.divisions(height, width, scale, MOST_TILES):
        with contextlib.suppress(InsufficientMemory):
            return open_engine(checkpoint, tiling.height, tiling.width, options, store), tiling
    raise short
