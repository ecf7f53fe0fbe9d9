"""Hidden states out of the pass that verl runs anyway: hook, engine, signals, and the stream of rows."""
