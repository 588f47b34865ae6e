"""Profiles pushed to a Pyroscope server."""

from __future__ import annotations

import _thread
import os
import time
from collections import deque

from .._core import SERIES
from ..config import check_limit, check_seconds
from ..counters import count
from ..logs import WARNING, LimitedLog
from .base import import_now

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from email.message import Message
    from ssl import SSLContext
    from typing import Final
    from urllib.request import OpenerDirector

_APP_NAME = r"[A-Za-z0-9_.\-/]+"
_TAG_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_NOT_IN_TAG_VALUES = r"[,{}\x00-\x1f\x7f\ud800-\udfff]"
_NO_HEADER_VALUE = r"[^\x21-\x7e]"
"""Spaces as well: neither a token nor a tenant has one."""

_PAUSES = (0.05, 0.2)
"""Seconds before the second and the third try, at a server that has answered so far."""

_FIRST_BACKOFF = 1.0
_LONGEST_BACKOFF = 60.0
_LONGEST_RETRY_AFTER = 300.0
"""Seconds without a try after one that failed. Twice as many after each further one;
the last is what a server may ask for at most."""

_QUICK = 2.0
"""Seconds that the first try waits for a server that has just failed to answer."""

_SPELL = 1.0
_LAST_SPELL = 3.0
"""Seconds for which older profiles are sent during one call, and during a flush."""

_MOST_ERRORS = 5
"""Answers such as 500 to one profile, after which it is given up: it may be what the
server cannot digest, and the others wait behind it."""

_MESSAGE = 200
"""Characters of the server's message that go into the log."""

_TEMPORARY = (
    r"failed (resource_exhausted|unavailable|deadline_exceeded|canceled|aborted):"
    r"|failed unknown: (at least \d+ live replicas required|empty ring)"
)
"""Pyroscope answers 422 to whatever went wrong behind its front: the text tells what of
it passes. Labels, which it quotes as well, do not look like this."""

_UNITS = {"count": "objects", "bytes": "bytes", "nanoseconds": "nanoseconds"}
"""The server's words for ours."""


def _search(pattern: str, text: str) -> bool:
    # Imported late: a program without a server has no use for it.
    import re

    return re.search(pattern, text) is not None


def _fullmatch(pattern: str, text: str) -> bool:
    import re

    return re.fullmatch(pattern, text) is not None


class _Profile:
    """One that is to be sent."""

    __slots__ = ("data", "end", "errors", "kind", "start")

    def __init__(self, kind: str, start: int, end: int, data: bytes) -> None:
        self.kind = kind
        self.start = start
        self.end = end
        self.data = data
        self.errors = 0


class _Answer:
    """What became of one try. ``status`` is 0 if there was no answer."""

    __slots__ = ("message", "retry_after", "status")

    def __init__(
        self, status: int, message: str = "", retry_after: float | None = None
    ) -> None:
        self.status = status
        self.message = message
        self.retry_after = retry_after

    @property
    def is_good(self) -> bool:
        return 200 <= self.status < 300

    @property
    def is_temporary(self) -> bool:
        return (
            self.status in (0, 408, 429)
            or self.status >= 500
            or (self.status == 422 and _search(_TEMPORARY, self.message))
        )

    @property
    def asks_to_wait(self) -> bool:
        return self.retry_after is not None or self.status in (422, 429, 503)

    @property
    def may_be_the_profile(self) -> bool:
        """Whether another profile could get another answer."""
        return self.status == 408 or (
            self.status >= 500 and self.status not in (502, 503, 504)
        )

    def __str__(self) -> str:
        return f"{self.status} {self.message}" if self.status else self.message


