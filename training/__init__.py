"""How the embedder gets better."""
