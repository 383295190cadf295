"""Decode audio in a format that the output's container does not support, and write it as PCM."""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any

from vsfdatrd.encode.timestamps import CLOCK_RESET_SECONDS, clock_reset_error

_JITTER = Fraction(1, 50)  # seconds: containers round timestamps, to milliseconds in Matroska


class DecodedAudio:
    """One audio stream of the source, decoded and written to `out` as PCM with the source's rate and channels.

    Raises:
        av.FFmpegError, ValueError: ffmpeg has no decoder for the stream, its rate is unknown, or the container does not
            support PCM.
    """

    def __init__(self, av: Any, out: Any, stream: Any) -> None:
        context = stream.codec_context
        if context is None or not context.sample_rate:
            raise ValueError(f"the audio stream {stream.index} cannot be decoded")
        context.open(strict=False)
        deep = context.format.bits > 16
        self._av = av
        self._index = stream.index
        self.output = out.add_stream("pcm_s24le" if deep else "pcm_s16le", rate=context.sample_rate)
        """The stream of the output."""
        self.output.codec_context.layout = _standard_layout(av, context.layout)
        self._resamplers: dict[tuple[str, str, int], Any] = {}
        self._position: int | None = None  # of the next sample, in samples on the output's clock

    def packets(self, packet: Any, origin: Fraction) -> Iterator[Any]:
        """Decode a packet of the source; yield packets for the output. Damaged packets are skipped, as in players.

        Args:
            packet: A packet of the source's stream.
            origin: Time in seconds on the source's clock at which the output's clock is 0.

        Raises:
            EncodeError: The timestamps go back by more than a player would tolerate.
        """
        try:
            frames = packet.decode()
        except self._av.FFmpegError:
            return
        for frame in frames:
            if frame.pts is None or self._synchronize(frame.pts * Fraction(frame.time_base) - origin):
                yield from self._encode(self._resampler(frame).resample(frame))

    def flush(self) -> Iterator[Any]:
        """Yield the packets that remain after the last packet of the source."""
        for resampler in self._resamplers.values():
            yield from self._encode(resampler.resample(None))
        yield from self.output.encode(None)

    def _synchronize(self, time: Fraction) -> bool:
        """Skip to the time of a frame, in seconds on the output's clock, if there is a gap before it.

        Returns:
            False if the frame begins before the end of the previous one, by more than rounding, and must be left out.

        Raises:
            EncodeError: It begins earlier than a player would tolerate.
        """
        rate = self.output.codec_context.sample_rate
        if self._position is None:
            self._position = round(time * rate)
        gap = time - Fraction(self._position, rate)
        if gap < -CLOCK_RESET_SECONDS:
            raise clock_reset_error(f"audio {self._index}", time - gap)
        if gap > _JITTER:
            self._position = round(time * rate)
        return gap >= -_JITTER

    def _encode(self, frames: Iterable[Any]) -> Iterator[Any]:
        for frame in frames:
            frame.pts = self._position or 0
            frame.time_base = Fraction(1, self.output.codec_context.sample_rate)
            self._position = frame.pts + frame.samples
            yield from self.output.encode(frame)

    def _resampler(self, frame: Any) -> Any:
        # One resampler for each format: channels and rate may change within a stream, but not within a resampler.
        key = (frame.format.name, frame.layout.name, frame.sample_rate)
        if key not in self._resamplers:
            context = self.output.codec_context
            self._resamplers[key] = self._av.AudioResampler(context.format, context.layout, context.sample_rate)
        return self._resamplers[key]


def _standard_layout(av: Any, layout: Any) -> Any:
    """Return the layout; where only the number of channels is known, the usual one, which MP4 requires."""
    unknown = layout.name == f"{layout.nb_channels} channels"
    return av.AudioLayout(f"{layout.nb_channels}c") if unknown else layout