class PyroscopeBackend:
    """Sends each profile to a Grafana Pyroscope server, by HTTP (``POST /ingest``).

    ``url`` is where the server is, ``http`` or ``https``, with a path if it lives below
    one. ``app_name`` becomes the label ``service_name``; ``tags`` are further labels.
    ``auth`` is a bearer token, or user and password as a tuple; it is never shown.
    ``tenant`` goes into ``X-Scope-OrgID``. Proxies are taken from the environment, as
    ``urllib`` does; redirects are not followed. ``ssl_context`` is for servers whose
    certificates the system does not know.

    ``timeout`` is in seconds, for each step of a push (connecting, sending, waiting for
    the answer). A push that fails is tried again after two short pauses. After that the
    server counts as down: profiles are kept, ``max_spooled`` bytes of them, and sent in
    their order once it answers again. Meanwhile there are tries at growing intervals, a
    minute apart at most, or as the server asks for with ``Retry-After`` (five minutes
    at most). What does not fit is dropped, oldest first, counted in
    ``stats().profiles_dropped`` and logged.

    A profile that the server refuses (400 and the like) is not sent again: it is
    counted in ``stats().profiles_refused``, and logged with the server's words.

    A profile may arrive twice: if the connection breaks after the server has taken it
    and before it says so.

    Wrong types raise TypeError, bad values ValueError. Any thread may call; calls wait
    for each other. A child after a fork leaves to its parent what that has not sent.
    """

    def __init__(
        self,
        url: str,
        app_name: str,
        tags: Mapping[str, str] | None = None,
        auth: str | tuple[str, str] | None = None,
        tenant: str | None = None,
        timeout: float = 5.0,
        *,
        max_spooled: int = 8 * 2**20,
        ssl_context: SSLContext | None = None,
    ) -> None:
        import_now("email.utils", "encodings.idna", "json", "re", "urllib.request")
        self._url: Final = _check_url(url)
        self._app_name: Final = _check_app_name(app_name)
        self._name: Final = self._app_name + _check_tags(tags)
        self._headers: Final = _headers(auth, tenant)
        self._timeout: Final = check_seconds("timeout", timeout)
        if self._timeout == 0:
            raise ValueError("timeout must be above 0")
        self._max_spooled: Final = check_limit("max_spooled", max_spooled)
        if ssl_context is not None:
            from ssl import SSLContext

            if not isinstance(ssl_context, SSLContext):
                raise TypeError(f"ssl_context must be an SSLContext: {ssl_context!r}")
        self._ssl_context: Final = ssl_context
        self._opener: OpenerDirector | None = None
        self.sent = 0
        """Number of profiles that the server has taken."""
        self.last_error: str | None = None
        """What went wrong last."""
        self._begin()

    def _begin(self) -> None:
        """Hold nothing, and take the server to be up."""
        self._pid = os.getpid()
        self._log = LimitedLog(1)
        self._lock = _thread.allocate_lock()
        # All below is written under the lock alone.
        self._spool: deque[_Profile] = deque()  # the oldest first
        self._spooled_bytes = 0
        self._failures = 0  # tries in a row
        self._failed_at = 0.0  # times of time.monotonic()
        self._next_try = 0.0
        self._asked_until = 0.0  # by Retry-After

    def init(self) -> None:
        """Called at the beginning of a session, and again in a child after a fork.

        What an earlier session of this process could not send is kept.
        """
        if self._pid != os.getpid():
            self._begin()
            self.sent = 0
            self.last_error = None

    @property
    def spooled(self) -> int:
        """Number of profiles that wait for the server."""
        return len(self._spool)

    @property
    def spooled_bytes(self) -> int:
        """Their size."""
        return self._spooled_bytes

    def save_profile(self, kind: str, start: int, end: int, data: bytes) -> None:
        """Send ``data``, or keep it for later. Does not raise if that fails."""
        self.init()
        with self._lock:
            self._spool.append(_Profile(kind, start, end, data))
            self._spooled_bytes += len(data)
            try:
                if time.monotonic() >= self._next_try:
                    # Quick at first, but a server that is only slow is not given up.
                    quick = _QUICK * 2 ** min(self._failures - 1, 20)
                    self._send(_SPELL, quick)
            finally:
                self._drop_what_is_over()

    def flush(self) -> None:
        """Send what is left, now. One quick try if the server is down."""
        self.init()
        with self._lock:
            now = time.monotonic()
            just_tried = self._failures and now - self._failed_at < _FIRST_BACKOFF
            if self._spool and now >= self._asked_until and not just_tried:
                self._send(_LAST_SPELL, _QUICK)
            if self._spool:
                self._log.log(
                    "left",
                    WARNING,
                    f"{len(self._spool)} profiles ({self._spooled_bytes} bytes) wait "
                    f"for {self!r}, and are lost if the process ends now: "
                    f"{self.last_error or 'it is slow'}",
                )

    # The caller of the methods below holds the lock.

    def _send(self, spell: float, quick: float) -> None:
        """Send one, and more of them for ``spell`` seconds, until a try fails."""
        until = time.monotonic() + spell
        while self._spool:
            answer = self._push_patiently(self._spool[0], quick)
            if answer.is_temporary:
                self._note_failure(answer)
                return
            self._failures = 0
            profile = self._take_oldest()
            if answer.is_good:
                self.sent += 1
            else:
                self._note_error(answer)
                count("profiles_refused")
                self._log.log(
                    ("refused", answer.status),
                    WARNING,
                    f"{self!r} has refused a {profile.kind} profile: {answer}",
                )
            if time.monotonic() >= until:
                return

    def _push_patiently(self, profile: _Profile, quick: float) -> _Answer:
        """Try once, or more often at a server that has answered so far."""
        if self._failures:
            return self._push(profile, min(quick, self._timeout))
        for pause in _PAUSES:
            began = time.monotonic()
            answer = self._push(profile, self._timeout)
            if not answer.is_temporary or answer.asks_to_wait:
                return answer
            if time.monotonic() - began > min(_QUICK, self._timeout) / 2:
                return answer  # it hangs
            count("write_retries")
            time.sleep(pause)
        return self._push(profile, self._timeout)

    def _note_failure(self, answer: _Answer) -> None:
        self._note_error(answer)
        self._failures += 1
        now = self._failed_at = time.monotonic()
        pause = min(_FIRST_BACKOFF * 2 ** min(self._failures - 1, 20), _LONGEST_BACKOFF)
        if answer.retry_after is not None:
            asked = min(answer.retry_after, _LONGEST_RETRY_AFTER)
            self._asked_until = now + asked
            pause = max(pause, asked)
        self._next_try = now + pause
        self._log.log(
            "down",
            WARNING,
            f"{self!r} takes no profiles: {answer}; up to {self._max_spooled} bytes of "
            "them are kept and sent later",
        )
        if answer.may_be_the_profile:
            profile = self._spool[0]
            profile.errors += 1
            if profile.errors >= _MOST_ERRORS:
                self._take_oldest()
                self._note_dropped(1, f"{_MOST_ERRORS} times the answer was {answer}")

    def _drop_what_is_over(self) -> None:
        dropped = 0
        while self._spooled_bytes > self._max_spooled:
            self._take_oldest()
            dropped += 1
        if dropped:
            reason = f"more than {self._max_spooled} bytes wait for the server"
            self._note_dropped(dropped, reason)

    def _note_dropped(self, number: int, reason: str) -> None:
        count("profiles_dropped", number)
        text = f"{number} profiles for {self!r} were dropped: {reason}"
        self._log.log("dropped", WARNING, text)

    def _take_oldest(self) -> _Profile:
        profile = self._spool.popleft()
        self._spooled_bytes -= len(profile.data)
        return profile

    def _note_error(self, answer: _Answer) -> None:
        self.last_error = str(answer)

    # --- one push -------------------------------------------------------------------

    def _push(self, profile: _Profile, timeout: float) -> _Answer:
        from urllib.error import HTTPError, URLError
        from urllib.parse import urlencode
        from urllib.request import Request

        content_type, body = _form(profile)
        # Not format=pprof: a server then takes the whole form for the profile. The
        # sample rate means nothing to values that are exact, but some want one.
        query = urlencode(
            {
                "name": self._name,
                "from": profile.start // 10**9,
                "until": -(-profile.end // 10**9),
                "spyName": "spanprof",
                "sampleRate": 100,
            }
        )
        headers = self._headers | {"Content-Type": content_type}
        try:
            request = Request(f"{self._url}/ingest?{query}", body, headers)
            with self._opened().open(request, timeout=timeout) as response:
                response.read(_MESSAGE)
                return _Answer(response.status)
        except HTTPError as error:
            with error:
                return _Answer(
                    error.code,
                    _message_of(error),
                    _retry_after(error.headers) if error.code in (429, 503) else None,
                )
        except Exception as error:  # whatever it is, it must not be sent twice
            reason = error.reason if isinstance(error, URLError) else error
            if isinstance(reason, TimeoutError):
                return _Answer(0, f"no answer within {timeout:g} s")
            if isinstance(reason, BaseException):
                return _Answer(0, _one_line(f"{type(reason).__name__}: {reason}"))
            return _Answer(0, _one_line(str(reason)))

    def _opened(self) -> OpenerDirector:
        if self._opener is None:
            from urllib.request import (
                HTTPRedirectHandler,
                HTTPSHandler,
                build_opener,
            )

            class NoRedirect(HTTPRedirectHandler):
                """Would send the credentials elsewhere, and not the profile."""

                def redirect_request(self, *_: object) -> None:
                    return None

            handlers = [NoRedirect()]
            if self._url.startswith("https:"):
                context = self._ssl_context
                if context is None:
                    from ssl import create_default_context

                    context = create_default_context()
                self._opener = build_opener(*handlers, HTTPSHandler(context=context))
            else:
                self._opener = build_opener(*handlers)
        return self._opener

    def __repr__(self) -> str:
        return f"PyroscopeBackend({self._url!r}, {self._app_name!r})"


def _form(profile: _Profile) -> tuple[str, bytes]:
    """A multipart form's content type and body."""
    from json import dumps

    # Values are those of the profile's time, not since the start. The memory in use is
    # a level, which does not add up over time.
    config = {
        name: {
            "units": _UNITS[unit],
            "aggregation": "average" if kind == "heap" else "sum",
            "cumulative": False,
            "sampled": False,
        }
        for name, unit, kind, _ in SERIES
        if kind == profile.kind
    }
    boundary = os.urandom(16).hex()
    parts = [("profile", "profile.pprof", profile.data)]
    if config:
        text = dumps(config).encode()
        parts.append(("sample_type_config", "sample_type_config.json", text))
    body = b"".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; '
        f'filename="{file}"\r\nContent-Type: application/octet-stream\r\n\r\n'.encode()
        + data
        + b"\r\n"
        for name, file, data in parts
    )
    return (
        f"multipart/form-data; boundary={boundary}",
        body + f"--{boundary}--\r\n".encode(),
    )


