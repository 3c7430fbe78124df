"""Results of a prediction on disk: their paths, writing them, and reading the manifests of earlier runs."""
