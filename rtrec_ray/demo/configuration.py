"""The settings of a demonstration as files, for the jobs that its system's workflow starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from configs.settings import Settings
from rtrec_ray import yaml_text
from rtrec_ray.app.find import definition_file
from rtrec_ray.workflow.file import load_workflow
from rtrec_ray.workflow.text import to_text

_BASE = "base"


def own_workflow(settings: Settings, directory: Path) -> Settings:
    """Go by the system's workflow, without the rules that train a base model: a demonstration says when it does.

    And without daily runs: no report shows what they compute, and in compressed time midnight comes while all is busy.
    """
    shipped = load_workflow(definition_file("workflow", None))
    rules = tuple(rule for rule in shipped.rules if all(action.node != _BASE for action in rule.then))
    file = directory / "workflow.yaml"
    file.write_text(to_text(replace(shipped, rules=rules)), encoding="utf-8")
    return settings.model_copy(
        update={"definitions": replace(settings.definitions, workflow=str(file), workflow_features="none")}
    )


def write_settings(settings: Settings, directory: Path) -> Path:
    """A file that reads as these settings. They may hold secrets: nobody else may read it."""
    file = directory / "settings.yaml"
    file.touch(mode=0o600)
    file.write_text(yaml_text.dump(settings.model_dump(mode="json")), encoding="utf-8")
    return file
