"""Training: configuration, latent samplers, the loop, one file per trainee."""
