"""Matrix mathematics of FIRE, and which weight of a module is which matrix."""
