"""As the package of that name."""
