"""`upscale`: checks its arguments, opens an engine and builds the node graph.

Everything is checked and prepared while the script is evaluated, cheapest first: arguments, clip, weights, memory,
engine. Afterwards only the node graph that `upscale` returns runs, frame by frame.
"""

import contextlib
import logging
from collections.abc import Iterable, Sequence
from os import PathLike

import vapoursynth as vs

from vsfdatrd import inference
from vsfdatrd import style_input as styles
from vsfdatrd.archs.registry.base import ModelDescriptor
from vsfdatrd.backends.base import SlotPool
from vsfdatrd.backends.selection import open_engine, padded_size, warm_up
from vsfdatrd.cache.engine_cache import EngineCache
from vsfdatrd.checkpoint import Checkpoint, open_requested
from vsfdatrd.errors import PREFIX, ArgumentError, FdatrdError, InsufficientMemory
from vsfdatrd.options import Options
from vsfdatrd.style_input import StyleSource
from vsfdatrd.system.progress import stdout_to_stderr
from vsfdatrd.system.standard_streams import fill_standard_streams
from vsfdatrd.video import alpha, chroma, color, luma
from vsfdatrd.video import chroma_filter as chroma_filters
from vsfdatrd.video import tiling as geometry

log = logging.getLogger(__name__)

MAX_TILES = 16
"""Largest number of tiles per frame if the script does not set `tile`."""


