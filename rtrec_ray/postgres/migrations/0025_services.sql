CREATE TABLE meta.snapshots (
    snapshot text PRIMARY KEY,
    project text NOT NULL,
    workflow text NOT NULL,
    files jsonb NOT NULL,
    created_ms bigint NOT NULL
);
COMMENT ON TABLE meta.snapshots IS 'What a workflow consisted of, by the hash of its content: a run can be reproduced from it.';
COMMENT ON COLUMN meta.snapshots.snapshot IS 'SHA-256 over project, workflow and files, as hex.';
COMMENT ON COLUMN meta.snapshots.project IS 'The project it belongs to.';
COMMENT ON COLUMN meta.snapshots.workflow IS 'The workflow it is a state of.';
COMMENT ON COLUMN meta.snapshots.files IS 'Name → content: the definitions as text, the versions of the program and its libraries.';
COMMENT ON COLUMN meta.snapshots.created_ms IS 'When it was first seen by the system''s clock, ms UTC.';

CREATE TABLE meta.entity_kinds (
    name text PRIMARY KEY,
    schema jsonb NOT NULL,
    version int NOT NULL DEFAULT 1
);
COMMENT ON TABLE meta.entity_kinds IS 'Kinds of entities that users defined.';
COMMENT ON COLUMN meta.entity_kinds.name IS 'The kind''s name.';
COMMENT ON COLUMN meta.entity_kinds.schema IS 'JSON Schema (2020-12) of the bodies.';
COMMENT ON COLUMN meta.entity_kinds.version IS 'Rises by one with each change; a change is refused when it was made to an older one.';

CREATE TABLE meta.entities (
    kind text NOT NULL,
    name text NOT NULL,
    body jsonb NOT NULL,
    version int NOT NULL DEFAULT 1,
    PRIMARY KEY (kind, name)
);
COMMENT ON TABLE meta.entities IS 'Projects, workflows, jobs, and entities of the users'' own kinds.';
COMMENT ON COLUMN meta.entities.kind IS 'projects, workflows, jobs, or a name in meta.entity_kinds.';
COMMENT ON COLUMN meta.entities.name IS 'Its name, unique in its kind.';
COMMENT ON COLUMN meta.entities.body IS 'What it says, by the schema of its kind.';
COMMENT ON COLUMN meta.entities.version IS 'As in meta.entity_kinds.';

ALTER TABLE meta.runs ADD COLUMN snapshot text;
COMMENT ON COLUMN meta.runs.snapshot IS 'The workflow snapshot it ran on, in meta.snapshots; null where none was taken.';

ALTER TABLE meta.model_lineage
    ADD COLUMN job text NOT NULL DEFAULT '',
    ADD COLUMN snapshot text,
    ADD COLUMN lsn text;
COMMENT ON COLUMN meta.model_lineage.job IS 'train-base or train-incremental; the run is one of its runs.';
COMMENT ON COLUMN meta.model_lineage.snapshot IS 'The workflow snapshot, in meta.snapshots.';
COMMENT ON COLUMN meta.model_lineage.lsn IS 'Place in the change log up to which samples were taken; null where they were read by commit_seq.';

CREATE TABLE meta.model_changes (
    change_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    once_key text UNIQUE,
    change text NOT NULL CHECK (change IN ('generated', 'champion', 'rejected', 'deployed', 'withdrawn')),
    version text NOT NULL,
    reason text NOT NULL,
    sender text NOT NULL,
    context jsonb NOT NULL,
    made_ms bigint NOT NULL,
    previous text,
    event_offset bigint
);
CREATE INDEX model_changes_open ON meta.model_changes (change_id) WHERE event_offset IS NULL;
CREATE INDEX model_changes_by_offset ON meta.model_changes (event_offset);
COMMENT ON TABLE meta.model_changes IS
    'Changes of model versions: first intended here, then made in MLflow, then told by events in the transaction that marks them done.';
COMMENT ON COLUMN meta.model_changes.change_id IS 'Order of intention; changes are made one after another, the lowest first.';
COMMENT ON COLUMN meta.model_changes.once_key IS 'Two intentions of the same key are one; null where the same change may come again.';
COMMENT ON COLUMN meta.model_changes.change IS
    'generated; champion: validated and chosen to serve; rejected; deployed: a replica serves it; withdrawn: no longer champion, and no other is.';
COMMENT ON COLUMN meta.model_changes.version IS 'The model version.';
COMMENT ON COLUMN meta.model_changes.reason IS 'Why; may be empty.';
COMMENT ON COLUMN meta.model_changes.sender IS 'Who wanted it; mlflow: it was found done there.';
COMMENT ON COLUMN meta.model_changes.context IS 'What listeners need: metrics, lineage.';
COMMENT ON COLUMN meta.model_changes.made_ms IS 'When it was intended by the system''s clock, ms UTC.';
COMMENT ON COLUMN meta.model_changes.previous IS 'Of champion, deployed and withdrawn: the version that was it before; null where none was.';
COMMENT ON COLUMN meta.model_changes.event_offset IS 'The offset of its last event; null while it is not done.';

CREATE TABLE meta.model_served (
    served_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    version text NOT NULL,
    from_ms bigint NOT NULL,
    to_ms bigint
);
COMMENT ON TABLE meta.model_served IS 'Which version served when.';
COMMENT ON COLUMN meta.model_served.served_id IS 'Order of service.';
COMMENT ON COLUMN meta.model_served.version IS 'The model version.';
COMMENT ON COLUMN meta.model_served.from_ms IS 'When the first replica had it, by the system''s clock, ms UTC.';
COMMENT ON COLUMN meta.model_served.to_ms IS 'When the first replica had the next one; null while it serves.';
