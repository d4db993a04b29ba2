"""The lists of views that are kept for serving, by what came since the last round and what left the window."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from rtrec_ray.errors import ListsOvertaken
from rtrec_ray.eventtime.window import Span
from rtrec_ray.features.sliding import SlidingView
from rtrec_ray.stores.features.store import FeatureKeeping, ListRound


class TopLists:
    """The lists of all cached views, kept by what came since the last round. After an error begin with a new one.

    Of several that are at work on one store only one writes after each round, so lists are never part one's, part
    another's.
    """

    def __init__(self, store: FeatureKeeping) -> None:
        self._store = store
        definitions = store.definitions
        self._views = [(view, definitions.window(view)) for view in definitions.views if view.cached]
        self._sliding: list[SlidingView] = []
        self._offsets: Mapping[int, int] | None = None
        self._rounds: Counter[str] | None = None

    def rebuild(self, *, now_ms: int) -> int:
        """Bring the lists to what holds now, the open tile included; answers how many there are.

        Raises ListsOvertaken, StoreUnavailable.
        """
        return self._move([[window.now(now_ms) for _, window in self._views]])

    def rebuild_at(self, moments_ms: Iterable[int]) -> int:
        """Bring the lists to what held at each of these past times, ascending ms; raises as `rebuild`."""
        return self._move([[window.at(moment) for _, window in self._views] for moment in moments_ms])

    def _move(self, moments: Sequence[Sequence[Span]]) -> int:
        if not self._views or not moments:
            return 0
        if self._rounds is None:
            # Before the tiles are read: of what is written after that they may know nothing.
            self._rounds = Counter(self._store.list_rounds())
        read = self._store.list_rows(after=self._offsets, from_ms=min(span.from_ms for span in moments[0]))
        whole = read.whole
        if whole:
            self._sliding = [SlidingView(view) for view, _ in self._views]
        for (view, _), sliding in zip(self._views, self._sliding, strict=True):
            sliding.take(read.rows.get(view.id, ()))
        rounds = []
        for spans in moments:
            for (view, _), sliding, span in zip(self._views, self._sliding, spans, strict=True):
                self._rounds[view.id] += 1
                number, changes = self._rounds[view.id], sliding.move(span)
                rounds.append(ListRound(view=view, number=number, changes=changes, offsets=read.offsets, whole=whole))
            whole = False
        self._store.put_lists(rounds)
        self._offsets = read.offsets
        return sum(len(sliding) for sliding in self._sliding)


def overtaken(each: ListRound) -> ListsOvertaken:
    """What to raise where a round is not the next of its view."""
    return ListsOvertaken(
        f"another keeper wrote lists of {each.view.id}, or it was dropped, before round {each.number}"
    )
