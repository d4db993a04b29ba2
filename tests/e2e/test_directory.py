"""A data directory that cannot be used, as a user of the command meets it."""

import shutil
import subprocess
import sys

import pytest

from tests.e2e.commands import ROOT

pytestmark = [pytest.mark.server, pytest.mark.slow]

UP = 'mount -t tmpfs -o {} none "$0" && exec "$1" -m rtrec_ray.cli up --only postgres --data-dir "$0" {}'


@pytest.mark.parametrize("detach", ["", "--detach"])
@pytest.mark.parametrize(
    ("disk", "said"),
    [("size=32k", "is full"), ("size=8m", "MB free"), ("ro", "cannot be written: Read-only file system")],
)
def test_up_on_a_full_or_read_only_disk_ends_with_one_line(tmp_path, disk, detach, said):
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-Urm", "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine allows no mount namespaces")
    command = [unshare, "-Urm", "sh", "-c", UP.format(disk, detach), str(tmp_path), sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
    assert done.returncode != 0
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert said in done.stderr
    assert "--data-dir" in done.stderr
    assert done.stdout == ""
