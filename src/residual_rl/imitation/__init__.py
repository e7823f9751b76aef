"""Training of base policies from demonstrations: behaviour cloning, Diffusion Policy and flow matching."""
