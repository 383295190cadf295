"""Media files made by ffmpeg."""

from pathlib import Path

from vsfdatrd.system.programs import ffmpeg, run


def make(*arguments: str | Path) -> None:
    run([ffmpeg(), "-v", "error", "-y", *map(str, arguments)])


def lavfi(*sources: str) -> list[str]:
    return [word for source in sources for word in ("-f", "lavfi", "-i", source)]
