"""Logs as facts: one event name and its fields, a JSON object a line."""

from __future__ import annotations

import json
import logging
import sys

# What a record has before `extra` adds the fields of the fact.
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class FactFormatter(logging.Formatter):
    """Formats a record as JSON.

    >>> record = logging.makeLogRecord({"name": "actors.task", "levelname": "INFO", "msg": "written", "rows": 2})
    >>> FactFormatter().format(record)
    '{"level": "INFO", "logger": "actors.task", "event": "written", "rows": 2}'
    """

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        fact = {"level": record.levelname, "logger": record.name, "event": record.getMessage()}
        # What begins with "_" is no fact of this system: Ray marks the records of a process that uses Ray Data.
        told = (item for item in vars(record).items() if item[0] not in _OWN and not item[0].startswith("_"))
        fact.update(told)
        if record.exc_info:
            fact["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fact, default=str, ensure_ascii=False)


def log_facts(level: int = logging.INFO) -> None:
    """Log facts of this system to stderr, and only warnings of everybody else."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(FactFormatter())
    for name in ("rtrec_ray", "actors", "training", "serving"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level)
        logger.propagate = False
