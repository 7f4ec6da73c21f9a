"""torch's own 2:4 kernels (cuSPARSELt, CUTLASS): where they exist, which weights they take, how a module gets them."""
