"""States become values, values become advantages: the probe in the critic's seat, and verl's estimator."""
