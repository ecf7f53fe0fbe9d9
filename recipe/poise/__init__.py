"""POISE for verl: the policy's own hidden states give the baseline of its policy gradient."""
