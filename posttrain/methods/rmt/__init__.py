"""Reinforcement mid-training and reinforcement pre-training: RL on unlabelled text by predicting its next token."""
