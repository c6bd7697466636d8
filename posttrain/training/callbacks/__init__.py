"""Trainer callbacks: what the console shows, what `metrics.jsonl` keeps, evaluation during training."""
