"""`make bench`: the benchmarks that need no topic filled before, one after another.

Each prints one JSON line with its name before it.
"""

import subprocess
import sys
from pathlib import Path

RUNS = (
    ("bench_codec.py",),
    ("bench_features_local.py", "--events", "1000000"),
    ("bench_events.py",),
    ("bench_freshness.py",),
    ("bench_recovery.py",),
    ("bench_corrected.py",),
    ("bench_corrections.py",),
    ("bench_reads.py",),
    ("bench_stitch_local.py", "1000000"),
    ("bench_stitch_local.py", "1000000", "--postgres"),
    ("bench_scan.py",),
    ("bench_training.py",),
    ("bench_workflow.py",),
    ("bench_serving.py", "--front", "uvicorn"),
    ("bench_serving.py", "--front", "serve"),
)
HERE = Path(__file__).parent
BESIDE_FEAST = HERE.parent / ".venv-bench" / "bin" / "python"


def main() -> int:
    """Run all; answers how many failed."""
    failed = 0
    for words in RUNS:
        print(" ".join(words), flush=True)
        python = BESIDE_FEAST if words[0] == "bench_reads.py" else sys.executable
        failed += subprocess.run([python, str(HERE / words[0]), *words[1:]]).returncode != 0
    return failed


sys.exit(main())
