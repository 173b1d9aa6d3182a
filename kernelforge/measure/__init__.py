"""Verifying and timing kernels on a device: what a tuned number rests on."""
