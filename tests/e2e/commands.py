"""The system as a user has it: by the `rtrec` command, in a data directory of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]


class Installation:
    """Runs commands against one data directory."""

    def __init__(self, directory: Path, *, config: Path | None = None):
        self.directory = directory
        self._config = config

    def run(self, *words, timeout_s=600, check=True, **variables):
        """Run `rtrec WORDS`; answers the finished process."""
        command = [sys.executable, "-m", "rtrec_ray.cli", *words, "--data-dir", str(self.directory)]
        command += ["--config", str(self._config)] if self._config else []
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            cwd=ROOT,
            env={**os.environ, **variables},
            check=False,
        )
        assert not check or done.returncode == 0, f"{words}: {done.stdout}\n{done.stderr}"
        return done

    def end(self):
        """Stop it; nothing of it may be left."""
        done = self.run("down", check=False)
        left, log = self.processes(), self.directory / "up.log"
        assert left == [], f"{left}\n{done.stdout}\n{done.stderr}\n{log.read_text() if log.exists() else 'no log'}"

    def json(self, *words, **options):
        """Run `rtrec WORDS --json`; answers the object, which must be all there is on stdout."""
        return json.loads(self.run(*words, "--json", **options).stdout)

    def json_or_away(self, *words):
        """As `json`; None while a server does not answer: who asks by hand asks again, as the message says."""
        done = self.run(*words, "--json", check=False)
        if done.returncode and "the caller tries again" in done.stderr:
            return None
        assert done.returncode == 0, f"{words}: {done.stdout}\n{done.stderr}"
        return json.loads(done.stdout)

    def processes(self):
        """Every process that has to do with the directory, and is not a test."""
        found = []
        for process in psutil.process_iter(["cmdline", "environ", "pid"]):
            words = [*(process.info["cmdline"] or []), *(process.info["environ"] or {}).values()]
            mine = any(str(self.directory) in word for word in words)
            if mine and process.info["pid"] != os.getpid():
                found.append(process)
        return found
