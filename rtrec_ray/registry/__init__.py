"""The model center: every model version with what made it, over MLflow."""
