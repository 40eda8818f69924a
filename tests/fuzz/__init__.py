"""Coverage-guided fuzzing of everything that parses what comes from the network. `make fuzz` runs it."""
