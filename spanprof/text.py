"""Numbers and names as people read them."""

_UNSCALED = 999.5
"""What rounds to four digits goes to the next unit."""


def _three_digits(value: float) -> str:
    if value < 9.995:
        return f"{value:.2f}"
    if value < 99.95:
        return f"{value:.1f}"
    return f"{value:.0f}"


def duration(nanoseconds: int) -> str:
    """Three digits and a unit: ``870 ns``, ``12.3 ms``, ``2m 05s``."""
    if nanoseconds < 0:
        return "-" + duration(-nanoseconds)
    if nanoseconds < 1000:
        return f"{nanoseconds} ns" if nanoseconds else "0"
    for unit, size in (("µs", 1e3), ("ms", 1e6)):
        if nanoseconds / size < _UNSCALED:
            return f"{_three_digits(nanoseconds / size)} {unit}"
    if nanoseconds / 1e9 < 99.95:
        return f"{_three_digits(nanoseconds / 1e9)} s"
    minutes, seconds = divmod(round(nanoseconds / 1e9), 60)
    if minutes < 60:
        return f"{minutes}m {seconds:02}s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours}h {minutes:02}m"
    return f"{hours // 24}d {hours % 24:02}h"


def size(number: int) -> str:
    """Three digits and a unit: ``512 B``, ``1.50 MiB``."""
    if number < 0:
        return "-" + size(-number)
    if number < 1000:
        return f"{number} B" if number else "0"
    value = float(number)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        value /= 1024
        if value < _UNSCALED:
            return f"{_three_digits(value)} {unit}"
    return f"{_three_digits(value / 1024)} PiB"


def count(number: int) -> str:
    return f"{number:,}"


_FORMATS = {"nanoseconds": duration, "bytes": size, "count": count}


def quantity(number: int, unit: str) -> str:
    """``number`` in one of the units of ``_core.SERIES``."""
    return _FORMATS.get(unit, count)(number)


def signed(number: int, unit: str) -> str:
    """A change: with its sign, nothing for no change."""
    if number == 0:
        return ""
    return ("+" if number > 0 else "") + quantity(number, unit)


def share(part: int, whole: int) -> str:
    """``part`` in percent of ``whole``; empty if there is no whole."""
    if whole <= 0:
        return ""
    percent = 100 * part / whole
    if part == 0:
        return "0%"
    if 0 < percent < 0.05:
        return "<0.1%"
    if abs(percent) >= 99.95:
        return f"{percent:.0f}%"
    return f"{percent:.1f}%"


def printable(text: str) -> str:
    """``text`` on one line and without effect on a terminal.

    Control characters, line separators, marks that change the direction of text
    and lone surrogates are shown as escapes, as ``repr`` does.
    """
    if text.isprintable():
        return text
    return "".join(
        char
        if char.isprintable()
        else char.encode("unicode_escape", "surrogatepass").decode("ascii")
        for char in text
    )


def cells(text: str) -> int:
    """How many columns of a terminal ``text`` takes."""
    if text.isascii():
        return len(text)
    return sum(map(_cells_of, text))


def _cells_of(char: str) -> int:
    import unicodedata

    if unicodedata.combining(char) or unicodedata.category(char) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def clip(text: str, width: int) -> str:
    """``text`` in at most ``width`` columns, with an ellipsis if it was cut."""
    if cells(text) <= width:
        return text
    room = width - 1
    end = 0
    for char in text:
        room -= _cells_of(char)
        if room < 0:
            break
        end += 1
    return text[:end] + "…"


def pad(text: str, width: int, right: bool) -> str:
    """``text`` filled up to ``width`` columns, to the right if asked to."""
    blank = " " * (width - cells(text))
    return blank + text if right else text + blank
