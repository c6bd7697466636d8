"""Recipes: one YAML file is one run. Loading, the blocks, and the checks made before any weight is read."""
