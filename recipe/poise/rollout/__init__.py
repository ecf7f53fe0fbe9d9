"""What changes on vLLM's side: the weight sync's socket, and a sampling seed per rollout."""
