"""Which models serve, and how the next one takes its place without a request noticing.

A version is loaded and tried out beside the one that serves; only then one reference changes. A version that cannot be
loaded or answers anything but finite numbers is refused, once, and the old one goes on.
"""

from __future__ import annotations

import gc
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from rtrec_ray.errors import ModelRejected, RtrecError, ServerUnavailable
from rtrec_ray.notification import MODEL, MODEL_DEPLOYED, NewEvent
from serving.metrics import ServingMetrics
from serving.options import ModelRole
from serving.rank import Features, Scorer, score

log = logging.getLogger(__name__)

MODEL_DEPLOY_FAILED: Final = "MODEL_DEPLOY_FAILED"
NO_MODEL: Final = "none"
_RECENT: Final = 16
_SYNTHETIC_ROWS: Final = (1, 200)

Outcome = Literal["unchanged", "deployed", "refused", "away", "no_champion"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """What a model was asked: the request's features, and those of each candidate."""

    shared: Features
    rows: Sequence[Features] = field(repr=False)


class ModelHolder:
    """The model that serves, the one before it, and the last requests, on which the next one is tried.

    Reading is one attribute access: a request keeps the model it began with.
    """

    def __init__(self, role: ModelRole = "champion") -> None:
        self.role = role
        self._serving: tuple[Scorer | None, Scorer | None] = (None, None)
        self._recent: deque[Scored] = deque(maxlen=_RECENT)

    def current(self) -> Scorer | None:
        """The model that serves."""
        return self._serving[0]

    def previous(self) -> Scorer | None:
        """The model that served before, ready to serve again at once."""
        return self._serving[1]

    def version(self) -> str:
        """The version that serves; "none" without a model."""
        current = self.current()
        return NO_MODEL if current is None else current.version

    def swap(self, model: Scorer) -> None:
        """Serve this one from now on."""
        self._serving = (model, self._serving[0])

    def remember(self, scored: Scored) -> None:
        """Keep a request to try the next model on."""
        self._recent.append(scored)

    def recent(self) -> list[Scored]:
        """The last requests."""
        return list(self._recent)


def warm_up(model: Scorer, recent: list[Scored]) -> None:
    """Score the last requests and made-up ones, so that the first real one meets a warm model. Raises ModelRejected."""
    try:
        for count in _SYNTHETIC_ROWS:
            score(model, shared={}, rows=[{} for _ in range(count)])
        for scored in recent:
            score(model, shared=scored.shared, rows=scored.rows)
    except ModelRejected:
        raise
    except Exception as error:
        # Whatever the model's library raises here it would raise at a request.
        raise ModelRejected(f"model {model.version} does not score: {type(error).__name__}: {error}") from error


class Reloader:
    """Brings the version that should serve in the holder's role into it; `step` is one attempt.

    `wanted` answers that version; `load` makes a scorer of it; `send` sends an event. Events are of the champion alone:
    others learn from them what is online, and which further versions a replica compares it with is not their affair.
    """

    def __init__(
        self,
        holder: ModelHolder,
        *,
        wanted: Callable[[], str | None],
        load: Callable[[str], Scorer],
        send: Callable[[NewEvent], object],
        metrics: ServingMetrics,
        sender: str = "serving",
    ) -> None:
        self._holder = holder
        self._wanted = wanted
        self._load = load
        self._send = send
        self._metrics = metrics
        self._sender = sender
        self._refused: dict[str, str] = {}
        self._unsent: deque[NewEvent] = deque(maxlen=100)

    def step(self) -> Outcome:
        """Look once, and deploy what is wanted if it is new. Raises nothing that a server away would raise."""
        outcome = self._attempt()
        self._metrics.reloads.labels(self._holder.role, outcome).inc()
        self._announce()
        return outcome

    def version(self) -> str:
        """The version that serves in the role."""
        return self._holder.version()

    def refused(self) -> dict[str, str]:
        """Versions that could not be deployed, and why."""
        return dict(self._refused)

    def waiting(self) -> int:
        """Events not yet sent."""
        return len(self._unsent)

    def _attempt(self) -> Outcome:
        try:
            return self._bring(self._wanted())
        except (ServerUnavailable, OSError) as error:
            log.warning("model_reload_waits", extra={"role": self._holder.role, "reason": str(error)})
            return "away"

    def _bring(self, version: str | None) -> Outcome:
        if version is None:
            return "no_champion"
        if version == self._holder.version() or version in self._refused:
            return "unchanged"
        try:
            self._deploy(version)
        except ModelRejected as error:
            self._refuse(version, reason=error.message)
            return "refused"
        return "deployed"

    def _deploy(self, version: str) -> None:
        previous = self._holder.previous()
        before = self._holder.version()
        if previous is not None and previous.version == version:
            model = previous
        else:
            model = self._load(version)
            warm_up(model, self._holder.recent())
        self._holder.swap(model)
        self._metrics.serves(version, role=self._holder.role, before=before)
        log.info("model_deployed", extra={"role": self._holder.role, "version": version, "before": before})
        self._queue(MODEL_DEPLOYED, version, {"before": before, "trained_to_ms": model.trained_to_ms})

    def _refuse(self, version: str, *, reason: str) -> None:
        self._refused[version] = reason
        log.error("model_refused", extra={"role": self._holder.role, "version": version, "reason": reason})
        self._queue(MODEL_DEPLOY_FAILED, version, {"reason": reason, "serving": self._holder.version()})

    def _queue(self, kind: str, version: str, context: dict[str, object]) -> None:
        if self._holder.role == "champion":
            self._unsent.append(NewEvent(key=MODEL, value=version, type=kind, sender=self._sender, context=context))

    def _announce(self) -> None:
        while self._unsent:
            try:
                self._send(self._unsent[0])
            except RtrecError as error:
                log.warning("event_waits", extra={"reason": error.message, "waiting": len(self._unsent)})
                return
            self._unsent.popleft()


class ReloadLoop:
    """Keeps models in their holders, in one thread: looks when woken and each `poll_s`, since an event may be missed.

    The reloaders take turns in the order given, so what two of them want is loaded by the first and there for the next.
    """

    def __init__(self, reloaders: Sequence[Reloader]) -> None:
        self._reloaders = tuple(reloaders)
        self._woken = threading.Event()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def step(self) -> bool:
        """One look of each; False when one of them was left unfinished because a server is away."""
        before = self._versions()
        finished = [_look(reloader) for reloader in self._reloaders]
        if self._versions() != before:
            # A model of TensorFlow's refers to itself, and a process that looks for such things rarely would keep many.
            gc.collect()
        return all(finished)

    def start(self, *, poll_s: float, retry_s: float = 1.0) -> None:
        """Keep models deployed until `close`. While a server is away, look again after `retry_s` s or more."""
        self._thread = threading.Thread(target=self._run, args=(poll_s, retry_s), name="model-reload", daemon=True)
        self._thread.start()

    def wake(self, *_event: object) -> None:
        """Look now."""
        self._woken.set()

    def close(self, *, timeout_s: float = 1.0) -> None:
        """End the thread, when it is done with a version it loads."""
        self._closed.set()
        self._woken.set()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _run(self, poll_s: float, retry_s: float) -> None:
        failures = 0
        while not self._closed.is_set():
            self._woken.clear()
            failures = 0 if self.step() else failures + 1
            self._woken.wait(min(poll_s, retry_s * 2 ** min(failures - 1, 10)) if failures else poll_s)

    def _versions(self) -> list[str]:
        return [reloader.version() for reloader in self._reloaders]


def _look(reloader: Reloader) -> bool:
    try:
        return reloader.step() != "away" and not reloader.waiting()
    except Exception:
        # A thread that ends would leave the old model for good, and nobody would know.
        log.exception("model_reload_failed")
        return False
