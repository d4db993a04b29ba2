"""`make bench`: every benchmark, one after another; each prints one JSON line with its name before it."""

import subprocess
import sys
from pathlib import Path

RUNS = (
    ("bench_codec.py",),
    ("bench_features_local.py", "--events", "1000000"),
    ("bench_stitch_local.py", "1000000"),
    ("bench_stitch_local.py", "1000000", "--postgres"),
    ("bench_training.py",),
    ("bench_serving.py", "--front", "uvicorn"),
    ("bench_serving.py", "--front", "serve"),
)


def main() -> int:
    """Run all; answers how many failed."""
    failed = 0
    for words in RUNS:
        print(" ".join(words), flush=True)
        failed += subprocess.run([sys.executable, str(Path(__file__).parent / words[0]), *words[1:]]).returncode != 0
    return failed


sys.exit(main())
