"""Recipes: one YAML file is one run. Loading, the blocks, and the rules between their keys."""
