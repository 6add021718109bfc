"""The detector: backbone, text encoder, neck, heads, post-processing."""
