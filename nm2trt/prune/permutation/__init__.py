"""Channel permutations: which channels may move together, and which order keeps most."""
