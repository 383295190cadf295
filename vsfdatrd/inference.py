"""Run the frames of a clip through an engine: pad the planes, compute, crop, with several frames in flight.

The clip is distributed in turn to as many copies of the frame filter as the engine has slots, and merged again in
order. Each copy has one frame in flight: while it waits for the engine, the others copy their planes in and out, which
gives every engine double buffering. Frames are independent, so random access, seeking and failing frames need no
special handling, and at most `slots` VapourSynth threads wait at a time. A picture that is repeated for several frames
is computed once (`_native/reuse.c`).
"""

from collections.abc import Callable

import numpy as np
import vapoursynth as vs

from vsfdatrd.backends.base import FramePlanes, SlotPool
from vsfdatrd.errors import PREFIX, FdatrdError, FrameError
from vsfdatrd.style_input import PROPERTY, Style
from vsfdatrd.video import plugin
from vsfdatrd.video.clamp import Plane, WorstValue, clamp_add, clamp_copy
from vsfdatrd.video.malloc_trim import trimmer
from vsfdatrd.video.tiling import Tile, Tiling, fill_padding


def upscale_frames(
    clip: vs.VideoNode,
    pool: SlotPool,
    tiling: Tiling,
    scale: int,
    reuse: float | None = None,
    style: Style | None = None,
) -> vs.VideoNode:
    """Upscale a clip with an open engine.

    A frame that contains NaN, or whose result is not finite, fails alone with a message that gives its number.
    Infinity in a source is clamped like any value.

    Args:
        clip: RGBS or GRAYS with as many planes as the engine takes, nominally [0, 1]; values outside are clamped.
        pool: The engine and its free slots.
        tiling: The tiles of a frame.
        scale: Output pixels per source pixel along each side.
        reuse: A frame whose values differ from those of an earlier frame by at most this much gets that frame's
            result; None computes every frame.
        style: Where in its input the engine takes the style picture from each frame's properties
            (`style_input.attach_style`); None for networks without one.

    Returns:
        A clip of the same format in [0, 1], `scale` times as large, with the frame properties of `clip`. If the engine
        returns fewer planes than it takes, they are the first planes and the others are 0.
    """
    source = clip.std.RemoveFrameProps("_FdatrdNone")  # a new node, whose cache options can be set freely
    function = _frame_function(pool, tiling, scale, style)
    width, height = clip.width * scale, clip.height * scale
    per_frame = plugin.fdatrd_function("PerFrame")
    copies = range(min(pool.engine.slots, clip.num_frames))
    filters = [per_frame(source, func=function, width=width, height=height) for _ in copies]
    reused: vs.VideoNode = plugin.fdatrd_function("ReuseFrames")(source, filters, threshold=reuse)
    return reused


def _frame_function(
    pool: SlotPool, tiling: Tiling, scale: int, style: Style | None
) -> Callable[[int, vs.VideoFrame], vs.VideoFrame | str]:
    """Return the callback of the frame filter: it returns the upscaled frame, or an error message."""

    def upscale_frame(n: int, f: vs.VideoFrame) -> vs.VideoFrame | str:
        try:
            out = vs.core.create_video_frame(f.format, f.width * scale, f.height * scale)
            out.props.update({name: value for name, value in f.props.items() if name != PROPERTY})
            with pool.slot() as slot:
                if style:
                    _write_style(pool.engine.input(slot), f, style)
                _run_frame(pool, slot, tiling, scale, f, out, style.rows if style else 0)
            trimmer.tick()
        except FdatrdError as error:
            return f"{PREFIX}frame {n}: {error}"
        return out

    return upscale_frame


def _run_frame(
    pool: SlotPool, slot: int, tiling: Tiling, scale: int, source: vs.VideoFrame, out: vs.VideoFrame, below: int
) -> None:
    """Compute one frame in a slot, tile by tile.

    `below` is the number of rows at the bottom of the engine's input that do not belong to the frame (the style).

    Raises:
        FrameError: The source contains NaN, or the result is not finite.
    """
    engine = pool.engine
    planes = [np.asarray(source[i]) for i in range(source.format.num_planes)]
    targets = [np.asarray(out[i]) for i in range(out.format.num_planes)]
    single = len(tiling.tiles) == 1
    if not single:
        for target in targets:
            target.fill(0)
    for tile in tiling.tiles:
        padded = engine.input(slot)
        _write_tile(padded[:, : padded.shape[1] - below], planes, tile, tiling)
        engine.submit(slot)
        result = engine.collect(slot)[:, : tiling.height * scale, : tiling.width * scale]
        for unused in targets[len(result) :]:
            unused.fill(0)
        for target, plane in zip(targets, result, strict=False):
            if single:
                worst = clamp_copy(plane, target)
            else:
                top, left = tile.top * scale, tile.left * scale
                part = target[top : top + plane.shape[0], left : left + plane.shape[1]]
                worst = clamp_add(plane, part, tile.rows, tile.columns)
            if worst:
                raise FrameError('the network\'s output for it is not finite (NaN or infinity). Try precision="fp32".')


def _write_tile(padded: FramePlanes, planes: list[Plane], tile: Tile, tiling: Tiling) -> None:
    """Copy a tile of the planes into an engine's input, clamped, and fill the padding."""
    height, width = tiling.height, tiling.width
    for target, plane in zip(padded, planes, strict=True):
        part = plane[tile.top : tile.top + height, tile.left : tile.left + width]
        if clamp_copy(part, target[:height, :width]) == WorstValue.NAN:
            raise FrameError("the source is not finite (NaN). Look at the filters before this one.")
        fill_padding(target, height, width)


def _write_style(padded: FramePlanes, frame: vs.VideoFrame, style: Style) -> None:
    """Copy the frame's style picture, clamped, into the rows below the frame."""
    picture = frame.props[PROPERTY]
    if not isinstance(picture, vs.VideoFrame):
        raise FrameError("the style picture for it is missing")
    for i, plane in enumerate(padded):
        pixels = plane[plane.shape[0] - style.rows :].reshape(-1)[: style.height * style.width]
        if clamp_copy(np.asarray(picture[i]), pixels.reshape(style.height, style.width)) == WorstValue.NAN:
            raise FrameError("the style picture for it is not finite (NaN); give another")
