"""Reproducing a paper's claim: claims.yaml, the runs of a study, the decision, RESULTS.json, docs/results.md."""
