"""SSIMULACRA2 (Sneyers, Cloudinary, 2022; version 2.1) with the same treatment of borders as its authors' program.

100 is equal, 90 hardly visible, 70 high quality, 50 medium, 30 low. The plugin vszip mirrors pictures at their borders,
where the authors' recursive Gaussian assumes black; at 480×400 pixels the coarsest maps are 15×13 pixels, and the two
differ by several points. This follows the authors: pictures in sRGB, their XYB, six scales, error maps of structure, of
artifacts and of lost detail. The constants are those of their program (BSD-3-Clause).
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

type Floats = NDArray[np.floating[Any]]
type Plane = NDArray[np.float64]

SCALES = 6
SIGMA = 1.5
_C2 = 0.0009
_OPSIN = np.array(
    [
        [0.30, 0.622, 0.078],
        [0.23, 0.692, 0.078],
        [0.24342268924547819, 0.20476744424496821, 1 - 0.24342268924547819 - 0.20476744424496821],
    ]
)
_OPSIN_BIAS = 0.0037930732552754493
# By channel (X, Y, B), scale and norm (mean, fourth root of the mean fourth power): structure, artifacts, lost detail.
# One line is a channel and scale.
_WEIGHTS_TEXT = """
0.0 0.0007376606707406586 0.0 0.0 0.0007793481682867309 0.0
0.0 0.0004371155730107379 0.0 1.1041726426657346 0.00066284834129271 0.00015231632783718752
0.0 0.0016406437456599754 0.0 1.8422455520539298 11.441172603757666 0.0
0.0007989109436015163 0.000176816438078653 0.0 1.8787594979546387 10.94906990605142 0.0
0.0007289346991508072 0.9677937080626833 0.0 0.00014003424285435884 0.9981766977854967 0.00031949755934435053
0.0004550992113792063 0.0 0.0 0.0013648766163243398 0.0 0.0
0.0 0.0 0.0 7.466890328078848 0.0 17.445833984131262
0.0006235601634041466 0.0 0.0 6.683678146179332 0.00037724407979611296 1.027889937768264
225.20515300849274 0.0 0.0 19.213238186143016 0.0011401524586618361 0.001237755635509985
176.39317598450694 0.0 0.0 24.43300999870476 0.28520802612117757 0.0004485436923833408
0.0 0.0 0.0 34.77906344483772 44.835625328877896 0.0
0.0 0.0 0.0 0.0 0.0 0.0
0.0 0.0008680556573291698 0.0 0.0 0.0 0.0
0.0 0.0005313191874358747 0.0 0.00016533814161379112 0.0 0.0
0.0 0.0 0.0 0.0004179171803251336 0.0017290828234722833 0.0
0.0020827005846636437 0.0 0.0 8.826982764996862 23.19243343998926 0.0
95.1080498811086 0.9863978034400682 0.9834382792465353 0.0012286405048278493 171.2667255897307 0.9807858872435379
0.0 0.0 0.0 0.0005130064588990679 0.0 0.00010854057858411537
"""
_WEIGHTS = np.array(_WEIGHTS_TEXT.split(), np.float64).reshape(3, SCALES, 2, 3)


def ssimulacra2(truth: Floats, result: Floats) -> float:
    """The score of a result against the truth.

    Args:
        truth: RGB (H, W, 3) of 0 to 1, gamma-encoded (sRGB), at least 256×256 pixels, so that there are six scales.
        result: The same size.

    Returns:
        100 for equal pictures; it may fall below 0.
    """
    a, b = (_linear(np.moveaxis(np.asarray(p, np.float64), -1, 0)) for p in (truth, result))
    total = 0.0
    for scale in range(SCALES):
        if scale:
            a, b = _halved(a), _halved(b)
        total += float((_terms(_xyb(a), _xyb(b)) * _WEIGHTS[:, scale]).sum())
    total *= 0.9562382616834844
    total = 2.326765642916932 * total - 0.020884521182843837 * total**2 + 6.248496625763138e-05 * total**3
    return float(100 - 10 * max(total, 0.0) ** 0.6276336467831387)


def _terms(x: Plane, y: Plane) -> Plane:
    """Return the errors of three planes (3, H, W) -> (channel, norm, map)."""
    mean_x, mean_y = _blurred(x), _blurred(y)
    var_x, var_y, cov = _blurred(x * x) - mean_x**2, _blurred(y * y) - mean_y**2, _blurred(x * y) - mean_x * mean_y
    structure = 1 - (1 - (mean_x - mean_y) ** 2) * (2 * cov + _C2) / (var_x + var_y + _C2)
    edges = (1 + np.abs(y - mean_y)) / (1 + np.abs(x - mean_x)) - 1
    maps = [np.maximum(m, 0) for m in (structure, edges, -edges)]
    mean = [m.mean((1, 2)) for m in maps]
    fourth = [(m**4).mean((1, 2)) ** 0.25 for m in maps]
    return np.moveaxis(np.array([mean, fourth]), 2, 0)


def _linear(rgb: Plane) -> Plane:
    rgb = np.clip(rgb, 0, 1)
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def _halved(planes: Plane) -> Plane:
    """Average 2×2 pixels; an odd last row or column is repeated."""
    _, height, width = planes.shape
    even = np.pad(planes, ((0, 0), (0, height % 2), (0, width % 2)), "edge")
    result: Plane = even.reshape(3, even.shape[1] // 2, 2, even.shape[2] // 2, 2).mean((2, 4))
    return result


def _xyb(linear: Plane) -> Plane:
    """Convert linear RGB to XYB, offset so that all values are positive."""
    long, middle, short = np.cbrt(np.maximum(np.tensordot(_OPSIN, linear, 1) + _OPSIN_BIAS, 0)) - math.cbrt(_OPSIN_BIAS)
    y = (long + middle) / 2
    return np.stack([(long - middle) / 2 * 14 + 0.42, y + 0.01, short - y + 0.55])


def _gaussian() -> Plane:
    """Return the taps of the authors' recursive Gaussian (Charalampidis, 2016), three cosines: its impulse response."""
    radius = round(3.2795 * SIGMA + 0.2546)
    omega = np.array([1, 3, 5]) * math.pi / (2 * radius)
    p = np.array([1, -1, 1]) / np.tan(omega / 2)
    r = np.array([1, -1, 1]) * p**2 / np.sin(omega)
    rho = np.exp(-0.5 * SIGMA**2 * omega**2) / radius
    d13, d35, d51 = (p[i] * r[j] - r[i] * p[j] for i, j in ((0, 1), (1, 2), (2, 0)))
    zeta = np.array([d35 / d13, d51 / d13, 1])
    beta = np.linalg.solve(np.array([p, r, zeta]), np.array([1, radius**2 - SIGMA**2, float(zeta @ rho)]))
    gain, turn = -beta * np.cos(omega * (radius + 1)), 2 * np.cos(omega)
    before, last = np.zeros(3), np.zeros(3)
    taps = []
    for n in range(1 - radius, radius):
        entering = float(n == 1 - radius) + float(n == radius + 1)
        before, last = last, gain * entering + turn * last - before
        taps.append(float(last.sum()))
    return np.array(taps)


_KERNEL = _gaussian()


def _blurred(planes: Plane) -> Plane:
    """Blur planes (3, H, W) in both directions, with black outside."""
    reach = len(_KERNEL) // 2
    for axis in (1, 2):
        border = [(0, 0)] * 3
        border[axis] = (reach, reach)
        padded = np.pad(planes, border)
        length = planes.shape[axis]
        planes = sum(
            (tap * np.take(padded, range(i, i + length), axis) for i, tap in enumerate(_KERNEL)), np.zeros_like(planes)
        )
    return planes
