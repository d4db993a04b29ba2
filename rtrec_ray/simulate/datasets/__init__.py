"""Real logs that come with the package."""
