"""Training of models by denoising."""
