"""Files through real vspipe into real ffmpeg: frame counts, colors, clean streams, signals and broken pipes."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import vapoursynth as vs
import vsutil

from benchmarks.cartoon import write_dvd
from vsfdatrd.backends.native import backend as native
from vsfdatrd.system.programs import ffmpeg, run, vspipe

CLIPS = {
    # name: (script lines that make it progressive, lines of the matrix the source is in, output height)
    "ntsc_film_480p.mpg": ("", "170m", 960),
    "pal_576p.mpg": ("", "470bg", 1152),
    "ntsc_telecined_480i.mpg": ("clip = core.vivtc.VDecimate(core.vivtc.VFM(clip, order=1))\n", "170m", 960),
    "ld_square_720x540.mkv": ("", None, 1080),
}
FRAMES = 5
needs_avx2 = pytest.mark.skipif(native.unavailable() is not None, reason="the processor has no AVX2")


pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture(scope="module")
def dvd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short DVD-style file, drawn and encoded here."""
    file = tmp_path_factory.mktemp("dvd") / "drawn.mpg"
    write_dvd(file, 6)
    return file


def write_script(folder: Path, source: Path, model: Path | str, extra: str = "", arguments: str = "") -> Path:
    script = folder / f"{source.stem}.vpy"
    script.write_text(
        "from vapoursynth import core\n"
        f"clip = core.bs.VideoSource({str(source)!r}, cachemode=0)\n{extra}clip = clip[:{FRAMES}]\n"
        f"core.fdatrd.upscale(clip, model={str(model)!r}{arguments}).set_output()\n",
        encoding="utf-8",
    )
    return script


