"""Checkpoints: what they hold, that they are whole, and how a run continues from them."""
