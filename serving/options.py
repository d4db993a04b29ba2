"""What an operator may set about serving."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from rtrec_ray.errors import ConfigInvalid

# The champion, or the base version at the root of its chain: the same model without the increments since.
ModelRole = Literal["champion", "base"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """How an experiment's arm is answered: by which model, and whether real-time values may be used.

    Without `realtime` a request gets what is known a day later: profile and catalogue.

    >>> Arm(model="best")
    Traceback (most recent call last):
    rtrec_ray.errors.ConfigInvalid: serving: the model of an arm is champion or base, not best
    """

    model: ModelRole = "champion"
    realtime: bool = True

    def __post_init__(self) -> None:
        if self.model not in get_args(ModelRole):
            raise ConfigInvalid(f"serving: the model of an arm is {' or '.join(get_args(ModelRole))}, not {self.model}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingOptions:
    """How requests are answered. Names with `_s` are seconds of wall time.

    `exploration`: the share of requests in [0, 1] answered in random order. `arms`: an experiment's arms by name, over
    which users are spread evenly by hash; none means that everybody is answered alike and only a request's own `arm` is
    logged.

    >>> ServingOptions(exploration=2.0)
    Traceback (most recent call last):
    rtrec_ray.errors.ConfigInvalid: serving: exploration is a share from 0 to 1, not 2.0
    >>> ServingOptions(near_refresh_s=-1.0)
    Traceback (most recent call last):
    rtrec_ray.errors.ConfigInvalid: serving: near_refresh_s is 0 or more, not -1.0
    """

    default_items: int = 10
    most_items: int = 100
    recalled_items: int = 200
    most_candidates: int = 1_000
    most_keys: int = 200
    exploration: float = 0.05
    arms: Mapping[str, Arm] = field(default_factory=dict)
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
    # Windows and lists are kept in a replica's memory, as of a look at the store so often; 0: every request asks the
    # store. Windows with more rows of tiles than this, of some 150 bytes each, are left to the store.
    near_refresh_s: float = 0.05
    near_rows: int = 500_000
    lists_refresh_s: float = 0.25
    catalogue_refresh_s: float = 5.0
    profile_refresh_s: float = 10.0
    champion_poll_s: float = 10.0
    log_queue: int = 20_000

    def __post_init__(self) -> None:
        if not 0.0 <= self.exploration <= 1.0:
            raise ConfigInvalid(f"serving: exploration is a share from 0 to 1, not {self.exploration}")
        for name in (
            "default_items",
            "most_items",
            "recalled_items",
            "store_threads",
            "model_threads",
            "log_queue",
            "near_rows",
        ):
            if getattr(self, name) < 1:
                raise ConfigInvalid(f"serving: {name} is at least 1, not {getattr(self, name)}")
        if self.near_refresh_s < 0.0:
            raise ConfigInvalid(f"serving: near_refresh_s is 0 or more, not {self.near_refresh_s}")

    def arm(self, name: str | None) -> Arm:
        """The arm of this name. None and a name that is not defined are answered as without an experiment."""
        return Arm() if name is None else self.arms.get(name, Arm())

    def roles(self) -> list[ModelRole]:
        """The models to keep loaded: the champion, and those that an arm asks for."""
        asked = {arm.model for arm in self.arms.values()} | {"champion"}
        return [role for role in get_args(ModelRole) if role in asked]
