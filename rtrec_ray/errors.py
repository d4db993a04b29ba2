"""Every error this system raises on purpose.

    RtrecError
    ├── ConfigInvalid                a file or a setting is wrong
    │   └── DefinitionInvalid        ... in features.yaml, samples.yaml or workflow.yaml, with its line
    ├── ServerUnavailable            a server is away: retry with back-off
    │   ├── KafkaUnavailable
    │   ├── StoreUnavailable
    │   ├── RegistryUnavailable
    │   └── RayUnavailable
    ├── RecordInvalid                a record breaks its contract
    │   └── RecordTooLarge
    ├── ChangeRefused                the change log tells of something that a ledger never does
    ├── UnknownSlot                  no consumer of the change log has this slot
    ├── LeaseHeld                    another live owner has the partition
    ├── LeaseLost                    the commit was fenced off: reload and start again
    ├── ListsOvertaken               another keeper wrote lists meanwhile: start again with whole ones
    ├── UnknownView                  no such feature view
    ├── UnknownNode                  no such workflow, or node of one
    ├── BeyondRetention              the tiles, or the daily counts, of that time are gone
    ├── HistoryBehind                the history will have the events of that time in some seconds
    ├── SnapshotEnded                a scan's moment of the table is over
    ├── AsOfUnknown                  that moment is to come yet, or its days were dropped
    ├── ExportRefused                something else lies where an export would go
    ├── BackfillImpossible           history or tiles do not reach back that far
    ├── ReplayRefused                the log would arrive behind the system's watermark
    ├── VerifyImpossible             there is nothing to compare
    ├── FeaturesDiffer               features were served that the events do not give
    ├── MetadataUnknown              there is no such kind or entry
    ├── MetadataInvalid              an entity breaks the schema of its kind
    ├── MetadataConflict             somebody else changed the entry meanwhile
    ├── SamplesDiffer                the live samples are not those that the history gives
    ├── ModelRejected                a model may not go online
    ├── TrainingImpossible           there is nothing to learn from
    ├── TrainingFailed               a training run ended by an error
    ├── DemoFailed                   a stage of the demonstration never showed itself
    └── EmbeddedFailure              a server of this machine does not start or stop
        ├── AlreadyRunning
        ├── NotRunning
        └── DirectoryUnusable

Each carries a sentence that says what happened and `mend`, a sentence that says what to do, and arrives whole on the
other side of a Ray call.
"""

from __future__ import annotations


class RtrecError(Exception):
    """The root. `mend` says what the reader can do about it; it is empty when there is nothing to do but retry.

    >>> import pickle
    >>> error = pickle.loads(pickle.dumps(StoreUnavailable("no answer", mend="start it")))
    >>> type(error).__name__, str(error), error.mend
    ('StoreUnavailable', 'no answer', 'start it')
    """

    def __init__(self, message: str, *, mend: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.mend = mend

    # Exceptions pickle by their positional arguments only; without this a keyword argument breaks the trip through Ray.
    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.message, self.mend)

    def line(self) -> str:
        """One line for a terminal: the cause, then the mend."""
        return f"{self.message} ({self.mend})" if self.mend else self.message


def _rebuild(kind: type[RtrecError], message: str, mend: str) -> RtrecError:
    return kind(message, mend=mend)


class ConfigInvalid(RtrecError):
    """A file or a setting is wrong; the message names the file, the line and the key."""


class DefinitionInvalid(ConfigInvalid):
    """A feature view, a label definition or a workflow is wrong; the message names the line and the key."""


class ServerUnavailable(RtrecError):
    """A server does not answer; the caller retries with back-off."""


class KafkaUnavailable(ServerUnavailable):
    """The brokers are away, or did not acknowledge in time."""


class StoreUnavailable(ServerUnavailable):
    """PostgreSQL is away, or ended the session."""


class RegistryUnavailable(ServerUnavailable):
    """MLflow is away."""


class RayUnavailable(ServerUnavailable):
    """No Ray cluster answers at the address."""


class RecordInvalid(RtrecError):
    """A record breaks its contract; the message names the field."""


class RecordTooLarge(RecordInvalid):
    """A record is larger than the topic takes."""


class ChangeRefused(RtrecError):
    """The change log tells of something else than new rows of the ledger; the message names it."""


class UnknownSlot(RtrecError):
    """No slot of the change log has this name."""


class LeaseHeld(RtrecError):
    """Another live owner holds the lease of this partition."""


class LeaseLost(RtrecError):
    """Somebody took the lease over: nothing was committed, and state must be loaded anew."""


class ListsOvertaken(RtrecError):
    """Another keeper wrote lists since this one read theirs: nothing was written, and all must be made anew."""


class UnknownView(RtrecError):
    """No feature view has this name; the message lists those that exist."""


class UnknownNode(RtrecError):
    """No workflow, or no node of one, has this name; the mend lists those that exist."""


class BeyondRetention(RtrecError):
    """A feature was asked for as of a time whose tiles, or daily counts, are no longer kept."""


class HistoryBehind(RtrecError):
    """A feature was asked for as of a time some events of which are neither in tiles of it nor in the history yet."""


class SnapshotEnded(RtrecError):
    """A part was read after its scan was closed, or its coordinator's connection was lost."""


class AsOfUnknown(RtrecError):
    """Samples were asked for as of a moment that the ledger has not come to, or of days that are dropped by now."""


class ExportRefused(RtrecError):
    """An export would overwrite what it did not write itself."""


class BackfillImpossible(RtrecError):
    """A view cannot be filled: it has not begun, or the history or the tiles do not reach back that far."""


class ReplayRefused(RtrecError):
    """The log's first event lies behind the watermark of the running system."""


class VerifyImpossible(RtrecError):
    """There is nothing to compare: no history, or no request with the offsets behind its features."""


class FeaturesDiffer(RtrecError):
    """Features were served that the events do not give."""


class MetadataUnknown(RtrecError):
    """There is no such kind, or no entry of this name."""


class MetadataInvalid(RtrecError):
    """An entity breaks the schema of its kind, or a schema is none; the message names the place."""


class MetadataConflict(RtrecError):
    """The entry has another version than the one that the change was made to: read it again."""


class SamplesDiffer(RtrecError):
    """The live samples differ from those stitched from the history, without a cause."""


class ModelRejected(RtrecError):
    """A model version may not go online."""


class TrainingImpossible(RtrecError):
    """There are no samples, or none with a click."""


class TrainingFailed(RtrecError):
    """A training run ended by an error, after its restarts."""


class DemoFailed(RtrecError):
    """A stage of the demonstration did not show itself in time; the mend names where to look."""


class EmbeddedFailure(RtrecError):
    """A server of this machine does not start or stop; the message names its log."""


class AlreadyRunning(EmbeddedFailure):
    """A system already runs on this data directory."""


class NotRunning(EmbeddedFailure):
    """No system runs on this data directory."""


class DirectoryUnusable(EmbeddedFailure):
    """The data directory cannot be written, or its disk is full."""
