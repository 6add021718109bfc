"""The only room that imports mlflow: one run from parameters to artifacts."""
