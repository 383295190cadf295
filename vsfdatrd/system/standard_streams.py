"""Standard input, output and error output of a program that may have been started without them."""

import os
import sys


def has_stderr() -> bool:
    """Whether file descriptor 2 is this program's error output.

    Where it was closed when Python started, as `sys.__stderr__` tells, the number may since be any file's.
    """
    if sys.__stderr__ is None:
        return False
    try:
        os.fstat(2)
    except OSError:
        return False
    return True


def fill_standard_streams() -> None:
    """Open those of the file descriptors 0, 1 and 2 that are closed, on nothing.

    The next files opened would get these numbers, and then be taken for a stream: covered by a child's pipes, moved
    away by `stdout_to_stderr`, written to by whatever prints. POSIX only: Windows does not tell children by number.
    """
    if os.name != "posix":
        return
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            if opened > 2:  # another thread was faster
                os.close(opened)
            else:
                os.set_inheritable(opened, True)
