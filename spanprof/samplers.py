"""Head sampling: which spans without a parent are recorded, all below them with them.

The decision is made in the core, at the root. A sampler in Python is asked by it.
"""

from __future__ import annotations

import _thread
import os
from itertools import count as count_up

from ._core import SpanMetadata
from .calltree import CallsiteCache
from .counters import count
from .logs import ERROR, LimitedLog

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from random import Random

    Labels = Mapping[str, object]
    CoreSampler = tuple[float, int | None] | Callable[[int, int, Labels | None], bool]


class HeadSampler:
    """Decides which spans are recorded. Subclass it, and pass an object of the subclass
    to :func:`spanprof.start`.

    It is asked once for each span that has no parent, on the thread that opens it and
    before it begins. All descendants follow that decision, on whatever thread: a span
    that is sampled out, and all below it, is in no profile and reaches no reporter.

    Spans that :meth:`should_sample` itself opens are not recorded, and it is not asked
    about them. What it raises is logged (``logging.getLogger("spanprof")``, a few times
    a minute) and counted in ``stats().sampler_errors``, and the span is recorded.
    ``KeyboardInterrupt`` and its like go on to the program.
    """

    def should_sample(self, metadata: SpanMetadata) -> bool:
        """Return whether the span, and all below it, is recorded.

        ``metadata.labels`` are all that the span was given or inherits
        (:func:`spanprof.labels`), also those that are not recorded. Called by many
        threads at a time. The program waits for it.
        """
        raise NotImplementedError


class AlwaysSampler(HeadSampler):
    """Records every span, as without a sampler and at the same cost."""

    def should_sample(self, metadata: SpanMetadata) -> bool:
        return True

    def __repr__(self) -> str:
        return "AlwaysSampler()"

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) or NotImplemented

    def __hash__(self) -> int:
        return hash(type(self))


class ProbabilisticSampler(HeadSampler):
    """Records one of ``1 / ratio`` stacks of spans, by chance.

    Each root is taken with probability ``ratio``, independently of all others. The
    decision is made in C and costs next to nothing.

    ``seed`` (any int) makes the decisions repeat: the first thread that opens a root in
    the session always sees the same ones, so does the second, and so on. Without it
    they are different each time. In a child after a fork they are others than in the
    parent and in any other child, with a seed as well.

    ValueError for a ratio outside 0 to 1, TypeError for what is no number.
    """

    def __init__(self, ratio: float, seed: int | None = None) -> None:
        if isinstance(ratio, bool) or not isinstance(ratio, (int, float)):
            raise TypeError(f"ratio must be a number, not {ratio!r}")
        if not 0 <= ratio <= 1:
            raise ValueError(f"ratio must be from 0 to 1, not {ratio!r}")
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise TypeError(f"seed must be an int or None, not {seed!r}")
        self._ratio = float(ratio)
        self._seed = seed
        self._local = _thread._local()
        self._process = os.getpid()
        self._threads = count_up()

    @property
    def ratio(self) -> float:
        """The probability of each root, 0 to 1."""
        return self._ratio

    @property
    def seed(self) -> int | None:
        return self._seed

    def should_sample(self, metadata: SpanMetadata) -> bool:
        """Decide by chance, for samplers that leave some spans to this one.

        A session that has this sampler itself does not call it. Its numbers are those
        of another generator, which ``seed`` makes repeat thread by thread as well.
        """
        return self._random().random() < self._ratio

    def _random(self) -> Random:
        here, process = self._local, os.getpid()
        if getattr(here, "process", None) != process:
            # Imported late, like all that few programs have a use for.
            from random import Random

            here.process = process
            if self._seed is None:
                here.random = Random()
            else:
                forked = process if process != self._process else 0
                here.random = Random(f"{self._seed}, {next(self._threads)}, {forked}")
        random: Random = here.random
        return random

    def __repr__(self) -> str:
        seed = "" if self._seed is None else f", seed={self._seed}"
        return f"ProbabilisticSampler({self._ratio!r}{seed})"

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return (self._ratio, self._seed) == (other._ratio, other._seed)

    def __hash__(self) -> int:
        return hash((type(self), self._ratio, self._seed))

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self._ratio, self._seed)


def check_sampler(sampler: object) -> HeadSampler | None:
    """TypeError for what is no sampler."""
    if sampler is None:
        return None
    if isinstance(sampler, type) and issubclass(sampler, HeadSampler):
        raise TypeError(
            f"a sampler must be an object, not a class: {sampler.__qualname__}()?"
        )
    if not isinstance(sampler, HeadSampler):
        raise TypeError(f"a sampler must be a spanprof.HeadSampler, not {sampler!r}")
    if type(sampler).should_sample is HeadSampler.should_sample:
        kind = type(sampler).__qualname__
        raise TypeError(f"{kind} has no method should_sample(metadata)")
    return sampler


_callsites = CallsiteCache()


class Question:
    """Asks a sampler that is written in Python; the core calls it."""

    def __init__(self, sampler: HeadSampler) -> None:
        self._sampler = sampler
        self._log = LimitedLog()

    def __call__(self, id: int, callsite: int, labels: Labels | None) -> bool:
        name, target, file, line = _callsites[callsite]
        try:
            shown = {key: str(value) for key, value in (labels or {}).items()}
            metadata = SpanMetadata((id,), callsite, target, name, file, line, shown)
            return bool(self._sampler.should_sample(metadata))
        except Exception as error:
            count("sampler_errors")
            kind = type(self._sampler).__qualname__
            message = f"{kind}.should_sample() failed, the span is recorded"
            self._log.log(None, ERROR, message, error)
            return True

    def finish(self) -> None:
        """Tell what was not logged."""
        self._log.finish(ERROR, "the sampler failed")


def core_sampler(sampler: HeadSampler | None) -> CoreSampler | None:
    """The sampler as :func:`spanprof._core.session_start` takes it."""
    if sampler is None:
        return None
    method = type(sampler).should_sample
    if method is AlwaysSampler.should_sample:
        return None
    if method is ProbabilisticSampler.should_sample:
        assert isinstance(sampler, ProbabilisticSampler)
        return sampler.ratio, sampler.seed
    return Question(sampler)
