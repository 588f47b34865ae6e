"""Files that are there as a whole or not at all."""

import itertools
import os

_numbers = itertools.count()


def write_file(path: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` to ``path``, readable for its owner alone.

    The data go to a temporary file in the same directory first, which then takes
    the name, also from a file that has it already. On an error, OSError is raised
    and nothing is left behind. What exists and is no regular file (a pipe, a
    device) is written to as it is.
    """
    path = os.fspath(path)
    if os.path.exists(path) and not os.path.isfile(path):
        with open(path, "wb") as file:
            file.write(data)
        return
    folder = os.path.dirname(path)
    temporary = os.path.join(folder, f".spanprof-{os.getpid()}-{next(_numbers)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        descriptor = os.open(temporary, flags, 0o600)
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o600)  # whatever the umask is
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        try:
            os.unlink(temporary)
        except OSError:
            pass  # it was never made
        raise
