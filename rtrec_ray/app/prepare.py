"""What must be there before a stage starts: tables, topics, the clock."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

from rtrec_ray.app.find import workflow_files
from rtrec_ray.app.in_force import texts_in_force
from rtrec_ray.app.snapshot import enter_workflow, entering, register, workflow_snapshot
from rtrec_ray.app.system import System
from rtrec_ray.app.views import apply_views
from rtrec_ray.app.workflow import open_desk
from rtrec_ray.clock import ScaledClock, wall_ms
from rtrec_ray.kafka.base import TopicPartition
from rtrec_ray.kafka.connect import connect_admin, connect_consumer
from rtrec_ray.kafka.topics import ensure_topics
from rtrec_ray.metadata.catalogue import system_datasets
from rtrec_ray.metadata.postgres import PostgresMetadataStore
from rtrec_ray.postgres.connection import Pool, connect, transaction
from rtrec_ray.postgres.migrate import migrate
from rtrec_ray.stores.features.live import move_users
from rtrec_ray.stores.progress import put_clock, read_clock
from rtrec_ray.stores.samples.live import enter_definition, enter_partitions
from rtrec_ray.workflow.definition import Workflow
from rtrec_ray.workflow.file import load_workflow


def prepare(system: System) -> System:
    """Make what is missing of tables, topics and the clock; answers the system with what holds now.

    The first start fixes the clock: a system that was stopped goes on where its line has come to. Raises
    StoreUnavailable, KafkaUnavailable, ConfigInvalid, DefinitionInvalid.
    """
    if system.addresses.postgres is not None:
        migrate(system.postgres)
        _enter_definitions(system)
        system = replace(system, clock=_fix_clock(system))
        _register_workflow(system)
        _enter_workflows(system)
    if system.addresses.kafka is not None:
        with connect_admin(system.kafka) as admin:
            system = replace(system, partitions=ensure_topics(admin, partitions=system.settings.pipeline.partitions))
    if system.addresses.postgres is not None and system.addresses.kafka is not None:
        _enter_partitions(system)
        _register_datasets(system)
    return system


def _enter_definitions(system: System) -> None:
    # Here and not in the first actor: a definition that cannot be applied is said in one line, at once.
    with closing(Pool(system.postgres, size=1)) as pool, pool.transaction() as cursor:
        enter_definition(cursor, system.samples)
        # The clock is fixed after the first start's definitions, which are no event; any other start finds it.
        apply_views(system, system.features, pool=pool, cursor=cursor, clock=read_clock(cursor) or system.clock)


def _enter_partitions(system: System) -> None:
    def ends(topic: str, count: int) -> dict[int, int]:
        places = [TopicPartition(topic=topic, partition=number) for number in range(count)]
        with closing(connect_consumer(system.kafka)) as consumer:
            return {place.partition: end for place, end in consumer.end_offsets(places).items()}

    with closing(connect(system.postgres)) as connection, transaction(connection) as cursor:
        move_users(cursor, partitions=system.partitions, partition_of=system.partition_of, ends_of=ends)
        enter_partitions(cursor, system.partitions)


def _fix_clock(system: System) -> ScaledClock:
    asked, now_ms = system.settings.clock, wall_ms()
    origin_ms = now_ms if asked.origin_event_ms is None else asked.origin_event_ms
    line = ScaledClock(origin_event_ms=origin_ms, origin_wall_ms=now_ms, speed=asked.speed)
    with closing(connect(system.postgres)) as connection, transaction(connection) as cursor:
        return put_clock(cursor, line)


def _register_workflow(system: System) -> None:
    with closing(PostgresMetadataStore(system.postgres)) as store:
        register(store, workflow_snapshot(system, texts_in_force(system)))


def _enter_workflows(system: System) -> None:
    """Let the scheduler go by the files of the system's workflows: the one of training only where there is MLflow."""
    for name, file in workflow_files(system.settings.definitions).items():
        if name != "workflow" or system.addresses.mlflow is not None:
            _enter_workflow(system, load_workflow(file))


def _enter_workflow(system: System, definition: Workflow) -> None:
    """Not in place of what people applied by hand under its name."""
    with closing(PostgresMetadataStore(system.postgres)) as store, open_desk(system) as desk:
        entered = store.entities("workflows", name=definition.name)
        ours = [entity.body.get("digest") for entity in entered if not entity.body.get("by_hand")]
        known = desk.workflows.load().workflows.get(definition.name)
        now = None if known is None else known.state.digest
        if now not in (None, definition.digest, *ours):
            return
        if now == definition.digest:
            enter_workflow(store, definition, workflow_snapshot(system, texts_in_force(system)), by_hand=False)
        else:
            desk.workflows.apply(definition, also=entering(system, definition, by_hand=False))


def _register_datasets(system: System) -> None:
    with closing(PostgresMetadataStore(system.postgres)) as store:
        for dataset in system_datasets(history_uri=system.history_uri, topics=system.kafka.bootstrap):
            store.put_dataset(dataset)
