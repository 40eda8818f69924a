"""Checks that a person asks for: run one after another, each with a line that says what was found and what to do."""
