"""Attention weighted by gradients: relevance that is followed through the layers, and gradients of the inputs."""
