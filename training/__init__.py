"""Training embedders, and everything that makes data for it."""
