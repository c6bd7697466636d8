"""vLLM as the engine that makes rollouts: its settings on a CPU, its server, and the proof that it has the weights."""
