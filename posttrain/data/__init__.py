"""Data: one loader for packaged tasks, reasoning-gym tasks, local files and Hub datasets; the same columns for all."""
