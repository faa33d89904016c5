"""The environments: spaces, units and documentation of each market."""
