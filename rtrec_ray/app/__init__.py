"""READ FIRST: the system, wired in the order in which data flows through it.

1. `system`    what a running system is: its addresses, its clock, its definitions.
2. `pipeline`  Kafka → history (Parquet), features (tiles), samples (ledger): Ray actors around one loop.
3. `training`  samples → base model, increments; MLflow; the gate that lets a version online.
4. `serving`   features + model → answers on HTTP, and the inference log back to Kafka, where the loop closes.
5. `workflow`  events → jobs: the scheduler, beside the pipeline.
6. `up`        starts all of that, or parts of it, on servers of its own or on existing ones, and stops it again.

Everything below takes options and knows nothing of settings.
"""
