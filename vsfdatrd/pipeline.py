"""Frames through an engine: planes in, padded; planes out, cropped; the next frames already under way.

The clip is dealt out to as many lanes as the engine has slots, in turn, and put together again in order. Each lane
holds one frame in flight: while it waits for the engine, the other lanes copy their planes in and out, which is the
double buffering of any engine. A lane's frames know nothing of each other, so random access, seeking and a failing
frame need nothing special, and at most `slots` of VapourSynth's threads wait at a time. A picture that is held for
several frames is computed once (`_native/deal.c`).
"""

from collections.abc import Callable

import numpy as np
import vapoursynth as vs

from vsfdatrd.engines.base import Frames, Lanes
from vsfdatrd.errors import PREFIX, FdatrdError, FrameError
from vsfdatrd.geometry import Tile, Tiling, fill_padding
from vsfdatrd.memory import trimmer
from vsfdatrd.style import PROPERTY, Style


def run(
    clip: vs.VideoNode,
    lanes: Lanes,
    tiling: Tiling,
    scale: int,
    reuse: float | None = None,
    style: Style | None = None,
) -> vs.VideoNode:
    """Upscale a clip with an open engine.

    clip: RGBS or GRAYS, as many planes as the engine takes, nominally [0, 1]; values outside are clamped.
    -> the same format in [0, 1], `scale` times as large, properties kept. Of an engine that gives fewer planes than it
        takes, they are the first; the others are 0.
    reuse: a frame whose values differ from those of an earlier one by no more than this is given that one's result;
        None computes every frame.
    style: where the engine takes the picture that every frame has in its properties (`style.attached`).
    A frame that is not finite, before or after, fails alone with a message that gives its number.
    """
    source = clip.std.RemoveFrameProps("_FdatrdNone")  # a node of our own, so that its cache is ours to set
    function = _frame_function(lanes, tiling, scale, style)
    width, height = clip.width * scale, clip.height * scale
    dealt = [_per_frame(source, function, width, height) for _ in range(min(lanes.count, clip.num_frames))]
    return vs.core.fdatrd.Deal(source, dealt, threshold=reuse)


def _per_frame(
    clip: vs.VideoNode, function: Callable[[int, vs.VideoFrame], vs.VideoFrame | str], width: int, height: int
) -> vs.VideoNode:
    return vs.core.fdatrd.PerFrame(clip, func=function, width=width, height=height)


def _frame_function(
    lanes: Lanes, tiling: Tiling, scale: int, style: Style | None
) -> Callable[[int, vs.VideoFrame], vs.VideoFrame | str]:
    """The function a lane calls for each of its frames: the upscaled frame, or what went wrong as text."""

    def upscale_frame(n: int, f: vs.VideoFrame) -> vs.VideoFrame | str:
        try:
            out = vs.core.create_video_frame(f.format, f.width * scale, f.height * scale)
            out.props.update({name: value for name, value in f.props.items() if name != PROPERTY})
            with lanes.slot() as slot:
                if style:
                    _write_style(lanes.engine.input(slot), f, style)
                finite = _through(lanes, slot, tiling, scale, f, out, style.rows if style else 0)
            trimmer.tick()
        except FdatrdError as error:
            return f"{PREFIX}frame {n}: {error}"
        if not finite:
            where = "the network's output for it" if _is_finite(f) else "the source"
            return f"{PREFIX}frame {n} failed: {where} is not finite (NaN or infinity). " + (
                "Look at the filters before this one." if where == "the source" else 'Try precision="fp32".'
            )
        return out

    return upscale_frame


def _through(
    lanes: Lanes, slot: int, tiling: Tiling, scale: int, source: vs.VideoFrame, out: vs.VideoFrame, below: int
) -> bool:
    """Send one frame through a slot, tile by tile; whether everything that came out was finite.

    below: rows of the engine's input that are not the frame's.
    """
    engine = lanes.engine
    planes = [np.asarray(source[i]) for i in range(source.format.num_planes)]
    targets = [np.asarray(out[i]) for i in range(out.format.num_planes)]
    finite = True
    single = len(tiling.tiles) == 1
    if not single:
        for target in targets:
            target.fill(0)
    for tile in tiling.tiles:
        padded = engine.input(slot)
        _write(padded[:, : padded.shape[1] - below], planes, tile, tiling)
        engine.submit(slot)
        result = engine.collect(slot)[:, : tiling.height * scale, : tiling.width * scale]
        # Extremes are NaN or infinite as soon as one value is; finding them makes no mask.
        finite = finite and bool(np.isfinite(result.min()) and np.isfinite(result.max()))
        for unused in targets[len(result) :]:
            unused.fill(0)
        for target, plane in zip(targets, result, strict=False):
            if single:
                np.clip(plane, 0, 1, out=target)
            else:
                _blend(target, plane, tile, scale)
    return finite


def _write(
    padded: Frames, planes: list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]], tile: Tile, tiling: Tiling
) -> None:
    """Copy a tile of the planes into an engine's input, clamped, and continue it into the padding."""
    height, width = tiling.height, tiling.width
    for target, plane in zip(padded, planes, strict=True):
        part = plane[tile.top : tile.top + height, tile.left : tile.left + width]
        np.clip(part, 0, 1, out=target[:height, :width])
        fill_padding(target, height, width)


def _write_style(padded: Frames, frame: vs.VideoFrame, style: Style) -> None:
    """Copy the frame's style, clamped, into the rows below it."""
    picture = frame.props[PROPERTY]
    if not isinstance(picture, vs.VideoFrame):
        raise FrameError("the picture of style that goes with it was lost on the way")
    for i, plane in enumerate(padded):
        pixels = plane[plane.shape[0] - style.rows :].reshape(-1)[: style.height * style.width]
        np.clip(np.asarray(picture[i]), 0, 1, out=pixels.reshape(style.height, style.width))


def _blend(target: np.ndarray[tuple[int, ...], np.dtype[np.float32]], plane: Frames, tile: Tile, scale: int) -> None:
    top, left = tile.top * scale, tile.left * scale
    part = target[top : top + plane.shape[0], left : left + plane.shape[1]]
    part += np.clip(plane, 0, 1) * tile.rows * tile.columns


def _is_finite(frame: vs.VideoFrame) -> bool:
    return all(bool(np.isfinite(np.asarray(frame[i])).all()) for i in range(frame.format.num_planes))
