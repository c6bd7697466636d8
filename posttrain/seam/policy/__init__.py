"""`PolicyTrainer` and what belongs to it: rollouts, rewards, demonstrations, reference, metrics."""
