"""Spatial functa: parity, reconstruction, what latents are good for, speed, artefacts, pictures of any size."""
