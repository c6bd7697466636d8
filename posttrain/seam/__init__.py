"""The only place that touches private names of TRL, transformers or accelerate."""
