"""Exact optima, paper policies and exact scores."""