def upscale(
    clip: vs.VideoNode,
    model: str | PathLike[str] = "medium",
    backend: str = "auto",
    device: int | Iterable[int] = (0,),
    precision: str = "auto",
    format: int | str | None = None,
    matrix: int | str | None = "auto",
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

    A frame that cannot be upscaled fails alone; the others are unaffected.

    Args:
        clip: Constant format and size, progressive; YUV, GRAY or RGB of 8 to 16 bits, half or single float.
        model: Name from the catalog (``small``, ``medium``, ``large``, ``dvd``, ``ld``, ``clean``), a name you defined
            with ``vsfdatrd models add``, or the path of a weights file.
        backend: ``auto``, ``tensorrt``, ``native``, ``openvino``, ``torch`` or ``cuda``.
        device: Numbers of the GPUs to use; frames are distributed to them in turn.
        precision: Arithmetic in the network: ``fp16``, ``mixed`` (fp16 with fp32 sums), ``bf16``, ``int16`` (the native
            backend's: integer products, everything else fp32), ``fp32``, or ``auto``, the fastest that passes
            verification against fp32.
        format: Output format by name or number; by default the input's family and subsampling, 16 bit for integer
            input.
        matrix: Matrix of a YUV or GRAY output: ``auto`` (709 if SD becomes HD, else the source's), ``source``,
            ``709``, ``170m``, ``470bg``, ``2020`` or a number. Luma and chroma networks convert the matrix only if one
            is named.
        streams: Frames in flight; by default the fastest number for the device.
        tile: Largest tile as [width, height] in source pixels, for GPUs with little memory. The network's receptive
            field is the complete frame, so tiles change the picture slightly everywhere.
        cache: Directory for built engines; by default $FDATRD_CACHE or the platform's cache directory.
        reuse: Whether to reuse the result of a recent frame that shows the same picture, as is common in animation:
            ``exact`` (the default) if the frames are equal; a number up to 0.1 also if no RGB value (0 to 1) differs
            by more than that, so that film grain is frozen; ``off`` computes every frame. A result is reused for at
            most twelve frames.
        multiple: For ONNX files, the number that frame width and height must be multiples of; by default it is
            determined from the file.
        input_range: For ONNX files, the value of white in the network's input, ``1`` or ``255``; by default it is
            derived from the first operators or a trial run, and 1 if that is inconclusive.
        fit: How frames are passed to a network of one fixed size: in ``tiles`` of that size, or with a ``resize`` to
            it and of the result to `scale` times the clip's size.
        style: For networks with a second image input, the picture whose style is applied: the path of a picture, or a
            clip; by default the frame itself.
        chroma_filter: ``luma_guided`` averages the chroma of the result over nearby pixels of the same luma, which
            moves color that has bled over lines (as on LaserDisc) back behind them. ``none``, the default, does
            nothing.

    Returns:
        The clip, `scale` times as large (2 for the models that ship), with its frame properties and corrected color
        properties.

    Raises:
        vapoursynth.Error: The message starts with ``fdatrd.upscale:``.
    """
    fill_standard_streams()
    try:
        with stdout_to_stderr():
            options = Options(
                model=model,
                backend=backend,
                device=device,
                precision=precision,
                format=format,
                matrix=matrix,
                streams=streams,
                tile=tile,
                cache=cache,
                reuse=reuse,
                multiple=multiple,
                input_range=input_range,
                fit=fit,
                chroma_filter=chroma_filter,
            )
            return _upscale(clip, options, style)
    except FdatrdError as error:
        raise vs.Error(f"{PREFIX}{error}") from error


def _upscale(clip: vs.VideoNode, options: Options, style: StyleSource) -> vs.VideoNode:
    source = color.inspect_clip(clip)
    store = EngineCache(options.cache)
    checkpoint = open_requested(options, store.metadata("checkpoint"))
    model = checkpoint.descriptor
    warm_up(model, options.backend, options.device)
    styles.check_style(style, model)
    scale = model.scale
    if model.planes == "chroma":
        chroma.check_chroma_clip(source)
    target = color.output_spec(source, scale, options.format, options.matrix, model.planes)
    size = _network_size(clip, model, options)
    pool, tiling = _open_engine(*size, checkpoint, options, store)
    if len(tiling.tiles) > 1:
        log.warning(
            "upscaling in %d tiles of %d×%d pixels: the picture differs a little from that of whole frames",
            len(tiling.tiles),
            tiling.width,
            tiling.height,
        )

    def network(planes: vs.VideoNode) -> vs.VideoNode:
        layout = styles.style_layout(model, *padded_size(model, tiling.height, tiling.width))
        frames = planes if size == (clip.height, clip.width) else planes.resize.Spline36(*size[::-1])
        if layout:
            frames = styles.attach_style(frames, style, layout)
        reuse = None if styles.is_moving(style) else options.reuse
        result = inference.upscale_frames(frames, pool, tiling, scale, reuse, layout)
        output_size = clip.width * scale, clip.height * scale
        return result if output_size == (result.width, result.height) else result.resize.Spline36(*output_size)

    if model.planes == "luma":
        upscaled = luma.upscale_luma(source, target, scale, network)
    elif model.planes == "chroma":
        upscaled = chroma.reconstruct_chroma(source, target, network)
    else:
        upscaled = network(color.to_rgb(source))
    if options.chroma_filter == "luma_guided":
        upscaled = chroma_filters.luma_guided(upscaled, source, target, scale)
    result = color.convert_output(upscaled, target)
    return alpha.attach_alpha(clip, result) if source.alpha else result


def _network_size(clip: vs.VideoNode, model: ModelDescriptor, options: Options) -> tuple[int, int]:
    """Return the frame size (height, width) that the network processes, before tiling.

    Raises:
        ArgumentError: ``fit="resize"`` does not apply to this network or contradicts `tile`.
    """
    if options.fit != "resize":
        return clip.height, clip.width
    if model.fixed_size is None:
        raise ArgumentError('fit="resize" is for networks of one fixed size, and this one takes any; leave it out')
    if options.tile is not None:
        raise ArgumentError(f'tile={list(options.tile)} contradicts fit="resize", which sends whole frames; give one')
    return model.fixed_size


def _open_engine(
    height: int, width: int, checkpoint: Checkpoint, options: Options, store: EngineCache
) -> tuple[SlotPool, geometry.Tiling]:
    """Open an engine and return it with the tiling it was opened for: the requested tiles, or the complete frame.

    A frame that is too large for a GPU's memory is divided into the fewest tiles that fit. A frame that is too large
    for the main memory is an error, since its tiles would still take hours.
    """
    model, scale = checkpoint.descriptor, checkpoint.descriptor.scale
    largest = options.tile[::-1] if options.tile is not None else model.fixed_size
    tiling = geometry.tile_frame(height, width, *(largest or (height, width)), scale)
    try:
        return open_engine(checkpoint, tiling.height, tiling.width, options, store), tiling
    except InsufficientMemory as error:
        if largest is not None or not error.divide:
            raise
        short = error
    for tiling in geometry.tilings(height, width, scale, MAX_TILES):
        with contextlib.suppress(InsufficientMemory):
            return open_engine(checkpoint, tiling.height, tiling.width, options, store), tiling
    raise short
