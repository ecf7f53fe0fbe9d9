"""Public data sets and own files in verl's parquet schema: ``python -m recipe.poise.data NAME --out DIR``."""