def _message_of(error: object) -> str:
    """The server's words, if it has any; at most 200 characters on one line."""
    from urllib.error import HTTPError

    assert isinstance(error, HTTPError)
    if 300 <= error.code < 400:
        return "redirects are not followed"
    try:
        text = error.read(4 * _MESSAGE).decode("utf-8", "replace")
    except Exception:
        text = ""
    return _one_line(text) or _one_line(str(error.reason))


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    line = "".join(each if each.isprintable() else "?" for each in line)
    return line[:_MESSAGE]


def _retry_after(headers: Message) -> float | None:
    """Seconds; None if the header is not there or makes no sense."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        from email.utils import parsedate_to_datetime

        return max(parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return None


# --- checks ---------------------------------------------------------------------------


def _check_url(url: object) -> str:
    if not isinstance(url, str):
        raise TypeError(f"url must be a str, not {type(url).__name__}")
    from urllib.parse import urlsplit

    # What is wrong with it may be a password in it: it is not shown.
    if _search(r"[^\x21-\x7e]", url):
        raise ValueError("url must be ASCII without spaces")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ValueError("url must have a good host and port") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError("url must begin with http:// or https:// and a host")
    if "@" in parts.netloc:
        raise ValueError("url must not hold a user or password: use auth")
    if parts.query or parts.fragment or url.endswith(("?", "#")):
        raise ValueError("url must not hold a query or fragment")
    return parts.scheme + url[len(parts.scheme) :].rstrip("/")


def _check_app_name(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"app_name must be a str, not {name!r}")
    if not _fullmatch(_APP_NAME, name):
        raise ValueError(
            f"app_name must consist of ASCII letters, digits and _ . - /: {name!r}"
        )
    return name


def _check_tags(tags: object) -> str:
    """As the server wants them behind the name."""
    if tags is None:
        return ""
    from collections.abc import Mapping

    if not isinstance(tags, Mapping):
        raise TypeError(f"tags must be a mapping, not {tags!r}")
    for name, value in tags.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"tags must map str to str, not {name!r} to {value!r}")
        if not _fullmatch(_TAG_NAME, name):
            raise ValueError(
                "a tag's name must consist of ASCII letters, digits and _, and not "
                f"begin with a digit: {name!r}"
            )
        if name.startswith("__"):
            raise ValueError(f"a tag's name must not begin with __: {name!r}")
        if not value or value != value.strip() or _search(_NOT_IN_TAG_VALUES, value):
            raise ValueError(
                "a tag's value must not be empty, nor hold a comma, a brace, a control "
                f"character, or a space at an end: {value!r}"
            )
    if not tags:
        return ""
    return "{" + ",".join(f"{name}={tags[name]}" for name in sorted(tags)) + "}"


def _headers(auth: object, tenant: object) -> dict[str, str]:
    # Messages never show what they complain about: it may be a secret.
    headers = {"User-Agent": "spanprof"}
    if isinstance(auth, str):
        if not auth or _search(_NO_HEADER_VALUE, auth):
            raise ValueError("a token in auth must be printable ASCII without spaces")
        headers["Authorization"] = f"Bearer {auth}"
    elif auth is not None:
        if not (
            isinstance(auth, tuple)
            and len(auth) == 2
            and all(isinstance(each, str) for each in auth)
        ):
            raise TypeError("auth must be a token or a tuple of user and password")
        user, password = auth
        if ":" in user:
            raise ValueError("the user in auth must not hold a colon")
        from base64 import b64encode

        try:
            plain = f"{user}:{password}".encode()
        except UnicodeEncodeError:
            raise ValueError("auth must be text that UTF-8 has a place for") from None
        headers["Authorization"] = f"Basic {b64encode(plain).decode()}"
    if tenant is not None:
        if not isinstance(tenant, str):
            raise TypeError(f"tenant must be a str, not {tenant!r}")
        if not tenant or _search(_NO_HEADER_VALUE, tenant):
            raise ValueError(
                f"tenant must be printable ASCII without spaces: {tenant!r}"
            )
        headers["X-Scope-OrgID"] = tenant
    return headers
