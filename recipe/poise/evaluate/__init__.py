"""Evaluation of a model on problem suites with vLLM: ``python -m recipe.poise.evaluate --model M --data DIR --out DIR``."""
