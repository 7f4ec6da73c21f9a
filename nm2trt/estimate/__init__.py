"""Roofline per layer from a GPU's figures: what dense and sparse may take, with no GPU at hand."""
