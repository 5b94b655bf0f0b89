"""MLflow: a journal on disk and one writer thread."""
