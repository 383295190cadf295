"""Run a function repeatedly in another Python process, for libraries that cannot be loaded into this one."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

type Array = NDArray[Any]
type Compute = Callable[..., Array]

_LOOP = """

import sys
import numpy as np
for line in sys.stdin:
    try:
        *fields, source, target = line.rstrip("\\n").split("\\t")
        np.save(target, compute(*fields, np.load(source)))
        print("done", flush=True)
    except Exception as error:
        print(repr(error).replace("\\n", " "), flush=True)
"""


@contextmanager
def start_process(program: str, folder: Path) -> Iterator[Compute]:
    """Start a process that defines `compute(*words, array) -> array`; yield a function that calls it there.

    folder: where arrays are put on their way.
    """
    source, target = folder / "in.npy", folder / "out.npy"
    with subprocess.Popen(
        [sys.executable, "-c", program + _LOOP], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        asked, answered = process.stdin, process.stdout
        assert asked is not None
        assert answered is not None

        def compute(*arguments: Any) -> Array:
            *words, array = arguments
            target.unlink(missing_ok=True)
            np.save(source, array)
            asked.write("\t".join(str(word) for word in [*words, source, target]) + "\n")
            asked.flush()
            assert answered.readline() == "done\n"
            result: Array = np.load(target)
            return result

        yield compute
        asked.close()
