"""`fedserver doctor`: whether a server could run with these settings, and what to do where it could not."""
