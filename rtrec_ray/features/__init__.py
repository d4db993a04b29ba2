"""Feature views as values: what they are, how their tiles are computed from columns and merged into the value read."""
