"""`fedclient preview`: what would leave this machine, shown before anything does."""
