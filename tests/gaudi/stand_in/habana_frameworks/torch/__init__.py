"""As the package of that name: its device is not registered before `core` is imported."""
