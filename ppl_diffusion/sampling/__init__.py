"""Annealed sampling: the walk down the ladder, its weights, and its trace."""
