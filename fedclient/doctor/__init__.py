"""`fedclient doctor`: whether this site could take part, and what to do where it could not."""
