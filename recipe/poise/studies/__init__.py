"""A fixed checkpoint under the lens: variance of the gradient, quality of the values."""
