"""The history: every accepted record as Parquet, with its manifest."""
