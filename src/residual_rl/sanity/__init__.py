"""The sanity suite that `residual-rl doctor` runs."""
