"""Evaluation of a model on problem suites: ``python -m recipe.poise.evaluate --model M --data DIR --out DIR``."""
