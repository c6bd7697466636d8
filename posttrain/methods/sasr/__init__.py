"""SASR: each optimizer step is supervised or a policy step, by how far the policy is from its demonstrations."""
