"""What an operator may set about serving."""

from __future__ import annotations

from dataclasses import dataclass

from rtrec_ray.errors import ConfigInvalid


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingOptions:
    """How requests are answered. Names with `_s` are seconds of wall time.

    `exploration`: the share of requests in [0, 1] answered in random order. `arms`: names of an experiment's arms, over
    which users are spread evenly by hash; none means that only a request's own `arm` is logged.

    >>> ServingOptions(exploration=2.0)
    Traceback (most recent call last):
    rtrec_ray.errors.ConfigInvalid: serving: exploration is a share from 0 to 1, not 2.0
    """

    default_items: int = 10
    most_items: int = 100
    recalled_items: int = 200
    most_candidates: int = 1_000
    most_keys: int = 200
    exploration: float = 0.05
    arms: tuple[str, ...] = ()
    events_limit_bytes: int = 2 * 1024 * 1024
    # What a request says is in its inference record, which must stay below Kafka's limit of 1 MiB whatever is said.
    request_limit_bytes: int = 256 * 1024
    # A healthy store answers in one or two ms and a model in three: what takes longer than this is not coming.
    store_deadline_s: float = 0.3
    store_threads: int = 4
    model_deadline_s: float = 0.5
    model_threads: int = 2
    read_deadline_s: float = 3.0
    events_deadline_s: float = 5.0
    lists_refresh_s: float = 0.25
    catalogue_refresh_s: float = 5.0
    profile_refresh_s: float = 10.0
    champion_poll_s: float = 10.0
    log_queue: int = 20_000

    def __post_init__(self) -> None:
        if not 0.0 <= self.exploration <= 1.0:
            raise ConfigInvalid(f"serving: exploration is a share from 0 to 1, not {self.exploration}")
        for name in ("default_items", "most_items", "recalled_items", "store_threads", "model_threads", "log_queue"):
            if getattr(self, name) < 1:
                raise ConfigInvalid(f"serving: {name} is at least 1, not {getattr(self, name)}")
