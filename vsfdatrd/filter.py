"""`upscale`: the story of one call, from a clip to a clip.

Everything is checked and made ready while the script is evaluated, cheapest first: arguments, clip, weights, memory,
engine. What runs afterwards, frame by frame, is the node graph that `upscale` returns.
"""

import contextlib
import logging
from collections.abc import Iterable, Sequence
from os import PathLike

import vapoursynth as vs

from vsfdatrd import chroma, colour, geometry, luma, pipeline
from vsfdatrd.catalog import resolve
from vsfdatrd.checkpoint import Checkpoint, open_checkpoint
from vsfdatrd.engines.base import Lanes
from vsfdatrd.engines.choice import open_engine, warm_up
from vsfdatrd.errors import PREFIX, FdatrdError, MemoryShort
from vsfdatrd.options import Options
from vsfdatrd.progress import stdout_to_stderr
from vsfdatrd.store import Store

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
) -> vs.VideoNode:
    """Upscale a clip with an FDAT-RD (or another image) network.

    clip: constant format and size, progressive; YUV, GRAY or RGB of 8 to 16 bits, half or single float.
    model: a name of the catalogue (``small``, ``medium``, ``large``) or the path of a weights file.
    backend: ``auto``, ``tensorrt``, ``openvino`` or ``torch``.
    device: numbers of the GPUs to use; frames go to them in turn.
    precision: ``fp16``, ``mixed`` (fp16 with fp32 sums), ``bf16``, ``fp32``, or ``auto``, the fastest that passes
        verification against fp32.
    format: output format by name or number; by default the input's family and subsampling, 16 bit for integer input.
    matrix: matrix of a YUV or GRAY output: ``auto`` (709 once SD becomes HD, else the source's), ``source``, ``709``,
        ``170m``, ``470bg``, ``2020`` or a number.
    streams: frames in flight; by default what is fastest.
    tile: [width, height] in source pixels of the largest part that goes through the network at once, for GPUs with
        little memory. The network looks at the whole frame, so tiles change the picture a little everywhere.
    cache: directory for built engines; by default $FDATRD_CACHE or the platform's cache directory.
    reuse: what happens to a frame that shows the same picture as one shortly before, as animation does: ``exact`` (the
        default) does not compute it again if they are equal; a number up to 0.1 also if no RGB value (0 to 1) differs
        by more, which film grain does; ``off`` computes every frame. No picture is held for more than twelve frames.

    -> the clip, `scale` times as large (2 for the models that ship), with its properties and corrected colour tags.
    Raises vapoursynth.Error starting with ``fdatrd.upscale:``. A frame that cannot be upscaled fails alone.
    """
    try:
        with stdout_to_stderr():
            return _upscale(
                clip, Options.parse(model, backend, device, precision, format, matrix, streams, tile, cache, reuse)
            )
    except FdatrdError as error:
        raise vs.Error(f"{PREFIX}{error}") from error


def _upscale(clip: vs.VideoNode, options: Options) -> vs.VideoNode:
    warm_up(options.backend)
    source = colour.describe(clip)
    store = Store(options.cache)
    checkpoint = open_checkpoint(resolve(options.model), memory=store.notes("checkpoint"))
    about = checkpoint.description
    scale = about.scale
    if about.planes == "chroma":
        chroma.check(source)
    target = colour.target(source, scale, options.format, options.matrix, about.planes)
    lanes, tiling = _open(clip, checkpoint, options, store)
    if len(tiling.tiles) > 1:
        log.warning(
            "upscaling in %d tiles of %d×%d pixels: the picture differs a little from that of whole frames",
            len(tiling.tiles), tiling.width, tiling.height,
        )  # fmt: skip

    def network(planes: vs.VideoNode) -> vs.VideoNode:
        return pipeline.run(planes, lanes, tiling, scale, options.reuse)

    if about.planes == "luma":
        upscaled = luma.enlarge(source, target, scale, network)
    elif about.planes == "chroma":
        upscaled = chroma.reconstruct(source, target, network)
    else:
        upscaled = network(colour.to_rgb(source))
    return colour.deliver(upscaled, target)


def _open(clip: vs.VideoNode, checkpoint: Checkpoint, options: Options, store: Store) -> tuple[Lanes, geometry.Tiling]:
    """An engine, and the parts of the frame it is for: those the script asks for, else the frame as a whole.

    A frame too large for the memory of a GPU goes there in the fewest parts that fit; a frame too large for the
    machine's own memory is an error, since parts of it would still take hours.
    """
    height, width, scale = clip.height, clip.width, checkpoint.description.scale
    if options.tile is not None:
        tiling = geometry.tile(height, width, options.tile[1], options.tile[0], scale)
        return open_engine(checkpoint, tiling.height, tiling.width, options, store), tiling
    try:
        return open_engine(checkpoint, height, width, options, store), geometry.whole(height, width, scale)
    except MemoryShort as error:
        if not error.divide:
            raise
        short = error
    for tiling in geometry.divisions(height, width, scale, MOST_TILES):
        with contextlib.suppress(MemoryShort):
            return open_engine(checkpoint, tiling.height, tiling.width, options, store), tiling
    raise short
