"""Work in a thread whose failure is not lost, and waiting that notices it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Final, Generic, TypeVar

from rtrec_ray.clock import monotonic_s
from rtrec_ray.errors import DemoFailed

T = TypeVar("T")

_POLL_S: Final = 0.2
_LAST_WORDS_S: Final = 2.0


class Background(Generic[T]):
    """Runs `work` in a thread of its own."""

    def __init__(self, work: Callable[[], T], *, name: str) -> None:
        self._work = work
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._result: T | None = None
        self._error: BaseException | None = None

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Wait for the end of work that was told otherwise to end."""
        self._thread.join(_LAST_WORDS_S)

    def join(self) -> None:
        """Wait for the end, however long that takes."""
        self._thread.join()

    def done(self) -> bool:
        """Whether it is over."""
        return not self._thread.is_alive()

    def check(self) -> None:
        """Raise what ended the work, if something did."""
        if self._error is not None:
            raise self._error

    def result(self) -> T:
        """What the work answered, once it is over. Raises what ended it."""
        self._thread.join()
        self.check()
        assert self._result is not None
        return self._result

    def _run(self) -> None:
        try:
            self._result = self._work()
        except BaseException as error:  # noqa: BLE001 - told by `check`: a thread has nobody else to tell
            self._error = error


def wait_until(
    met: Callable[[], bool], *, timeout_s: float, what: str, mend: str, checked: Sequence[Callable[[], None]] = ()
) -> None:
    """Return once `met`, looking a few times a second; `checked` are called meanwhile and may raise.

    Raises DemoFailed after `timeout_s`, with `what` did not happen and where to look.
    """
    deadline_s = monotonic_s() + timeout_s
    while not met():
        for check in checked:
            check()
        if monotonic_s() > deadline_s:
            raise DemoFailed(f"{what} within {timeout_s:.0f} s", mend=mend)
        pause(_POLL_S)


def pause(seconds: float) -> None:
    """Do nothing for a while, wall time."""
    threading.Event().wait(seconds)
