"""Feature views: definitions, columns in, values out. Reading them is the stores' part."""
