"""Diffusion process: schedule, equations, losses, samplers and guidance, without networks."""
