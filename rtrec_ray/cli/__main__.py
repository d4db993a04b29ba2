"""`python -m rtrec_ray.cli`: the same as `rtrec`."""

from rtrec_ray.cli.main import main

main()
