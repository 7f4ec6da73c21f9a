"""How long a network's layers would take, dense and sparse, by a model fitted on measured layers; no GPU needed.

`network_layers.network_geometry` lays out layers, FLOPs and bytes; `kernel.kernel_time` times one;
`network.estimate_network` sums them up; `recommend.make_plan` ranks what is worth sparsifying;
`roofline.roofline_of` bounds them. Import from there.
"""
