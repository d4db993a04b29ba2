"""A real Kafka, PostgreSQL, MLflow and Ray on this machine, for `rtrec up`, `make demo` and the tests."""
