"""verl's V1 trainers with named hooks overridden."""
