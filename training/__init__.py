"""Training: samples to model versions, in batch and along the ledger, and the gate before serving."""
