"""The change log: the ledger of samples as a stream, over logical replication."""
