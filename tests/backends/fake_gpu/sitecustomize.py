"""Python imports this when it starts: NVIDIA's driver seems to be installed."""

import ctypes


class Library(ctypes.CDLL):
    """A shared library; that of the driver is an empty one."""

    def __init__(self, name=None, *arguments, **options):
        if name not in ("libcuda.so.1", "nvcuda.dll"):
            super().__init__(name, *arguments, **options)


ctypes.CDLL = Library