def encode(script: Path, output: Path) -> str:
    """vspipe -c y4m | ffmpeg, as the README says; returns what vspipe wrote on stderr."""
    pipe = subprocess.Popen([vspipe(), "-c", "y4m", str(script), "-"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    coder = subprocess.run(
        [ffmpeg(), "-v", "error", "-y", "-i", "-", "-c:v", "ffv1", str(output)],
        stdin=pipe.stdout,
        capture_output=True,
        text=True,
        check=False,
    )
    assert pipe.stdout is not None
    pipe.stdout.close()
    assert pipe.stderr is not None
    words = pipe.stderr.read().decode()
    pipe.stderr.close()
    assert pipe.wait() == 0, words
    assert coder.returncode == 0, coder.stderr
    assert coder.stderr == ""
    return words


def plane_means(clip: vs.VideoNode) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Mean of each plane of each frame as a share of the sample range, (frames, planes)."""
    assert clip.format is not None
    peak = vsutil.get_peak_value(clip)
    return np.array(
        [
            [np.asarray(frame[i]).mean() / peak for i in range(frame.format.num_planes)]
            for frame in clip.frames(close=False)
        ]
    )


@pytest.mark.parametrize("name", CLIPS)
def test_clips_go_from_file_to_file_with_their_colors(
    shared: Path, tmp_path: Path, identity_2x: Path, name: str
) -> None:
    source = shared / "data" / "clips" / name
    extra, _, height = CLIPS[name]
    output = tmp_path / "out.mkv"
    encode(write_script(tmp_path, source, identity_2x, extra), output)

    clip = vs.core.bs.VideoSource(str(source), cachemode=0)
    if extra:
        clip = vs.core.vivtc.VDecimate(vs.core.vivtc.VFM(clip, order=1))
    clip = clip[:FRAMES]
    encoded = vs.core.bs.VideoSource(str(output), cachemode=0)
    assert encoded.num_frames == clip.num_frames == FRAMES
    assert (encoded.width, encoded.height) == (2 * clip.width, height)
    assert encoded.fps == clip.fps
    # HD output is in the 709 matrix: compared with VapourSynth's own resize to the same size and matrix.
    expected = clip.resize.Lanczos(2 * clip.width, height, format=encoded.format.id, matrix_s="709")
    assert np.abs(plane_means(encoded) - plane_means(expected)).max() <= 1 / 255


@pytest.mark.parametrize("backend", [pytest.param("native", marks=needs_avx2), "openvino"])
def test_a_real_network_keeps_colors(dvd: Path, shared: Path, backend: str) -> None:
    weights = shared / "weights" / "fdat_rd_medium_2x_standin.safetensors"
    clip = vs.core.bs.VideoSource(str(dvd), cachemode=0)[:1].std.CropAbs(60, 60, 330, 210)
    ours = vs.core.fdatrd.upscale(clip, model=str(weights), matrix="source", backend=backend)
    expected = clip.resize.Lanczos(120, 120, format=ours.format.id)
    assert np.abs(plane_means(ours) - plane_means(expected)).max() <= 1 / 255
    # and it is a picture, not an average of one
    difference = vs.core.std.PlaneStats(ours, expected).get_frame(0).props["PlaneStatsDiff"]
    assert isinstance(difference, float)
    assert difference < 0.03


def test_stdout_is_video_and_nothing_else(dvd: Path, tmp_path: Path, identity_2x: Path) -> None:
    script = write_script(tmp_path, dvd, identity_2x)
    for _ in range(2):  # with an empty cache and with a warm one
        data = run([vspipe(), "-c", "y4m", str(script), "-"])
        header, _, rest = data.partition(b"\n")
        assert header.startswith(b"YUV4MPEG2 C420p16 W1440 H960 ")
        frame = len(b"FRAME\n") + 1440 * 960 * 3
        assert len(rest) == FRAMES * frame
        assert all(rest[n * frame :].startswith(b"FRAME\n") for n in range(FRAMES))


def test_building_an_engine_says_so_on_stderr(dvd: Path, tmp_path: Path, tiny_model: Path) -> None:
    script = write_script(tmp_path, dvd, tiny_model, "clip = core.std.CropAbs(clip, 120, 120)\n")
    done = subprocess.run([vspipe(), "--info", str(script), "-"], capture_output=True, text=True, check=True)
    output = r"building the (native|openvino) engine of tiny_2x\.safetensors for 120×120"
    assert re.search(output, done.stderr)
    assert "building" not in done.stdout


def test_errors_reach_vspipes_user_as_a_sentence(tmp_path: Path, dvd: Path) -> None:
    script = write_script(tmp_path, dvd, "nothing/here.pth")
    done = subprocess.run([vspipe(), "-c", "y4m", str(script), "-"], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stdout == ""
    assert "fdatrd.upscale: the weights file 'nothing/here.pth' does not exist" in done.stderr


def test_a_reader_that_closes_early_ends_vspipe(dvd: Path, tmp_path: Path, identity_2x: Path) -> None:
    script = write_script(tmp_path, dvd, identity_2x)
    pipe = subprocess.Popen(
        [vspipe(), "-c", "y4m", str(script), "-"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert pipe.stdout is not None
    assert pipe.stdout.read(9) == b"YUV4MPEG2"
    pipe.stdout.close()
    assert pipe.wait(timeout=200) != -signal.SIGSEGV


@pytest.mark.parametrize(
    ("after", "backend"),
    [
        (0.0, "auto"),
        pytest.param(1.5, "native", marks=needs_avx2),
        (3.0, "openvino"),
    ],
)
def test_interrupting_vspipe_leaves_a_cache_that_works(
    dvd: Path, tmp_path: Path, shared: Path, cache: Path, after: float, backend: str
) -> None:
    weights = shared / "weights" / "fdat_rd_medium_2x_standin.safetensors"
    crop = "clip = core.std.CropAbs(clip, 60, 60)\n"
    script = write_script(tmp_path, dvd, weights, crop, f", backend={backend!r}")
    with (tmp_path / "null").open("wb") as null:
        pipe = subprocess.Popen([vspipe(), "-c", "y4m", str(script), "-"], stdout=null, stderr=subprocess.DEVNULL)
        time.sleep(1 + after)
        pipe.send_signal(signal.SIGINT)
        assert pipe.wait(timeout=200) != -signal.SIGSEGV
    done = subprocess.run(
        [vspipe(), "-c", "y4m", "-e", "0", str(script), "-"], capture_output=True, check=False, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr.decode()
    assert len(done.stdout) > 120 * 120 * 3
    assert not list(cache.glob("store-1/tmp/*"))
