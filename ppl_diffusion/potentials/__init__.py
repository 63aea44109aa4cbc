"""What a density is: energies at every noise level, and the algebra that composes them."""
