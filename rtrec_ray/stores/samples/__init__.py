"""The sample store: the ledger that stitching writes, the table that it amounts to, scans, export, retention."""
