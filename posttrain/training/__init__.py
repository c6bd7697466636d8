"""From a checked recipe to a trained and evaluated model."""
