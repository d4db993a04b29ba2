"""The configuration files, and the one class that reads them."""
