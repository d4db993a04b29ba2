"""Blocking calls beside the event loop: a fixed number of threads, and a deadline for each call.

A hung server must cost a request its deadline once, not for ever, and not each request after it: while every thread
hangs in a call whose deadline has passed, further calls fail at once, until one of them comes back.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")


class CallTimedOut(TimeoutError):
    """A blocking call was not answered within its deadline, or could not be started at all."""


class _Call(Generic[T]):
    __slots__ = ("abandoned", "answer", "loop", "started", "work")

    def __init__(self, work: Callable[[], T], loop: asyncio.AbstractEventLoop) -> None:
        self.work = work
        self.loop = loop
        self.answer: asyncio.Future[T] = loop.create_future()
        self.started = False
        self.abandoned = False


class BoundedCalls:
    """Runs blocking work in `threads` daemon threads; at most `waiting` calls wait for one.

    >>> calls = BoundedCalls(name="sums", threads=1, deadline_s=5.0)
    >>> asyncio.run(calls.run(lambda: 1 + 1))
    2
    """

    def __init__(self, *, name: str, threads: int, deadline_s: float, waiting: int = 256) -> None:
        self.name = name
        self._threads = threads
        self._deadline_s = deadline_s
        self._waiting = waiting
        self._stuck = 0
        self._lock = threading.Lock()
        self._queue: SimpleQueue[_Call[Any] | None] = SimpleQueue()
        self._workers = [threading.Thread(target=self._serve, name=f"{name}-{i}", daemon=True) for i in range(threads)]
        for worker in self._workers:
            worker.start()

    def stuck(self) -> int:
        """How many threads hang in a call whose deadline has passed."""
        return self._stuck

    async def run(self, work: Callable[[], T]) -> T:
        """The result of `work`. Raises what it raises, or CallTimedOut."""
        if self._stuck >= self._threads:
            raise CallTimedOut(f"{self.name}: all {self._threads} threads wait for an answer that is overdue")
        if self._queue.qsize() >= self._waiting:
            raise CallTimedOut(f"{self.name}: {self._waiting} calls wait already")
        loop = asyncio.get_running_loop()
        call = _Call(work, loop)
        timer = loop.call_later(self._deadline_s, self._expire, call)
        self._queue.put(call)
        try:
            return await call.answer
        except asyncio.CancelledError:
            self._abandon(call)
            raise
        finally:
            timer.cancel()

    def close(self, *, timeout_s: float = 1.0) -> None:
        """End the threads; one that hangs longer than `timeout_s` ends when its call does."""
        for _ in self._workers:
            self._queue.put(None)
        for worker in self._workers if self._stuck == 0 else ():
            worker.join(timeout_s)

    def _expire(self, call: _Call[Any]) -> None:
        if not call.answer.done():
            self._abandon(call)
            call.answer.set_exception(CallTimedOut(f"{self.name}: no answer within {self._deadline_s} s"))

    def _abandon(self, call: _Call[Any]) -> None:
        with self._lock:
            call.abandoned = True
            self._stuck += call.started

    def _serve(self) -> None:
        while (call := self._queue.get()) is not None:
            with self._lock:
                if call.abandoned:
                    continue
                call.started = True
            self._answer(call)

    def _answer(self, call: _Call[Any]) -> None:
        result, error = None, None
        try:
            result = call.work()
        except BaseException as caught:  # noqa: BLE001 - it is raised where the call is awaited
            error = caught
        with self._lock:
            call.started = False
            if call.abandoned:
                self._stuck -= 1
                return
        try:
            call.loop.call_soon_threadsafe(_settle, call.answer, result, error)
        except RuntimeError:
            log.info("call_answered_after_its_loop_ended", extra={"calls": self.name})


def _settle(answer: asyncio.Future[Any], result: object, error: BaseException | None) -> None:
    if answer.done():
        return
    if error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(result)
