"""The CPU profile: what verl, torch and vLLM need to run their real loop without an accelerator."""
