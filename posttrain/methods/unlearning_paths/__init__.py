"""Unlearning: losses on rows to forget, rows to retain, and the model before as the reference."""
