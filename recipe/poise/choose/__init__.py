"""Which prompts are worth asking: candidates are drawn, judged by a pass over the prompts alone, and chosen."""
