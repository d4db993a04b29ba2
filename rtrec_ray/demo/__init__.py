"""The demonstrations: of a replayed log and of a drifting world, each in a package of its own, and what both share."""
