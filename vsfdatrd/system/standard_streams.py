"""Standard streams of a program that may have been started without them."""

import os
import sys


def has_stderr() -> bool:
    """Return whether file descriptor 2 is this program's stderr.

    If it was closed when Python started (`sys.__stderr__` is None), the number may since belong to any file.
    """
    if sys.__stderr__ is None:
        return False
    try:
        os.fstat(2)
    except OSError:
        return False
    return True


def fill_standard_streams() -> None:
    """Open closed file descriptors among 0, 1 and 2 on the null device.

    Otherwise the next files opened would get these numbers and be mistaken for a standard stream: replaced by a child's
    pipes, redirected by `stdout_to_stderr`, written to by anything that prints. POSIX only: Windows does not pass
    standard streams to children by number.
    """
    if os.name != "posix":
        return
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            if opened > 2:  # another thread took the number meanwhile
                os.close(opened)
            else:
                os.set_inheritable(opened, True)
