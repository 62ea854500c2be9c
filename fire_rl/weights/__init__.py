"""The matrix mathematics of FIRE, and how the weights of a module are read as matrices."""
