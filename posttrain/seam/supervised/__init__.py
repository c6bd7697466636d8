"""`SupervisedTrainer` and what belongs to it: rows of groups and of streams."""
