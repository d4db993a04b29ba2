"""The static features of the T+1 jobs."""
