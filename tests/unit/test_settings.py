from pathlib import Path

import pytest

from configs.settings import load_settings
from rtrec_ray.errors import ConfigInvalid
from serving.options import Arm

CLUSTER = Path(__file__).parents[2] / "configs" / "cluster.yaml"


def write(tmp_path, text):
    path = tmp_path / "rtrec.yaml"
    path.write_text(text)
    return path


def test_the_default_file_says_what_the_code_says(tmp_path, monkeypatch):
    assert load_settings() == load_settings(write(tmp_path, ""))


def test_the_environment_goes_before_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("RTREC_SERVERS__HTTP__PORT", "8123")
    path = write(tmp_path, "servers: {http: {port: 8001, replicas: 2}}")
    assert (load_settings(path).servers.http.port, load_settings(path).servers.http.replicas) == (8123, 2)


def test_a_secret_is_named_in_the_file_and_read_from_the_environment(monkeypatch):
    for name in ("KAFKA_BOOTSTRAP", "KAFKA_USER", "POSTGRES_DSN", "MLFLOW_TRACKING_URI", "RTREC_HISTORY_URI"):
        monkeypatch.setenv(name, name.lower())
    monkeypatch.setenv("KAFKA_PASSWORD", "hunter2")
    assert load_settings(CLUSTER).servers.kafka.client["sasl.password"] == "hunter2"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pipeline: {partitons: 3}", "pipeline.partitons"),
        ("pipelines: {}", "pipelines"),
        ("clock: {speed: fast}", "clock.speed"),
        ("serving: {arms: {static: {modle: base}}}", "serving.arms.static.modle"),
        ("serving: {arms: {static: {model: newest}}}", "serving.arms.static.model"),
        ("serving: {arms: {static: {realtime: perhaps}}}", "serving.arms.static.realtime"),
        ("serving: {arms: [static, features]}", "serving.arms"),
        ("servers: {postgres: {dsn: '${NOT_SET}'}}", "export NOT_SET="),
        ("daily: {keep_days: 6}", "keep_days is 6; the longest window is of 7 days"),
        ("- 1", "no sections"),
        ("a: [", "line 1: not YAML"),
        ("a: 2001-99-99", "not YAML: month must be in 1..12"),
        pytest.param("a: " + "[" * 100_000, "more than 100 levels", id="deep"),
    ],
)
def test_a_wrong_key_or_value_is_named(tmp_path, text, said):
    with pytest.raises(ConfigInvalid) as caught:
        load_settings(write(tmp_path, text))
    assert said in caught.value.line()


def test_an_arm_is_the_champion_with_real_time_values_in_all_it_does_not_say(tmp_path):
    path = write(tmp_path, "serving: {arms: {static: {model: base, realtime: false}, f: {model: base}, training: {}}}")
    assert load_settings(path).serving.arms == {
        "static": Arm(model="base", realtime=False),
        "f": Arm(model="base", realtime=True),
        "training": Arm(),
    }
    assert load_settings().serving.arms == {}


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigInvalid, match=r"nothing\.yaml cannot be read"):
        load_settings(tmp_path / "nothing.yaml")
